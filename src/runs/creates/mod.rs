//! Creates with a life of their own: those that may be repeated (`request_id`), and those that find
//! their thread busy (`on_active_run`).
//!
//! | file | idea |
//! |---|---|
//! | `kinds.rs` | the creates: what each sends, how it is found again, what its repeats get |
//! | `remembered.rs` | which `request_id` this replica knows, and what became of it |
//! | `replicas.rs` | creates that other replicas may be at work on |
//! | `left.rs` | how a create that waits knows that nobody waits for it |
//! | `busy.rs` | the wait for a thread's active run |
//!
//! Must hold:
//!
//! - A create with a `request_id` looks for its mark before it sends anything, and after whatever
//!   leaves open whether it was done. It is sent again only if it certainly was not done.
//! - It is a task of its own: the callers may leave, and a repeat finds what became of it. Only
//!   while it waits for a busy thread it ends with its last caller.
//! - Without a `request_id` nothing but the wait is different from a plain create: it is one
//!   request, and a caller that leaves ends it.

mod busy;
mod disconnect;
mod kinds;
mod remembered;
mod replicas;

use std::{sync::Arc, time::Duration};

use clap::Args;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use self::{
    busy::Busy,
    remembered::{Joined, Made, Making},
    replicas::Turn,
};
pub(super) use self::{
    busy::Queues,
    disconnect::Disconnect,
    kinds::Begun,
    remembered::{Ids, Remembered},
};
use super::Streams;
use crate::{
    error::Error,
    setting::{defaults, time},
    upstream::{Caller, Client, CreateMark},
    v1::{ActiveRunPolicy, CreateThreadRequest, ThreadResource},
};

/// Limits of creates. [`Default`] suits most deployments.
#[derive(Debug, Clone, Args)]
pub struct CreateLimits {
    /// Creates that wait for the active run of one thread (`on_active_run`), behind the one whose
    /// turn it is; one more is refused.
    #[arg(long, default_value = "100")]
    pub active_run_queue: usize,

    /// How long a create waits for an active run that requires action.
    #[arg(id = "active-run-action-wait", long, default_value = "1m", value_parser = time)]
    pub action_wait: Duration,

    /// How long a create with a `request_id` whose answer was lost is looked for.
    #[arg(id = "request-id-look", long, default_value = "10s", value_parser = time)]
    pub look: Duration,

    /// Creates with a `request_id` that a replica remembers, for ten minutes; the oldest are
    /// forgotten.
    #[arg(id = "max-request-ids", long, default_value = "10000")]
    pub request_ids: usize,
}

impl Default for CreateLimits {
    fn default() -> Self {
        defaults()
    }
}

/// Pauses between looks for what a create may have made.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// A create.
pub(crate) trait Create: Clone + Send + Sync + 'static {
    /// What the call that creates gets.
    type Got: Send + 'static;

    /// The second half of a create of a thread and of something on it; else itself.
    type OnThread: Create<Got = Self::Got>;

    /// What it makes can be looked for.
    const IS_LISTED: bool = true;

    /// See the contract; empty if not set.
    fn request_id(&self) -> &str;

    /// See [`ActiveRunPolicy`].
    fn on_active_run(&self) -> i32;

    /// The thread that it is on; empty if it is on none.
    fn thread_id(&self) -> &str;

    /// Its mark. Checks the whole request.
    fn mark(&self, client: &Client, caller: &Caller, rpc: &str) -> Result<CreateMark, Error>;

    /// Creates, once.
    fn send(
        &self,
        streams: &Streams,
        caller: &Caller,
        mark: Option<&CreateMark>,
    ) -> impl Future<Output = Result<Self::Got, Error>> + Send;

    /// Looks for what was made with this mark.
    fn find(
        &self,
        client: &Client,
        caller: &Caller,
        mark: &CreateMark,
    ) -> impl Future<Output = Result<Option<Self::Got>, Error>> + Send;

    /// What a call has that finds it made before it began.
    fn repeated(found: Self::Got) -> Self::Got {
        found
    }

    /// The run that was made, if it is one and has a name.
    fn run_id(got: &Self::Got) -> Option<&str>;

    /// What was made, for others and for later.
    fn made(got: &Self::Got) -> Made;

    /// What a call gets that did not make it.
    fn again(
        streams: &Streams,
        caller: &Caller,
        made: Made,
    ) -> impl Future<Output = Result<Self::Got, Error>> + Send;

    /// The two halves of a create of a thread and of something on it: the second one, given the
    /// thread's id.
    fn halves(&self) -> Result<Option<Halves<Self>>, Error> {
        Ok(None)
    }

    /// The same as if both halves had been one request.
    fn joined(got: Self::Got, _thread: Box<ThreadResource>) -> Self::Got {
        got
    }
}

/// The two halves of a create. The second lacks its thread.
pub(crate) type Halves<C> = (CreateThreadRequest, Second<C>);
type Second<C> = Box<dyn FnOnce(&str) -> <C as Create>::OnThread + Send>;

/// The task of a create has panicked.
fn aborted() -> Error {
    Error::Unusable {
        what: "the request was aborted".to_owned(),
        request_id: None,
    }
}

impl Streams {
    /// Creates, as its `request_id` and `on_active_run` say. `rpc` is whose `request_id` it is.
    pub(crate) async fn create<C: Create>(
        &self,
        rpc: &str,
        caller: &Caller,
        create: &C,
    ) -> Result<C::Got, Error> {
        self.create_unless(rpc, caller, create, Disconnect::Dropped)
            .await
    }

    /// The same for a call that goes on when its caller has left.
    pub(super) async fn create_unless<C: Create>(
        &self,
        rpc: &str,
        caller: &Caller,
        create: &C,
        disconnect: Disconnect<'_>,
    ) -> Result<C::Got, Error> {
        let policy = ActiveRunPolicy::try_from(create.on_active_run());
        let policy = policy.map_err(|_| {
            Error::invalid("on_active_run", "is not a value that this contract names")
        })?;
        if create.request_id().is_empty() {
            // In a box: what it needs, a call does not need for the rest of its life.
            let making = Box::pin(self.make(caller, create, policy, None, disconnect));
            return making.await;
        }
        let mark = create.mark(&self.client, caller, rpc)?;
        let metrics = &self.client.telemetry().metrics().creates;
        let (mut making, mut joiner) = match self.remembered.join(caller, &mark)? {
            Joined::First(making, joiner) => (making, joiner),
            Joined::Later(mut joiner) => {
                metrics.joined.inc();
                let made = joiner.made().await?;
                return C::again(self, caller, made).await;
            }
            Joined::Late(ids) => {
                metrics.repeated.inc();
                let made = Made { ids, answer: None };
                return C::again(self, caller, made).await;
            }
        };
        // Before anything else, so that the first to come is the first to create.
        making.queued = self.enqueue(caller, create.thread_id(), policy)?;
        let (give, given) = oneshot::channel();
        let (streams, create) = (self.clone(), create.clone());
        let caller = Caller {
            // The other callers have other deadlines, and what is begun is brought to its end.
            deadline: None,
            ..caller.clone()
        };
        self.detached.spawn(async move {
            let mut making = making;
            let got = streams
                .make_once(&caller, &create, policy, &mark, &mut making)
                .await;
            let made = got.map(|got| {
                let made = C::made(&got);
                let _ = give.send(got);
                made
            });
            if let Some((shared, ids)) = making.settle(made)
                && let Err(error) = shared.made(&ids.thread_id, &ids.id).await
            {
                streams.replicas_unknown(&error);
            }
        });
        joiner.made().await?;
        given.await.map_err(|_| aborted())
    }

    /// Creates with a mark, unless another replica does.
    async fn make_once<C: Create>(
        &self,
        caller: &Caller,
        create: &C,
        policy: ActiveRunPolicy,
        mark: &CreateMark,
        making: &mut Making,
    ) -> Result<C::Got, Error> {
        loop {
            if let Turn::Made(ids) = self.turn(making).await? {
                let made = Made { ids, answer: None };
                return C::again(self, caller, made).await;
            }
            let made = self.make_marked(caller, create, policy, mark, making).await;
            if made.is_ok() || !making.has_lost_turn {
                return made;
            }
        }
    }

    /// Creates with a mark, in two requests if it is a thread and something on it.
    async fn make_marked<C: Create>(
        &self,
        caller: &Caller,
        create: &C,
        policy: ActiveRunPolicy,
        mark: &CreateMark,
        making: &mut Making,
    ) -> Result<C::Got, Error> {
        let Some((thread, second)) = create.halves()? else {
            if C::IS_LISTED
                && let Some(found) = self.made_before(caller, create, mark).await?
            {
                return Ok(found);
            }
            let disconnect = Disconnect::Making(making);
            return self
                .make(caller, create, policy, Some(mark), disconnect)
                .await;
        };
        if let Some(thread_id) = making.thread_id() {
            let second = second(thread_id);
            if let Some(found) = self.made_before(caller, &second, mark).await? {
                return Ok(found);
            }
            let disconnect = Disconnect::Making(making);
            return self
                .make(caller, &second, policy, Some(mark), disconnect)
                .await;
        }
        let thread = self.client.create_spare_thread(caller, &thread).await?;
        self.begun(making, &thread.message.id).await;
        let second = second(&thread.message.id);
        let disconnect = Disconnect::Making(making);
        let got = self
            .make(caller, &second, policy, Some(mark), disconnect)
            .await?;
        Ok(C::joined(got, thread.message))
    }

    /// What an earlier call has made.
    async fn made_before<C: Create>(
        &self,
        caller: &Caller,
        create: &C,
        mark: &CreateMark,
    ) -> Result<Option<C::Got>, Error> {
        let found = create.find(&self.client, caller, mark).await?;
        if found.is_some() {
            self.client.telemetry().metrics().creates.repeated.inc();
        }
        Ok(found.map(C::repeated))
    }

    /// Creates on a thread that may be busy.
    async fn make<C: Create>(
        &self,
        caller: &Caller,
        create: &C,
        policy: ActiveRunPolicy,
        mark: Option<&CreateMark>,
        mut disconnect: Disconnect<'_>,
    ) -> Result<C::Got, Error> {
        let thread_id = create.thread_id();
        let queued = match &mut disconnect {
            Disconnect::Making(making) => making.queued.take(),
            _ => None,
        };
        let queued = match queued {
            None => self.enqueue(caller, thread_id, policy)?,
            taken => taken,
        };
        let begin = Busy::begin(self, caller, thread_id, policy, queued);
        let mut busy = disconnect.unless(begin).await?;
        let metrics = &self.client.telemetry().metrics().creates;
        loop {
            if let Disconnect::Making(making) = &mut disconnect
                && !making.keeps_turn().await
            {
                // Nobody is told.
                return Err(Error::Draining);
            }
            let failed = match create.send(self, caller, mark).await {
                Ok(got) => {
                    busy.knows(C::run_id(&got));
                    return Ok(got);
                }
                Err(error) => error,
            };
            if let Some(mark) = mark.filter(|_| C::IS_LISTED) {
                if failed.may_have_created() {
                    return self.look(caller, create, mark, failed).await;
                }
                // The active run may be the one that an earlier call was to make.
                if failed.is_active_run()
                    && let Ok(Some(found)) = create.find(&self.client, caller, mark).await
                {
                    metrics.found.inc();
                    return Ok(found);
                }
            }
            if !failed.is_active_run() {
                return Err(failed);
            }
            disconnect.unless(busy.wait(failed)).await?;
        }
    }

    /// Looks for what a create may have made that failed with `doubt`.
    async fn look<C: Create>(
        &self,
        caller: &Caller,
        create: &C,
        mark: &CreateMark,
        doubt: Error,
    ) -> Result<C::Got, Error> {
        tracing::info!(error = %doubt.log(), "the outcome of a create is not known; looking for its mark");
        let metrics = &self.client.telemetry().metrics().creates;
        let until = Instant::now() + self.limits.creates.look;
        let mut pause = FIRST_PAUSE;
        loop {
            let looking = create.find(&self.client, caller, mark);
            match timeout_at(until, looking).await {
                Ok(Ok(Some(found))) => {
                    metrics.found.inc();
                    return Ok(found);
                }
                Ok(Err(error)) if !error.is_transient() => {
                    tracing::info!(error = %error.log(), "a create cannot be looked for");
                    break;
                }
                Ok(_) if Instant::now() + pause < until => {
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Ok(_) | Err(_) => break,
            }
        }
        metrics.unsettled.inc();
        Err(Error::Unsettled {
            error: Arc::new(doubt),
        })
    }
}
