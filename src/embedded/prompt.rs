//! What a run tells its model: the thread as a conversation, and the run's settings.
//!
//! Must hold: what this run has said and called comes last, in the order of its steps: models take
//! outputs only right behind the calls that they are of.

use super::{
    model::{Call, Prompt, PromptMessage, PromptPart},
    rows::Run,
};
use crate::v1::{
    ContentPart, ContentPartType, ImageDetail, MessageRole, RunStep, ThreadMessage, ToolCall,
};

/// The prompt for the next reply of `run`.
pub(super) fn of(run: &Run, messages: &[ThreadMessage]) -> Prompt {
    let resource = &run.resource;
    let last_messages = resource
        .truncation_strategy
        .as_ref()
        .and_then(|strategy| strategy.last_messages);
    let kept = last_messages
        .and_then(|most| usize::try_from(most).ok())
        .unwrap_or(usize::MAX);
    let messages = &messages[messages.len().saturating_sub(kept)..];
    let before = messages
        .iter()
        .filter(|message| message.run_id != resource.id)
        .map(turn);
    let since = run.steps.iter().filter_map(|step| done(step, messages));
    Prompt {
        model: resource.model.clone(),
        instructions: resource.instructions.clone().unwrap_or_default(),
        conversation: before.chain(since).collect(),
        tools: resource.tools.clone(),
        tool_choice: resource.tool_choice.clone().unwrap_or_default(),
        parallel_tool_calls: resource.parallel_tool_calls.unwrap_or(true),
        response_format: resource.response_format.clone().unwrap_or_default(),
        temperature: resource.temperature,
        top_p: resource.top_p,
        reasoning_effort: resource.reasoning_effort.clone(),
        max_prompt_tokens: resource.max_prompt_tokens,
        max_completion_tokens: resource.max_completion_tokens,
        spent: run.progress.spent,
        steering: run.steering(),
    }
}

fn turn(message: &ThreadMessage) -> PromptMessage {
    match message.role() {
        MessageRole::Assistant => PromptMessage::Assistant(text(message)),
        _ => PromptMessage::User(message.content.iter().filter_map(part).collect()),
    }
}

fn part(part: &ContentPart) -> Option<PromptPart> {
    Some(match part.r#type() {
        ContentPartType::Text => PromptPart::Text(part.text.as_ref()?.value.clone()?),
        ContentPartType::Refusal => PromptPart::Text(part.refusal.clone()?),
        ContentPartType::ImageUrl => {
            let image = part.image_url.as_ref()?;
            let detail = match image.detail() {
                ImageDetail::Unspecified => "",
                ImageDetail::Auto => "auto",
                ImageDetail::Low => "low",
                ImageDetail::High => "high",
            };
            PromptPart::Image {
                url: image.url.clone(),
                detail,
            }
        }
        _ => PromptPart::ImageFile,
    })
}

/// The text of what an assistant said.
fn text(message: &ThreadMessage) -> String {
    let parts = message
        .content
        .iter()
        .filter_map(part)
        .map(|part| match part {
            PromptPart::Text(text) => text,
            PromptPart::Image { .. } | PromptPart::ImageFile => "[image]".to_owned(),
        });
    parts.collect::<Vec<_>>().join("\n")
}

/// What a step of the run has added to the conversation: its message, unless that was deleted, or
/// its calls.
fn done(step: &RunStep, messages: &[ThreadMessage]) -> Option<PromptMessage> {
    let details = step.step_details.as_ref()?;
    if let Some(created) = &details.message_creation {
        let message = messages
            .iter()
            .find(|message| message.id == created.message_id)?;
        return Some(turn(message));
    }
    let call = |call: &ToolCall| {
        let function = call.function.as_ref()?;
        Some(Call {
            id: call.id.clone(),
            name: function.name.clone(),
            arguments: function.arguments.clone().unwrap_or_default(),
            output: function.output.clone().unwrap_or_default(),
        })
    };
    let calls = &details.tool_calls;
    (!calls.is_empty()).then(|| PromptMessage::Calls(calls.iter().filter_map(call).collect()))
}
