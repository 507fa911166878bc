//! The codec of each message of the contract, as
//! `build/codec.rs` generates it in terms of the rules in [`crate::json`].

#![allow(clippy::all, clippy::pedantic, reason = "generated")]

use std::sync::atomic::AtomicU8;

use crate::{
    json::{Cursor, Empty, Names, Object, ObjectWriter, Read, Value, Violation, Writer, read},
    v1::*,
};

include!(concat!(env!("OUT_DIR"), "/codec.rs"));
