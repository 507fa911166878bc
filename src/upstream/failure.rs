//! Why there is no answer, and how far the request got.
//!
//! Must hold: [`Delivery::Unsent`] and [`Delivery::Refused`] are said only where the upstream
//! cannot have processed the request; everything that is not one of the known cases is
//! [`Delivery::Unknown`]. Causes name no address: reqwest's own texts do.

use std::{error::Error as _, io, time::Duration};

use crate::error::{Delivery, Error, Idempotency};

/// The error for a request whose answer did not begin.
pub(super) fn lost(error: &reqwest::Error, idempotency: Idempotency) -> Error {
    let chain = || chain(error);
    let http2 = chain().find_map(|error| error.downcast_ref::<h2::Error>());
    let canceled = chain()
        .filter_map(|error| error.downcast_ref::<hyper::Error>())
        .any(hyper::Error::is_canceled);
    let delivery = if error.is_connect() || error.is_builder() || canceled {
        Delivery::Unsent
    } else if http2.is_some_and(is_refusal) {
        Delivery::Refused
    } else {
        Delivery::Unknown
    };
    let what = match delivery {
        Delivery::Unsent => "the upstream cannot be reached",
        Delivery::Refused => "the upstream refused the request",
        Delivery::Unknown => "the connection to the upstream was lost",
    };
    // The innermost cause is the operating system's, the TLS library's or the protocol's: it says
    // why and names no URL.
    let is_no_http = chain()
        .filter_map(|error| error.downcast_ref::<hyper::Error>())
        .any(hyper::Error::is_parse);
    let mendable = chain()
        .last()
        .and_then(misconfigured)
        .or(is_no_http.then_some(
            "it does not answer in HTTP: is the scheme or the port of --upstream-url wrong?",
        ));
    let cause = match (mendable, chain().last()) {
        (Some(why), _) => format!("{what}: {why}"),
        (None, Some(why)) => {
            let advice = advice(why, error.url().is_some_and(|url| url.scheme() == "http"));
            format!("{what}: {why}{advice}")
        }
        (None, None) => what.to_owned(),
    };
    Error::Lost {
        delivery,
        idempotency,
        cause,
        timed_out: error.is_timeout(),
        mendable: mendable.is_some(),
        request_id: None,
    }
}

/// The error for a request in the clear to a TLS port.
pub(super) fn wants_tls(idempotency: Idempotency) -> Error {
    Error::Lost {
        delivery: Delivery::Refused,
        idempotency,
        cause:
            "the upstream cannot be reached: its port speaks TLS: is http in --upstream-url, or \
                its port, wrong?"
                .to_owned(),
        timed_out: false,
        mendable: true,
        request_id: None,
    }
}

/// The error for an answer whose body did not end. Whatever the upstream says now, of a request
/// that it answered: it processed it.
pub(super) fn cut(error: &reqwest::Error, idempotency: Idempotency) -> Error {
    Error::Lost {
        delivery: Delivery::Unknown,
        idempotency,
        cause: why(error),
        timed_out: false,
        mendable: false,
        request_id: None,
    }
}

/// Why a body ended before its end.
pub(super) fn why(error: &reqwest::Error) -> String {
    chain(error).last().map_or_else(
        || "the body was cut".to_owned(),
        |why| format!("the body was cut: {why}"),
    )
}

fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error| (*error).source())
}

/// The error for an upstream that is silent for too long.
pub(super) fn timed_out(limit: Duration, idempotency: Idempotency) -> Error {
    let cause = format!("the upstream gave no answer within {limit:?}");
    Error::Lost {
        delivery: Delivery::Unknown,
        idempotency,
        cause,
        timed_out: true,
        mendable: false,
        request_id: None,
    }
}

/// What is wrong, where whoever runs the gateway has to mend it and calling again cannot help. The
/// TLS library's own texts do not say what to do, and some name addresses.
fn misconfigured(why: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use rustls::{AlertDescription as A, CertificateError as C, Error as E};
    // I/O errors that are made of others do not name them as their sources.
    if let Some(inner) = why.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return misconfigured(inner);
    }
    match why.downcast_ref()? {
        E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            Some("its certificate is for another name: is --upstream-url right?")
        }
        E::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            Some("its certificate has expired: whoever runs it has to renew it")
        }
        E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            Some("its certificate is not valid yet: is this machine's clock right?")
        }
        // A CA that was renewed has its name and another key: its signatures look damaged.
        E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            Some("its certificate is of an unknown CA: name that by --upstream-ca-file")
        }
        E::InvalidCertificate(_) => {
            Some("its certificate cannot be used: whoever runs it has to mend it")
        }
        E::AlertReceived(
            A::CertificateRequired
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied,
        ) => Some("it does not take the gateway's certificate: mend --upstream-client-cert-file"),
        E::AlertReceived(A::ProtocolVersion | A::HandshakeFailure) | E::PeerIncompatible(_) => {
            Some("it has no TLS version or cipher in common with the gateway")
        }
        E::AlertReceived(A::UnrecognisedName) => {
            Some("it does not know the name in --upstream-url: is that right?")
        }
        E::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            Some("it does not speak TLS: is https in --upstream-url, or its port, wrong?")
        }
        _ => None,
    }
}

/// What may be wrong, where it may as well be a peer that ends.
fn advice(why: &(dyn std::error::Error + 'static), in_clear: bool) -> &'static str {
    let kind = why.downcast_ref::<io::Error>().map(io::Error::kind);
    match kind {
        // The TLS library has no other name for it.
        _ if why.to_string() == "tls handshake eof" => {
            " (if it speaks no TLS: https in --upstream-url, or its port, is wrong)"
        }
        Some(io::ErrorKind::ConnectionReset) if in_clear => {
            " (if its port speaks TLS: http in --upstream-url is wrong)"
        }
        _ => "",
    }
}

/// The peer says that it did not process the request: it refused the stream, or went away before it
/// came to it.
fn is_refusal(error: &h2::Error) -> bool {
    let reason = error.reason();
    error.is_remote()
        && (reason == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR)))
}
