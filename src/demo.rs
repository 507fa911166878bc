//! `runs-gateway demo`: what a newcomer sees first. A real gRPC client holds a conversation with a
//! tool call, reads the answer back from its thread, and says what it does.
//!
//! Must hold: nothing is staged. What is printed is what came over the socket, when it came; if it
//! is not what was expected, the demo fails.

use std::{
    error::Error,
    io::{self, Write as _},
};

use anstyle::{AnsiColor, Style};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::{
    config,
    conversation::Conversation,
    dev::Dev,
    embedded,
    v1::{
        ConverseStart, FunctionDefinition, GetRunRequest, ListMessagesRequest, ListRunStepsRequest,
        MessageContent, MessageInput, MessageRole, Run, RunEvent, RunEventType, RunStatus, RunStep,
        SortOrder, TextContent, ThreadAndRunSpec, ThreadSpec, Tool,
        message_service_client::MessageServiceClient, run_event::Payload,
        run_service_client::RunServiceClient, run_step_service_client::RunStepServiceClient,
    },
};

type Failure = Box<dyn Error + Send + Sync>;

const SENT: Style = AnsiColor::Cyan.on_default().bold();
const CAME: Style = AnsiColor::Green.on_default();
const NOTE: Style = Style::new().dimmed();

const QUESTION: &str = "What is the weather in Paris?";
const PARAMETERS: &str = r#"{"type":"object","properties":{"city":{"type":"string","enum":["Paris"]}},"required":["city"]}"#;

/// Runs the demo. Fails if anything comes out otherwise than it should.
pub async fn run(config: config::Dev) -> Result<(), Failure> {
    let (model, pause) = if config.model.is_some() {
        ("the model at --model-url", "0")
    } else {
        // Slow enough for the eye.
        ("a built-in model, no key, no network", "30")
    };
    let dev = Dev::start(config, CancellationToken::new()).await?;
    say(
        NOTE,
        "",
        &format!(
            "gRPC  {}  the gateway: runsgateway.v1.RunService, MessageService and more",
            dev.grpc
        ),
    )?;
    say(
        NOTE,
        "",
        &format!(
            "REST  {}  its upstream, the embedded Runs API: {model}",
            dev.rest
        ),
    )?;
    let mut runs = RunServiceClient::connect(format!("http://{}", dev.grpc)).await?;
    let mut steps = RunStepServiceClient::connect(format!("http://{}", dev.grpc)).await?;
    let mut messages = MessageServiceClient::connect(format!("http://{}", dev.grpc)).await?;

    let (run, answer) = converse(&runs, pause).await?;
    list_steps(&mut steps, &run).await?;
    miss(&mut runs, &run).await?;
    read_back(&mut messages, &run, &answer).await?;
    say(
        NOTE,
        "",
        "the same from your language: runs-gateway dev, and the README",
    )?;
    dev.end().await;
    Ok(())
}

/// One run from its creation to its end, on one stream, with a function for its tool. Gives the run
/// and the text that came with its events.
async fn converse(runs: &RunServiceClient<Channel>, pause: &str) -> Result<(Run, String), Failure> {
    let conversation = Conversation::new(runs.clone()).tool("get_weather", async |arguments: String| {
        let output = "22 degrees and sunny".to_owned();
        // A demo that cannot print has nobody to print for.
        let _ = say(
            SENT,
            "->",
            &format!("get_weather({arguments}) is called here, and its output {output:?} is sent on the same stream"),
        );
        let _ = say(NOTE, "", "   upstream: POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs");
        output
    });
    say(
        SENT,
        "->",
        &format!("ConverseRun start: a thread with {QUESTION:?}, and a tool, get_weather(city)"),
    )?;
    say(
        NOTE,
        "",
        "   upstream: POST /threads/runs with stream: true; each server-sent event becomes one typed RunEvent",
    )?;
    let mut line = Line::default();
    let mut answer = String::new();
    let mut shown = Ok(());
    let heed = |event| {
        answer += &text(&event);
        if shown.is_ok() {
            shown = show(&event, &mut line);
        }
    };
    let run = conversation.start(start(pause), heed).await?;
    shown?;
    if run.status() == RunStatus::Completed {
        Ok((run, answer))
    } else {
        Err(format!("the run ended as {:?}", run.status()).into())
    }
}

/// Shows an event. Those that are left out are left out here, to keep this short, and nowhere else.
fn show(event: &RunEvent, line: &mut Line) -> io::Result<()> {
    let kind = event.r#type();
    let name = kind.as_str_name().trim_start_matches("RUN_EVENT_TYPE_");
    let words = match &event.payload {
        Some(Payload::MessageDelta(_)) => return line.add(name, &text(event)),
        Some(Payload::Run(_)) if kind == RunEventType::ThreadRunRequiresAction => {
            "the run waits for its caller".to_owned()
        }
        Some(Payload::Run(run)) => {
            let usage = run.usage.as_ref().and_then(|usage| usage.total_tokens);
            usage.map_or_else(
                || run.id.clone(),
                |tokens| format!("{}, {tokens} tokens", run.id),
            )
        }
        Some(Payload::RunStep(step)) if kind == RunEventType::ThreadRunStepCompleted => {
            describe(step)
        }
        _ => return Ok(()),
    };
    line.end()?;
    say(CAME, "<-", &format!("{name}: {words}"))
}

fn start(pause: &str) -> ConverseStart {
    let question = MessageInput {
        role: MessageRole::User.into(),
        content: Some(MessageContent {
            text: Some(QUESTION.to_owned()),
            parts: Vec::new(),
        }),
        ..MessageInput::default()
    };
    let get_weather = FunctionDefinition {
        name: "get_weather".to_owned(),
        description: Some("The weather in a city.".to_owned()),
        parameters_json: PARAMETERS.to_owned(),
        ..FunctionDefinition::default()
    };
    let spec = ThreadAndRunSpec {
        assistant_id: embedded::ASSISTANT.to_owned(),
        thread: Some(ThreadSpec {
            messages: vec![question],
            ..ThreadSpec::default()
        }),
        tools: vec![Tool {
            function: Some(get_weather),
            ..Tool::default()
        }],
        metadata: [("embedded.delay_ms".to_owned(), pause.to_owned())].into(),
        ..ThreadAndRunSpec::default()
    };
    ConverseStart {
        thread_and_run: Some(spec),
        ..ConverseStart::default()
    }
}

async fn list_steps(steps: &mut RunStepServiceClient<Channel>, run: &Run) -> Result<(), Failure> {
    say(SENT, "->", "ListRunSteps, oldest first")?;
    let request = ListRunStepsRequest {
        thread_id: run.thread_id.clone(),
        run_id: run.id.clone(),
        order: SortOrder::Asc.into(),
        ..ListRunStepsRequest::default()
    };
    for step in steps.list_run_steps(request).await?.into_inner().data {
        say(CAME, "<-", &format!("{}: {}", step.id, describe(&step)))?;
    }
    Ok(())
}

/// An error, and what it carries.
async fn miss(runs: &mut RunServiceClient<Channel>, run: &Run) -> Result<(), Failure> {
    say(
        SENT,
        "->",
        "GetRun of a run that is not there: errors say what to do next",
    )?;
    let request = GetRunRequest {
        thread_id: run.thread_id.clone(),
        run_id: "run_nowhere".to_owned(),
    };
    let status = runs
        .get_run(request)
        .await
        .err()
        .ok_or("a run that is not there was found")?;
    let details = status.get_error_details();
    let reason = details
        .error_info()
        .map(|info| info.reason.as_str())
        .unwrap_or_default();
    let request_id = details
        .request_info()
        .map(|info| info.request_id.as_str())
        .unwrap_or_default();
    say(
        CAME,
        "<-",
        &format!(
            "{:?}, reason {reason}, upstream request {request_id}: {}",
            status.code(),
            status.message()
        ),
    )?;
    Ok(())
}

/// Reads the answer from the thread. Fails if it is not what the stream brought.
async fn read_back(
    messages: &mut MessageServiceClient<Channel>,
    run: &Run,
    answer: &str,
) -> Result<(), Failure> {
    say(
        SENT,
        "->",
        "ListMessages of the run: the answer is in the thread, for whoever missed the stream",
    )?;
    let request = ListMessagesRequest {
        thread_id: run.thread_id.clone(),
        run_id: run.id.clone(),
        order: SortOrder::Asc.into(),
        ..ListMessagesRequest::default()
    };
    let mut read = String::new();
    for message in messages.list_messages(request).await?.into_inner().data {
        let parts = message.content.iter();
        let text: String = parts
            .filter_map(|part| part.text.as_ref())
            .map(TextContent::value)
            .collect();
        say(CAME, "<-", &format!("{}: {text}", message.id))?;
        read += &text;
    }
    if read == answer {
        Ok(())
    } else {
        Err(format!("the thread has another answer than the stream brought: {answer}").into())
    }
}

fn describe(step: &RunStep) -> String {
    let details = step.step_details.as_ref();
    let calls = details
        .iter()
        .flat_map(|details| &details.tool_calls)
        .filter_map(|call| call.function.as_ref());
    let calls: Vec<_> = calls
        .map(|call| {
            format!(
                "{}({}) gave {:?}",
                call.name,
                call.arguments(),
                call.output()
            )
        })
        .collect();
    if calls.is_empty() {
        "a message".to_owned()
    } else {
        calls.join(", ")
    }
}

/// The text that an event adds to a message.
fn text(event: &RunEvent) -> String {
    let Some(Payload::MessageDelta(delta)) = &event.payload else {
        return String::new();
    };
    let parts = delta.delta.iter().flat_map(|delta| &delta.content);
    parts
        .filter_map(|part| part.text.as_ref())
        .map(TextContent::value)
        .collect()
}

/// A line of text that grows as it comes.
#[derive(Default)]
struct Line {
    begun: bool,
}

impl Line {
    fn add(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        if !self.begun {
            self.begun = true;
            write!(out, "{CAME}<-{CAME:#} {name}, as it comes: ")?;
        }
        write!(out, "{text}")?;
        out.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.begun) {
            writeln!(anstream::stdout())
        } else {
            Ok(())
        }
    }
}

fn say(style: Style, arrow: &str, text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    if arrow.is_empty() {
        writeln!(out, "{style}{text}{style:#}")
    } else {
        writeln!(out, "{style}{arrow}{style:#} {text}")
    }
}
