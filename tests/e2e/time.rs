//! Answers that do not come: too late, never, or over a connection that is lost. What the caller is
//! told depends on what may have happened.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    call::{ALL, Call},
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::{Answer, Upstream, agreed},
    },
};

/// Sooner than any time limit that is not the one under test.
const SOON: Duration = Duration::from_secs(4);

const TIMEOUT: (Code, &str) = (Code::DeadlineExceeded, "UPSTREAM_TIMEOUT");
const DEADLINE: (Code, &str) = (Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
const UNAVAILABLE: (Code, &str) = (Code::Unavailable, "UPSTREAM_UNAVAILABLE");
const DRAINING: (Code, &str) = (Code::Unavailable, "GATEWAY_DRAINING");
const UNKNOWN: (Code, &str) = (Code::Unknown, "OUTCOME_UNKNOWN");

/// What the caller is told. Whoever is told that the outcome is unknown is told not to repeat the
/// call, too.
fn assert_told(status: &Status, (code, reason): (Code, &str), what: &str) {
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("{what}: no ErrorInfo in {status:?}"));
    assert_eq!(
        (status.code(), &*info.reason),
        (code, reason),
        "{what}: {status}"
    );
    let pushback = status
        .metadata()
        .get("grpc-retry-pushback-ms")
        .map(|value| value.to_str().expect("text"));
    assert_eq!(pushback, (code == Code::Unknown).then_some("-1"), "{what}");
}

/// Calls with a deadline of a minute: tonic's client ends a call by itself when its deadline
/// passes, so the gateway's own limit has to be what cuts it.
async fn with_deadline(gateway: &Gateway, call: &Call) -> Status {
    call.with(gateway, &[("grpc-timeout", "60S")])
        .await
        .expect_err("no answer")
}

#[tokio::test]
async fn an_upstream_that_is_silent_is_left_at_the_deadline_or_the_answer_timeout() {
    // What it says before it falls silent.
    let silences = [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",
    ];
    let limits = [
        (["--max-deadline", "300ms"], [DEADLINE, DEADLINE]),
        (["--answer-timeout", "300ms"], [TIMEOUT, UNKNOWN]),
    ];
    for silence in silences {
        for (flags, expected) in limits {
            for (call, expected) in [Call::get_run(), Call::create_run()]
                .into_iter()
                .zip(expected)
            {
                let what = format!("{silence:?}, {flags:?}, {}", call.rpc());
                let upstream = Upstream::start().await;
                upstream.push(Answer::raw(silence).wait(&Arc::default()));
                let gateway = spawn_gateway(&upstream.url(), &flags).await;
                let began = Instant::now();
                assert_told(&with_deadline(&gateway, &call).await, expected, &what);
                assert!(began.elapsed() < SOON, "{what} took {:?}", began.elapsed());
                // The upstream is not kept at work for nobody.
                assert!(upstream.closed(0).await.by_client, "{what}");
                assert_eq!(upstream.requests().len(), 1, "{what}");
                gateway.drain().await;
            }
        }
    }
}

#[tokio::test]
async fn what_was_never_sent_is_unavailable_for_all() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    drop(listener);
    for url in [
        format!("http://{address}"),
        format!("https://{address}"),
        "http://no-such-host.invalid".to_owned(),
    ] {
        let gateway = spawn_gateway(&url, &["--upstream-api-key", "key"]).await;
        for call in Call::all() {
            let status = call.on(&gateway).await.expect_err("nobody is there");
            assert_told(&status, UNAVAILABLE, &url);
            // Where the upstream is, is the gateway's business.
            for secret in [address.port().to_string(), "no-such-host".to_owned()] {
                assert!(!format!("{status:?}").contains(&secret), "{status:?}");
            }
        }
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_lost_connection_is_unavailable_for_reads_and_unknown_for_writes() {
    for (call, (_, target, _)) in Call::all().zip(ALL) {
        let good = || agreed(target);
        let expected = if call.is_repeatable() {
            UNAVAILABLE
        } else {
            UNKNOWN
        };
        let upstream = Upstream::start().await;
        let gateway = spawn_gateway(&upstream.url(), &[]).await;
        // On a new connection.
        upstream.push(Answer::cut_before_answer());
        assert_told(
            &call.on(&gateway).await.expect_err("a reset"),
            expected,
            call.rpc(),
        );
        assert_eq!(upstream.requests().len(), 1);
        // On a kept one, which turns out to be stale when the request is on its way.
        for stale in [
            good().then_close_on_next_request(),
            good().then_cut_on_next_request(),
        ] {
            upstream.push(stale);
            call.on(&gateway).await.expect("an answer");
            let (asked, accepted) = (upstream.requests().len(), upstream.accepted());
            assert_told(
                &call.on(&gateway).await.expect_err("a stale connection"),
                expected,
                call.rpc(),
            );
            assert_eq!(
                (upstream.requests().len(), upstream.accepted()),
                (asked, accepted),
                "not sent again"
            );
        }
        // A kept one that was closed in time is not used: there is nothing to be told.
        upstream.push(good().then_close());
        call.on(&gateway).await.expect("an answer");
        upstream.closed(upstream.accepted() - 1).await;
        upstream.push(good());
        call.on(&gateway)
            .await
            .expect("an answer over a new connection");
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_caller_that_leaves_takes_the_upstream_request_with_it() {
    for call in Call::all() {
        let upstream = Upstream::start().await;
        upstream.push(Answer::never());
        let gateway = spawn_gateway(&upstream.url(), &[]).await;
        tokio::select! {
            answer = call.on(&gateway) => panic!("{answer:?}"),
            _ = upstream.wait_for_requests(1) => {}
        }
        assert!(upstream.closed(0).await.by_client);
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_call_that_a_drain_cuts_says_whether_to_call_again() {
    for call in Call::all() {
        let expected = if call.is_repeatable() {
            DRAINING
        } else {
            UNKNOWN
        };
        let upstream = Upstream::start().await;
        upstream.push(Answer::never());
        let gateway = spawn_gateway(&upstream.url(), &["--drain-timeout", "0s"]).await;
        let (rpc, channel) = (call.rpc().to_owned(), gateway.channel());
        let cut = tokio::spawn(async move { call.on(channel).await });
        upstream.wait_for_requests(1).await;
        gateway.drain().await;
        let status = cut.await.expect("no panic").expect_err("a cut");
        assert_told(&status, expected, &rpc);
    }
}
