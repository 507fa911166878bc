//! What becomes of the run and the conversation when a caller cancels, floods, does not read,
//! leaves, runs out of time, or is cut off by a drain.

use std::{sync::Arc, time::Duration};

use runs_gateway::v1::{ConverseRunRequest, GetRunRequest, StreamOptions};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request};

use crate::{
    harness::{
        Caller, DONE, Script, asks, assert_resumable, attach, cancel, error_info, outputs,
        round_trip, run, start, state, within,
    },
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::Answer,
    },
};

const FAST: &[&str] = &[
    "--poll-floor",
    "10ms",
    "--poll-ceiling",
    "20ms",
    "--drain-timeout",
    "50ms",
];

const CANCEL_ON_DISCONNECT: StreamOptions = StreamOptions {
    include_missed_messages: false,
    resumable: false,
    cancel_on_disconnect: true,
    heartbeat_interval: None,
};

/// A stream that says this and then nothing, however long it is listened to.
fn hanging(said: impl IntoIterator<Item = String>) -> Answer {
    Answer::sse(said).wait(&Arc::default())
}

#[tokio::test]
async fn a_wish_to_cancel_is_kept_until_the_run_has_a_name_and_passed_on_once() {
    let (before, after) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let answer = Answer::sse([": nothing yet\n\n"])
        .wait(&before)
        .bytes(state("queued", &[]))
        .wait(&after)
        .bytes(state("cancelled", &[]))
        .bytes(DONE);
    let script = Script::new([(answer, run("queued", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let mut caller = Caller::say_first(&gateway, [start(None), cancel(), cancel()])
        .await
        .expect("a stream");
    round_trip(&gateway).await;
    assert_eq!(script.cancels(), 0);
    before.notify_one();
    script.cancelled(1).await;
    round_trip(&gateway).await;
    after.notify_one();
    let (events, end) = caller.rest().await;
    assert!(
        end.is_ok() && events == ["run_queued", "run_cancelled", "done"],
        "{events:?}, {end:?}"
    );
    assert_eq!(script.cancels(), 1);
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_run_that_waits_for_outputs_can_be_cancelled() {
    let script = Script::new([(asks(&["a"]), run("requires_action", &["a"]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let mut caller = Caller::start(&gateway).await;
    caller.until("run_requires_action").await;
    caller.say(cancel());
    script.cancelled(1).await;
    script.show(run("cancelled", &[]));
    let (events, end) = caller.rest().await;
    assert!(
        end.is_ok() && events == ["~run_cancelled"],
        "{events:?}, {end:?}"
    );
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn what_is_held_for_a_caller_is_bounded() {
    let large = "x".repeat(500);
    let ids: Vec<_> = (0..20).map(|number| format!("call_{number}")).collect();
    let many: Vec<_> = ids.iter().map(|id| (id.as_str(), "")).collect();
    let floods: [(&str, Vec<(&str, &str)>); 3] = [
        ("one large output", vec![("a", &large), ("b", &large)]),
        ("many empty outputs", many),
        ("a large id", vec![(&large, ""), (&large[1..], "")]),
    ];
    for (what, flood) in floods {
        let answer = hanging([state("queued", &[])]);
        let script = Script::new([(answer, run("in_progress", &[]))]).await;
        let gateway = spawn_gateway(
            &script.upstream.url(),
            &[FAST, &["--max-held-output-bytes", "1000"]].concat(),
        )
        .await;
        let mut caller = Caller::start(&gateway).await;
        caller.until("run_queued").await;
        for output in flood {
            caller.say(outputs(&[output]));
        }
        let (_, end) = caller.rest().await;
        let status = end.expect_err(what);
        assert_eq!(
            (status.code(), error_info(&status).0.as_str()),
            (Code::ResourceExhausted, "OUTPUTS_TOO_LARGE"),
            "{what}"
        );
        assert_resumable(&status, "THREAD_RUN_QUEUED");
        gateway.drain().await;
        script.finish();
    }
}

#[tokio::test]
async fn the_same_output_again_and_again_and_one_that_fits_are_no_flood() {
    let go = Arc::new(Notify::new());
    let answer = Answer::sse([state("queued", &[])])
        .wait(&go)
        .bytes(state("completed", &[]))
        .bytes(DONE);
    let script = Script::new([(answer, run("in_progress", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), &["--max-held-output-bytes", "1000"]).await;
    let mut caller = Caller::start(&gateway).await;
    let text = "x".repeat(500);
    (0..2_000).for_each(|_| caller.say(outputs(&[("a", &text)])));
    caller.heard(&script, &gateway).await;
    go.notify_one();
    let (_, end) = caller.rest().await;
    assert!(end.is_ok(), "{end:?}");
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_heard_and_holds_its_upstream_back() {
    let (live, chunks) = mpsc::channel(1);
    let script = Script::new([(Answer::sse_with(chunks), run("in_progress", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let caller = Caller::start(&gateway).await;
    live.send(state("queued", &[]).into())
        .await
        .expect("a stream");
    let filler = format!("event: more\ndata: \"{}\"\n\n", "x".repeat(64 << 10));
    // Until nobody takes any more for a second: all buffers on the way are full.
    let mut sent = 0_usize;
    while let Ok(taken) =
        tokio::time::timeout(Duration::from_secs(1), live.send(filler.clone().into())).await
    {
        taken.expect("a stream");
        sent += filler.len();
        assert!(
            sent < 256 << 20,
            "the gateway reads on for a caller that does not"
        );
    }
    caller.heard(&script, &gateway).await;
    caller.heard(&script, &gateway).await;
    drop(caller);
    within("the upstream's end", live.closed()).await;
    gateway.drain().await;
    script.finish();
}

/// Where a conversation is when its caller leaves.
#[derive(Debug, Clone, Copy)]
enum At {
    Live,
    /// With the caller's side closed.
    LiveClosed,
    Waiting,
    Following,
    Attached,
}

async fn conversation(at: At, options: StreamOptions) -> (Script, Gateway, Caller) {
    let (answer, polled) = match at {
        At::Live | At::LiveClosed => (hanging([state("queued", &[])]), run("in_progress", &[])),
        At::Waiting => (asks(&["a"]), run("requires_action", &["a"])),
        At::Following | At::Attached => {
            (Answer::sse([state("queued", &[])]), run("in_progress", &[]))
        }
    };
    let script = Script::new([(answer, polled)]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let first = if matches!(at, At::Attached) {
        script.show(run("in_progress", &[]));
        attach(Some(options))
    } else {
        start(Some(options))
    };
    let mut caller = Caller::say_first(&gateway, [first])
        .await
        .expect("a stream");
    match at {
        At::Live => caller.until("run_queued").await,
        At::LiveClosed => {
            caller.until("run_queued").await;
            caller.close();
        }
        At::Waiting => caller.until("run_requires_action").await,
        At::Following | At::Attached => caller.until("~run_in_progress").await,
    }
    (script, gateway, caller)
}

const EVERYWHERE: [At; 5] = [
    At::Live,
    At::LiveClosed,
    At::Waiting,
    At::Following,
    At::Attached,
];

#[tokio::test]
async fn the_run_of_a_caller_that_leaves_is_cancelled_if_it_asked_for_that() {
    for at in EVERYWHERE {
        let (script, gateway, caller) = conversation(at, CANCEL_ON_DISCONNECT).await;
        drop(caller);
        script.cancelled(1).await;
        gateway.drain().await;
        assert_eq!(script.cancels(), 1, "{at:?}");
    }
}

#[tokio::test]
async fn the_run_of_a_caller_that_leaves_goes_on_if_it_did_not_ask_for_its_end() {
    for at in EVERYWHERE {
        let (script, gateway, caller) = conversation(at, StreamOptions::default()).await;
        drop(caller);
        if matches!(at, At::Live | At::LiveClosed) {
            script.upstream.closed(0).await;
        }
        // Twice, since a request to cancel would have been sent beside the first one.
        round_trip(&gateway).await;
        round_trip(&gateway).await;
        gateway.drain().await;
        assert_eq!(script.cancels(), 0, "{at:?}");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_run_has_a_name_has_it_cancelled_if_it_asked_for_that() {
    // The head comes only after the caller left.
    let go = Arc::new(Notify::new());
    let created = state("queued", &[]);
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{created}\r\n",
        created.len()
    );
    let answer = Answer::raw("").wait(&go).bytes(head).wait(&Arc::default());
    let script = Script::new([(answer, run("in_progress", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let (say, said) = mpsc::unbounded_channel();
    say.send(ConverseRunRequest {
        message: Some(start(Some(CANCEL_ON_DISCONNECT))),
    })
    .expect("it is being read");
    let mut client = gateway.runs();
    let call = tokio::spawn(async move {
        client
            .converse_run(UnboundedReceiverStream::new(said))
            .await
            .map(drop)
    });
    script.upstream.wait_for_requests(1).await;
    call.abort();
    assert!(call.await.expect_err("it was aborted").is_cancelled());
    round_trip_elsewhere(&gateway).await;
    go.notify_one();
    script.cancelled(1).await;
    gateway.drain().await;
    script.finish();
}

/// The gateway has seen what was sent to it before this was answered.
async fn round_trip_elsewhere(gateway: &Gateway) {
    let status = gateway
        .runs()
        .get_run(GetRunRequest::default())
        .await
        .expect_err("no ids");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_deadline_ends_the_conversation_with_how_to_resume() {
    let script = Script::new([(asks(&["a"]), run("requires_action", &["a"]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let deadline = |request: &mut Request<_>| request.set_timeout(Duration::from_millis(500));
    let mut caller = Caller::call(&gateway, [start(None)], deadline)
        .await
        .expect("a stream");
    let (_, end) = caller.rest().await;
    let status = end.expect_err("no outputs in time");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_resumable(&status, "THREAD_RUN_REQUIRES_ACTION");
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_drain_ends_the_conversation_with_how_to_resume_and_leaves_the_run_alone() {
    for at in EVERYWHERE {
        let (script, gateway, mut caller) = conversation(at, CANCEL_ON_DISCONNECT).await;
        let ((_, end), ()) = tokio::join!(caller.rest(), gateway.drain());
        let status = end.expect_err("a drain");
        assert_eq!(
            (status.code(), error_info(&status).0.as_str()),
            (Code::Unavailable, "GATEWAY_DRAINING"),
            "{at:?}"
        );
        let last = match at {
            At::Live | At::LiveClosed => "THREAD_RUN_QUEUED",
            At::Waiting => "THREAD_RUN_REQUIRES_ACTION",
            At::Following | At::Attached => "THREAD_RUN_IN_PROGRESS",
        };
        assert_resumable(&status, last);
        // What a farewell would do, it would have begun by now.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(script.cancels(), 0, "{at:?}");
    }
}

#[tokio::test]
async fn a_drain_before_the_run_has_a_name_has_an_unknown_outcome() {
    let script = Script::new([(Answer::never(), run("in_progress", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let mut client = gateway.runs();
    let first = ConverseRunRequest {
        message: Some(start(None)),
    };
    let call = client.converse_run(tokio_stream::iter([first]));
    let drain = async {
        script.upstream.wait_for_requests(1).await;
        gateway.drain().await;
    };
    let (called, ()) = tokio::join!(call, drain);
    let status = called.expect_err("a drain");
    assert_eq!(
        (status.code(), error_info(&status).0.as_str()),
        (Code::Unknown, "OUTCOME_UNKNOWN"),
        "{status:?}"
    );
    script.finish();
}
