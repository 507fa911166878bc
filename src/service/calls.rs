//! The gRPC services of the contract, as `build/calls.rs` generates them: each unary handler is one
//! call of the upstream's client and its answer. The calls with a life of their own are in `run.rs`.

#![allow(clippy::all, clippy::pedantic, reason = "generated")]

use tonic::{Request, Response, Status, Streaming};

use super::{Gateway, RunEvents, answer, is_of_run, run};
use crate::{error::Idempotency, server::Routes, v1::*};

include!(concat!(env!("OUT_DIR"), "/services.rs"));
