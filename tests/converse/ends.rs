//! Who ends what: the caller its side, somebody else the run. Given that, the conversation goes on
//! as long as it can, and says how it ended.

use std::sync::Arc;

use tokio::sync::Notify;
use tonic::Code;

use crate::{
    harness::{
        Caller, DONE, Outputs, Script, asks, assert_resumable, completes, error_info, outputs,
        refusal, run, state,
    },
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::Answer,
    },
};

const FAST: &[&str] = &["--poll-floor", "10ms", "--poll-ceiling", "20ms"];

#[tokio::test]
async fn a_caller_that_closes_its_side_gets_the_rest_unless_outputs_are_missing() {
    const A: (&str, &str) = ("a", "1");
    const B: (&str, &str) = ("b", "2");
    // What is said while the run works, whether the side is closed then, what is said while the run
    // waits (where it is closed in any case), and what is missing in the end.
    let rows: [(&str, Outputs, bool, Outputs, Option<&str>); 6] = [
        ("before, all given", &[B, A], true, &[], None),
        ("before, one given", &[B], true, &[], Some("a")),
        ("before, none given", &[], true, &[], Some("a, b")),
        ("during, none given", &[], false, &[], Some("a, b")),
        ("during, one given", &[B], false, &[], Some("a")),
        ("with the last output", &[A], false, &[B], None),
    ];
    for (what, early, early_close, late, missing) in rows {
        let go = Arc::new(Notify::new());
        let answer = Answer::sse([state("queued", &[])])
            .wait(&go)
            .bytes(state("requires_action", &["a", "b"]))
            .bytes(DONE);
        let mut posts = vec![(answer, run("requires_action", &["a", "b"]))];
        if missing.is_none() {
            posts.push((completes(), run("completed", &[])));
        }
        let script = Script::new(posts).await;
        let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
        let mut caller = Caller::start(&gateway).await;
        caller.say(outputs(early));
        caller.heard(&script, &gateway).await;
        if early_close {
            caller.close();
        }
        go.notify_one();
        caller.until("run_requires_action").await;
        if !early_close {
            caller.say(outputs(late));
            caller.close();
        }
        let (events, end) = caller.rest().await;
        match missing {
            None => assert!(
                end.is_ok() && events == ["run_in_progress", "run_completed", "done"],
                "{what}: {events:?}, {end:?}"
            ),
            Some(ids) => {
                let status = end.expect_err(what);
                assert_eq!(
                    (status.code(), error_info(&status).0.as_str()),
                    (Code::FailedPrecondition, "OUTPUTS_MISSING"),
                    "{what}"
                );
                assert!(
                    status
                        .message()
                        .contains(&format!("outputs or approvals of {ids},")),
                    "{what}: {status:?}"
                );
                assert_resumable(&status, "THREAD_RUN_REQUIRES_ACTION");
            }
        }
        gateway.drain().await;
        script.finish();
    }
}

#[tokio::test]
async fn a_caller_that_closed_its_side_is_told_the_end_of_a_run_that_asks_for_nothing() {
    let go = Arc::new(Notify::new());
    let answer = Answer::sse([state("queued", &[])])
        .wait(&go)
        .bytes(state("completed", &[]))
        .bytes(DONE);
    let script = Script::new([(answer, run("completed", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
    let mut caller = Caller::start(&gateway).await;
    caller.heard(&script, &gateway).await;
    caller.close();
    go.notify_one();
    let (events, end) = caller.rest().await;
    assert!(
        end.is_ok() && events == ["run_queued", "run_completed", "done"],
        "{events:?}, {end:?}"
    );
    gateway.drain().await;
    script.finish();
}

/// A conversation that waits for the output of `a`.
async fn waiting(
    more: impl IntoIterator<Item = (Answer, serde_json::Value)>,
) -> (Script, Gateway, Caller) {
    let posts = [(asks(&["a"]), run("requires_action", &["a"]))]
        .into_iter()
        .chain(more);
    let script = Script::new(posts).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let mut caller = Caller::start(&gateway).await;
    caller.until("run_requires_action").await;
    (script, gateway, caller)
}

#[tokio::test]
async fn a_run_that_ends_while_it_waits_ends_the_conversation_with_its_last_state() {
    for status in ["expired", "cancelled", "failed", "completed", "incomplete"] {
        let (script, gateway, mut caller) = waiting([]).await;
        script.show(run(status, &[]));
        let (events, end) = caller.rest().await;
        assert!(
            end.is_ok() && events == [format!("~run_{status}")],
            "{status}: {events:?}, {end:?}"
        );
        gateway.drain().await;
        script.finish();
    }
}

#[tokio::test]
async fn a_run_that_somebody_else_answers_is_followed_to_its_next_round() {
    let (script, gateway, mut caller) = waiting([(completes(), run("completed", &[]))]).await;
    script.show(run("in_progress", &[]));
    caller.until("~run_in_progress").await;
    script.show(run("requires_action", &["b"]));
    caller.until("~run_requires_action").await;
    caller.say(outputs(&[("b", "2")]));
    let (events, end) = caller.rest().await;
    assert!(
        end.is_ok() && events == ["run_in_progress", "run_completed", "done"],
        "{events:?}, {end:?}"
    );
    assert_eq!(script.submits()[0]["tool_outputs"][0]["tool_call_id"], "b");
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_submit_that_came_second_is_no_error() {
    let late = refusal(
        400,
        "Runs in status \"in_progress\" do not accept tool outputs.",
    );
    let (script, gateway, mut caller) = waiting([(late, run("in_progress", &[]))]).await;
    caller.say(outputs(&[("a", "1")]));
    caller.until("~run_in_progress").await;
    script.show(run("completed", &[]));
    let (events, end) = caller.rest().await;
    assert!(
        end.is_ok() && events == ["~run_completed"],
        "{events:?}, {end:?}"
    );
    assert_eq!(script.submits().len(), 1);
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn an_output_that_the_upstream_refuses_ends_the_conversation_with_its_words() {
    let (script, gateway, mut caller) = waiting([(
        refusal(400, "Output is too long."),
        run("requires_action", &["a"]),
    )])
    .await;
    caller.say(outputs(&[("a", "1")]));
    let (_, end) = caller.rest().await;
    let status = end.expect_err("a refusal");
    assert!(
        status.code() == Code::InvalidArgument
            && status.message().starts_with("Output is too long."),
        "{status:?}"
    );
    assert_eq!(error_info(&status).1["http_status"], "400");
    assert_resumable(&status, "THREAD_RUN_REQUIRES_ACTION");
    gateway.drain().await;
    script.finish();
}
