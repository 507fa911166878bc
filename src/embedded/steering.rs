//! How a run's metadata steers the embedded model.
//!
//! | key | value |
//! |---|---|
//! | `embedded.scenario` | `fail`, `rate_limit`, `incomplete`, `expire`, `refuse`: how the run ends instead of with an answer |
//! | `embedded.delay_ms` | the pause before each step and each word |
//! | `embedded.tool_calls` | how many calls the model asks for at once |
//! | `embedded.tool_rounds` | how many times it asks before it answers |
//! | `embedded.refuse` | the status, 400 to 599, with which the API refuses to make the run |
//!
//! Must hold: a value that means nothing is an error, never ignored: whoever steers wants to see
//! something. Rounds come before the scenario; a scenario without `embedded.tool_rounds` means no
//! rounds.

use std::{collections::BTreeMap, time::Duration};

use axum::http::StatusCode;

use super::error::Error;

/// How a run is to end instead of with an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scenario {
    Fail,
    RateLimit,
    Incomplete,
    Expire,
    Refuse,
}

/// What a run's metadata asks for.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Steering {
    pub(super) scenario: Option<Scenario>,
    /// The pause before each step.
    pub(super) step: Duration,
    /// The pause before each piece of an answer.
    pub(super) piece: Duration,
    pub(super) tool_calls: usize,
    pub(super) tool_rounds: usize,
    /// The run is not made: the request is answered with this status.
    pub(super) refusal: Option<StatusCode>,
}

/// The default pause before a step: long enough for a client that polls to see the run queued and
/// in progress.
const STEP: Duration = Duration::from_millis(15);

impl Steering {
    pub(super) fn of(metadata: &BTreeMap<String, String>) -> Result<Self, Error> {
        let number = |name: &str, most: usize| {
            let Some(text) = metadata.get(name) else {
                return Ok(None);
            };
            let number = text.parse().ok().filter(|number| *number <= most).ok_or_else(|| {
                let param = format!("metadata.{name}");
                let message = format!("Invalid '{param}': expected a whole number from 0 to {most}, but got '{text}' instead.");
                Error::parameter(&param, "invalid_value", message)
            })?;
            Ok(Some(number))
        };
        let scenario = match metadata.get("embedded.scenario").map(String::as_str) {
            None => None,
            Some("fail") => Some(Scenario::Fail),
            Some("rate_limit") => Some(Scenario::RateLimit),
            Some("incomplete") => Some(Scenario::Incomplete),
            Some("expire") => Some(Scenario::Expire),
            Some("refuse") => Some(Scenario::Refuse),
            Some(other) => {
                let supported = ["fail", "rate_limit", "incomplete", "expire", "refuse"];
                return Err(Error::not_one_of(
                    "metadata.embedded.scenario",
                    other,
                    &supported,
                ));
            }
        };
        let refusal = metadata.get("embedded.refuse").map(|text| {
            text.parse()
                .ok()
                .filter(|status| (400..600).contains(status))
                .and_then(|status| StatusCode::from_u16(status).ok())
                .ok_or_else(|| {
                    let param = "metadata.embedded.refuse";
                    let message = format!("Invalid '{param}': expected a status from 400 to 599, but got '{text}' instead.");
                    Error::parameter(param, "invalid_value", message)
                })
        });
        let delay =
            number("embedded.delay_ms", 600_000)?.map(|delay| Duration::from_millis(delay as u64));
        Ok(Self {
            scenario,
            step: delay.unwrap_or(STEP),
            piece: delay.unwrap_or_default(),
            tool_calls: number("embedded.tool_calls", 128)?.unwrap_or(1),
            tool_rounds: number("embedded.tool_rounds", 128)?
                .unwrap_or(usize::from(scenario.is_none())),
            refusal: refusal.transpose()?,
        })
    }
}
