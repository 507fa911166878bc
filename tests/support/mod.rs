//! What the end-to-end tests share.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod faults;
pub(crate) mod gateway;
pub(crate) mod program;
pub(crate) mod redis;
pub(crate) mod upstream;
pub(crate) mod upstream_h2;
