//! Each event is passed on when its last byte is there.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::Instant,
};

use crate::{
    script::{create, done, event, hear, name, next, run, run_event, soon},
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Upstream},
    },
};

const EVENTS: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_there_before_the_next_is_sent_and_less_than_a_millisecond_late() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let delta = event(
        "thread.message.delta",
        r#"{"id":"msg_1","object":"thread.message.delta","delta":{"content":[]}}"#,
    );

    // How long the same events take to a client on the upstream's own socket.
    let (say, chunks) = mpsc::channel(1);
    upstream.push(Answer::sse_with(chunks).then_close());
    let mut socket = TcpStream::connect(upstream.address())
        .await
        .expect("a connection");
    socket
        .write_all(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
        .await
        .expect("sent");
    let mut buffer = vec![0; 1 << 16];
    let mut bare = Vec::new();
    // The head comes before the first event.
    soon(socket.read(&mut buffer)).await.expect("a head");
    for _ in 0..EVENTS {
        let sent = Instant::now();
        say.send(delta.clone()).await.expect("a listener");
        let mut read = 0;
        while read < delta.len() {
            read += soon(socket.read(&mut buffer)).await.expect("an event");
        }
        bare.push(sent.elapsed());
    }
    drop((say, socket));

    let (say, chunks) = mpsc::channel(1);
    upstream.push(Answer::sse_with(chunks));
    let opening = event("thread.run.created", run("queued"));
    say.send(opening).await.expect("a listener");
    let mut stream = gateway
        .runs()
        .stream_create_run(create())
        .await
        .expect("a stream")
        .into_inner();
    assert_eq!(name(&next(&mut stream).await), "run.created");
    let mut through = Vec::new();
    for _ in 0..EVENTS {
        let sent = Instant::now();
        say.send(delta.clone()).await.expect("a listener");
        assert_eq!(name(&next(&mut stream).await), "message.delta");
        through.push(sent.elapsed());
    }
    let ending: [Bytes; 2] = [run_event("completed"), done()];
    for event in ending {
        say.send(event).await.expect("a listener");
    }
    drop(say);
    assert_eq!(hear(stream).await.names(), ["run.completed", "done"]);

    let [bare, through] = [bare, through].map(median);
    println!(
        "median of {EVENTS} events: {bare:?} to a bare socket, {through:?} through the gateway"
    );
    assert!(
        through.saturating_sub(bare) < Duration::from_millis(1),
        "{through:?}, and {bare:?} without the gateway"
    );
    gateway.drain().await;
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
