//! The gateway as a process of its own, so that what it holds can be told from what the test holds.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use tonic::transport::{Channel, Endpoint};

/// A gateway that serves until it is dropped.
pub(crate) struct Program {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Program {
    /// A gateway to the upstream at `url`, with as many files as the machine gives it.
    pub(crate) fn start(url: &str, flags: &[&str]) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_runs-gateway")])
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--upstream-url", url])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let line = lines.next().expect("a line").expect("text");
        let address = line.strip_prefix("grpc listening on ").expect("where it listens").parse().expect("an address");
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let logged = Arc::clone(&log);
        // Read on, so that it is never held up.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("gateway: {line}");
                logged.lock().expect("never held over a panic").push(line);
            }
        });
        Self { child, address, log }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection.
    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).expect("a URL").connect_lazy()
    }

    /// What it has logged as an error, and what a panic has said.
    pub(crate) fn log(&self) -> Vec<String> {
        let log = self.log.lock().expect("never held over a panic");
        // Where it listens is no error.
        log.iter().filter(|line| !line.starts_with("admin listening on ")).cloned().collect()
    }

    /// How many files it has open.
    pub(crate) fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("its files").count()
    }

    /// Its memory, in KiB.
    pub(crate) fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
