//! The table of faults over HTTP/1.1: the upstream has one fault and is well after it.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    call::Call,
    support::{
        gateway::spawn_retrying_gateway,
        upstream::{Answer, Step, Upstream},
    },
};

/// What all gateways here have in common: pauses that nobody waits for, and one connection's worth
/// of places, which are made quickly.
pub(crate) const QUICK: [&str; 6] = [
    "--retry-pause",
    "1ms",
    "--max-retry-pause",
    "2ms",
    "--max-upstream-requests",
    "100",
];

pub(crate) const RUN: &str =
    r#"{"id":"run_1","object":"thread.run","thread_id":"thread_1","status":"completed"}"#;

const UNKNOWN: &str = "Unknown OUTCOME_UNKNOWN";
const UNUSABLE: (&str, usize) = ("Internal UNUSABLE_ANSWER", 1);

/// What the upstream does, how a repeatable call and a create end, and how many requests each
/// makes.
type Row = (
    &'static str,
    fn() -> Answer,
    (&'static str, usize),
    (&'static str, usize),
);

fn status(status: u16) -> Answer {
    Answer::json(
        status,
        r#"{"error":{"message":"no","type":"t","code":null}}"#,
    )
}

fn soon(answer: Answer) -> Answer {
    answer.header("retry-after-ms", "5")
}

const ROWS: [Row; 78] = [
    (
        "takes the request and resets",
        Answer::cut_before_answer,
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "takes the request and closes",
        || Answer::raw("").close(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "resets in the status line",
        || Answer::raw("HTTP/1.1 20").cut(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "closes in the headers",
        || Answer::raw("HTTP/1.1 200 OK\r\ncontent-le").close(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "closes in the body",
        || Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{\"id\"").close(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "closes in a chunk",
        || Answer::new(200).chunked().bytes("{\"id\":").close(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "resets in the headers",
        || Answer::raw("HTTP/1.1 200 OK\r\ncontent-le").cut(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "resets in the body",
        || Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{\"id\"").cut(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "resets in a chunk",
        || Answer::new(200).chunked().bytes("{\"id\":").cut(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    ("is silent", Answer::never, ("Ok", 2), (UNKNOWN, 1)),
    (
        "is silent in the headers",
        || Answer::raw("HTTP/1.1 200 OK\r\n").wait(&Arc::default()),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "is silent in the body",
        || {
            Answer::new(200)
                .chunked()
                .bytes("{\"id\"")
                .wait(&Arc::default())
        },
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "is slow in the headers without end",
        || dripping("HTTP/1.1 200 OK\r\n", "x: y\r\n"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "is slow in the body without end",
        || dripping("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", " "),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "is slow, and comes to an end",
        || slow(Answer::new(200).chunked()).bytes(RUN),
        ("Ok", 1),
        ("Ok", 1),
    ),
    (
        "speaks headers without end",
        endless_headers,
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "sends a header of a MiB",
        || Answer::json(200, RUN).header("x", &"y".repeat(1 << 20)),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "sends two hundred headers",
        many_headers,
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "sends a header of 8 KiB",
        || Answer::json(200, RUN).header("x", &"y".repeat(8 << 10)),
        ("Ok", 1),
        ("Ok", 1),
    ),
    (
        "sends letters in a header that are not ASCII",
        || header(b"x: \xff\xc3\xa9"),
        ("Ok", 1),
        ("Ok", 1),
    ),
    (
        "sends a zero byte in a header",
        || header(b"x: a\0b"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "sends a blank in a header's name",
        || header(b"x y: z"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "sends a header without a colon",
        || header(b"xyz"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "sends a lone line feed in a header",
        || header(b"x: a\rb"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "says less than it announced",
        || length("9999"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "says more than it announced",
        || length("5"),
        UNUSABLE,
        UNUSABLE,
    ),
    (
        "announces what is no number",
        || length("many"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "announces a negative length",
        || length("-1"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "announces two lengths",
        || length("5\r\ncontent-length: 6"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "announces a length beyond all numbers",
        || length("99999999999999999999999"),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "packs its answer",
        || Answer::json(200, RUN).header("content-encoding", "gzip"),
        UNUSABLE,
        UNUSABLE,
    ),
    (
        "says that it goes on, and closes",
        || Answer::raw("HTTP/1.1 100 Continue\r\n\r\n").close(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "says that it goes on, and is silent",
        || Answer::raw("HTTP/1.1 100 Continue\r\n\r\n").wait(&Arc::default()),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    ("gives hints, and answers", hinted, ("Ok", 1), ("Ok", 1)),
    (
        "changes the protocol",
        || {
            Answer::raw("HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
                .close()
        },
        ("Internal UNEXPECTED_STATUS", 1),
        ("Internal UNEXPECTED_STATUS", 1),
    ),
    (
        "answers 204",
        || Answer::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        UNUSABLE,
        UNUSABLE,
    ),
    (
        "answers with a status of two digits",
        || Answer::raw("HTTP/1.1 20 OK\r\n\r\n").close(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "answers by another HTTP",
        || Answer::raw("HTTP/3.0 200 OK\r\n\r\n").close(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    ("speaks without end", endless, UNUSABLE, UNUSABLE),
    (
        "answers garbage",
        || Answer::raw("SSH-2.0-x\r\n\r\n").close(),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "answers 200 without a run",
        || Answer::json(200, "[]"),
        UNUSABLE,
        UNUSABLE,
    ),
    (
        "answers 400",
        || status(400),
        ("InvalidArgument INVALID_REQUEST", 1),
        ("InvalidArgument INVALID_REQUEST", 1),
    ),
    (
        "answers 401",
        || status(401),
        ("Unauthenticated INVALID_API_KEY", 1),
        ("Unauthenticated INVALID_API_KEY", 1),
    ),
    (
        "answers 402",
        || status(402),
        ("ResourceExhausted PAYMENT_REQUIRED", 1),
        ("ResourceExhausted PAYMENT_REQUIRED", 1),
    ),
    (
        "answers 403",
        || status(403),
        ("PermissionDenied PERMISSION_DENIED", 1),
        ("PermissionDenied PERMISSION_DENIED", 1),
    ),
    (
        "answers 404 as a page",
        || page(404),
        ("Unimplemented ROUTE_NOT_FOUND", 1),
        ("Unimplemented ROUTE_NOT_FOUND", 1),
    ),
    (
        "answers 413",
        || status(413),
        ("InvalidArgument INVALID_REQUEST", 1),
        ("InvalidArgument INVALID_REQUEST", 1),
    ),
    (
        "answers 415",
        || status(415),
        ("InvalidArgument INVALID_REQUEST", 1),
        ("InvalidArgument INVALID_REQUEST", 1),
    ),
    (
        "answers 418",
        || status(418),
        ("Internal UNEXPECTED_STATUS", 1),
        ("Internal UNEXPECTED_STATUS", 1),
    ),
    (
        "answers 422",
        || status(422),
        ("InvalidArgument INVALID_REQUEST", 1),
        ("InvalidArgument INVALID_REQUEST", 1),
    ),
    (
        "answers 499",
        || status(499),
        ("Cancelled CANCELLED", 1),
        ("Cancelled CANCELLED", 1),
    ),
    (
        "answers 501",
        || status(501),
        ("Ok", 2),
        ("Unimplemented UNSUPPORTED", 1),
    ),
    (
        "answers 599",
        || status(599),
        ("Ok", 2),
        ("Internal UNEXPECTED_STATUS", 1),
    ),
    (
        "answers 302",
        || status(302).header("location", "/"),
        ("Internal UNEXPECTED_STATUS", 1),
        ("Internal UNEXPECTED_STATUS", 1),
    ),
    (
        "answers 304",
        || Answer::raw("HTTP/1.1 304 Not Modified\r\n\r\n"),
        ("Internal UNEXPECTED_STATUS", 1),
        ("Internal UNEXPECTED_STATUS", 1),
    ),
    (
        "answers 404",
        || status(404),
        ("NotFound NOT_FOUND", 1),
        ("NotFound NOT_FOUND", 1),
    ),
    (
        "answers 307",
        || status(307).header("location", "/"),
        ("Internal UNEXPECTED_STATUS", 1),
        ("Internal UNEXPECTED_STATUS", 1),
    ),
    ("answers 408", || status(408), ("Ok", 2), (UNKNOWN, 1)),
    (
        "answers 409",
        || status(409),
        ("Ok", 2),
        ("Aborted CONFLICT", 1),
    ),
    ("answers 429", || status(429), ("Ok", 2), ("Ok", 2)),
    (
        "answers 429 and a time",
        || soon(status(429)),
        ("Ok", 2),
        ("Ok", 2),
    ),
    (
        "answers 429 of a quota",
        quota,
        ("ResourceExhausted INSUFFICIENT_QUOTA", 1),
        ("ResourceExhausted INSUFFICIENT_QUOTA", 1),
    ),
    (
        "answers 429 and a day",
        || status(429).header("retry-after", "86400"),
        ("ResourceExhausted RATE_LIMIT_EXCEEDED", 1),
        ("ResourceExhausted RATE_LIMIT_EXCEEDED", 1),
    ),
    (
        "answers 429 and a far date",
        || status(429).header("retry-after", "Fri, 31 Dec 2100 23:59:59 GMT"),
        ("ResourceExhausted RATE_LIMIT_EXCEEDED", 1),
        ("ResourceExhausted RATE_LIMIT_EXCEEDED", 1),
    ),
    (
        "answers 429 and a past date",
        || status(429).header("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("Ok", 2),
        ("Ok", 2),
    ),
    (
        "answers 429, not to be retried",
        || told(429, "false"),
        ("ResourceExhausted RATE_LIMIT_EXCEEDED", 1),
        ("ResourceExhausted RATE_LIMIT_EXCEEDED", 1),
    ),
    (
        "answers 500",
        || status(500),
        ("Ok", 2),
        ("Internal SERVER_ERROR", 1),
    ),
    (
        "answers 500, to be retried",
        || told(500, "true"),
        ("Ok", 2),
        ("Ok", 2),
    ),
    (
        "answers 500, not to be retried",
        || told(500, "false"),
        ("Internal SERVER_ERROR", 1),
        ("Internal SERVER_ERROR", 1),
    ),
    ("answers 502", || status(502), ("Ok", 2), (UNKNOWN, 1)),
    (
        "answers 502 as a page",
        || page(502),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    ("answers 503", || status(503), ("Ok", 2), (UNKNOWN, 1)),
    (
        "answers 503 and a time",
        || soon(status(503)),
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        "answers 503, to be retried",
        || told(503, "true"),
        ("Ok", 2),
        ("Ok", 2),
    ),
    (
        "answers 503 and a time beyond all patience",
        || status(503).header("retry-after", "3600"),
        ("Unavailable UPSTREAM_UNAVAILABLE", 1),
        (UNKNOWN, 1),
    ),
    ("answers 504", || status(504), ("Ok", 2), (UNKNOWN, 1)),
    (
        "answers 400, to be retried",
        || told(400, "true"),
        ("Ok", 2),
        ("Ok", 2),
    ),
    (
        "answers 429 in half a body",
        || Answer::raw("HTTP/1.1 429 Too Many\r\ncontent-length: 9\r\n\r\n{").close(),
        ("Ok", 2),
        ("Ok", 2),
    ),
];

fn told(code: u16, retry: &str) -> Answer {
    status(code).header("x-should-retry", retry)
}

fn quota() -> Answer {
    Answer::json(
        429,
        r#"{"error":{"message":"no","type":"insufficient_quota","code":"insufficient_quota"}}"#,
    )
}

fn page(status: u16) -> Answer {
    Answer::new(status)
        .header("content-type", "text/html")
        .bytes("<html>")
}

/// A good answer but for this header.
fn header(line: &[u8]) -> Answer {
    let head = [b"HTTP/1.1 200 OK\r\n", line, b"\r\ncontent-length: "].concat();
    Answer::raw([&head[..], format!("{}\r\n\r\n{RUN}", RUN.len()).as_bytes()].concat())
}

/// A good answer but for its length.
fn length(length: &str) -> Answer {
    Answer::raw(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{RUN}"
    ))
    .close()
}

/// Says `first`, and then `again` and again, each in the time that a whole answer has.
fn dripping(first: &str, again: &'static str) -> Answer {
    (0..100).fold(Answer::raw(first.to_owned()), |answer, _| {
        answer
            .step(Step::Pause(Duration::from_millis(10)))
            .bytes(again)
    })
}

fn slow(answer: Answer) -> Answer {
    answer
        .bytes(" ")
        .step(Step::Pause(Duration::from_millis(20)))
}

fn endless_headers() -> Answer {
    let (say, said) = mpsc::channel(1);
    tokio::spawn(async move {
        while say
            .send("x-name: value\r\n".repeat(1000).into())
            .await
            .is_ok()
        {}
    });
    Answer::raw("HTTP/1.1 200 OK\r\n").step(Step::Stream(said))
}

fn hinted() -> Answer {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    Answer::raw(format!(
        "{hints}HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{RUN}",
        RUN.len()
    ))
}

fn many_headers() -> Answer {
    (0..200).fold(Answer::json(200, RUN), |answer, number| {
        answer.header(&format!("x-{number}"), "y")
    })
}

fn endless() -> Answer {
    let (say, said) = mpsc::channel(1);
    tokio::spawn(async move { while say.send("          ".repeat(1000).into()).await.is_ok() {} });
    Answer::new(200)
        .header("content-type", "application/json")
        .step(Step::Stream(said))
}

#[tokio::test]
async fn one_fault_ends_in_the_right_answer_or_the_right_error() {
    let upstream = Upstream::answering(|_| Answer::json(200, RUN)).await;
    let flags = [
        "--answer-timeout",
        "100ms",
        "--max-answer-bytes",
        "65536",
        "--retry-budget",
        "1000000",
    ];
    let gateway = spawn_retrying_gateway(&upstream.url(), &[&QUICK[..], &flags].concat()).await;
    for (what, fault, repeatable, once) in ROWS {
        let calls = Call::REPEATABLE
            .map(|call| (call, repeatable))
            .into_iter()
            .chain(Call::ONCE.map(|call| (call, once)));
        for (call, (ended, requests)) in calls {
            let before = upstream.requests().len();
            upstream.push(fault());
            let came = call.on(gateway.channel()).await;
            let seen = upstream.requests().len() - before;
            assert_eq!(
                (&*came.to_string(), seen),
                (ended, requests),
                "{call:?}: the upstream {what}"
            );
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_by_every_call_and_then_safe_to_repeat() {
    // The port was free just now, and is not given out again so soon.
    let url = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        format!(
            "http://{}",
            listener.local_addr().expect("a bound listener")
        )
    };
    let gateway = spawn_retrying_gateway(&url, &QUICK).await;
    for call in Call::REPEATABLE
        .into_iter()
        .chain(Call::ONCE)
        .chain([Call::Submit])
    {
        assert_eq!(
            call.on(gateway.channel()).await.to_string(),
            "Unavailable UPSTREAM_UNAVAILABLE",
            "{call:?}"
        );
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_connection_that_is_reset_before_the_request_is_read_is_never_an_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!(
        "http://{}",
        listener.local_addr().expect("a bound listener")
    );
    let accepting = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_zero_linger().expect("a reset");
        }
    });
    let gateway = spawn_retrying_gateway(&url, &QUICK).await;
    for call in Call::REPEATABLE {
        assert_eq!(
            call.on(gateway.channel()).await.to_string(),
            "Unavailable UPSTREAM_UNAVAILABLE",
            "{call:?}"
        );
    }
    for call in Call::ONCE.into_iter().chain([Call::Submit]) {
        // What the client had written by then is chance. Whether it may be repeated is not: never
        // if it had written anything.
        let ended = call.on(gateway.channel()).await.to_string();
        assert!(
            [UNKNOWN, "Unavailable UPSTREAM_UNAVAILABLE"].contains(&&*ended),
            "{call:?}: {ended}"
        );
    }
    gateway.drain().await;
    accepting.abort();
}

#[tokio::test]
async fn a_connection_that_was_closed_before_the_request_was_sent_costs_nothing() {
    for call in Call::REPEATABLE
        .into_iter()
        .chain([Call::Create, Call::CreateThreadAndRun])
    {
        let upstream = Upstream::answering(|_| Answer::json(200, RUN)).await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
        upstream.push(Answer::json(200, RUN).then_close());
        assert_eq!(Call::Get.on(gateway.channel()).await.to_string(), "Ok");
        // The client closed its side: it knows.
        upstream.closed(0).await;
        assert_eq!(
            call.on(gateway.channel()).await.to_string(),
            "Ok",
            "{call:?}"
        );
        assert_eq!((upstream.requests().len(), upstream.accepted()), (2, 2));
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_kept_connection_that_is_closed_under_a_request_leaves_a_create_in_doubt() {
    let cases = Call::REPEATABLE.map(|call| (call, "Ok", 2)).into_iter();
    for (call, ended, requests) in cases.chain([
        (Call::Create, UNKNOWN, 1),
        (Call::CreateThreadAndRun, UNKNOWN, 1),
    ]) {
        for first in [
            Answer::then_close_on_next_request,
            Answer::then_cut_on_next_request,
        ] {
            let upstream = Upstream::answering(|_| Answer::json(200, RUN)).await;
            let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
            upstream.push(first(Answer::json(200, RUN)));
            assert_eq!(Call::Get.on(gateway.channel()).await.to_string(), "Ok");
            assert_eq!(
                call.on(gateway.channel()).await.to_string(),
                ended,
                "{call:?}"
            );
            assert_eq!(upstream.requests().len(), requests, "{call:?}");
            gateway.drain().await;
        }
    }
}
