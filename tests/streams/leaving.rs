//! Callers that leave, deadlines that pass, a gateway that drains; and signs of life for who stays.

use std::{sync::Arc, time::Duration};

use runs_gateway::v1::{
    GetRunRequest, RunEvent, StreamOptions, StreamSubmitToolOutputsRequest, ToolOutputs,
    WatchRunRequest,
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tonic::{Code, Request, Streaming};

use crate::{
    script::{
        FAST, NEVER, create, create_with, done, event, hear, millis, name, next, polled, resume,
        resume_after, run, run_event, soon, verdict, watch,
    },
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::{Answer, Step, Upstream},
    },
};

const CANCEL: (&str, &str) = ("POST", "/threads/thread_1/runs/run_1/cancel");

fn cancelling() -> StreamOptions {
    StreamOptions {
        cancel_on_disconnect: true,
        ..StreamOptions::default()
    }
}

/// A stream that says this and then nothing.
fn live(said: impl IntoIterator<Item = bytes::Bytes>) -> Answer {
    Answer::sse(said).step(Step::Wait(Arc::default()))
}

async fn opened(gateway: &Gateway, options: StreamOptions) -> Streaming<RunEvent> {
    soon(gateway.runs().stream_create_run(create_with(options)))
        .await
        .expect("a stream")
        .into_inner()
}

/// The request after the first `count`, which is to be the cancellation.
async fn cancelled(upstream: &Upstream, count: usize) {
    let requests = upstream.wait_for_requests(count + 1).await;
    assert_eq!(
        (
            requests[count].method.as_str(),
            requests[count].target.as_str()
        ),
        CANCEL
    );
}

#[tokio::test]
async fn a_caller_that_leaves_closes_the_upstreams_stream_at_once() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    for connection in 0..3 {
        upstream.push(live([event("thread.run.created", run("queued"))]));
        let mut stream = opened(&gateway, StreamOptions::default()).await;
        next(&mut stream).await;
        let left = Instant::now();
        drop(stream);
        let closed = upstream.closed(connection).await;
        println!("closed after {:?}", closed.at - left);
        assert!(closed.by_client);
        assert!(closed.at - left < millis(100));
    }
    // Nobody asked for a cancellation, and none was sent: it would be a request without a script.
    gateway.drain().await;
}

#[tokio::test]
async fn the_run_is_cancelled_if_its_reader_leaves_in_the_middle() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(live([event("thread.run.created", run("queued"))]));
    // The first attempts may fail.
    upstream.push(Answer::new(503));
    upstream.push(polled("cancelling"));
    let mut stream = opened(&gateway, cancelling()).await;
    next(&mut stream).await;
    drop(stream);
    cancelled(&upstream, 1).await;
    assert!(upstream.closed(0).await.by_client);
    cancelled(&upstream, 2).await;
    gateway.drain().await;
}

#[tokio::test]
async fn the_run_is_cancelled_if_its_reader_leaves_before_it_has_a_name() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let (say, chunks) = mpsc::channel(1);
    upstream.push(Answer::sse_with(chunks));
    upstream.push(polled("cancelling"));
    let mut stream = opened(&gateway, cancelling()).await;
    say.send(event(
        "thread.created",
        r#"{"id":"thread_1","object":"thread"}"#,
    ))
    .await
    .expect("a listener");
    assert_eq!(name(&next(&mut stream).await), "thread.created");
    drop(stream);
    say.send(event("thread.run.created", run("queued")))
        .await
        .expect("a listener");
    cancelled(&upstream, 1).await;
    assert!(upstream.closed(0).await.by_client);
    gateway.drain().await;
}

#[tokio::test]
async fn the_run_is_cancelled_if_its_reader_leaves_before_the_upstream_answers() {
    let created = event("thread.run.created", run("queued"));
    let stream = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
        &created[..],
    ]
    .concat();
    let json = run("queued");
    let json = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
        json.len()
    );
    // The run of a submit is known, whatever becomes of the submit.
    for (answered, submits) in [
        (Some(stream), false),
        (Some(json.into()), false),
        (None, true),
    ] {
        let upstream = Upstream::start().await;
        let gateway = spawn_gateway(&upstream.url(), &FAST).await;
        let answer = Arc::new(Notify::new());
        let waiting = Answer::raw("").wait(&answer);
        upstream.push(match answered {
            Some(bytes) => waiting.bytes(bytes).step(Step::Wait(Arc::default())),
            None => waiting.cut(),
        });
        upstream.push(polled("cancelling"));
        let call = tokio::spawn({
            let mut runs = gateway.runs();
            let submit = StreamSubmitToolOutputsRequest {
                thread_id: "thread_1".into(),
                run_id: "run_1".into(),
                tool_outputs: Some(ToolOutputs::default()),
                options: Some(cancelling()),
            };
            async move {
                if submits {
                    runs.stream_submit_tool_outputs(submit).await
                } else {
                    runs.stream_create_run(create_with(cancelling())).await
                }
            }
        });
        upstream.wait_for_requests(1).await;
        call.abort();
        assert!(call.await.is_err());
        // The gateway has seen the caller leave by the time it answers this.
        upstream.push(polled("in_progress"));
        soon(gateway.runs().get_run(GetRunRequest {
            thread_id: "thread_1".into(),
            run_id: "run_1".into(),
        }))
        .await
        .expect("a run");
        answer.notify_one();
        let requests = upstream.wait_for_requests(3).await;
        assert_eq!(
            (requests[2].method.as_str(), requests[2].target.as_str()),
            CANCEL
        );
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_run_that_is_over_or_waits_for_outputs_is_not_cancelled() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    for (connection, status) in ["completed", "failed", "requires_action"]
        .into_iter()
        .enumerate()
    {
        upstream.push(live([run_event(status)]));
        let mut stream = opened(&gateway, cancelling()).await;
        next(&mut stream).await;
        drop(stream);
        // A cancellation would be a request without a script.
        upstream.closed(connection).await;
    }
    // Who reads to the end has not left; and neither has who is told that the stream failed.
    upstream.push(Answer::sse([
        run_event("in_progress"),
        run_event("completed"),
        done(),
    ]));
    hear(opened(&gateway, cancelling()).await).await;
    upstream.push(Answer::sse([
        run_event("in_progress"),
        event("error", "{}"),
    ]));
    assert_eq!(
        hear(opened(&gateway, cancelling()).await)
            .await
            .status
            .code(),
        Code::Internal
    );
    upstream.push(Answer::sse([run_event("in_progress")]));
    upstream.push(Answer::json(404, r#"{"error":{"message":"gone"}}"#));
    assert_eq!(
        hear(opened(&gateway, cancelling()).await)
            .await
            .status
            .code(),
        Code::NotFound
    );
    gateway.drain().await;
}

#[tokio::test]
async fn a_watcher_that_leaves_cancels_the_run_only_if_it_asked_for_that() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &NEVER).await;
    for options in [None, Some(cancelling())] {
        upstream.push(polled("requires_action"));
        let asked = upstream.requests().len() + 1;
        let request = WatchRunRequest { options, ..watch() };
        let mut stream = soon(gateway.runs().watch_run(request))
            .await
            .expect("a stream")
            .into_inner();
        next(&mut stream).await;
        if options.is_some() {
            upstream.push(polled("cancelling"));
        }
        drop(stream);
        if options.is_some() {
            cancelled(&upstream, asked).await;
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_deadline_ends_the_stream_and_says_how_to_resume() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let with_deadline = |request| {
        let mut request = Request::new(request);
        request.set_timeout(millis(300));
        request
    };
    upstream.push(live([event("thread.run.created", run("queued"))]));
    let began = Instant::now();
    let stream = gateway
        .runs()
        .stream_create_run(with_deadline(create()))
        .await
        .expect("a stream")
        .into_inner();
    let heard = hear(stream).await;
    assert!(began.elapsed() >= millis(300));
    assert_eq!(heard.names(), ["run.created"]);
    assert_eq!(
        verdict(&heard.status),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned())
    );
    assert_eq!(resume(&heard.status), resume_after("THREAD_RUN_CREATED"));
    assert!(upstream.closed(0).await.by_client);

    // A deadline is the caller's own way to leave.
    upstream.push(live([event("thread.run.created", run("queued"))]));
    upstream.push(polled("cancelling"));
    let request = with_deadline(create_with(cancelling()));
    hear(
        gateway
            .runs()
            .stream_create_run(request)
            .await
            .expect("a stream")
            .into_inner(),
    )
    .await;
    cancelled(&upstream, 2).await;
    gateway.drain().await;
}

#[tokio::test]
async fn a_drain_ends_the_stream_says_how_to_resume_and_cancels_nothing() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(
        &upstream.url(),
        &[
            "--drain-timeout",
            "100ms",
            "--poll-floor",
            "1h",
            "--poll-ceiling",
            "1h",
        ],
    )
    .await;
    upstream.push(live([event("thread.run.created", run("queued"))]));
    upstream.push(polled("in_progress"));
    upstream.push(live([]));
    upstream.push(Answer::never());
    let options = Some(cancelling());
    let mut live = opened(&gateway, cancelling()).await;
    next(&mut live).await;
    let mut watched = gateway
        .runs()
        .watch_run(WatchRunRequest { options, ..watch() })
        .await
        .expect("a stream")
        .into_inner();
    next(&mut watched).await;
    let silent = opened(&gateway, cancelling()).await;
    let unanswered = tokio::spawn({
        let mut runs = gateway.runs();
        let (thread_id, run_id) = ("thread_1".into(), "run_1".into());
        let tool_outputs = Some(ToolOutputs::default());
        async move {
            runs.stream_submit_tool_outputs(StreamSubmitToolOutputsRequest {
                thread_id,
                run_id,
                tool_outputs,
                options,
            })
            .await
        }
    });
    upstream.wait_for_requests(4).await;

    let (live, watched, silent, unanswered, ()) = tokio::join!(
        hear(live),
        hear(watched),
        hear(silent),
        unanswered,
        gateway.drain()
    );
    let draining = (Code::Unavailable, "GATEWAY_DRAINING".to_owned());
    for (heard, last) in [
        (live, "THREAD_RUN_CREATED"),
        (watched, "THREAD_RUN_IN_PROGRESS"),
    ] {
        assert_eq!(verdict(&heard.status), draining);
        assert_eq!(resume(&heard.status), resume_after(last));
        // Calling again would be another run.
        assert_eq!(
            heard.status.message(),
            "the gateway ends this call; resume by ResumeRun or ConverseRun.attach"
        );
    }
    // Whatever the gateway had still to ask, it has asked by the time that another one has got an
    // answer.
    let other = spawn_gateway(&upstream.url(), &[]).await;
    upstream.push(polled("in_progress"));
    soon(other.runs().get_run(GetRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
    }))
    .await
    .expect("a run");
    other.drain().await;
    assert_eq!(upstream.requests().len(), 5);
    // A write that has said nothing yet must not be repeated, as UNAVAILABLE may be.
    let unknown = (Code::Unknown, "OUTCOME_UNKNOWN".to_owned());
    assert_eq!(verdict(&silent.status), unknown);
    assert_eq!(
        verdict(&unanswered.expect("no panic").expect_err("no answer")),
        unknown
    );
}

#[tokio::test]
async fn a_drain_waits_for_the_cancellations_of_callers_that_left_and_not_for_ever() {
    let upstream = Upstream::start().await;
    // One whose run is known, and one whose create is not answered yet.
    for known in [true, false] {
        let gateway = spawn_gateway(&upstream.url(), &NEVER).await;
        let (answer, asked) = (Arc::new(Notify::new()), upstream.requests().len());
        if known {
            upstream.push(live([event("thread.run.created", run("queued"))]));
            let mut stream = opened(&gateway, cancelling()).await;
            next(&mut stream).await;
        } else {
            upstream.push(
                Answer::raw("")
                    .wait(&answer)
                    .bytes("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                    .bytes(run_event("queued"))
                    .step(Step::Wait(Arc::default())),
            );
            let mut runs = gateway.runs();
            tokio::select! {
                opened = runs.stream_create_run(create_with(cancelling())) => panic!("{opened:?}"),
                _ = upstream.wait_for_requests(asked + 1) => {}
            }
        }
        upstream.push(
            Answer::new(200)
                .chunked()
                .wait(&answer)
                .bytes(run("cancelling")),
        );
        if known {
            cancelled(&upstream, asked + 1).await;
        }
        let mut drain = tokio::spawn(gateway.drain());
        tokio::time::timeout(millis(300), &mut drain)
            .await
            .expect_err("there is something left to do");
        answer.notify_one();
        if !known {
            cancelled(&upstream, asked + 1).await;
            answer.notify_one();
        }
        soon(drain).await.expect("a drain");
    }
    let gateway = spawn_gateway(
        &upstream.url(),
        &[&NEVER[..], &["--drain-timeout", "300ms"]].concat(),
    )
    .await;
    let asked = upstream.requests().len();
    upstream.push(live([event("thread.run.created", run("queued"))]));
    upstream.push(Answer::never());
    next(&mut opened(&gateway, cancelling()).await).await;
    cancelled(&upstream, asked + 1).await;
    let began = Instant::now();
    gateway.drain().await;
    assert!(
        (millis(300)..millis(5_000)).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_stream_of_age_ends_says_how_to_resume_and_cancels_nothing() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(
        &upstream.url(),
        &[&NEVER[..], &["--max-stream-age", "300ms"]].concat(),
    )
    .await;
    upstream.push(live([event("thread.run.created", run("queued"))]));
    let live = opened(&gateway, cancelling()).await;
    upstream.wait_for_requests(1).await;
    upstream.push(polled("in_progress"));
    let request = WatchRunRequest {
        options: Some(cancelling()),
        ..watch()
    };
    let watched = gateway
        .runs()
        .watch_run(request)
        .await
        .expect("a stream")
        .into_inner();
    let (live, watched) = tokio::join!(hear(live), hear(watched));
    for (heard, last) in [
        (live, "THREAD_RUN_CREATED"),
        (watched, "THREAD_RUN_IN_PROGRESS"),
    ] {
        assert_eq!(
            verdict(&heard.status),
            (Code::Unavailable, "GATEWAY_DRAINING".to_owned())
        );
        assert_eq!(resume(&heard.status), resume_after(last));
        assert_eq!(
            heard.status.message(),
            "the gateway ends this call; resume by ResumeRun or ConverseRun.attach"
        );
    }
    assert!(upstream.closed(0).await.by_client);
    // Whoever reads nothing is still there, too: its run is not cancelled either.
    upstream.push(live_of(20_000));
    let mut unread = opened(&gateway, cancelling()).await;
    next(&mut unread).await;
    assert!(upstream.closed(upstream.accepted() - 1).await.by_client);
    drop(unread);
    gateway.drain().await;
    assert_eq!(upstream.requests().len(), 3, "no cancellation");
}

/// A stream that says more than anybody holds for a reader who does not read, and then nothing.
fn live_of(events: usize) -> Answer {
    let delta = event(
        "thread.message.delta",
        format!(r#"{{"id":"msg_1","x":"{}"}}"#, "x".repeat(200)),
    );
    let said = std::iter::once(run_event("in_progress")).chain(std::iter::repeat_n(delta, events));
    live([said.collect::<Vec<_>>().concat().into()])
}

#[tokio::test]
async fn watchers_leave_a_draining_gateway_early_and_one_by_one() {
    let upstream = Upstream::answering(|_| polled("in_progress")).await;
    let gateway = spawn_gateway(
        &upstream.url(),
        &[
            "--drain-timeout",
            "10s",
            "--poll-floor",
            "1h",
            "--poll-ceiling",
            "1h",
        ],
    )
    .await;
    let mut watchers = Vec::new();
    for _ in 0..20 {
        let mut watcher = gateway
            .runs()
            .watch_run(watch())
            .await
            .expect("a stream")
            .into_inner();
        next(&mut watcher).await;
        watchers.push(tokio::spawn(async move {
            (hear(watcher).await, Instant::now())
        }));
    }
    let began = Instant::now();
    gateway.drain().await;
    assert!(
        began.elapsed() < millis(9_000),
        "no watcher stayed until the drain timeout"
    );
    let mut ends = Vec::new();
    for watcher in watchers {
        let (heard, end) = watcher.await.expect("no panic");
        assert_eq!(
            verdict(&heard.status),
            (Code::Unavailable, "GATEWAY_DRAINING".to_owned())
        );
        assert_eq!(
            resume(&heard.status),
            resume_after("THREAD_RUN_IN_PROGRESS")
        );
        ends.push(end.duration_since(began));
    }
    ends.sort_unstable();
    // Twenty that choose among five seconds: the chance that all do within half a second is below
    // one in 10^18.
    assert!(
        ends[19] > ends[0] + millis(500),
        "they left together: {ends:?}"
    );
}

#[tokio::test]
async fn heartbeats_come_in_quiet_streams_and_not_in_busy_ones() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &NEVER).await;
    let every_second = StreamOptions {
        heartbeat_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..StreamOptions::default()
    };
    let busy = (0..8).fold(Answer::sse([run_event("in_progress")]), |answer, _| {
        answer
            .step(Step::Pause(millis(200)))
            .bytes(event("thread.message.delta", r#"{"id":"msg_1"}"#))
    });
    upstream.push(live([run_event("in_progress")]));
    upstream.push(polled("in_progress"));
    upstream.push(busy.bytes(run_event("completed")).bytes(done()));

    let mut quiet = opened(&gateway, every_second).await;
    let mut watched = gateway
        .runs()
        .watch_run(WatchRunRequest {
            options: Some(every_second),
            ..watch()
        })
        .await
        .expect("a stream")
        .into_inner();
    let busy = opened(&gateway, every_second).await;
    let began = Instant::now();
    let (busy, ()) = tokio::join!(hear(busy), async {
        for stream in [&mut quiet, &mut watched] {
            next(stream).await;
        }
        for _ in 0..2 {
            for stream in [&mut quiet, &mut watched] {
                assert_eq!(name(&next(stream).await), "heartbeat*");
            }
        }
    });
    assert!(
        began.elapsed() >= Duration::from_millis(1900),
        "two in less than two seconds"
    );
    assert!(
        !busy.names().contains(&"heartbeat*".to_owned()),
        "{:?}",
        busy.names()
    );
    assert_eq!(busy.events.len(), 11);
    drop((quiet, watched));
    gateway.drain().await;
}

#[tokio::test]
async fn an_interval_of_more_seconds_than_a_clock_has_is_a_stream_without_heartbeats() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &NEVER).await;
    upstream.push(Answer::sse([
        run_event("in_progress"),
        run_event("completed"),
        done(),
    ]));
    let endless = prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    };
    let options = StreamOptions {
        heartbeat_interval: Some(endless),
        ..StreamOptions::default()
    };
    let heard = hear(opened(&gateway, options).await).await;
    assert_eq!(heard.names(), ["run.in_progress", "run.completed", "done"]);
    gateway.drain().await;
}
