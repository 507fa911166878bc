//! A full descriptor table, which is a process's own: the server runs in a child with a small one.

#![cfg(target_os = "linux")]

use std::{env, fs, io::Read, process::Stdio};

use runs_gateway::server::Limits;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpStream,
    process::{ChildStdout, Command},
    time::Instant,
};
use tonic::Code;

use crate::harness::{Client, Gateway, millis, soon};

const CHILD: &str = "RUNS_GATEWAY_TEST_CHILD";

#[tokio::test]
async fn a_full_descriptor_table_neither_spins_nor_ends_the_server() {
    if env::var_os(CHILD).is_some() {
        return serve_until_stdin_closes().await;
    }
    let mut child = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 32 && exec \"$0\" --exact --nocapture \"$1\"",
        ])
        .arg(env::current_exe().unwrap())
        .arg("descriptors::a_full_descriptor_table_neither_spins_nor_ends_the_server")
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = soon(line_with(&mut lines, "listening on "))
        .await
        .split_once("listening on ")
        .unwrap()
        .1
        .to_owned();

    // More than there are descriptors for: the kernel accepts them, the server cannot.
    let mut held = Vec::new();
    for _ in 0..48 {
        held.push(TcpStream::connect(&address).await.unwrap());
    }
    soon(line_with(&mut lines, "cannot accept connections")).await;
    let (began, busy) = (Instant::now(), ticks(child.id().unwrap()));
    soon(line_with(&mut lines, "cannot accept connections")).await;
    // A second or so between the two; a hundred ticks each.
    let busy = ticks(child.id().unwrap()) - busy;
    assert!(began.elapsed() > millis(800), "once a second");
    assert!(
        busy < 30,
        "{busy} ticks of work while there was nothing to do"
    );

    drop(held);
    let mut client = Client::connect(address.parse().unwrap(), &h2::client::Builder::new()).await;
    let pending = client.call("/no.such.Service/Method", &[]).await.unwrap();
    assert_eq!(pending.code_in_head().await, Code::Unimplemented);
    drop(child.stdin.take());
    assert!(soon(child.wait()).await.unwrap().success());
}

async fn serve_until_stdin_closes() {
    tracing_subscriber::fmt().with_ansi(false).init();
    let gateway = Gateway::start(Limits {
        drain_delay: millis(0),
        drain_timeout: millis(0),
        ..Limits::default()
    })
    .await;
    println!("\nlistening on {}", gateway.address);
    _ = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await;
    gateway.shutdown.cancel();
    gateway.served.await.unwrap();
}

async fn line_with(lines: &mut Lines<BufReader<ChildStdout>>, text: &str) -> String {
    loop {
        let line = lines
            .next_line()
            .await
            .unwrap()
            .expect("the child still runs");
        if line.contains(text) {
            return line;
        }
    }
}

/// The processor time that a process has used, in hundredths of a second.
fn ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    after_name
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum()
}
