//! Conversations that are recorded: taken up again, elsewhere or by another connection, no event
//! comes twice, and no round is asked for again whose outputs were submitted.

use runs_gateway::v1::{ConverseAttach, RunEvent, StreamOptions, converse_run_request::Message};
use tonic::Code;

use crate::{
    harness::{Caller, Script, asks, attach, completes, name, outputs, run, start},
    support::gateway::{Gateway, spawn_gateway},
};

const FAST: &[&str] = &["--poll-floor", "10ms", "--poll-ceiling", "20ms"];

fn resumable() -> StreamOptions {
    StreamOptions {
        resumable: true,
        ..StreamOptions::default()
    }
}

fn attach_after(position: &str) -> Message {
    let Message::Attach(attach) = attach(None) else {
        unreachable!()
    };
    Message::Attach(ConverseAttach {
        after_position: position.into(),
        ..attach
    })
}

async fn converse(gateway: &Gateway, first: Message) -> Caller {
    Caller::say_first(gateway, [first])
        .await
        .expect("a conversation")
}

/// The events up to this one.
async fn until(caller: &mut Caller, event: &str) -> Vec<RunEvent> {
    let mut events = Vec::new();
    loop {
        let next = caller.next().await.expect("no error").expect("no end");
        let found = name(&next) == event;
        events.push(next);
        if found {
            return events;
        }
    }
}

fn names(events: &[RunEvent]) -> Vec<String> {
    events.iter().map(name).collect()
}

#[tokio::test]
async fn a_conversation_is_taken_up_after_any_of_its_events() {
    // Where the caller left: the last event that it had, and whether it had submitted.
    for (left_after, submitted) in [
        ("run_queued", false),
        ("run_in_progress", false),
        ("run_requires_action", false),
        ("run_requires_action", true),
    ] {
        let row = format!("left after {left_after}, submitted: {submitted}");
        let script = Script::new([
            (asks(&["a"]), run("requires_action", &["a"])),
            (completes(), run("completed", &[])),
        ])
        .await;
        let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
        let mut caller = converse(&gateway, start(Some(resumable()))).await;
        let mut had = until(&mut caller, left_after).await;
        if submitted {
            caller.say(outputs(&[("a", "1")]));
            while script.submits().is_empty() {
                tokio::task::yield_now().await;
            }
        }
        drop(caller);
        let position = had.last().expect("events").position.clone();
        assert!(!position.is_empty(), "{row}");

        let mut caller = converse(&gateway, attach_after(&position)).await;
        if !submitted {
            if left_after != "run_requires_action" {
                had.extend(until(&mut caller, "run_requires_action").await);
            }
            caller.say(outputs(&[("a", "1")]));
        }
        had.extend(until(&mut caller, "run_completed").await);
        let (rest, end) = caller.rest().await;
        assert!(end.is_ok() && rest.is_empty(), "{row}: {rest:?}, {end:?}");
        let once = |event: &str| names(&had).iter().filter(|it| *it == event).count();
        assert_eq!(once("run_requires_action"), 1, "{row}: {:?}", names(&had));
        assert_eq!(once("run_queued"), 1, "{row}: {:?}", names(&had));
        assert_eq!(script.submits().len(), 1, "{row}");

        // The log has the whole conversation, and each event of it once.
        let mut again = converse(&gateway, attach_after("")).await;
        let (_, end) = again.rest().await;
        assert!(end.is_ok(), "{row}: {end:?}");
        gateway.drain().await;
        script.finish();
    }
}

#[tokio::test]
async fn a_conversation_goes_on_being_recorded_until_it_needs_its_caller() {
    let script = Script::new([(completes(), run("completed", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let mut caller = converse(&gateway, start(Some(resumable()))).await;
    let first = caller.next().await.expect("no error").expect("an event");
    drop(caller);
    let mut caller = converse(&gateway, attach_after(&first.position)).await;
    let (events, end) = caller.rest().await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(events, ["run_completed"]);
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_position_of_another_run_is_refused_and_a_run_that_was_not_recorded_is_taken_up_anyway() {
    let script = Script::new([(completes(), run("completed", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    script.show(run("failed", &[]));
    let mut caller = converse(&gateway, attach_after("1-2-anything")).await;
    let (events, end) = caller.rest().await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(events, ["~run_failed"]);

    let mut caller = converse(&gateway, start(Some(resumable()))).await;
    caller.rest().await.1.expect("a conversation");
    let refused = Caller::say_first(&gateway, [attach_after("1-2-anything")]).await;
    let status = refused.err().expect("no conversation");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("attach.after_position"),
        "{status:?}"
    );
    gateway.drain().await;
    script.finish();
}
