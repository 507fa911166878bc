//! One request to the upstream, as it is made of an RPC's.

use bytes::Bytes;
use http::{HeaderValue, Method};

use super::{
    marks, retry,
    target::{self, Query, Target},
};
use crate::{
    error::{Error, Idempotency},
    json,
};

/// One request to the upstream.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) query: Query,
    pub(super) body: Option<Bytes>,
    /// The field of the RPC's request that the body is.
    pub(super) body_field: &'static str,
    pub(super) idempotency: Idempotency,
    /// The key of all attempts, unless the caller gives one. It is a courtesy to services that know
    /// such keys, and no ground for a retry.
    pub(super) idempotency_key: Option<HeaderValue>,
    /// Its answer is not for a caller: it shows marks.
    pub(super) shows_marks: bool,
}

impl Request {
    /// A request to `route`, whose ids in braces are those of the same names in `ids`.
    pub(super) fn new(
        method: Method,
        route: &'static str,
        ids: &[(&str, &str)],
        idempotency: Idempotency,
    ) -> Result<Self, Error> {
        Ok(Self {
            method,
            target: target::target(route, ids)?,
            query: Query::default(),
            body: None,
            body_field: "",
            idempotency,
            idempotency_key: None,
            shows_marks: false,
        })
    }

    /// For a request whose answer no caller sees.
    pub(super) fn showing_marks(mut self) -> Self {
        self.shows_marks = true;
        self
    }

    /// Reads what this request modifies.
    pub(super) fn read_before(&self) -> Self {
        Self {
            method: Method::GET,
            target: self.target.clone(),
            query: Query::default(),
            body: None,
            body_field: "",
            idempotency: Idempotency::Idempotent,
            idempotency_key: None,
            shows_marks: false,
        }
    }

    /// Whether its body has a member of this name.
    pub(super) fn names(&self, member: &str) -> bool {
        let body = self.body.as_deref().unwrap_or_default();
        json::member(body, member).is_some()
    }

    /// For a request that makes something new.
    pub(super) fn with_idempotency_key(mut self) -> Self {
        self.idempotency_key = retry::idempotency_key();
        self
    }

    pub(super) fn body(mut self, field: &'static str, body: Vec<u8>) -> Self {
        self.body_field = field;
        self.body = Some(body.into());
        self
    }

    /// The same request, asking for a stream. `stream` is the gateway's: encoding has refused
    /// bodies that name it.
    pub(super) fn streamed(mut self) -> Self {
        self.body = self.body.map(|body| {
            let mut body = Vec::from(body);
            body.pop();
            body.extend_from_slice(if body.len() > 1 {
                b",\"stream\":true}"
            } else {
                b"\"stream\":true}"
            });
            body.into()
        });
        self
    }

    pub(super) fn query(mut self, query: Query) -> Self {
        self.query = query;
        self
    }
}

/// Members of request bodies that the gateway sets itself.
const OWNED: &[&str] = &["stream"];

/// An RPC's request that is one REST request. Generated from the RPC's route.
pub(super) trait RestCall {
    /// The REST request, or what is wrong with this one. Nothing is sent.
    fn request(&self) -> Result<Request, Error>;
}

/// Encodes the body that a request holds in `field`. It names no mark.
pub(super) fn body<M: json::Document>(field: &str, body: Option<&M>) -> Result<Vec<u8>, Error> {
    let body = body.ok_or_else(|| Error::invalid(field, "must be set"))?;
    let body = json::encode_request(body, OWNED).map_err(|violation| violation.within(field))?;
    marks::refuse(field, &body)?;
    Ok(body)
}

/// The same, where a request without a body asks for nothing in particular.
pub(super) fn body_or_empty<M: json::Document>(
    field: &str,
    message: Option<&M>,
) -> Result<Vec<u8>, Error> {
    match message {
        None => Ok(b"{}".to_vec()),
        message => body(field, message),
    }
}
