//! The routes of assistants.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::Uri,
    response::Response,
    routing::get,
};

use super::{
    Api,
    body::{Body, answer},
    clock::stamp,
    error::Error,
    id,
    page::Query,
    tables,
};
use crate::v1::{
    Assistant, AssistantSpec, DeleteAssistantResponse, ListAssistantsResponse, ResponseFormat,
    ResponseFormatMode,
};

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/assistants", get(list).post(create))
        .route(
            "/assistants/{assistant_id}",
            get(read).post(modify).delete(delete),
        )
}

async fn create(State(api): State<Arc<Api>>, bytes: Bytes) -> Result<Response, Error> {
    let spec = Body::<AssistantSpec>::read(&bytes, &tables::ASSISTANT)?.message;
    if spec.model.is_empty() {
        return Err(Error::missing("model"));
    }
    let automatic = ResponseFormat {
        mode: ResponseFormatMode::Auto.into(),
        ..ResponseFormat::default()
    };
    let assistant = Assistant {
        id: id::new("asst"),
        object: "assistant".to_owned(),
        created_at: Some(stamp(api.clock.now())),
        name: spec.name,
        description: spec.description,
        model: spec.model,
        instructions: spec.instructions,
        tools: spec.tools,
        tool_resources: spec.tool_resources,
        metadata: spec.metadata,
        temperature: spec.temperature.or(Some(1.0)),
        top_p: spec.top_p.or(Some(1.0)),
        reasoning_effort: spec.reasoning_effort,
        response_format: spec.response_format.or(Some(automatic)),
        extra_json: String::new(),
    };
    let created = answer(&assistant);
    api.store().put_assistant(assistant);
    Ok(created)
}

async fn list(State(api): State<Arc<Api>>, uri: Uri) -> Result<Response, Error> {
    let page = Query::of(&uri, &[])?.page(api.store().assistants(), |assistant| &assistant.id)?;
    Ok(answer(&ListAssistantsResponse {
        object: "list".to_owned(),
        data: page.data,
        first_id: page.first_id,
        last_id: page.last_id,
        has_more: page.has_more,
        extra_json: String::new(),
    }))
}

async fn read(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Response, Error> {
    Ok(answer(api.store().assistant(&id)?))
}

async fn modify(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<AssistantSpec>::read(&bytes, &tables::ASSISTANT)?;
    let mut store = api.store();
    let mut assistant = store.assistant(&id)?.clone();
    // `null` and empty forms clear a member, which only the JSON can tell from its absence.
    let names = |member| body.names(member);
    let spec = body.message.clone();
    if !spec.model.is_empty() {
        assistant.model = spec.model;
    }
    if names("name") {
        assistant.name = spec.name;
    }
    if names("description") {
        assistant.description = spec.description;
    }
    if names("instructions") {
        assistant.instructions = spec.instructions;
    }
    if names("reasoning_effort") {
        assistant.reasoning_effort = spec.reasoning_effort;
    }
    if names("tools") {
        assistant.tools = spec.tools;
    }
    if names("tool_resources") {
        assistant.tool_resources = spec.tool_resources;
    }
    if names("metadata") {
        assistant.metadata = spec.metadata;
    }
    if names("temperature") {
        assistant.temperature = spec.temperature;
    }
    if names("top_p") {
        assistant.top_p = spec.top_p;
    }
    if names("response_format") {
        assistant.response_format = spec.response_format;
    }
    let modified = answer(&assistant);
    store.put_assistant(assistant);
    Ok(modified)
}

async fn delete(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Response, Error> {
    api.store().delete_assistant(&id)?;
    Ok(answer(&DeleteAssistantResponse {
        id,
        object: "assistant.deleted".to_owned(),
        deleted: Some(true),
        extra_json: String::new(),
    }))
}
