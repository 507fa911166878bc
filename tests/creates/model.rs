//! A model of the upstream: it has threads, runs, messages and assistants, it lists them, and it
//! breaks on demand, before or after it has done what was asked.
//!
//! Must hold: a run moves on only when it is polled or cancelled, so that nothing depends on time.
//! A thread with an active run refuses another one, in the words of the services, as the only
//! arbiter.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::upstream::{Answer, Recorded, Upstream};

/// What goes wrong with a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The connection is reset before anything is done.
    ResetBefore,
    /// It is closed before anything is done.
    ClosedBefore,
    /// It is done, and the connection is reset without an answer.
    ResetAfter,
    /// It is done, and the connection is closed without an answer.
    ClosedAfter,
    /// It is done, and half of the answer comes.
    Half,
    /// It is done, and this status is the answer.
    ErrorAfter(u16),
    /// It is not done, and this status is the answer.
    ErrorBefore(u16),
    /// It is done, and this status is the answer, which asks for a retry.
    ToldToRetry,
    /// It is not done, and no answer ever comes.
    HeldBefore,
    /// It is done, and no answer ever comes.
    HeldAfter,
    /// It is done only once somebody has looked for it in vain; the answer is lost.
    Late,
}

impl Fault {
    /// The upstream has done what was asked.
    pub(crate) fn is_done(self) -> bool {
        !matches!(
            self,
            Self::ResetBefore | Self::ClosedBefore | Self::ErrorBefore(_) | Self::HeldBefore
        )
    }
}

/// The upstream, and what it holds.
pub(crate) struct Model {
    pub(crate) upstream: Upstream,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    /// The runs of each thread, oldest first.
    pub(crate) runs: BTreeMap<String, Vec<Value>>,
    pub(crate) messages: BTreeMap<String, Vec<Value>>,
    pub(crate) assistants: Vec<Value>,
    /// The metadata of threads.
    pub(crate) threads: BTreeMap<String, Value>,
    /// What goes wrong with the next creates. A thread's is one by itself.
    pub(crate) faults: VecDeque<Fault>,
    /// Creates that were refused since a run was active.
    pub(crate) refused: usize,
    pub(crate) cancelled: Vec<String>,
    /// A run is not over before it was polled so often.
    pub(crate) polls: usize,
    /// Runs require action when they were polled so often, and wait for ever.
    pub(crate) wait_for_outputs: bool,
    /// Somebody begins a run as soon as one was cancelled.
    pub(crate) follows: bool,
    /// Refusals name the active run.
    pub(crate) names_run: bool,
    /// Answers to creates wait for this.
    pub(crate) gate: Option<Arc<Notify>>,
    /// The next list of runs is as it is by now, and is there once this says so.
    pub(crate) late_list: Option<Arc<Notify>>,
    /// Creates whose answers never come.
    pub(crate) held: usize,
    /// Reads fail with this status.
    pub(crate) broken_reads: Option<u16>,
    late: Option<(String, Value)>,
    polled: BTreeMap<String, usize>,
    next: usize,
}

const TERMINAL: [&str; 2] = ["completed", "cancelled"];

impl Model {
    /// With the thread `thread_1`, on which nothing is.
    pub(crate) async fn start() -> Self {
        let state = State {
            polls: 2,
            next: 100,
            names_run: true,
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        lock(&state).add_thread("thread_1");
        let answering = Arc::clone(&state);
        let upstream = Upstream::answering(move |request| lock(&answering).answer(request)).await;
        Self { upstream, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The next creates fail so.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// So many requests of this method whose path ends so.
    pub(crate) fn count(&self, method: &str, end: &str) -> usize {
        let is = |it: &&crate::support::upstream::Recorded| {
            let path = it.target.split('?').next().unwrap_or_default();
            it.method == method && path.ends_with(end)
        };
        self.upstream.requests().iter().filter(is).count()
    }
}

impl State {
    fn add_thread(&mut self, id: &str) {
        self.runs.insert(id.to_owned(), Vec::new());
        self.messages.insert(id.to_owned(), Vec::new());
    }

    /// All runs on all threads.
    pub(crate) fn all_runs(&self) -> Vec<&Value> {
        self.runs.values().flatten().collect()
    }

    /// A run on a thread that somebody else began.
    pub(crate) fn begin_run(&mut self, thread_id: &str) -> String {
        let run = self.new_run(thread_id, &json!({}));
        let id = text(&run["id"]);
        self.runs.get_mut(thread_id).expect("a thread").push(run);
        id
    }

    fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}_{}", self.next)
    }

    fn new_run(&mut self, thread_id: &str, body: &Value) -> Value {
        let metadata = body.get("metadata").cloned().unwrap_or(json!({}));
        json!({ "id": self.id("run"), "object": "thread.run", "thread_id": thread_id, "status": "queued",
            "assistant_id": body["assistant_id"], "created_at": now(), "metadata": metadata })
    }

    fn active(&self, thread_id: &str) -> Option<String> {
        let runs = &self.runs[thread_id];
        let active = runs.iter().find(|run| !is_over(run));
        active.map(|run| text(&run["id"]))
    }

    fn answer(&mut self, request: &Recorded) -> Answer {
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((&request.target, ""));
        let path: Vec<_> = path.trim_start_matches('/').split('/').collect();
        let body = serde_json::from_slice(&request.body).unwrap_or(json!({}));
        if request.method == "GET"
            && let Some(status) = self.broken_reads
        {
            return refusal(status, "reads are broken");
        }
        match (&*request.method, &*path) {
            ("POST", ["threads"]) => {
                let id = self.id("thread");
                let metadata = body.get("metadata").cloned().unwrap_or(json!({}));
                let thread = json!({ "id": id, "object": "thread", "created_at": now(), "metadata": metadata });
                self.create(&thread, false, |state, thread| {
                    let id = text(&thread["id"]);
                    state.add_thread(&id);
                    state.threads.insert(id, thread["metadata"].clone());
                })
            }
            ("GET", ["threads", id]) => {
                let metadata = self.threads.get(*id).cloned().unwrap_or(json!({}));
                Answer::json(
                    200,
                    json!({ "id": id, "object": "thread", "metadata": metadata }).to_string(),
                )
            }
            ("POST", ["assistants"]) => {
                let assistant = json!({ "id": self.id("asst"), "object": "assistant", "created_at": now(),
                    "metadata": body["metadata"] });
                self.create(&assistant, false, |state, it| state.assistants.push(it))
            }
            ("POST", ["assistants", id]) => {
                let assistants = self.assistants.iter_mut();
                for assistant in assistants.filter(|it| it["id"] == **id) {
                    assistant["metadata"] = body["metadata"].clone();
                }
                one(&self.assistants, id)
            }
            ("GET", ["assistants"]) => page(&self.assistants, query),
            ("GET", ["assistants", id]) => one(&self.assistants, id),
            ("POST", ["threads", thread_id, kind @ ("runs" | "messages")]) => {
                let Some(active) = self.active(thread_id) else {
                    return self.create_on(thread_id, kind, &body);
                };
                self.refused += 1;
                let active = if self.names_run {
                    active
                } else {
                    String::new()
                };
                let words = if *kind == "runs" {
                    format!("Thread {thread_id} already has an active run {active}.")
                } else {
                    format!("Can't add messages to {thread_id} while a run {active} is active.")
                };
                refusal(400, &words)
            }
            ("GET", ["threads", thread_id, "runs"]) => {
                let answer = page(&self.runs[*thread_id], query);
                self.come_late();
                match self.late_list.take() {
                    Some(gate) => answer.chunked().wait(&gate),
                    None => answer,
                }
            }
            ("GET", ["threads", thread_id, "messages"]) => page(&self.messages[*thread_id], query),
            ("GET", ["threads", thread_id, "messages", id]) => one(&self.messages[*thread_id], id),
            ("GET", ["threads", thread_id, "runs", _, "steps"]) => {
                page(&self.runs[*thread_id][..0], "")
            }
            ("GET", ["threads", thread_id, "runs", id]) => {
                self.poll(thread_id, id);
                one(&self.runs[*thread_id], id)
            }
            ("POST", ["threads", thread_id, "runs", id, "cancel"]) => {
                self.cancelled.push((*id).to_owned());
                self.set(thread_id, id, "cancelling");
                self.polled.insert((*id).to_owned(), 0);
                one(&self.runs[*thread_id], id)
            }
            ("POST", ["threads", thread_id, kind @ ("runs" | "messages"), id]) => {
                let all = if *kind == "runs" {
                    &mut self.runs
                } else {
                    &mut self.messages
                };
                let all = all.get_mut(*thread_id).expect("a thread");
                let it = all
                    .iter_mut()
                    .find(|it| it["id"] == **id)
                    .expect("a resource");
                it["metadata"] = body["metadata"].clone();
                Answer::json(200, it.to_string())
            }
            _ => panic!("{} {}", request.method, request.target),
        }
    }

    fn create_on(&mut self, thread_id: &str, kind: &str, body: &Value) -> Answer {
        let thread = thread_id.to_owned();
        if kind == "runs" {
            let run = self.new_run(thread_id, body);
            let streams = body["stream"] == true;
            return self.create(&run, streams, move |state, run| {
                state.runs.get_mut(&thread).expect("a thread").push(run);
            });
        }
        let message = json!({ "id": self.id("msg"), "object": "thread.message", "thread_id": thread_id,
            "created_at": now(), "metadata": body["metadata"] });
        self.create(&message, false, move |state, message| {
            state
                .messages
                .get_mut(&thread)
                .expect("a thread")
                .push(message);
        })
    }

    fn create(
        &mut self,
        made: &Value,
        streams: bool,
        add: impl FnOnce(&mut Self, Value),
    ) -> Answer {
        let fault = self.faults.pop_front().unwrap_or(Fault::None);
        if fault == Fault::Late {
            self.late = Some((text(&made["thread_id"]), made.clone()));
        } else if fault.is_done() {
            add(self, made.clone());
        }
        let text = made.to_string();
        match fault {
            Fault::None if streams => self.stream(made),
            Fault::None => match &self.gate {
                None => Answer::json(200, text),
                Some(gate) => Answer::json(200, text)
                    .header("x-gate", "1")
                    .chunked()
                    .wait(gate),
            },
            Fault::ResetBefore | Fault::ResetAfter | Fault::Late => Answer::cut_before_answer(),
            Fault::HeldBefore | Fault::HeldAfter => {
                self.held += 1;
                Answer::never()
            }
            Fault::ClosedBefore | Fault::ClosedAfter => Answer::raw("").close(),
            Fault::Half if streams => {
                let half = format!(
                    "event: thread.run.created\ndata: {}",
                    &text[..text.len() / 2]
                );
                Answer::sse([half]).cut()
            }
            Fault::Half => Answer::new(200)
                .header("content-type", "application/json")
                .chunked()
                .bytes(text[..text.len() / 2].to_owned())
                .cut(),
            Fault::ErrorAfter(status) | Fault::ErrorBefore(status) => refusal(status, "it failed"),
            Fault::ToldToRetry => refusal(500, "it failed").header("x-should-retry", "true"),
        }
    }

    /// The run that was on its way arrives.
    fn come_late(&mut self) {
        if let Some((thread_id, run)) = self.late.take() {
            self.runs.get_mut(&thread_id).expect("a thread").push(run);
        }
    }

    /// A stream of the whole run.
    fn stream(&mut self, run: &Value) -> Answer {
        let (thread_id, id) = (text(&run["thread_id"]), text(&run["id"]));
        let mut events = vec![format!("event: thread.run.created\ndata: {run}\n\n")];
        if !self.wait_for_outputs {
            self.set(&thread_id, &id, "completed");
            let all = &self.runs[&thread_id];
            let run = all.iter().find(|it| it["id"] == id).expect("a run");
            events.push(format!("event: thread.run.completed\ndata: {run}\n\n"));
            events.push("event: done\ndata: [DONE]\n\n".to_owned());
        }
        Answer::sse(events)
    }

    fn poll(&mut self, thread_id: &str, id: &str) {
        let polled = self.polled.entry(id.to_owned()).or_default();
        *polled += 1;
        let is_due = *polled >= self.polls;
        let run = self.runs[thread_id].iter().find(|it| it["id"] == id);
        let status = run.map(|run| text(&run["status"])).unwrap_or_default();
        if !is_due || TERMINAL.contains(&&*status) {
            return;
        }
        let next = match &*status {
            "cancelling" => "cancelled",
            _ if self.wait_for_outputs => "requires_action",
            _ => "completed",
        };
        self.set(thread_id, id, next);
        if next == "cancelled" && self.follows {
            self.begin_run(thread_id);
        }
    }

    pub(crate) fn set(&mut self, thread_id: &str, id: &str, status: &str) {
        let runs = self.runs.get_mut(thread_id).expect("a thread");
        let run = runs.iter_mut().find(|it| it["id"] == id).expect("a run");
        run["status"] = status.into();
    }
}

fn is_over(run: &Value) -> bool {
    TERMINAL.contains(&&*text(&run["status"]))
}

/// A page as the query asks for it, of what is there oldest first.
fn page(all: &[Value], query: &str) -> Answer {
    let pairs: BTreeMap<_, _> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let newest_first = pairs.get("order") != Some(&"asc");
    let mut entries: Vec<_> = all.iter().collect();
    if newest_first {
        entries.reverse();
    }
    if let Some(after) = pairs.get("after") {
        let at = entries.iter().position(|it| it["id"] == **after);
        entries.drain(..=at.expect("an entry"));
    }
    let limit = pairs
        .get("limit")
        .map_or(20, |limit| limit.parse().expect("a number"));
    let has_more = entries.len() > limit;
    entries.truncate(limit);
    Answer::json(
        200,
        json!({ "object": "list", "data": entries, "has_more": has_more }).to_string(),
    )
}

fn one(all: &[Value], id: &str) -> Answer {
    match all.iter().find(|it| it["id"] == id) {
        Some(it) => Answer::json(200, it.to_string()),
        None => refusal(404, &format!("No resource found with id '{id}'.")),
    }
}

fn refusal(status: u16, message: &str) -> Answer {
    let error =
        json!({ "message": message, "type": "invalid_request_error", "param": null, "code": null });
    Answer::json(status, json!({ "error": error }).to_string())
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock that goes forward").as_secs()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("never held over a panic")
}
