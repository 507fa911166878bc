//! Errors as the API answers them: a status and `{"error":{"message","type","param","code"}}`.
//!
//! Must hold: every answer of status 400 and above has this body, and names the parameter to blame
//! where there is one. The texts are those of the real service wherever it was seen to say them,
//! since clients have been known to read them.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::v1::{ApiError, ErrorBody};
use crate::json;

/// How long to wait, where waiting helps. Short, so that whoever tries it out need not.
const RETRY_AFTER_MS: u16 = 20;

#[derive(Debug)]
pub(super) struct Error {
    pub(super) status: StatusCode,
    /// Boxed, since it would make every result large.
    pub(super) error: Box<ApiError>,
}

impl Error {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = if status.is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        };
        let error = ApiError {
            message: Some(message.into()),
            r#type: kind.to_owned(),
            ..ApiError::default()
        };
        Self {
            status,
            error: Box::new(error),
        }
    }

    /// The request cannot be served in the present state.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A parameter is to blame.
    pub(super) fn parameter(param: &str, code: &str, message: impl Into<String>) -> Self {
        let mut error = Self::conflict(message).with_code(code);
        error.error.param = Some(param.to_owned());
        error
    }

    pub(super) fn with_code(mut self, code: &str) -> Self {
        code.clone_into(&mut self.error.code);
        self
    }

    pub(super) fn missing(param: &str) -> Self {
        Self::parameter(
            param,
            "missing_required_parameter",
            format!("Missing required parameter: '{param}'."),
        )
    }

    pub(super) fn not_one_of(param: &str, value: &str, supported: &[&str]) -> Self {
        let supported = supported
            .iter()
            .map(|name| format!("'{name}'"))
            .collect::<Vec<_>>()
            .join(", ");
        let message = format!("Invalid value: '{value}'. Supported values are: {supported}.");
        Self::parameter(param, "invalid_value", message)
    }

    /// Nothing of this kind has this id.
    pub(super) fn not_found(kind: &str, id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("No {kind} found with id '{id}'."),
        )
    }

    /// The caller wants to see what it does about this status.
    pub(super) fn refused(status: StatusCode) -> Self {
        let error = Self::new(
            status,
            format!(
                "The request was refused with status {}, as asked for.",
                status.as_u16()
            ),
        );
        if status == StatusCode::TOO_MANY_REQUESTS {
            error.with_code("rate_limit_exceeded")
        } else {
            error
        }
    }

    /// There is no room, and nothing that could make any.
    pub(super) fn full() -> Self {
        let message = "The server holds as many threads as it may, and all of them are in use.";
        Self::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("rate_limit_exceeded")
    }

    /// The embedded API itself is wrong.
    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The server had an error processing your request.",
        )
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = json::encode(&ErrorBody {
            error: Some(*self.error),
            ..ErrorBody::default()
        })
        .unwrap_or_default();
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], body).into_response();
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            response
                .headers_mut()
                .insert("retry-after-ms", HeaderValue::from(RETRY_AFTER_MS));
        }
        response
    }
}
