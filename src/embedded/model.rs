//! What answers: the interface between a run and a model.
//!
//! A run hands over a [`Prompt`] and takes [`ModelChunk`]s, as they come, until the last one.
//! Nothing else passes between the two: whether the model is in this process (`builtin`) or behind
//! a network (`crate::chat`), a run cannot tell.
//!
//! Must hold:
//!
//! - The last piece is [`ModelChunk::End`] or [`ModelChunk::Failed`]. A reply that ends without one
//!   has broken off. A model that falls silent is the run's to time out.
//! - What waits between the two is bounded ([`PIECES`]): a model that is faster than the run waits.
//! - Dropping the receiver is the cancellation: the model stops, and lets go of what it holds.

use tokio::sync::mpsc;

use super::steering::Steering;
use crate::v1::{self, ResponseFormat, RunError, ThreadMessage, Tool, ToolChoice};

/// The most pieces of a reply that wait for the run.
pub(crate) const PIECES: usize = 64;

/// Something that replies to prompts.
pub(crate) trait Model: Send + Sync {
    /// What it does, for who reads of the assistant that is always there.
    fn description(&self) -> &'static str;

    /// Begins a reply. Does not wait, and is called in a runtime.
    fn reply(&self, prompt: Prompt) -> mpsc::Receiver<ModelChunk>;

    /// What of a run that is to be made it cannot do; `None` if it can do all of it. `messages` are
    /// those of the thread.
    fn unsupported(&self, _run: &v1::Run, _messages: &[&ThreadMessage]) -> Option<Unsupported> {
        None
    }
}

/// A parameter that a model cannot do what it asks for.
pub(crate) struct Unsupported {
    /// Such as `tools[0].type`.
    pub(crate) param: String,
    /// What to send instead, in words for the caller.
    pub(crate) message: String,
}

/// All that a model is told.
#[derive(Debug, Default)]
pub(crate) struct Prompt {
    /// What the run or its assistant names.
    pub(crate) model: String,
    pub(crate) instructions: String,
    /// The thread, then what this run has said and called, in that order.
    pub(crate) conversation: Vec<PromptMessage>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: ToolChoice,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) response_format: ResponseFormat,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    /// Such as `low`; empty if nobody asks for one.
    pub(crate) reasoning_effort: String,
    /// The most tokens of all prompts of this run together.
    pub(crate) max_prompt_tokens: Option<i64>,
    /// The most tokens of all replies of this run together.
    pub(crate) max_completion_tokens: Option<i64>,
    /// What the run's replies before this one have cost.
    pub(crate) spent: Tokens,
    /// For the built-in model only.
    pub(super) steering: Steering,
}

/// One turn of a conversation.
#[derive(Debug)]
pub(crate) enum PromptMessage {
    User(Vec<PromptPart>),
    Assistant(String),
    /// Calls that the model asked for at once, with their outputs.
    Calls(Vec<Call>),
}

/// A part of what a user says.
#[derive(Debug)]
pub(crate) enum PromptPart {
    Text(String),
    /// An image by its URL, and how closely to look at it (empty if not said).
    Image {
        url: String,
        detail: &'static str,
    },
    /// An image in a file, which nobody here has.
    ImageFile,
}

/// A call that was made.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
    pub(crate) output: String,
}

/// A piece of a reply. Its calls are numbered from 0, in the order in which they begin; their
/// arguments may come interleaved. No text comes once a call has begun.
#[derive(Debug, PartialEq)]
pub(crate) enum ModelChunk {
    /// More text of the answer.
    Text(String),
    /// More text of the refusal to answer.
    Refusal(String),
    /// A call of the named function begins. `id` is the model's own; empty if it gives none.
    Call { id: String, name: String },
    /// More of the arguments of the call with this number.
    Arguments { call: usize, text: String },
    /// The reply is over.
    End(End, Tokens),
    /// There will be no reply, or no more of it.
    Failed(RunError),
}

/// Why a reply is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum End {
    /// The answer is whole, or the calls are.
    Whole,
    /// The tokens that it may write are used up.
    CompletionTokens,
    /// The tokens that it may read are used up.
    PromptTokens,
    /// The model's own rules forbid the rest.
    Filtered,
}

/// What replies cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Tokens {
    pub(crate) prompt: i64,
    pub(crate) completion: i64,
    /// Those of `prompt` that the model remembered.
    pub(crate) cached: i64,
    /// Those of `completion` that nobody sees.
    pub(crate) reasoning: i64,
}

impl Tokens {
    /// Both together.
    pub(super) fn add(&mut self, other: Self) {
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.completion = self.completion.saturating_add(other.completion);
        self.cached = self.cached.saturating_add(other.cached);
        self.reasoning = self.reasoning.saturating_add(other.reasoning);
    }
}

impl ModelChunk {
    /// There is no reply, for this reason.
    pub(crate) fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::Failed(RunError {
            code: code.to_owned(),
            message: Some(message.into()),
            ..RunError::default()
        })
    }

    /// Whether nothing follows.
    pub(super) fn is_last(&self) -> bool {
        matches!(self, Self::End(..) | Self::Failed(_))
    }
}
