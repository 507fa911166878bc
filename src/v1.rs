//! The contract (`proto/runsgateway/v1`) in Rust: messages, clients and servers as tonic-build
//! generates them.

#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]

tonic::include_proto!("runsgateway.v1");

/// The contract's descriptor set with comments, as reflection serves it.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// The contract's files: path below the import root, and text.
pub const FILES: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/protos.rs"));
