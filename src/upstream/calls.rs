//! One method of [`Client`] per REST endpoint, as `build/calls.rs` generates them: each checks its
//! request before anything is sent. What makes an answer whole is generated, too.
//!
//! Must hold: a route is written once, in the contract (the option `rest` of its RPC).

#![allow(clippy::all, clippy::pedantic, reason = "generated")]

use http::Method;

use super::{
    answer::Answer,
    answerable::Answerable,
    caller::Caller,
    client::Client,
    reconcile::Deletion,
    request::{Request, RestCall, body, body_or_empty},
    stream::UpstreamReply,
    target::{Query, Target},
};
use crate::{
    error::{Error, Idempotency},
    json,
    v1::*,
};

include!(concat!(env!("OUT_DIR"), "/client.rs"));
