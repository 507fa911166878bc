//! Creates that may be repeated, and creates on threads that are busy: a model of the upstream that
//! breaks on demand, the gateway, gRPC clients.

#[path = "../support/mod.rs"]
mod support;

mod busy;
mod calls;
mod counted;
mod killed;
mod marks;
mod model;
mod repeats;
mod replicas;
