//! Creates with a `request_id`: what goes wrong, and what callers have of it.

use runs_gateway::v1::{
    GetRunRequest, RunStatus, StreamCreateRunRequest, StreamOptions, run_event::Payload,
};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    calls::{Create, FAST, LISTED, run, run_spec, verdict},
    model::{Fault, Model},
    support::gateway::{Gateway, spawn_gateway, spawn_retrying_gateway},
};

/// What a create has made, as the upstream sees it.
pub(crate) fn made(model: &Model, create: Create) -> usize {
    let state = model.state();
    match create {
        Create::Message => state.messages["thread_1"].len(),
        Create::Assistant => state.assistants.len(),
        // One is there from the beginning.
        Create::Thread => state.runs.len() - 1,
        _ => state.all_runs().len(),
    }
}

const DONE: [Fault; 7] = [
    Fault::None,
    Fault::ResetAfter,
    Fault::ClosedAfter,
    Fault::Half,
    Fault::ErrorAfter(500),
    Fault::ErrorAfter(503),
    Fault::ToldToRetry,
];

#[tokio::test]
async fn what_was_made_is_found_whatever_became_of_the_answer() {
    for create in LISTED {
        for fault in DONE.into_iter().chain([Fault::Late]) {
            if fault == Fault::Late && matches!(create, Create::Message | Create::Assistant) {
                // Of these the model keeps nothing back.
                continue;
            }
            let case = format!("{create:?} {fault:?}");
            let model = Model::start().await;
            // A late one has to be late for the look after it, not for the one before it.
            if fault == Fault::Late {
                model.fail([Fault::Late]);
            } else {
                model.fail([fault]);
            }
            let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
            let got = create.call(gateway.channel(), "id", "one").await;
            let got = got.unwrap_or_else(|status| panic!("{case}: {status:?}"));
            assert_eq!(made(&model, create), 1, "{case}");
            assert_eq!(
                got.metadata,
                [("text".to_owned(), "one".to_owned())],
                "{case}"
            );
            let again = create.call(gateway.channel(), "id", "one").await;
            let again = again.unwrap_or_else(|status| panic!("{case}, again: {status:?}"));
            assert_eq!(again.id, got.id, "{case}");
            assert_eq!(made(&model, create), 1, "{case}");
            gateway.drain().await;
        }
    }
}

#[tokio::test]
async fn what_was_not_made_is_unknown_and_a_repeat_makes_it_once() {
    let unknown = (Code::Unknown, "OUTCOME_UNKNOWN".to_owned());
    for create in LISTED {
        for (fault, expected) in [
            (Fault::ResetBefore, unknown.clone()),
            (Fault::ClosedBefore, unknown.clone()),
            (Fault::ErrorBefore(503), unknown.clone()),
            (
                Fault::ErrorBefore(500),
                (Code::Internal, "SERVER_ERROR".to_owned()),
            ),
        ] {
            let case = format!("{create:?} {fault:?}");
            let model = Model::start().await;
            model.fail([fault]);
            let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
            let failed = create.call(gateway.channel(), "id", "one").await;
            let failed = failed.expect_err(&case);
            assert_eq!(verdict(&failed), expected, "{case}");
            assert!(
                failed
                    .message()
                    .ends_with("call again with the same request_id"),
                "{case}: {failed:?}"
            );
            assert!(failed.get_details_retry_info().is_some(), "{case}");
            assert_eq!(made(&model, create), 0, "{case}");
            for _ in 0..2 {
                let got = create.call(gateway.channel(), "id", "one").await;
                got.unwrap_or_else(|status| panic!("{case}, again: {status:?}"));
                assert_eq!(made(&model, create), 1, "{case}");
            }
            gateway.drain().await;
        }
    }
}

/// Another gateway remembers nothing: what the first one made, and did not tell, is found by its
/// mark before anything is made.
#[tokio::test]
async fn a_repeat_on_another_gateway_finds_what_the_first_has_made() {
    for create in LISTED {
        let model = Model::start().await;
        let first = spawn_gateway(&model.upstream.url(), &FAST).await;
        let got = create.call(first.channel(), "id", "one").await;
        let got = got.unwrap_or_else(|status| panic!("{create:?}: {status:?}"));
        first.drain().await;
        let second = spawn_gateway(&model.upstream.url(), &FAST).await;
        let again = create.call(second.channel(), "id", "one").await;
        let again = again.unwrap_or_else(|status| panic!("{create:?}: {status:?}"));
        assert_eq!((again.id, made(&model, create)), (got.id, 1), "{create:?}");
        // The mark tells another request, too.
        let other = create.call(second.channel(), "id", "two").await;
        let other = verdict(&other.expect_err("another request"));
        assert_eq!(
            other,
            (Code::AlreadyExists, "REQUEST_ID_USED".to_owned()),
            "{create:?}"
        );
        second.drain().await;
    }
}

#[tokio::test]
async fn the_mark_is_found_behind_many_others() {
    let model = Model::start().await;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    let got = Create::Run.call(gateway.channel(), "id", "one").await;
    gateway.drain().await;
    for _ in 0..150 {
        let id = model.state().begin_run("thread_1");
        model.state().set("thread_1", &id, "completed");
    }
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    let again = Create::Run.call(gateway.channel(), "id", "one").await;
    assert_eq!(again.expect("found").id, got.expect("made").id);
    gateway.drain().await;
}

/// Threads cannot be looked for.
#[tokio::test]
async fn a_thread_is_made_once_as_far_as_its_answer_came() {
    for (fault, is_ok, threads) in [
        (Fault::None, true, 1),
        (Fault::ResetAfter, false, 2),
        (Fault::ResetBefore, false, 1),
    ] {
        let model = Model::start().await;
        model.fail([fault]);
        let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
        let first = Create::Thread.call(gateway.channel(), "id", "").await;
        match &first {
            Ok(_) => assert!(is_ok, "{fault:?}"),
            Err(status) => assert_eq!(
                (verdict(status).0, is_ok),
                (Code::Unknown, false),
                "{fault:?}"
            ),
        }
        let again = Create::Thread.call(gateway.channel(), "id", "").await;
        let again = again.expect("a thread").id;
        assert!(first.is_err() || first.expect("a thread").id == again);
        assert_eq!(made(&model, Create::Thread), threads, "{fault:?}");
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_thread_and_a_run_are_made_one_after_the_other_and_the_run_once() {
    for create in [Create::ThreadAndRun, Create::StreamThreadAndRun] {
        // What goes wrong with the thread, with the run; whether the first call is answered; how
        // many threads there are in the end.
        let mut cases: Vec<_> = DONE.map(|fault| (Fault::None, fault, true, 1)).into();
        cases.extend([
            (Fault::None, Fault::Late, true, 1),
            (Fault::None, Fault::ResetBefore, false, 1),
            (Fault::None, Fault::ErrorBefore(400), false, 1),
            (Fault::ResetBefore, Fault::None, false, 1),
            (Fault::ResetAfter, Fault::None, false, 2),
        ]);
        for (thread, run, is_ok, threads) in cases {
            let case = format!("{create:?} {thread:?} {run:?}");
            let model = Model::start().await;
            model.fail([thread]);
            if thread == Fault::None {
                model.fail([run]);
            }
            let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
            let first = create.call(gateway.channel(), "id", "one").await;
            assert_eq!(first.is_ok(), is_ok, "{case}: {first:?}");
            let again = create.call(gateway.channel(), "id", "one").await;
            let again = again.unwrap_or_else(|status| panic!("{case}, again: {status:?}"));
            if let Ok(first) = first {
                assert_eq!(first.id, again.id, "{case}");
                let begins = ["THREAD_CREATED".to_owned()];
                if create == Create::StreamThreadAndRun {
                    assert!(first.events.starts_with(&begins), "{:?}", first.events);
                }
            }
            assert_eq!(made(&model, create), 1, "{case}");
            assert_eq!(made(&model, Create::Thread), threads, "{case}");
            assert_eq!(model.count("POST", "/threads/runs"), 0, "{case}");
            gateway.drain().await;
        }
    }
}

/// A thread that could not be made is no ground for not calling again: nobody has seen it.
#[tokio::test]
async fn a_lost_thread_is_made_again_by_the_gateway_itself() {
    let model = Model::start().await;
    model.fail([Fault::ResetAfter]);
    let gateway = spawn_retrying_gateway(&model.upstream.url(), &FAST).await;
    let got = Create::ThreadAndRun
        .call(gateway.channel(), "id", "one")
        .await;
    got.expect("made in the end");
    assert_eq!(made(&model, Create::ThreadAndRun), 1);
    gateway.drain().await;
}

/// Calls as many creates with these ids at once, each its own number of times.
async fn at_once(
    gateway: &Gateway,
    create: Create,
    ids: impl Iterator<Item = usize>,
) -> Vec<String> {
    let mut calls = JoinSet::new();
    for id in ids {
        let channel = gateway.channel();
        calls.spawn(async move { create.call(channel, &format!("id {id}"), "one").await });
    }
    let mut got = Vec::new();
    while let Some(call) = calls.join_next().await {
        got.push(call.expect("no panic").expect("made").id);
    }
    got.sort();
    got.dedup();
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_calls_with_one_id_are_one_create() {
    for create in [
        Create::Run,
        Create::ThreadAndRun,
        Create::StreamRun,
        Create::StreamThreadAndRun,
        Create::Converse,
        Create::Message,
        Create::Assistant,
        Create::Thread,
    ] {
        let model = Model::start().await;
        let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
        let got = at_once(&gateway, create, (0..200).map(|_| 1)).await;
        assert_eq!((got.len(), made(&model, create)), (1, 1), "{create:?}");
        gateway.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_ids_are_two_hundred_creates() {
    for create in [Create::Message, Create::ThreadAndRun, Create::Assistant] {
        let model = Model::start().await;
        let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
        let got = at_once(&gateway, create, 0..200).await;
        assert_eq!((got.len(), made(&model, create)), (200, 200), "{create:?}");
        gateway.drain().await;
    }
}

#[tokio::test]
async fn the_same_id_is_another_create_for_another_rpc_and_an_error_for_another_request() {
    let model = Model::start().await;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    for create in [
        Create::StreamRun,
        Create::Message,
        Create::Run,
        Create::Thread,
    ] {
        create
            .call(gateway.channel(), "id", "one")
            .await
            .unwrap_or_else(|status| panic!("{create:?}: {status:?}"));
        model
            .state()
            .runs
            .get_mut("thread_1")
            .expect("a thread")
            .iter_mut()
            .for_each(|run| run["status"] = "completed".into());
    }
    assert_eq!(made(&model, Create::Run), 2);
    let posts = model.count("POST", "/runs");
    for create in [Create::StreamRun, Create::Message, Create::Run] {
        let other = create.call(gateway.channel(), "id", "two").await;
        let other = verdict(&other.expect_err("another request"));
        assert_eq!(
            other,
            (Code::AlreadyExists, "REQUEST_ID_USED".to_owned()),
            "{create:?}"
        );
    }
    assert_eq!(model.count("POST", "/runs"), posts);
    gateway.drain().await;
}

/// The create goes on, and the repeat finds it.
#[tokio::test]
async fn a_caller_that_leaves_does_not_undo_its_create() {
    let model = Model::start().await;
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    model.state().gate = Some(std::sync::Arc::clone(&gate));
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    let channel = gateway.channel();
    let first = tokio::spawn(async move { Create::Message.call(channel, "id", "one").await });
    // The look, and the create.
    model.upstream.wait_for_requests(2).await;
    first.abort();
    assert!(first.await.expect_err("it left").is_cancelled());
    let channel = gateway.channel();
    let again = tokio::spawn(async move { Create::Message.call(channel, "id", "one").await });
    gate.notify_one();
    let again = again.await.expect("no panic");
    // The gate's answer has no body: what was made is found.
    again.expect("made once");
    assert_eq!(made(&model, Create::Message), 1);
    assert_eq!(model.count("POST", "/messages"), 1);
    gateway.drain().await;
}

/// Nothing was done yet: there is no doubt to tell of.
#[tokio::test]
async fn a_look_that_fails_is_no_create() {
    let model = Model::start().await;
    model.state().broken_reads = Some(503);
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    for create in LISTED {
        let failed = create.call(gateway.channel(), "id", "one").await;
        let failed = failed.expect_err("no look");
        assert_eq!(verdict(&failed).0, Code::Unavailable, "{create:?}");
        assert_eq!(made(&model, create), 0, "{create:?}");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn more_ids_than_are_remembered_forget_the_oldest_and_the_mark_tells() {
    let model = Model::start().await;
    let flags = [&FAST[..], &["--max-request-ids", "3"]].concat();
    let gateway = spawn_gateway(&model.upstream.url(), &flags).await;
    for round in 0..2 {
        for id in 0..6 {
            let got = Create::Message
                .call(gateway.channel(), &format!("id {id}"), "one")
                .await;
            got.unwrap_or_else(|status| panic!("{round}, {id}: {status:?}"));
        }
        assert_eq!(made(&model, Create::Message), 6, "{round}");
    }
    // As many that are under way are too many.
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    model.state().gate = Some(gate);
    let mut calls = JoinSet::new();
    let asked = model.upstream.requests().len();
    for id in 10..13 {
        let channel = gateway.channel();
        calls.spawn(async move {
            Create::Message
                .call(channel, &format!("id {id}"), "one")
                .await
        });
    }
    model.upstream.wait_for_requests(asked + 6).await;
    let refused = Create::Message
        .call(gateway.channel(), "id 13", "one")
        .await;
    let refused = refused.expect_err("too many");
    assert_eq!(
        verdict(&refused),
        (Code::Unavailable, "GATEWAY_OVERLOADED".to_owned())
    );
    assert!(
        refused.message().contains("--max-request-ids"),
        "{refused:?}"
    );
    calls.abort_all();
    model.state().gate = None;
    drop(model);
    gateway.drain().await;
}

/// The run is the first call's to cancel, not its repeat's.
#[tokio::test]
async fn a_repeat_that_leaves_cancels_nothing() {
    let model = Model::start().await;
    model.state().wait_for_outputs = true;
    model.state().polls = 1_000_000;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    let made = gateway.runs().create_run(run("other", "one")).await;
    made.expect("a run that goes on");
    let request = |request_id: &str| StreamCreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run: Some(run_spec("one")),
        request_id: request_id.to_owned(),
        options: Some(StreamOptions {
            cancel_on_disconnect: true,
            ..StreamOptions::default()
        }),
        ..StreamCreateRunRequest::default()
    };
    // A thread that is busy with somebody else's run.
    let busy = gateway.runs().stream_create_run(request("id")).await;
    assert_eq!(busy.expect_err("busy").code(), Code::FailedPrecondition);
    let all = model.state().runs["thread_1"].clone();
    let id = crate::model::text(&all[0]["id"]);
    model.state().set("thread_1", &id, "completed");
    let mut first = gateway
        .runs()
        .stream_create_run(request("id"))
        .await
        .expect("a stream")
        .into_inner();
    let event = first.next().await.expect("an event").expect("no error");
    let Some(Payload::Run(run)) = event.payload else {
        panic!("{event:?} is no run");
    };
    let mut repeat = gateway
        .runs()
        .stream_create_run(request("id"))
        .await
        .expect("a stream")
        .into_inner();
    // What it missed, and then the run.
    let mut seen = String::new();
    while seen.is_empty() {
        let event = repeat.next().await.expect("an event").expect("no error");
        if let Some(Payload::Run(run)) = event.payload {
            seen = run.id;
        }
    }
    assert_eq!(seen, run.id);
    drop(repeat);
    let mut runs = gateway.runs();
    let there = runs.get_run(GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: run.id.clone(),
    });
    assert_ne!(
        there.await.expect("a run").into_inner().status(),
        RunStatus::Cancelling
    );
    assert_eq!(model.state().cancelled, Vec::<String>::new());
    model.state().set("thread_1", &run.id, "completed");
    drop(first);
    gateway.drain().await;
}
