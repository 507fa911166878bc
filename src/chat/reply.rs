//! From the events of a chat completion to pieces of a reply.
//!
//! Services differ, and what is read is what they have in common:
//!
//! - A call is known by its index. Some give all calls the index 0, or none: then by its id; a
//!   piece with neither is of the call that came last.
//! - A call begins when its name is there. Arguments that come before are held back.
//! - The end is a finish reason, or `[DONE]` after a word. A stream with neither has broken off.
//!
//! Must hold: pure; what is held is bounded by the limits; no text of the answer is in a [`Fault`].

use serde_json::Value;

use super::{ChatLimits, request::tokens};
use crate::embedded::model::{End, ModelChunk, Tokens};

/// Why there is no reply, or no more of it.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// The service says so, in these data.
    Error(Vec<u8>),
    /// What came cannot be used, or does not come to its end.
    Broken(String),
}

impl Fault {
    fn broken(why: &str) -> Self {
        Self::Broken(why.to_owned())
    }
}

/// Reads one completion.
pub(super) struct Reader {
    reply_bytes: usize,
    tool_calls: usize,
    /// What the prompt costs, by the estimate.
    prompt_tokens: i64,
    bytes: usize,
    calls: Vec<Call>,
    /// How many of `calls` have begun.
    begun: usize,
    /// There was a word, or a call.
    has_content: bool,
    finish: Option<End>,
    usage: Option<Tokens>,
}

/// A call as far as it has come.
struct Call {
    index: Option<u64>,
    id: String,
    /// Its number, once it has begun.
    number: Option<usize>,
    /// Arguments that came before its name.
    held: String,
    has_arguments: bool,
}

impl Reader {
    pub(super) fn new(limits: &ChatLimits, prompt_tokens: i64) -> Self {
        Self {
            reply_bytes: limits.reply_bytes,
            tool_calls: limits.tool_calls,
            prompt_tokens,
            bytes: 0,
            calls: Vec::new(),
            begun: 0,
            has_content: false,
            finish: None,
            usage: None,
        }
    }

    /// Whether the reason has come why the reply is over. Only the usage may follow.
    pub(super) fn has_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Reads the data of one event.
    pub(super) fn event(&mut self, data: &[u8]) -> Result<Vec<ModelChunk>, Fault> {
        let chunk =
            serde_json::from_slice(data).map_err(|_| Fault::broken("an event is not JSON"))?;
        self.chunk(&chunk, data)
    }

    /// Reads an answer that came whole in place of a stream.
    pub(super) fn document(&mut self, text: &[u8]) -> Result<Vec<ModelChunk>, Fault> {
        let document: Value = serde_json::from_slice(text)
            .map_err(|_| Fault::broken("it is neither an event stream nor JSON"))?;
        let pieces = self.chunk(&document, text)?;
        if choice(&document).is_none() {
            return Err(Fault::broken("it has no choices"));
        }
        self.finish.get_or_insert(End::Whole);
        Ok(pieces)
    }

    /// The mark that ends a stream has come.
    pub(super) fn done(&mut self) -> Result<(), Fault> {
        if self.finish.is_none() && !self.has_content {
            return Err(Fault::broken("it ended before a word"));
        }
        self.finish.get_or_insert(End::Whole);
        Ok(())
    }

    /// Nothing more comes: the pieces that were waited for.
    pub(super) fn end(&mut self) -> Result<Vec<ModelChunk>, Fault> {
        let Some(finish) = self.finish else {
            return Err(Fault::broken("the stream ended in the middle"));
        };
        if finish != End::Whole {
            return Ok(Vec::new());
        }
        if self.calls.iter().any(|call| call.number.is_none()) {
            return Err(Fault::broken("a tool call has no name"));
        }
        // Some services send nothing for a function without parameters.
        let silent = self.calls.iter().filter(|call| !call.has_arguments);
        let empty = silent.filter_map(|call| {
            Some(ModelChunk::Arguments {
                call: call.number?,
                text: "{}".to_owned(),
            })
        });
        Ok(empty.collect())
    }

    /// The last piece, and what it all has cost: by the service's count, or else by the estimate.
    pub(super) fn last(&self) -> ModelChunk {
        let estimate = Tokens {
            prompt: self.prompt_tokens,
            completion: tokens(self.bytes),
            ..Tokens::default()
        };
        ModelChunk::End(
            self.finish.unwrap_or(End::Whole),
            self.usage.unwrap_or(estimate),
        )
    }

    fn chunk(&mut self, chunk: &Value, text: &[u8]) -> Result<Vec<ModelChunk>, Fault> {
        if !chunk.is_object() {
            return Err(Fault::broken("an event is no JSON object"));
        }
        if chunk.get("error").is_some_and(|error| !error.is_null()) {
            return Err(Fault::Error(text.to_vec()));
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.usage = Some(cost(usage));
        }
        let mut pieces = Vec::new();
        let Some(choice) = choice(chunk) else {
            return Ok(pieces);
        };
        if let Some(delta) = choice.get("delta").or_else(|| choice.get("message")) {
            self.text(delta, &mut pieces)?;
            let calls = delta.get("tool_calls").and_then(Value::as_array);
            for (call_index, call) in calls.into_iter().flatten().enumerate() {
                self.call(call_index, call, &mut pieces)?;
            }
        }
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.finish = Some(match reason {
                "length" | "max_tokens" => End::CompletionTokens,
                "content_filter" => End::Filtered,
                "error" => return Err(Fault::broken("the model failed")),
                _ => End::Whole,
            });
        }
        Ok(pieces)
    }

    /// Text and refusal. What comes after a call has no place in a run, and is left out.
    fn text(&mut self, delta: &Value, pieces: &mut Vec<ModelChunk>) -> Result<(), Fault> {
        let content = delta.get("content").map(plain).unwrap_or_default();
        let refusal = delta.get("refusal").map(plain).unwrap_or_default();
        let content = (!content.is_empty()).then_some(ModelChunk::Text(content));
        let refusal = (!refusal.is_empty()).then_some(ModelChunk::Refusal(refusal));
        for piece in content.into_iter().chain(refusal) {
            if let ModelChunk::Text(text) | ModelChunk::Refusal(text) = &piece {
                self.count(text)?;
            }
            self.has_content = true;
            if self.begun == 0 {
                pieces.push(piece);
            }
        }
        Ok(())
    }

    /// A piece of a call, which is at `place` in its list.
    fn call(
        &mut self,
        call_index: usize,
        piece: &Value,
        pieces: &mut Vec<ModelChunk>,
    ) -> Result<(), Fault> {
        let function = piece.get("function").unwrap_or(&Value::Null);
        let name = text_of(function, "name");
        let arguments = match function.get("arguments") {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            // Some services do not write them as text.
            Some(other) => other.to_string(),
        };
        let (index, id) = (
            piece.get("index").and_then(Value::as_u64),
            text_of(piece, "id"),
        );
        let at = self.call_index_of(index, id, call_index);
        if at == self.calls.len() {
            if at == self.tool_calls {
                let limit = self.tool_calls;
                let why = format!("more than {limit} tool calls (--model-max-tool-calls)");
                return Err(Fault::Broken(why));
            }
            self.calls.push(Call {
                index,
                id: id.to_owned(),
                number: None,
                held: String::new(),
                has_arguments: false,
            });
        }
        for text in [id, name, &arguments] {
            self.count(text)?;
        }
        self.has_content = true;
        let call = &mut self.calls[at];
        call.has_arguments |= !arguments.is_empty();
        if call.id.is_empty() {
            id.clone_into(&mut call.id);
        }
        call.held += &arguments;
        if call.number.is_none() && !name.is_empty() {
            call.number = Some(self.begun);
            self.begun += 1;
            pieces.push(ModelChunk::Call {
                id: call.id.clone(),
                name: name.to_owned(),
            });
        }
        if let Some(number) = call.number.filter(|_| !call.held.is_empty()) {
            pieces.push(ModelChunk::Arguments {
                call: number,
                text: std::mem::take(&mut call.held),
            });
        }
        Ok(())
    }

    /// Where the call is that a piece is of; behind all others if it is a new one.
    fn call_index_of(&self, index: Option<u64>, id: &str, call_index: usize) -> usize {
        let new = self.calls.len();
        let is_same = |call: &Call| id.is_empty() || call.id.is_empty() || call.id == id;
        let mut known = self.calls.iter();
        match index {
            Some(_) => known.rposition(|call| call.index == index && is_same(call)),
            None if id.is_empty() && call_index == 0 => new.checked_sub(1),
            None => known.rposition(|call| !id.is_empty() && call.id == id),
        }
        .unwrap_or(new)
    }

    fn count(&mut self, text: &str) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(text.len());
        if self.bytes > self.reply_bytes {
            let limit = self.reply_bytes;
            let why = format!("more than {limit} bytes (--model-max-reply-bytes)");
            return Err(Fault::Broken(why));
        }
        Ok(())
    }
}

/// The one choice: nobody asks for more.
fn choice(chunk: &Value) -> Option<&Value> {
    chunk.get("choices")?.get(0)
}

/// A text, or the texts of a list of parts.
fn plain(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(|part| text_of(part, "text")).collect(),
        _ => String::new(),
    }
}

fn text_of<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn cost(usage: &Value) -> Tokens {
    let count = |object: &Value, name: &str| {
        let number = object.get(name).and_then(Value::as_i64);
        number.unwrap_or_default().max(0)
    };
    let detail = |object: &str, name: &str| usage.get(object).map_or(0, |it| count(it, name));
    Tokens {
        prompt: count(usage, "prompt_tokens"),
        completion: count(usage, "completion_tokens"),
        cached: detail("prompt_tokens_details", "cached_tokens"),
        reasoning: detail("completion_tokens_details", "reasoning_tokens"),
    }
}
