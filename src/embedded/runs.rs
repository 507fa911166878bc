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
    drive,
    error::Error,
    page::Query,
    rows::{Row, is_active},
    run::{self, status_name},
    steering::Steering,
    store::Thread,
    stream::{EventStream, Events},
    tables, thread,
};
use crate::v1::{
    self, ListRunsResponse, RunSpec, RunStatus, RunUpdate, ThreadAndRunSpec, ToolOutputs,
};

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
        let model = &*api.model;
        let rows = thread.rows();
        let (run, changes) = run::create(rows, &assistant, body.message, None, model, now)?;
        thread.follow(events);
        thread.apply(changes);
        Ok(run)
    })?;
    drop(store);
    drive::start(&api, thread_id, run.id.clone());
    Ok(answer_run(&run, stream))
}

async fn create_with_thread(State(api): State<Arc<Api>>, bytes: Bytes) -> Result<Response, Error> {
    let body = Body::<ThreadAndRunSpec>::read(&bytes, &tables::THREAD_AND_RUN)?;
    let now = api.clock.now();
    let (events, stream) = events(body.stream());
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
    let created = thread::create(spec.thread.unwrap_or_default(), now);
    let mut thread = Thread::new(created, events, now);
    let (run, changes) = run::create(
        thread.rows(),
        &assistant,
        run_spec,
        spec.tool_resources,
        &*api.model,
        now,
    )?;
    thread.apply(changes);
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
    let rows = store.thread(&thread_id, api.clock.now())?.rows();
    let runs = rows.runs.iter().map(|run| &run.resource);
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

type Ids = Path<(String, String)>;

async fn read(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Ids,
) -> Result<Response, Error> {
    let mut store = api.store();
    let rows = store.thread(&thread_id, api.clock.now())?.rows();
    Ok(answer_run(&rows.run(&run_id)?.resource, None))
}

async fn modify(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Ids,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<RunUpdate>::read(&bytes, &tables::UPDATE)?;
    api.store().write(&thread_id, api.clock.now(), |thread| {
        let mut run = thread.rows().run(&run_id)?.resource.clone();
        let status = run.status();
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
            Steering::of(&body.message.metadata)?;
            run.metadata = body.message.metadata;
        }
        let modified = answer_run(&run, None);
        thread.apply([Row::Run(Box::new(run)).without_event()]);
        Ok(modified)
    })
}

async fn submit(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Ids,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<ToolOutputs>::read(&bytes, &tables::TOOL_OUTPUTS)?;
    let now = api.clock.now();
    let (events, stream) = events(body.stream());
    let run = api.store().write(&thread_id, now, |thread| {
        let run = thread.rows().run(&run_id)?;
        let changes = run.submit(body.message.tool_outputs, now)?;
        thread.follow(events);
        thread.apply(changes);
        Ok(thread.rows().run(&run_id)?.resource.clone())
    })?;
    drive::start(&api, thread_id, run_id);
    Ok(answer_run(&run, stream))
}

async fn cancel(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Ids,
) -> Result<Response, Error> {
    let now = api.clock.now();
    let mut store = api.store();
    let thread = store.thread(&thread_id, now)?;
    let run = thread.rows().run(&run_id)?;
    let waits = run.resource.status() == RunStatus::RequiresAction;
    thread.apply(run.cancel(now)?);
    let cancelling = answer_run(&thread.rows().run(&run_id)?.resource, None);
    drop(store);
    if waits {
        // Nothing drives a run that waits for outputs.
        drive::start(&api, thread_id, run_id);
    }
    Ok(cancelling)
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
