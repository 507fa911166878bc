//! The program as a process: what whoever starts it has of it, and what it takes, which can be told
//! from what the test takes.
//!
//! `RUNS_GATEWAY_BIN` is another program than the one that was built with the tests, such as an
//! optimised one.
//!
//! Must hold: it is killed if it is dropped before its end, and what it writes is read, since a
//! full pipe would stop it.

use std::{
    env, fs,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use assert_cmd::Command;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStderr},
    task::JoinHandle,
};
use tonic::transport::{Channel, Endpoint};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_runs-gateway");

/// Starts a program with as many files as the machine gives it, and with no more memory to write to
/// than the variable says, in KiB: one that needs more is aborted.
const START: &str = r#"ulimit -n $(ulimit -Hn); ulimit -d ${MAX_DATA:-unlimited}; exec "$0" "$@""#;

/// The program, serving on free ports.
pub(crate) struct Running {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
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
        Self::start_as("serve", flags, environment).await
    }

    /// The same by this command.
    pub(crate) async fn start_as(
        command: &str,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let program = env::var("RUNS_GATEWAY_BIN").unwrap_or_else(|_| PROGRAM.to_owned());
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", START, &program])
            .args([
                command,
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--drain-delay",
                "0s",
            ])
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
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let logged = Arc::clone(&log);
        let reader = tokio::spawn(async move {
            let mut lines = stderr.lines();
            while let Some(line) = lines.next_line().await.expect("text") {
                logged.lock().expect("never held over a panic").push(line);
            }
        });
        Self {
            child,
            log,
            reader,
            address,
            admin,
            channel: connect(address),
        }
    }

    /// A connection of its own.
    pub(crate) fn connect(&self) -> Channel {
        connect(self.address)
    }

    /// What it has written to standard error since it listened.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().expect("never held over a panic").clone()
    }

    /// How many files it has open.
    pub(crate) fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("its files")
            .count()
    }

    /// Its memory, in KiB.
    pub(crate) fn memory(&self) -> usize {
        self.status("VmRSS:")
    }

    /// The most memory that it ever had, in KiB.
    pub(crate) fn most_memory(&self) -> usize {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> usize {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("its memory");
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number")
    }

    fn pid(&self) -> u32 {
        self.child.id().expect("still running")
    }

    /// The same program, with nobody who reads what it writes.
    pub(crate) async fn unread(mut self) -> Self {
        self.reader.abort();
        _ = (&mut self.reader).await;
        self.reader = tokio::spawn(async {});
        self
    }

    /// Sends a signal and waits for the end: how it ended, and all that it wrote to standard error
    /// after it listened.
    pub(crate) async fn stop(self, signal: &str) -> (ExitStatus, String) {
        self.signal(signal);
        self.ended().await
    }

    /// Waits for the end, likewise.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().await.expect("an end");
        (&mut self.reader).await.expect("a log");
        (status, self.log().join("\n"))
    }

    pub(crate) fn signal(&self, signal: &str) {
        Command::new("kill")
            .args([signal, &self.pid().to_string()])
            .assert()
            .success();
    }

    /// What the admin port answers to a GET.
    pub(crate) async fn ask_admin(&self, path: &str) -> (u16, String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let answer = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client");
        let answer = answer
            .get(format!("http://{}{path}", self.admin))
            .send()
            .await
            .expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }
}

fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .connect_lazy()
}

async fn listening(stderr: &mut BufReader<ChildStderr>, what: &str) -> SocketAddr {
    loop {
        let mut line = String::new();
        assert!(
            stderr.read_line(&mut line).await.expect("text") > 0,
            "ended before it listened"
        );
        if let Some(address) = line.strip_prefix(what) {
            break address.trim().parse().expect("an address");
        }
    }
}
