//! When retries are made, when they are not, and what goes with them.

use std::time::{Duration, Instant};

use crate::{
    call::Call,
    faults::{QUICK, RUN},
    support::{
        gateway::spawn_retrying_gateway,
        upstream::{Answer, Recorded, Upstream},
    },
};

const UNAVAILABLE: &str = "Unavailable UPSTREAM_UNAVAILABLE";

async fn down() -> Upstream {
    Upstream::answering(|_| Answer::json(503, "{}")).await
}

#[tokio::test]
async fn an_upstream_that_stays_down_is_asked_as_often_as_the_flags_say() {
    for (retries, requests) in [("0", 1), ("1", 2), ("2", 3), ("5", 6)] {
        let upstream = down().await;
        let gateway = spawn_retrying_gateway(
            &upstream.url(),
            &[&QUICK[..], &["--max-retries", retries]].concat(),
        )
        .await;
        assert_eq!(
            Call::Get.on(gateway.channel()).await.to_string(),
            UNAVAILABLE
        );
        assert_eq!(upstream.requests().len(), requests);
        gateway.drain().await;
    }
}

#[tokio::test]
async fn pauses_double_and_an_upstream_that_names_a_time_is_not_asked_sooner() {
    let pauses = |requests: &[Recorded]| -> Vec<_> {
        requests
            .windows(2)
            .map(|pair| pair[1].at - pair[0].at)
            .collect()
    };
    let ms = Duration::from_millis;

    let upstream = down().await;
    let gateway = spawn_retrying_gateway(
        &upstream.url(),
        &["--retry-pause", "20ms", "--max-retry-pause", "30ms"],
    )
    .await;
    Call::Get.on(gateway.channel()).await;
    let came = pauses(&upstream.requests());
    assert!(came[0] >= ms(15) && came[1] >= ms(22), "{came:?}");
    gateway.drain().await;

    let asks = [("retry-after-ms", "50"), ("retry-after", "0.05")];
    for (name, value) in asks {
        let upstream =
            Upstream::answering(move |_| Answer::json(429, "{}").header(name, value)).await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
        Call::Create.on(gateway.channel()).await;
        let came = pauses(&upstream.requests());
        assert!(
            came.len() == 2 && came.iter().all(|pause| *pause >= ms(50)),
            "{name}: {came:?}"
        );
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_wait_that_would_outlast_the_deadline_or_the_window_is_not_begun() {
    let deadline = Some(Duration::from_secs(9));
    let cases: [(&[&str], _, _); 4] = [
        (&[], deadline, "10"),
        (&["--retry-window", "9s"], None, "10"),
        // More than a clock can be ahead.
        (&[], deadline, "10000000000000000000"),
        (&["--retry-window", "9s"], None, "10000000000000000000"),
    ];
    for (flags, deadline, asked) in cases {
        let upstream =
            Upstream::answering(move |_| Answer::json(503, "{}").header("retry-after", asked))
                .await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &[&QUICK[..], flags].concat()).await;
        let began = Instant::now();
        // Not DEADLINE_EXCEEDED: the caller learns what happened, and at once.
        assert_eq!(
            Call::Get
                .with(gateway.channel(), &[], deadline)
                .await
                .to_string(),
            UNAVAILABLE
        );
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(upstream.requests().len(), 1);
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_call_that_is_a_retry_already_is_not_retried() {
    let cases = [
        ("grpc-previous-rpc-attempts", "1", 1),
        ("grpc-previous-rpc-attempts", "0", 3),
        ("x-envoy-attempt-count", "2", 1),
        ("x-envoy-attempt-count", "1", 3),
        ("x-envoy-attempt-count", "nonsense", 3),
    ];
    for (name, value, requests) in cases {
        let upstream = Upstream::answering(|_| Answer::json(429, "{}")).await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
        for (call, sum) in [(Call::Get, requests), (Call::Create, 2 * requests)] {
            let came = call.with(gateway.channel(), &[(name, value)], None).await;
            assert_eq!(came.to_string(), "ResourceExhausted RATE_LIMIT_EXCEEDED");
            assert_eq!(
                upstream.requests().len(),
                sum,
                "{call:?} with {name}: {value}"
            );
        }
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_budget_that_is_used_up_is_given_back_by_answers() {
    let upstream = Upstream::answering(|request| match request.header("x-client-request-id") {
        Some("well") => Answer::json(200, RUN),
        _ => Answer::json(503, "{}"),
    })
    .await;
    let flags = ["--retry-budget", "4", "--retry-budget-answers", "2"];
    let gateway = spawn_retrying_gateway(&upstream.url(), &[&QUICK[..], &flags].concat()).await;
    let failed = async || {
        let before = upstream.requests().len();
        assert_eq!(
            Call::Get.on(gateway.channel()).await.to_string(),
            UNAVAILABLE
        );
        upstream.requests().len() - before
    };
    // Four tokens: 3 are above half, 2 are not.
    assert_eq!(failed().await, 2);
    assert_eq!(failed().await, 1);
    assert_eq!(failed().await, 1);
    // Six answers give three back: 3 less 1 is half.
    for answers in [6, 2] {
        for _ in 0..answers {
            Call::Get
                .with(gateway.channel(), &[("x-client-request-id", "well")], None)
                .await;
        }
        assert_eq!(failed().await, 1);
    }
    for _ in 0..8 {
        Call::Get
            .with(gateway.channel(), &[("x-client-request-id", "well")], None)
            .await;
    }
    assert_eq!(failed().await, 2);
    gateway.drain().await;
}

#[tokio::test]
async fn a_caller_whose_own_key_is_limited_uses_up_nobodys_budget() {
    for (flags, requests) in [(&[][..], 2), (&["--upstream-api-key", "sk-own"], 1)] {
        let upstream = Upstream::answering(|_| Answer::json(429, "{}")).await;
        let flags = [
            &QUICK[..],
            &["--retry-budget", "2", "--max-retries", "1"],
            flags,
        ]
        .concat();
        let gateway = spawn_retrying_gateway(&upstream.url(), &flags).await;
        for _ in 0..5 {
            Call::Get.on(gateway.channel()).await;
        }
        let before = upstream.requests().len();
        Call::Get.on(gateway.channel()).await;
        assert_eq!(upstream.requests().len() - before, requests, "{flags:?}");
        gateway.drain().await;
    }
}

#[tokio::test]
async fn every_create_has_one_idempotency_key_for_all_its_attempts() {
    for call in Call::ONCE {
        let upstream = Upstream::answering(|_| Answer::json(429, "{}")).await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
        call.on(gateway.channel()).await;
        call.on(gateway.channel()).await;
        call.with(gateway.channel(), &[("idempotency-key", "mine")], None)
            .await;
        let requests = upstream.requests();
        let keys: Vec<_> = requests
            .iter()
            .map(|request| request.header("idempotency-key").expect("a key"))
            .collect();
        assert!(
            keys[..3].iter().all(|key| *key == keys[0])
                && keys[3..6].iter().all(|key| *key == keys[3]),
            "{keys:?}"
        );
        assert_eq!(keys[6..], ["mine"; 3]);
        assert_ne!(keys[0], keys[3]);
        let groups: Vec<_> = keys[0].split('-').map(str::len).collect();
        assert_eq!((groups, &keys[0][14..15]), (vec![8, 4, 4, 4, 12], "4"));
        gateway.drain().await;
    }
    for call in [Call::Get, Call::Cancel, Call::Modify] {
        let upstream = Upstream::answering(|_| Answer::json(200, RUN)).await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &[]).await;
        call.on(gateway.channel()).await;
        assert_eq!(upstream.requests()[0].header("idempotency-key"), None);
        gateway.drain().await;
    }
}

#[tokio::test]
async fn what_was_once_in_doubt_is_not_settled_by_a_later_refusal() {
    // The upstream asks for a retry of what it may have done, and then says that the thread is
    // busy: with that very run.
    let upstream = Upstream::start().await;
    let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
    let busy = r#"{"error":{"message":"Thread thread_1 already has an active run run_1.","type":"invalid_request_error"}}"#;
    upstream.push(Answer::json(503, "{}").header("x-should-retry", "true"));
    upstream.push(Answer::json(400, busy));
    assert_eq!(
        Call::Create.on(gateway.channel()).await.to_string(),
        "Unknown OUTCOME_UNKNOWN"
    );
    gateway.drain().await;
}
