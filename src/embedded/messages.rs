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
    rows::Row,
    tables, thread,
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
        let message = thread::add_message(thread.rows(), message, now)?;
        let created = answer(&message);
        thread.apply([Row::Message(message).without_event()]);
        Ok(created)
    })
}

async fn list(
    State(api): State<Arc<Api>>,
    Path(thread_id): Path<String>,
    uri: Uri,
) -> Result<Response, Error> {
    let query = Query::of(&uri, &["run_id"])?;
    let mut store = api.store();
    let rows = store.thread(&thread_id, api.clock.now())?.rows();
    let of_run = rows.messages.iter().filter(|message| {
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

type Ids = Path<(String, String)>;

async fn read(State(api): State<Arc<Api>>, Path((thread_id, id)): Ids) -> Result<Response, Error> {
    let mut store = api.store();
    let rows = store.thread(&thread_id, api.clock.now())?.rows();
    Ok(answer(rows.message(&id)?))
}

async fn modify(
    State(api): State<Arc<Api>>,
    Path((thread_id, id)): Ids,
    bytes: Bytes,
) -> Result<Response, Error> {
    let body = Body::<MessageUpdate>::read(&bytes, &tables::UPDATE)?;
    api.store().write(&thread_id, api.clock.now(), |thread| {
        let mut message = thread.rows().message(&id)?.clone();
        if body.names("metadata") {
            message.metadata = body.message.metadata;
        }
        let modified = answer(&message);
        thread.apply([Row::Message(message).without_event()]);
        Ok(modified)
    })
}

async fn delete(
    State(api): State<Arc<Api>>,
    Path((thread_id, id)): Ids,
) -> Result<Response, Error> {
    api.store().write(&thread_id, api.clock.now(), |thread| {
        thread.rows().message(&id)?;
        thread.apply([Row::DeletedMessage(id.clone()).without_event()]);
        Ok(())
    })?;
    Ok(answer(&DeleteMessageResponse {
        id,
        object: "thread.message.deleted".to_owned(),
        deleted: Some(true),
        extra_json: String::new(),
    }))
}
