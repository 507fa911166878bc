//! Callers that must not see each other: a thread belongs to the caller that made it.
//!
//! A thread that is made through the gateway is marked in its metadata (`marks.rs`) with a keyed
//! hash of its caller's name. Before any other request on a thread its mark is read.
//!
//! Must hold:
//!
//! - **No request passes by.** [`Allowed`] is the only thing that can be sent, and this file the
//!   only one that makes it.
//! - What is another caller's, what is nobody's ([`Unmarked::Deny`]) and what does not exist is one
//!   error, made in one place ([`not_found`]), after the same work: one read, which is remembered
//!   for [`DENIED`]. So neither bytes nor time tell them apart.
//! - What is remembered is bounded in number and age, and is one caller's: that somebody else uses
//!   a thread changes nothing for who asks.
//! - After a deletion nothing of what was read before it is remembered.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use ring::hmac;
use tokio::time::Instant;

use super::{
    Answer, Caller, Client, IDEMPOTENCY_KEY, Request,
    endpoints::RestCall,
    marks::{self, Marked},
};
use crate::{
    error::{Error, ErrorBody, Idempotency, Rejection},
    json,
    shares::Limit,
    v1::{Assistant, ListAssistantsRequest, ListAssistantsResponse, ThreadResource},
};

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

    fn mark(&self, name: &str) -> CallerMark {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"runs-gateway caller\0");
        context.update(name.as_bytes());
        let mut hex = [0; 64];
        for (byte, digits) in context.sign().as_ref().iter().zip(hex.chunks_exact_mut(2)) {
            digits[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            digits[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        CallerMark(hex)
    }
}

impl fmt::Debug for MarkKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("MarkKey")
    }
}

/// Whose a resource is: a keyed hash of its caller's name, as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallerMark([u8; 64]);

impl CallerMark {
    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A request that its caller may make.
pub(super) struct Allowed(Request);

impl Deref for Allowed {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.0
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

    pub(super) fn mark(&self, name: &str) -> Option<CallerMark> {
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
        mark: &CallerMark,
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
        mark: &CallerMark,
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

    fn judge(&self, mark: &CallerMark, found: Option<&str>) -> Verdict {
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
            let page = Allowed(asked.request()?.showing_marks());
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
            let is_own = |it: &Assistant| {
                self.judge(&mark, it.mark(marks::CALLER).as_deref()) != Verdict::Denied
            };
            found.extend(data.into_iter().filter(is_own));
            let has_more = page.has_more.unwrap_or_default() && last.is_some();
            if found.len() > wanted || !has_more {
                page.has_more = Some(found.len() > wanted);
                found.truncate(wanted);
                if backwards {
                    found.reverse();
                }
                found.iter_mut().for_each(Marked::unmark);
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
    let read = Request::new(Method::GET, one, &[(name, id)], Idempotency::Idempotent)?;
    let read = Allowed(read.showing_marks());
    // The caller's key is that of its own request.
    let mut caller = caller.clone();
    caller.headers.remove(IDEMPOTENCY_KEY);
    let answer = client.send_allowed::<M>(&caller, &read).await?;
    Ok(answer.message.mark(marks::CALLER))
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
    pub fn caller_mark(&self, name: Option<&str>) -> Option<CallerMark> {
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
        Ok(Allowed(request))
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
fn put_mark(body: &[u8], change: Change, mark: &CallerMark) -> Result<String, Error> {
    match change {
        Change::New => marks::put(body, true, marks::CALLER, mark.as_str()),
        Change::Old => marks::put(body, false, marks::CALLER, mark.as_str()),
        Change::NewThreadOfRun => {
            let member = marks::split(body, "thread")?;
            let thread = member.value.filter(|value| *value != "null");
            let thread = thread.unwrap_or("{}").as_bytes();
            let thread = marks::put(thread, true, marks::CALLER, mark.as_str());
            Ok(member.with("thread", &thread.map_err(|error| error.within("thread"))?))
        }
    }
}

/// What was read, and is being read.
#[derive(Debug, Default)]
struct Memory {
    allowed: Remembered,
    denied: Remembered,
    /// Reads that go on, by path and mark.
    reading: HashMap<(String, CallerMark), Weak<tokio::sync::Mutex<()>>>,
    /// Paths that were deleted lately, the last one at the end, and how many there have been.
    deleted: VecDeque<Box<str>>,
    deletions: u64,
}

impl Memory {
    fn verdict(&mut self, path: &str, mark: &CallerMark) -> Option<Verdict> {
        let now = Instant::now();
        let allowed = self.allowed.verdict(path, mark, now);
        allowed.or_else(|| self.denied.verdict(path, mark, now))
    }

    /// Remembers what a read gave that began after so many deletions.
    fn remember(
        &mut self,
        path: &str,
        mark: CallerMark,
        verdict: Verdict,
        age: Duration,
        began: u64,
    ) {
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
    mark: CallerMark,
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
    fn verdict(&mut self, path: &str, mark: &CallerMark, now: Instant) -> Option<Verdict> {
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
    key: (String, CallerMark),
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl<'a> Reading<'a> {
    fn join(isolation: &'a Isolation, path: &str, mark: &CallerMark) -> Self {
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

    fn mark(name: &str) -> CallerMark {
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
    fn what_a_request_makes_is_marked() {
        let mark = mark("a");
        let pair = format!("\"runs_gateway_caller\":\"{}\"", mark.as_str());
        let cases = [
            ("{}", Change::New, format!("{{\"metadata\":{{{pair}}}}}")),
            ("{}", Change::Old, "{}".to_owned()),
            (
                r#"{"metadata":{"of":"the run"}}"#,
                Change::NewThreadOfRun,
                format!(
                    "{{\"metadata\":{{\"of\":\"the run\"}},\"thread\":{{\"metadata\":{{{pair}}}}}}}"
                ),
            ),
        ];
        for (body, change, expected) in cases {
            let marked = put_mark(body.as_bytes(), change, &mark).expect(body);
            assert_eq!(marked, expected);
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
