//! The routes of threads.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    response::Response,
    routing::{get, post},
};

use super::{
    Api,
    body::{Body, answer},
    error::Error,
    store::Thread,
    tables,
};
use crate::v1::{DeleteThreadResponse, ThreadSpec};

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/threads", post(create)).route(
        "/threads/{thread_id}",
        get(read).post(modify).delete(delete),
    )
}

async fn create(State(api): State<Arc<Api>>, bytes: Bytes) -> Result<Response, Error> {
    let spec = Body::<ThreadSpec>::read(&bytes, &tables::THREAD)?.message;
    let now = api.clock.now();
    let thread = Thread::new(spec, now);
    let created = answer(&thread.resource);
    api.store().add_thread(thread, now)?;
    Ok(created)
}

async fn read(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Response, Error> {
    Ok(answer(&api.store().thread(&id, api.clock.now())?.resource))
}

async fn modify(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<ThreadSpec>::read(&bytes, &tables::THREAD_UPDATE)?;
    api.store().write(&id, api.clock.now(), |thread| {
        let (metadata, tool_resources) = (body.names("metadata"), body.names("tool_resources"));
        if metadata {
            thread.resource.metadata = body.message.metadata;
        }
        if tool_resources {
            thread.resource.tool_resources = body.message.tool_resources;
        }
        Ok(answer(&thread.resource))
    })
}

async fn delete(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Response, Error> {
    api.store().delete_thread(&id)?;
    Ok(answer(&DeleteThreadResponse {
        id,
        object: "thread.deleted".to_owned(),
        deleted: Some(true),
        extra_json: String::new(),
    }))
}
