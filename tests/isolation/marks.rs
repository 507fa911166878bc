//! Nobody sees, sets, changes or washes off a mark.

use std::collections::BTreeMap;

use prost::Message as _;
use runs_gateway::v1::*;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{A, B, Isolated, KEY, by, rows};

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    let request = details.bad_request().expect("a field").clone();
    let violations = request.field_violations.into_iter();
    violations.map(|violation| violation.field).collect()
}

impl Isolated {
    async fn modify(&self, thread: &str, change: ThreadUpdate) -> Result<ThreadResource, Status> {
        let request = ModifyThreadRequest {
            thread_id: thread.to_owned(),
            thread: Some(change),
        };
        let modified = self.threads().modify_thread(by(A, request)).await;
        modified.map(tonic::Response::into_inner)
    }

    fn mark_of(&self, thread: &str) -> Value {
        self.store.metadata(&format!("/threads/{thread}"))[KEY].clone()
    }

    /// Makes a call of this name by its raw request.
    async fn call(&self, rpc: &str, request: Vec<u8>) -> Result<Vec<bytes::Bytes>, Status> {
        let contract = rows::contract();
        let rpc = contract.iter().find(|it| it.name() == rpc).expect("an RPC");
        rows::call(self.gateway.channel(), rpc, A, request).await
    }
}

#[tokio::test]
async fn each_way_to_make_a_thread_marks_it_and_no_answer_shows_that() {
    let isolated = Isolated::start(&[]).await;
    let thread = || ThreadSpec {
        metadata: pairs([("own", "x")]),
        ..ThreadSpec::default()
    };
    let thread_and_run = || {
        Some(ThreadAndRunSpec {
            assistant_id: "asst_1".to_owned(),
            thread: Some(thread()),
            metadata: pairs([("of", "the run")]),
            ..ThreadAndRunSpec::default()
        })
    };
    let start = converse_run_request::Message::Start(ConverseStart {
        thread_and_run: thread_and_run(),
        ..ConverseStart::default()
    });
    let ways = [
        (
            "CreateThread",
            CreateThreadRequest {
                thread: Some(thread()),
                ..CreateThreadRequest::default()
            }
            .encode_to_vec(),
        ),
        (
            "CreateThreadAndRun",
            CreateThreadAndRunRequest {
                thread_and_run: thread_and_run(),
                ..CreateThreadAndRunRequest::default()
            }
            .encode_to_vec(),
        ),
        (
            "StreamCreateThreadAndRun",
            StreamCreateThreadAndRunRequest {
                thread_and_run: thread_and_run(),
                options: None,
                ..StreamCreateThreadAndRunRequest::default()
            }
            .encode_to_vec(),
        ),
        (
            "ConverseRun",
            ConverseRunRequest {
                message: Some(start),
            }
            .encode_to_vec(),
        ),
    ];
    let mut marks = Vec::new();
    for (number, (rpc, request)) in ways.into_iter().enumerate() {
        let answers = isolated.call(rpc, request).await.expect(rpc);
        for answer in &answers {
            let text = String::from_utf8_lossy(answer);
            assert!(!text.contains(KEY), "{rpc}: {text}");
        }
        let shown: Vec<u8> = answers.concat();
        let text = String::from_utf8_lossy(&shown);
        // The thread itself is shown, but by the two that answer with a run alone.
        assert!(
            text.contains("own") || rpc == "CreateThreadAndRun",
            "{rpc}: {text}"
        );
        let id = format!("thread_{:03}", number + 1);
        let metadata = isolated.store.metadata(&format!("/threads/{id}"));
        assert_eq!(metadata["own"], "x", "{rpc}");
        assert_eq!(metadata.as_object().expect("pairs").len(), 2, "{rpc}");
        marks.push(isolated.mark_of(&id));
        isolated.get(A, &id).await.expect(rpc);
        isolated.get(B, &id).await.expect_err(rpc);
    }
    let mark = marks[0].as_str().expect("a mark");
    assert_eq!(mark.len(), 64, "an HMAC-SHA256 in hexadecimal");
    assert!(marks.iter().all(|it| it == mark), "{marks:?}");
    assert!(!mark.contains(A));
    let run = isolated.upstream.requests();
    let run = run
        .iter()
        .find(|it| it.target == "/threads/runs")
        .expect("it was asked");
    let body: Value = serde_json::from_slice(&run.body).expect("JSON");
    assert_eq!(
        body["metadata"],
        json!({"of": "the run"}),
        "a run's metadata are the caller's"
    );
    isolated.gateway.drain().await;
}

#[tokio::test]
async fn a_mark_can_not_be_set() {
    let isolated = Isolated::start(&[]).await;
    let own = isolated.thread_of(A).await;
    let theirs = isolated.mark_of(&isolated.thread_of(B).await);
    let theirs = theirs.as_str().expect("a mark");
    let metadata = pairs([(KEY, theirs)]);
    let extra = [
        format!(r#"{{"metadata":{{"{KEY}":"{theirs}"}}}}"#),
        format!(r#"{{"metadata":{{"\u0072uns_gateway_caller":"{theirs}"}}}}"#),
        format!(r#"{{"metadata":{{}},"metadata":{{"{KEY}":"x"}}}}"#),
        format!(r#"{{"met\u0061data":{{"{KEY}":null}}}}"#),
    ];
    let message = MessageInput {
        role: MessageRole::User.into(),
        metadata: metadata.clone(),
        ..MessageInput::default()
    };
    let mut attacks = vec![
        (
            "CreateThread",
            CreateThreadRequest {
                thread: Some(ThreadSpec {
                    metadata: metadata.clone(),
                    ..Default::default()
                }),
                ..CreateThreadRequest::default()
            }
            .encode_to_vec(),
            "thread.metadata",
        ),
        (
            "CreateThread",
            CreateThreadRequest {
                thread: Some(ThreadSpec {
                    messages: vec![MessageInput::default(), message.clone()],
                    ..Default::default()
                }),
                ..CreateThreadRequest::default()
            }
            .encode_to_vec(),
            "thread.messages[1].metadata",
        ),
        (
            "ModifyThread",
            ModifyThreadRequest {
                thread_id: own.clone(),
                thread: Some(ThreadUpdate {
                    metadata: metadata.clone(),
                    ..Default::default()
                }),
            }
            .encode_to_vec(),
            "thread.metadata",
        ),
        (
            "CreateThreadAndRun",
            CreateThreadAndRunRequest {
                thread_and_run: Some(ThreadAndRunSpec {
                    thread: Some(ThreadSpec {
                        metadata: metadata.clone(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..CreateThreadAndRunRequest::default()
            }
            .encode_to_vec(),
            "thread_and_run.thread.metadata",
        ),
        (
            "StreamCreateThreadAndRun",
            StreamCreateThreadAndRunRequest {
                thread_and_run: Some(ThreadAndRunSpec {
                    metadata: metadata.clone(),
                    ..Default::default()
                }),
                options: None,
                ..StreamCreateThreadAndRunRequest::default()
            }
            .encode_to_vec(),
            "thread_and_run.metadata",
        ),
        (
            "CreateMessage",
            CreateMessageRequest {
                thread_id: own.clone(),
                message: Some(message),
                ..CreateMessageRequest::default()
            }
            .encode_to_vec(),
            "message.metadata",
        ),
        (
            "ModifyRun",
            ModifyRunRequest {
                thread_id: own.clone(),
                run_id: "run_1".to_owned(),
                run: Some(RunUpdate {
                    metadata: metadata.clone(),
                    ..Default::default()
                }),
            }
            .encode_to_vec(),
            "run.metadata",
        ),
        (
            "CreateAssistant",
            CreateAssistantRequest {
                assistant: Some(AssistantSpec {
                    metadata,
                    ..Default::default()
                }),
                ..CreateAssistantRequest::default()
            }
            .encode_to_vec(),
            "assistant.metadata",
        ),
    ];
    for extra_json in extra {
        let thread = ThreadSpec {
            extra_json: extra_json.clone(),
            ..Default::default()
        };
        attacks.push((
            "CreateThread",
            CreateThreadRequest {
                thread: Some(thread),
                ..CreateThreadRequest::default()
            }
            .encode_to_vec(),
            "thread.metadata",
        ));
        let change = ThreadUpdate {
            extra_json: extra_json.clone(),
            ..Default::default()
        };
        attacks.push((
            "ModifyThread",
            ModifyThreadRequest {
                thread_id: own.clone(),
                thread: Some(change),
            }
            .encode_to_vec(),
            "thread.metadata",
        ));
        let extra_json = format!(r#"{{"thread":{extra_json}}}"#);
        let both = ThreadAndRunSpec {
            extra_json,
            ..Default::default()
        };
        attacks.push((
            "CreateThreadAndRun",
            CreateThreadAndRunRequest {
                thread_and_run: Some(both),
                ..CreateThreadAndRunRequest::default()
            }
            .encode_to_vec(),
            "thread_and_run.thread.metadata",
        ));
    }
    // What a service might take for metadata, or might not.
    for extra_json in [
        r#"{"Metadata":{}}"#,
        r#"{"metadata":{},"metadata":{"a":"b"}}"#,
    ] {
        let thread = ThreadSpec {
            extra_json: extra_json.to_owned(),
            ..Default::default()
        };
        attacks.push((
            "CreateThread",
            CreateThreadRequest {
                thread: Some(thread),
                ..CreateThreadRequest::default()
            }
            .encode_to_vec(),
            "thread.extra_json",
        ));
    }
    let before = isolated.count();
    for (rpc, request, field) in attacks {
        let status = isolated.call(rpc, request).await.expect_err(rpc);
        assert_eq!(fields(&status), [field], "{rpc}");
    }
    assert_eq!(isolated.seen(before), [""; 0], "nothing is sent");
    isolated.gateway.drain().await;
}

#[tokio::test]
async fn a_mark_is_not_washed_off() {
    let isolated = Isolated::start(&[]).await;
    let own = isolated.thread_of(A).await;
    let mark = isolated.mark_of(&own);
    let extra = |extra_json: &str| ThreadUpdate {
        extra_json: extra_json.to_owned(),
        ..ThreadUpdate::default()
    };
    let changes = [
        (extra(r#"{"metadata":null}"#), json!({})),
        (extra(r#"{"metadata":{}}"#), json!({})),
        (extra(r#"{"metadata":{"a":"b"}}"#), json!({"a": "b"})),
        (
            ThreadUpdate {
                metadata: pairs([("c", "d")]),
                ..ThreadUpdate::default()
            },
            json!({"c": "d"}),
        ),
        (ThreadUpdate::default(), json!({"c": "d"})),
    ];
    for (change, expected) in changes {
        let answer = isolated
            .modify(&own, change.clone())
            .await
            .expect("a change");
        let shown = serde_json::to_value(&answer.metadata).expect("pairs");
        assert_eq!(shown, expected, "{change:?}");
        assert_eq!(isolated.mark_of(&own), mark, "{change:?}");
    }
    let requests = isolated.upstream.requests();
    let last = requests.last().expect("it was asked");
    assert_eq!(
        &*last.body, b"{}",
        "metadata that are not named stay as they are"
    );

    let many = |count: usize| ThreadUpdate {
        metadata: (0..count)
            .map(|at| (format!("key {at}"), "x".to_owned()))
            .collect(),
        ..ThreadUpdate::default()
    };
    isolated.modify(&own, many(15)).await.expect("15 pairs");
    let status = isolated.modify(&own, many(16)).await.expect_err("16 pairs");
    assert_eq!(fields(&status), ["thread.metadata"]);
    assert!(
        status.message().contains("the gateway adds one"),
        "{status:?}"
    );
    isolated
        .modify(&own, extra(r#"{"metadata":"x"}"#))
        .await
        .expect_err("no object");
    assert_eq!(isolated.mark_of(&own), mark);
    isolated.gateway.drain().await;
}
