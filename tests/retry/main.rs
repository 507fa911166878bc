//! Retries and limits, seen from both sides of the gateway: what the caller is told, and what the
//! upstream was asked.
//!
//! The one promise behind all of it: what must not be done twice is sent twice only if the first
//! was certainly not done.

#[path = "../support/mod.rs"]
mod support;

mod call;
mod faults;
mod http2;
mod limits;
mod load;
mod rules;
mod settled;
