//! The table of faults over HTTP/2: what a reset or a GOAWAY says about a request decides whether
//! it may be sent again.

use crate::{
    call::Call,
    faults::{QUICK, RUN},
    support::{
        gateway::{Gateway, spawn_retrying_gateway},
        upstream_h2::{
            CANCEL, ENHANCE_YOUR_CALM, INTERNAL_ERROR, NO_ERROR, REFUSED_STREAM, Say, UpstreamH2,
        },
    },
};

const UNKNOWN: &str = "Unknown OUTCOME_UNKNOWN";
const UNUSABLE: (&str, usize) = ("Internal UNUSABLE_ANSWER", 1);
const WELL: [Say; 2] = [Say::Head(200), Say::Rest(RUN)];

/// What the upstream does to the first request, how a repeatable call and a create end, and how
/// many requests each makes.
type Row = (&'static [Say], (&'static str, usize), (&'static str, usize));

const ROWS: [Row; 23] = [
    (&[Say::Reset(REFUSED_STREAM)], ("Ok", 2), ("Ok", 2)),
    (&[Say::Reset(NO_ERROR)], ("Ok", 2), (UNKNOWN, 1)),
    (&[Say::Reset(INTERNAL_ERROR)], ("Ok", 2), (UNKNOWN, 1)),
    (&[Say::Reset(CANCEL)], ("Ok", 2), (UNKNOWN, 1)),
    (&[Say::Reset(ENHANCE_YOUR_CALM)], ("Ok", 2), (UNKNOWN, 1)),
    (&[Say::GoAwayBefore(NO_ERROR)], ("Ok", 2), ("Ok", 2)),
    (
        &[Say::GoAwayBefore(NO_ERROR), Say::Close],
        ("Ok", 2),
        ("Ok", 2),
    ),
    (
        &[
            Say::GoAway(NO_ERROR),
            Say::Head(200),
            Say::Rest(RUN),
            Say::Close,
        ],
        ("Ok", 1),
        ("Ok", 1),
    ),
    (
        &[Say::GoAway(NO_ERROR), Say::Close],
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        &[Say::GoAway(NO_ERROR), Say::Reset(REFUSED_STREAM)],
        ("Ok", 2),
        ("Ok", 2),
    ),
    // By the letter it was not processed. Of a peer that fails, the letter is not enough.
    (
        &[Say::GoAwayBefore(INTERNAL_ERROR), Say::Close],
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (
        &[Say::GoAwayBefore(ENHANCE_YOUR_CALM), Say::Close],
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    (&[Say::Close], ("Ok", 2), (UNKNOWN, 1)),
    (&[Say::Head(200), Say::Close], ("Ok", 2), (UNKNOWN, 1)),
    // It answers no ping.
    (&[Say::Nothing], ("Ok", 2), (UNKNOWN, 1)),
    (&[Say::Head(200), Say::Nothing], ("Ok", 2), (UNKNOWN, 1)),
    (
        &[Say::Head(200), Say::Part("{"), Say::Reset(CANCEL)],
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    // Words that mean "not processed", of a request that was answered already.
    (
        &[Say::Head(200), Say::Part("{"), Say::Reset(REFUSED_STREAM)],
        ("Ok", 2),
        (UNKNOWN, 1),
    ),
    // The HTTP library takes these for the end of the body. What came by then is not a run.
    (
        &[Say::Head(200), Say::Part("{"), Say::GoAwayBefore(NO_ERROR)],
        UNUSABLE,
        UNUSABLE,
    ),
    (
        &[Say::Head(200), Say::Part("{"), Say::Reset(NO_ERROR)],
        UNUSABLE,
        UNUSABLE,
    ),
    (&[Say::Head(503), Say::Rest("")], ("Ok", 2), (UNKNOWN, 1)),
    (&[Say::Head(429), Say::Rest("")], ("Ok", 2), ("Ok", 2)),
    (&[Say::Head(429), Say::Reset(CANCEL)], ("Ok", 2), ("Ok", 2)),
];

async fn gateway(upstream: &UpstreamH2) -> Gateway {
    let pings = [
        "--upstream-ping-interval",
        "200ms",
        "--upstream-ping-timeout",
        "300ms",
    ];
    spawn_retrying_gateway(
        &upstream.url(),
        &[&QUICK[..], &["--upstream-http2", "prior-knowledge"], &pings].concat(),
    )
    .await
}

#[tokio::test]
async fn one_fault_ends_in_the_right_answer_or_the_right_error() {
    for (fault, repeatable, once) in ROWS {
        let calls = Call::REPEATABLE.map(|call| (call, repeatable)).into_iter();
        let creates = [(Call::Create, once), (Call::CreateThreadAndRun, once)];
        for (call, (ended, requests)) in calls.chain(creates) {
            let upstream = UpstreamH2::start(move |number| {
                if number == 0 {
                    fault.to_vec()
                } else {
                    WELL.to_vec()
                }
            })
            .await;
            let gateway = gateway(&upstream).await;
            let came = call.on(gateway.channel()).await;
            assert_eq!(
                came.to_string(),
                ended,
                "{call:?}: the upstream does {fault:?}"
            );
            assert_eq!(
                upstream.requests(),
                requests,
                "{call:?}: the upstream does {fault:?}"
            );
            gateway.drain().await;
        }
    }
}

#[tokio::test]
async fn of_all_kinds_of_resets_and_goaways_only_those_that_say_so_mean_that_nothing_was_done() {
    // Up to HTTP_1_1_REQUIRED, and one that there is not.
    for code in (0..=13).chain([0xbad]) {
        let safe = |kinds: &[u32]| {
            if kinds.contains(&code) {
                ("Ok", 2)
            } else {
                (UNKNOWN, 1)
            }
        };
        let faults = [
            (vec![Say::Reset(code)], safe(&[REFUSED_STREAM])),
            (
                vec![Say::GoAwayBefore(code), Say::Close],
                safe(&[NO_ERROR, REFUSED_STREAM]),
            ),
            (vec![Say::GoAway(code), Say::Close], safe(&[])),
        ];
        for (fault, once) in faults {
            for (call, (ended, requests)) in [(Call::Get, ("Ok", 2)), (Call::Create, once)] {
                let said = fault.clone();
                let upstream = UpstreamH2::start(move |number| {
                    if number == 0 {
                        said.clone()
                    } else {
                        WELL.to_vec()
                    }
                })
                .await;
                let gateway = gateway(&upstream).await;
                let came = call.on(gateway.channel()).await;
                assert_eq!(
                    came.to_string(),
                    ended,
                    "{call:?}: the upstream does {fault:?}"
                );
                assert_eq!(
                    upstream.requests(),
                    requests,
                    "{call:?}: the upstream does {fault:?}"
                );
                gateway.drain().await;
            }
        }
    }
}

#[tokio::test]
async fn what_is_always_refused_is_safe_to_repeat() {
    for call in [Call::Get, Call::Create, Call::Submit] {
        let upstream = UpstreamH2::start(|_| vec![Say::Reset(REFUSED_STREAM)]).await;
        let gateway = gateway(&upstream).await;
        assert_eq!(
            call.on(gateway.channel()).await.to_string(),
            "Unavailable UPSTREAM_UNAVAILABLE"
        );
        assert_eq!(upstream.requests(), 3);
        gateway.drain().await;
    }
}

#[tokio::test]
async fn more_requests_than_a_connection_may_have_go_to_another_connection() {
    for (limit, connections) in [("8", 1), ("4", 2), ("1", 8)] {
        let upstream =
            UpstreamH2::start(|number| if number < 8 { vec![] } else { vec![Say::Close] }).await;
        let flags = [
            "--upstream-http2",
            "prior-knowledge",
            "--max-requests-per-upstream-connection",
            limit,
        ];
        let gateway = spawn_retrying_gateway(
            &upstream.url(),
            &[&QUICK[..], &flags, &["--max-retries", "0"]].concat(),
        )
        .await;
        let calls: Vec<_> = (0..8)
            .map(|_| tokio::spawn(Call::Get.on(gateway.channel())))
            .collect();
        upstream.wait_for_requests(8).await;
        assert_eq!(upstream.connections(), connections, "with {limit} on each");
        calls.iter().for_each(tokio::task::JoinHandle::abort);
        gateway.drain().await;
    }
}
