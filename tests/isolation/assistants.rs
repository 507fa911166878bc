//! Assistants: shared, or each its caller's.

use runs_gateway::v1::{assistant_service_client::AssistantServiceClient, *};
use serde_json::json;
use tonic::{Code, transport::Channel};

use crate::{A, B, Isolated, KEY, by};

impl Isolated {
    fn assistants(&self) -> AssistantServiceClient<Channel> {
        AssistantServiceClient::new(self.gateway.channel())
    }

    async fn assistant_of(&self, token: &str) -> String {
        let assistant = Some(AssistantSpec {
            model: "m".to_owned(),
            ..AssistantSpec::default()
        });
        let request = by(
            token,
            CreateAssistantRequest {
                assistant,
                ..CreateAssistantRequest::default()
            },
        );
        let made = self.assistants().create_assistant(request).await;
        made.expect("an assistant").into_inner().id
    }

    async fn list(&self, token: &str, limit: i32, after: &str) -> (Vec<String>, Option<bool>) {
        let request = ListAssistantsRequest {
            limit: Some(limit),
            after: after.to_owned(),
            ..ListAssistantsRequest::default()
        };
        let page = self.assistants().list_assistants(by(token, request)).await;
        let page = page.expect("a page").into_inner();
        assert!(!format!("{page:?}").contains(KEY));
        let ids: Vec<_> = page.data.into_iter().map(|it| it.id).collect();
        assert_eq!(Some(&page.last_id), ids.last().or(Some(&String::new())));
        (ids, page.has_more)
    }
}

#[tokio::test]
async fn assistants_are_shared_unless_they_are_to_be_isolated() {
    let isolated = Isolated::start(&[]).await;
    let assistant_id = isolated.assistant_of(A).await;
    let request = by(
        B,
        GetAssistantRequest {
            assistant_id: assistant_id.clone(),
        },
    );
    isolated
        .assistants()
        .get_assistant(request)
        .await
        .expect("it is shared");
    let metadata = isolated
        .store
        .metadata(&format!("/assistants/{assistant_id}"));
    assert_eq!(metadata, json!({}));
    isolated.gateway.drain().await;
}

#[tokio::test]
async fn an_assistant_is_there_for_its_own_caller_and_for_nobody_else() {
    let isolated = Isolated::start(&["--isolate-assistants"]).await;
    let (own, theirs) = (
        isolated.assistant_of(A).await,
        isolated.assistant_of(B).await,
    );
    isolated.store.put("/assistants/assistant_unm", json!({}));
    let mut assistants = isolated.assistants();
    for (assistant, expected) in [
        (&*own, Ok(())),
        (&*theirs, Err(Code::NotFound)),
        ("assistant_unm", Err(Code::NotFound)),
        ("assistant_abs", Err(Code::NotFound)),
    ] {
        let assistant_id = assistant.to_owned();
        let code = |status: tonic::Status| status.code();
        let request = by(
            A,
            GetAssistantRequest {
                assistant_id: assistant_id.clone(),
            },
        );
        let got = assistants.get_assistant(request).await;
        assert_eq!(got.map(drop).map_err(code), expected, "{assistant}");
        let change = AssistantUpdate {
            extra_json: r#"{"metadata":null}"#.to_owned(),
            ..AssistantUpdate::default()
        };
        let request = ModifyAssistantRequest {
            assistant_id: assistant_id.clone(),
            assistant: Some(change),
        };
        let modified = assistants.modify_assistant(by(A, request)).await;
        assert_eq!(modified.map(drop).map_err(code), expected, "{assistant}");
        // Neither is a run made with it, nor a thread for one.
        let before = isolated.store.resources().len();
        let request = CreateThreadAndRunRequest {
            thread_and_run: Some(ThreadAndRunSpec {
                assistant_id: assistant_id.clone(),
                ..ThreadAndRunSpec::default()
            }),
            ..CreateThreadAndRunRequest::default()
        };
        let ran = isolated
            .gateway
            .runs()
            .create_thread_and_run(by(A, request))
            .await;
        assert_eq!(ran.map(drop).map_err(code), expected, "{assistant}");
        let made = isolated.store.resources().len() - before;
        assert_eq!(made, usize::from(expected.is_ok()), "{assistant}");
        // Nor where it is named beside the contract.
        let thread = isolated.thread_of(A).await;
        for extra_json in [
            format!(r#"{{"assistant_id":"{assistant}"}}"#),
            format!(r#"{{"\u0061ssistant_id":"{assistant}"}}"#),
        ] {
            let request = CreateRunRequest {
                thread_id: thread.clone(),
                run: Some(RunSpec {
                    extra_json,
                    ..RunSpec::default()
                }),
                ..CreateRunRequest::default()
            };
            let ran = isolated.gateway.runs().create_run(by(A, request)).await;
            assert_eq!(ran.map(drop).map_err(code), expected, "{assistant}");
        }
        let twice = format!(r#"{{"assistant_id":"{assistant}","assistant_id":"{own}"}}"#);
        let request = CreateRunRequest {
            thread_id: thread.clone(),
            run: Some(RunSpec {
                extra_json: twice,
                ..RunSpec::default()
            }),
            ..CreateRunRequest::default()
        };
        let ran = isolated.gateway.runs().create_run(by(A, request)).await;
        assert_eq!(ran.expect_err("two").code(), Code::InvalidArgument);
    }
    let mark = isolated.store.metadata(&format!("/assistants/{own}"))[KEY].clone();
    assert!(mark.is_string(), "it is not washed off");
    let request = by(
        B,
        DeleteAssistantRequest {
            assistant_id: own.clone(),
        },
    );
    assistants
        .delete_assistant(request)
        .await
        .expect_err("not theirs");
    let request = by(A, DeleteAssistantRequest { assistant_id: own });
    assistants.delete_assistant(request).await.expect("its own");
    isolated.gateway.drain().await;
}

#[tokio::test]
async fn a_list_has_a_callers_own_assistants_only() {
    let isolated = Isolated::start(&["--isolate-assistants"]).await;
    let mut own = Vec::new();
    for _ in 0..5 {
        own.push(isolated.assistant_of(A).await);
        isolated.assistant_of(B).await;
        isolated.assistant_of(B).await;
    }
    assert_eq!(isolated.list(A, 100, "").await, (own.clone(), Some(false)));
    assert_eq!(isolated.list(A, 5, "").await, (own.clone(), Some(false)));
    assert_eq!(
        isolated.list(A, 2, "").await,
        (own[..2].to_vec(), Some(true))
    );
    assert_eq!(
        isolated.list(A, 2, &own[1]).await,
        (own[2..4].to_vec(), Some(true))
    );
    assert_eq!(
        isolated.list(A, 2, &own[3]).await,
        (own[4..].to_vec(), Some(false))
    );
    assert_eq!(isolated.list(B, 100, "").await.0.len(), 10);
    // Another's is no place in the list, and neither is one that is not there.
    for after in [&*own[0], "assistant_abs"] {
        let request = ListAssistantsRequest {
            after: after.to_owned(),
            ..ListAssistantsRequest::default()
        };
        let page = isolated.assistants().list_assistants(by(B, request)).await;
        assert_eq!(page.expect_err("no place").code(), Code::NotFound);
    }
    isolated.gateway.drain().await;
}
