//! Connections that do nothing.

use std::time::Duration;

use tokio::{process::Command, task::JoinSet};

use crate::{Attacked, peer::Peer};

const CONNECTIONS: usize = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_connections_are_borne_and_leave_nothing_behind() {
    // Both ends need a file for each. What the system does not give is done without.
    let process = std::process::id().to_string();
    let _ = Command::new("prlimit")
        .args(["--pid", &process, "--nofile=12000"])
        .status()
        .await;
    let limits = std::fs::read_to_string("/proc/self/limits").expect("limits");
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .expect("the limit of files");
    let files: usize = files
        .split_whitespace()
        .next()
        .expect("a number")
        .parse()
        .unwrap_or(usize::MAX);
    let connections = CONNECTIONS.min(files.saturating_sub(200));

    let attacked = Attacked::start(&["--max-connections", "9000"]).await;
    let (address, before) = (attacked.program.address, attacked.program.files());
    let files = || attacked.program.files();
    let attack = async {
        let mut connecting: JoinSet<_> = (0..50)
            .map(|_| async move {
                let mut peers = Vec::new();
                for _ in 0..connections / 50 {
                    peers.push(Peer::connect(address).await);
                }
                peers
            })
            .collect();
        let mut peers = Vec::new();
        while let Some(connected) = connecting.join_next().await {
            peers.extend(connected.expect("no panic"));
        }
        until(|| files() >= before + peers.len()).await;
        // All are there together, for a while.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(files() >= before + peers.len());
        peers.len()
    };
    let (connected, grown) = attacked.during("idle connections", attack).await;
    println!("{connected} connections were open");
    assert!(grown < 300, "{grown} MiB for {connected} connections");
    // And nothing is left of them: what is left are others' connections, and the upstream's.
    until(|| files() <= before + 10).await;
}

async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("should have happened by now");
}
