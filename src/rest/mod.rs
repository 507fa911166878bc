//! The REST side: how events are framed.

pub mod sse;
