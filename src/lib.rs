//! runs-gateway: gRPC in front of Runs REST APIs.
//!
//! | module | what it is, and what only it knows |
//! |---|---|
//! | [`v1`] | the contract, generated from `proto/` |
//! | [`json`] | the codec: how a message looks as JSON |
//! | `codec` | the generated lines of the codec |

pub mod app;
mod codec;
pub mod config;
pub mod error;
pub mod events;
pub mod json;
pub mod rest;
pub mod server;
pub mod service;
pub mod v1;
