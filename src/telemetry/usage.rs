//! What each caller used, by its name.
//!
//! Must hold: names are bounded ([`Callers::set_max`]): the first that call have a label of their
//! own, all others are `other`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::make::OTHER;

/// As many callers as have a label of their own, unless another number is set.
pub const MAX_NAMED_CALLERS: usize = 100;

/// The longest name that is a label, in bytes.
const MAX_NAME: usize = 256;

/// The metrics of all callers.
#[derive(Debug)]
pub struct Callers {
    pub(super) calls: IntCounterVec,
    pub(super) refused: IntCounterVec,
    pub(super) live_streams: IntGaugeVec,
    pub(super) tokens: IntCounterVec,
    max: AtomicUsize,
    known: Mutex<HashMap<String, Arc<CallerUsage>>>,
}

/// What one caller used, or all others together.
#[derive(Debug)]
pub(super) struct CallerUsage {
    pub(super) label: String,
    pub(super) calls: IntCounter,
    pub(super) refused: IntCounter,
    pub(super) live_streams: IntGauge,
}

impl Callers {
    pub(super) fn new(
        calls: IntCounterVec,
        refused: IntCounterVec,
        live_streams: IntGaugeVec,
        tokens: IntCounterVec,
    ) -> Self {
        Self {
            calls,
            refused,
            live_streams,
            tokens,
            max: AtomicUsize::new(MAX_NAMED_CALLERS),
            known: Mutex::default(),
        }
    }

    /// As many callers have a label of their own.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// The usage of the caller of this name.
    pub(super) fn of(&self, name: &str) -> Arc<CallerUsage> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = known.get(name) {
            return Arc::clone(usage);
        }
        let named = known.len() - usize::from(known.contains_key(OTHER));
        let has_own =
            named < self.max.load(Ordering::Relaxed) && !name.is_empty() && name.len() <= MAX_NAME;
        let label = if has_own { name } else { OTHER };
        let usage = known.entry(label.to_owned()).or_insert_with(|| {
            Arc::new(CallerUsage {
                label: label.to_owned(),
                calls: self.calls.with_label_values(&[label]),
                refused: self.refused.with_label_values(&[label]),
                live_streams: self.live_streams.with_label_values(&[label]),
            })
        });
        Arc::clone(usage)
    }
}
