//! What attackers make the gateway hold: whatever it is, others are served, newcomers let in, its
//! memory stays below a bound, and all is given back. A limit of the memory that it may write to
//! stands in for a container's: the program is aborted where a container's would be killed.
//!
//! `RUNS_ABUSE_SCALE` says how many times as much is done as in CI; 10 is an attack in earnest, for
//! an optimised program (`RUNS_GATEWAY_BIN`). `RUNS_ABUSE_ROWS` chooses rows by a part of their
//! names.

use std::{env, time::Duration};

use runs_gateway::v1::{WatchRunRequest, run_service_client::RunServiceClient};
use tokio::time::timeout;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    Attacked, BOUND,
    attacker::{Attacker, Call, Way},
    call_as, get_run,
    rows::{self, BOGUS, KEY, Row, rows, upstream},
    tls::Tls,
};

/// What may be held in all: a quarter of a container of 256 MiB, as the program has it by default.
const HELD: usize = 64 << 20;

/// The flags of a gateway in such a container.
pub(crate) const FLAGS: [&str; 6] = [
    "--max-held-bytes",
    "67108864",
    "--max-connections",
    "300",
    "--web-origins",
    "https://app.example",
];

/// As many connections to the upstream as are kept then: an eighth of that, by half a MiB. Some more,
/// as each of the clients that share them keeps a whole number.
const KEPT: usize = (HELD >> 22) + 8;

/// The most memory that it may ever have there, in MiB.
pub(crate) const MOST: usize = 200;

/// A value of the gateway's metrics.
async fn metric(attacked: &Attacked, name: &str) -> usize {
    let (_, text) = attacked.program.ask_admin("/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|value| value.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// How many calls of a method are open.
async fn open_calls(attacked: &Attacked, method: &str) -> usize {
    let (_, text) = attacked.program.ask_admin("/metrics").await;
    let of_method = |line: &&str| {
        line.starts_with("runs_gateway_active_calls{") && line.contains(&format!("{method}\"}}"))
    };
    let line = text.lines().find(of_method).expect("a gauge of the method");
    let value = line.split_whitespace().next_back();
    value
        .and_then(|value| value.parse().ok())
        .expect("a number")
}

async fn left(attacked: &Attacked) -> usize {
    metric(attacked, "runs_gateway_held_bytes_left ").await
}

/// A caller that was never here, on a connection of its own, and a health check.
async fn newcomer(attacked: &Attacked, what: &str) -> Duration {
    let began = std::time::Instant::now();
    let channel = attacked.connect();
    let health = HealthCheckRequest::default();
    let mut client = HealthClient::new(channel.clone());
    let asked = timeout(BOUND, client.check(health));
    asked.await.expect("an answer in time").expect("health");
    // Keys that the upstream has not accepted yet share one part: where they are the attack, a
    // newcomer is one that was here before.
    let key = if what == BOGUS { "other" } else { "newcomer" };
    call_as(&channel, &format!("Bearer {key}")).await;
    began.elapsed()
}

/// How many times as much is done as in CI.
pub(crate) fn scale() -> usize {
    env::var("RUNS_ABUSE_SCALE").map_or(1, |scale| scale.parse().expect("a number"))
}

/// Does what the table says, in this way; with `others` by the neighbours of its rows.
async fn table(way: Way, others: bool) {
    let chosen = env::var("RUNS_ABUSE_ROWS").unwrap_or_default();
    let is_chosen = |row: &Row| row.what.contains(&chosen) && (!others || row.has_neighbours());
    for row in rows().into_iter().filter(is_chosen) {
        let what = row.what;
        let tls = (way == Way::Tls).then(Tls::new);
        let attacked = Attacked::contained(tls, &FLAGS, upstream).await;
        // The attacker is one that the upstream knows.
        call_as(&attacked.connect(), KEY).await;
        let ((attackers, waited), grown) = attacked
            .during(what, async {
                let count = row.count * scale();
                let attackers = row.attack(attacked.destination(way), others, count).await;
                let mut longest = Duration::ZERO;
                // All that comes has come, and what has to give way does so.
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    longest = longest.max(newcomer(&attacked, what).await);
                }
                (attackers, longest)
            })
            .await;
        let most = attacked.program.most_memory() >> 10;
        println!(
            "{what}: newcomers {waited:?} at most; {most} MiB in all, {} bytes left",
            left(&attacked).await
        );
        assert!(waited < BOUND, "{what}: {waited:?}");
        assert!(grown < 100, "{what}: {grown} MiB");
        assert!(most < MOST, "{what}: {most} MiB");
        drop(attackers);
        let given_back = timeout(Duration::from_secs(10), async {
            while left(&attacked).await < HELD || attacked.upstream.open() > KEPT {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let given_back = given_back.await.is_ok();
        let (left, kept) = (left(&attacked).await, attacked.upstream.open());
        assert!(
            given_back,
            "{what}: {left} of {HELD} bytes are left, {kept} connections of {KEPT} kept"
        );
        get_run(&attacked.connect()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_held_for_an_attacker_is_bounded_and_given_back() {
    table(Way::Grpc, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_in_other_services() {
    table(Way::Grpc, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_by_tls() {
    table(Way::Tls, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_by_grpc_web() {
    table(Way::Web, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_by_http1() {
    table(Way::WebHttp1, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_end_at_their_deadline_and_give_back_their_places() {
    let attacked = Attacked::before(&["--max-calls", "30"], upstream).await;
    call_as(&attacked.connect(), KEY).await;
    // Alone it may have 20 at a time.
    for _ in 0..3 {
        let destination = attacked.destination(Way::Grpc);
        let mut attacker = Attacker::connect(destination).await.expect("a connection");
        for _ in 0..20 {
            let call = Call {
                timeout: Some("1S"),
                ..rows::get_run("run_250")
            };
            assert!(attacker.call(call).await);
        }
        attacker.settle().await;
        let over = timeout(Duration::from_secs(10), async {
            while open_calls(&attacked, "GetRun").await > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        over.await.expect("they end at their deadline");
        // What is left of each is a piece, as long as the connection lasts.
        drop(attacker);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_of_a_large_run_takes_little() {
    let attacked = Attacked::before(&[], upstream).await;
    let mut client = RunServiceClient::new(attacked.connect());
    let mut watches = Vec::new();
    let mut before = (0, 0);
    for number in 0..250 {
        // What is taken once, for all, is there after some.
        if number == 50 {
            before = (attacked.program.memory(), left(&attacked).await);
        }
        let request = WatchRunRequest {
            thread_id: "thread_1".to_owned(),
            run_id: "run_250".to_owned(),
            ..WatchRunRequest::default()
        };
        let mut request = tonic::Request::new(request);
        let credential = "Bearer other".parse().expect("a value");
        request.metadata_mut().insert("authorization", credential);
        let mut events = client
            .watch_run(request)
            .await
            .expect("a watch")
            .into_inner();
        let first = events.message().await.expect("an event");
        assert!(first.is_some());
        watches.push(events);
    }
    let each = attacked.program.memory().saturating_sub(before.0) / 200;
    let counted = (before.1 - left(&attacked).await) / (200 << 10);
    println!("a watch of a run of 250 kB takes {each} KiB and is counted as {counted}");
    assert!(each < 16, "{each} KiB");
    // What a stream may come to take by itself.
    assert!(counted <= 48, "{counted} KiB");
}
