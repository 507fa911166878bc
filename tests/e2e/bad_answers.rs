//! An upstream that says yes and then something else: a clear status, bounded memory, no panic.

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    call::Call,
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Step, Upstream},
    },
};

const MIB: usize = 1 << 20;

fn seen(status: &Status) -> (Code, String) {
    (
        status.code(),
        status.get_details_error_info().expect("ErrorInfo").reason,
    )
}

/// What the caller sees where the upstream's answer was whole, but not usable: the same for reads
/// and writes.
fn unusable() -> [(Code, &'static str); 2] {
    [(Code::Internal, "UNUSABLE_ANSWER"); 2]
}

/// What the caller sees where the answer was not whole: a read can be repeated, of a write nobody
/// knows what it did.
fn lost() -> [(Code, &'static str); 2] {
    [
        (Code::Unavailable, "UPSTREAM_UNAVAILABLE"),
        (Code::Unknown, "OUTCOME_UNKNOWN"),
    ]
}

#[tokio::test]
async fn an_answer_that_is_not_what_was_asked_for_is_a_clear_status() {
    type Row = (&'static str, fn() -> Answer, [(Code, &'static str); 2]);
    let table: &[Row] = &[
        (
            "not JSON",
            || Answer::json(200, "<html>hello</html>"),
            unusable(),
        ),
        ("nothing", || Answer::json(200, ""), unusable()),
        (
            "204",
            || Answer::raw("HTTP/1.1 204 No Content\r\n\r\n"),
            unusable(),
        ),
        (
            "half a document",
            || Answer::json(200, r#"{"id":"run_1","status":"qu"#),
            unusable(),
        ),
        (
            "two documents",
            || Answer::json(200, r#"{"id":"run_1"}{"id":"run_2"}"#),
            unusable(),
        ),
        ("a number", || Answer::json(200, "42"), unusable()),
        ("a string", || Answer::json(200, r#""run_1""#), unusable()),
        ("an empty object", || Answer::json(200, "{}"), unusable()),
        ("an empty list", || Answer::json(200, "[]"), unusable()),
        (
            "a list of runs",
            || Answer::json(200, r#"[{"id":"run_1"}]"#),
            unusable(),
        ),
        ("null", || Answer::json(200, "null"), unusable()),
        (
            "an empty id",
            || Answer::json(200, r#"{"id":""}"#),
            unusable(),
        ),
        (
            "an id of null",
            || Answer::json(200, r#"{"id":null}"#),
            unusable(),
        ),
        (
            "an id that is no text",
            || Answer::json(200, r#"{"id":7}"#),
            unusable(),
        ),
        (
            "an error with a good status",
            || Answer::json(200, r#"{"error":{"message":"no"}}"#),
            [(Code::Internal, "SERVER_ERROR"); 2],
        ),
        (
            "not UTF-8",
            || Answer::json(200, &b"{\"id\":\"run_\xff\"}"[..]),
            unusable(),
        ),
        (
            "too deep",
            || Answer::json(200, format!(r#"{{"id":"r","x":{}"#, "[".repeat(100_000))),
            unusable(),
        ),
        (
            "an event stream",
            || Answer::sse(["event: done\ndata: [DONE]\n\n"]),
            unusable(),
        ),
        (
            "another encoding",
            || Answer::json(200, &b"\x1f\x8b\x08\0"[..]).header("content-encoding", "gzip"),
            unusable(),
        ),
        (
            "fewer bytes than announced",
            || {
                Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"id\":\"run_1\"}")
                    .close()
            },
            lost(),
        ),
        (
            "a cut in the chunks",
            || {
                Answer::new(200)
                    .chunked()
                    .bytes(r#"{"id":"run_1"}"#)
                    .close()
            },
            lost(),
        ),
        (
            "a reset in the chunks",
            || Answer::new(200).chunked().bytes(r#"{"id":"#).cut(),
            lost(),
        ),
        (
            "a chunk without a size",
            || Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").close(),
            lost(),
        ),
        (
            "half a head",
            || Answer::raw("HTTP/1.1 200 O").close(),
            lost(),
        ),
        (
            "not HTTP",
            || Answer::raw("220 mail.example.com ESMTP\r\n").close(),
            lost(),
        ),
        (
            "an end without an answer",
            || Answer::raw("").close(),
            lost(),
        ),
    ];
    for (name, answer, expected) in table {
        for (call, expected) in [Call::get_run(), Call::create_run()]
            .into_iter()
            .zip(expected)
        {
            let upstream = Upstream::start().await;
            upstream.push(answer());
            let gateway = spawn_gateway(&upstream.url(), &[]).await;
            let status = call.on(&gateway).await.expect_err(name);
            assert_eq!(
                seen(&status),
                (expected.0, expected.1.to_owned()),
                "{name}, {}: {status}",
                call.rpc()
            );
            // What was sent is never sent again.
            assert_eq!(upstream.requests().len(), 1, "{name}");
            // After a bad answer comes a good one.
            upstream.push(Answer::json(200, r#"{"id":"run_1"}"#));
            call.on(&gateway)
                .await
                .unwrap_or_else(|status| panic!("after {name}: {status}"));
            gateway.drain().await;
        }
    }
}

#[tokio::test]
async fn a_list_is_a_list_or_an_error() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let lists = || Call::all().filter(|call| call.rpc().starts_with("List"));
    for bad in [
        "{}",
        "[]",
        "42",
        r#"{"data":5}"#,
        r#"{"data":null}"#,
        r#"{"data":{}}"#,
        r#"{"id":"run_1"}"#,
    ] {
        for call in lists() {
            upstream.push(Answer::json(200, bad));
            let status = call.on(&gateway).await.expect_err(bad);
            assert_eq!(
                seen(&status),
                (Code::Internal, "UNUSABLE_ANSWER".to_owned()),
                "{bad}"
            );
        }
    }
    for good in [
        r#"{"data":[]}"#,
        r#"{"object":"list","data":[{"id":"x"}],"has_more":false}"#,
    ] {
        for call in lists() {
            upstream.push(Answer::json(200, good));
            call.on(&gateway)
                .await
                .unwrap_or_else(|status| panic!("{good}: {status}"));
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn informational_answers_and_whatever_length_the_body_has_do_not_matter() {
    let body = r#"{"id":"run_1"}"#;
    let answers = [
        Answer::raw(format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{body}"
        )),
        body.bytes()
            .fold(Answer::new(200).chunked(), |answer, byte| {
                answer.bytes(vec![byte])
            }),
        Answer::new(201).bytes(body),
        Answer::json(200, body).header("content-encoding", "identity"),
        Answer::new(200).bytes(body).until_close(),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (at, answer) in answers.into_iter().enumerate() {
        upstream.push(answer);
        let answered = Call::get_run()
            .on(&gateway)
            .await
            .unwrap_or_else(|status| panic!("answer {at}: {status}"));
        assert_eq!(answered.json["id"], "run_1");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        for call in [Call::get_run(), Call::create_run()] {
            let elsewhere = Upstream::start().await;
            let upstream = Upstream::start().await;
            upstream.push(
                Answer::new(status)
                    .header("location", &format!("{}/threads/t/runs", elsewhere.url())),
            );
            let gateway = spawn_gateway(&upstream.url(), &["--upstream-api-key", "key"]).await;
            let error = call.on(&gateway).await.expect_err("a redirect");
            assert_eq!(
                seen(&error),
                (Code::Internal, "UNEXPECTED_STATUS".to_owned())
            );
            assert!(error.message().contains(&status.to_string()), "{error}");
            gateway.drain().await;
            assert_eq!((upstream.requests().len(), elsewhere.accepted()), (1, 0));
        }
    }
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_not_read_to_its_end() {
    const WHOLE: usize = 64;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", WHOLE * MIB);
    let error = "HTTP/1.1 500 Internal Server Error\r\n\r\n";
    for (name, answer, reason) in [
        ("announced", Answer::raw(head), "UNUSABLE_ANSWER"),
        ("chunked", Answer::new(200).chunked(), "UNUSABLE_ANSWER"),
        ("an error", Answer::raw(error), "SERVER_ERROR"),
    ] {
        let (say, said) = mpsc::channel(1);
        let upstream = Upstream::start().await;
        upstream.push(answer.step(Step::Stream(said)));
        let gateway = spawn_gateway(&upstream.url(), &["--max-answer-bytes", "1048576"]).await;
        let speaking = tokio::spawn(async move {
            let chunk = Bytes::from(vec![b' '; MIB]);
            let mut taken = 0;
            while taken < WHOLE && say.send(chunk.clone()).await.is_ok() {
                taken += 1;
            }
            taken
        });
        let status = Call::get_run().on(&gateway).await.expect_err(name);
        assert_eq!(
            seen(&status),
            (Code::Internal, reason.to_owned()),
            "{name}: {status}"
        );
        // The connection has no other use: the rest of the answer stands in it.
        assert!(upstream.closed(0).await.by_client);
        // What the two sockets between hold is some MiB.
        let taken = speaking.await.expect("the number of MiB that went out");
        assert!(
            taken < WHOLE / 2,
            "{name}: {taken} of {WHOLE} MiB were taken"
        );
        gateway.drain().await;
    }
}
