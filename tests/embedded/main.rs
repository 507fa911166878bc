//! The embedded API over a real socket, as any client of the REST API meets it.
//!
//! With `RUNS_OPENAPI` naming the API's schema document, every answer and every event is held to
//! it.

mod answers;
mod client;
mod lists;
mod refusals;
mod schema;
mod sdk;
mod states;
mod streams;
