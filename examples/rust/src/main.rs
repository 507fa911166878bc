//! Runs from Rust, with tonic: make all that a run needs and read its answer; stream a run, answer
//! its tool calls, wait for one, read errors, page through steps.
//!
//! The only argument is the gateway's address; without it, the one that `runs-gateway dev` takes by
//! default.

use std::{env, error::Error, time::Duration};

use runs_gateway::{
    conversation::Conversation,
    v1::{
        AssistantSpec, CancelRunRequest, ConverseStart, CreateAssistantRequest,
        CreateMessageRequest, CreateRunRequest, CreateThreadAndRunRequest, CreateThreadRequest,
        DeleteAssistantRequest, DeleteThreadRequest, FunctionDefinition, GetRunRequest,
        ListMessagesRequest, ListRunStepsRequest, MessageContent, MessageInput, MessageRole, Run,
        RunEvent, RunSpec, StreamCreateThreadAndRunRequest, ThreadAndRunSpec, ThreadSpec, Tool,
        WaitRunRequest, assistant_service_client::AssistantServiceClient,
        message_service_client::MessageServiceClient, run_event::Payload,
        run_service_client::RunServiceClient, run_step_service_client::RunStepServiceClient,
        thread_service_client::ThreadServiceClient,
    },
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

type Runs = RunServiceClient<Channel>;
type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let address = env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let channel = Channel::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let mut runs = RunServiceClient::new(channel.clone());
    from_nothing_to_an_answer(&channel).await?;
    stream_a_run(&mut runs).await?;
    let run = answer_tool_calls(&runs).await?;
    wait_with_a_deadline(&mut runs).await?;
    read_error_details(&mut runs).await;
    page_through_steps(&mut RunStepServiceClient::new(channel), &run).await
}

fn user_message(text: &str) -> MessageInput {
    let content = MessageContent {
        text: Some(text.to_owned()),
        ..Default::default()
    };
    MessageInput {
        role: MessageRole::User.into(),
        content: Some(content),
        ..Default::default()
    }
}

/// A thread with one message, and a run on it that is steered by metadata.
fn thread_and_run(question: &str, steering: &[(&str, &str)]) -> ThreadAndRunSpec {
    ThreadAndRunSpec {
        assistant_id: "asst_embedded".to_owned(),
        thread: Some(ThreadSpec {
            messages: vec![user_message(question)],
            ..Default::default()
        }),
        metadata: steering
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..Default::default()
    }
}

fn weather() -> Tool {
    let function = FunctionDefinition {
        name: "get_weather".to_owned(),
        description: Some("The weather in a city.".to_owned()),
        parameters_json:
            r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#
                .to_owned(),
        ..Default::default()
    };
    Tool {
        function: Some(function),
        ..Default::default()
    }
}

/// What an event adds to the text of the answer.
fn text_of(event: &RunEvent) -> String {
    let Some(Payload::MessageDelta(delta)) = &event.payload else {
        return String::new();
    };
    let parts = delta.delta.iter().flat_map(|delta| &delta.content);
    parts
        .filter_map(|part| part.text.as_ref())
        .map(|text| text.value())
        .collect()
}

async fn from_nothing_to_an_answer(channel: &Channel) -> Result<()> {
    println!("from nothing to an answer");
    let mut assistants = AssistantServiceClient::new(channel.clone());
    let mut threads = ThreadServiceClient::new(channel.clone());
    let mut messages = MessageServiceClient::new(channel.clone());
    let mut runs = RunServiceClient::new(channel.clone());

    let model = "gpt-4o-mini".to_owned();
    let spec = AssistantSpec {
        model,
        instructions: Some("Be brief.".to_owned()),
        ..Default::default()
    };
    let assistant = assistants
        .create_assistant(CreateAssistantRequest {
            assistant: Some(spec),
            ..Default::default()
        })
        .await?
        .into_inner();
    let thread = threads
        .create_thread(CreateThreadRequest::default())
        .await?
        .into_inner();
    let (thread_id, assistant_id) = (thread.id, assistant.id);
    let message = Some(user_message("What can you do?"));
    messages
        .create_message(CreateMessageRequest {
            thread_id: thread_id.clone(),
            message,
            ..Default::default()
        })
        .await?;
    let run = Some(RunSpec {
        assistant_id: assistant_id.clone(),
        ..Default::default()
    });
    let create = CreateRunRequest {
        thread_id: thread_id.clone(),
        run,
        ..Default::default()
    };
    let run_id = runs.create_run(create).await?.into_inner().id;
    let wait = WaitRunRequest {
        thread_id: thread_id.clone(),
        run_id: run_id.clone(),
        ..Default::default()
    };
    println!(
        "  {}",
        runs.wait_run(wait)
            .await?
            .into_inner()
            .status()
            .as_str_name()
    );
    let list = ListMessagesRequest {
        thread_id: thread_id.clone(),
        run_id,
        ..Default::default()
    };
    for message in messages.list_messages(list).await?.into_inner().data {
        let texts = message.content.iter().filter_map(|part| part.text.as_ref());
        println!("  {}", texts.map(|text| text.value()).collect::<String>());
    }
    // A thread's messages go with it.
    let thread = threads
        .delete_thread(DeleteThreadRequest { thread_id })
        .await?
        .into_inner();
    let assistant = assistants
        .delete_assistant(DeleteAssistantRequest { assistant_id })
        .await?
        .into_inner();
    println!("  {}, {}", thread.object, assistant.object);
    Ok(())
}

async fn stream_a_run(runs: &mut Runs) -> Result<()> {
    println!("stream a run");
    let thread_and_run = Some(thread_and_run("Hello from afar!", &[]));
    let request = StreamCreateThreadAndRunRequest {
        thread_and_run,
        ..Default::default()
    };
    let mut events = runs
        .stream_create_thread_and_run(request)
        .await?
        .into_inner();
    let mut answer = String::new();
    while let Some(event) = events.message().await? {
        answer += &text_of(&event);
        if matches!(event.payload, Some(Payload::Run(_))) {
            println!("  {}", event.r#type().as_str_name());
        }
    }
    println!("  {answer}");
    Ok(())
}

async fn answer_tool_calls(runs: &Runs) -> Result<Run> {
    println!("answer tool calls");
    let mut spec = thread_and_run(
        "What is the weather in Paris?",
        &[("embedded.tool_rounds", "2")],
    );
    spec.tools.push(weather());
    let start = ConverseStart {
        thread_and_run: Some(spec),
        ..Default::default()
    };
    let conversation = Conversation::new(runs.clone()).tool("get_weather", get_weather);
    let mut answer = String::new();
    let run = conversation
        .start(start, |event| answer += &text_of(&event))
        .await?;
    println!("  {answer}");
    Ok(run)
}

async fn get_weather(arguments: String) -> String {
    println!("  get_weather({arguments})");
    let arguments: serde_json::Value = serde_json::from_str(&arguments).unwrap_or_default();
    let city = arguments["city"].as_str();
    // The model reads it, and may call again.
    city.map_or("no city".to_owned(), |city| format!("sunny in {city}"))
}

async fn wait_with_a_deadline(runs: &mut Runs) -> Result<()> {
    println!("wait for a run with a deadline");
    // Left alone, this run says nothing for ten minutes.
    let thread_and_run = Some(thread_and_run(
        "Take your time.",
        &[("embedded.scenario", "expire")],
    ));
    let run = runs
        .create_thread_and_run(CreateThreadAndRunRequest {
            thread_and_run,
            ..Default::default()
        })
        .await?
        .into_inner();
    let wait = |deadline| {
        let message = WaitRunRequest {
            thread_id: run.thread_id.clone(),
            run_id: run.id.clone(),
            ..Default::default()
        };
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        request
    };
    match runs
        .wait_run(wait(Duration::from_millis(300)))
        .await
        .map_err(|status| status.code())
    {
        // tonic's client mostly ends the call itself, a moment before the gateway's answer is there, and
        // gives it this code.
        Err(Code::Cancelled | Code::DeadlineExceeded) => println!("  DEADLINE_EXCEEDED"),
        other => println!("  {other:?}"),
    }
    runs.cancel_run(CancelRunRequest {
        thread_id: run.thread_id.clone(),
        run_id: run.id.clone(),
    })
    .await?;
    let ended = runs
        .wait_run(wait(Duration::from_secs(30)))
        .await?
        .into_inner();
    println!("  {}", ended.status().as_str_name());
    Ok(())
}

/// The name of a status's code as the other languages have it.
fn name_of(status: &Status) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", status.code()).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// A status's code, and what its details say.
fn describe(status: &Status) -> String {
    let details = status.get_error_details();
    let mut said = name_of(status);
    if let Some(info) = details.error_info() {
        said += &format!(", {}", info.reason);
    }
    for violation in details
        .bad_request()
        .iter()
        .flat_map(|bad| &bad.field_violations)
    {
        said += &format!(", {} {}", violation.field, violation.description);
    }
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        said += &format!(", again in {} ms", delay.as_millis());
    }
    said
}

async fn read_error_details(runs: &mut Runs) {
    println!("read error details");
    let busy = CreateThreadAndRunRequest {
        thread_and_run: Some(thread_and_run(
            "Are you busy?",
            &[("embedded.refuse", "429")],
        )),
        ..Default::default()
    };
    let answers = [
        runs.get_run(GetRunRequest {
            run_id: "run_1".to_owned(),
            ..Default::default()
        })
        .await,
        runs.get_run(GetRunRequest {
            thread_id: "thread_nowhere".to_owned(),
            run_id: "run_1".to_owned(),
        })
        .await,
        runs.create_thread_and_run(busy).await,
    ];
    for status in answers.into_iter().filter_map(std::result::Result::err) {
        println!("  {}", describe(&status));
    }
}

async fn page_through_steps(steps: &mut RunStepServiceClient<Channel>, run: &Run) -> Result<()> {
    println!("page through steps");
    let (thread_id, run_id) = (run.thread_id.clone(), run.id.clone());
    let mut request = ListRunStepsRequest {
        thread_id,
        run_id,
        limit: Some(2),
        ..Default::default()
    };
    loop {
        let page = steps.list_run_steps(request.clone()).await?.into_inner();
        let types: Vec<_> = page
            .data
            .iter()
            .map(|step| step.r#type().as_str_name())
            .collect();
        println!("  {}", types.join(", "));
        if page.has_more != Some(true) {
            return Ok(());
        }
        request.after = page.last_id;
    }
}
