//! Assistants, threads and messages: what the upstream sees of each call and what the caller gets
//! for it, and what becomes of writes that are lost.
//!
//! Ids that cannot be sent are in `refused.rs`, and what is lost without a retry in `time.rs`, for
//! these calls as for all.

use std::collections::BTreeSet;

use runs_gateway::v1::{
    AssistantSpec, AssistantUpdate, CreateAssistantRequest, CreateMessageRequest,
    CreateThreadRequest, DeleteAssistantRequest, DeleteMessageRequest, DeleteThreadRequest,
    GetAssistantRequest, GetMessageRequest, GetThreadRequest, ListAssistantsRequest,
    ListMessagesRequest, MessageContent, MessageInput, MessageRole, MessageUpdate,
    ModifyAssistantRequest, ModifyMessageRequest, ModifyThreadRequest, SortOrder, ThreadSpec,
    ThreadUpdate,
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    call::{ALL, Answered, Call, bare},
    roots::{body, calls, rest},
    support::{
        gateway::{spawn_gateway, spawn_retrying_gateway},
        upstream::{Answer, Recorded, Upstream, agreed},
    },
};

/// The services whose calls these are.
const SERVICES: [&str; 3] = ["AssistantService", "ThreadService", "MessageService"];

/// One of each of their calls.
fn all() -> impl Iterator<Item = Call> {
    Call::all().filter(|call| SERVICES.contains(&call.method().parent_service().name()))
}

/// A call; what the upstream sees: method, target, body; what it answers, which is what the caller
/// gets.
struct Row {
    call: Call,
    sees: (&'static str, &'static str, Value),
    answer: Value,
}

fn row(
    call: impl Into<Call>,
    method: &'static str,
    target: &'static str,
    body: Value,
    answer: Value,
) -> Row {
    Row {
        call: call.into(),
        sees: (method, target, body),
        answer,
    }
}

fn table() -> Vec<Row> {
    let metadata = || [("k".to_owned(), "v".to_owned())].into();
    let assistant = |id: &str| {
        json!({
            "id": id, "object": "assistant", "created_at": 1_698_984_975, "name": "Tutor",
            "description": null, "model": "m", "instructions": "Help.",
            "tools": [{"type": "code_interpreter"}], "tool_resources": {}, "metadata": {"k": "v"},
            "temperature": 0.5, "top_p": 1.0, "reasoning_effort": "low", "response_format": "auto"
        })
    };
    let thread = json!({
        "id": "t/1", "object": "thread", "created_at": 1_699_014_083, "metadata": {"k": "v"},
        "tool_resources": {"file_search": {"vector_store_ids": ["vs_1"]}}
    });
    let message = json!({
        "id": "m 1", "object": "thread.message", "created_at": 1_698_983_503, "thread_id": "t/1",
        "status": "completed", "role": "user", "assistant_id": null, "run_id": "run_1",
        "completed_at": 1_698_983_504, "incomplete_details": null, "incomplete_at": null,
        "content": [{"type": "text", "text": {"value": "hello", "annotations": []}}],
        "attachments": [], "metadata": {"k": "v"}
    });
    let page = |entry: &Value| {
        json!({"object": "list", "data": [entry], "first_id": entry["id"], "last_id": entry["id"],
               "has_more": true})
    };
    let gone = |id, object| json!({"id": id, "object": object, "deleted": true});
    let (thread_id, message_id) = (|| "t/1".to_owned(), || "m 1".to_owned());
    let spec = AssistantSpec {
        model: "m".to_owned(),
        name: Some("Tutor".to_owned()),
        extra_json: r#"{"colour":"red"}"#.to_owned(),
        ..AssistantSpec::default()
    };
    let update = AssistantUpdate {
        instructions: Some(String::new()),
        extra_json: r#"{"tools":[],"name":null}"#.to_owned(),
        ..AssistantUpdate::default()
    };
    let said = MessageInput {
        role: MessageRole::User.into(),
        content: Some(MessageContent {
            text: Some("hello".to_owned()),
            parts: Vec::new(),
        }),
        ..MessageInput::default()
    };
    vec![
        row(
            CreateAssistantRequest {
                assistant: Some(spec),
                ..CreateAssistantRequest::default()
            },
            "POST",
            "/assistants",
            json!({"model": "m", "name": "Tutor", "colour": "red"}),
            assistant("asst_1"),
        ),
        row(
            ListAssistantsRequest {
                limit: Some(2),
                order: SortOrder::Asc.into(),
                after: "a&b".to_owned(),
                before: "c".to_owned(),
            },
            "GET",
            "/assistants?limit=2&order=asc&after=a%26b&before=c",
            Value::Null,
            page(&assistant("asst_1")),
        ),
        row(
            ListAssistantsRequest::default(),
            "GET",
            "/assistants",
            Value::Null,
            json!({"object": "list", "data": [], "has_more": false}),
        ),
        row(
            GetAssistantRequest {
                assistant_id: "a?1".to_owned(),
            },
            "GET",
            "/assistants/a%3F1",
            Value::Null,
            assistant("a?1"),
        ),
        row(
            ModifyAssistantRequest {
                assistant_id: "a?1".to_owned(),
                assistant: Some(update),
            },
            "POST",
            "/assistants/a%3F1",
            json!({"instructions": "", "tools": [], "name": null}),
            assistant("a?1"),
        ),
        row(
            DeleteAssistantRequest {
                assistant_id: "a?1".to_owned(),
            },
            "DELETE",
            "/assistants/a%3F1",
            Value::Null,
            gone("a?1", "assistant.deleted"),
        ),
        row(
            CreateThreadRequest::default(),
            "POST",
            "/threads",
            json!({}),
            thread.clone(),
        ),
        row(
            CreateThreadRequest {
                thread: Some(ThreadSpec {
                    messages: vec![said.clone()],
                    metadata: metadata(),
                    ..ThreadSpec::default()
                }),
                ..CreateThreadRequest::default()
            },
            "POST",
            "/threads",
            json!({"messages": [{"role": "user", "content": "hello"}], "metadata": {"k": "v"}}),
            thread.clone(),
        ),
        row(
            GetThreadRequest {
                thread_id: thread_id(),
            },
            "GET",
            "/threads/t%2F1",
            Value::Null,
            thread.clone(),
        ),
        row(
            ModifyThreadRequest {
                thread_id: thread_id(),
                thread: Some(ThreadUpdate {
                    metadata: metadata(),
                    ..ThreadUpdate::default()
                }),
            },
            "POST",
            "/threads/t%2F1",
            json!({"metadata": {"k": "v"}}),
            thread,
        ),
        row(
            DeleteThreadRequest {
                thread_id: thread_id(),
            },
            "DELETE",
            "/threads/t%2F1",
            Value::Null,
            gone("t/1", "thread.deleted"),
        ),
        row(
            CreateMessageRequest {
                thread_id: thread_id(),
                message: Some(said),
                ..CreateMessageRequest::default()
            },
            "POST",
            "/threads/t%2F1/messages",
            json!({"role": "user", "content": "hello"}),
            message.clone(),
        ),
        row(
            ListMessagesRequest {
                thread_id: thread_id(),
                limit: Some(3),
                order: SortOrder::Desc.into(),
                after: "a".to_owned(),
                before: "b".to_owned(),
                run_id: "run/1".to_owned(),
            },
            "GET",
            "/threads/t%2F1/messages?limit=3&order=desc&after=a&before=b&run_id=run%2F1",
            Value::Null,
            page(&message),
        ),
        row(
            GetMessageRequest {
                thread_id: thread_id(),
                message_id: message_id(),
            },
            "GET",
            "/threads/t%2F1/messages/m%201",
            Value::Null,
            message.clone(),
        ),
        row(
            ModifyMessageRequest {
                thread_id: thread_id(),
                message_id: message_id(),
                message: Some(MessageUpdate {
                    metadata: metadata(),
                    ..MessageUpdate::default()
                }),
            },
            "POST",
            "/threads/t%2F1/messages/m%201",
            json!({"metadata": {"k": "v"}}),
            message,
        ),
        row(
            DeleteMessageRequest {
                thread_id: thread_id(),
                message_id: message_id(),
            },
            "DELETE",
            "/threads/t%2F1/messages/m%201",
            Value::Null,
            gone("m 1", "thread.message.deleted"),
        ),
    ]
}

#[tokio::test]
async fn the_upstream_sees_what_was_asked_and_the_caller_gets_what_was_answered() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let mut made = BTreeSet::new();
    for Row { call, sees, answer } in table() {
        made.insert(call.rpc().to_owned());
        // What replaces metadata is read before: it may have a mark.
        let is_read = call.rpc().starts_with("Modify") && call.rpc() != "ModifyThread";
        let is_read = is_read && sees.2.get("metadata").is_some();
        for _ in 0..=usize::from(is_read) {
            upstream.push(Answer::json(200, answer.to_string()));
        }
        let got = call
            .on(&gateway)
            .await
            .unwrap_or_else(|status| panic!("{call:?}: {status}"));
        let seen = upstream.requests().pop().expect("a request");
        let text = seen.text();
        let sent = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(text).expect("JSON")
        };
        assert_eq!((&*seen.method, &*seen.target, sent), sees, "{}", call.rpc());
        assert_eq!(bare(got.json), bare(answer), "{}", call.rpc());
        assert_eq!(got.extra, [], "{}", call.rpc());
    }
    gateway.drain().await;
    let every: BTreeSet<_> = all().map(|call| call.rpc().to_owned()).collect();
    assert_eq!((made.len(), made), (14, every), "every call has its row");
}

#[tokio::test]
async fn a_body_that_is_not_set_is_refused_by_name_and_only_a_thread_may_be_made_of_nothing() {
    let upstream = Upstream::answering(Recorded::agreed).await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let (mut refused, mut sent) = (0, Vec::new());
    for call in Call::all() {
        let Some((field, _)) = body(call.method()) else {
            continue;
        };
        match call.clone().with_body("").on(&gateway).await {
            Ok(_) => sent.push(call.rpc().to_owned()),
            Err(status) => {
                assert_eq!(
                    (status.code(), status.message()),
                    (Code::InvalidArgument, &*format!("{field}: must be set")),
                    "{}",
                    call.rpc()
                );
                refused += 1;
            }
        }
    }
    gateway.drain().await;
    let requests = upstream.requests();
    let bodies: Vec<_> = requests.iter().map(Recorded::text).collect();
    assert_eq!(
        (&*sent, &*bodies),
        (&["CreateThread".to_owned()][..], &["{}"][..])
    );
    assert_eq!(refused, 9, "every other body");
}

/// An error as services have it.
fn error(status: u16) -> Answer {
    Answer::json(
        status,
        r#"{"error":{"message":"no such thing","type":"invalid_request_error"}}"#,
    )
}

fn told(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().expect("ErrorInfo");
    (status.code(), info.reason)
}

/// What the caller is told: nothing bad, or code and reason.
type Told = Result<(), (Code, &'static str)>;

/// What the upstream answers, one after the other.
type Script = Vec<fn(&str) -> Answer>;

#[tokio::test]
async fn what_is_lost_or_not_there_is_told_by_the_kind_of_call() {
    const NOT_FOUND: Told = Err((Code::NotFound, "NOT_FOUND"));
    const NO_ROUTE: Told = Err((Code::Unimplemented, "ROUTE_NOT_FOUND"));
    const UNKNOWN: Told = Err((Code::Unknown, "OUTCOME_UNKNOWN"));
    const FAILED: Told = Err((Code::Internal, "SERVER_ERROR"));
    const UNAVAILABLE: Told = Err((Code::Unavailable, "UPSTREAM_UNAVAILABLE"));
    let lost: fn(&str) -> Answer = |_| Answer::cut_before_answer();
    let failed: fn(&str) -> Answer = |_| error(500);
    let gone: fn(&str) -> Answer = |_| error(404);
    let no_route: fn(&str) -> Answer = |_| Answer::json(404, r#"{"detail":"Not Found"}"#);
    let limited: fn(&str) -> Answer = |_| error(429);
    let good: fn(&str) -> Answer = agreed;
    // How the call ends if it creates, if it reads or changes, and if it deletes. A create ends
    // after so many answers, with the first of which nobody knows what it did.
    let scripts: Vec<(Script, usize, [Told; 3])> = vec![
        (vec![gone], 1, [NOT_FOUND; 3]),
        (vec![no_route], 1, [NO_ROUTE; 3]),
        (vec![limited, good], 2, [Ok(()); 3]),
        // What was refused took no effect.
        (vec![limited, gone], 2, [NOT_FOUND; 3]),
        (vec![lost, good], 1, [UNKNOWN, Ok(()), Ok(())]),
        (vec![failed, good], 1, [FAILED, Ok(()), Ok(())]),
        (vec![lost, gone], 1, [UNKNOWN, NOT_FOUND, Ok(())]),
        (vec![failed, gone], 1, [FAILED, NOT_FOUND, Ok(())]),
        // What has no such route has deleted nothing.
        (vec![lost, no_route], 1, [UNKNOWN, NO_ROUTE, NO_ROUTE]),
        (vec![lost, limited, gone], 1, [UNKNOWN, NOT_FOUND, Ok(())]),
        (vec![limited, lost, gone], 2, [UNKNOWN, NOT_FOUND, Ok(())]),
        (vec![lost; 3], 1, [UNKNOWN, UNAVAILABLE, UNAVAILABLE]),
        (vec![failed; 3], 1, [FAILED; 3]),
    ];
    let upstream = Upstream::start().await;
    let flags = ["--retry-pause", "1ms", "--retry-budget", "100000"];
    let gateway = spawn_retrying_gateway(&upstream.url(), &flags).await;
    for call in all() {
        let kind = match &*rest(call.method(), "method") {
            "DELETE" => 2,
            _ if call.is_repeatable() => 1,
            _ => 0,
        };
        for (at, (answers, of_create, endings)) in scripts.iter().enumerate() {
            let asked = if kind == 0 { *of_create } else { answers.len() };
            let target = target(&call);
            for answer in &answers[..asked] {
                upstream.push(answer(&target));
            }
            let before = upstream.requests().len();
            let answered = call.on(&gateway).await;
            let requests = upstream.requests().split_off(before);
            let what = format!("{} by script {at}", call.rpc());
            assert_eq!(requests.len(), asked, "{what}");
            check(&call, &requests, answered, endings[kind], &what);
        }
    }
    gateway.drain().await;
}

/// Checks how a call ended, and that its requests are the same one.
fn check(
    call: &Call,
    requests: &[Recorded],
    answered: Result<Answered, Status>,
    expected: Told,
    what: &str,
) {
    assert!(
        requests.iter().all(|it| (&it.method, &it.target, &it.body)
            == (&requests[0].method, &requests[0].target, &requests[0].body)),
        "{what}: a repeat is the same request"
    );
    match (answered, expected) {
        (Ok(answer), Ok(())) => {
            // Only a list, or what agrees to everything, has data. The rest nobody answered.
            if answer.json["data"].is_null() {
                let id = requests[0].target.rsplit('/').next();
                let object = rest(call.method(), "deleted");
                assert_eq!(
                    answer.json,
                    json!({"id": id, "object": object, "deleted": true}),
                    "{what}"
                );
            }
        }
        (Err(status), Err((code, reason))) => {
            assert_eq!(told(&status), (code, reason.to_owned()), "{what}: {status}");
        }
        (answered, expected) => panic!("{what}: {answered:?} instead of {expected:?}"),
    }
}

/// Where the call's request goes.
fn target(call: &Call) -> String {
    let found = ALL
        .iter()
        .find(|(method, target, body)| Call::rest(method, target, body).rpc() == call.rpc());
    found.expect("it is one of them").1.to_owned()
}

#[tokio::test]
async fn a_deletion_that_its_caller_repeats_and_that_finds_nothing_has_succeeded() {
    for call in all().filter(|call| call.rpc().starts_with("Delete")) {
        for header in ["grpc-previous-rpc-attempts", "x-envoy-attempt-count"] {
            let upstream = Upstream::start().await;
            upstream.push(error(404));
            let gateway = spawn_retrying_gateway(&upstream.url(), &[]).await;
            let answer = call.with(&gateway, &[(header, "2")]).await;
            gateway.drain().await;
            let answer = answer.unwrap_or_else(|status| panic!("{}: {status}", call.rpc()));
            assert_eq!(answer.json["deleted"], true);
        }
    }
}

#[tokio::test]
async fn every_body_takes_what_the_contract_does_not_know_and_refuses_what_it_says_already() {
    let upstream = Upstream::answering(Recorded::agreed).await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let mut requests = 0;
    for call in Call::all() {
        let Some((field, _)) = body(call.method()) else {
            continue;
        };
        let target = target(&call);
        let minimal = ALL
            .iter()
            .find(|(method, it, _)| *method == "POST" && *it == target)
            .expect("it is one of them")
            .2;
        let minimal = if minimal == "{}" {
            r#"{"metadata":{"k":"v"}}"#
        } else {
            minimal
        };
        let set: Value = serde_json::from_str(minimal).expect("JSON");
        let (name, _) = set
            .as_object()
            .and_then(|it| it.iter().next())
            .expect("a member");
        let with = |extra: &str| call.clone().with_body(minimal).with_extra(extra);
        let again = format!("{{{name:?}:1}}");
        for refused in [
            "[",
            "[]",
            "null",
            "{}{}",
            r#"{"a":1}, "b":2"#,
            r#"{"stream":true}"#,
            r#"{"stre\u0061m":null}"#,
            &again,
        ] {
            let status = with(refused).on(&gateway).await.expect_err(refused);
            let violations = status.get_details_bad_request().expect("BadRequest");
            assert_eq!(
                (status.code(), &*violations.field_violations[0].field),
                (Code::InvalidArgument, &*format!("{field}.extra_json")),
                "{} {refused}",
                call.rpc()
            );
        }
        let extra = r#"{"colour":"red","size":1e400,"nothing":null,"none":[]}"#;
        let sent = with(extra).on(&gateway).await;
        sent.unwrap_or_else(|status| panic!("{}: {status}", call.rpc()));
        requests += 1;
        let seen = upstream.requests().pop().expect("a request");
        let ending = format!(",{}", &extra[1..]);
        let text = seen.text();
        assert!(text.ends_with(&ending), "{} sent {text}", call.rpc());
        let alone = format!("{}}}", text.strip_suffix(&ending).expect("just seen"));
        let alone: Value = serde_json::from_str(&alone).expect("JSON");
        assert_eq!(alone, set, "{}", call.rpc());
    }
    gateway.drain().await;
    let sent = upstream.requests();
    let sent = sent.iter().filter(|it| it.method != "GET").count();
    assert_eq!((requests, sent), (10, 10), "every body, once");
    let bodies = calls().iter().filter(|rpc| body(rpc).is_some()).count();
    assert_eq!(bodies, requests);
}
