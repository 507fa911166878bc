//! What tests/polyglot holds a Rust client to, one line per behaviour; no example to copy.
//!
//! The arguments are the addresses of four gateways: in front of the embedded API; the same with
//! connections that grow old in a second; in front of the scripted upstream of tests/polyglot; the
//! first one, by connections that are cut.

use std::{env, error::Error, time::Duration};

use runs_gateway::{
    resuming::ResumingStream,
    v1::{
        CreateThreadAndRunRequest, CreateThreadRequest, DeleteThreadRequest, FunctionDefinition,
        GetRunRequest, GetThreadRequest, ListMessagesRequest, ListRunsRequest, MessageContent,
        MessageInput, MessageRole, RunEvent, RunSpec, StreamCreateRunRequest,
        StreamCreateThreadAndRunRequest, StreamOptions, ThreadAndRunSpec, ThreadSpec, Tool,
        WaitRunRequest, WatchRunRequest, message_service_client::MessageServiceClient,
        run_event::Payload, run_service_client::RunServiceClient,
        thread_service_client::ThreadServiceClient,
    },
};
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

type Runs = RunServiceClient<Channel>;
type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let mut channels = Vec::new();
    for address in env::args().skip(1) {
        channels.push(Channel::from_shared(format!("http://{address}"))?.connect_lazy());
    }
    let [dev, ageing, scripted, cutting] = &channels[..] else {
        return Err("four addresses are needed".into());
    };
    let mut threads = ThreadServiceClient::new(dev.clone());
    let mut messages = MessageServiceClient::new(scripted.clone());
    let [dev, ageing, scripted, cutting] =
        &mut [dev, ageing, scripted, cutting].map(|channel| RunServiceClient::new(channel.clone()));
    println!("metadata: {}", metadata(scripted).await?);
    println!("deadline: {}", deadline(dev).await?);
    println!("cancellation: {}", cancellation(dev).await?);
    println!("error details: {}", error_details(scripted).await?);
    println!("1 MiB messages: {}", large_messages(dev).await?);
    println!(
        "unknown enum values: {}",
        unknown_enum_values(scripted).await?
    );
    println!("unknown events: {}", unknown_events(scripted).await?);
    println!("unknown content: {}", unknown_content(&mut messages).await?);
    println!("deletion: {}", deletion(&mut threads).await?);
    println!("resuming: {}", resuming(ageing).await?);
    println!("resumed stream: {}", resumed_stream(cutting).await?);
    Ok(())
}

fn thread_and_run(steering: &[(&str, &str)]) -> ThreadAndRunSpec {
    let content = MessageContent {
        text: Some("Tell me a long story.".to_owned()),
        ..Default::default()
    };
    let message = MessageInput {
        role: MessageRole::User.into(),
        content: Some(content),
        ..Default::default()
    };
    ThreadAndRunSpec {
        assistant_id: "asst_embedded".to_owned(),
        thread: Some(ThreadSpec {
            messages: vec![message],
            ..Default::default()
        }),
        metadata: steering
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..Default::default()
    }
}

fn silent() -> StreamCreateThreadAndRunRequest {
    let thread_and_run = Some(thread_and_run(&[("embedded.scenario", "expire")]));
    StreamCreateThreadAndRunRequest {
        thread_and_run,
        ..Default::default()
    }
}

fn get(run_id: &str) -> GetRunRequest {
    GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: run_id.to_owned(),
    }
}

/// The name of a code as the other languages have it.
fn name(code: Code) -> &'static str {
    match code {
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unavailable => "UNAVAILABLE",
        _ => code.description(),
    }
}

/// Reads a stream to its end: its last event, and the status if it failed.
async fn last(mut events: Streaming<RunEvent>) -> (Option<RunEvent>, Option<Status>) {
    let mut last = None;
    loop {
        match events.message().await {
            Ok(Some(event)) => last = Some(event),
            Ok(None) => return (last, None),
            Err(status) => return (last, Some(status)),
        }
    }
}

async fn metadata(scripted: &mut Runs) -> Result<String> {
    let mut request = Request::new(get("run_paused"));
    request
        .metadata_mut()
        .insert("x-client-request-id", "polyglot".parse()?);
    let answer = scripted.get_run(request).await?;
    let id = answer
        .metadata()
        .get("x-request-id")
        .ok_or("no x-request-id")?;
    Ok(format!("x-request-id {}", id.to_str()?))
}

async fn deadline(dev: &mut Runs) -> Result<String> {
    let mut request = Request::new(silent());
    request.set_timeout(Duration::from_millis(500));
    let (_, status) = last(
        dev.stream_create_thread_and_run(request)
            .await?
            .into_inner(),
    )
    .await;
    Ok(name(status.ok_or("the stream ended")?.code()).to_owned())
}

async fn cancellation(dev: &mut Runs) -> Result<String> {
    let options = Some(StreamOptions {
        cancel_on_disconnect: true,
        ..Default::default()
    });
    let request = StreamCreateThreadAndRunRequest {
        options,
        ..silent()
    };
    let mut events = dev
        .stream_create_thread_and_run(request)
        .await?
        .into_inner();
    let run = loop {
        if let Some(Payload::Run(run)) = events.message().await?.ok_or("no run came")?.payload {
            break run;
        }
    };
    drop(events);
    let mut wait = Request::new(WaitRunRequest {
        thread_id: run.thread_id,
        run_id: run.id,
        ..Default::default()
    });
    wait.set_timeout(Duration::from_secs(30));
    Ok(dev
        .wait_run(wait)
        .await?
        .into_inner()
        .status()
        .as_str_name()
        .to_owned())
}

async fn error_details(scripted: &mut Runs) -> Result<String> {
    let status = scripted
        .get_run(get("run_limited"))
        .await
        .err()
        .ok_or("no error")?;
    let details = status.get_error_details();
    let info = details.error_info().ok_or("no ErrorInfo")?;
    let delay = details
        .retry_info()
        .and_then(|info| info.retry_delay)
        .ok_or("no RetryInfo")?
        .as_millis();
    let status_of_http = &info.metadata["http_status"];
    Ok(format!(
        "{} {} {} {status_of_http}, again in {delay} ms",
        name(status.code()),
        info.domain,
        info.reason
    ))
}

async fn large_messages(dev: &mut Runs) -> Result<String> {
    let description = Some("x".repeat(1 << 20));
    let function = FunctionDefinition {
        name: "f".to_owned(),
        description,
        ..Default::default()
    };
    let mut spec = thread_and_run(&[]);
    spec.tools.push(Tool {
        function: Some(function),
        ..Default::default()
    });
    let run = dev
        .create_thread_and_run(CreateThreadAndRunRequest {
            thread_and_run: Some(spec),
            ..Default::default()
        })
        .await?
        .into_inner();
    let function = run
        .tools
        .first()
        .and_then(|tool| tool.function.as_ref())
        .ok_or("no function")?;
    Ok(format!("{} bytes came back", function.description().len()))
}

async fn unknown_enum_values(scripted: &mut Runs) -> Result<String> {
    let run = scripted.get_run(get("run_paused")).await?.into_inner();
    let list = ListRunsRequest {
        thread_id: "thread_1".to_owned(),
        order: 99,
        ..Default::default()
    };
    let status = scripted.list_runs(list).await.err().ok_or("no error")?;
    let details = status.get_error_details();
    let field = details
        .bad_request()
        .and_then(|bad| bad.field_violations.first())
        .ok_or("no BadRequest")?
        .field
        .clone();
    Ok(format!(
        "{} {}, sent: {} {field}",
        run.status().as_str_name(),
        run.extra_json,
        name(status.code())
    ))
}

async fn unknown_events(scripted: &mut Runs) -> Result<String> {
    let run = Some(RunSpec {
        assistant_id: "asst_1".to_owned(),
        ..Default::default()
    });
    let request = StreamCreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run,
        ..Default::default()
    };
    let mut events = scripted.stream_create_run(request).await?.into_inner();
    loop {
        let event = events.message().await?.ok_or("no unknown event came")?;
        if let Some(Payload::Unknown(unknown)) = &event.payload {
            return Ok(format!(
                "{} {} {}",
                event.r#type().as_str_name(),
                unknown.name,
                unknown.data
            ));
        }
    }
}

async fn unknown_content(messages: &mut MessageServiceClient<Channel>) -> Result<String> {
    let request = ListMessagesRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_1".to_owned(),
        ..Default::default()
    };
    let page = messages.list_messages(request).await?.into_inner();
    let content = page.data.first().map(|message| &message.content[..]);
    let Some([text, unknown]) = content else {
        return Err("not two parts".into());
    };
    let text = text.text.as_ref().ok_or("no text")?.value();
    let kind = unknown.r#type().as_str_name();
    Ok(format!("{text} {kind} {}", unknown.extra_json))
}

async fn deletion(threads: &mut ThreadServiceClient<Channel>) -> Result<String> {
    let thread = threads
        .create_thread(CreateThreadRequest::default())
        .await?;
    let thread_id = thread.into_inner().id;
    let request = DeleteThreadRequest {
        thread_id: thread_id.clone(),
    };
    let deleted = threads.delete_thread(request).await?.into_inner();
    let gone = threads.get_thread(GetThreadRequest { thread_id }).await;
    let status = gone.err().ok_or("it is there")?;
    Ok(format!("{}, then {}", deleted.object, name(status.code())))
}

async fn resumed_stream(cutting: &mut Runs) -> Result<String> {
    let request = StreamCreateThreadAndRunRequest {
        thread_and_run: Some(thread_and_run(&[("embedded.delay_ms", "50")])),
        options: Some(StreamOptions {
            resumable: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let opened = cutting.stream_create_thread_and_run(request).await;
    let mut events = ResumingStream::new(cutting.clone(), opened);
    let (mut text, mut count, mut last) = (String::new(), 0, RunEvent::default());
    while let Some(event) = events.message().await? {
        if let Some(Payload::MessageDelta(message)) = &event.payload {
            let parts = message.delta.iter().flat_map(|delta| &delta.content);
            text.extend(parts.filter_map(|part| part.text.as_ref()?.value.as_deref()));
        }
        last = event;
        count += 1;
    }
    let last = last.r#type().as_str_name();
    Ok(format!("{text} {count} events, {last}"))
}

async fn resuming(ageing: &mut Runs) -> Result<String> {
    let thread_and_run = Some(thread_and_run(&[("embedded.delay_ms", "150")]));
    let request = StreamCreateThreadAndRunRequest {
        thread_and_run,
        ..Default::default()
    };
    let (_, status) = last(
        ageing
            .stream_create_thread_and_run(request)
            .await?
            .into_inner(),
    )
    .await;
    let status = status.ok_or("the stream was not cut")?;
    let details = status.get_error_details();
    let info = details.error_info().ok_or("no ErrorInfo")?;
    let (thread_id, run_id) = (
        info.metadata["thread_id"].clone(),
        info.metadata["run_id"].clone(),
    );
    let watch = WatchRunRequest {
        thread_id,
        run_id,
        ..Default::default()
    };
    loop {
        let failed = match ageing.watch_run(watch.clone()).await {
            Ok(events) => match last(events.into_inner()).await {
                (Some(event), None) => {
                    return Ok(format!(
                        "{} {}, then {}",
                        name(status.code()),
                        info.reason,
                        event.r#type().as_str_name()
                    ));
                }
                (_, failed) => failed.ok_or("nothing came")?,
            },
            Err(failed) => failed,
        };
        // tonic's own: a call that was waiting for a connection which closes is not sent, and
        // CANCELLED with its cause.
        let unsent = failed.code() == Code::Cancelled && failed.source().is_some();
        if failed.code() != Code::Unavailable && !unsent {
            return Err(failed.into());
        }
    }
}
