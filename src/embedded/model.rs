//! What answers: the interface between a run and a model, and the embedded model.
//!
//! A run hands over a [`Prompt`] and takes [`ModelChunk`]s, as they come, until the last one.
//! Nothing else passes between the two, so that a model behind a network can take the embedded
//! one's place.
//!
//! The embedded model is deterministic. It repeats what it reads, so that whoever calls sees that
//! their words, their tools and the outputs went all the way: the same prompt gives the same
//! pieces. It never pretends to think.
//!
//! Must hold: the last piece is [`ModelChunk::End`] or [`ModelChunk::Failed`]; a model that falls
//! silent is the run's to time out.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    sample,
    steering::{Scenario, Steering},
};
use crate::v1::{
    FunctionDefinition, ResponseFormat, RunError, Tool, ToolChoice, ToolChoiceMode, ToolType,
};

/// All that a model is told.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) instructions: String,
    /// The thread, then the rounds of calls of this run.
    pub(super) conversation: Vec<PromptMessage>,
    pub(super) tools: Vec<Tool>,
    pub(super) tool_choice: ToolChoice,
    pub(super) parallel_tool_calls: bool,
    pub(super) response_format: ResponseFormat,
    pub(super) max_completion_tokens: Option<i64>,
    /// For the embedded model only.
    pub(super) steering: Steering,
}

/// One turn of a conversation.
#[derive(Debug)]
pub(super) enum PromptMessage {
    User(String),
    Assistant(String),
    /// Calls that the model asked for at once, with their outputs.
    Calls(Vec<Call>),
}

/// A call that was made.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: String,
    pub(super) output: String,
}

/// A piece of a reply.
#[derive(Debug, PartialEq)]
pub(super) enum ModelChunk {
    /// More text of the answer.
    Text(String),
    /// More text of the refusal to answer.
    Refusal(String),
    /// A call of the named function begins.
    Call(String),
    /// More of the arguments of the call that began last.
    Arguments(String),
    /// The reply is over.
    End(End, Tokens),
    /// There will be no reply.
    Failed(RunError),
}

/// Why a reply is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    /// The answer is whole, or the calls are.
    Whole,
    /// It was cut at the token limit.
    Truncated,
}

/// What a reply cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tokens {
    pub(super) prompt: i64,
    pub(super) completion: i64,
}

/// The embedded model's reply to a prompt.
pub(super) fn reply(prompt: &Prompt) -> mpsc::UnboundedReceiver<ModelChunk> {
    let (pieces, reply) = mpsc::unbounded_channel();
    if prompt.rounds_made() >= prompt.steering.tool_rounds
        && prompt.steering.scenario == Some(Scenario::Expire)
    {
        // Says nothing for as long as somebody listens.
        tokio::spawn(async move { pieces.closed().await });
    } else {
        for piece in pieces_of_reply(prompt) {
            // Fails only if nobody listens any more.
            let _ = pieces.send(piece);
        }
    }
    reply
}

fn pieces_of_reply(prompt: &Prompt) -> Vec<ModelChunk> {
    let functions = prompt.functions();
    let mut pieces = Vec::new();
    let mut end = End::Whole;
    if !functions.is_empty() && prompt.rounds_made() < prompt.steering.tool_rounds {
        calls(prompt, &functions, &mut pieces);
    } else {
        match prompt.steering.scenario {
            Some(Scenario::Fail) => {
                return vec![failed("server_error", "Sorry, something went wrong.")];
            }
            Some(Scenario::RateLimit) => {
                return vec![failed(
                    "rate_limit_exceeded",
                    "Rate limit is exceeded. Try again in 60 seconds.",
                )];
            }
            Some(Scenario::Refuse) => {
                pieces.extend(
                    words("I'm sorry, I can't help with that.")
                        .map(|word| ModelChunk::Refusal(word.to_owned())),
                );
            }
            Some(Scenario::Incomplete | Scenario::Expire) | None => {
                let text = answer(prompt);
                pieces.extend(words(&text).map(|word| ModelChunk::Text(word.to_owned())));
                if prompt.steering.scenario == Some(Scenario::Incomplete) {
                    pieces.truncate(pieces.len().div_ceil(2));
                    end = End::Truncated;
                }
            }
        }
    }
    if let Some(most) = prompt.max_completion_tokens {
        let mut written = 0;
        let kept = pieces.iter().take_while(|piece| {
            written += piece.tokens();
            written <= most
        });
        let kept = kept.count();
        if kept < pieces.len() {
            pieces.truncate(kept);
            end = End::Truncated;
        }
    }
    let completion = pieces.iter().map(ModelChunk::tokens).sum();
    pieces.push(ModelChunk::End(
        end,
        Tokens {
            prompt: prompt.tokens(),
            completion,
        },
    ));
    pieces
}

/// Asks for a round of calls.
fn calls(prompt: &Prompt, functions: &[&FunctionDefinition], pieces: &mut Vec<ModelChunk>) {
    let parallel = if prompt.parallel_tool_calls {
        prompt.steering.tool_calls.max(1)
    } else {
        1
    };
    let first = prompt.rounds_made() * parallel;
    for at in first..first + parallel {
        let function = functions[at % functions.len()];
        let schema = serde_json::from_str(&function.parameters_json)
            .unwrap_or_else(|_| json!({ "type": "object" }));
        let arguments = match sample::value(&schema, topic(prompt.question())) {
            arguments @ Value::Object(_) => arguments.to_string(),
            _ => "{}".to_owned(),
        };
        pieces.push(ModelChunk::Call(function.name.clone()));
        pieces.extend(words(&arguments).map(|part| ModelChunk::Arguments(part.to_owned())));
    }
}

fn answer(prompt: &Prompt) -> String {
    let quoted = |text: &str| text.chars().take(QUOTED).collect::<String>();
    if let Some(schema) = prompt
        .response_format
        .json_schema
        .as_ref()
        .map(|format| &format.schema_json)
    {
        let schema = serde_json::from_str(schema).unwrap_or_else(|_| json!({ "type": "object" }));
        return sample::value(&schema, topic(prompt.question())).to_string();
    }
    let mut text = format!(
        "This is the embedded model. You said: \"{}\".",
        quoted(prompt.question())
    );
    for call in prompt.rounds().flatten() {
        text.extend([" ", &call.name, " gave: ", &quoted(&call.output), "."]);
        if text.len() > 8 * QUOTED {
            break;
        }
    }
    if prompt.response_format.r#type() == crate::v1::ResponseFormatType::JsonObject {
        return json!({ "answer": text }).to_string();
    }
    text
}

/// The most characters that an answer repeats of a message or of an output, and an eighth of what
/// it repeats in all.
const QUOTED: usize = 2_000;

/// What a question is about, as far as can be told without thinking: its last name, a word that
/// begins with a capital inside a sentence.
fn topic(question: &str) -> Option<&str> {
    let words = question
        .split_whitespace()
        .skip(1)
        .map(|word| word.trim_matches(|letter: char| !letter.is_alphanumeric()));
    words
        .filter(|word| word.starts_with(char::is_uppercase) && (2..100).contains(&word.len()))
        .last()
}

/// Text cut before its spaces, as models write it; long words are cut too.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = rest
            .char_indices()
            .skip(1)
            .find(|(at, letter)| *at >= 24 || *letter == ' ')
            .map_or(rest.len(), |(at, _)| at);
        let (word, left) = rest.split_at(end);
        rest = left;
        (!word.is_empty()).then_some(word)
    })
}

fn failed(code: &str, message: &str) -> ModelChunk {
    ModelChunk::Failed(RunError {
        code: code.to_owned(),
        message: Some(message.to_owned()),
        ..RunError::default()
    })
}

/// About how many tokens a text is.
fn tokens(text: &str) -> i64 {
    i64::try_from(text.len().div_ceil(4)).unwrap_or(i64::MAX)
}

impl ModelChunk {
    fn tokens(&self) -> i64 {
        match self {
            Self::Text(text) | Self::Refusal(text) | Self::Call(text) | Self::Arguments(text) => {
                tokens(text)
            }
            Self::End(..) | Self::Failed(_) => 0,
        }
    }
}

impl Prompt {
    /// What the user said last.
    fn question(&self) -> &str {
        let said = self.conversation.iter().rev().find_map(|turn| match turn {
            PromptMessage::User(text) => Some(text.as_str()),
            _ => None,
        });
        said.unwrap_or_default()
    }

    fn rounds(&self) -> impl Iterator<Item = &[Call]> {
        self.conversation.iter().filter_map(|turn| match turn {
            PromptMessage::Calls(calls) => Some(calls.as_slice()),
            _ => None,
        })
    }

    fn rounds_made(&self) -> usize {
        self.rounds().count()
    }

    /// The functions that the tool choice lets the model call; first those that the question
    /// mentions.
    fn functions(&self) -> Vec<&FunctionDefinition> {
        let named = self
            .tool_choice
            .function
            .as_ref()
            .map(|function| &function.name);
        let barred = self.tool_choice.mode() == ToolChoiceMode::None
            || matches!(
                self.tool_choice.r#type(),
                ToolType::CodeInterpreter | ToolType::FileSearch
            );
        let functions = self
            .tools
            .iter()
            .filter_map(|tool| tool.function.as_ref())
            .filter(|_| !barred);
        let mut functions: Vec<_> = functions
            .filter(|function| named.is_none_or(|name| *name == function.name))
            .collect();
        let question = self.question().to_lowercase();
        let mentions = |name: &str| {
            name.split(['_', '-'])
                .any(|word| word.len() > 3 && question.contains(&word.to_lowercase()))
        };
        functions.sort_by_key(|function| !mentions(&function.name));
        functions
    }

    fn tokens(&self) -> i64 {
        let turns = self.conversation.iter().map(|turn| match turn {
            PromptMessage::User(text) | PromptMessage::Assistant(text) => tokens(text),
            PromptMessage::Calls(calls) => calls
                .iter()
                .map(|call| tokens(&call.name) + tokens(&call.arguments) + tokens(&call.output))
                .sum(),
        });
        let functions = self.tools.iter().filter_map(|tool| tool.function.as_ref());
        let functions =
            functions.map(|function| tokens(&function.name) + tokens(&function.parameters_json));
        tokens(&self.instructions) + turns.sum::<i64>() + functions.sum::<i64>()
    }
}
