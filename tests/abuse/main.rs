//! Callers that mean harm: whatever one sends, the gateway stays up, answers others in time, and
//! holds no more memory than it may.
//!
//! The gateway is a process of its own, and the frames are written by hand: well-behaved clients do
//! not do what must be withstood.
//!
//! `RUNS_ABUSE_CALLS` chooses how many calls are cancelled in the slower ways; the fastest one does
//! 100,000 in any case.

#[path = "../access/certificates.rs"]
mod certificates;
#[path = "../support/mod.rs"]
mod support;

mod attacker;
mod cancelled;
mod frames;
mod held;
mod idle;
mod messages;
mod peer;
mod rows;
mod tls;
mod two_callers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use attacker::{Destination, Way};
use runs_gateway::v1::{GetRunRequest, run_service_client::RunServiceClient};
use support::{
    program::Running,
    upstream::{Answer, Recorded, Upstream},
};
use tls::Tls;
use tonic::{Request, transport::Channel};

const RUN: &str =
    r#"{"id":"run_1","object":"thread.run","thread_id":"thread_1","status":"completed"}"#;

/// Within this time others are answered, in a debug build on a busy machine.
const BOUND: Duration = Duration::from_secs(5);

/// One attack at a time: what others wait for is measured.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A gateway under attack, and its upstream: GETs are answered at once, POSTs never.
struct Attacked {
    upstream: Upstream,
    program: Running,
    tls: Option<Tls>,
    posts: Arc<AtomicUsize>,
    /// Its memory before the attack, in KiB.
    memory: usize,
    /// Let go last.
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Attacked {
    async fn start(flags: &[&str]) -> Self {
        Self::before(flags, |request| {
            if request.method == "GET" {
                Answer::json(200, RUN)
            } else {
                Answer::never()
            }
        })
        .await
    }

    /// The same, in front of an upstream that answers so.
    async fn before(
        flags: &[&str],
        answer: impl Fn(&Recorded) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_in(None, flags, &[], answer).await
    }

    /// The same with the memory of a container of 256 MiB, and by TLS if there is any.
    async fn contained(
        tls: Option<Tls>,
        flags: &[&str],
        answer: impl Fn(&Recorded) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_in(tls, flags, &[("MAX_DATA", "262144")], answer).await
    }

    async fn start_in(
        tls: Option<Tls>,
        flags: &[&str],
        environment: &[(&str, &str)],
        answer: impl Fn(&Recorded) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let alone = ALONE.lock().await;
        let posts: Arc<AtomicUsize> = Arc::default();
        let counted = Arc::clone(&posts);
        let upstream = Upstream::answering(move |request| {
            counted.fetch_add(usize::from(request.method != "GET"), Ordering::Relaxed);
            answer(request)
        })
        .await;
        let url = upstream.url();
        let mut all = vec!["--log", "error", "--upstream-url", &url];
        all.extend(tls.iter().flat_map(|tls| &tls.flags).map(String::as_str));
        all.extend(flags);
        let program = Running::start_in(&all, environment).await;
        let mut attacked = Self {
            upstream,
            program,
            tls,
            posts,
            memory: 0,
            _alone: alone,
        };
        let channel = attacked.connect();
        for _ in 0..50 {
            get_run(&channel).await;
        }
        attacked.memory = attacked.program.memory();
        attacked
    }

    /// A connection of its own.
    fn connect(&self) -> Channel {
        match &self.tls {
            Some(tls) => tls.channel(self.program.address),
            None => self.program.connect(),
        }
    }

    /// Where attackers connect to, and how.
    fn destination(&self, way: Way) -> Destination<'_> {
        Destination {
            address: self.program.address,
            tls: self.tls.as_ref(),
            way,
        }
    }

    fn posts(&self) -> usize {
        self.posts.load(Ordering::Relaxed)
    }

    /// Attacks, while another caller is served. Returns what the attack gave and the most memory
    /// that the gateway took for it, in MiB.
    async fn during<T>(&self, what: &str, attack: impl Future<Output = T>) -> (T, usize) {
        let over = Arc::new(AtomicBool::new(false));
        let (channel, seen) = (self.connect(), Arc::clone(&over));
        get_run(&channel).await;
        let other = tokio::spawn(async move {
            let (mut calls, mut worst) = (0, Duration::ZERO);
            while !seen.load(Ordering::Relaxed) || calls < 20 {
                worst = worst.max(get_run(&channel).await);
                calls += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            (calls, worst)
        });
        let most = async {
            let mut most = self.memory;
            loop {
                most = most.max(self.program.memory());
                // Ends with the attack, which it is dropped with.
                if over.load(Ordering::Relaxed) {
                    return most;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let began = Instant::now();
        let attack = async {
            let done = attack.await;
            over.store(true, Ordering::Relaxed);
            done
        };
        let (done, most) = tokio::join!(attack, most);
        let (calls, worst) = other.await.expect("others are served");
        // On new connections, too.
        get_run(&self.connect()).await;
        assert_eq!(self.program.log(), [""; 0], "{what}: an error or a panic");
        let grown = (most - self.memory) >> 10;
        println!(
            "{what}: {:?}, others: {calls} calls, {worst:?} at most; {grown} MiB more at most",
            began.elapsed()
        );
        (done, grown)
    }
}

/// How long a call by somebody else takes. A credential that the upstream has accepted has a share
/// of its own.
async fn get_run(channel: &Channel) -> Duration {
    call_as(channel, "Bearer other").await
}

/// How long a call with this credential takes.
async fn call_as(channel: &Channel, credential: &str) -> Duration {
    call_for(channel, credential, "run_1").await
}

/// The same for this run.
async fn call_for(channel: &Channel, credential: &str, run_id: &str) -> Duration {
    let began = Instant::now();
    let mut request = Request::new(GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: run_id.to_owned(),
    });
    let credential = credential.parse().expect("a value");
    request.metadata_mut().insert("authorization", credential);
    let answered = tokio::time::timeout(
        BOUND,
        RunServiceClient::new(channel.clone()).get_run(request),
    )
    .await;
    answered.expect("an answer in time").expect("a run");
    began.elapsed()
}
