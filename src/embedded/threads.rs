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
    rows::Row,
    store::Thread,
    stream::Events,
    tables, thread,
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
    let thread = Thread::new(thread::create(spec, now), Events::default(), now);
    let created = answer(&thread.rows().resource);
    api.store().add_thread(thread, now)?;
    Ok(created)
}

async fn read(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Response, Error> {
    let mut store = api.store();
    let rows = store.thread(&id, api.clock.now())?.rows();
    Ok(answer(&rows.resource))
}

async fn modify(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<ThreadSpec>::read(&bytes, &tables::THREAD_UPDATE)?;
    api.store().write(&id, api.clock.now(), |thread| {
        let (metadata, tool_resources) = (body.names("metadata"), body.names("tool_resources"));
        let mut row = thread.rows().resource.clone();
        if metadata {
            row.metadata = body.message.metadata;
        }
        if tool_resources {
            row.tool_resources = body.message.tool_resources;
        }
        let modified = answer(&row);
        thread.apply([Row::Thread(row).without_event()]);
        Ok(modified)
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
