//! Bodies: requests into messages, and messages into answers.
//!
//! Must hold: everything but event streams comes in and goes out here, by the contract's codec.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    error::Error,
    shape::{Shape, check},
};
use crate::json::{self, Document};

/// A body that passed its table: as its message, and as JSON for what the message cannot tell, such
/// as `{}` from nothing.
pub(super) struct Body<M> {
    pub(super) message: M,
    json: Value,
}

impl<M: Document> Body<M> {
    /// Reads `bytes`. Nothing at all stands for `{}`.
    pub(super) fn read(bytes: &[u8], shape: &Shape) -> Result<Self, Error> {
        let bytes = if bytes.is_empty() { b"{}" } else { bytes };
        let unreadable = || Error::conflict("We could not parse the JSON body of your request.");
        let json: Value = serde_json::from_slice(bytes).map_err(|_| unreadable())?;
        check("", &json, shape)?;
        Ok(Self {
            message: json::decode(bytes).map_err(|_| unreadable())?,
            json,
        })
    }

    /// Whether the body names this member.
    pub(super) fn names(&self, member: &str) -> bool {
        self.json.get(member).is_some()
    }

    /// Whether the answer is to be an event stream.
    pub(super) fn stream(&self) -> bool {
        self.json.get("stream") == Some(&Value::Bool(true))
    }
}

/// A message as the body of an answer.
pub(super) fn answer<M: Document>(message: &M) -> Response {
    match json::encode(message) {
        Ok(body) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/json")],
            body,
        )
            .into_response(),
        Err(_) => Error::internal().into_response(),
    }
}
