//! The table of attacks: what makes the gateway hold something, in each service that may be asked
//! for it.

use bytes::Bytes;
use prost::Message;
use runs_gateway::v1::{
    AssistantSpec, ConverseRunRequest, ConverseStart, CreateAssistantRequest, CreateMessageRequest,
    CreateRunRequest, CreateThreadAndRunRequest, CreateThreadRequest, GetMessageRequest,
    GetRunRequest, GetRunStepRequest, GetThreadRequest, ListRunsRequest, RunSpec,
    StreamCreateRunRequest, StreamCreateThreadAndRunRequest, ThreadAndRunSpec, Tool, ToolOutput,
    ToolOutputs, WaitRunRequest, WatchRunRequest, converse_run_request,
};

use crate::{
    attacker::{Body, Call, Destination, Held, Way},
    peer::{PREFACE, SETTINGS, frame},
    support::upstream::{Answer, Recorded},
};

/// One attack.
pub(crate) struct Row {
    pub(crate) what: &'static str,
    /// How often it is done in CI.
    pub(crate) count: usize,
    pub(crate) attack: Attack,
}

pub(crate) enum Attack {
    /// Connections that say no more than this, over HTTP/2 and over HTTP/1.1.
    Connections(Vec<u8>, &'static str),
    /// Calls by their number: the row's own, and its neighbours in other services, by turns.
    Calls(NthCall, Vec<NthCall>),
}

pub(crate) type NthCall = fn(usize) -> Call;

impl Row {
    /// Whether other services may be asked for the same.
    pub(crate) fn has_neighbours(&self) -> bool {
        matches!(&self.attack, Attack::Calls(_, others) if !others.is_empty())
    }

    /// Does it so often to this destination; with `others` by its neighbours.
    pub(crate) async fn attack(
        &self,
        destination: Destination<'_>,
        others: bool,
        count: usize,
    ) -> Held {
        match &self.attack {
            Attack::Connections(_, http1) if destination.way == Way::WebHttp1 => {
                destination.connections(count, http1.as_bytes()).await
            }
            Attack::Connections(http2, _) => destination.connections(count, http2).await,
            Attack::Calls(_, neighbours) if others => {
                let nth = |number: usize| neighbours[number % neighbours.len()](number);
                destination.calls(count, nth).await
            }
            Attack::Calls(own, _) => destination.calls(count, own).await,
        }
    }
}

/// The attacker's key, which the upstream knows.
pub(crate) const KEY: &str = "Bearer attacker";

pub(crate) const BOGUS: &str = "another key with each call";

/// A call by the attacker's key.
pub(crate) fn call(path: &'static str, body: Body) -> Call {
    Call {
        path,
        credential: KEY.to_owned(),
        timeout: None,
        body,
    }
}

/// A message behind its prefix.
pub(crate) fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("short");
    [&[0], &length.to_be_bytes()[..], &message].concat()
}

/// The prefix of a message of so many bytes, and this many of them.
fn announced(length: u32, sent: usize) -> Vec<u8> {
    [&[0], &length.to_be_bytes()[..], &vec![b'x'; sent]].concat()
}

fn thread() -> String {
    "thread_1".to_owned()
}

pub(crate) fn get_run(run_id: &str) -> Call {
    let request = GetRunRequest {
        thread_id: thread(),
        run_id: run_id.to_owned(),
    };
    let path = "runsgateway.v1.RunService/GetRun";
    call(path, Body::Whole(framed(&request)))
}

fn list_runs() -> Call {
    let request = ListRunsRequest {
        thread_id: thread(),
        ..ListRunsRequest::default()
    };
    let path = "runsgateway.v1.RunService/ListRuns";
    call(path, Body::Whole(framed(&request)))
}

fn get_message(id: &str) -> Call {
    let request = GetMessageRequest {
        thread_id: thread(),
        message_id: id.to_owned(),
    };
    let path = "runsgateway.v1.MessageService/GetMessage";
    call(path, Body::Whole(framed(&request)))
}

fn get_thread(id: &str) -> Call {
    let request = GetThreadRequest {
        thread_id: id.to_owned(),
    };
    let path = "runsgateway.v1.ThreadService/GetThread";
    call(path, Body::Whole(framed(&request)))
}

fn get_step(id: &str) -> Call {
    let request = GetRunStepRequest {
        thread_id: thread(),
        run_id: "run_1".to_owned(),
        step_id: id.to_owned(),
        ..GetRunStepRequest::default()
    };
    let path = "runsgateway.v1.RunStepService/GetRunStep";
    call(path, Body::Whole(framed(&request)))
}

pub(crate) fn create_run() -> Call {
    let request = CreateRunRequest {
        thread_id: thread(),
        run: Some(RunSpec::default()),
        ..CreateRunRequest::default()
    };
    call(CREATE_RUN, Body::Whole(framed(&request)))
}

fn create_thread() -> Call {
    let path = "runsgateway.v1.ThreadService/CreateThread";
    let request = CreateThreadRequest::default();
    call(path, Body::Whole(framed(&request)))
}

fn create_message() -> Call {
    let request = CreateMessageRequest {
        thread_id: thread(),
        message: Some(runs_gateway::v1::MessageInput::default()),
        ..CreateMessageRequest::default()
    };
    call(CREATE_MESSAGE, Body::Whole(framed(&request)))
}

pub(crate) fn stream() -> Call {
    let request = StreamCreateRunRequest {
        thread_id: thread(),
        run: Some(RunSpec::default()),
        ..StreamCreateRunRequest::default()
    };
    let path = "runsgateway.v1.RunService/StreamCreateRun";
    call(path, Body::Whole(framed(&request)))
}

fn stream_thread() -> Call {
    let request = StreamCreateThreadAndRunRequest {
        thread_and_run: Some(ThreadAndRunSpec::default()),
        ..StreamCreateThreadAndRunRequest::default()
    };
    let path = "runsgateway.v1.RunService/StreamCreateThreadAndRun";
    call(path, Body::Whole(framed(&request)))
}

pub(crate) fn watch(run_id: &str) -> Call {
    let request = WatchRunRequest {
        thread_id: thread(),
        run_id: run_id.to_owned(),
        ..WatchRunRequest::default()
    };
    let path = "runsgateway.v1.RunService/WatchRun";
    call(path, Body::Whole(framed(&request)))
}

fn wait(run_id: &str) -> Call {
    let request = WaitRunRequest {
        thread_id: thread(),
        run_id: run_id.to_owned(),
        ..WaitRunRequest::default()
    };
    let path = "runsgateway.v1.RunService/WaitRun";
    call(path, Body::Whole(framed(&request)))
}

/// The beginning of a conversation with this assistant.
fn start(assistant_id: &str) -> Vec<u8> {
    let start = ConverseStart {
        thread_id: thread(),
        run: Some(RunSpec {
            assistant_id: assistant_id.to_owned(),
            ..RunSpec::default()
        }),
        ..ConverseStart::default()
    };
    framed(&ConverseRunRequest {
        message: Some(converse_run_request::Message::Start(start)),
    })
}

/// Outputs of 1 MiB each, which nobody asked for.
fn outputs(count: usize) -> Vec<u8> {
    let output = |number| {
        let output = ToolOutput {
            tool_call_id: format!("call_{number}"),
            output: Some("o".repeat(1 << 20)),
            ..ToolOutput::default()
        };
        let outputs = ToolOutputs {
            tool_outputs: vec![output],
            ..ToolOutputs::default()
        };
        framed(&ConverseRunRequest {
            message: Some(converse_run_request::Message::ToolOutputs(outputs)),
        })
    };
    (0..count).flat_map(output).collect()
}

/// A conversation with an assistant, in which this is said after its beginning.
fn converse(assistant_id: &str, then: Vec<u8>) -> Call {
    let body = [start(assistant_id), then].concat();
    call(CONVERSE, Body::Begun(body))
}

/// A call whose message is of 4 MiB and lacks a few bytes.
fn endless(path: &'static str) -> Call {
    call(path, Body::Begun(announced(4 << 20, (4 << 20) - 100)))
}

/// A call that is no more than its headers.
fn bare(path: &'static str) -> Call {
    call(path, Body::Begun(Vec::new()))
}

/// One whose small message never comes.
fn slow(path: &'static str) -> Call {
    call(path, Body::Begun(announced(4 << 10, 100)))
}

/// Tools of two bytes each, which are much larger in memory.
fn tools() -> RunSpec {
    RunSpec {
        tools: vec![Tool::default(); 20_000],
        ..RunSpec::default()
    }
}

fn run_of_tools() -> Call {
    let request = CreateRunRequest {
        thread_id: thread(),
        run: Some(tools()),
        ..CreateRunRequest::default()
    };
    call(CREATE_RUN, Body::Whole(framed(&request)))
}

fn bogus(number: usize, call: Call) -> Call {
    Call {
        credential: format!("Bearer bogus {number}"),
        ..call
    }
}

const CREATE_RUN: &str = "runsgateway.v1.RunService/CreateRun";
const CREATE_MESSAGE: &str = "runsgateway.v1.MessageService/CreateMessage";
const CREATE_ASSISTANT: &str = "runsgateway.v1.AssistantService/CreateAssistant";
const CONVERSE: &str = "runsgateway.v1.RunService/ConverseRun";

/// An assistant whose runs neither say anything nor end, and one whose runs never begin.
const QUIET: &str = "asst_quiet";
const NEVER: &str = "asst_never";

/// All attacks.
pub(crate) fn rows() -> Vec<Row> {
    let connections = |what, http2: Vec<u8>, http1| Row {
        what,
        count: 415,
        attack: Attack::Connections(http2, http1),
    };
    let calls = |what, count, own, others: &[NthCall]| Row {
        what,
        count,
        attack: Attack::Calls(own, others.to_vec()),
    };
    let preface = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    vec![
        connections("connections that say nothing", Vec::new(), ""),
        connections(
            "connections without a call",
            preface,
            "POST / HTTP/1.1\r\nhost:",
        ),
        calls(
            BOGUS,
            100,
            |number| bogus(number, create_run()),
            &[
                |number| bogus(number, create_thread()),
                |number| bogus(number, create_message()),
                |number| bogus(number, get_thread("thread_250")),
                |number| bogus(number, watch("run_250")),
            ],
        ),
        calls(
            "health checks whose message never comes",
            100,
            |_| slow("grpc.health.v1.Health/Check"),
            &[
                |_| slow("grpc.health.v1.Health/Watch"),
                |_| slow("grpc.health.v1.Health/List"),
            ],
        ),
        calls(
            "reflection that asks nothing",
            100,
            |_| slow("grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
            &[|_| slow("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")],
        ),
        calls(
            "calls without a message",
            1000,
            |_| bare("runsgateway.v1.RunService/GetRun"),
            &[
                |_| bare("runsgateway.v1.RunService/WatchRun"),
                |_| bare(CONVERSE),
                |_| bare(CREATE_ASSISTANT),
                |_| bare("no.such.Service/Call"),
            ],
        ),
        calls(
            "messages of 4 MiB that never end",
            30,
            |_| endless(CREATE_RUN),
            &[
                |_| endless(CREATE_MESSAGE),
                |_| endless(CREATE_ASSISTANT),
                |_| endless(CONVERSE),
            ],
        ),
        calls(
            "20,000 empty tools in each message",
            30,
            |_| run_of_tools(),
            &[
                |_| {
                    let tools = vec![Tool::default(); 20_000];
                    let assistant = Some(AssistantSpec {
                        tools,
                        ..AssistantSpec::default()
                    });
                    let request = CreateAssistantRequest {
                        assistant,
                        ..CreateAssistantRequest::default()
                    };
                    call(CREATE_ASSISTANT, Body::Whole(framed(&request)))
                },
                |_| {
                    let request = CreateThreadAndRunRequest {
                        thread_and_run: Some(ThreadAndRunSpec {
                            tools: tools().tools,
                            ..ThreadAndRunSpec::default()
                        }),
                        ..CreateThreadAndRunRequest::default()
                    };
                    let path = "runsgateway.v1.RunService/CreateThreadAndRun";
                    call(path, Body::Whole(framed(&request)))
                },
            ],
        ),
        calls(
            "answers of 250 kB that nobody reads",
            90,
            |_| get_run("run_250"),
            &[
                |_| get_message("msg_250"),
                |_| get_thread("thread_250"),
                |_| get_step("step_250"),
            ],
        ),
        calls(
            "lists of 12,800 tools that nobody reads",
            90,
            |_| list_runs(),
            &[],
        ),
        calls(
            "answers of 15 MiB that nobody reads",
            10,
            |_| get_run("run_15000"),
            &[
                |_| get_message("msg_15000"),
                |_| get_thread("thread_15000"),
                |_| get_step("step_15000"),
            ],
        ),
        calls(
            "events of 3 MiB that nobody reads",
            10,
            |_| stream(),
            &[|_| stream_thread(), |_| converse("asst_1", Vec::new())],
        ),
        calls(
            "watches of a run of 250 kB that nobody reads",
            40,
            |_| watch("run_250"),
            &[|number| wait(&format!("run_250_{number}"))],
        ),
        calls(
            "conversations with outputs of 3 MiB that nobody asked for",
            10,
            |_| converse(QUIET, outputs(3)),
            &[],
        ),
        calls(
            "conversations with outputs of 3 MiB that nobody listens to",
            40,
            |_| converse(NEVER, outputs(3)),
            &[],
        ),
        calls(
            "conversations that go on in pieces of a byte",
            10,
            |_| call(CONVERSE, Body::Pieces(start(NEVER), vec![0; 60 << 10])),
            &[],
        ),
    ]
}

/// A resource, as large as its id says: `run_KIBIBYTES`, `msg_KIBIBYTES_NUMBER`.
fn resource(request: &Recorded) -> String {
    let id = request.target.split('/').next_back().unwrap_or_default();
    let (id, kibibytes) = match id.split_once('_') {
        Some((_, size)) => (id, size.split('_').next().unwrap_or_default()),
        None => ("run_0", "0"),
    };
    let kibibytes: usize = kibibytes.parse().unwrap_or_default();
    let text = "x".repeat(kibibytes << 10);
    let object = match id.split('_').next() {
        Some("msg") => "thread.message",
        Some("thread") => "thread",
        Some("step") => "thread.run.step",
        _ => "thread.run",
    };
    format!(
        r#"{{"id":"{id}","object":"{object}","thread_id":"thread_1","run_id":"run_1","status":"in_progress","instructions":"{text}"}}"#
    )
}

/// A page of runs with as many tools as services take.
fn runs_of_tools() -> String {
    let tools = [r#"{"type":"code_interpreter"}"#; 128].join(",");
    let run = format!(
        r#"{{"id":"run_1","object":"thread.run","thread_id":"thread_1","tools":[{tools}]}}"#
    );
    let runs = vec![run; 100].join(",");
    format!(r#"{{"object":"list","data":[{runs}],"has_more":false}}"#)
}

/// Answers with resources, and streams three large events; creates that do not stream are never
/// answered.
pub(crate) fn upstream(request: &Recorded) -> Answer {
    if request.method == "GET" && request.target.ends_with("/runs") {
        return Answer::json(200, runs_of_tools());
    }
    if request.method == "GET" {
        return Answer::json(200, resource(request));
    }
    let asks = request.text();
    if !asks.contains("\"stream\":true") || asks.contains(NEVER) {
        return Answer::never();
    }
    let text = "y".repeat(3 << 20);
    let created = format!("event: thread.run.created\ndata: {}\n\n", resource(request));
    if asks.contains(QUIET) {
        return Answer::sse([created]).wait(&std::sync::Arc::default());
    }
    let large = format!(
        "event: thread.message.delta\ndata: {{\"id\":\"msg_1\",\"object\":\"thread.message.delta\",\"delta\":{{\"content\":[{{\"index\":0,\"type\":\"text\",\"text\":{{\"value\":\"{text}\"}}}}]}}}}\n\n"
    );
    let chunks = [
        created.into_bytes(),
        large.clone().into_bytes(),
        large.into_bytes(),
    ];
    Answer::sse(chunks.map(Bytes::from))
}
