//! The routes of a run's steps.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::Uri,
    response::Response,
    routing::get,
};

use super::{Api, body::answer, error::Error, page::Query};
use crate::v1::ListRunStepsResponse;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/threads/{thread_id}/runs/{run_id}/steps", get(list))
        .route(
            "/threads/{thread_id}/runs/{run_id}/steps/{step_id}",
            get(read),
        )
}

async fn list(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, Error> {
    let query = Query::of(&uri, &["include[]"])?;
    let mut store = api.store();
    let rows = store.thread(&thread_id, api.clock.now())?.rows();
    let run = rows.run(&run_id)?;
    let page = query.page(run.steps.iter(), |step| &step.id)?;
    Ok(answer(&ListRunStepsResponse {
        object: "list".to_owned(),
        data: page.data,
        first_id: page.first_id,
        last_id: page.last_id,
        has_more: page.has_more,
        extra_json: String::new(),
    }))
}

async fn read(
    State(api): State<Arc<Api>>,
    Path((thread_id, run_id, id)): Path<(String, String, String)>,
) -> Result<Response, Error> {
    let mut store = api.store();
    let rows = store.thread(&thread_id, api.clock.now())?.rows();
    let step = rows
        .run(&run_id)?
        .steps
        .iter()
        .find(|step| step.id == id)
        .ok_or_else(|| Error::not_found("run step", &id))?;
    Ok(answer(step))
}
