//! The routes of a thread's messages.

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
    error::Error,
    page::Query,
    tables,
};
use crate::v1::{DeleteMessageResponse, ListMessagesResponse, MessageInput, MessageUpdate};

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/threads/{thread_id}/messages", get(list).post(create))
        .route(
            "/threads/{thread_id}/messages/{message_id}",
            get(read).post(modify).delete(delete),
        )
}

async fn create(
    State(api): State<Arc<Api>>,
    Path(thread_id): Path<String>,
    bytes: Bytes,
) -> Result<Response, Error> {
    let message = Body::<MessageInput>::read(&bytes, &tables::MESSAGE)?.message;
    let now = api.clock.now();
    api.store().write(&thread_id, now, |thread| {
        if let Some(run) = thread.active_run() {
            let message = format!(
                "Can't add messages to {thread_id} while a run {} is active.",
                run.resource.id
            );
            return Err(Error::conflict(message));
        }
        Ok(answer(thread.add_message(message, now)))
    })
}

async fn list(
    State(api): State<Arc<Api>>,
    Path(thread_id): Path<String>,
    uri: Uri,
) -> Result<Response, Error> {
    let query = Query::of(&uri, &["run_id"])?;
    let mut store = api.store();
    let messages = store.thread(&thread_id, api.clock.now())?.messages.iter();
    let of_run = messages.filter(|message| {
        query
            .run_id
            .as_ref()
            .is_none_or(|run_id| message.run_id == *run_id)
    });
    let page = query.page(of_run, |message| &message.id)?;
    Ok(answer(&ListMessagesResponse {
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
    Path((thread_id, id)): Place,
) -> Result<Response, Error> {
    Ok(answer(
        api.store()
            .thread(&thread_id, api.clock.now())?
            .message(&id)?,
    ))
}

async fn modify(
    State(api): State<Arc<Api>>,
    Path((thread_id, id)): Place,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<MessageUpdate>::read(&bytes, &tables::UPDATE)?;
    api.store().write(&thread_id, api.clock.now(), |thread| {
        let message = thread.message(&id)?;
        if body.names("metadata") {
            message.metadata = body.message.metadata;
        }
        Ok(answer(message))
    })
}

async fn delete(
    State(api): State<Arc<Api>>,
    Path((thread_id, id)): Place,
) -> Result<Response, Error> {
    api.store().write(&thread_id, api.clock.now(), |thread| {
        thread.message(&id)?;
        thread.messages.retain(|message| message.id != id);
        Ok(())
    })?;
    Ok(answer(&DeleteMessageResponse {
        id,
        object: "thread.message.deleted".to_owned(),
        deleted: Some(true),
        extra_json: String::new(),
    }))
}
