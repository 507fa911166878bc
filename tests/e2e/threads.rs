//! Assistants, threads and messages: what is sent for them, and what a deletion of unknown outcome
//! answers.

use runs_gateway::v1::{
    CreateAssistantRequest, CreateThreadRequest, DeleteMessageRequest, ListMessagesRequest,
    assistant_service_client::AssistantServiceClient, message_service_client::MessageServiceClient,
    thread_service_client::ThreadServiceClient,
};
use tonic::Code;

use crate::support::{
    gateway::{spawn_gateway, spawn_retrying_gateway},
    upstream::{Answer, Upstream},
};

#[tokio::test]
async fn only_a_thread_may_be_made_of_nothing() {
    let upstream = Upstream::start().await;
    upstream.push(Answer::json(200, r#"{"id":"thread_1"}"#));
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let mut threads = ThreadServiceClient::new(gateway.channel());
    let made = threads.create_thread(CreateThreadRequest::default()).await;
    assert_eq!(made.expect("a thread").into_inner().id, "thread_1");
    let mut assistants = AssistantServiceClient::new(gateway.channel());
    let refused = assistants
        .create_assistant(CreateAssistantRequest::default())
        .await
        .expect_err("no body");
    assert_eq!(
        (refused.code(), refused.message().contains("assistant")),
        (Code::InvalidArgument, true)
    );
    gateway.drain().await;
    let [request] = &upstream.requests()[..] else {
        panic!("not exactly one request")
    };
    assert_eq!(
        (&*request.method, &*request.target, request.text()),
        ("POST", "/threads", "{}")
    );
}

#[tokio::test]
async fn messages_are_listed_by_run() {
    let upstream = Upstream::start().await;
    upstream.push(Answer::json(200, r#"{"data":[]}"#));
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let request = ListMessagesRequest {
        thread_id: "t".to_owned(),
        limit: Some(3),
        run_id: "run/1".to_owned(),
        ..ListMessagesRequest::default()
    };
    let mut messages = MessageServiceClient::new(gateway.channel());
    messages.list_messages(request).await.expect("a page");
    gateway.drain().await;
    assert_eq!(
        upstream.requests()[0].target,
        "/threads/t/messages?limit=3&run_id=run%2F1"
    );
}

#[tokio::test]
async fn a_repeated_deletion_that_finds_nothing_has_succeeded_and_a_first_one_has_not() {
    for (answers, deleted) in [(&[500, 404][..], true), (&[404][..], false)] {
        let upstream = Upstream::start().await;
        for status in answers {
            upstream.push(Answer::json(
                *status,
                r#"{"error":{"message":"no such message","type":"invalid_request_error"}}"#,
            ));
        }
        let gateway = spawn_retrying_gateway(&upstream.url(), &[]).await;
        let request = DeleteMessageRequest {
            thread_id: "t".to_owned(),
            message_id: "m".to_owned(),
        };
        let mut messages = MessageServiceClient::new(gateway.channel());
        let answered = messages.delete_message(request).await;
        gateway.drain().await;
        assert_eq!(upstream.requests().len(), answers.len());
        match answered {
            Ok(answer) => {
                let answer = answer.into_inner();
                assert!(deleted);
                assert_eq!(
                    (&*answer.id, &*answer.object, answer.deleted),
                    ("m", "thread.message.deleted", Some(true))
                );
            }
            Err(status) => assert_eq!((status.code(), deleted), (Code::NotFound, false)),
        }
    }
}
