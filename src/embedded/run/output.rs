//! What a run writes while it is at work: steps, the message of an answer, calls and their
//! arguments.
//!
//! Must hold: only the last step is ever in progress, and a step is closed before the next begins.

use std::time::Duration;

use super::{Change, Row, Run, Tokens, stamp};
use crate::{
    embedded::id,
    v1::{
        CompletionTokensDetails, ContentPartDelta, ContentPartType, FunctionCall, MessageCreation,
        MessageDelta, MessageDeltaBody, MessageIncompleteDetails, MessageRole, MessageStatus,
        PromptTokensDetails, RunError, RunStep, RunStepDelta, RunStepDeltaBody, RunStepStatus,
        RunStepType, StepDetails, TextContent, ThreadMessage, ToolCall, ToolType, Usage,
    },
};

/// The longest id that outputs can be sent for, in characters.
const MAX_ID: usize = 256;

impl Run {
    /// More of the answer, or of the refusal to answer.
    pub(super) fn write(
        &self,
        kind: ContentPartType,
        text: String,
        messages: &[ThreadMessage],
        now: Duration,
    ) -> Vec<Change> {
        let (mut changes, id) = match self.open_message() {
            Some(id) => (Vec::new(), id.to_owned()),
            None => self.begin_message(now),
        };
        let message = messages.iter().rfind(|message| message.id == id);
        let content = message.map_or(&[][..], |message| &message.content);
        let index = match content.last() {
            Some(last) if last.r#type() == kind => content.len() - 1,
            _ => content.len(),
        };
        let (text, refusal) = if kind == ContentPartType::Text {
            let text = TextContent {
                value: Some(text),
                ..TextContent::default()
            };
            (Some(text), None)
        } else {
            (None, Some(text))
        };
        let part = ContentPartDelta {
            index: i32::try_from(index).ok(),
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
            id,
            object,
            delta: Some(body),
            ..MessageDelta::default()
        };
        changes.push(Row::MessageDelta(delta).with_event("thread.message.delta"));
        changes
    }

    /// Begins a message in a step of its own; gives its id, too.
    fn begin_message(&self, now: Duration) -> (Vec<Change>, String) {
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
        let id = message.id.clone();
        let created = MessageCreation {
            message_id: id.clone(),
            ..MessageCreation::default()
        };
        let mut changes = begun(self.step(RunStepType::MessageCreation, Some(created), now));
        let message = Row::Message(message);
        changes.extend([
            message.clone().with_event("thread.message.created"),
            message.with_event("thread.message.in_progress"),
        ]);
        (changes, id)
    }

    /// A call begins.
    pub(super) fn call(
        &self,
        id: String,
        name: String,
        messages: &[ThreadMessage],
        now: Duration,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let (step_id, index) = if let Some(step) = self.open_calls() {
            (step.id.clone(), calls(step).len())
        } else {
            changes.extend(self.close_message(None, messages, now));
            let written = self.close_step(RunStepStatus::Completed, None, now);
            changes.extend(written.map(closed));
            let step = self.step(RunStepType::ToolCalls, None, now);
            let id = step.id.clone();
            changes.extend(begun(step));
            (id, 0)
        };
        let function = FunctionCall {
            name,
            arguments: Some(String::new()),
            ..FunctionCall::default()
        };
        let call = ToolCall {
            index: i32::try_from(index).ok(),
            id: if self.may_be_of_a_call(&id) {
                id
            } else {
                id::new("call")
            },
            r#type: ToolType::Function.into(),
            function: Some(function),
            ..ToolCall::default()
        };
        changes.push(step_delta(step_id, call));
        changes
    }

    /// Whether the id that a model gave can be a call's: some models give none, or one for all.
    fn may_be_of_a_call(&self, id: &str) -> bool {
        let mut made = self.steps.iter().flat_map(calls);
        (1..=MAX_ID).contains(&id.chars().count()) && made.all(|call| call.id != id)
    }

    /// More of the arguments of the call with this number.
    pub(super) fn arguments(&self, call: usize, text: String) -> Vec<Change> {
        let step = self.open_calls().filter(|step| call < calls(step).len());
        let function = FunctionCall {
            arguments: Some(text),
            ..FunctionCall::default()
        };
        let piece = ToolCall {
            index: i32::try_from(call).ok(),
            r#type: ToolType::Function.into(),
            function: Some(function),
            ..ToolCall::default()
        };
        Vec::from_iter(step.map(|step| step_delta(step.id.clone(), piece)))
    }

    /// The step that is in progress: only the last one can be.
    fn open_step(&self) -> Option<&RunStep> {
        let last = self.steps.last();
        last.filter(|step| step.status() == RunStepStatus::InProgress)
    }

    /// The step that is in progress, if it is one of calls.
    pub(super) fn open_calls(&self) -> Option<&RunStep> {
        let open = self.open_step();
        open.filter(|step| step.r#type() == RunStepType::ToolCalls)
    }

    /// The id of the message that is being written, if there is one.
    fn open_message(&self) -> Option<&str> {
        let details = self.open_step()?.step_details.as_ref()?;
        Some(&details.message_creation.as_ref()?.message_id)
    }

    /// A step that begins.
    fn step(
        &self,
        kind: RunStepType,
        message_creation: Option<MessageCreation>,
        now: Duration,
    ) -> RunStep {
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
        RunStep {
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
        }
    }

    /// The step that is in progress as it is when it has ended, if there is one.
    pub(super) fn close_step(
        &self,
        status: RunStepStatus,
        error: Option<RunError>,
        now: Duration,
    ) -> Option<RunStep> {
        let mut step = self.open_step()?.clone();
        step.status = status.into();
        step.usage = Some(usage(self.progress.reply));
        step.last_error = error.map(|error| RunError {
            // A step has no other words than these two.
            code: if error.code == "rate_limit_exceeded" {
                error.code
            } else {
                "server_error".to_owned()
            },
            ..error
        });
        let ended_at = match status {
            RunStepStatus::Failed => &mut step.failed_at,
            RunStepStatus::Cancelled => &mut step.cancelled_at,
            RunStepStatus::Expired => &mut step.expired_at,
            _ => &mut step.completed_at,
        };
        *ended_at = Some(stamp(now));
        Some(step)
    }

    /// Ends the message that is being written, if there is one: whole, or cut for the given reason.
    pub(super) fn close_message(
        &self,
        incomplete_reason: Option<&str>,
        messages: &[ThreadMessage],
        now: Duration,
    ) -> Option<Change> {
        let id = self.open_message()?;
        // It is not there any more if a caller has deleted it.
        let message = messages.iter().rfind(|message| message.id == id)?;
        let mut message = message.clone();
        let (status, event) = if let Some(reason) = incomplete_reason {
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
        Some(Row::Message(message).with_event(event))
    }
}

fn calls(step: &RunStep) -> &[ToolCall] {
    let details = step.step_details.as_ref();
    details.map_or(&[], |details| &details.tool_calls)
}

/// A step has begun.
fn begun(step: RunStep) -> Vec<Change> {
    let step = Row::Step(Box::new(step));
    vec![
        step.clone().with_event("thread.run.step.created"),
        step.with_event("thread.run.step.in_progress"),
    ]
}

/// A step has ended.
pub(super) fn closed(step: RunStep) -> Change {
    let event = match step.status() {
        RunStepStatus::Failed => "thread.run.step.failed",
        RunStepStatus::Cancelled => "thread.run.step.cancelled",
        RunStepStatus::Expired => "thread.run.step.expired",
        _ => "thread.run.step.completed",
    };
    Row::Step(Box::new(step)).with_event(event)
}

fn step_delta(step_id: String, call: ToolCall) -> Change {
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
        id: step_id,
        object,
        delta: Some(body),
        ..RunStepDelta::default()
    };
    Row::StepDelta(delta).with_event("thread.run.step.delta")
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
