//! The embedded API's own messages (`src/embedded/proto`), as prost generates them. They are no
//! part of the contract.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]

tonic::include_proto!("runsgateway.embedded.v1");
