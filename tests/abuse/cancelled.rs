//! Calls that are cancelled as soon as they are made: each costs its caller a few bytes, and could
//! cost the upstream a run.

use std::{
    env,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    Attacked,
    peer::{Peer, cancel, create_run},
};

/// Upstream requests at a time.
const PLACES: usize = 18;

/// How calls are made and cancelled.
#[derive(Debug, Clone, Copy)]
struct Way {
    name: &'static str,
    calls: usize,
    /// So many calls are made together.
    together: u32,
    /// How long they live; none if they are cancelled with the same write.
    life: Option<Duration>,
    /// Attackers at a time.
    peers: usize,
}

/// Makes calls until there were enough, on a new connection when one is closed. Returns how many
/// connections that took.
async fn attack(address: SocketAddr, way: Way, left: &AtomicUsize) -> usize {
    let mut connections = 0;
    loop {
        let mut peer = Peer::connect(address).await;
        connections += 1;
        let mut next = 1;
        loop {
            if left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(way.together as usize)
                })
                .is_err()
            {
                return connections;
            }
            let streams = || (0..way.together).map(|call| next + 2 * call);
            let said = if let Some(life) = way.life {
                let made: Vec<_> = streams().flat_map(create_run).collect();
                let said = peer.say(&made).await;
                tokio::time::sleep(life).await;
                let cancelled: Vec<_> = streams().flat_map(cancel).collect();
                said.and(peer.say(&cancelled).await)
            } else {
                let all: Vec<_> = streams()
                    .flat_map(|stream| [create_run(stream), cancel(stream)])
                    .flatten()
                    .collect();
                peer.say(&all).await
            };
            next += 2 * way.together;
            if said.is_err() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_cancelled_calls_make_no_more_upstream_requests_than_there_are_places_for()
 {
    let slower =
        env::var("RUNS_ABUSE_CALLS").map_or(10_000, |text| text.parse().expect("a number"));
    let life = Some(Duration::from_millis(30));
    let ways = [
        Way {
            name: "cancelled in the same write, all together",
            calls: 100_000,
            together: 500,
            life: None,
            peers: 4,
        },
        Way {
            name: "cancelled in the same write, one by one",
            calls: slower,
            together: 1,
            life: None,
            peers: 4,
        },
        Way {
            name: "cancelled when they are under way",
            calls: slower,
            together: 50,
            life,
            peers: 4,
        },
        // Each of these would be a run.
        Way {
            name: "cancelled when they are at the upstream",
            calls: slower / 5,
            together: 4,
            life,
            peers: 8,
        },
    ];
    for way in ways {
        let places = PLACES.to_string();
        let flags = [
            "--max-upstream-requests",
            &places,
            "--max-upstream-queue",
            "100",
            "--upstream-queue-timeout",
            "1s",
        ];
        let attacked = Attacked::start(&flags).await;
        let (address, began) = (attacked.program.address, Instant::now());
        let most_in_flight = AtomicUsize::new(0);
        let attacks = async {
            let left = Arc::new(AtomicUsize::new(way.calls));
            let mut attackers = JoinSet::new();
            for _ in 0..way.peers {
                let left = Arc::clone(&left);
                attackers.spawn(async move { attack(address, way, &left).await });
            }
            let mut connections = 0;
            loop {
                tokio::select! {
                    ended = attackers.join_next() => match ended {
                        Some(ended) => connections += ended.expect("an attacker"),
                        None => return connections,
                    },
                    () = tokio::time::sleep(Duration::from_millis(5)) => {
                        most_in_flight.fetch_max(attacked.upstream.open(), Ordering::Relaxed);
                    }
                }
            }
        };
        let (connections, grown) = attacked.during(way.name, attacks).await;

        let (posts, in_flight) = (attacked.posts(), most_in_flight.into_inner());
        // The place of a cancelled create is taken for a second more.
        let seconds = usize::try_from(began.elapsed().as_secs()).expect("few") + 1;
        println!(
            "{} calls on {connections} connections: {posts} POSTs in {seconds} s, {in_flight} at a time",
            way.calls
        );
        assert!(
            posts <= PLACES * seconds,
            "{}: {posts} POSTs in {seconds} s",
            way.name
        );
        assert!(posts * 5 < way.calls, "{}: {posts} POSTs", way.name);
        // Each is a connection, and the other caller has one that is kept.
        assert!(
            in_flight <= PLACES + 1,
            "{}: {in_flight} at a time",
            way.name
        );
        assert!(grown < 64, "{}: {grown} MiB", way.name);
        if way.together == 4 {
            assert!(posts >= PLACES / 2, "{}: {posts} POSTs", way.name);
        }
    }
}
