//! `on_active_run`: creates on threads that have an active run.

use std::time::Duration;

use runs_gateway::v1::{
    ActiveRunPolicy, CreateMessageRequest, CreateRunRequest, MessageInput, MessageRole, Run,
    StreamCreateRunRequest, message_service_client::MessageServiceClient,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::StreamExt as _;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use crate::{
    calls::{FAST, run, run_spec, verdict},
    model::{Model, text},
    support::gateway::{Gateway, spawn_gateway},
};

fn create(request_id: &str, text: &str, policy: ActiveRunPolicy) -> CreateRunRequest {
    CreateRunRequest {
        on_active_run: policy.into(),
        ..run(request_id, text)
    }
}

fn waiting(text: &str) -> CreateRunRequest {
    create("", text, ActiveRunPolicy::Wait)
}

/// The texts of a thread's runs, in the order in which they were made.
fn order(model: &Model) -> Vec<String> {
    let state = model.state();
    let runs = state.runs["thread_1"].iter();
    runs.map(|run| text(&run["metadata"]["text"])).collect()
}

#[tokio::test]
async fn a_hundred_creates_that_wait_come_one_after_the_other_in_their_order() {
    for request_id in [false, true] {
        let model = Model::start().await;
        let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
        let mut calls = JoinSet::new();
        for number in 0..100 {
            let mut runs = gateway.runs();
            let text = format!("{number:02}");
            let id = if request_id { &*text } else { "" };
            let request = create(id, &text, ActiveRunPolicy::Wait);
            calls.spawn(async move { runs.create_run(request).await });
        }
        while let Some(call) = calls.join_next().await {
            call.expect("no panic").expect("a run");
        }
        // The model refuses a run while another one is active, and counts that. The gateway knows
        // the run that it made last, and does not try in vain.
        let expected: Vec<_> = (0..100).map(|number| format!("{number:02}")).collect();
        assert_eq!(order(&model), expected, "{request_id}");
        assert_eq!(model.state().refused, 0, "{request_id}");
        gateway.drain().await;
    }
}

/// As many creates that wait, each until it has a place.
fn begin(
    gateway: &Gateway,
    texts: impl Iterator<Item = String>,
    request_id: bool,
) -> Vec<JoinHandle<Result<Run, Status>>> {
    let begin = |text: String| {
        let mut runs = gateway.runs();
        let id = if request_id { &*text } else { "" };
        let request = create(id, &text, ActiveRunPolicy::Wait);
        tokio::spawn(async move {
            loop {
                // The one that is too many may come before it.
                match runs.create_run(request.clone()).await {
                    Err(status) if status.code() == Code::Unavailable => {}
                    answered => break answered.map(Response::into_inner),
                }
            }
        })
    };
    texts.map(begin).collect()
}

/// Waits until no place is left: one create is at work, and as many wait as may.
pub(crate) async fn is_full(gateway: &Gateway) {
    loop {
        let mut runs = gateway.runs();
        let one_more = runs.create_run(waiting("more"));
        match tokio::time::timeout(Duration::from_millis(50), one_more).await {
            Ok(refused) => {
                let refused = refused.expect_err("too many");
                assert_eq!(
                    verdict(&refused),
                    (Code::Unavailable, "GATEWAY_OVERLOADED".to_owned())
                );
                assert!(refused.message().contains("--active-run-queue"));
                return;
            }
            // It was early, and has left again: others get their places meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn leave(calls: impl IntoIterator<Item = JoinHandle<Result<Run, Status>>>) {
    for call in calls {
        call.abort();
        assert!(call.await.expect_err("it left").is_cancelled());
    }
}

#[tokio::test]
async fn places_of_callers_that_leave_go_to_others() {
    for request_id in [false, true] {
        let model = Model::start().await;
        let active = model.state().begin_run("thread_1");
        model.state().polls = usize::MAX;
        let flags = [&FAST[..], &["--active-run-queue", "9"]].concat();
        let gateway = spawn_gateway(&model.upstream.url(), &flags).await;
        let texts = |name: &'static str, count| (0..count).map(move |at| format!("{name} {at}"));
        for _ in 0..3 {
            let all = begin(&gateway, texts("gone", 10), request_id);
            is_full(&gateway).await;
            leave(all).await;
        }
        let kept = begin(&gateway, texts("kept", 5), request_id);
        let gone = begin(&gateway, texts("gone", 5), request_id);
        is_full(&gateway).await;
        leave(gone).await;
        // They get the places of those that left.
        let late = begin(&gateway, texts("late", 5), request_id);
        is_full(&gateway).await;
        model.state().polls = 1;
        model.state().set("thread_1", &active, "completed");
        for call in kept.into_iter().chain(late) {
            call.await.expect("no panic").expect("a run");
        }
        let mut made = order(&model).split_off(1);
        made.sort();
        let expected: Vec<_> = texts("kept", 5).chain(texts("late", 5)).collect();
        assert_eq!(made, expected, "{request_id}");
        gateway.drain().await;
    }
}

#[tokio::test]
async fn streams_and_messages_wait_too_and_all_others_are_refused() {
    let model = Model::start().await;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    let active = model.state().begin_run("thread_1");
    for policy in [ActiveRunPolicy::Unspecified, ActiveRunPolicy::Reject] {
        let refused = gateway.runs().create_run(create("", "a", policy)).await;
        assert_eq!(
            verdict(&refused.expect_err("busy")),
            (Code::FailedPrecondition, "STATE_CONFLICT".to_owned())
        );
    }
    assert_eq!(model.state().refused, 2);
    let request = StreamCreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run: Some(run_spec("stream")),
        on_active_run: ActiveRunPolicy::Wait.into(),
        ..StreamCreateRunRequest::default()
    };
    let stream = gateway.runs().stream_create_run(request).await;
    let mut stream = stream.expect("a stream").into_inner();
    while let Some(event) = stream.next().await {
        event.expect("an event");
    }
    let again = model.state().begin_run("thread_1");
    let request = CreateMessageRequest {
        thread_id: "thread_1".to_owned(),
        message: Some(MessageInput {
            role: MessageRole::User.into(),
            ..MessageInput::default()
        }),
        on_active_run: ActiveRunPolicy::Wait.into(),
        ..CreateMessageRequest::default()
    };
    let mut messages = MessageServiceClient::new(gateway.channel());
    messages.create_message(request).await.expect("a message");
    {
        let state = model.state();
        assert_eq!(state.messages["thread_1"].len(), 1);
        for id in [active, again] {
            let run = state.runs["thread_1"].iter().find(|run| run["id"] == id);
            assert_eq!(run.expect("a run")["status"], "completed");
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_run_that_requires_action_is_waited_for_so_long_and_named() {
    let model = Model::start().await;
    model.state().wait_for_outputs = true;
    let flags = [&FAST[..], &["--active-run-action-wait", "100ms"]].concat();
    let gateway = spawn_gateway(&model.upstream.url(), &flags).await;
    let active = model.state().begin_run("thread_1");
    let refused = gateway.runs().create_run(waiting("a")).await;
    let refused = refused.expect_err("busy");
    assert_eq!(
        verdict(&refused),
        (Code::FailedPrecondition, "STATE_CONFLICT".to_owned())
    );
    assert!(
        refused.message().contains("--active-run-action-wait"),
        "{refused:?}"
    );
    let info = refused.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.metadata["run_id"], active);
    assert_eq!(info.metadata["thread_id"], "thread_1");
    gateway.drain().await;
}

#[tokio::test]
async fn a_wait_ends_with_the_deadline() {
    let model = Model::start().await;
    model.state().polls = usize::MAX;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    model.state().begin_run("thread_1");
    let mut request = tonic::Request::new(waiting("a"));
    request.set_timeout(Duration::from_millis(200));
    let late = gateway.runs().create_run(request).await;
    // Whether the client or the gateway looks at its clock first.
    let code = late.expect_err("late").code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled));
    let made = model.state().all_runs().len();
    assert_eq!(made, 1);
    gateway.drain().await;
}

#[tokio::test]
async fn cancel_cancels_the_run_that_was_active_and_creates_then() {
    for request_id in ["", "id"] {
        let model = Model::start().await;
        model.state().wait_for_outputs = true;
        let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
        let active = model.state().begin_run("thread_1");
        let request = create(request_id, "a", ActiveRunPolicy::Cancel);
        let made = gateway
            .runs()
            .create_run(request)
            .await
            .expect("a run")
            .into_inner();
        assert_ne!(made.id, active);
        {
            let state = model.state();
            assert_eq!(state.cancelled, [active]);
            assert_eq!(state.runs["thread_1"][0]["status"], "cancelled");
            assert_eq!(state.runs["thread_1"][1]["status"], "queued");
        }
        gateway.drain().await;
    }
}

/// Somebody else begins a run as soon as the first one has ended.
#[tokio::test]
async fn cancel_cancels_once() {
    let model = Model::start().await;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    let active = model.state().begin_run("thread_1");
    model.state().follows = true;
    let request = create("", "a", ActiveRunPolicy::Cancel);
    let refused = gateway.runs().create_run(request).await;
    assert_eq!(
        verdict(&refused.expect_err("busy again")),
        (Code::FailedPrecondition, "STATE_CONFLICT".to_owned())
    );
    assert_eq!(model.state().cancelled, [active]);
    assert_eq!(model.state().runs["thread_1"].len(), 2);
    gateway.drain().await;
}

/// The words need not name the run.
#[tokio::test]
async fn the_active_run_is_found_in_the_list_if_it_is_not_named() {
    let model = Model::start().await;
    model.state().names_run = false;
    let gateway = spawn_gateway(&model.upstream.url(), &FAST).await;
    for policy in [ActiveRunPolicy::Wait, ActiveRunPolicy::Cancel] {
        model.state().begin_run("thread_1");
        let request = create("", "a", policy);
        let made = gateway
            .runs()
            .create_run(request)
            .await
            .expect("a run")
            .into_inner();
        model.state().set("thread_1", &made.id, "completed");
    }
    let cancelled = model.state().cancelled.len();
    assert_eq!(cancelled, 1);
    gateway.drain().await;
}
