//! From a prompt to the body of a chat-completions request.
//!
//! Must hold: pure. Tools, schemas and choices are written by the contract's codec, so that their
//! members keep the order that the caller gave them, which models follow. What is left out of a
//! conversation that is too long is its oldest messages; never the instructions, the user's last
//! message, or what this run has done since.

use std::collections::BTreeMap;

use serde_json::{Value, json, value::RawValue};

use crate::{
    embedded::model::{Call, End, Prompt, PromptMessage, PromptPart, Unsupported},
    json::{self, Document},
    v1::{ContentPartType, ResponseFormatMode, Run, ThreadMessage, ToolChoiceMode, ToolType},
};

/// Bytes to a token, by the estimate. It errs to the safe side: English prose has some four and a
/// half, other scripts and code about three.
const BYTES_PER_TOKEN: usize = 3;

/// Tokens of an image, by the estimate; of one that is looked at from afar.
const IMAGE_TOKENS: i64 = 1_000;
const SMALL_IMAGE_TOKENS: i64 = 85;

/// Tokens that a message has besides its text.
const MESSAGE_TOKENS: i64 = 4;

/// About how many tokens so many bytes of text are.
pub(super) fn tokens(bytes: usize) -> i64 {
    i64::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(i64::MAX)
}

/// A request.
pub(super) struct Request {
    pub(super) body: Vec<u8>,
    /// What it costs to read, by the estimate.
    pub(super) tokens: i64,
}

/// The request for `prompt`, to a model that reads and writes `context` tokens; or why no more may
/// be asked for. `name` is the model's, in place of the one that the prompt names.
pub(super) fn of(prompt: &Prompt, name: Option<&str>, context: i64) -> Result<Request, End> {
    let remaining = |most: Option<i64>, spent: i64, end| match most.map(|most| most - spent) {
        Some(..=0) => Err(end),
        remaining => Ok(remaining),
    };
    let spent = prompt.spent;
    let to_write = remaining(
        prompt.max_completion_tokens,
        spent.completion,
        End::CompletionTokens,
    )?;
    let to_read = remaining(prompt.max_prompt_tokens, spent.prompt, End::PromptTokens)?;

    let mut body = Body::default();
    body.value("model", &json!(name.unwrap_or(&prompt.model)));
    body.value("stream", &json!(true));
    body.value("stream_options", &json!({ "include_usage": true }));
    body.tools(prompt);
    if prompt.response_format.mode() != ResponseFormatMode::Auto {
        body.message("response_format", &prompt.response_format);
    }
    // 1 is what everybody takes it for, and some models refuse to be told.
    for (member, number) in [("temperature", prompt.temperature), ("top_p", prompt.top_p)] {
        if let Some(number) = number.filter(|number| (number - 1.0).abs() > f64::EPSILON) {
            body.value(member, &json!(number));
        }
    }
    if !prompt.reasoning_effort.is_empty() {
        body.value("reasoning_effort", &json!(prompt.reasoning_effort));
    }
    if let Some(most) = to_write {
        body.value("max_completion_tokens", &json!(most));
    }
    let room = context - to_write.unwrap_or_default().min(context / 2) - tokens(body.len());
    let room = to_read.map_or(room, |most| room.min(most));
    let (messages, cost) = messages(prompt, room);
    let tokens = tokens(body.len()) + cost;
    body.value("messages", &Value::Array(messages));
    Ok(Request {
        body: body.text(),
        tokens,
    })
}

/// What of a run a chat-completions endpoint cannot do.
pub(super) fn unsupported(run: &Run, messages: &[&ThreadMessage]) -> Option<Unsupported> {
    let needs_files = |kind: ToolType| match kind {
        ToolType::CodeInterpreter => Some("code_interpreter"),
        ToolType::FileSearch => Some("file_search"),
        ToolType::Mcp => Some("mcp"),
        ToolType::Openapi => Some("openapi"),
        ToolType::Function | ToolType::Unspecified => None,
    };
    let refused = |param: String, what: &str, instead: &str| {
        let message = format!(
            "Unsupported parameter: '{param}'. {what} is not supported by a model of --model-url: {instead}."
        );
        Some(Unsupported { param, message })
    };
    let functions = "give it functions";
    for (at, tool) in run.tools.iter().enumerate() {
        if let Some(name) = needs_files(tool.r#type()) {
            return refused(format!("tools[{at}].type"), name, functions);
        }
    }
    if let Some(name) = run
        .tool_choice
        .as_ref()
        .and_then(|choice| needs_files(choice.r#type()))
    {
        return refused("tool_choice.type".to_owned(), name, functions);
    }
    for (at, message) in messages.iter().enumerate() {
        if !message.attachments.is_empty() {
            let param = format!("messages[{at}].attachments");
            return refused(param, "A file", "send its text");
        }
        let mut parts = message.content.iter();
        if let Some(part) = parts.position(|part| part.r#type() == ContentPartType::ImageFile) {
            let param = format!("messages[{at}].content[{part}].type");
            return refused(param, "image_file", "send image_url");
        }
    }
    None
}

/// The messages that fit into `room` tokens, and what they cost.
fn messages(prompt: &Prompt, room: i64) -> (Vec<Value>, i64) {
    let mut system = Vec::new();
    if !prompt.instructions.is_empty() {
        system.push(json!({ "role": "system", "content": prompt.instructions }));
    }
    let turns = &prompt.conversation;
    let is_user = |turn: &PromptMessage| matches!(turn, PromptMessage::User(_));
    let needed = turns.iter().rposition(is_user).unwrap_or_default();
    let costs: Vec<_> = turns.iter().map(turn_tokens).collect();
    let mut cost = costs.iter().sum::<i64>() + tokens(prompt.instructions.len()) + MESSAGE_TOKENS;
    let mut left_out = 0;
    while left_out < needed && cost > room {
        cost -= costs[left_out];
        left_out += 1;
    }
    let mut messages = system;
    for turn in &turns[left_out..] {
        push(turn, &mut messages);
    }
    (messages, cost)
}

fn push(turn: &PromptMessage, messages: &mut Vec<Value>) {
    match turn {
        PromptMessage::User(parts) => {
            messages.push(json!({ "role": "user", "content": content(parts) }));
        }
        PromptMessage::Assistant(text) if text.is_empty() => {}
        PromptMessage::Assistant(text) => {
            messages.push(json!({ "role": "assistant", "content": text }));
        }
        PromptMessage::Calls(calls) => {
            // What was said before the calls is one message with them: some models take no two of
            // the same role in a row.
            let said =
                messages.pop_if(|last| last["role"] == "assistant" && last["content"].is_string());
            let said = said.map_or(Value::Null, |mut said| said["content"].take());
            let made: Vec<_> = calls.iter().map(made).collect();
            messages.push(json!({ "role": "assistant", "content": said, "tool_calls": made }));
            let outputs = calls.iter().map(
                |call| json!({ "role": "tool", "tool_call_id": call.id, "content": call.output }),
            );
            messages.extend(outputs);
        }
    }
}

fn made(call: &Call) -> Value {
    json!({
        "id": call.id,
        "type": "function",
        "function": { "name": call.name, "arguments": call.arguments },
    })
}

/// What a user says: a text wherever there is no image, since some services take nothing else.
fn content(parts: &[PromptPart]) -> Value {
    let texts: Option<Vec<_>> = parts
        .iter()
        .map(|part| match part {
            PromptPart::Text(text) => Some(text.as_str()),
            PromptPart::Image { .. } | PromptPart::ImageFile => None,
        })
        .collect();
    if let Some(texts) = texts {
        return texts.join("\n").into();
    }
    let part = |part: &PromptPart| match part {
        PromptPart::Text(text) => json!({ "type": "text", "text": text }),
        PromptPart::Image { url, detail: "" } => {
            json!({ "type": "image_url", "image_url": { "url": url } })
        }
        PromptPart::Image { url, detail } => {
            json!({ "type": "image_url", "image_url": { "url": url, "detail": detail } })
        }
        // No run is made with one.
        PromptPart::ImageFile => json!({ "type": "text", "text": "[image]" }),
    };
    parts.iter().map(part).collect()
}

fn turn_tokens(turn: &PromptMessage) -> i64 {
    let part = |part: &PromptPart| match part {
        PromptPart::Text(text) => tokens(text.len()),
        PromptPart::Image { detail: "low", .. } => SMALL_IMAGE_TOKENS,
        PromptPart::Image { .. } | PromptPart::ImageFile => IMAGE_TOKENS,
    };
    let call = |call: &Call| {
        2 * MESSAGE_TOKENS + tokens(call.name.len() + call.arguments.len() + call.output.len())
    };
    MESSAGE_TOKENS
        + match turn {
            PromptMessage::User(parts) => parts.iter().map(part).sum(),
            PromptMessage::Assistant(text) => tokens(text.len()),
            PromptMessage::Calls(calls) => calls.iter().map(call).sum(),
        }
}

/// A JSON object whose members may be texts of their own.
#[derive(Default)]
struct Body(BTreeMap<&'static str, Box<RawValue>>);

impl Body {
    fn tools(&mut self, prompt: &Prompt) {
        let functions = prompt.tools.iter().filter(|tool| tool.function.is_some());
        let tools: Vec<_> = functions.filter_map(raw).collect();
        if tools.is_empty() {
            return;
        }
        self.0
            .extend(serde_json::value::to_raw_value(&tools).map(|tools| ("tools", tools)));
        // A tool that has to be called has to be called before the answer, not before each reply.
        let calls = |turn: &PromptMessage| matches!(turn, PromptMessage::Calls(_));
        if prompt.tool_choice.mode() == ToolChoiceMode::None
            || !prompt.conversation.iter().any(calls)
        {
            self.message("tool_choice", &prompt.tool_choice);
        }
        if !prompt.parallel_tool_calls {
            self.value("parallel_tool_calls", &json!(false));
        }
    }

    fn value(&mut self, name: &'static str, value: &Value) {
        let value = serde_json::value::to_raw_value(value);
        self.0.extend(value.map(|value| (name, value)));
    }

    fn message(&mut self, name: &'static str, message: &impl Document) {
        self.0.extend(raw(message).map(|value| (name, value)));
    }

    fn len(&self) -> usize {
        self.0.values().map(|value| value.get().len()).sum()
    }

    fn text(self) -> Vec<u8> {
        serde_json::to_vec(&self.0).unwrap_or_default()
    }
}

/// A message of the contract as JSON text. What came in as a request's body can always be written.
fn raw(message: &impl Document) -> Option<Box<RawValue>> {
    let text = json::encode_request(message, &[]).ok()?;
    RawValue::from_string(String::from_utf8(text).ok()?).ok()
}
