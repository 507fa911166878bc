//! The built-in model.
//!
//! It is deterministic. It repeats what it reads, so that whoever calls sees that their words,
//! their tools and the outputs went all the way: the same prompt gives the same pieces. It never
//! pretends to think.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    model::{Call, End, Model, ModelChunk, PIECES, Prompt, PromptMessage, PromptPart, Tokens},
    sample,
    steering::Scenario,
};
use crate::v1::{FunctionDefinition, ToolChoiceMode, ToolType};

/// The model.
pub(super) struct BuiltIn;

impl Model for BuiltIn {
    fn description(&self) -> &'static str {
        "Repeats what it reads. It is always there."
    }

    fn reply(&self, prompt: Prompt) -> mpsc::Receiver<ModelChunk> {
        let (to, reply) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            if prompt.rounds_made() >= prompt.steering.tool_rounds
                && prompt.steering.scenario == Some(Scenario::Expire)
            {
                // Says nothing for as long as somebody listens.
                return to.closed().await;
            }
            for piece in pieces_of_reply(&prompt) {
                if to.send(piece).await.is_err() {
                    break;
                }
            }
        });
        reply
    }
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
                return vec![ModelChunk::failed(
                    "server_error",
                    "Sorry, something went wrong.",
                )];
            }
            Some(Scenario::RateLimit) => {
                return vec![ModelChunk::failed(
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
                    end = End::CompletionTokens;
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
            end = End::CompletionTokens;
        }
    }
    let completion = pieces.iter().map(ModelChunk::tokens).sum();
    pieces.push(ModelChunk::End(
        end,
        Tokens {
            prompt: prompt.tokens(),
            completion,
            ..Tokens::default()
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
    for call in 0..parallel {
        let function = functions[(first + call) % functions.len()];
        let schema = serde_json::from_str(&function.parameters_json)
            .unwrap_or_else(|_| json!({ "type": "object" }));
        let arguments = match sample::value(&schema, topic(&prompt.question())) {
            arguments @ Value::Object(_) => arguments.to_string(),
            _ => "{}".to_owned(),
        };
        pieces.push(ModelChunk::Call {
            id: String::new(),
            name: function.name.clone(),
        });
        let part = |part: &str| ModelChunk::Arguments {
            call,
            text: part.to_owned(),
        };
        pieces.extend(words(&arguments).map(part));
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
        return sample::value(&schema, topic(&prompt.question())).to_string();
    }
    let mut text = format!(
        "This is the embedded model. You said: \"{}\".",
        quoted(&prompt.question())
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

/// What a user says, as this model reads it: it does not look at images.
fn text(parts: &[PromptPart]) -> String {
    let parts = parts.iter().map(|part| match part {
        PromptPart::Text(text) => text.as_str(),
        PromptPart::Image { .. } | PromptPart::ImageFile => "[image]",
    });
    parts.collect::<Vec<_>>().join("\n")
}

/// About how many tokens a text is.
fn tokens(text: &str) -> i64 {
    i64::try_from(text.len().div_ceil(4)).unwrap_or(i64::MAX)
}

impl ModelChunk {
    fn tokens(&self) -> i64 {
        match self {
            Self::Text(text)
            | Self::Refusal(text)
            | Self::Call { name: text, .. }
            | Self::Arguments { text, .. } => tokens(text),
            Self::End(..) | Self::Failed(_) => 0,
        }
    }
}

impl Prompt {
    /// What the user said last.
    fn question(&self) -> String {
        let said = self.conversation.iter().rev().find_map(|turn| match turn {
            PromptMessage::User(parts) => Some(text(parts)),
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
            PromptMessage::User(parts) => tokens(&text(parts)),
            PromptMessage::Assistant(text) => tokens(text),
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
