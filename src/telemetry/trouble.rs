//! What whoever runs the gateway has to mend: said as a warning, in words that say what to do, once
//! a second at most, and counted each time.

use std::borrow::Cow;

use super::{OncePerSecond, Telemetry};
use crate::error::{Delivery, Error};

/// Lines about each kind of trouble.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    key: OncePerSecond,
    quota: OncePerSecond,
    unreachable: OncePerSecond,
    unusable: OncePerSecond,
    unread: OncePerSecond,
}

impl Telemetry {
    /// A request to the upstream failed so. If somebody has to mend that, it is told.
    pub fn failed(&self, error: &Error) {
        let troubles = &self.0.troubles;
        let (what, line, advice) = match error {
            Error::Rejected(it) if it.is_about_own_key() => (
                "gateway_key_rejected",
                &troubles.key,
                "the upstream rejects the gateway's own key: mend --upstream-api-key-file, or what \
                 --upstream-key-command prints",
            ),
            Error::Rejected(it) if it.own_key && (it.is_quota() || it.status == 402) => (
                "quota_used_up",
                &troubles.quota,
                "the quota of the gateway's own key is used up",
            ),
            Error::Lost {
                mendable, delivery, ..
            } if *mendable || *delivery == Delivery::Unsent => (
                "upstream_unreachable",
                &troubles.unreachable,
                "the upstream cannot be reached: are --upstream-url, DNS and network right?",
            ),
            Error::Unusable { .. } => (
                "upstream_unusable",
                &troubles.unusable,
                "the upstream gives no answer of its API: is --upstream-url the base of that?",
            ),
            Error::ListUnread { .. } => (
                "list_unread",
                &troubles.unread,
                "the upstream's list has more than is read, or its pages do not advance: where \
                 something is missing, callers are told of a gap",
            ),
            Error::Rejected(it) if matches!(it.status, 300..400) => (
                "upstream_unusable",
                &troubles.unusable,
                "the upstream redirects, which is not followed: mend the scheme or the path of \
                 --upstream-url",
            ),
            Error::Rejected(it) if (it.missing_route && it.status == 404) || it.status == 405 => (
                "upstream_unusable",
                &troubles.unusable,
                "the upstream has no such route: is --upstream-url the base of its API?",
            ),
            _ => return,
        };
        self.metrics().troubles.with_label_values(&[what]).inc();
        if let Some(suppressed) = line.due() {
            let advice = if self.0.is_model {
                Cow::from(in_words_of_the_model(advice))
            } else {
                advice.into()
            };
            tracing::warn!(what, error = %error.log(), suppressed, "{advice}");
        }
    }
}

/// What is said of the upstream, said of the model behind the embedded API.
pub(crate) fn in_words_of_the_model(text: &str) -> String {
    text.replace("--upstream-", "--model-")
        .replace("the upstream", "the model's service")
        .replace("the gateway's own key", "the key")
}
