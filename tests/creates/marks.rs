//! The mark: who may write it, and who sees it.

use std::collections::BTreeMap;

use runs_gateway::v1::{
    CreateRunRequest, ListRunsRequest, MessageInput, MessageRole, ModifyRunRequest, RunSpec,
    RunUpdate,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    calls::{Create, FAST, LISTED, run, run_spec, verdict},
    model::{Model, text},
    support::gateway::spawn_gateway,
};

const KEY: &str = "runs_gateway_request_id";

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
