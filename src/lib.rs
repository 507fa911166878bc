//! runs-gateway: gRPC in front of Runs REST APIs.
//!
//! | module | what it is, and what only it knows |
//! |---|---|
//! | [`v1`] | the contract, generated from `proto/` |
//! | [`json`] | the codec: how a message looks as JSON |
//! | `codec` | the generated lines of the codec |
//! | [`rest`] | the REST side: how events are framed |

mod codec;
pub mod json;
pub mod rest;
pub mod v1;
