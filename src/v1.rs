//! The contract (`proto/runsgateway/v1`) in Rust: messages, clients (feature `client`) and servers
//! (feature `gateway`) as tonic-build generates them.

#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]

include!(concat!(env!("OUT_DIR"), "/runsgateway.v1.rs"));

/// The contract's descriptor set with comments, as reflection serves it.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// The contract's files: path below the import root, and text.
pub const FILES: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/protos.rs"));

impl RunStatus {
    /// The run will not change any more. A status that this contract does not know may be followed
    /// by any other.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Cancelled | Self::Failed | Self::Completed | Self::Incomplete | Self::Expired => {
                true
            }
            Self::Unspecified
            | Self::Queued
            | Self::InProgress
            | Self::RequiresAction
            | Self::Cancelling => false,
        }
    }
}
