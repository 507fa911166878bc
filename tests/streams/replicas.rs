//! Two gateways with one event log: a stream is resumed on either, and a run is polled once.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use runs_gateway::v1::{ResumeRunRequest, RunEvent, StreamOptions, WatchRunRequest};
use tokio::time::{Instant, sleep};
use tonic::Streaming;

use crate::{
    script::{
        cancel, create_with, done, event, hear, list, message, name, next, run, run_event, soon,
        watch,
    },
    support::{
        gateway::{Gateway, spawn_gateway},
        redis::Redis,
        upstream::{Answer, Recorded, Upstream},
    },
};

async fn gateways(redis: &Redis, upstream: &Upstream, flags: &[&str]) -> [Gateway; 2] {
    let shared = redis.flags();
    let flags: Vec<&str> = shared
        .iter()
        .map(String::as_str)
        .chain(flags.iter().copied())
        .collect();
    [
        spawn_gateway(&upstream.url(), &flags).await,
        spawn_gateway(&upstream.url(), &flags).await,
    ]
}

/// An upstream that shows its runs in a status, and counts how often it is asked.
struct Shown {
    status: Mutex<&'static str>,
    polls: AtomicUsize,
}

impl Shown {
    async fn upstream() -> (Arc<Self>, Upstream) {
        let shown = Arc::new(Self {
            status: Mutex::new("in_progress"),
            polls: AtomicUsize::new(0),
        });
        let answering = Arc::clone(&shown);
        let upstream = Upstream::answering(move |request| answering.answer(request)).await;
        (shown, upstream)
    }

    fn answer(&self, request: &Recorded) -> Answer {
        let path = request.target.split('?').next().unwrap_or_default();
        if path.ends_with("/cancel") {
            self.set("cancelled");
        } else if path.ends_with("/steps") || path.ends_with("/messages") {
            return Answer::json(200, list(&[]));
        } else {
            self.polls.fetch_add(1, Ordering::Relaxed);
        }
        let status = *self.status.lock().expect("never held over a panic");
        let id = path.split('/').nth(4).expect("a run");
        Answer::json(200, run(status).replace("run_1", id))
    }

    fn set(&self, status: &'static str) {
        *self.status.lock().expect("never held over a panic") = status;
    }

    fn polls(&self) -> usize {
        self.polls.load(Ordering::Relaxed)
    }
}

async fn watched(gateway: &Gateway, run_id: &str) -> Streaming<RunEvent> {
    let request = WatchRunRequest {
        run_id: run_id.into(),
        ..watch()
    };
    soon(gateway.runs().watch_run(request))
        .await
        .expect("a stream")
        .into_inner()
}

#[tokio::test]
async fn a_stream_that_one_replica_records_is_resumed_on_the_other() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let upstream = Upstream::start().await;
    let [one, other] = gateways(&redis, &upstream, &[]).await;
    let (say, saying) = tokio::sync::mpsc::channel(16);
    upstream.push(Answer::sse_with(saying));
    let options = StreamOptions {
        resumable: true,
        ..StreamOptions::default()
    };
    let stream = one.runs().stream_create_run(create_with(options)).await;
    let mut stream = stream.expect("a stream").into_inner();
    say.send(event("thread.run.created", run("queued")))
        .await
        .expect("a reader");
    let first = next(&mut stream).await;
    drop(stream);
    let resume = ResumeRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        after_position: first.position.clone(),
        options: None,
    };
    let resumed = other.runs().resume_run(resume.clone()).await;
    let mut resumed = resumed.expect("a stream").into_inner();
    let began = event("thread.message.created", message("msg_1", "in_progress"));
    say.send(began).await.expect("a reader");
    assert_eq!(name(&next(&mut resumed).await), "message.created");
    for bytes in [
        event("thread.message.completed", message("msg_1", "completed")),
        run_event("completed"),
        done(),
    ] {
        say.send(bytes).await.expect("a reader");
    }
    drop(say);
    let rest = hear(resumed).await;
    assert_eq!(rest.names(), ["message.completed", "run.completed"]);
    // The one that recorded it is gone, and what it recorded is not.
    one.drain().await;
    let resume = ResumeRunRequest {
        after_position: String::new(),
        ..resume
    };
    let all = other.runs().resume_run(resume).await;
    let all = hear(all.expect("a stream").into_inner()).await;
    assert_eq!(
        all.names(),
        [
            "run.created",
            "message.created",
            "message.completed",
            "run.completed"
        ]
    );
    assert_eq!(upstream.requests().len(), 1, "nothing was polled");
    other.drain().await;
}

#[tokio::test]
async fn a_run_that_is_watched_on_two_replicas_is_polled_as_often_as_on_one() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let pace = ["--poll-floor", "100ms", "--poll-ceiling", "100ms"];
    let mut polls = Vec::new();
    for replicas in [1, 2] {
        let (shown, upstream) = Shown::upstream().await;
        let gateways = gateways(&redis, &upstream, &pace).await;
        let mut streams = Vec::new();
        for index in 0..20 {
            for gateway in &gateways[..replicas] {
                let run_id = format!("run_{replicas}_{index}");
                let mut stream = watched(gateway, &run_id).await;
                assert_eq!(name(&next(&mut stream).await), "run.in_progress*");
                streams.push(stream);
            }
        }
        let before = shown.polls();
        sleep(Duration::from_secs(3)).await;
        polls.push(shown.polls() - before);
        shown.set("completed");
        for stream in streams {
            assert_eq!(hear(stream).await.names(), ["run.completed*"]);
        }
        for gateway in gateways {
            gateway.drain().await;
        }
    }
    println!("polls of 20 runs in 3 s, on one replica and on two: {polls:?}");
    assert!(polls[1] * 10 <= polls[0] * 12, "{polls:?}");
    assert!(polls[0] > 100, "{polls:?}");
}

#[tokio::test]
async fn a_write_through_one_replica_is_seen_on_the_other_within_a_second() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let (shown, upstream) = Shown::upstream().await;
    let never = ["--poll-floor", "1h", "--poll-ceiling", "1h"];
    let [one, other] = gateways(&redis, &upstream, &never).await;
    for writing in [&other, &one] {
        shown.set("in_progress");
        let mut first = watched(&one, "run_1").await;
        let mut second = watched(&other, "run_1").await;
        for stream in [&mut first, &mut second] {
            assert_eq!(name(&next(stream).await), "run.in_progress*");
        }
        let began = Instant::now();
        writing.runs().cancel_run(cancel()).await.expect("a run");
        for stream in [first, second] {
            assert_eq!(hear(stream).await.names(), ["run.cancelled*"]);
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    one.drain().await;
    other.drain().await;
}

#[tokio::test]
async fn when_the_replica_that_polls_goes_away_another_goes_on() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let (shown, upstream) = Shown::upstream().await;
    let pace = ["--poll-floor", "50ms", "--poll-ceiling", "50ms"];
    let [one, other] = gateways(&redis, &upstream, &pace).await;
    let mut first = watched(&one, "run_1").await;
    next(&mut first).await;
    let mut second = watched(&other, "run_1").await;
    next(&mut second).await;
    drop(first);
    one.drain().await;
    shown.set("completed");
    assert_eq!(hear(second).await.names(), ["run.completed*"]);
    other.drain().await;
}
