//! The one retry loop: which failures are tried again, when, and how often.
//!
//! Must hold:
//!
//! - A create or a submit is repeated only if the upstream cannot have processed it (unsent,
//!   refused, a 429 that is not a quota), or if the upstream itself asks for it (`x-should-retry:
//!   true`). Everything else may be repeated where doing it twice is as doing it once.
//! - Retries end together with the upstream's strength: every failure takes a token, ten answers
//!   give one back, and below half of the tokens there are no retries. The tokens are the whole
//!   client's: what fails is the upstream, not a caller. (A 429 to a caller's own key takes none.)
//! - No wait is begun that ends after the caller's deadline or after [`RetryLimits::total`]: the
//!   caller learns at once what it would learn then. The upstream is never asked sooner than it
//!   wished. Nothing is held meanwhile: an attempt takes its own permit.
//! - Where the caller retries by itself (a mesh, gRPC's own retries, a poller) the gateway does
//!   not: two loops multiply.
//!
//! Why not the client's own retries: they repeat POSTs. Why not tower's: its policy sees neither
//! the deadline nor what the upstream asks for.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use clap::Args;
use http::HeaderValue;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::caller::Caller;
use crate::{
    error::{Delivery, Error, Idempotency, Rejection},
    setting::{defaults, some, time},
};

/// When retries are made. [`Default`] is what the official clients of such services do, with a
/// budget.
#[derive(Debug, Clone, Args)]
pub struct RetryLimits {
    /// Retries of an upstream request that failed and may be made again. 0: none.
    ///
    /// With 0 a call is one request, and a submit in doubt is not looked after either.
    #[arg(id = "max-retries", long, default_value = "2")]
    pub retries: u32,

    /// The pause before the first retry, if the upstream does not say; each further one is twice as
    /// long. Up to a quarter less, at random.
    #[arg(id = "retry-pause", long, default_value = "500ms", value_parser = time)]
    pub pause: Duration,

    /// The longest pause before a retry, if the upstream does not say.
    #[arg(id = "max-retry-pause", long, default_value = "8s", value_parser = time)]
    pub max_pause: Duration,

    /// Time after the first attempt in which retries may begin. An upstream that asks for a longer
    /// pause is not asked again.
    #[arg(id = "retry-window", long, default_value = "30s", value_parser = time)]
    pub total: Duration,

    /// Failures in a row after half of which there are no retries until answers come again. 0: no
    /// retries.
    // gRPC's retry throttling has the same shape, and 100 and 0.1 as the usual numbers.
    #[arg(id = "retry-budget", long, default_value = "100")]
    pub budget: u32,

    /// Answers that make up for one failure in that budget.
    #[arg(id = "retry-budget-answers", long, default_value = "10", value_parser = some::<u32>)]
    pub answers_per_token: u32,
}

impl Default for RetryLimits {
    fn default() -> Self {
        defaults()
    }
}

/// Retries of one client's requests.
#[derive(Debug)]
pub(super) struct Retry {
    limits: RetryLimits,
    /// In parts: as many to a token as answers give one back.
    budget: Mutex<u64>,
}

impl Retry {
    pub(super) fn new(limits: RetryLimits) -> Self {
        let mut retry = Self {
            limits,
            budget: Mutex::default(),
        };
        retry.budget = Mutex::new(retry.full());
        retry
    }

    /// Makes attempts, numbered from 0, until one gives an answer or no other is to be made.
    pub(super) async fn run<T, F>(
        &self,
        caller: &Caller,
        attempt: impl Fn(u32) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let began = Instant::now();
        // An attempt that may have taken effect. Only an answer settles that: a later refusal is of
        // the later attempt alone.
        let mut doubt = None;
        let mut number = 0;
        loop {
            let error = match attempt(number).await {
                Ok(answer) => {
                    self.succeeded();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let Some(pause) = self.pause(caller, &error, number, began.elapsed()) else {
                return Err(doubt.unwrap_or(error));
            };
            tracing::debug!(error = %error.log(), number, ?pause, "an upstream request failed; trying again");
            doubt = doubt.or_else(|| error.outcome_unknown().then_some(error));
            sleep(pause).await;
            number += 1;
        }
    }

    /// How long to wait before a request that failed is made again; `None` if it is not to be made
    /// again. A failure that the upstream could be relieved of takes its token in either case.
    fn pause(
        &self,
        caller: &Caller,
        error: &Error,
        number: u32,
        elapsed: Duration,
    ) -> Option<Duration> {
        let allowed = is_repeatable(error)
            && if is_callers(error) {
                self.is_strong()
            } else {
                self.failed()
            };
        if !allowed || caller.retries || number >= self.limits.retries {
            return None;
        }
        self.fits(
            caller,
            asked(error).unwrap_or_else(|| self.backoff(number)),
            elapsed,
        )
    }

    /// How long to wait before looking whether a submit took effect; `None` if that would take too
    /// long, or if one request is all there may be.
    pub(super) fn pause_in_doubt(&self, caller: &Caller, error: &Error) -> Option<Duration> {
        if self.limits.retries == 0 {
            return None;
        }
        self.fits(
            caller,
            asked(error).unwrap_or_else(|| self.backoff(0)),
            Duration::ZERO,
        )
    }

    /// Whether a submit that took no effect may be sent once more. It takes a token.
    pub(super) fn allows_submit(&self, caller: &Caller, error: &Error) -> bool {
        let forbidden =
            matches!(error, Error::Rejected(rejection) if rejection.should_retry == Some(false));
        !caller.retries && !forbidden && self.limits.retries > 0 && self.failed()
    }

    fn fits(&self, caller: &Caller, pause: Duration, elapsed: Duration) -> Option<Duration> {
        // Not `now + pause`: an upstream may ask for more time than there is.
        let in_time = caller
            .deadline
            .is_none_or(|deadline| pause < deadline.saturating_duration_since(Instant::now()));
        (in_time && elapsed.saturating_add(pause) <= self.limits.total).then_some(pause)
    }

    fn backoff(&self, number: u32) -> Duration {
        let pause = self
            .limits
            .pause
            .saturating_mul(1 << number.min(20))
            .min(self.limits.max_pause);
        pause.saturating_sub(pause.mul_f64(fastrand::f64() / 4.0))
    }

    fn full(&self) -> u64 {
        u64::from(self.limits.budget) * u64::from(self.limits.answers_per_token)
    }

    /// Gives back a part of a token.
    fn succeeded(&self) {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        *budget = (*budget + 1).min(self.full());
    }

    /// Whether there are enough tokens for a retry.
    fn is_strong(&self) -> bool {
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner) > self.full() / 2
    }

    /// Takes a token. Whether there are enough for a retry.
    fn failed(&self) -> bool {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        *budget = budget.saturating_sub(u64::from(self.limits.answers_per_token));
        *budget > self.full() / 2
    }
}

/// Whether a request that failed so may be made again, as far as its effect goes.
fn is_repeatable(error: &Error) -> bool {
    match error {
        Error::Lost {
            delivery: Delivery::Unsent | Delivery::Refused,
            ..
        } => true,
        Error::Lost {
            delivery: Delivery::Unknown,
            idempotency,
            ..
        } => *idempotency == Idempotency::Idempotent,
        Error::Rejected(rejection) => match **rejection {
            Rejection {
                should_retry: Some(told),
                ..
            } => told,
            Rejection { status: 429, .. } => !rejection.is_quota(),
            Rejection {
                status: 408 | 409 | 500..,
                idempotency,
                ..
            } => idempotency == Idempotency::Idempotent,
            _ => false,
        },
        _ => false,
    }
}

/// Whether it is the caller of whom the upstream has had enough, by the credential, and not all of
/// the gateway's callers.
fn is_callers(error: &Error) -> bool {
    matches!(error, Error::Rejected(rejection) if rejection.status == 429 && !rejection.own_key)
}

/// How long the upstream asks to wait. Zero is no wish: all at once again is what pauses are
/// against.
fn asked(error: &Error) -> Option<Duration> {
    if let Error::Rejected(rejection) = error {
        rejection.retry_after.filter(|delay| !delay.is_zero())
    } else {
        None
    }
}

/// A new idempotency key: a random UUID, which every service takes.
pub(super) fn idempotency_key() -> Option<HeaderValue> {
    HeaderValue::try_from(Uuid::new_v4().to_string()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_are_up_to_a_quarter_shorter() {
        let retry = Retry::new(RetryLimits::default());
        let full = [500, 1000, 2000, 4000, 8000, 8000].map(Duration::from_millis);
        for (number, full) in full.into_iter().enumerate() {
            let pauses: Vec<_> = (0..100)
                .map(|_| retry.backoff(u32::try_from(number).expect("small")))
                .collect();
            assert!(
                pauses
                    .iter()
                    .all(|pause| *pause <= full && *pause > full * 3 / 4),
                "{number}: {pauses:?}"
            );
            assert!(
                pauses.iter().any(|pause| *pause != pauses[0]),
                "all pauses are equal"
            );
        }
        assert!(retry.backoff(u32::MAX) <= full[5]);
    }
}
