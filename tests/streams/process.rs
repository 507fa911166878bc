//! The gateway as a process of its own, for what only a process has: memory.

use std::{fs, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

use crate::script::soon;

/// A gateway that runs until it is dropped.
pub(crate) struct Process {
    pub(crate) url: String,
    child: Child,
    /// Read no further; kept open, so that the gateway can write.
    _log: Lines<BufReader<ChildStderr>>,
}

pub(crate) async fn start(upstream: &str) -> Process {
    let mut child = Command::new(env!("CARGO_BIN_EXE_runs-gateway"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--log",
            "off",
            "--upstream-url",
            upstream,
        ])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("a process");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
    let line = soon(log.next_line())
        .await
        .expect("a line")
        .expect("a line before the end");
    let address = line
        .strip_prefix("grpc listening on ")
        .expect("the address");
    Process {
        url: format!("http://{address}"),
        child,
        _log: log,
    }
}

impl Process {
    /// Bytes of memory that it really has (`VmRSS`).
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!(
            "/proc/{}/status",
            self.child.id().expect("running")
        ))
        .expect("its status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        let kib: u64 = line
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number");
        kib << 10
    }
}
