//! The routes of runs.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderValue, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use super::{
    Api,
    body::{Body, answer},
    clock::stamp,
    drive,
    error::Error,
    id,
    model::Unsupported,
    page::Query,
    run::{Run, is_active, status_name},
    steering::Steering,
    store::Thread,
    stream::{EventStream, Events},
    tables,
};
use crate::v1::{
    self, Assistant, ListRunsResponse, MessageRole, ResponseFormat, ResponseFormatMode, RunSpec,
    RunStatus, RunUpdate, ThreadAndRunSpec, ToolChoice, ToolChoiceMode, ToolOutputs, ToolResources,
    TruncationStrategy, TruncationStrategyType,
};

/// How long a run may take, outputs of its calls included.
const LIFETIME: Duration = Duration::from_secs(600);

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/threads/runs", post(create_with_thread))
        .route("/threads/{thread_id}/runs", get(list).post(create))
        .route("/threads/{thread_id}/runs/{run_id}", get(read).post(modify))
        .route(
            "/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
            post(submit),
        )
        .route("/threads/{thread_id}/runs/{run_id}/cancel", post(cancel))
}

async fn create(
    State(api): State<Arc<Api>>,
    Path(thread_id): Path<String>,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<RunSpec>::read(&bytes, &tables::RUN)?;
    let now = api.clock.now();
    let (events, stream) = events(body.stream());
    let mut store = api.store();
    store.thread(&thread_id, now)?;
    let assistant = store.assistant(&body.message.assistant_id)?.clone();
    let run = store.write(&thread_id, now, |thread| {
        add_run(&api, thread, &assistant, body.message, None, events, now)
    })?;
    drop(store);
    drive::start(&api, thread_id, run.id.clone());
    Ok(answer_run(&run, stream))
}

async fn create_with_thread(State(api): State<Arc<Api>>, bytes: Bytes) -> Result<Response, Error> {
    let body = Body::<ThreadAndRunSpec>::read(&bytes, &tables::THREAD_AND_RUN)?;
    let now = api.clock.now();
    let (mut events, stream) = events(body.stream());
    let spec = body.message;
    let run_spec = RunSpec {
        assistant_id: spec.assistant_id,
        model: spec.model,
        instructions: spec.instructions,
        tools: spec.tools,
        metadata: spec.metadata,
        temperature: spec.temperature,
        top_p: spec.top_p,
        max_prompt_tokens: spec.max_prompt_tokens,
        max_completion_tokens: spec.max_completion_tokens,
        truncation_strategy: spec.truncation_strategy,
        tool_choice: spec.tool_choice,
        parallel_tool_calls: spec.parallel_tool_calls,
        response_format: spec.response_format,
        ..RunSpec::default()
    };
    let mut store = api.store();
    let assistant = store.assistant(&run_spec.assistant_id)?.clone();
    let mut thread = Thread::new(spec.thread.unwrap_or_default(), now);
    events.send("thread.created", &thread.resource);
    let run = add_run(
        &api,
        &mut thread,
        &assistant,
        run_spec,
        spec.tool_resources,
        events,
        now,
    )?;
    store.add_thread(thread, now)?;
    drop(store);
    drive::start(&api, run.thread_id.clone(), run.id.clone());
    Ok(answer_run(&run, stream))
}

async fn list(
    State(api): State<Arc<Api>>,
    Path(thread_id): Path<String>,
    uri: Uri,
) -> Result<Response, Error> {
    let query = Query::of(&uri, &[])?;
    let mut store = api.store();
    let runs = store
        .thread(&thread_id, api.clock.now())?
        .runs
        .iter()
        .map(|run| &run.resource);
    let page = query.page(runs, |run| &run.id)?;
    Ok(answer(&ListRunsResponse {
        object: "list".to_owned(),
        data: page.data,
        first_id: page.first_id,
        last_id: page.last_id,
        has_more: page.has_more,
        extra_json: String::new(),
    }))
}

type Place = Path<(String, String)>;

async fn read(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Place,
) -> Result<Response, Error> {
    let mut store = api.store();
    let (run, _) = store.thread(&thread_id, api.clock.now())?.run(&run_id)?;
    Ok(answer_run(&run.resource, None))
}

async fn modify(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Place,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<RunUpdate>::read(&bytes, &tables::UPDATE)?;
    api.store().write(&thread_id, api.clock.now(), |thread| {
        let (run, _) = thread.run(&run_id)?;
        let status = run.resource.status();
        if matches!(
            status,
            RunStatus::Queued | RunStatus::InProgress | RunStatus::Cancelling
        ) {
            return Err(Error::conflict(format!(
                "Cannot update run with status '{}'.",
                status_name(status)
            )));
        }
        if body.names("metadata") {
            run.steering = Steering::of(&body.message.metadata)?;
            run.resource.metadata = body.message.metadata;
        }
        Ok(answer_run(&run.resource, None))
    })
}

async fn submit(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Place,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<ToolOutputs>::read(&bytes, &tables::TOOL_OUTPUTS)?;
    let now = api.clock.now();
    let (events, stream) = events(body.stream());
    let run = api.store().write(&thread_id, now, |thread| {
        let (run, _) = thread.run(&run_id)?;
        run.submit(body.message.tool_outputs, events, now)?;
        Ok(run.resource.clone())
    })?;
    drive::start(&api, thread_id, run_id);
    Ok(answer_run(&run, stream))
}

async fn cancel(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Place,
) -> Result<Response, Error> {
    let now = api.clock.now();
    let mut store = api.store();
    let (run, _) = store.thread(&thread_id, now)?.run(&run_id)?;
    let waits = run.resource.status() == RunStatus::RequiresAction;
    run.cancel(now)?;
    let cancelling = answer_run(&run.resource, None);
    drop(store);
    if waits {
        // Nothing drives a run that waits for outputs.
        drive::start(&api, thread_id, run_id);
    }
    Ok(cancelling)
}

/// Adds a run to a thread that has no active one.
fn add_run(
    api: &Api,
    thread: &mut Thread,
    assistant: &Assistant,
    spec: RunSpec,
    tool_resources: Option<ToolResources>,
    events: Events,
    now: Duration,
) -> Result<v1::Run, Error> {
    if let Some(active) = thread.active_run() {
        let (thread, run) = (thread.id(), &active.resource.id);
        return Err(Error::conflict(format!(
            "Thread {thread} already has an active run {run}."
        )));
    }
    let steering = Steering::of(&spec.metadata)?;
    if let Some(status) = steering.refusal {
        return Err(Error::refused(status));
    }
    let additional = spec.additional_instructions.clone();
    let instructions = [
        spec.instructions.clone().or(assistant.instructions.clone()),
        additional,
    ];
    let instructions = instructions
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join("\n");
    let speaks = |role: i32| role == i32::from(MessageRole::User);
    let user = thread.messages.iter().any(|message| speaks(message.role))
        || spec
            .additional_messages
            .iter()
            .any(|message| speaks(message.role));
    if !user && instructions.is_empty() {
        let message =
            "Run creation requires a Thread with a user message or an assistant with instructions.";
        return Err(Error::conflict(message).with_code("invalid_thread"));
    }
    let messages = thread.messages.len();
    for message in spec.additional_messages {
        thread.add_message(message, now);
    }
    let run = v1::Run {
        id: id::new("run"),
        object: "thread.run".to_owned(),
        created_at: Some(stamp(now)),
        thread_id: thread.id().to_owned(),
        assistant_id: spec.assistant_id,
        expires_at: Some(stamp(now + LIFETIME)),
        model: if spec.model.is_empty() {
            assistant.model.clone()
        } else {
            spec.model
        },
        instructions: Some(instructions),
        tools: if spec.tools.is_empty() {
            assistant.tools.clone()
        } else {
            spec.tools
        },
        tool_resources: tool_resources.or(assistant.tool_resources.clone()),
        metadata: spec.metadata,
        temperature: spec.temperature.or(assistant.temperature).or(Some(1.0)),
        top_p: spec.top_p.or(assistant.top_p).or(Some(1.0)),
        max_prompt_tokens: spec.max_prompt_tokens,
        max_completion_tokens: spec.max_completion_tokens,
        truncation_strategy: Some(
            spec.truncation_strategy
                .unwrap_or_else(|| TruncationStrategy {
                    r#type: TruncationStrategyType::Auto.into(),
                    ..TruncationStrategy::default()
                }),
        ),
        tool_choice: Some(spec.tool_choice.unwrap_or_else(|| ToolChoice {
            mode: ToolChoiceMode::Auto.into(),
            ..ToolChoice::default()
        })),
        parallel_tool_calls: spec.parallel_tool_calls.or(Some(true)),
        response_format: spec
            .response_format
            .or_else(|| assistant.response_format.clone())
            .or_else(|| {
                Some(ResponseFormat {
                    mode: ResponseFormatMode::Auto.into(),
                    ..ResponseFormat::default()
                })
            }),
        reasoning_effort: if spec.reasoning_effort.is_empty() {
            assistant.reasoning_effort.clone()
        } else {
            spec.reasoning_effort
        },
        ..v1::Run::default()
    };
    if let Some(Unsupported { param, message }) = api.model.unsupported(&run, &thread.messages) {
        thread.messages.truncate(messages);
        return Err(Error::parameter(&param, "unsupported_parameter", message));
    }
    let run = Run::new(run, steering, events, now);
    let created = run.resource.clone();
    thread.runs.push(run);
    Ok(created)
}

fn events(wanted: bool) -> (Events, Option<EventStream>) {
    if !wanted {
        return (Events::default(), None);
    }
    let (events, stream) = Events::stream();
    (events, Some(stream))
}

/// A run as an answer, or the stream of its events; with a hint when to ask again, if it is not
/// over.
fn answer_run(run: &v1::Run, stream: Option<EventStream>) -> Response {
    if let Some(stream) = stream {
        return stream.into_response();
    }
    let mut response = answer(run);
    if is_active(run.status()) {
        let pause = Steering::of(&run.metadata)
            .map_or(POLL_AFTER, |steering| steering.step)
            .clamp(POLL_AFTER, POLL_AFTER_MOST);
        let hint = u64::try_from(pause.as_millis()).unwrap_or_default();
        response
            .headers_mut()
            .insert("openai-poll-after-ms", HeaderValue::from(hint));
    }
    response
}

const POLL_AFTER: Duration = Duration::from_millis(20);
const POLL_AFTER_MOST: Duration = Duration::from_secs(1);
