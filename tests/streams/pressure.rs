//! Readers that do not read slow down their own upstream and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use runs_gateway::v1::run_service_client::RunServiceClient;
use tokio::{sync::mpsc, time::Instant};
use tonic::transport::Endpoint;

use crate::{
    process,
    script::{cancel, create, done, hear, millis, polled, run_event, soon},
    support::upstream::{Answer, Upstream},
};

const STALLED: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_unread_streams_delay_nobody_and_take_a_mebibyte_each_at_most() {
    let said = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&said);
    let upstream = Upstream::answering(move |request| {
        if request.target.ends_with("/cancel") {
            return polled("cancelling");
        }
        if request.target.starts_with("/threads/other/") {
            return Answer::sse([run_event("in_progress"), run_event("completed"), done()]);
        }
        Answer::sse_with(endless(Arc::clone(&counted)))
    })
    .await;
    let gateway = process::start(&upstream.url()).await;
    // One connection for all. The caller's own windows are such that what it does not read leaves
    // room for the rest.
    let endpoint = Endpoint::from_shared(gateway.url.clone()).expect("a URL");
    let channel = endpoint
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(16 << 20)
        .connect()
        .await
        .expect("a gateway");
    let runs = RunServiceClient::new(channel);

    let other = || {
        let mut runs = runs.clone();
        async move {
            let mut request = create();
            request.thread_id = "other".into();
            let began = Instant::now();
            let heard = hear(
                runs.stream_create_run(request)
                    .await
                    .expect("a stream")
                    .into_inner(),
            )
            .await;
            assert_eq!(heard.names(), ["run.in_progress", "run.completed", "done"]);
            began.elapsed()
        }
    };
    let cancelled = || {
        let mut runs = runs.clone();
        async move {
            let began = Instant::now();
            soon(runs.cancel_run(cancel())).await.expect("a run");
            began.elapsed()
        }
    };
    // All that is needed once, such as connections, is there before it counts.
    let calm = [other().await, cancelled().await];
    let before = gateway.memory();

    let mut unread = Vec::new();
    for _ in 0..STALLED {
        unread.push(
            runs.clone()
                .stream_create_run(create())
                .await
                .expect("a stream"),
        );
    }
    stalled(&said).await;
    let grown = gateway.memory().saturating_sub(before);
    let pressed = [other().await, cancelled().await];
    let each = grown / STALLED as u64;
    let bytes = said.load(Ordering::Relaxed);
    println!(
        "a stream and a CancelRun: {calm:?} alone, {pressed:?} beside {STALLED} unread streams"
    );
    println!(
        "memory: {} KiB for each unread stream; the upstream said {} KiB on each",
        each >> 10,
        (bytes / STALLED as u64) >> 10
    );
    assert!(
        pressed.iter().all(|time| *time < millis(100)),
        "{pressed:?}"
    );
    assert!(each <= 1 << 20, "{each} bytes for each");
}

/// Events of 60 bytes, as fast as they are taken.
fn endless(said: Arc<AtomicU64>) -> mpsc::Receiver<Bytes> {
    let event = "event: thread.message.delta\ndata: {\"id\":\"m\",\"delta\":{}}   \n\n";
    assert_eq!(event.len(), 60);
    let chunk = Bytes::from(event.repeat(100));
    let (say, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        while say.send(chunk.clone()).await.is_ok() {
            said.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    });
    chunks
}

/// Nothing was taken from any stream for half a second.
async fn stalled(said: &AtomicU64) {
    let mut before = u64::MAX;
    while before != said.load(Ordering::Relaxed) {
        before = said.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
