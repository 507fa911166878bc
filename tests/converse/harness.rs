//! A run that is scripted on the upstream's side, and a caller that converses about it.
//!
//! Must hold: nothing waits for ever ([`within`]); the script fails the test on a create or a
//! submit that it has no answer for.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use runs_gateway::v1::{
    ConverseAttach, ConverseCancel, ConverseRunRequest, ConverseStart, GetRunRequest, RunEvent,
    RunEventType, RunSpec, StreamOptions, ToolOutput, ToolOutputs, converse_run_request::Message,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::support::{
    gateway::Gateway,
    upstream::{Answer, Recorded, Upstream},
};

pub(crate) const DONE: &str = "event: done\ndata: [DONE]\n\n";

/// The run in a state, waiting for these calls.
pub(crate) fn run(status: &str, calls: &[&str]) -> Value {
    let mut run =
        json!({ "id": "run_1", "object": "thread.run", "thread_id": "thread_1", "status": status });
    if status == "requires_action" {
        let call = |id: &&str| json!({ "id": id, "type": "function", "function": { "name": "f", "arguments": "{}" } });
        let calls: Vec<_> = calls.iter().map(call).collect();
        run["required_action"] = json!({ "type": "submit_tool_outputs", "submit_tool_outputs": { "tool_calls": calls } });
    }
    run
}

/// The event of the run's state.
pub(crate) fn state(status: &str, calls: &[&str]) -> String {
    format!(
        "event: thread.run.{status}\ndata: {}\n\n",
        run(status, calls)
    )
}

/// A run that is created, and that waits for these calls, as a stream.
pub(crate) fn asks(calls: &[&str]) -> Answer {
    Answer::sse([
        state("queued", &[]),
        state("in_progress", &[]),
        state("requires_action", calls),
        DONE.to_owned(),
    ])
}

/// A run that goes on to its end, as a stream.
pub(crate) fn completes() -> Answer {
    Answer::sse([
        state("in_progress", &[]),
        state("completed", &[]),
        DONE.to_owned(),
    ])
}

/// An error of the upstream's.
pub(crate) fn refusal(status: u16, message: &str) -> Answer {
    let error =
        json!({ "message": message, "type": "invalid_request_error", "param": null, "code": null });
    Answer::json(status, json!({ "error": error }).to_string())
}

/// The upstream's side of one run.
pub(crate) struct Script {
    pub(crate) upstream: Upstream,
    state: Arc<Mutex<State>>,
}

struct State {
    /// The answers to creates and submits, and how the run is polled from then on.
    posts: VecDeque<(Answer, Value)>,
    /// As it is polled. Null: it is not there.
    run: Value,
    steps: Vec<Value>,
}

impl Script {
    /// Each create or submit gets the next answer; from then on polling shows that run.
    pub(crate) async fn new(posts: impl IntoIterator<Item = (Answer, Value)>) -> Self {
        let state = State {
            posts: posts.into_iter().collect(),
            run: Value::Null,
            steps: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let answering = Arc::clone(&state);
        let upstream = Upstream::answering(move |request| lock(&answering).answer(request)).await;
        Self { upstream, state }
    }

    /// From now on polling shows this.
    pub(crate) fn show(&self, run: Value) {
        lock(&self.state).run = run;
    }

    /// From now on polling shows these steps.
    pub(crate) fn show_steps(&self, steps: impl IntoIterator<Item = Value>) {
        lock(&self.state).steps = steps.into_iter().collect();
    }

    /// Fails the test if an answer was not asked for.
    pub(crate) fn finish(self) {
        assert_eq!(
            lock(&self.state).posts.len(),
            0,
            "creates or submits were left out"
        );
    }

    fn count(&self, suffix: &str) -> usize {
        self.upstream
            .requests()
            .iter()
            .filter(|it| it.method == "POST" && it.target.ends_with(suffix))
            .count()
    }

    pub(crate) fn cancels(&self) -> usize {
        self.count("/cancel")
    }

    /// The bodies of all submits so far.
    pub(crate) fn submits(&self) -> Vec<Value> {
        let requests = self.upstream.requests();
        let submits = requests
            .iter()
            .filter(|it| it.target.ends_with("/submit_tool_outputs"));
        submits
            .map(|it| serde_json::from_slice(&it.body).expect("JSON"))
            .collect()
    }

    /// Waits until so many requests to cancel the run have come.
    pub(crate) async fn cancelled(&self, count: usize) {
        within("a cancellation", async {
            let mut requests = 0;
            while self.cancels() < count {
                requests += 1;
                self.upstream.wait_for_requests(requests).await;
            }
        })
        .await;
    }
}

impl State {
    fn answer(&mut self, request: &Recorded) -> Answer {
        match (
            request.method.as_str(),
            request.target.split('?').next().unwrap_or_default(),
        ) {
            ("POST", "/threads/thread_1/runs/run_1/cancel") => {
                Answer::json(200, run("cancelling", &[]).to_string())
            }
            (
                "POST",
                "/threads/runs"
                | "/threads/thread_1/runs"
                | "/threads/thread_1/runs/run_1/submit_tool_outputs",
            ) => {
                let (answer, run) = self
                    .posts
                    .pop_front()
                    .expect("no more creates or submits than scripted");
                self.run = run;
                answer
            }
            ("GET", "/threads/thread_1/runs/run_1") if self.run.is_null() => {
                refusal(404, "No run found with id 'run_1'.")
            }
            ("GET", "/threads/thread_1/runs/run_1") => Answer::json(200, self.run.to_string()),
            ("GET", "/threads/thread_1/runs/run_1/steps") => Answer::json(
                200,
                json!({ "object": "list", "data": self.steps, "has_more": false }).to_string(),
            ),
            ("GET", "/threads/thread_1/messages") => Answer::json(
                200,
                json!({ "object": "list", "data": [], "has_more": false }).to_string(),
            ),
            other => panic!("unexpected: {other:?}"),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("never held over a panic")
}

/// What a caller says at once: outputs, by call.
pub(crate) type Outputs<'a> = &'a [(&'a str, &'a str)];

pub(crate) fn start(options: Option<StreamOptions>) -> Message {
    let run = RunSpec {
        assistant_id: "asst_1".into(),
        ..RunSpec::default()
    };
    Message::Start(ConverseStart {
        thread_id: "thread_1".into(),
        run: Some(run),
        options,
        ..ConverseStart::default()
    })
}

pub(crate) fn attach(options: Option<StreamOptions>) -> Message {
    Message::Attach(ConverseAttach {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        options,
        ..ConverseAttach::default()
    })
}

pub(crate) fn outputs(outputs: Outputs) -> Message {
    let output = |(id, text): &(&str, &str)| ToolOutput {
        tool_call_id: (*id).into(),
        output: Some((*text).into()),
        ..ToolOutput::default()
    };
    Message::ToolOutputs(ToolOutputs {
        tool_outputs: outputs.iter().map(output).collect(),
        ..ToolOutputs::default()
    })
}

pub(crate) fn cancel() -> Message {
    Message::Cancel(ConverseCancel {})
}

/// The caller of a conversation. Dropping it leaves.
pub(crate) struct Caller {
    say: Option<mpsc::UnboundedSender<ConverseRunRequest>>,
    events: Streaming<RunEvent>,
}

impl Caller {
    pub(crate) async fn start(gateway: &Gateway) -> Self {
        Self::say_first(gateway, [start(None)])
            .await
            .expect("a conversation")
    }

    /// Says these first. The error is one that comes instead of a stream.
    pub(crate) async fn say_first(
        gateway: &Gateway,
        first: impl IntoIterator<Item = Message>,
    ) -> Result<Self, Status> {
        Self::call(gateway, first, |_| ()).await
    }

    pub(crate) async fn call(
        gateway: &Gateway,
        first: impl IntoIterator<Item = Message>,
        prepare: impl FnOnce(&mut Request<UnboundedReceiverStream<ConverseRunRequest>>),
    ) -> Result<Self, Status> {
        let (say, said) = mpsc::unbounded_channel();
        for message in first {
            say.send(ConverseRunRequest {
                message: Some(message),
            })
            .expect("it is being read");
        }
        let mut request = Request::new(UnboundedReceiverStream::new(said));
        prepare(&mut request);
        let mut client = gateway.runs();
        let events = within("the answer's head", client.converse_run(request))
            .await?
            .into_inner();
        Ok(Self {
            say: Some(say),
            events,
        })
    }

    pub(crate) fn say(&self, message: Message) {
        self.say_raw(ConverseRunRequest {
            message: Some(message),
        });
    }

    pub(crate) fn say_raw(&self, request: ConverseRunRequest) {
        // A conversation that has failed does not listen.
        let _ = self.say.as_ref().expect("not closed").send(request);
    }

    /// Closes its side.
    pub(crate) fn close(&mut self) {
        self.say = None;
    }

    /// Waits until all that was said was heard: a cancellation that is said now has come to the
    /// upstream.
    pub(crate) async fn heard(&self, script: &Script, gateway: &Gateway) {
        let cancels = script.cancels();
        self.say(cancel());
        script.cancelled(cancels + 1).await;
        // Another one would be passed over while this one is under way.
        round_trip(gateway).await;
    }

    pub(crate) async fn next(&mut self) -> Result<Option<RunEvent>, Status> {
        within("an event", self.events.message()).await
    }

    /// Reads on until this event has come.
    pub(crate) async fn until(&mut self, event: &str) {
        while name(&self.next().await.expect("no error").expect("no end")) != event {}
    }

    /// The rest of the events, and how they end.
    pub(crate) async fn rest(&mut self) -> (Vec<String>, Result<(), Status>) {
        let mut names = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(event)) => names.push(name(&event)),
                Ok(None) => return (names, Ok(())),
                Err(status) => return (names, Err(status)),
            }
        }
    }
}

/// A short name of an event: `run_completed`, `done`; `~run_completed` if the gateway made it.
pub(crate) fn name(event: &RunEvent) -> String {
    let name = RunEventType::try_from(event.r#type)
        .expect("a type of the contract")
        .as_str_name();
    let name = name
        .trim_start_matches("RUN_EVENT_TYPE_")
        .trim_start_matches("THREAD_")
        .to_lowercase();
    if event.synthesized {
        format!("~{name}")
    } else {
        name
    }
}

/// The reason and the rest of a status's `ErrorInfo`.
pub(crate) fn error_info(status: &Status) -> (String, HashMap<String, String>) {
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    (info.reason, info.metadata)
}

/// The field that a status blames.
pub(crate) fn blamed(status: &Status) -> String {
    let request = status
        .get_details_bad_request()
        .unwrap_or_else(|| panic!("no BadRequest: {status:?}"));
    request.field_violations[0].field.clone()
}

/// Fails the test unless the status says how to resume after `last_event`.
pub(crate) fn assert_resumable(status: &Status, last_event: &str) {
    let (_, info) = error_info(status);
    let found =
        ["thread_id", "run_id", "last_event"].map(|key| info.get(key).map_or("", String::as_str));
    assert_eq!(found, ["thread_1", "run_1", last_event], "{status:?}");
}

/// Goes once to the upstream and back: what the gateway was about to do, it has done.
pub(crate) async fn round_trip(gateway: &Gateway) {
    let request = GetRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
    };
    within("a round trip", gateway.runs().get_run(request))
        .await
        .expect("the run");
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| panic!("waited {limit:?} for {what}"))
}
