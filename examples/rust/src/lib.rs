//! The gateway's stubs.

#![allow(clippy::all, reason = "generated")]

tonic::include_proto!("runsgateway.v1");
