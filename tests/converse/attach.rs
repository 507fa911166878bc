//! Taking up a run that is there. Given its state, the conversation begins with that.

use tonic::Code;

use crate::{
    harness::{Caller, Script, attach, completes, outputs, refusal, run},
    support::gateway::{Gateway, spawn_gateway},
};

const FAST: &[&str] = &["--poll-floor", "10ms", "--poll-ceiling", "20ms"];

async fn attached(script: &Script) -> (Gateway, Caller) {
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let caller = Caller::say_first(&gateway, [attach(None)])
        .await
        .expect("a run that is there");
    (gateway, caller)
}

#[tokio::test]
async fn a_run_at_work_is_followed_until_it_asks_and_then_streamed() {
    let script = Script::new([(completes(), run("completed", &[]))]).await;
    script.show(run("in_progress", &[]));
    let (gateway, mut caller) = attached(&script).await;
    caller.until("~run_in_progress").await;
    script.show(run("requires_action", &["a"]));
    caller.until("~run_requires_action").await;
    caller.say(outputs(&[("a", "1")]));
    let (events, end) = caller.rest().await;
    assert!(
        end.is_ok() && events == ["run_in_progress", "run_completed", "done"],
        "{events:?}, {end:?}"
    );
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_run_that_waits_gets_its_outputs_even_if_they_are_said_at_once() {
    let script = Script::new([(completes(), run("completed", &[]))]).await;
    script.show(run("requires_action", &["a", "b"]));
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let said = [attach(None), outputs(&[("b", "2")]), outputs(&[("a", "1")])];
    let mut caller = Caller::say_first(&gateway, said)
        .await
        .expect("a run that is there");
    caller.close();
    let (events, end) = caller.rest().await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(
        events,
        [
            "~run_requires_action",
            "run_in_progress",
            "run_completed",
            "done"
        ]
    );
    let ids: Vec<_> = script.submits()[0]["tool_outputs"]
        .as_array()
        .expect("outputs")
        .iter()
        .map(|it| it["tool_call_id"].clone())
        .collect();
    assert_eq!(ids, ["a", "b"]);
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_run_that_is_over_gives_its_last_state() {
    for status in ["completed", "failed", "cancelled", "expired", "incomplete"] {
        let script = Script::new([]).await;
        script.show(run(status, &[]));
        let (gateway, mut caller) = attached(&script).await;
        let (events, end) = caller.rest().await;
        assert!(
            end.is_ok() && events == [format!("~run_{status}")],
            "{events:?}, {end:?}"
        );
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_run_that_is_not_there_is_an_answer_and_not_a_stream() {
    let script = Script::new([]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let status = Caller::say_first(&gateway, [attach(None)])
        .await
        .err()
        .expect("no run");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    gateway.drain().await;
}

#[tokio::test]
async fn a_run_that_is_refused_is_an_answer_and_not_a_stream() {
    let script = Script::new([(
        refusal(400, "Thread thread_1 already has an active run run_0."),
        run("queued", &[]),
    )])
    .await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let status = Caller::say_first(&gateway, [crate::harness::start(None)])
        .await
        .err()
        .expect("a refusal");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    gateway.drain().await;
    script.finish();
}
