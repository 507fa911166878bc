//! The mark: who may write it, and who sees it.

use std::collections::BTreeMap;

use runs_gateway::v1::{
    AssistantSpec, AssistantUpdate, CreateAssistantRequest, CreateRunRequest,
    CreateThreadAndRunRequest, ListRunsRequest, MessageInput, MessageRole, ModifyAssistantRequest,
    ModifyRunRequest, ResumeRunRequest, RunEvent, RunSpec, RunUpdate, StreamCreateRunRequest,
    StreamOptions, ThreadAndRunSpec, assistant_service_client::AssistantServiceClient,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Response, Streaming};
use tonic_types::StatusExt as _;

use crate::{
    calls::{Create, FAST, LISTED, run, run_spec, verdict},
    model::{Model, text},
    support::gateway::spawn_gateway,
};

const KEY: &str = "runs_gateway_request_id";

/// The mark of whose a resource is.
const CALLER: &str = "runs_gateway_caller";

/// The names of the pairs that the upstream has.
fn names(metadata: &serde_json::Value) -> Vec<&str> {
    let pairs = metadata.as_object().expect("pairs");
    pairs.keys().map(String::as_str).collect()
}

/// A request by the caller with the one token.
fn by_caller<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    let token = "Bearer secret".parse().expect("a value");
    request.metadata_mut().insert("authorization", token);
    request
}

/// All events of a stream, none of which shows a mark.
async fn unmarked(events: Response<Streaming<RunEvent>>) -> usize {
    let mut events = events.into_inner();
    let mut count = 0;
    while let Some(event) = events.next().await {
        let event = format!("{:?}", event.expect("no error"));
        assert!(!event.contains("runs_gateway_"), "{event}");
        count += usize::from(event.contains("one"));
    }
    count
}

/// Whose a resource is, and which `request_id` made it.
#[tokio::test]
async fn both_marks_are_kept_and_neither_is_shown() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    // `printf %s secret | sha256sum`
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let tokens = file("tokens", &format!("{hash} a\n"));
    let key = file("key", &"k".repeat(32));
    let mut flags = FAST.to_vec();
    flags.extend(["--upstream-api-key", "sk-own", "--tokens-file", &tokens]);
    flags.extend(["--isolate-callers", "--isolate-assistants"]);
    flags.extend(["--isolation-key-file", &key]);
    let model = Model::start().await;
    let gateway = spawn_gateway(&model.upstream.url(), &flags).await;
    let mut runs = gateway.runs();
    let mut assistants = AssistantServiceClient::new(gateway.channel());
    let metadata = run_spec("one").metadata;

    let create = CreateAssistantRequest {
        assistant: Some(AssistantSpec {
            model: "m".to_owned(),
            metadata: metadata.clone(),
            ..AssistantSpec::default()
        }),
        request_id: "id".to_owned(),
    };
    let assistant = assistants.create_assistant(by_caller(create.clone()));
    let assistant = assistant.await.expect("an assistant").into_inner();
    assert_eq!(assistant.metadata, metadata);
    let change = ModifyAssistantRequest {
        assistant_id: assistant.id.clone(),
        assistant: Some(AssistantUpdate {
            metadata: [("changed".to_owned(), "x".to_owned())].into(),
            ..AssistantUpdate::default()
        }),
    };
    let before = model.state().assistants[0]["metadata"].clone();
    assert_eq!(names(&before), [CALLER, KEY, "text"]);
    let changed = assistants.modify_assistant(by_caller(change)).await;
    let changed = changed.expect("changed").into_inner().metadata;
    assert_eq!(changed.keys().collect::<Vec<_>>(), ["changed"]);
    let after = model.state().assistants[0]["metadata"].clone();
    assert_eq!(names(&after), ["changed", CALLER, KEY]);
    assert_eq!(
        (&after[CALLER], &after[KEY]),
        (&before[CALLER], &before[KEY])
    );

    let create_both = CreateThreadAndRunRequest {
        thread_and_run: Some(ThreadAndRunSpec {
            assistant_id: assistant.id.clone(),
            metadata: metadata.clone(),
            ..ThreadAndRunSpec::default()
        }),
        request_id: "id".to_owned(),
    };
    let run = runs.create_thread_and_run(by_caller(create_both)).await;
    let run = run.expect("a run").into_inner();
    assert_eq!(run.metadata, metadata);
    let change = ModifyRunRequest {
        thread_id: run.thread_id.clone(),
        run_id: run.id.clone(),
        run: Some(RunUpdate {
            metadata: [("changed".to_owned(), "x".to_owned())].into(),
            ..RunUpdate::default()
        }),
    };
    let changed = runs.modify_run(by_caller(change)).await;
    let changed = changed.expect("changed").into_inner().metadata;
    assert_eq!(changed.keys().collect::<Vec<_>>(), ["changed"]);
    {
        let mut state = model.state();
        assert_eq!(names(&state.threads[&run.thread_id]), [CALLER]);
        assert_eq!(
            names(&state.runs[&run.thread_id][0]["metadata"]),
            ["changed", KEY]
        );
        state.set(&run.thread_id, &run.id, "completed");
    }

    // Live, from the log, and by polling.
    let stream = |request_id: &str, resumable| StreamCreateRunRequest {
        thread_id: run.thread_id.clone(),
        run: Some(RunSpec {
            assistant_id: assistant.id.clone(),
            ..run_spec("one")
        }),
        request_id: request_id.to_owned(),
        options: Some(StreamOptions {
            resumable,
            ..StreamOptions::default()
        }),
        ..StreamCreateRunRequest::default()
    };
    for (request_id, resumable) in [("recorded", true), ("not recorded", false)] {
        for _ in 0..2 {
            let request = by_caller(stream(request_id, resumable));
            let events = runs.stream_create_run(request).await.expect("events");
            assert!(unmarked(events).await > 0, "{request_id}");
        }
        let made = model.state().runs[&run.thread_id].last().expect("a run")["id"].clone();
        let resume = by_caller(ResumeRunRequest {
            thread_id: run.thread_id.clone(),
            run_id: text(&made),
            ..ResumeRunRequest::default()
        });
        let events = runs.resume_run(resume).await.expect("events");
        assert!(unmarked(events).await > 0, "{request_id}");
    }
    assert_eq!(model.state().runs[&run.thread_id].len(), 3);
    gateway.drain().await;

    // Another gateway finds by the one mark what is the caller's by the other.
    let gateway = spawn_gateway(&model.upstream.url(), &flags).await;
    let mut assistants = AssistantServiceClient::new(gateway.channel());
    let again = assistants.create_assistant(by_caller(create)).await;
    assert_eq!(again.expect("found").into_inner().id, assistant.id);
    assert_eq!(model.state().assistants.len(), 1);
    gateway.drain().await;
}

#[tokio::test]
async fn the_mark_is_one_pair_at_the_upstream_and_none_for_callers() {
    let model = Model::start().await;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    for create in LISTED {
        let got = create.call(gateway.channel(), "an id", "one").await;
        let got = got.unwrap_or_else(|status| panic!("{create:?}: {status:?}"));
        assert_eq!(got.metadata, [("text".to_owned(), "one".to_owned())]);
        let state = model.state();
        let made = match create {
            Create::Message => &state.messages["thread_1"],
            Create::Assistant => &state.assistants,
            _ => &state.runs["thread_1"],
        };
        let metadata = &made.last().expect("made")["metadata"];
        assert_eq!(
            metadata.as_object().map(serde_json::Map::len),
            Some(2),
            "{metadata}"
        );
        assert!(text(&metadata[KEY]).starts_with("an id "), "{metadata}");
        drop(state);
        for run in model.state().runs.get_mut("thread_1").expect("a thread") {
            run["status"] = "completed".into();
        }
    }
    let list = ListRunsRequest {
        thread_id: "thread_1".to_owned(),
        ..ListRunsRequest::default()
    };
    let runs = gateway
        .runs()
        .list_runs(list)
        .await
        .expect("a list")
        .into_inner();
    assert_eq!(runs.data.len(), 3);
    for run in runs.data {
        assert_eq!(run.metadata.keys().collect::<Vec<_>>(), ["text"]);
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_modification_keeps_the_mark_and_a_repeat_finds_it_then() {
    let model = Model::start().await;
    let first = spawn_gateway(&model.upstream.url(), &FAST).await;
    let made = first
        .runs()
        .create_run(run("id", "one"))
        .await
        .expect("a run")
        .into_inner();
    let metadata = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    for (update, expected) in [
        (
            RunUpdate {
                metadata: metadata(&[("a", "b")]),
                ..RunUpdate::default()
            },
            metadata(&[("a", "b")]),
        ),
        (
            RunUpdate {
                extra_json: r#"{"metadata":{}}"#.to_owned(),
                ..RunUpdate::default()
            },
            metadata(&[]),
        ),
    ] {
        let request = ModifyRunRequest {
            thread_id: "thread_1".to_owned(),
            run_id: made.id.clone(),
            run: Some(update),
        };
        let modified = first
            .runs()
            .modify_run(request)
            .await
            .expect("modified")
            .into_inner();
        assert_eq!(modified.metadata, expected);
        let there = model.state().runs["thread_1"][0]["metadata"].clone();
        assert!(text(&there[KEY]).starts_with("id "), "{there}");
    }
    first.drain().await;
    let second = spawn_gateway(&model.upstream.url(), &FAST).await;
    let again = second
        .runs()
        .create_run(run("id", "one"))
        .await
        .expect("found")
        .into_inner();
    assert_eq!(again.id, made.id);
    second.drain().await;
}

#[tokio::test]
async fn what_cannot_be_marked_or_marks_itself_is_refused_before_anything_is_sent() {
    let model = Model::start().await;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    let pairs = (0..16)
        .map(|at| (format!("k{at}"), String::new()))
        .collect();
    let marked: BTreeMap<_, _> = [(KEY.to_owned(), "x".to_owned())].into();
    let with = |run: RunSpec| CreateRunRequest {
        run: Some(run),
        ..run_request("id")
    };
    let message = MessageInput {
        role: MessageRole::User.into(),
        metadata: marked.clone(),
        ..MessageInput::default()
    };
    let cases = [
        (
            with(RunSpec {
                metadata: pairs,
                ..run_spec("")
            }),
            "run.metadata",
            "16 pairs",
        ),
        (
            with(RunSpec {
                metadata: marked.clone(),
                ..run_spec("")
            }),
            "run.metadata",
            KEY,
        ),
        (
            with(RunSpec {
                additional_messages: vec![message],
                ..run_spec("")
            }),
            "run.additional_messages[0].metadata",
            KEY,
        ),
        (
            // Without a `request_id`, too.
            CreateRunRequest {
                request_id: String::new(),
                ..with(RunSpec {
                    metadata: marked,
                    ..run_spec("")
                })
            },
            "run.metadata",
            KEY,
        ),
        (run_request(&"x".repeat(65)), "request_id", "64 characters"),
        (run_request("a\nb"), "request_id", "control characters"),
        (
            CreateRunRequest {
                on_active_run: 7,
                ..run_request("id")
            },
            "on_active_run",
            "names",
        ),
    ];
    for (request, field, words) in cases {
        let refused = gateway.runs().create_run(request).await.expect_err(field);
        assert_eq!(
            verdict(&refused),
            (Code::InvalidArgument, "INVALID_FIELD".to_owned()),
            "{field}"
        );
        let violations = refused
            .get_details_bad_request()
            .expect("a field")
            .field_violations;
        assert_eq!(violations[0].field, field);
        assert!(violations[0].description.contains(words), "{violations:?}");
    }
    assert_eq!(model.upstream.requests().len(), 0);
    // As long as it may be, in characters.
    let made = gateway
        .runs()
        .create_run(run_request(&"é".repeat(64)))
        .await;
    made.expect("a run");
    gateway.drain().await;
}

fn run_request(request_id: &str) -> CreateRunRequest {
    run(request_id, "one")
}
