//! Runs as streams, end to end: a scripted upstream, the gateway, a gRPC client.

#[path = "../support/mod.rs"]
mod support;

mod delivery;
mod dialects;
mod endings;
mod leaving;
mod openings;
mod pressure;
mod process;
mod recordings;
mod replicas;
mod resuming;
mod script;
mod texts;
mod waiting;
mod watching;
