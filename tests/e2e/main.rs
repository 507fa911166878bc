//! The whole gateway over real sockets: a gRPC client on one side, a scripted upstream on the
//! other.
//!
//! Each file is one promise. Those that read documents from outside the repository find them by
//! `RUNS_RECORDINGS` and `RUNS_OPENAPI`, and say so where these are not set.

#[path = "../codec/oracle.rs"]
#[allow(dead_code, reason = "the codec's tests use all of it")]
mod oracle;
#[path = "../codec/roots.rs"]
#[allow(dead_code, reason = "the codec's tests use all of it")]
mod roots;
#[path = "../support/mod.rs"]
mod support;

mod bad_answers;
mod call;
mod dev;
mod errors;
mod examples;
mod headers;
mod program;
mod recordings;
mod refused;
mod requests;
mod secrets;
mod services;
mod threads;
mod time;
