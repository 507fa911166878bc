//! The tokens that runs used.
//!
//! Must hold: the counters of parts (`cache_read`, `reasoning`) are contained in those of all input
//! and output, as the conventions have it.

use prometheus::{HistogramVec, IntCounterVec};

use super::make::Make;
use crate::v1::Run;

/// What a run does, as the conventions call it.
pub(super) const OPERATION: &str = "invoke_agent";

/// Upper bounds of numbers of tokens: those of `gen_ai.client.token.usage`.
const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

const HELP: &str = "Tokens that a run used, counted when it was seen to have ended.";

/// The metrics, under today's names or those of the release before.
pub(super) enum TokenMetrics {
    Current {
        input: IntCounterVec,
        output: IntCounterVec,
        cache_read: IntCounterVec,
        reasoning: IntCounterVec,
        provider: String,
    },
    Legacy(HistogramVec),
}

impl TokenMetrics {
    /// At zero, of runs of this provider.
    pub(super) fn new(new: &Make<'_>, provider: &str) -> Self {
        let counters = |part: &str, help: &str| {
            new.counters(
                &format!("gen_ai_client_inference_usage_{part}_tokens_total"),
                help,
                &[
                    "gen_ai_operation_name",
                    "gen_ai_provider_name",
                    "gen_ai_request_model",
                    "gen_ai_token_modality",
                ],
            )
        };
        Self::Current {
            input: counters("input", &format!("{HELP} Read.")),
            output: counters("output", &format!("{HELP} Written.")),
            cache_read: counters("cache_read_input", "Of the tokens read: from a cache."),
            reasoning: counters("reasoning_output", "Of the tokens written: to think."),
            provider: provider.to_owned(),
        }
    }

    /// At zero, under the name of the release before.
    pub(super) fn legacy(new: &Make<'_>) -> Self {
        Self::Legacy(new.histograms(
            "gen_ai_client_token_usage",
            HELP,
            &[
                "gen_ai_operation_name",
                "gen_ai_token_type",
                "gen_ai_request_model",
            ],
            TOKENS,
        ))
    }

    /// A run of this model used its tokens.
    pub(super) fn count(&self, run: &Run, model: &str) {
        match self {
            Self::Current {
                input,
                output,
                cache_read,
                reasoning,
                provider,
            } => {
                // The upstream does not say what was text and what was not.
                let labels = [OPERATION, provider, model, "unknown"];
                let parts = parts(run);
                for (counters, tokens) in [input, output, cache_read, reasoning]
                    .into_iter()
                    .zip(parts)
                {
                    if let Some(tokens) = tokens {
                        counters.with_label_values(&labels).inc_by(tokens.into());
                    }
                }
            }
            Self::Legacy(histograms) => {
                for (kind, tokens) in kinds(run) {
                    let labels = [OPERATION, kind, model];
                    let histogram = histograms.with_label_values(&labels);
                    histogram.observe(f64::from(tokens));
                }
            }
        }
    }
}

/// The tokens that a run used, by their kind.
pub(super) fn kinds(run: &Run) -> impl Iterator<Item = (&'static str, u32)> {
    let [input, output, ..] = parts(run);
    let kinds = [("input", input), ("output", output)];
    kinds
        .into_iter()
        .filter_map(|(kind, tokens)| Some((kind, tokens?)))
}

/// The tokens that a run used: read, written; of those read from a cache; of those written to think.
fn parts(run: &Run) -> [Option<u32>; 4] {
    let usage = run.usage.as_ref();
    let read = usage.and_then(|usage| {
        let details = usage.prompt_token_details.as_ref();
        let details = details.or(usage.prompt_tokens_details.as_ref());
        details?.cached_tokens
    });
    let thought = usage.and_then(|usage| {
        let details = usage.completion_tokens_details.as_ref();
        details?.reasoning_tokens
    });
    let parts = [
        usage.and_then(|usage| usage.prompt_tokens),
        usage.and_then(|usage| usage.completion_tokens),
        read,
        thought,
    ];
    parts.map(|tokens| u32::try_from(tokens?).ok())
}
