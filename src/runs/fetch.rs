//! What a poll reads of a run: the run, and as far as somebody wants them its steps and messages.
//!
//! Must hold:
//!
//! - The steps of a terminal run are read after it was seen to be terminal, and its messages after
//!   its steps.
//! - A message is read once it is whole, and once only: it does not change any more.
//! - That steps or messages cannot be had is no reason to keep the run from whoever asked for the
//!   run alone.
//! - However many pages there are, what is read is bounded in bytes and in requests.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    mem,
    sync::{Arc, LazyLock},
    time::Duration,
};

use prost::Message as _;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep_until},
};

use super::is_settled;
use crate::{
    error::Error,
    shares::{HeldBytes, HeldPart},
    upstream::{Caller, Client},
    v1::{
        GetMessageRequest, GetRunRequest, ListMessagesRequest, ListRunStepsRequest, MessageRole,
        MessageStatus, Run, RunStep, RunStepStatus, SortOrder, ThreadMessage,
    },
    wire::{self, Wire},
};

/// The most pages that are read of a list: a hundred entries on each.
const MAX_PAGES: usize = 100;

/// How much of a run is read. Each has what those before it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Parts {
    /// The run.
    Run,
    /// The run and its steps.
    Steps,
    /// The run, its steps, and its messages that are whole.
    Messages,
}

/// A state of a run.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) run: Box<Run>,
    /// Its steps, oldest first, if anybody asked for them and they could be read; or why they
    /// cannot be had.
    pub(super) steps: Option<Result<Vec<RunStep>, Arc<Error>>>,
    /// Its messages, if anybody asked for them.
    pub(super) messages: Option<Messages>,
    /// What tells the run and each of its steps from other states of them, in their order.
    marks: (u64, Vec<u64>),
    /// The bytes of it all, held once for all that watch.
    held: Arc<HeldPart>,
}

/// Messages of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Messages {
    /// Those that are whole, oldest first.
    pub(super) read: Vec<Arc<ThreadMessage>>,
    /// Ids of those that could not be read.
    pub(super) unread: Vec<String>,
    /// Why one of them, or the list of them, could not be read.
    pub(super) failed: Option<Arc<Error>>,
}

impl Messages {
    /// The ids of all.
    pub(super) fn ids(&self) -> impl Iterator<Item = String> {
        let read = self.read.iter().map(|message| message.id.clone());
        read.chain(self.unread.iter().cloned())
    }
}

impl Snapshot {
    /// These parts of a run.
    pub(super) fn new(
        run: Box<Run>,
        steps: Option<Result<Vec<RunStep>, Arc<Error>>>,
        messages: Option<Messages>,
    ) -> Self {
        let mut snapshot = Self {
            marks: (mark(&*run), Vec::new()),
            run,
            steps,
            messages,
            held: Arc::default(),
        };
        snapshot.marks.1 = snapshot.steps().iter().map(mark).collect();
        snapshot
    }

    /// The same, counted in an account.
    fn counted(mut self, held: &HeldBytes) -> Result<Self, Error> {
        let steps = self.steps().iter().map(RunStep::encoded_len);
        let messages = self.messages.iter().flat_map(|it| &it.read);
        let messages = messages.map(|message| message.encoded_len());
        let bytes = self.run.encoded_len() + steps.sum::<usize>() + messages.sum::<usize>();
        self.held = Arc::new(held.hold(UNFOLDED * bytes)?);
        Ok(self)
    }

    /// What tells the run from other states of it.
    pub(super) fn run_mark(&self) -> u64 {
        self.marks.0
    }

    /// The steps, as far as they are known, and what tells each from other states of it.
    pub(super) fn marked_steps(&self) -> impl Iterator<Item = (&RunStep, u64)> {
        self.steps().iter().zip(self.marks.1.iter().copied())
    }

    /// How much of the run this is.
    pub(super) fn parts(&self) -> Parts {
        match self {
            Self {
                messages: Some(_), ..
            } => Parts::Messages,
            Self { steps: Some(_), .. } => Parts::Steps,
            _ => Parts::Run,
        }
    }

    /// The steps, as far as they are known.
    pub(super) fn steps(&self) -> &[RunStep] {
        self.steps
            .as_ref()
            .and_then(|steps| steps.as_deref().ok())
            .unwrap_or_default()
    }

    /// Why something cannot be had; if there are two reasons, the one that may pass. A message of a
    /// run that goes on is read again anyway.
    pub(super) fn failed(&self) -> Option<&Arc<Error>> {
        let steps = self.steps.as_ref().and_then(|steps| steps.as_ref().err());
        let messages = self.messages.as_ref().and_then(|it| it.failed.as_ref());
        let messages = messages.filter(|_| is_settled(self.run.status()));
        let mut reasons = [messages, steps].into_iter().flatten();
        reasons
            .clone()
            .find(|error| may_be_had_later(error))
            .or_else(|| reasons.next())
    }

    /// Leaves out what cannot be had: whoever wants it waits for the next state.
    pub(super) fn forget_failed(&mut self) {
        self.messages = None;
        if matches!(self.steps, Some(Err(_))) {
            self.steps = None;
        }
    }
}

/// Whether steps or messages that could not be read may be read later. An upstream whose answers
/// are a page or no list has none of them, though it has the run.
pub(super) fn may_be_had_later(error: &Arc<Error>) -> bool {
    error.is_transient() && !matches!(**error, Error::Unusable { .. })
}

/// What a resource takes in memory, in bytes of its encoding.
const UNFOLDED: usize = 2;

/// What tells a state of a resource from others: a keyed hash, since a copy for each that watches
/// would be as large as the resource.
fn mark(resource: &impl Wire) -> u64 {
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    wire::encode(resource, |bytes| HASHER.hash_one(bytes))
}

/// The rate of polling: whose turn it is, of all pollers.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the next request may begin. Held by the poller whose turn it is; the others wait in the
    /// order of asking.
    next: Mutex<Instant>,
    interval: Duration,
}

/// A turn that has come. If it is dropped, it is the next one's.
pub(super) struct Turn<'a> {
    next: MutexGuard<'a, Instant>,
    following: Instant,
}

impl Pace {
    /// `rate` requests a second.
    pub(super) fn new(rate: u32) -> Self {
        Self {
            next: Mutex::new(Instant::now()),
            interval: Duration::from_secs(1) / rate.max(1),
        }
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let next = self.next.lock().await;
        // Not when the timer fired: that is later, and would slow everybody down.
        let began = next.max(Instant::now());
        sleep_until(began).await;
        Turn {
            next,
            following: began + self.interval,
        }
    }
}

impl Turn<'_> {
    /// Takes the turn: the next one comes an interval later.
    pub(super) fn take(mut self) {
        *self.next = self.following;
    }
}

/// Reads one run, again and again.
pub(super) struct Fetch {
    client: Client,
    caller: Caller,
    /// What it holds for those that watch.
    held: HeldBytes,
    thread_id: String,
    run_id: String,
    /// The most that steps may take, and messages as well.
    max_bytes: usize,
    /// The messages that were read, and the bytes of all of them.
    read: HashMap<String, Arc<ThreadMessage>>,
    read_bytes: usize,
    /// Why not all of its steps, or messages, can be read, which was told. A run has never less of
    /// them.
    unread: HashMap<&'static str, String>,
    /// Its pages do not advance, which was told.
    is_stuck: bool,
}

impl Fetch {
    /// For the run `(thread_id, run_id)`, as `caller`. What it reads is counted in `caller.held`.
    pub(super) fn new(
        client: Client,
        caller: Caller,
        (thread_id, run_id): (String, String),
        max_bytes: usize,
    ) -> Self {
        Self {
            client,
            held: caller.held.clone(),
            caller,
            thread_id,
            run_id,
            max_bytes,
            read: HashMap::new(),
            read_bytes: 0,
            unread: HashMap::new(),
            is_stuck: false,
        }
    }

    /// The run as it is, with what the upstream asks to wait until the next time. The turn of the
    /// first request has come; further ones wait for theirs.
    pub(super) async fn fetch(
        &mut self,
        parts: Parts,
        pace: &Pace,
    ) -> Result<(Snapshot, Option<Duration>), Error> {
        let request = GetRunRequest {
            thread_id: self.thread_id.clone(),
            run_id: self.run_id.clone(),
        };
        // What answers take is let go when they are read.
        self.caller.held = self.held.apart()?;
        let answer = self.client.get_run(&self.caller, &request).await?;
        let asked = answer
            .headers
            .get("openai-poll-after-ms")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let run = answer.message;
        let steps = match parts {
            Parts::Run => None,
            Parts::Steps | Parts::Messages => Some(self.steps(pace).await.map_err(Arc::new)),
        };
        let messages = match &steps {
            Some(steps) if parts == Parts::Messages => Some(
                self.messages(&run, steps.as_deref().unwrap_or_default(), pace)
                    .await,
            ),
            _ => None,
        };
        self.caller.held = HeldBytes::default();
        let snapshot = Snapshot::new(run, steps, messages).counted(&self.held)?;
        Ok((snapshot, asked.map(Duration::from_millis)))
    }

    /// All steps of the run, each once.
    async fn steps(&mut self, pace: &Pace) -> Result<Vec<RunStep>, Error> {
        let request = ListRunStepsRequest {
            thread_id: self.thread_id.clone(),
            run_id: self.run_id.clone(),
            limit: Some(100),
            order: SortOrder::Asc.into(),
            ..ListRunStepsRequest::default()
        };
        self.all("steps", &request, pace).await
    }

    /// The run's messages: those that its steps made; where there are no steps, those that the
    /// thread has of it once it is settled.
    async fn messages(&mut self, run: &Run, steps: &[RunStep], pace: &Pace) -> Messages {
        let is_over = run.status().is_terminal();
        let none_made = steps.iter().all(|step| message_id(step).is_none());
        if steps.is_empty() || (none_made && is_over) {
            if !is_settled(run.status()) {
                return Messages::default();
            }
            let listed = self.list_messages(run, pace).await;
            return listed.unwrap_or_else(|error| Messages {
                failed: Some(Arc::new(error)),
                ..Messages::default()
            });
        }
        let ids = steps
            .iter()
            .filter(|step| is_over || has_ended(step))
            .filter_map(message_id);
        let mut messages = Messages::default();
        for id in ids {
            match self.message(id, pace).await {
                Ok(Some(message)) => messages.read.push(message),
                // What is unusable now stays so.
                Ok(None) | Err(Error::Unusable { .. }) => messages.unread.push(id.to_owned()),
                Err(error) => {
                    messages.unread.push(id.to_owned());
                    messages.failed = Some(Arc::new(error));
                }
            }
        }
        messages
    }

    /// A message; `None` if it is not whole.
    async fn message(
        &mut self,
        id: &str,
        pace: &Pace,
    ) -> Result<Option<Arc<ThreadMessage>>, Error> {
        if let Some(message) = self.read.get(id) {
            return Ok(Some(Arc::clone(message)));
        }
        pace.turn().await.take();
        let request = GetMessageRequest {
            thread_id: self.thread_id.clone(),
            message_id: id.to_owned(),
        };
        let message = self.client.get_message(&self.caller, &request).await?;
        if !is_whole(&message.message) {
            return Ok(None);
        }
        let message = Arc::new(*message.message);
        let read_bytes = self.read_bytes + message.encoded_len();
        if read_bytes > self.max_bytes {
            return Err(self.too_many("messages", self.bytes()));
        }
        self.read_bytes = read_bytes;
        self.read.insert(id.to_owned(), Arc::clone(&message));
        Ok(Some(message))
    }

    async fn list_messages(&mut self, run: &Run, pace: &Pace) -> Result<Messages, Error> {
        pace.turn().await.take();
        let listed = self.all("messages", &messages_of(run), pace).await?;
        let own = listed.into_iter().filter(|message| is_of(message, run));
        let (read, unread): (Vec<_>, Vec<_>) = own.partition(is_whole);
        Ok(Messages {
            read: read.into_iter().map(Arc::new).collect(),
            unread: unread.into_iter().map(|message| message.id).collect(),
            failed: None,
        })
    }

    /// All entries of a list, each once. The turn of the first page has come. A list that is too
    /// long is not read a second time.
    async fn all<L: List>(
        &mut self,
        what: &'static str,
        list: &L,
        pace: &Pace,
    ) -> Result<Vec<L::Entry>, Error> {
        if let Some(limit) = self.unread.get(what) {
            return Err(self.unread(what, limit));
        }
        let mut entries = Vec::new();
        let (mut seen, mut bytes, mut after) = (HashSet::new(), 0, String::new());
        for number in 0..MAX_PAGES {
            if number > 0 {
                pace.turn().await.take();
            }
            let page = list.page(&self.client, &self.caller, after).await?;
            // An upstream that names no last id is asked by the last one's own.
            let last = page.entries.last().map(L::id).unwrap_or_default();
            let last = last.to_owned();
            let has_more = page.has_more && !page.entries.is_empty();
            after = if page.last_id.is_empty() {
                last
            } else {
                page.last_id
            };
            let before = entries.len();
            let new = page.entries.into_iter();
            entries.extend(new.filter(|entry| seen.insert(L::id(entry).to_owned())));
            bytes += entries[before..]
                .iter()
                .map(L::Entry::encoded_len)
                .sum::<usize>();
            if bytes > self.max_bytes {
                return Err(self.too_many(what, self.bytes()));
            }
            if !has_more {
                return Ok(entries);
            }
            if entries.len() == before {
                self.tell_stuck(what);
                return Ok(entries);
            }
        }
        Err(self.too_many(what, format!("{MAX_PAGES} pages")))
    }

    fn bytes(&self) -> String {
        format!("{} bytes (--max-polled-step-bytes)", self.max_bytes)
    }

    /// Gives up a list that has more than this.
    fn too_many(&mut self, what: &'static str, limit: String) -> Error {
        let error = self.unread(what, &limit);
        if self.unread.insert(what, limit).is_none() {
            self.client.telemetry().failed(&error);
        }
        error
    }

    fn unread(&self, what: &str, limit: &str) -> Error {
        let run_id = &self.run_id;
        Error::ListUnread {
            what: format!("the run {run_id} has {what} of more than {limit}"),
        }
    }

    /// Tells once that pages do not advance: what they gave is what is known.
    fn tell_stuck(&mut self, what: &str) {
        if !mem::replace(&mut self.is_stuck, true) {
            let run_id = &self.run_id;
            self.client.telemetry().failed(&Error::ListUnread {
                what: format!("the pages of {what} of the run {run_id} do not advance"),
            });
        }
    }
}

/// The step will not change any more.
pub(super) fn has_ended(step: &RunStep) -> bool {
    !matches!(
        step.status(),
        RunStepStatus::Unspecified | RunStepStatus::InProgress
    )
}

/// The message that a step makes.
pub(super) fn message_id(step: &RunStep) -> Option<&str> {
    let creation = step.step_details.as_ref()?.message_creation.as_ref()?;
    Some(&*creation.message_id).filter(|id| !id.is_empty())
}

/// The first page of a run's messages.
pub(super) fn messages_of(run: &Run) -> ListMessagesRequest {
    ListMessagesRequest {
        thread_id: run.thread_id.clone(),
        run_id: run.id.clone(),
        limit: Some(100),
        order: SortOrder::Asc.into(),
        ..ListMessagesRequest::default()
    }
}

/// Whether a message that is listed is the run's. Some services do not know the filter, and some do
/// not say whose a message is.
pub(super) fn is_of(message: &ThreadMessage, run: &Run) -> bool {
    match &*message.run_id {
        "" => message.role() == MessageRole::Assistant && is_later(message, run),
        run_id => run_id == run.id,
    }
}

/// The message was made after the run.
fn is_later(message: &ThreadMessage, run: &Run) -> bool {
    let seconds = |time: &Option<prost_types::Timestamp>| time.as_ref().map(|it| it.seconds);
    seconds(&message.created_at) >= seconds(&run.created_at)
}

/// The message will not change any more. Some services tell no status.
pub(super) fn is_whole(message: &ThreadMessage) -> bool {
    message.status() != MessageStatus::InProgress
}

/// A list that is read page by page: a request for any of its pages.
trait List: Sync {
    type Entry: prost::Message + Default;

    /// The page that begins after an id; the first one, if that is empty.
    fn page(
        &self,
        client: &Client,
        caller: &Caller,
        after: String,
    ) -> impl Future<Output = Result<Page<Self::Entry>, Error>> + Send;

    fn id(entry: &Self::Entry) -> &str;
}

/// A page of a list.
struct Page<T> {
    entries: Vec<T>,
    /// What the next page begins after; empty if the upstream does not say.
    last_id: String,
    has_more: bool,
}

impl List for ListRunStepsRequest {
    type Entry = RunStep;

    async fn page(
        &self,
        client: &Client,
        caller: &Caller,
        after: String,
    ) -> Result<Page<RunStep>, Error> {
        let request = Self {
            after,
            ..self.clone()
        };
        let page = client.list_run_steps(caller, &request).await?.message;
        Ok(Page {
            entries: page.data,
            last_id: page.last_id,
            has_more: page.has_more == Some(true),
        })
    }

    fn id(entry: &RunStep) -> &str {
        &entry.id
    }
}

impl List for ListMessagesRequest {
    type Entry = ThreadMessage;

    async fn page(
        &self,
        client: &Client,
        caller: &Caller,
        after: String,
    ) -> Result<Page<ThreadMessage>, Error> {
        let request = Self {
            after,
            ..self.clone()
        };
        let page = client.list_messages(caller, &request).await?.message;
        Ok(Page {
            entries: page.data,
            last_id: page.last_id,
            has_more: page.has_more == Some(true),
        })
    }

    fn id(entry: &ThreadMessage) -> &str {
        &entry.id
    }
}
