//! Callers that must not see each other: a thread belongs to the caller that made it.
//!
//! A thread that is made through the gateway is marked in its metadata ([`MARK_KEY`]) with a keyed
//! hash of its caller's name. Before any other request on a thread its mark is read.
//!
//! Must hold:
//!
//! - **No request passes by.** [`Allowed`] is the only thing that can be sent, and this file the
//!   only one that makes it.
//! - What is another caller's, what is nobody's ([`Unmarked::Deny`]) and what does not exist is one
//!   error, made in one place ([`not_found`]), after the same work: one read, which is remembered
//!   for [`DENIED`]. So neither bytes nor time tell them apart.
//! - A caller can neither name the mark nor take it off, and no answer and no event shows it.
//! - What is remembered is bounded in number and age, and is one caller's: that somebody else uses
//!   a thread changes nothing for who asks.
//! - After a deletion nothing of what was read before it is remembered.
//!
//! Why in metadata: all replicas see it, and it lives as long as the thread. Why text and not
//! messages: `extra_json` can hold all that a message does not.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use http::{HeaderMap, Method};
use memchr::memmem;
use percent_encoding::percent_decode_str;
use ring::hmac;
use tokio::time::Instant;

use super::{
    Answer, Caller, Client, IDEMPOTENCY_KEY, Request, answer::Answerable, endpoints::RestCall,
};
use crate::{
    error::{Error, ErrorBody, Idempotency, Rejection},
    json,
    shares::Limit,
    v1::{Assistant, ListAssistantsRequest, ListAssistantsResponse, ThreadResource},
};

/// The key of the metadata pair that marks whose a thread or an assistant is. Its value is the
/// HMAC-SHA256 of the caller's name under the secret of `--isolation-key-file`, in hexadecimal.
pub const MARK_KEY: &str = "runs_gateway_caller";

/// The most pairs that a resource's metadata may have beside the mark.
const MAX_PAIRS: usize = 15;

/// How long it is remembered that a thread is not the caller's, or not there.
const DENIED: Duration = Duration::from_secs(1);

/// The longest path that is remembered, in bytes: no service's ids are nearly as long.
const MAX_PATH: usize = 256;

/// As many deletions as are kept for reads that began before them.
const DELETIONS: usize = 1024;

/// The most pages of assistants that are looked through for one page of a caller's own.
const MAX_PAGES: usize = 100;

/// The longest page of assistants, and the one that services give unasked.
const LONG_PAGE: i32 = 100;
const DEFAULT_PAGE: i32 = 20;

/// What a caller without a name is told.
const NAMELESS: &str =
    "its certificate has no name, and callers are told apart by their names (--isolate-callers)";

/// Who may use what nobody is marked to have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmarked {
    /// All callers.
    Allow,
    /// Nobody: it is as if it were not there.
    Deny,
}

/// How callers are isolated from each other.
#[derive(Debug, Clone)]
pub struct IsolationRules {
    /// The secret of the marks, the same on all replicas.
    pub key: MarkKey,
    /// Who may use what has no mark.
    pub unmarked: Unmarked,
    /// Assistants are isolated, too.
    pub assistants: bool,
    /// The most threads that are remembered to be their callers'. As many again are remembered
    /// not to be.
    pub max_remembered: usize,
    /// How long it is remembered that a thread is its caller's.
    pub max_age: Duration,
}

/// The secret of the marks.
#[derive(Clone)]
pub struct MarkKey(hmac::Key);

impl MarkKey {
    /// Under this secret. A short one can be found out by who sees marks.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    fn mark(&self, name: &str) -> Mark {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"runs-gateway caller\0");
        context.update(name.as_bytes());
        let mut hex = [0; 64];
        for (byte, digits) in context.sign().as_ref().iter().zip(hex.chunks_exact_mut(2)) {
            digits[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            digits[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        Mark(hex)
    }
}

impl fmt::Debug for MarkKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("MarkKey")
    }
}

/// Whose a resource is: a keyed hash of its caller's name, as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark([u8; 64]);

impl Mark {
    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A request that its caller may make.
pub(super) struct Allowed {
    request: Request,
    /// Its answer is read for the gateway itself, and shows marks.
    shows_marks: bool,
}

impl Deref for Allowed {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}

impl Allowed {
    /// Whether its answer is shown to the caller as it is.
    pub(super) fn shows_marks(&self) -> bool {
        self.shows_marks
    }
}

/// Whether a text may have the mark in it.
pub(super) fn has_mark(text: &[u8]) -> bool {
    memmem::find(text, MARK_KEY.as_bytes()).is_some()
}

/// A JSON text without the mark. Text that is not JSON and may have the mark in it becomes empty.
pub(super) fn without_mark(text: &[u8]) -> Vec<u8> {
    json::without_member(text, MARK_KEY)
        .unwrap_or_default()
        .into_bytes()
}

/// Takes the mark out of what an upstream says of an error.
pub(super) fn hide_mark(error: &mut ErrorBody) {
    let fields = error
        .fields
        .iter_mut()
        .flat_map(|it| [&mut it.field, &mut it.message]);
    for text in fields.chain([&mut error.message, &mut error.param]) {
        if has_mark(text.as_bytes()) {
            "metadata".clone_into(text);
        }
    }
}

/// What belongs to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thread,
    Assistant,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Thread, Self::Assistant];

    /// The name of its id in routes, where one is, and where one is made.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Thread => ("thread_id", "/threads/{thread_id}", "/threads"),
            Self::Assistant => ("assistant_id", "/assistants/{assistant_id}", "/assistants"),
        }
    }

    /// Where it is at the upstream. `segment` is its id as it stands in a path.
    fn path(self, segment: &str) -> String {
        [self.names().2, "/", segment].concat()
    }
}

/// The error of what is not there for a caller, whatever the reason: as `OpenAI` says it of a
/// thread that does not exist.
fn not_found(kind: Kind, id: &str) -> Error {
    let noun = match kind {
        Kind::Thread => "thread",
        Kind::Assistant => "assistant",
    };
    Error::Rejected(Box::new(Rejection {
        status: 404,
        body: Some(ErrorBody {
            message: format!("No {noun} found with id '{id}'."),
            r#type: "invalid_request_error".to_owned(),
            ..ErrorBody::default()
        }),
        missing_route: false,
        request_id: None,
        retry_after: None,
        should_retry: None,
        idempotency: Idempotency::Idempotent,
        own_key: true,
        headers: HeaderMap::new(),
    }))
}

/// What a resource is to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Its own.
    Own,
    /// Nobody's, which all may use.
    Shared,
    /// Not there.
    Denied,
}

/// A resource that can be marked.
trait Marked: Answerable {
    fn mark(&self) -> Option<String>;
    fn remove_mark(&mut self);
}

macro_rules! marked {
    ($($message:ty),*) => {$(
        impl Marked for $message {
            fn mark(&self) -> Option<String> {
                let own = self.metadata.get(MARK_KEY).cloned();
                // Metadata with other values than strings is there as a whole.
                own.or_else(|| {
                    let metadata = json::split_member(self.extra_json.as_bytes(), "metadata").ok()?;
                    json::text_member(metadata.value?.as_bytes(), MARK_KEY)
                })
            }

            fn remove_mark(&mut self) {
                self.metadata.remove(MARK_KEY);
                if has_mark(self.extra_json.as_bytes()) {
                    let without = json::without_member(self.extra_json.as_bytes(), MARK_KEY);
                    self.extra_json = without.unwrap_or_default();
                }
            }
        }
    )*};
}

marked!(ThreadResource, Assistant);

/// Which callers may use what.
#[derive(Debug)]
pub(super) struct Isolation {
    rules: IsolationRules,
    memory: Mutex<Memory>,
}

impl Isolation {
    pub(super) fn new(rules: IsolationRules) -> Self {
        let remembered = || Remembered {
            max: rules.max_remembered,
            ..Remembered::default()
        };
        let memory = Mutex::new(Memory {
            allowed: remembered(),
            denied: remembered(),
            ..Memory::default()
        });
        Self { rules, memory }
    }

    pub(super) fn mark(&self, name: &str) -> Option<Mark> {
        (!name.is_empty()).then(|| self.rules.key.mark(name))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kinds that belong to callers.
    fn kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        let assistants = self.rules.assistants;
        Kind::ALL
            .into_iter()
            .filter(move |kind| *kind == Kind::Thread || assistants)
    }

    /// What this request makes or changes, and may mark.
    fn changes(&self, request: &Request) -> Option<(Kind, Change)> {
        if request.method != Method::POST {
            return None;
        }
        let route = request.target.route;
        if route == "/threads/runs" {
            return Some((Kind::Thread, Change::NewThreadOfRun));
        }
        self.kinds().find_map(|kind| {
            let (_, one, all) = kind.names();
            let change = if route == all {
                Change::New
            } else if route == one {
                Change::Old
            } else {
                return None;
            };
            Some((kind, change))
        })
    }

    /// The assistant that a run is to be made with, as a segment of a path.
    fn assistant_of_run(&self, request: &Request) -> Result<Option<String>, Error> {
        let makes_run = request.method == Method::POST
            && ["/threads/{thread_id}/runs", "/threads/runs"].contains(&request.target.route);
        let Some(body) = request.body.as_deref().filter(|_| makes_run) else {
            return Ok(None);
        };
        if !self.rules.assistants {
            return Ok(None);
        }
        let field = |name: &str| format!("{}.{name}", request.body_field);
        let member = json::split_member(body, "assistant_id").map_err(|error| {
            Error::invalid(request.body_field, format!("is not an object ({error})"))
        })?;
        if member.is_ambiguous {
            return Err(Error::invalid(
                field("extra_json"),
                "must name the assistant once only",
            ));
        }
        let Some(value) = member.value.filter(|value| *value != "null") else {
            return Ok(None);
        };
        let id = json::text_member(body, "assistant_id").filter(|_| value.starts_with('"'));
        let id = id.ok_or_else(|| Error::invalid(field("assistant_id"), "is not an id"))?;
        let target = super::target::target("/assistants/{assistant_id}", &[("assistant_id", &id)]);
        let target = target.map_err(|error| error.within(request.body_field))?;
        Ok(Some(target.id("assistant_id").to_owned()))
    }

    /// Refuses what a caller may not ask for, and marks what it makes or changes.
    async fn allow(
        &self,
        client: &Client,
        caller: &Caller,
        request: &mut Request,
    ) -> Result<(), Error> {
        let mark = caller.mark.ok_or(Error::NotAdmitted { what: NAMELESS })?;
        if let Some(body) = request.body.as_deref()
            && let Some(path) = names_mark(body)
        {
            return Err(Error::invalid(
                format!("{}.{path}", request.body_field),
                format!("must not name {MARK_KEY}: the gateway sets it (--isolate-callers)"),
            ));
        }
        let change = self.changes(request);
        let marked = match (&change, request.body.as_deref()) {
            (Some((_, change)), Some(body)) => {
                let marked = put_mark(body, *change, &mark);
                Some(marked.map_err(|refused| refused.within(request.body_field))?)
            }
            _ => None,
        };
        let assistant = self.assistant_of_run(request)?;
        let mut own = true;
        for kind in self.kinds() {
            let segment = request.target.id(kind.names().0);
            let segment = match (segment, kind, &assistant) {
                ("", Kind::Assistant, Some(assistant)) => assistant,
                (segment, _, _) => segment,
            };
            if !segment.is_empty() {
                let verdict = self.check(client, caller, &mark, kind, segment).await?;
                own &= verdict == Verdict::Own;
            }
        }
        // What is nobody's stays nobody's.
        if let (Some((_, change)), Some(body)) = (change, marked)
            && (own || change != Change::Old)
        {
            request.body = Some(body.into_bytes().into());
        }
        self.forget_deleted(request);
        Ok(())
    }

    /// A resource of a caller's own, or one that it may use. Reads its mark if it is not
    /// remembered.
    async fn check(
        &self,
        client: &Client,
        caller: &Caller,
        mark: &Mark,
        kind: Kind,
        segment: &str,
    ) -> Result<Verdict, Error> {
        let path = kind.path(segment);
        let known = || self.memory().verdict(&path, mark);
        let verdict = if let Some(verdict) = known() {
            verdict
        } else {
            // One reads, and calls that ask for the same meanwhile wait for that.
            let reading = Reading::join(self, &path, mark);
            let _turn = reading.turn().await;
            match known() {
                Some(verdict) => verdict,
                None => self.read(client, caller, mark, kind, segment).await?,
            }
        };
        if verdict == Verdict::Denied {
            let id = percent_decode_str(segment).decode_utf8_lossy();
            return Err(not_found(kind, &id));
        }
        Ok(verdict)
    }

    async fn read(
        &self,
        client: &Client,
        caller: &Caller,
        mark: &Mark,
        kind: Kind,
        segment: &str,
    ) -> Result<Verdict, Error> {
        let path = kind.path(segment);
        let deletions = self.memory().deletions;
        let id = percent_decode_str(segment).decode_utf8_lossy();
        let read = match kind {
            Kind::Thread => read_mark::<ThreadResource>(client, caller, kind, &id).await,
            Kind::Assistant => read_mark::<Assistant>(client, caller, kind, &id).await,
        };
        let verdict = match read {
            Ok(found) => self.judge(mark, found.as_deref()),
            // No id of such a resource, whatever else it is.
            Err(Error::Invalid { .. }) => Verdict::Denied,
            Err(error) if error.is_not_found() => Verdict::Denied,
            Err(error) => return Err(error),
        };
        let age = self.rules.max_age;
        self.memory()
            .remember(&path, *mark, verdict, age, deletions);
        Ok(verdict)
    }

    fn judge(&self, mark: &Mark, found: Option<&str>) -> Verdict {
        match (found, self.rules.unmarked) {
            (Some(found), _) if found == mark.as_str() => Verdict::Own,
            (None, Unmarked::Allow) => Verdict::Shared,
            _ => Verdict::Denied,
        }
    }

    /// Forgets what a request deletes.
    fn forget_deleted(&self, request: &Request) {
        if request.method == Method::DELETE {
            for kind in Kind::ALL {
                if request.target.route == kind.names().1 {
                    self.memory().forget(&request.target.path);
                }
            }
        }
    }

    /// A caller's request was answered, or not. What it found gone is forgotten.
    pub(super) fn answered(&self, request: &Allowed, error: Option<&Error>) {
        if request.shows_marks {
            // What a read of a mark found is remembered by who reads it.
            return;
        }
        self.forget_deleted(request);
        if error.is_some_and(Error::is_not_found) {
            for kind in Kind::ALL {
                let segment = request.target.id(kind.names().0);
                if !segment.is_empty() {
                    self.memory().forget_allowed(&kind.path(segment));
                }
            }
        }
    }

    /// A page of the assistants that a caller may use. The upstream's pages are looked through, a
    /// hundred at most.
    async fn list_assistants(
        &self,
        client: &Client,
        caller: &Caller,
        request: &ListAssistantsRequest,
    ) -> Result<Answer<ListAssistantsResponse>, Error> {
        // What is wrong with the request is said of the caller's own.
        request.request()?;
        let mark = caller.mark.ok_or(Error::NotAdmitted { what: NAMELESS })?;
        for (field, id) in [("after", &request.after), ("before", &request.before)] {
            if !id.is_empty() {
                let ids = [("assistant_id", id.as_str())];
                let target = super::target::target("/assistants/{assistant_id}", &ids);
                let target = target.map_err(|_| Error::invalid(field, "is not an id"))?;
                let segment = target.id("assistant_id");
                self.check(client, caller, &mark, Kind::Assistant, segment)
                    .await?;
            }
        }
        let wanted = usize::try_from(request.limit.unwrap_or(DEFAULT_PAGE)).unwrap_or_default();
        let backwards = request.after.is_empty() && !request.before.is_empty();
        let mut asked = ListAssistantsRequest {
            limit: Some(LONG_PAGE),
            ..request.clone()
        };
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = Allowed {
                request: asked.request()?,
                shows_marks: true,
            };
            let Answer {
                message: mut page,
                headers,
            } = client
                .send_allowed::<ListAssistantsResponse>(caller, &page)
                .await?;
            let mut data = std::mem::take(&mut page.data);
            if backwards {
                data.reverse();
            }
            let last = data.last().map(|assistant| assistant.id.clone());
            let is_own =
                |it: &Assistant| self.judge(&mark, it.mark().as_deref()) != Verdict::Denied;
            found.extend(data.into_iter().filter(is_own));
            let has_more = page.has_more.unwrap_or_default() && last.is_some();
            if found.len() > wanted || !has_more {
                page.has_more = Some(found.len() > wanted);
                found.truncate(wanted);
                if backwards {
                    found.reverse();
                }
                found.iter_mut().for_each(Marked::remove_mark);
                let id = |it: Option<&Assistant>| it.map(|it| it.id.clone()).unwrap_or_default();
                page.first_id = id(found.first());
                page.last_id = id(found.last());
                page.data = found;
                return Ok(Answer {
                    message: page,
                    headers,
                });
            }
            let cursor = if backwards {
                &mut asked.before
            } else {
                &mut asked.after
            };
            *cursor = last.unwrap_or_default();
        }
        Err(Error::Overloaded(Limit {
            what: "pages of assistants to look through",
            max: MAX_PAGES,
            flag: "--isolate-assistants",
        }))
    }
}

/// Reads whose a resource is.
async fn read_mark<M: Marked>(
    client: &Client,
    caller: &Caller,
    kind: Kind,
    id: &str,
) -> Result<Option<String>, Error> {
    let (name, one, _) = kind.names();
    let read = Allowed {
        request: Request::new(Method::GET, one, &[(name, id)], Idempotency::Idempotent)?,
        shows_marks: true,
    };
    // The caller's key is that of its own request.
    let mut caller = caller.clone();
    caller.headers.remove(IDEMPOTENCY_KEY);
    let answer = client.send_allowed::<M>(&caller, &read).await?;
    Ok(answer.message.mark())
}

impl Client {
    /// The same client, which isolates callers from each other. Without it, all callers may use
    /// all that the gateway's key may use.
    #[must_use]
    pub fn isolating(mut self, rules: IsolationRules) -> Self {
        self.isolation = Some(Arc::new(Isolation::new(rules)));
        self
    }

    /// The mark of what the caller of this name makes; `None` if callers are not isolated, or have
    /// no name.
    pub fn mark(&self, name: Option<&str>) -> Option<Mark> {
        self.isolation.as_ref()?.mark(name?)
    }

    /// What may be sent of a request, once it is known that its caller may make it.
    pub(super) async fn allow(
        &self,
        caller: &Caller,
        mut request: Request,
    ) -> Result<Allowed, Error> {
        if let Some(isolation) = &self.isolation {
            // Apart, since nothing is waited for as a rule, and the caller's future would hold it.
            Box::pin(isolation.allow(self, caller, &mut request)).await?;
        }
        Ok(Allowed {
            request,
            shows_marks: self.isolation.is_none(),
        })
    }

    /// `GET /assistants`
    pub async fn list_assistants(
        &self,
        caller: &Caller,
        request: &ListAssistantsRequest,
    ) -> Result<Answer<ListAssistantsResponse>, Error> {
        match &self.isolation {
            Some(isolation) if isolation.rules.assistants => {
                Box::pin(isolation.list_assistants(self, caller, request)).await
            }
            _ => self.send(caller, request.request()?).await,
        }
    }
}

/// The path of the first metadata in a body that name the mark.
fn names_mark(body: &[u8]) -> Option<String> {
    // A name with an escape in it may read as the key.
    let may_be = |word: &str| memmem::find(body, word.as_bytes()).is_some();
    let is_key = || {
        let lower = body.to_ascii_lowercase();
        memmem::find(&lower, MARK_KEY.as_bytes()).is_some()
    };
    (may_be("\\u") || is_key())
        .then(|| json::path_to(body, "metadata", MARK_KEY))
        .flatten()
}

/// What becomes of a resource by a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It is made.
    New,
    /// It is a thread that is made with a run.
    NewThreadOfRun,
    /// It was there.
    Old,
}

/// The body with the mark in its metadata, or the field that stands against it. Metadata that a
/// change does not name stay as they are.
fn put_mark(body: &[u8], change: Change, mark: &Mark) -> Result<String, Error> {
    match change {
        Change::New => marked(body, mark, true),
        Change::Old => marked(body, mark, false),
        Change::NewThreadOfRun => {
            let member = split(body, "thread")?;
            let thread = member.value.filter(|value| *value != "null");
            let thread = marked(thread.unwrap_or("{}").as_bytes(), mark, true);
            Ok(member.with("thread", &thread.map_err(|error| error.within("thread"))?))
        }
    }
}

fn marked(resource: &[u8], mark: &Mark, is_new: bool) -> Result<String, Error> {
    let member = split(resource, "metadata")?;
    let Some(value) = member.value.or(is_new.then_some("null")) else {
        return Ok(member.text());
    };
    let metadata = if value == "null" { "{}" } else { value };
    let pairs = json::split_member(metadata.as_bytes(), MARK_KEY)
        .map_err(|_| Error::invalid("metadata", "must be an object"))?;
    if pairs.others > MAX_PAIRS {
        return Err(Error::invalid(
            "metadata",
            format!(
                "must have at most {MAX_PAIRS} pairs: the gateway adds one that says whose it is (--isolate-callers)"
            ),
        ));
    }
    let metadata = pairs.with(MARK_KEY, &format!("\"{}\"", mark.as_str()));
    Ok(member.with("metadata", &metadata))
}

/// Splits off a member of a body, which is an object, as it was just written.
fn split<'a>(body: &'a [u8], name: &str) -> Result<json::Member<'a>, Error> {
    let member = json::split_member(body, name)
        .map_err(|error| Error::invalid(name, format!("is not in an object ({error})")))?;
    if member.is_ambiguous {
        let description = format!("must name {name:?} once at most, in lower case");
        return Err(Error::invalid("extra_json", description));
    }
    Ok(member)
}

/// What was read, and is being read.
#[derive(Debug, Default)]
struct Memory {
    allowed: Remembered,
    denied: Remembered,
    /// Reads that go on, by path and mark.
    reading: HashMap<(String, Mark), Weak<tokio::sync::Mutex<()>>>,
    /// Paths that were deleted lately, the last one at the end, and how many there have been.
    deleted: VecDeque<Box<str>>,
    deletions: u64,
}

impl Memory {
    fn verdict(&mut self, path: &str, mark: &Mark) -> Option<Verdict> {
        let now = Instant::now();
        let allowed = self.allowed.verdict(path, mark, now);
        allowed.or_else(|| self.denied.verdict(path, mark, now))
    }

    /// Remembers what a read gave that began after so many deletions.
    fn remember(&mut self, path: &str, mark: Mark, verdict: Verdict, age: Duration, began: u64) {
        let since = usize::try_from(self.deletions - began).unwrap_or(usize::MAX);
        let is_deleted = since > self.deleted.len()
            || self
                .deleted
                .iter()
                .rev()
                .take(since)
                .any(|deleted| **deleted == *path);
        if path.len() > MAX_PATH || is_deleted {
            return;
        }
        let (remembered, age) = match verdict {
            Verdict::Denied => (&mut self.denied, DENIED),
            Verdict::Own | Verdict::Shared => (&mut self.allowed, age),
        };
        let known = Known {
            mark,
            verdict,
            until: Instant::now() + age,
        };
        remembered.put(path, known);
    }

    fn forget(&mut self, path: &str) {
        self.forget_allowed(path);
        self.denied.forget(path);
    }

    /// Forgets that anybody may use this, and what is being read of it.
    fn forget_allowed(&mut self, path: &str) {
        self.allowed.forget(path);
        self.deletions += 1;
        self.deleted.push_back(path.into());
        if self.deleted.len() > DELETIONS {
            self.deleted.pop_front();
        }
    }
}

/// What is remembered of one caller and one resource.
#[derive(Debug, Clone, Copy)]
struct Known {
    mark: Mark,
    verdict: Verdict,
    until: Instant,
}

/// What is remembered, by path. Bounded: the older half is forgotten when the newer one is full.
#[derive(Debug, Default)]
struct Remembered {
    max: usize,
    newer: HashMap<Box<str>, Vec<Known>>,
    older: HashMap<Box<str>, Vec<Known>>,
}

impl Remembered {
    fn verdict(&mut self, path: &str, mark: &Mark, now: Instant) -> Option<Verdict> {
        let find = |known: &Vec<Known>| {
            let found = known.iter().find(|it| it.mark == *mark && it.until > now);
            found.copied()
        };
        if let Some(known) = self.newer.get(path).and_then(find) {
            return Some(known.verdict);
        }
        let known = self.older.get(path).and_then(find)?;
        self.put(path, known);
        Some(known.verdict)
    }

    fn put(&mut self, path: &str, known: Known) {
        if self.newer.len() >= (self.max / 2).max(1) && !self.newer.contains_key(path) {
            self.older = std::mem::take(&mut self.newer);
        }
        let now = Instant::now();
        let all = self.newer.entry(path.into()).or_default();
        all.retain(|it| it.mark != known.mark && it.until > now);
        all.push(known);
    }

    fn forget(&mut self, path: &str) {
        self.newer.remove(path);
        self.older.remove(path);
    }
}

/// A read that one caller's calls wait for together.
struct Reading<'a> {
    isolation: &'a Isolation,
    key: (String, Mark),
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl<'a> Reading<'a> {
    fn join(isolation: &'a Isolation, path: &str, mark: &Mark) -> Self {
        let key = (path.to_owned(), *mark);
        let mut memory = isolation.memory();
        let lock = memory.reading.get(&key).and_then(Weak::upgrade);
        let lock = lock.unwrap_or_default();
        memory.reading.insert(key.clone(), Arc::downgrade(&lock));
        Self {
            isolation,
            key,
            lock: Some(lock),
        }
    }

    async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match &self.lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut memory = self.isolation.memory();
        self.lock = None;
        if let Some(lock) = memory.reading.get(&self.key)
            && lock.strong_count() == 0
        {
            memory.reading.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(600);

    fn mark(name: &str) -> Mark {
        MarkKey::new(&[7; 32]).mark(name)
    }

    fn memory(max: usize) -> Memory {
        Memory {
            allowed: Remembered {
                max,
                ..Remembered::default()
            },
            denied: Remembered {
                max,
                ..Remembered::default()
            },
            ..Memory::default()
        }
    }

    #[test]
    fn a_mark_is_the_hmac_of_the_name() {
        let marks = [mark("a"), mark("b"), MarkKey::new(&[8; 32]).mark("a")];
        assert_eq!(mark("a"), marks[0]);
        assert!(marks[0] != marks[1] && marks[0] != marks[2]);
        assert!(marks[0].as_str().len() == 64);
    }

    #[test]
    fn the_mark_is_put_into_a_body_and_nothing_else_changes() {
        let mark = mark("a");
        let pair = format!("\"{MARK_KEY}\":\"{}\"", mark.as_str());
        let cases = [
            ("{}", Change::New, format!("{{\"metadata\":{{{pair}}}}}")),
            ("{}", Change::Old, "{}".to_owned()),
            (
                r#"{"metadata":null}"#,
                Change::Old,
                format!("{{\"metadata\":{{{pair}}}}}"),
            ),
            (
                r#"{"metadata":{}}"#,
                Change::Old,
                format!("{{\"metadata\":{{{pair}}}}}"),
            ),
            (
                r#"{"metadata":{"a":"b"},"x":[1.0]}"#,
                Change::New,
                format!("{{\"x\":[1.0],\"metadata\":{{\"a\":\"b\",{pair}}}}}"),
            ),
            (
                r#"{"metadata":{"of":"the run"}}"#,
                Change::NewThreadOfRun,
                format!(
                    "{{\"metadata\":{{\"of\":\"the run\"}},\"thread\":{{\"metadata\":{{{pair}}}}}}}"
                ),
            ),
        ];
        for (body, change, expected) in cases {
            assert_eq!(
                put_mark(body.as_bytes(), change, &mark).expect(body),
                expected
            );
        }
        let pairs = |count: usize| {
            let pairs: Vec<_> = (0..count).map(|at| format!("\"k{at}\":\"v\"")).collect();
            format!("{{\"metadata\":{{{}}}}}", pairs.join(","))
        };
        put_mark(pairs(15).as_bytes(), Change::New, &mark).expect("15 pairs");
        for wrong in [
            &pairs(16),
            r#"{"metadata":{},"metadata":{}}"#,
            r#"{"Metadata":{}}"#,
            r#"{"metadata":[]}"#,
            r#"{"metadata":"x"}"#,
        ] {
            put_mark(wrong.as_bytes(), Change::New, &mark).expect_err(wrong);
            put_mark(wrong.as_bytes(), Change::Old, &mark).expect_err(wrong);
        }
    }

    #[test]
    fn the_mark_is_found_however_it_is_written() {
        let cases = [
            (
                r#"{"metadata":{"runs_gateway_caller":"x"}}"#,
                Some("metadata"),
            ),
            (
                r#"{"metadata":{"RUNS_gateway_caller":"x"}}"#,
                Some("metadata"),
            ),
            (
                r#"{"metadata":{"\u0072uns_gateway_caller":1}}"#,
                Some("metadata"),
            ),
            (
                r#"{"messages":[{"metadata":{"runs_gateway_caller":"x"}}]}"#,
                Some("messages[0].metadata"),
            ),
            (r#"{"content":"runs_gateway_caller"}"#, None),
            (r#"{"metadata":{"a":"runs_gateway_caller"}}"#, None),
        ];
        for (body, path) in cases {
            assert_eq!(names_mark(body.as_bytes()).as_deref(), path, "{body}");
        }
    }

    #[test]
    fn what_is_remembered_is_one_callers_and_bounded() {
        let (mut memory, a, b) = (memory(4), mark("a"), mark("b"));
        memory.remember("/threads/1", a, Verdict::Own, AGE, 0);
        assert_eq!(memory.verdict("/threads/1", &a), Some(Verdict::Own));
        assert_eq!(memory.verdict("/threads/1", &b), None);
        for number in 0..100 {
            memory.remember(&format!("/threads/x{number}"), b, Verdict::Own, AGE, 0);
            // What is used is not forgotten.
            assert_eq!(memory.verdict("/threads/1", &a), Some(Verdict::Own));
        }
        assert!(memory.allowed.newer.len() + memory.allowed.older.len() <= 4);
        let long = "x".repeat(MAX_PATH + 1);
        memory.remember(&long, a, Verdict::Own, AGE, 0);
        assert_eq!(memory.verdict(&long, &a), None);
    }

    #[test]
    fn a_read_that_began_before_a_deletion_is_not_remembered() {
        let (mut memory, a) = (memory(10), mark("a"));
        memory.remember("/threads/1", a, Verdict::Own, AGE, 0);
        let began = memory.deletions;
        memory.forget("/threads/1");
        assert_eq!(memory.verdict("/threads/1", &a), None);
        memory.remember("/threads/1", a, Verdict::Own, AGE, began);
        assert_eq!(memory.verdict("/threads/1", &a), None);
        memory.remember("/threads/2", a, Verdict::Own, AGE, began);
        assert_eq!(memory.verdict("/threads/2", &a), Some(Verdict::Own));
        // More deletions than are kept: nobody knows.
        for _ in 0..=DELETIONS {
            memory.forget("/threads/3");
        }
        memory.remember("/threads/4", a, Verdict::Own, AGE, began);
        assert_eq!(memory.verdict("/threads/4", &a), None);
        let now = memory.deletions;
        memory.remember("/threads/1", a, Verdict::Own, AGE, now);
        assert_eq!(memory.verdict("/threads/1", &a), Some(Verdict::Own));
    }
}
