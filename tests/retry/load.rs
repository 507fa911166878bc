//! Many calls at once against an upstream with random faults: each ends as the rules say, and
//! nothing is left behind.
//!
//! `RUNS_FAULT_CALLS` and `RUNS_FAULT_SEED` choose how many and which.

use std::{
    collections::HashMap,
    env,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use crate::{
    call::{Call, Ended},
    support::{
        program::Running,
        upstream::{Answer, Recorded, Step, Upstream},
    },
};

const CONCURRENCY: usize = 256;
const CALLS: [Call; 5] = [
    Call::Get,
    Call::Cancel,
    Call::Modify,
    Call::Create,
    Call::StreamCreate,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Late,
    Status(u16),
    Cut,
    CutBody,
}

/// What the upstream does to an attempt.
fn fault(seed: u64, call: usize, attempt: usize) -> Fault {
    let mut hasher = DefaultHasher::new();
    (seed, call, attempt).hash(&mut hasher);
    match hasher.finish() % 20 {
        0 => Fault::Status(503),
        1 => Fault::Status(500),
        2 | 3 => Fault::Status(429),
        4 => Fault::Status(400),
        5 | 6 => Fault::Cut,
        7 | 8 => Fault::CutBody,
        9 => Fault::Late,
        _ => Fault::None,
    }
}

/// How a call has to end, and after how many requests.
fn expected(seed: u64, number: usize) -> (&'static str, usize) {
    let once = Call::ONCE.contains(&CALLS[number % CALLS.len()]);
    let attempts = (0..3).map(|attempt| (attempt + 1, fault(seed, number, attempt)));
    let retried = |fault| match fault {
        Fault::None | Fault::Late | Fault::Status(400) => false,
        Fault::Status(429) => true,
        _ => !once,
    };
    let (requests, last) = attempts
        .clone()
        .find(|(_, fault)| !retried(*fault))
        .or(attempts.clone().next_back())
        .expect("three attempts");
    let ended = match last {
        Fault::None | Fault::Late => "Ok",
        Fault::Status(400) => "InvalidArgument INVALID_REQUEST",
        Fault::Status(429) => "ResourceExhausted RATE_LIMIT_EXCEEDED",
        Fault::Status(500) => "Internal SERVER_ERROR",
        _ if once => "Unknown OUTCOME_UNKNOWN",
        _ => "Unavailable UPSTREAM_UNAVAILABLE",
    };
    (ended, requests)
}

fn answer(seed: u64, attempts: &Mutex<HashMap<usize, usize>>, request: &Recorded) -> Answer {
    let thread = request.target.split('/').nth(2).expect("a thread");
    let number = thread
        .trim_start_matches("thread_")
        .parse()
        .expect("a number");
    let attempt = {
        let mut attempts = attempts.lock().expect("never held over a panic");
        let attempt = attempts.entry(number).or_default();
        *attempt += 1;
        *attempt - 1
    };
    let run = format!(
        r#"{{"id":"run_{number}","object":"thread.run","thread_id":"{thread}","status":"completed"}}"#
    );
    match fault(seed, number, attempt) {
        Fault::None => Answer::json(200, run),
        Fault::Late => Answer::new(200)
            .chunked()
            .step(Step::Pause(Duration::from_millis(3)))
            .bytes(run),
        Fault::Status(status) => Answer::json(status, r#"{"error":{"message":"no"}}"#),
        Fault::Cut => Answer::cut_before_answer(),
        Fault::CutBody => Answer::new(200)
            .chunked()
            .bytes(run[..20].to_owned())
            .close(),
    }
}

async fn run(channel: &Channel, seed: u64, numbers: std::ops::Range<usize>) {
    let mut running = JoinSet::new();
    let check = |(number, ended, id): (usize, Ended, String)| {
        let call = CALLS[number % CALLS.len()];
        assert_eq!(
            ended.to_string(),
            expected(seed, number).0,
            "{call:?} number {number} of seed {seed}"
        );
        assert!(
            id.is_empty() || id == format!("run_{number}"),
            "{call:?} number {number} got {id}"
        );
    };
    for number in numbers {
        if running.len() == CONCURRENCY {
            check(
                running
                    .join_next()
                    .await
                    .expect("some are running")
                    .expect("no panic"),
            );
        }
        let channel = channel.clone();
        running.spawn(async move {
            let answer = CALLS[number % CALLS.len()]
                .answer(channel, &format!("thread_{number}"), &[], None)
                .await;
            let id = answer.as_ref().cloned().unwrap_or_default();
            (number, Ended::from(answer), id)
        });
    }
    running.join_all().await.into_iter().for_each(check);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_ends_as_it_must_and_nothing_is_left_behind() {
    let number = |name| {
        env::var(name)
            .ok()
            .map(|text| text.parse().expect("a number"))
    };
    let calls = number("RUNS_FAULT_CALLS").unwrap_or(3000);
    let seed = number("RUNS_FAULT_SEED").unwrap_or(1) as u64;
    let attempts = Arc::new(Mutex::default());
    let counted = Arc::clone(&attempts);
    let upstream = Upstream::answering(move |request| answer(seed, &counted, request)).await;
    let retries = [
        "--retry-pause",
        "1ms",
        "--max-retry-pause",
        "5ms",
        "--retry-budget",
        "1000000",
    ];
    let program = Running::start(
        &[
            &["--log", "error", "--upstream-url", &upstream.url()][..],
            &retries,
        ]
        .concat(),
    )
    .await;
    let channel = program.connect();
    let before = program.files();

    run(&channel, seed, 0..4 * CONCURRENCY).await;
    let warm = program.memory();
    run(&channel, seed, 4 * CONCURRENCY..4 * CONCURRENCY + calls).await;

    for (number, attempts) in attempts.lock().expect("never held over a panic").iter() {
        assert_eq!(
            *attempts,
            expected(seed, *number).1,
            "requests of number {number} of seed {seed}"
        );
    }
    // Each open file more than at first is the caller's connection, or a kept one that the upstream
    // knows, too.
    let limit = Instant::now() + Duration::from_secs(10);
    while program.files() > before + 1 + upstream.open() && Instant::now() < limit {
        sleep(Duration::from_millis(20)).await;
    }
    assert!(
        program.files() <= before + 1 + upstream.open(),
        "{} files, {before} before, {} kept",
        program.files(),
        upstream.open()
    );
    assert!(upstream.open() <= 2 * CONCURRENCY);
    let grown = program.memory().saturating_sub(warm);
    assert!(
        grown < 16 << 10,
        "{grown} KiB more than the {warm} KiB after warm-up"
    );
}
