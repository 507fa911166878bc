//! runs-gateway: gRPC in front of Runs REST APIs.
//!
//! | module | what it is, and what only it knows |
//! |---|---|
//! | [`v1`] | the contract, generated from `proto/` |
//! | [`json`] | the codec: how a message looks as JSON |
//! | `codec` | the generated lines of the codec |
//! | [`embedded`] | the same REST API served in-process, for trying out, developing and testing |

mod codec;
pub mod embedded;
pub mod json;
pub mod v1;
