//! The embedded Runs API: the REST API that the gateway talks to, served in-process and kept in
//! memory.
//!
//! It is an HTTP server and nothing else. The gateway reaches it through a socket like any
//! upstream, and any client of the REST API may use it too: what works here works there. It needs
//! no key and accepts any.
//!
//! | module | what it is |
//! |---|---|
//! | `assistants`, `threads`, `messages`, `runs`, `steps` | the routes |
//! | `store` | what is remembered, within [`Limits`] |
//! | `rows` | what there is to remember of a thread, and to tell when it changes |
//! | `thread`, `run` | transitions: given rows and what happens, the rows and events that follow |
//! | `drive` | the task that moves a run on |
//! | `model`, `prompt`, `call_order` | what answers, as a run sees it, what it is told, and the order of its calls |
//! | `builtin`, `sample`, `steering` | the model that is always there |
//! | `stream` | event streams |
//! | `body`, `tables`, `shape`, `page`, `error` | bodies, their validation, lists, errors |
//! | `clock`, `id` | time and ids |
//!
//! Must hold: bodies are the contract's messages, read and written by the codec, so that each
//! proves the other; what the contract does not have is in a package of its own (`proto/` beside
//! this file), which nobody outside sees.

mod assistants;
mod body;
mod builtin;
mod call_order;
mod clock;
mod codec;
mod drive;
mod error;
mod id;
mod limits;
mod messages;
pub(crate) mod model;
mod page;
mod prompt;
mod rows;
mod run;
mod runs;
mod sample;
mod shape;
mod steering;
mod steps;
mod store;
mod stream;
mod tables;
mod thread;
mod threads;
pub(crate) mod v1;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use builtin::BuiltIn;
pub use clock::{Clock, ManualClock};
use error::Error;
pub use limits::Limits;
use model::Model;
pub use store::ASSISTANT;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What all requests share.
struct Api {
    store: Mutex<Store>,
    clock: Clock,
    model: Arc<dyn Model>,
    shutdown: CancellationToken,
}

impl Api {
    fn store(&self) -> MutexGuard<'_, Store> {
        // A panic in a request would leave at worst one odd thread, which is no reason to refuse
        // all others.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the API on `listener` until `shutdown`, at the root and under `/v1`. Answers come from the
/// built-in model.
///
/// At shutdown everything is forgotten: runs stop, their streams end with an `error` event, and
/// requests that were begun are finished.
pub async fn serve(
    listener: TcpListener,
    limits: Limits,
    clock: Clock,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_model(listener, limits, clock, built_in(), shutdown).await
}

/// The model that is always there.
pub(crate) fn built_in() -> Arc<dyn Model> {
    Arc::new(BuiltIn)
}

/// The same, with answers from `model`.
pub(crate) async fn serve_model(
    listener: TcpListener,
    limits: Limits,
    clock: Clock,
    model: Arc<dyn Model>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let body = DefaultBodyLimit::max(limits.body);
    let store = Mutex::new(Store::new(limits, model.description(), clock.now()));
    let api = Arc::new(Api {
        store,
        clock,
        model,
        shutdown: shutdown.clone(),
    });
    let routes = Router::new()
        .merge(assistants::routes())
        .merge(threads::routes())
        .merge(messages::routes())
        .merge(runs::routes())
        .merge(steps::routes());
    let app = Router::new()
        .nest("/v1", routes.clone())
        .merge(routes)
        .layer(body)
        // Outermost, since whatever the others answer needs a request id.
        .layer(middleware::from_fn(add_service_headers))
        .with_state(Arc::clone(&api));
    // Events are small and must not wait for each other.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            shutdown.cancelled().await;
            api.store().clear();
        })
        .await
}

/// Gives every answer the headers of the service, and every error that did not come from a handler
/// its body.
async fn add_service_headers(request: Request, next: Next) -> Response {
    let (method, uri, start) = (
        request.method().clone(),
        request.uri().clone(),
        Instant::now(),
    );
    let mut response = next.run(request).await;
    let typed = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value == "application/json");
    if !response.status().is_success() && !typed {
        response = error_body(response.status(), &method, &uri).into_response();
    }
    let headers = response.headers_mut();
    let request_id = HeaderValue::try_from(id::new("req"));
    headers.insert(
        "x-request-id",
        request_id.unwrap_or(HeaderValue::from_static("req")),
    );
    headers.insert("openai-version", HeaderValue::from_static("2020-10-01"));
    let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    headers.insert("openai-processing-ms", HeaderValue::from(took));
    response
}

/// What the router and the extractors refuse, in the API's own form.
fn error_body(status: StatusCode, method: &Method, uri: &Uri) -> Error {
    let path = uri.path();
    match status {
        StatusCode::NOT_FOUND => Error::new(status, format!("Invalid URL ({method} {path})")),
        StatusCode::METHOD_NOT_ALLOWED => {
            Error::new(status, format!("Not allowed to {method} on {path}."))
                .with_code("method_not_supported")
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            Error::new(status, "The body of the request is too large.")
        }
        status => Error::new(status, "The request could not be read."),
    }
}
