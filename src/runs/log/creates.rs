//! Creates with a `request_id`, as replicas tell each other: who is at work, and what was made.
//!
//! | key | what |
//! |---|---|
//! | `runs-gateway:{KEY}:create` | hash: the request's fingerprint, its thread, what was made |
//! | `runs-gateway:{KEY}:maker` | who is at work, until when |
//!
//! Must hold:
//!
//! - One is at work at a time, as long as its lease is renewed. Who has lost its lease learns so
//!   before it sends anything.
//! - What was made is remembered for [`REMEMBERED`], by its ids alone: no prompt is stored.
//! - What is sent beside that is a hint, on the channel of a run's log with this key. Who is not
//!   woken looks again when the lease is over.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use redis::{Script, ScriptInvocation};
use tokio::time::{interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Following, Key, LogError,
    key::{hex, random},
    redis::{Shared, channel, millis},
    scripts::{CREATE_BEGUN, CREATE_LEFT, CREATE_MADE, CREATE_TURN},
    within,
};

/// How long what was made is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest pause before it is asked again who is at work.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Before a store that is late is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// One create, as this replica may be at work on it. Dropping it lets others begin.
#[derive(Debug)]
pub(in crate::runs) struct SharedCreate {
    lease: Arc<Lease>,
    /// Of one that has to wait.
    following: Option<Following>,
    /// Of one that is at work.
    renewal: Option<AbortOnDropHandle<()>>,
}

/// Whose turn it is to create.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::runs) enum CreateTurn {
    /// This one's. A thread was made for it before, unless this is empty.
    Mine {
        /// The thread.
        thread_id: String,
    },
    /// Another replica's, for so long unless it says so again.
    Theirs(Duration),
    /// Nobody's: it was made.
    Made {
        /// The thread that it is on; empty if it is on none.
        thread_id: String,
        /// The resource.
        id: String,
    },
    /// The `request_id` was used for another request.
    OtherRequest,
}

#[derive(Debug)]
struct Lease {
    shared: Arc<Shared>,
    key: Key,
    fingerprint: String,
    /// This one, among all that were ever at work.
    maker: String,
}

impl SharedCreate {
    pub(super) fn new(shared: Arc<Shared>, key: Key, fingerprint: String) -> Self {
        let maker = hex(&random()[..16]);
        Self {
            lease: Arc::new(Lease {
                shared,
                key,
                fingerprint,
                maker,
            }),
            following: None,
            renewal: None,
        }
    }

    /// Takes the turn, or keeps it.
    pub(in crate::runs) async fn take_turn(&mut self) -> Result<CreateTurn, LogError> {
        if let Some(following) = &mut self.following {
            following.begin_to_read();
        }
        let turn = self.lease.take().await?;
        match &turn {
            CreateTurn::Mine { .. } => {
                let lease = &self.lease;
                let renewal = || AbortOnDropHandle::new(tokio::spawn(renew(Arc::downgrade(lease))));
                self.renewal.get_or_insert_with(renewal);
            }
            CreateTurn::Theirs(_) => {
                self.renewal = None;
                let Lease { shared, key, .. } = &*self.lease;
                self.following.get_or_insert_with(|| shared.follow(key));
            }
            CreateTurn::Made { .. } | CreateTurn::OtherRequest => self.renewal = None,
        }
        Ok(turn)
    }

    /// Waits until whoever is at work, for this long, may be at an end.
    pub(in crate::runs) async fn more(&mut self, theirs: Duration) {
        let pause = theirs.min(MAX_PAUSE);
        let more = async {
            match &mut self.following {
                Some(following) => following.more().await,
                None => std::future::pending().await,
            }
        };
        _ = tokio::time::timeout(pause, more).await;
    }

    /// A thread was made for it.
    pub(in crate::runs) async fn begun(&self, thread_id: &str) -> Result<(), LogError> {
        let mut begun = self.lease.script(&CREATE_BEGUN);
        begun.arg(thread_id);
        self.lease.run::<u8>(&begun).await.map(drop)
    }

    /// It is made: the others learn of it.
    pub(in crate::runs) async fn made(self, thread_id: &str, id: &str) -> Result<(), LogError> {
        let mut made = self.lease.script(&CREATE_MADE);
        made.arg(thread_id).arg(id).arg(millis(REMEMBERED));
        self.lease.run::<u8>(&made).await.map(drop)
    }
}

impl Drop for SharedCreate {
    fn drop(&mut self) {
        // Without a runtime the program is at its end, and the lease expires.
        if self.renewal.take().is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let lease = Arc::clone(&self.lease);
            runtime.spawn(async move {
                _ = lease.run::<u8>(&lease.script(&CREATE_LEFT)).await;
            });
        }
    }
}

impl Lease {
    async fn take(&self) -> Result<CreateTurn, LogError> {
        let mut turn = self.script(&CREATE_TURN);
        turn.arg(millis(self.shared.limits.lease))
            .arg(millis(REMEMBERED));
        let (whose, left, thread_id, id) = self.run::<(u8, u64, String, String)>(&turn).await?;
        Ok(match whose {
            0 => CreateTurn::OtherRequest,
            1 => CreateTurn::Theirs(Duration::from_millis(left)),
            2 => CreateTurn::Mine { thread_id },
            _ => CreateTurn::Made { thread_id, id },
        })
    }

    /// A script about this create, with what all of them are told.
    fn script<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let name = |what| format!("runs-gateway:{{{}}}:{what}", self.key.as_str());
        let mut script = script.key(name("create"));
        script
            .key(name("maker"))
            .arg(&self.maker)
            .arg(channel(&self.key))
            .arg(&self.fingerprint);
        script
    }

    /// Runs a script, each of which may be run again. A store that has been silent for less than a
    /// lease is late, and not away: what others hold there still counts.
    async fn run<T: redis::FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, LogError> {
        let limits = &self.shared.limits;
        loop {
            match within(limits.timeout, self.shared.run(script)).await {
                Err(_) if !self.shared.is_away() => sleep(RETRY_PAUSE).await,
                done => return done,
            }
        }
    }
}

/// Renews a lease as long as somebody holds it.
async fn renew(lease: Weak<Lease>) {
    let Some(time) = lease.upgrade().map(|it| it.shared.limits.lease) else {
        return;
    };
    let mut tick = interval(time / 3);
    // The first is at once.
    tick.tick().await;
    loop {
        tick.tick().await;
        let Some(lease) = lease.upgrade() else {
            return;
        };
        if let Ok(CreateTurn::Theirs(_) | CreateTurn::Made { .. }) = lease.take().await {
            return;
        }
    }
}
