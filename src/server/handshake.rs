//! Why a connection got no further than its handshake: counted by reason, and a warning that says
//! what to do, once a second for each reason.
//!
//! Must hold: reasons are a closed set. A peer that connects and leaves without a word is a probe,
//! and no trouble of anybody's: it is counted, and its line is of the level DEBUG.

use std::{error::Error as StdError, fmt, io, net::IpAddr};

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::telemetry::{OncePerSecond, Telemetry};

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The client's certificate has expired.
    CertificateExpired,
    /// It is not valid yet.
    CertificateNotYetValid,
    /// It is of a CA that is not in the file.
    UnknownCa,
    /// It is wrong otherwise.
    BadCertificate,
    /// There is none, and there has to be one.
    NoCertificate,
    /// The client does not trust the gateway's certificate.
    RefusedByPeer,
    /// Client and gateway have no version, cipher or application protocol in common.
    NothingInCommon,
    /// What came to a TLS port is not TLS.
    NotTls,
    /// What came to a port without TLS is TLS.
    Tls,
    /// What came is not HTTP/2.
    NotHttp2,
    /// It took too long.
    Timeout,
    /// The client left in the middle of it.
    Closed,
    /// The client left without a word.
    Probe,
    /// Anything else.
    Other,
}

impl Reason {
    const ALL: [Self; 14] = [
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::UnknownCa,
        Self::BadCertificate,
        Self::NoCertificate,
        Self::RefusedByPeer,
        Self::NothingInCommon,
        Self::NotTls,
        Self::Tls,
        Self::NotHttp2,
        Self::Timeout,
        Self::Closed,
        Self::Probe,
        Self::Other,
    ];

    /// Its label, and what somebody may do about it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::CertificateExpired => (
                "certificate_expired",
                "the client's certificate has expired: the client has to renew it",
            ),
            Self::CertificateNotYetValid => (
                "certificate_not_yet_valid",
                "the client's certificate is not valid yet: are the clocks right?",
            ),
            Self::UnknownCa => (
                "unknown_ca",
                "the client's certificate is of a CA that is not in --tls-client-ca-file",
            ),
            Self::BadCertificate => ("bad_certificate", "the client's certificate cannot be used"),
            Self::NoCertificate => (
                "no_certificate",
                "the client shows no certificate, which --tls-client-ca-file asks for",
            ),
            Self::RefusedByPeer => (
                "refused_by_peer",
                "the client does not trust the certificate in --tls-cert-file",
            ),
            Self::NothingInCommon => (
                "nothing_in_common",
                "client and gateway have no TLS version, cipher or protocol (h2) in common",
            ),
            Self::NotTls => (
                "not_tls",
                "the client does not speak TLS, which --tls-cert-file asks for",
            ),
            Self::Tls => (
                "tls",
                "the client speaks TLS, and this port does not: give it --tls-cert-file",
            ),
            Self::NotHttp2 => (
                "not_http2",
                "the client does not speak HTTP/2 (for browsers: --web-origins; probes by HTTP go \
                 to --admin-listen)",
            ),
            Self::Timeout => ("timeout", "it took longer than --handshake-timeout"),
            Self::Closed => ("closed", "the client left in the middle of it"),
            Self::Probe => ("probe", "the client left without a word"),
            Self::Other => ("other", "it failed"),
        }
    }
}

/// A handshake that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) reason: Reason,
    /// What the libraries say, if they say more.
    pub(super) cause: Option<io::Error>,
}

impl From<Reason> for Failed {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            cause: None,
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as K;
        let inner = error.get_ref();
        let tls = inner.and_then(|inner| (inner as &(dyn StdError + 'static)).downcast_ref());
        let reason = match (tls, error.kind()) {
            (Some(tls), _) => reason(tls),
            (None, K::UnexpectedEof | K::ConnectionReset | K::BrokenPipe) => Reason::Closed,
            (None, _) => Reason::Other,
        };
        Self {
            reason,
            cause: Some(error),
        }
    }
}

fn reason(error: &Error) -> Reason {
    use AlertDescription as A;
    use CertificateError as C;
    match error {
        Error::NoCertificatesPresented => Reason::NoCertificate,
        Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            Reason::CertificateExpired
        }
        Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            Reason::CertificateNotYetValid
        }
        // A CA that was renewed has its name and another key: its signatures look damaged.
        Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => Reason::UnknownCa,
        Error::InvalidCertificate(_) => Reason::BadCertificate,
        Error::AlertReceived(
            A::UnknownCA
            | A::BadCertificate
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRevoked
            | A::UnsupportedCertificate
            | A::AccessDenied
            // A CA that was renewed, as above.
            | A::DecryptError,
        ) => Reason::RefusedByPeer,
        Error::PeerIncompatible(_)
        | Error::NoApplicationProtocol
        | Error::AlertReceived(
            A::ProtocolVersion | A::HandshakeFailure | A::NoApplicationProtocol,
        ) => Reason::NothingInCommon,
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => Reason::NotTls,
        Error::AlertReceived(A::CloseNotify | A::UserCanceled) => Reason::Closed,
        _ => Reason::Other,
    }
}

/// Counts handshakes that fail, and says so.
#[derive(Default)]
pub(super) struct Failures([OncePerSecond; Reason::ALL.len()]);

impl Failures {
    /// None yet. Each reason is counted from zero, so that an increase from nothing is seen.
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        for reason in Reason::ALL {
            telemetry.metrics().handshake_failed(reason.words().0, 0);
        }
        Self::default()
    }

    /// One more, of the peer at this address.
    pub(super) fn note(&self, telemetry: &Telemetry, peer: IpAddr, failed: &Failed) {
        let (reason, advice) = failed.reason.words();
        telemetry.metrics().handshake_failed(reason, 1);
        let Some(suppressed) = self.0[failed.reason as usize].due() else {
            return;
        };
        let error = failed.cause.as_ref().map(Cause);
        if failed.reason == Reason::Probe {
            tracing::debug!(reason, %peer, suppressed, "handshake: {advice}");
        } else {
            let error = error.as_ref().map(tracing::field::display);
            tracing::warn!(reason, %peer, error, suppressed, "handshake: {advice}");
        }
    }
}

/// An error's own words, without line ends.
struct Cause<'a>(&'a io::Error);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0.to_string().replace(['\n', '\r'], " "))
    }
}
