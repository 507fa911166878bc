//! Conversations that are recorded: taken up again, elsewhere or by another connection, no event
//! comes twice, and no round is asked for again whose outputs were submitted.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use runs_gateway::{
    conversation::Conversation,
    v1::{ConverseAttach, RunEvent, StreamOptions, converse_run_request::Message},
};
use tonic::Code;

use crate::{
    harness::{Caller, Script, asks, attach, completes, name, outputs, run, start, state, within},
    support::{
        gateway::{Gateway, spawn_gateway},
        proxy::Proxy,
        redis::Redis,
        upstream::Answer,
    },
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

#[tokio::test]
async fn the_librarys_conversation_is_cut_anywhere_and_no_event_and_no_call_comes_twice() {
    let names_of_all = [
        "run_queued",
        "run_in_progress",
        "run_requires_action",
        "run_in_progress",
        "run_completed",
    ];
    // The number of the event that is the last one of its connection; none: while the tool works.
    for cut_after in [None, Some(1), Some(2), Some(3), Some(4)] {
        let script = Script::new([
            (asks(&["a"]), run("requires_action", &["a"])),
            (completes(), run("completed", &[])),
        ])
        .await;
        let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
        let proxy = Arc::new(Proxy::before(&gateway).await);
        let (called, cutting) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&proxy));
        let calls = Arc::clone(&called);
        let conversation = Conversation::new(proxy.client()).tool("f", move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            if cut_after.is_none() {
                cutting.cut();
            }
            async { "1".to_owned() }
        });
        let Message::Start(first) = start(Some(resumable())) else {
            unreachable!()
        };
        let mut events = Vec::new();
        let held = conversation.start(first, |event| {
            events.push(event);
            if cut_after == Some(events.len()) {
                proxy.cut();
            }
        });
        let ended = within("the run", held).await.expect("a run");
        assert_eq!(ended.id, "run_1", "{cut_after:?}");
        assert_eq!(names(&events), names_of_all, "{cut_after:?}");
        assert_eq!(called.load(Ordering::Relaxed), 1, "{cut_after:?}");
        assert_eq!(script.submits().len(), 1, "{cut_after:?}");
        gateway.drain().await;
        script.finish();
    }
}

#[tokio::test]
async fn a_store_that_goes_away_does_not_take_the_conversation_with_it() {
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let said = [state("queued", &[]), state("in_progress", &[])];
    let script = Script::new([
        (
            Answer::sse(said).wait(&Arc::default()),
            run("in_progress", &[]),
        ),
        (completes(), run("completed", &[])),
    ])
    .await;
    let shared = redis.flags();
    let flags = shared
        .iter()
        .map(String::as_str)
        .chain(FAST.iter().copied());
    let flags: Vec<_> = flags.chain(["--drain-timeout", "50ms"]).collect();
    let one = spawn_gateway(&script.upstream.url(), &flags).await;
    let other = spawn_gateway(&script.upstream.url(), &flags).await;
    let mut first = converse(&one, start(Some(resumable()))).await;
    let had = until(&mut first, "run_in_progress").await;
    let position = had.last().expect("events").position.clone();
    // It waits for what the other replica records.
    let mut caller = converse(&other, attach_after(&position)).await;
    redis.kill();
    until(&mut caller, "~gap").await;
    script.show(run("requires_action", &["a"]));
    until(&mut caller, "~run_requires_action").await;
    caller.say(outputs(&[("a", "1")]));
    let (events, end) = caller.rest().await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(events.last().expect("events"), "run_completed");
    assert_eq!(script.submits().len(), 1);
    drop(first);
    one.drain().await;
    other.drain().await;
    script.finish();
}
