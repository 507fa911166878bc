//! How many requests the upstream gets at a time, and whose.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use runs_gateway::v1::{RunSpec, StreamCreateRunRequest};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tonic::Code;

use crate::{
    call::{Call, Ended},
    faults::RUN,
    support::{
        gateway::{Gateway, spawn_retrying_gateway},
        upstream::{Answer, Upstream},
    },
};

const OVERLOADED: &str = "Unavailable GATEWAY_OVERLOADED";

/// An upstream that lets the flood's requests hang until it is told to let go.
struct Slow {
    upstream: Upstream,
    held: Arc<Notify>,
    free: Arc<AtomicBool>,
}

impl Slow {
    async fn start() -> Self {
        let (held, free) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let state = (Arc::clone(&held), Arc::clone(&free));
        let upstream = Upstream::answering(move |request| {
            let hangs = request.header("authorization") == Some("Bearer flood")
                && !state.1.load(Ordering::SeqCst);
            let answer = if hangs {
                Answer::new(200).chunked().wait(&state.0)
            } else {
                Answer::json(200, "")
            };
            answer.bytes(RUN)
        })
        .await;
        Self {
            upstream,
            held,
            free,
        }
    }

    fn let_go(&self) {
        self.free.store(true, Ordering::SeqCst);
        self.held.notify_waiters();
    }
}

fn calls(gateway: &Gateway, who: &'static str, count: usize) -> JoinSet<Ended> {
    // Far from what any of them takes: a test does not hang.
    let patience = Some(Duration::from_secs(20));
    let call = move |channel| async move {
        Call::Get
            .with(channel, &[("authorization", who)], patience)
            .await
    };
    (0..count).map(|_| call(gateway.channel())).collect()
}

#[tokio::test]
async fn one_tenants_flood_leaves_others_served() {
    let slow = Slow::start().await;
    let flags = [
        "--max-upstream-requests",
        "9",
        "--max-upstream-queue",
        "90",
        "--upstream-queue-timeout",
        "1h",
    ];
    let gateway = spawn_retrying_gateway(&slow.upstream.url(), &flags).await;
    // A credential that was never accepted has no share of its own.
    for ended in calls(&gateway, "Bearer other", 1).join_all().await {
        assert_eq!(ended.to_string(), "Ok");
    }
    let flood = calls(&gateway, "Bearer flood", 60);
    // Two thirds, and no more.
    slow.upstream.wait_for_requests(1 + 7).await;
    for ended in calls(&gateway, "Bearer other", 20).join_all().await {
        assert_eq!(ended.to_string(), "Ok");
    }
    assert_eq!(slow.upstream.requests().len(), 1 + 7 + 20);
    slow.let_go();
    for ended in flood.join_all().await {
        assert_eq!(ended.to_string(), "Ok");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn what_the_queue_cannot_hold_is_refused_at_once_and_what_waits_too_long_later() {
    let slow = Slow::start().await;
    let flags = [
        "--max-upstream-requests",
        "1",
        "--max-upstream-queue",
        "1",
        "--upstream-queue-timeout",
        "1s",
    ];
    let gateway = spawn_retrying_gateway(&slow.upstream.url(), &flags).await;
    let first = calls(&gateway, "Bearer flood", 1);
    slow.upstream.wait_for_requests(1).await;
    let began = Instant::now();
    let mut more = calls(&gateway, "Bearer flood", 10);
    let mut refused = Vec::new();
    for _ in 0..10 {
        refused.push((
            more.join_next().await.expect("ten").expect("no panic"),
            began.elapsed(),
        ));
    }
    for (ended, _) in &refused {
        assert_eq!(ended.to_string(), OVERLOADED);
        assert!(
            ended
                .metadata
                .get("grpc-retry-pushback-ms")
                .is_some_and(|pushback| pushback != "-1")
        );
    }
    let late = refused
        .iter()
        .filter(|(_, after)| *after >= Duration::from_secs(1))
        .count();
    assert_eq!(late, 1, "{refused:?}");
    // None of them reached the upstream, and the place is free again for whoever comes now.
    assert_eq!(slow.upstream.requests().len(), 1);
    slow.let_go();
    first.join_all().await;
    assert_eq!(
        calls(&gateway, "Bearer flood", 1).join_all().await[0].to_string(),
        "Ok"
    );
    gateway.drain().await;
}

#[tokio::test]
async fn whoever_leaves_gives_back_its_place_in_flight_and_in_the_queue() {
    let slow = Slow::start().await;
    let flags = [
        "--max-upstream-requests",
        "1",
        "--max-upstream-queue",
        "2",
        "--upstream-queue-timeout",
        "1h",
    ];
    let gateway = spawn_retrying_gateway(&slow.upstream.url(), &flags).await;
    for round in 1..=5 {
        let in_flight = calls(&gateway, "Bearer flood", 1);
        slow.upstream.wait_for_requests(2 * round - 1).await;
        let in_queue = Call::Get.with(
            gateway.channel(),
            &[("authorization", "Bearer flood")],
            Some(Duration::from_millis(20)),
        );
        // The client's clock or the gateway's.
        assert!(matches!(
            in_queue.await.code,
            Code::DeadlineExceeded | Code::Cancelled
        ));
        let waiting = calls(&gateway, "Bearer other", 1);
        drop(in_flight);
        assert_eq!(waiting.join_all().await[0].to_string(), "Ok");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn neither_a_live_stream_nor_a_pause_holds_a_place() {
    let slow = Slow::start().await;
    let flags = [
        "--max-upstream-requests",
        "1",
        "--upstream-queue-timeout",
        "1h",
        "--retry-pause",
        "1h",
        "--retry-window",
        "2h",
    ];
    let gateway = spawn_retrying_gateway(&slow.upstream.url(), &flags).await;
    let (_live, events) = mpsc::channel(1);
    slow.upstream.push(Answer::sse_with(events));
    let spec = RunSpec {
        assistant_id: "asst_1".to_owned(),
        ..RunSpec::default()
    };
    let create = StreamCreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run: Some(spec),
        ..StreamCreateRunRequest::default()
    };
    let live = gateway
        .runs()
        .stream_create_run(create)
        .await
        .expect("a stream");
    assert_eq!(
        calls(&gateway, "Bearer other", 1).join_all().await[0].to_string(),
        "Ok"
    );
    slow.upstream.push(Answer::json(503, "{}"));
    let pausing = calls(&gateway, "Bearer other", 1);
    slow.upstream.wait_for_requests(3).await;
    assert_eq!(
        calls(&gateway, "Bearer other", 1).join_all().await[0].to_string(),
        "Ok"
    );
    assert_eq!(
        slow.upstream.open(),
        2,
        "the stream's connection, and one for all others"
    );
    drop((live, pausing));
    gateway.drain().await;
}
