//! The scripted upstream itself: what all other end-to-end tests stand on.

mod support;

use std::{io::ErrorKind, sync::Arc};

use bytes::Bytes;
use support::upstream::{Answer, Step, Upstream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc},
};

const GET: &str = "GET /threads/t/runs/r?include[]=a%2Fb&x HTTP/1.1\r\nhost: test\r\n\r\n";

async fn connect(upstream: &Upstream) -> TcpStream {
    TcpStream::connect(upstream.address())
        .await
        .expect("a listening upstream")
}

async fn ask(upstream: &Upstream) -> TcpStream {
    let mut stream = connect(upstream).await;
    stream
        .write_all(GET.as_bytes())
        .await
        .expect("an open connection");
    stream
}

/// The next bytes, which must be exactly these.
async fn hear(stream: &mut TcpStream, expected: &str) {
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard).await.expect("as many bytes");
    assert_eq!(String::from_utf8_lossy(&heard), expected);
}

async fn hear_close(stream: &mut TcpStream) {
    assert_eq!(
        stream
            .read(&mut [0; 1])
            .await
            .expect("an end in good order"),
        0
    );
}

async fn hear_reset(stream: &mut TcpStream) {
    assert_eq!(
        stream.read(&mut [0; 1]).await.expect_err("a reset").kind(),
        ErrorKind::ConnectionReset
    );
}

const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn says_the_bytes_that_are_scripted() {
    let cases = [
        (
            Answer::json(404, "{}").header("X-Request-Id", "r1"),
            "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nX-Request-Id: r1\r\ncontent-length: 2\r\n\r\n{}"
                .to_owned(),
        ),
        (Answer::new(202), "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".to_owned()),
        (Answer::sse(["ab", "", "0123456789abcdef"]), format!("{EVENTS}2\r\nab\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n")),
        (Answer::raw("HTTP/1.1 100 Continue\r\n\r\nHTP"), "HTTP/1.1 100 Continue\r\n\r\nHTP".to_owned()),
        (Answer::new(200).bytes("until").bytes(" here").until_close(), "HTTP/1.1 200 OK\r\n\r\nuntil here".to_owned()),
    ];
    let upstream = Upstream::start().await;
    // One connection for all: those that do not close it keep it.
    let mut stream = connect(&upstream).await;
    for (answer, expected) in cases {
        upstream.push(answer);
        stream
            .write_all(GET.as_bytes())
            .await
            .expect("a kept connection");
        hear(&mut stream, &expected).await;
    }
    hear_close(&mut stream).await;
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test]
async fn says_each_chunk_when_the_test_says_so() {
    let upstream = Upstream::start().await;
    let (waited, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (live, chunks) = mpsc::channel(1);
    upstream.push(
        Answer::sse(["one"])
            .wait(&go_on)
            .bytes("two")
            .step(Step::Stream(chunks)),
    );
    let mut stream = ask(&upstream).await;
    hear(&mut stream, &format!("{EVENTS}3\r\none\r\n")).await;

    let hearing = tokio::spawn({
        let waited = Arc::clone(&waited);
        async move {
            hear(&mut stream, "3\r\ntwo\r\n").await;
            waited.notify_one();
            hear(&mut stream, "5\r\nthree\r\n").await;
            waited.notify_one();
            hear(&mut stream, "0\r\n\r\n").await;
        }
    });
    // All that could be under way has settled, and still nothing was heard.
    assert!(settled(waited.notified()).await.is_none());
    go_on.notify_one();
    waited.notified().await;
    assert!(settled(waited.notified()).await.is_none());
    live.send(Bytes::from("three"))
        .await
        .expect("a listening client");
    waited.notified().await;
    assert!(!hearing.is_finished());
    drop(live);
    hearing.await.expect("the end of the body");
}

/// What a future gives, unless it is still pending after everything else in this one-threaded
/// runtime had many turns.
async fn settled<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::select! { biased; value = future => Some(value), () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => None }
}

#[tokio::test]
async fn ends_connections_as_scripted() {
    let upstream = Upstream::start().await;
    let begun = format!("{EVENTS}1\r\na\r\n");

    upstream.push(Answer::cut_before_answer());
    hear_reset(&mut ask(&upstream).await).await;
    assert!(!upstream.closed(0).await.by_client);

    let heard = Arc::new(Notify::new());
    upstream.push(Answer::sse(["a"]).wait(&heard).cut());
    let mut cut = ask(&upstream).await;
    hear(&mut cut, &begun).await;
    heard.notify_one();
    hear_reset(&mut cut).await;

    let (live, chunks) = mpsc::channel(1);
    upstream.push(Answer::sse_with(chunks).cut());
    let mut cut = ask(&upstream).await;
    live.send(Bytes::from("a"))
        .await
        .expect("a listening client");
    hear(&mut cut, &begun).await;
    drop(live);
    hear_reset(&mut cut).await;

    upstream.push(Answer::sse(["a"]).close());
    let mut closed = ask(&upstream).await;
    hear(&mut closed, &begun).await;
    hear_close(&mut closed).await;
    drop(closed);
    assert!(upstream.closed(3).await.by_client);
    assert_eq!((upstream.accepted(), upstream.open()), (4, 0));
}

#[tokio::test]
async fn ends_kept_connections_as_scripted() {
    let upstream = Upstream::start().await;
    let empty = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    upstream.push(Answer::new(200));
    upstream.push(Answer::new(200).then_close());
    let mut second_last = ask(&upstream).await;
    hear(&mut second_last, empty).await;
    second_last
        .write_all(GET.as_bytes())
        .await
        .expect("a kept connection");
    hear(&mut second_last, empty).await;
    hear_close(&mut second_last).await;

    upstream.push(Answer::new(200).then_close_on_next_request());
    let mut stale = ask(&upstream).await;
    hear(&mut stale, empty).await;
    assert!(settled(stale.read(&mut [0; 1])).await.is_none());
    stale.write_all(b"G").await.expect("a kept connection");
    hear_close(&mut stale).await;

    upstream.push(Answer::new(200).then_cut_on_next_request());
    let mut stale = ask(&upstream).await;
    hear(&mut stale, empty).await;
    assert!(settled(stale.read(&mut [0; 1])).await.is_none());
    stale.write_all(b"G").await.expect("a kept connection");
    hear_reset(&mut stale).await;

    assert_eq!(
        upstream.requests().len(),
        4,
        "what came after the last answer is not a request"
    );
}

#[tokio::test]
async fn notices_that_the_client_left() {
    let upstream = Upstream::start().await;
    let (live, chunks) = mpsc::channel(1);
    upstream.push(Answer::never());
    upstream.push(Answer::sse_with(chunks));
    let silent = ask(&upstream).await;
    upstream.wait_for_requests(1).await;
    let mut streamed = ask(&upstream).await;
    hear(&mut streamed, EVENTS).await;
    assert_eq!(upstream.open(), 2);

    let before = tokio::time::Instant::now();
    drop(silent);
    let closed = upstream.closed(0).await;
    assert!(closed.by_client && closed.at >= before);
    assert_eq!(upstream.open(), 1);

    drop(streamed);
    live.closed().await;
    assert!(upstream.closed(1).await.by_client);
}

#[tokio::test]
async fn records_requests_exactly() {
    let upstream = Upstream::answering(|request| Answer::json(200, request.target.clone())).await;
    let mut stream = connect(&upstream).await;
    // Torn anywhere, two at once, one of each framing.
    let requests = concat!(
        "POST /a?b=%20&c HTTP/1.1\r\nHost: test\r\nX-Twice: 1\r\nx-twice: 2\r\ncontent-length: 4\r\n\r\n\r\n{}",
        "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n",
    );
    for byte in requests.as_bytes().chunks(1) {
        stream.write_all(byte).await.expect("an open connection");
    }
    let seen = upstream.wait_for_requests(2).await;
    let headers = |of: usize| {
        seen[of]
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), &value[..]))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (
            seen[0].method.as_str(),
            seen[0].target.as_str(),
            seen[0].text()
        ),
        ("POST", "/a?b=%20&c", "\r\n{}")
    );
    let expected: [(&str, &[u8]); 4] = [
        ("host", b"test"),
        ("x-twice", b"1"),
        ("x-twice", b"2"),
        ("content-length", b"4"),
    ];
    assert_eq!(headers(0), expected);
    assert_eq!(
        (seen[1].target.as_str(), seen[1].text()),
        ("/b", "abc0123456789")
    );
    assert_eq!(seen[1].header("transfer-encoding"), Some("chunked"));
    assert_eq!((seen[0].connection, seen[1].connection), (0, 0));
    assert!(seen[0].at <= seen[1].at);

    let mut second = ask(&upstream).await;
    hear(&mut second, "HTTP/1.1 200 OK\r\n").await;
    let third = &upstream.wait_for_requests(3).await[2];
    assert_eq!(
        (third.target.as_str(), third.connection),
        ("/threads/t/runs/r?include[]=a%2Fb&x", 1)
    );
}

#[tokio::test]
async fn serves_the_client_that_the_gateway_uses() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let upstream = Upstream::start().await;
    upstream.push(Answer::json(201, r#"{"id":"run_1"}"#));
    upstream.push(Answer::sse(["event: a\n", "data: b\n\n"]));
    upstream.push(Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort").close());

    let created = client
        .post(format!("{}/threads/t/runs", upstream.url()))
        .body("{}")
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        (
            created.status().as_u16(),
            created.text().await.expect("a body").as_str()
        ),
        (201, r#"{"id":"run_1"}"#)
    );
    let events = client.get(upstream.url()).send().await.expect("an answer");
    assert_eq!(
        events.text().await.expect("a body"),
        "event: a\ndata: b\n\n"
    );
    let short = client.get(upstream.url()).send().await.expect("a head");
    short.bytes().await.expect_err("a body that is too short");

    let [created, ..] = &upstream.requests()[..] else {
        panic!("three requests were sent")
    };
    assert_eq!(
        (
            created.method.as_str(),
            created.target.as_str(),
            created.text()
        ),
        ("POST", "/threads/t/runs", "{}")
    );
}

#[tokio::test]
#[should_panic(expected = "unscripted request: GET /threads/t/runs/r?include[]=a%2Fb&x")]
async fn an_unscripted_request_fails_the_test() {
    let upstream = Upstream::start().await;
    hear(
        &mut ask(&upstream).await,
        "HTTP/1.1 500 Internal Server Error\r\n",
    )
    .await;
}

#[tokio::test]
#[should_panic(expected = "the handler panicked on GET /threads/t/runs/r")]
async fn a_handler_that_panics_fails_the_test() {
    let upstream = Upstream::answering(|request| panic!("no route for {}", request.target)).await;
    hear(
        &mut ask(&upstream).await,
        "HTTP/1.1 500 Internal Server Error\r\n",
    )
    .await;
}

#[tokio::test]
#[should_panic(expected = "1 pushed answers were never asked for")]
async fn an_unused_answer_fails_the_test() {
    let upstream = Upstream::start().await;
    upstream.push(Answer::new(200));
    upstream.push(Answer::new(200));
    hear(&mut ask(&upstream).await, "HTTP/1.1 200 OK\r\n").await;
}

#[tokio::test]
#[should_panic(expected = "a request that is not HTTP/1.1")]
async fn garbage_fails_the_test() {
    let upstream = Upstream::start().await;
    let mut stream = connect(&upstream).await;
    stream
        .write_all(b"\0\0\0\0")
        .await
        .expect("an open connection");
    upstream.closed(0).await;
}
