//! `dev --model-url`: the embedded API on a model behind a chat-completions endpoint, which is
//! scripted, over real sockets.
//!
//! With `RUNS_OPENAPI` naming the API's schema document, every event and every run is held to it.

#[path = "../access/certificates.rs"]
mod certificates;
#[path = "../access/front.rs"]
mod front;
#[path = "../embedded/schema.rs"]
mod schema;
#[path = "../support/mod.rs"]
mod support;

mod cancelled;
mod demo;
mod harness;
mod limits;
mod logs;
mod refused;
mod replies;
mod requests;
mod tls;
