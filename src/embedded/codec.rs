//! The codec of each of the embedded API's own messages, as
//! `build/codec.rs` generates it in terms of the rules in [`crate::json`].

#![allow(clippy::all, clippy::pedantic, reason = "generated")]

use std::sync::atomic::AtomicU8;

use super::v1::*;
use crate::json::{Cursor, Empty, Object, ObjectWriter, Read, Value, Violation, Writer, read};

include!(concat!(env!("OUT_DIR"), "/embedded_codec.rs"));
