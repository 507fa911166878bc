//! The program as a process: what whoever starts it has of it.
//!
//! Must hold: it is killed if it is dropped before its end, and what it writes is read, since a full pipe would stop it.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
};

use assert_cmd::Command;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStderr},
    task::JoinHandle,
};
use tonic::transport::{Channel, Endpoint};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_runs-gateway");

/// The program, serving on free ports.
pub(crate) struct Running {
    child: Child,
    log: JoinHandle<String>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) channel: Channel,
}

impl Running {
    /// Starts it and reads where it listens.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        Self::start_in(flags, &[]).await
    }

    /// The same with these variables in its environment.
    pub(crate) async fn start_in(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = tokio::process::Command::new(PROGRAM)
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--drain-delay", "0s"])
            .args(flags)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let address = listening(&mut stderr, "grpc listening on ").await;
        let admin = listening(&mut stderr, "admin listening on ").await;
        let log = tokio::spawn(async move {
            let mut log = String::new();
            stderr.read_to_string(&mut log).await.expect("text");
            log
        });
        let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
        Self { child, log, address, admin, channel }
    }

    /// The same program, with nobody who reads what it writes.
    pub(crate) async fn unread(mut self) -> Self {
        self.log.abort();
        _ = (&mut self.log).await;
        self.log = tokio::spawn(async { String::new() });
        self
    }

    /// Sends a signal and waits for the end: how it ended, and all that it wrote to standard error after it listened.
    pub(crate) async fn stop(self, signal: &str) -> (ExitStatus, String) {
        self.signal(signal);
        self.ended().await
    }

    /// Waits for the end, likewise.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        (self.child.wait().await.expect("an end"), self.log.await.expect("a log"))
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("still running").to_string();
        Command::new("kill").args([signal, &pid]).assert().success();
    }

    /// What the admin port answers to a GET.
    pub(crate) async fn ask_admin(&self, path: &str) -> (u16, String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let answer = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = answer.get(format!("http://{}{path}", self.admin)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }
}

async fn listening(stderr: &mut BufReader<ChildStderr>, what: &str) -> SocketAddr {
    loop {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).await.expect("text") > 0, "ended before it listened");
        if let Some(address) = line.strip_prefix(what) {
            break address.trim().parse().expect("an address");
        }
    }
}
