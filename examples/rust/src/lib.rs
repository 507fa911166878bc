//! The gateway's stubs, and a stream that resumes by itself.

pub mod resuming;

#[allow(clippy::all, reason = "generated")]
mod stubs {
    tonic::include_proto!("runsgateway.v1");
}
pub use stubs::*;
