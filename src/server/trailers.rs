//! The trailers of calls: the status that each ends with.

use http::{HeaderMap, header::CONTENT_TYPE};
use tonic::{Code, Status};

use crate::error::with_reason;

/// The code that headers or trailers say.
pub(super) fn code(headers: &HeaderMap) -> Code {
    headers
        .get(Status::GRPC_STATUS)
        .map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

/// Adds the reason to a status that has none: one that the library made.
pub(super) fn add_reason(trailers: &mut HeaderMap) {
    let bare = code(trailers) != Code::Ok && !trailers.contains_key(Status::GRPC_STATUS_DETAILS);
    if let Some(status) = bare.then(|| Status::from_header_map(trailers)).flatten() {
        let reasoned = with_reason(status).into_http::<()>().into_parts().0.headers;
        let details = reasoned.get(Status::GRPC_STATUS_DETAILS).cloned();
        trailers.extend(details.map(|details| (Status::GRPC_STATUS_DETAILS, details)));
    }
}

/// Those of a status.
pub(super) fn trailers(status: Status) -> HeaderMap {
    let mut trailers = with_reason(status).into_http::<()>().into_parts().0.headers;
    trailers.remove(CONTENT_TYPE);
    trailers
}
