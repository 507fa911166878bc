//! One poller for all replicas: which replica polls a run, and what it found.
//!
//! | key | what |
//! |---|---|
//! | `runs-gateway:{KEY}:poller` | who polls, until when |
//! | `runs-gateway:{KEY}:wants` | how often somebody asked for a look that begins after that |
//! | `runs-gateway:{KEY}:wanted:N` | somebody elsewhere wants parts N of the run, until when |
//! | `runs-gateway:{KEY}:state` | what was found last, and which asks it answers |
//!
//! Must hold:
//!
//! - A state answers an ask only if the look at the upstream began after it was asked for: the
//!   poller reads the number of asks first, then the upstream.
//! - Nothing but hints is sent. Who is woken reads the keys, and who is not woken reads them soon.
//! - What cannot be shared (errors, a state that is too large, a store that is away) is polled by
//!   each replica for itself, as if there were no other.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use redis::{FromRedisValue, Script, ScriptInvocation};

use super::{
    Following, Key, LogError,
    redis::{Shared, channel, millis},
    scripts::{ASK, LOOK, SHOW, STEP_DOWN},
    within,
};
use crate::{
    error::Error,
    runs::fetch::{Messages, Parts, Snapshot},
    v1::{Run, RunStep, ThreadMessage},
};

/// The largest state that is shared, in bytes.
const MAX_STATE: usize = 1 << 20;

/// How long somebody elsewhere is taken to watch after it said so.
const INTEREST: Duration = Duration::from_secs(30);

/// How often who watches says so.
pub(in crate::runs) const STAY: Duration = Duration::from_secs(10);

/// The replicas' board of one run.
#[derive(Debug)]
pub(in crate::runs) struct Board {
    shared: Arc<Shared>,
    key: Key,
    following: Following,
    /// How long who polls is taken to live.
    lease: Duration,
    /// This replica polls.
    is_mine: bool,
}

/// Which asks a state answers, its number, and the state.
type Fields = (Option<u64>, Option<u64>, Option<Vec<u8>>);

/// Whose turn it is to poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runs) enum PollTurn {
    /// This replica's. What it finds answers all asks up to this one; this is what others want.
    Mine { asks: u64, wanted: Option<Parts> },
    /// Another one's.
    Theirs,
    /// Nobody knows: each polls for itself.
    Alone,
}

/// What another replica found.
#[derive(Debug)]
pub(in crate::runs) struct Found {
    /// Which asks it answers.
    pub(in crate::runs) asks: u64,
    /// How often something was found before, as a name for this.
    pub(in crate::runs) number: u64,
    /// `None`: it cannot be shared.
    pub(in crate::runs) snapshot: Option<Snapshot>,
}

impl Board {
    pub(super) fn new(
        shared: Arc<Shared>,
        key: Key,
        following: Following,
        lease: Duration,
    ) -> Self {
        Self {
            shared,
            key,
            following,
            lease,
            is_mine: false,
        }
    }

    /// Takes the turn, or keeps it.
    pub(in crate::runs) async fn take_turn(&mut self) -> PollTurn {
        self.following.begin_to_read();
        let mut look = LOOK.key(self.name("poller"));
        look.key(self.name("wants"));
        for parts in ALL {
            look.key(self.wanted(parts));
        }
        look.arg(&self.shared.owner).arg(millis(self.lease));
        match self.run::<(u8, u64, u8)>(&look).await {
            Ok((0, ..)) => {
                self.is_mine = false;
                PollTurn::Theirs
            }
            Ok((_, asks, wanted)) => {
                self.is_mine = true;
                let wanted = ALL.into_iter().find(|parts| number(*parts) == wanted);
                PollTurn::Mine { asks, wanted }
            }
            Err(_) => PollTurn::Alone,
        }
    }

    /// Asks for a look that begins from here on; gives the number of the ask.
    pub(in crate::runs) async fn ask(&self, parts: Parts) -> Option<u64> {
        let mut ask = ASK.key(self.name("wants"));
        ask.key(self.wanted(parts))
            .arg(millis(INTEREST))
            .arg(channel(&self.key));
        self.run(&ask).await.ok()
    }

    /// Says that somebody here watches, without asking for anything now.
    pub(in crate::runs) async fn stay(&self, parts: Parts) {
        let mut connection = self.shared.connection.clone();
        let mut set = redis::cmd("SET");
        set.arg(self.wanted(parts))
            .arg("1")
            .arg("PX")
            .arg(millis(INTEREST));
        _ = set.query_async::<()>(&mut connection).await;
    }

    /// Says what was found.
    pub(in crate::runs) async fn show(&self, asks: u64, snapshot: &Snapshot) {
        let mut state = State::of(snapshot).encode_to_vec();
        if state.len() > MAX_STATE {
            // It is told that there is one.
            state.clear();
        }
        let mut show = SHOW.key(self.name("state"));
        show.key(self.name("poller"))
            .arg(&self.shared.owner)
            .arg(asks)
            .arg(state)
            .arg(millis(self.lease))
            .arg(channel(&self.key));
        _ = self.run::<u8>(&show).await;
    }

    /// What was found last.
    pub(in crate::runs) async fn found(&mut self) -> Result<Option<Found>, LogError> {
        self.following.begin_to_read();
        let mut connection = self.shared.connection.clone();
        let mut command = redis::cmd("HMGET");
        command
            .arg(self.name("state"))
            .arg(&["asks", "number", "state"]);
        let found = command.query_async::<Fields>(&mut connection).await;
        let (Some(asks), Some(number), Some(state)) =
            found.map_err(|error| LogError::Away(error.category().to_owned()))?
        else {
            return Ok(None);
        };
        let snapshot = State::decode(&*state).ok().and_then(State::snapshot);
        Ok(Some(Found {
            asks,
            number,
            snapshot,
        }))
    }

    /// How long who polls is taken to live.
    pub(in crate::runs) fn lease(&self) -> Duration {
        self.lease
    }

    /// Waits until there may be more on the board.
    pub(in crate::runs) async fn more(&mut self) {
        self.following.more().await;
    }

    async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, LogError> {
        let limit = self.shared.limits.timeout;
        within(limit, self.shared.run(script)).await
    }

    fn name(&self, what: &str) -> String {
        format!("runs-gateway:{{{}}}:{what}", self.key.as_str())
    }

    fn wanted(&self, parts: Parts) -> String {
        self.name(&format!("wanted:{}", number(parts)))
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Without a runtime the program is at its end, and the lease expires.
        if self.is_mine
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (shared, name) = (Arc::clone(&self.shared), self.name("poller"));
            let channel = channel(&self.key);
            runtime.spawn(async move {
                let mut step_down: ScriptInvocation<'_> = Script::key(&STEP_DOWN, name);
                step_down.arg(&shared.owner).arg(channel);
                _ = shared.run::<u8>(&step_down).await;
            });
        }
    }
}

/// From the least to the most.
const ALL: [Parts; 3] = [Parts::Run, Parts::Steps, Parts::Messages];

fn number(parts: Parts) -> u8 {
    match parts {
        Parts::Run => 1,
        Parts::Steps => 2,
        Parts::Messages => 3,
    }
}

/// A [`Snapshot`] as replicas tell it each other.
#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(message, optional, boxed, tag = "1")]
    run: Option<Box<Run>>,
    /// Of [`ALL`], what this has.
    #[prost(uint32, tag = "2")]
    parts: u32,
    #[prost(message, repeated, tag = "3")]
    steps: Vec<RunStep>,
    #[prost(bool, tag = "4")]
    steps_failed: bool,
    #[prost(message, repeated, tag = "5")]
    messages: Vec<ThreadMessage>,
    #[prost(string, repeated, tag = "6")]
    unread: Vec<String>,
    #[prost(bool, tag = "7")]
    messages_failed: bool,
}

impl State {
    fn of(snapshot: &Snapshot) -> Self {
        let messages = snapshot.messages.clone().unwrap_or_default();
        Self {
            run: Some(snapshot.run.clone()),
            parts: number(snapshot.parts()).into(),
            steps: snapshot.steps().to_vec(),
            steps_failed: matches!(snapshot.steps, Some(Err(_))),
            messages: messages.read.iter().map(|it| (**it).clone()).collect(),
            unread: messages.unread,
            messages_failed: messages.failed.is_some(),
        }
    }

    /// `None` if it is none, or one of another version of this program.
    fn snapshot(self) -> Option<Snapshot> {
        let run = self.run?;
        let failed = || {
            Arc::new(Error::Unusable {
                what: "another replica could not read it".to_owned(),
                request_id: None,
            })
        };
        let steps = if self.steps_failed {
            Err(failed())
        } else {
            Ok(self.steps)
        };
        let messages = Messages {
            read: self.messages.into_iter().map(Arc::new).collect(),
            unread: self.unread,
            failed: self.messages_failed.then(failed),
        };
        let steps = (self.parts >= 2).then_some(steps);
        let messages = (self.parts >= 3).then_some(messages);
        Some(Snapshot::new(run, steps, messages))
    }
}
