//! What a run writes while it is at work: steps, the message of an answer, calls and their
//! arguments.
//!
//! Must hold: only the last step is ever in progress, and a step is closed before the next begins;
//! what a delta adds is added to the resource by the same function.

use std::time::Duration;

use super::{Run, Tokens, stamp};
use crate::{
    embedded::id,
    v1::{
        CompletionTokensDetails, ContentPart, ContentPartDelta, ContentPartType, FunctionCall,
        MessageCreation, MessageDelta, MessageDeltaBody, MessageIncompleteDetails, MessageRole,
        MessageStatus, PromptTokensDetails, RunError, RunStep, RunStepDelta, RunStepDeltaBody,
        RunStepStatus, RunStepType, StepDetails, TextContent, ThreadMessage, ToolCall, ToolType,
        Usage,
    },
};

/// The longest id that outputs can be sent for, in characters.
const MAX_ID: usize = 256;

impl Run {
    pub(super) fn write(
        &mut self,
        kind: ContentPartType,
        text: String,
        messages: &mut Vec<ThreadMessage>,
        now: Duration,
    ) {
        let open = self
            .open_step()
            .filter(|step| step.r#type() == RunStepType::MessageCreation);
        let created = open.and_then(|step| step.step_details.as_ref()?.message_creation.as_ref());
        let message_id = created.map(|created| created.message_id.clone());
        let message_id = message_id.unwrap_or_else(|| self.open_message(messages, now));
        let (value, refusal) = if kind == ContentPartType::Text {
            (Some(text), None)
        } else {
            (None, Some(text))
        };
        let index = messages
            .iter_mut()
            .rfind(|message| message.id == message_id)
            .map_or(0, |message| {
                if message
                    .content
                    .last()
                    .is_none_or(|part| part.r#type() != kind)
                {
                    message.content.push(ContentPart {
                        r#type: kind.into(),
                        ..ContentPart::default()
                    });
                }
                let index = message.content.len() - 1;
                let part = &mut message.content[index];
                if let Some(value) = &value {
                    part.text
                        .get_or_insert_default()
                        .value
                        .get_or_insert_default()
                        .push_str(value);
                }
                if let Some(refusal) = &refusal {
                    part.refusal.get_or_insert_default().push_str(refusal);
                }
                index
            });
        let text = value.map(|value| TextContent {
            value: Some(value),
            ..TextContent::default()
        });
        let index = i32::try_from(index).ok();
        let part = ContentPartDelta {
            index,
            r#type: kind.into(),
            text,
            refusal,
            ..ContentPartDelta::default()
        };
        let body = MessageDeltaBody {
            content: vec![part],
            ..MessageDeltaBody::default()
        };
        let object = "thread.message.delta".to_owned();
        let delta = MessageDelta {
            id: message_id,
            object,
            delta: Some(body),
            ..MessageDelta::default()
        };
        self.events.send("thread.message.delta", &delta);
    }

    /// Begins a message in a step of its own, and gives its id.
    pub(super) fn open_message(
        &mut self,
        messages: &mut Vec<ThreadMessage>,
        now: Duration,
    ) -> String {
        let message = ThreadMessage {
            id: id::new("msg"),
            object: "thread.message".to_owned(),
            created_at: Some(stamp(now)),
            thread_id: self.resource.thread_id.clone(),
            status: MessageStatus::InProgress.into(),
            role: MessageRole::Assistant.into(),
            assistant_id: self.resource.assistant_id.clone(),
            run_id: self.resource.id.clone(),
            ..ThreadMessage::default()
        };
        let created = MessageCreation {
            message_id: message.id.clone(),
            ..MessageCreation::default()
        };
        self.begin_step(RunStepType::MessageCreation, Some(created), now);
        self.events.send("thread.message.created", &message);
        self.events.send("thread.message.in_progress", &message);
        let id = message.id.clone();
        messages.push(message);
        id
    }

    pub(super) fn call(
        &mut self,
        id: String,
        name: String,
        messages: &mut [ThreadMessage],
        now: Duration,
    ) {
        if self
            .open_step()
            .is_none_or(|step| step.r#type() != RunStepType::ToolCalls)
        {
            self.close_message(None, messages, now);
            self.close_step(RunStepStatus::Completed, None, now);
            self.begin_step(RunStepType::ToolCalls, None, now);
        }
        let function = FunctionCall {
            name,
            arguments: Some(String::new()),
            ..FunctionCall::default()
        };
        let call = ToolCall {
            id: if self.may_be_of_a_call(&id) {
                id
            } else {
                id::new("call")
            },
            r#type: ToolType::Function.into(),
            function: Some(function),
            ..ToolCall::default()
        };
        let Some(details) = self.open_step().and_then(|step| step.step_details.as_mut()) else {
            return;
        };
        let index = i32::try_from(details.tool_calls.len()).ok();
        details.extra_json.clear();
        details.tool_calls.push(call.clone());
        self.send_step_delta(ToolCall { index, ..call });
    }

    /// Whether the id that a model gave can be a call's: some models give none, or one for all.
    fn may_be_of_a_call(&self, id: &str) -> bool {
        let made = self.steps.iter().flat_map(|step| &step.step_details);
        let mut made = made.flat_map(|details| &details.tool_calls);
        (1..=MAX_ID).contains(&id.chars().count()) && made.all(|call| call.id != id)
    }

    pub(super) fn arguments(&mut self, call: usize, text: String) {
        let Some(details) = self.open_step().and_then(|step| step.step_details.as_mut()) else {
            return;
        };
        let index = i32::try_from(call).ok();
        let Some(function) = details
            .tool_calls
            .get_mut(call)
            .and_then(|call| call.function.as_mut())
        else {
            return;
        };
        function.arguments.get_or_insert_default().push_str(&text);
        let function = FunctionCall {
            arguments: Some(text),
            ..FunctionCall::default()
        };
        let r#type = ToolType::Function.into();
        self.send_step_delta(ToolCall {
            index,
            r#type,
            function: Some(function),
            ..ToolCall::default()
        });
    }

    /// The step that is in progress: only the last one can be.
    pub(super) fn open_step(&mut self) -> Option<&mut RunStep> {
        self.steps
            .last_mut()
            .filter(|step| step.status() == RunStepStatus::InProgress)
    }

    pub(super) fn begin_step(
        &mut self,
        kind: RunStepType,
        message_creation: Option<MessageCreation>,
        now: Duration,
    ) {
        // Services show the empty list of calls that are yet to come; a list in a field is only
        // written when it has entries.
        let none_yet = if kind == RunStepType::ToolCalls {
            r#"{"tool_calls":[]}"#
        } else {
            ""
        };
        let step_details = StepDetails {
            r#type: kind.into(),
            message_creation,
            extra_json: none_yet.to_owned(),
            ..StepDetails::default()
        };
        let step = RunStep {
            id: id::new("step"),
            object: "thread.run.step".to_owned(),
            created_at: Some(stamp(now)),
            assistant_id: self.resource.assistant_id.clone(),
            thread_id: self.resource.thread_id.clone(),
            run_id: self.resource.id.clone(),
            r#type: kind.into(),
            status: RunStepStatus::InProgress.into(),
            step_details: Some(step_details),
            expires_at: self.resource.expires_at,
            ..RunStep::default()
        };
        self.events.send("thread.run.step.created", &step);
        self.events.send("thread.run.step.in_progress", &step);
        self.steps.push(step);
    }

    pub(super) fn close_step(
        &mut self,
        status: RunStepStatus,
        error: Option<RunError>,
        now: Duration,
    ) {
        let (at, reply) = (Some(stamp(now)), std::mem::take(&mut self.reply));
        let Some(step) = self.open_step() else { return };
        step.status = status.into();
        step.usage = Some(usage(reply));
        step.last_error = error.map(|error| RunError {
            // A step has no other words than these two.
            code: if error.code == "rate_limit_exceeded" {
                error.code
            } else {
                "server_error".to_owned()
            },
            ..error
        });
        let event = match status {
            RunStepStatus::Failed => {
                step.failed_at = at;
                "thread.run.step.failed"
            }
            RunStepStatus::Cancelled => {
                step.cancelled_at = at;
                "thread.run.step.cancelled"
            }
            RunStepStatus::Expired => {
                step.expired_at = at;
                "thread.run.step.expired"
            }
            _ => {
                step.completed_at = at;
                "thread.run.step.completed"
            }
        };
        let step = step.clone();
        self.events.send(event, &step);
    }

    /// Ends the message that is being written, if there is one: whole, or cut for the given reason.
    pub(super) fn close_message(
        &mut self,
        cut: Option<&str>,
        messages: &mut [ThreadMessage],
        now: Duration,
    ) {
        let Some(details) = self.open_step().and_then(|step| step.step_details.as_ref()) else {
            return;
        };
        let Some(created) = &details.message_creation else {
            return;
        };
        // It is not there any more if a caller has deleted it.
        let Some(message) = messages
            .iter_mut()
            .rfind(|message| message.id == created.message_id)
        else {
            return;
        };
        let (status, event) = if let Some(reason) = cut {
            let reason = reason.to_owned();
            message.incomplete_details = Some(MessageIncompleteDetails {
                reason,
                ..MessageIncompleteDetails::default()
            });
            message.incomplete_at = Some(stamp(now));
            (MessageStatus::Incomplete, "thread.message.incomplete")
        } else {
            message.completed_at = Some(stamp(now));
            (MessageStatus::Completed, "thread.message.completed")
        };
        message.status = status.into();
        self.events.send(event, message);
    }

    fn send_step_delta(&mut self, call: ToolCall) {
        let Some(step) = self.steps.last() else {
            return;
        };
        let details = StepDetails {
            r#type: RunStepType::ToolCalls.into(),
            tool_calls: vec![call],
            ..StepDetails::default()
        };
        let body = RunStepDeltaBody {
            step_details: Some(details),
            ..RunStepDeltaBody::default()
        };
        let object = "thread.run.step.delta".to_owned();
        let delta = RunStepDelta {
            id: step.id.clone(),
            object,
            delta: Some(body),
            ..RunStepDelta::default()
        };
        self.events.send("thread.run.step.delta", &delta);
    }
}

/// The cost as the API writes it.
pub(super) fn usage(tokens: Tokens) -> Usage {
    Usage {
        prompt_tokens: Some(tokens.prompt),
        completion_tokens: Some(tokens.completion),
        total_tokens: Some(tokens.prompt.saturating_add(tokens.completion)),
        prompt_token_details: Some(PromptTokensDetails {
            cached_tokens: Some(tokens.cached),
            ..PromptTokensDetails::default()
        }),
        completion_tokens_details: Some(CompletionTokensDetails {
            reasoning_tokens: Some(tokens.reasoning),
            ..CompletionTokensDetails::default()
        }),
        ..Usage::default()
    }
}
