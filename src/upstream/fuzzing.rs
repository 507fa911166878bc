//! What the fuzz targets (`fuzz/`) reach for and nobody else may: with the feature `fuzzing` alone.

use url::Url;

use super::{
    Answer, answer,
    own_secrets::OwnSecrets,
    target::{Base, Query, target},
};
use crate::{
    error::{Error, Idempotency},
    shares::HeldBytes,
    v1::{ListRunStepsRequest, Run},
};

/// The URL of a request to `route`, filled with ids by name, with the page and the includes of
/// `query`.
pub fn url(
    base: &Url,
    route: &'static str,
    ids: &[(&str, &str)],
    query: &ListRunStepsRequest,
) -> Result<Url, Error> {
    let target = target(route, ids)?;
    let query = Query::default()
        .limit(query.limit)?
        .order(query.order)?
        .text("after", &query.after)?
        .text("before", &query.before)?
        .list("include", &query.include)?;
    Ok(Base::new(base).url(&target.path, &query))
}

/// What becomes of an answer to a request for a run.
pub async fn read_answer(
    response: http::Response<Vec<u8>>,
    idempotency: Idempotency,
    own_key: bool,
) -> Result<Answer<Run>, Error> {
    let reading = answer::Reading {
        target: &target("/threads/{thread_id}/runs", &[("thread_id", "thread_1")])?,
        idempotency,
        own_key,
        secrets: &OwnSecrets::default(),
        is_read: true,
        shows_marks: false,
        limit: usize::MAX,
        held: &HeldBytes::default(),
        until: tokio::time::Instant::now() + std::time::Duration::from_secs(60),
    };
    answer::read(&mut response.into(), bytes::Bytes::new(), &reading).await
}
