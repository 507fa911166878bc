//! What a run tells its model: the thread as a conversation, and the run's settings.

use super::{
    model::{Call, Prompt, PromptMessage},
    run::Run,
};
use crate::v1::{ContentPartType, MessageRole, RunStep, ThreadMessage, ToolCall};

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
    let messages = messages[messages.len().saturating_sub(kept)..]
        .iter()
        .map(|message| match message.role() {
            MessageRole::Assistant => PromptMessage::Assistant(text(message)),
            _ => PromptMessage::User(text(message)),
        });
    let rounds = run.steps.iter().filter_map(calls);
    Prompt {
        instructions: resource.instructions.clone().unwrap_or_default(),
        conversation: messages.chain(rounds).collect(),
        tools: resource.tools.clone(),
        tool_choice: resource.tool_choice.clone().unwrap_or_default(),
        parallel_tool_calls: resource.parallel_tool_calls.unwrap_or(true),
        response_format: resource.response_format.clone().unwrap_or_default(),
        max_completion_tokens: resource.max_completion_tokens,
        steering: run.steering.clone(),
    }
}

fn text(message: &ThreadMessage) -> String {
    let parts = message
        .content
        .iter()
        .filter_map(|part| match part.r#type() {
            ContentPartType::Text => part.text.as_ref()?.value.clone(),
            ContentPartType::Refusal => part.refusal.clone(),
            _ => Some("[image]".to_owned()),
        });
    parts.collect::<Vec<_>>().join("\n")
}

/// The calls of a step, if it is a round of calls.
fn calls(step: &RunStep) -> Option<PromptMessage> {
    let calls = &step.step_details.as_ref()?.tool_calls;
    let call = |call: &ToolCall| {
        let function = call.function.as_ref()?;
        Some(Call {
            name: function.name.clone(),
            arguments: function.arguments.clone().unwrap_or_default(),
            output: function.output.clone().unwrap_or_default(),
        })
    };
    (!calls.is_empty()).then(|| PromptMessage::Calls(calls.iter().filter_map(call).collect()))
}
