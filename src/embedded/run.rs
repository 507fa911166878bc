//! A run: its states, its steps, the messages that it writes, and the events of all that.
//!
//! ```text
//! queued ── begin ──> in_progress ── calls ──> requires_action ── submit ──> queued
//!   any of these ── cancel ──> cancelling ──> cancelled      any of these ── time is over ──> expired
//!   in_progress ──> completed | incomplete | failed
//! ```
//!
//! Must hold: every change of a state sends its event, here and nowhere else; a run that has ended never changes but for its metadata; after
//! `done`, which follows `requires_action` and the end, there are no events until somebody asks for more. No clock and no model in here: the
//! time and the pieces of the answer are handed in.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tokio::sync::Notify;

use super::{
    clock::stamp,
    error::Error,
    id,
    model::{End, Piece, Tokens},
    steering::Steering,
    stream::Events,
};
use crate::v1::{
    self, ContentPart, ContentPartDelta, ContentPartType, FunctionCall, MessageCreation, MessageDelta, MessageDeltaBody,
    MessageIncompleteDetails, MessageRole, MessageStatus, RequiredAction, RequiredActionType, RequiredFunctionCall,
    RequiredToolCall, RunError, RunIncompleteDetails, RunStatus, RunStep, RunStepDelta, RunStepDeltaBody, RunStepStatus,
    RunStepType, StepDetails, SubmitToolOutputsAction, TextContent, ThreadMessage, ToolCall, ToolOutput, ToolType, Usage,
};

pub(super) struct Run {
    pub(super) resource: v1::Run,
    pub(super) steps: Vec<RunStep>,
    /// What its metadata asks for.
    pub(super) steering: Steering,
    /// When it is to be moved on.
    pub(super) due: Duration,
    /// Wakes the task that drives the run, when it has been cancelled.
    pub(super) wake: Arc<Notify>,
    events: Events,
    /// The cost of the last reply, until its step is completed.
    reply: Tokens,
    spent: Tokens,
}

/// How a run ends.
#[derive(Debug)]
pub(super) enum Ending {
    Completed,
    Incomplete,
    Failed(RunError),
    Cancelled,
    Expired,
}

/// Whether a run in this state holds its thread.
pub(super) fn is_active(status: RunStatus) -> bool {
    use RunStatus::{Cancelling, InProgress, Queued, RequiresAction};
    matches!(status, Queued | InProgress | RequiresAction | Cancelling)
}

/// A status as JSON has it.
pub(super) fn status_name(status: RunStatus) -> String {
    status.as_str_name().trim_start_matches("RUN_STATUS_").to_ascii_lowercase()
}

impl Run {
    pub(super) fn new(resource: v1::Run, steering: Steering, events: Events, now: Duration) -> Self {
        let mut run = Self {
            resource,
            steps: Vec::new(),
            due: now + steering.step,
            steering,
            wake: Arc::default(),
            events,
            reply: Tokens::default(),
            spent: Tokens::default(),
        };
        run.resource.status = RunStatus::Queued.into();
        run.send("created");
        run.send("queued");
        run
    }

    /// Whether its time is over.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        is_active(self.resource.status()) && self.resource.expires_at.is_some_and(|expiry| expiry.seconds <= stamp(now).seconds)
    }

    pub(super) fn weight(&self) -> usize {
        self.resource.encoded_len() + self.steps.iter().map(prost::Message::encoded_len).sum::<usize>()
    }

    /// The model sets to work.
    pub(super) fn begin(&mut self, now: Duration) {
        self.resource.status = RunStatus::InProgress.into();
        self.resource.started_at = Some(stamp(now));
        self.due = now + self.steering.step;
        self.send("in_progress");
    }

    /// A piece of the model's reply has come.
    pub(super) fn take(&mut self, piece: Piece, messages: &mut Vec<ThreadMessage>, now: Duration) {
        self.due = now + self.steering.piece;
        match piece {
            Piece::Text(text) => self.write(ContentPartType::Text, text, messages, now),
            Piece::Refusal(text) => self.write(ContentPartType::Refusal, text, messages, now),
            Piece::Call(name) => self.call(name, messages, now),
            Piece::Arguments(text) => self.arguments(text),
            Piece::End(end, cost) => {
                self.reply = cost;
                self.spent.prompt += cost.prompt;
                self.spent.completion += cost.completion;
                let calls = self.open_step().is_some_and(|step| step.r#type() == RunStepType::ToolCalls);
                match end {
                    End::Cut => self.end(Ending::Incomplete, messages, now),
                    End::Whole if calls => self.require_action(),
                    End::Whole => self.end(Ending::Completed, messages, now),
                }
            }
            Piece::Failed(error) => self.end(Ending::Failed(error), messages, now),
        }
    }

    /// The outputs of this round's calls have come, and more events may be wanted.
    pub(super) fn submit(&mut self, outputs: Vec<ToolOutput>, events: Events, now: Duration) -> Result<(), Error> {
        let status = self.resource.status();
        if status != RunStatus::RequiresAction {
            let status = status_name(status);
            return Err(Error::conflict(format!("Runs in status \"{status}\" do not accept tool outputs.")));
        }
        let Some(step) = self.open_step() else { return Err(Error::internal()) };
        let expected: Vec<&str> = step.step_details.iter().flat_map(|it| &it.tool_calls).map(|call| call.id.as_str()).collect();
        let got: Vec<&str> = outputs.iter().map(|output| output.tool_call_id.as_str()).collect();
        let (mut all, mut given) = (expected.clone(), got.clone());
        all.sort_unstable();
        given.sort_unstable();
        if all != given {
            let list = |ids: Vec<&str>| ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
            let message = format!("Expected tool outputs for call_ids [{}], got [{}]", list(expected), list(got));
            return Err(Error::conflict(message));
        }
        if let Some(details) = &mut step.step_details {
            for output in outputs {
                let call = details.tool_calls.iter_mut().find(|call| call.id == output.tool_call_id);
                if let Some(function) = call.and_then(|call| call.function.as_mut()) {
                    function.output = Some(output.output.unwrap_or_default());
                }
            }
        }
        self.events = events;
        self.close_step(RunStepStatus::Completed, None, now);
        self.resource.required_action = None;
        self.resource.status = RunStatus::Queued.into();
        self.due = now + self.steering.step;
        self.send("queued");
        Ok(())
    }

    /// Somebody wants the run to stop.
    pub(super) fn cancel(&mut self, now: Duration) -> Result<(), Error> {
        use RunStatus::{InProgress, Queued, RequiresAction};
        let status = self.resource.status();
        if !matches!(status, Queued | InProgress | RequiresAction) {
            let status = status_name(status);
            return Err(Error::conflict(format!("Cannot cancel run with status '{status}'.")));
        }
        self.resource.status = RunStatus::Cancelling.into();
        self.due = now + self.steering.step;
        self.send("cancelling");
        self.wake.notify_one();
        Ok(())
    }

    /// The run is over, and with it what it was at.
    pub(super) fn end(&mut self, ending: Ending, messages: &mut [ThreadMessage], now: Duration) {
        let at = Some(stamp(now));
        let (step, cut) = match &ending {
            Ending::Completed => (RunStepStatus::Completed, None),
            Ending::Incomplete => (RunStepStatus::Completed, Some("max_tokens")),
            Ending::Failed(_) => (RunStepStatus::Failed, Some("run_failed")),
            Ending::Cancelled => (RunStepStatus::Cancelled, Some("run_cancelled")),
            Ending::Expired => (RunStepStatus::Expired, Some("run_expired")),
        };
        self.close_message(cut, messages, now);
        let error = if let Ending::Failed(error) = &ending { Some(error.clone()) } else { None };
        self.close_step(step, error, now);
        for step in &mut self.steps {
            step.expires_at = None;
        }
        let run = &mut self.resource;
        run.usage = Some(usage(self.spent));
        run.required_action = None;
        let expires_at = run.expires_at.take();
        let (status, event) = match ending {
            Ending::Completed => {
                run.completed_at = at;
                (RunStatus::Completed, "completed")
            }
            Ending::Incomplete => {
                let reason = "max_completion_tokens".to_owned();
                run.incomplete_details = Some(RunIncompleteDetails { reason, ..RunIncompleteDetails::default() });
                (RunStatus::Incomplete, "incomplete")
            }
            Ending::Failed(error) => {
                run.failed_at = at;
                run.last_error = Some(error);
                (RunStatus::Failed, "failed")
            }
            Ending::Cancelled => {
                run.cancelled_at = at;
                (RunStatus::Cancelled, "cancelled")
            }
            Ending::Expired => {
                run.expires_at = expires_at;
                (RunStatus::Expired, "expired")
            }
        };
        run.status = status.into();
        self.send(event);
        self.events.done();
    }

    fn require_action(&mut self) {
        let calls = self.steps.last().and_then(|step| step.step_details.as_ref()).map(|details| &details.tool_calls);
        let calls = calls.into_iter().flatten().map(|call| {
            let function = call.function.as_ref().map(|function| RequiredFunctionCall {
                name: function.name.clone(),
                arguments: function.arguments.clone(),
                ..RequiredFunctionCall::default()
            });
            RequiredToolCall { id: call.id.clone(), r#type: call.r#type, function, ..RequiredToolCall::default() }
        });
        let action = SubmitToolOutputsAction { tool_calls: calls.collect(), ..SubmitToolOutputsAction::default() };
        self.resource.required_action = Some(RequiredAction {
            r#type: RequiredActionType::SubmitToolOutputs.into(),
            submit_tool_outputs: Some(action),
            ..RequiredAction::default()
        });
        self.resource.status = RunStatus::RequiresAction.into();
        self.send("requires_action");
        self.events.done();
    }

    fn write(&mut self, kind: ContentPartType, text: String, messages: &mut Vec<ThreadMessage>, now: Duration) {
        let open = self.open_step().filter(|step| step.r#type() == RunStepType::MessageCreation);
        let created = open.and_then(|step| step.step_details.as_ref()?.message_creation.as_ref());
        let message_id = created.map(|created| created.message_id.clone());
        let message_id = message_id.unwrap_or_else(|| self.open_message(messages, now));
        let (value, refusal) = if kind == ContentPartType::Text { (Some(text), None) } else { (None, Some(text)) };
        let index = messages.iter_mut().rfind(|message| message.id == message_id).map_or(0, |message| {
            if message.content.last().is_none_or(|part| part.r#type() != kind) {
                message.content.push(ContentPart { r#type: kind.into(), ..ContentPart::default() });
            }
            let index = message.content.len() - 1;
            let part = &mut message.content[index];
            if let Some(value) = &value {
                part.text.get_or_insert_default().value.get_or_insert_default().push_str(value);
            }
            if let Some(refusal) = &refusal {
                part.refusal.get_or_insert_default().push_str(refusal);
            }
            index
        });
        let text = value.map(|value| TextContent { value: Some(value), ..TextContent::default() });
        let index = i32::try_from(index).ok();
        let part = ContentPartDelta { index, r#type: kind.into(), text, refusal, ..ContentPartDelta::default() };
        let body = MessageDeltaBody { content: vec![part], ..MessageDeltaBody::default() };
        let object = "thread.message.delta".to_owned();
        let delta = MessageDelta { id: message_id, object, delta: Some(body), ..MessageDelta::default() };
        self.events.send("thread.message.delta", &delta);
    }

    /// Begins a message in a step of its own, and gives its id.
    fn open_message(&mut self, messages: &mut Vec<ThreadMessage>, now: Duration) -> String {
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
        let created = MessageCreation { message_id: message.id.clone(), ..MessageCreation::default() };
        self.begin_step(RunStepType::MessageCreation, Some(created), now);
        self.events.send("thread.message.created", &message);
        self.events.send("thread.message.in_progress", &message);
        let id = message.id.clone();
        messages.push(message);
        id
    }

    fn call(&mut self, name: String, messages: &mut [ThreadMessage], now: Duration) {
        if self.open_step().is_none_or(|step| step.r#type() != RunStepType::ToolCalls) {
            self.close_message(None, messages, now);
            self.close_step(RunStepStatus::Completed, None, now);
            self.begin_step(RunStepType::ToolCalls, None, now);
        }
        let function = FunctionCall { name, arguments: Some(String::new()), ..FunctionCall::default() };
        let call =
            ToolCall { id: id::new("call"), r#type: ToolType::Function.into(), function: Some(function), ..ToolCall::default() };
        let Some(details) = self.open_step().and_then(|step| step.step_details.as_mut()) else { return };
        let index = i32::try_from(details.tool_calls.len()).ok();
        details.extra_json.clear();
        details.tool_calls.push(call.clone());
        self.send_step_delta(ToolCall { index, ..call });
    }

    fn arguments(&mut self, text: String) {
        let Some(details) = self.open_step().and_then(|step| step.step_details.as_mut()) else { return };
        let index = i32::try_from(details.tool_calls.len()).ok().map(|length| length - 1);
        let Some(function) = details.tool_calls.last_mut().and_then(|call| call.function.as_mut()) else { return };
        function.arguments.get_or_insert_default().push_str(&text);
        let function = FunctionCall { arguments: Some(text), ..FunctionCall::default() };
        let r#type = ToolType::Function.into();
        self.send_step_delta(ToolCall { index, r#type, function: Some(function), ..ToolCall::default() });
    }

    /// The step that is in progress: only the last one can be.
    fn open_step(&mut self) -> Option<&mut RunStep> {
        self.steps.last_mut().filter(|step| step.status() == RunStepStatus::InProgress)
    }

    fn begin_step(&mut self, kind: RunStepType, message_creation: Option<MessageCreation>, now: Duration) {
        // Services show the empty list of calls that are yet to come; a list in a field is only written when it has entries.
        let none_yet = if kind == RunStepType::ToolCalls { r#"{"tool_calls":[]}"# } else { "" };
        let step_details =
            StepDetails { r#type: kind.into(), message_creation, extra_json: none_yet.to_owned(), ..StepDetails::default() };
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

    fn close_step(&mut self, status: RunStepStatus, error: Option<RunError>, now: Duration) {
        let (at, reply) = (Some(stamp(now)), std::mem::take(&mut self.reply));
        let Some(step) = self.open_step() else { return };
        step.status = status.into();
        step.usage = Some(usage(reply));
        step.last_error = error;
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
    fn close_message(&mut self, cut: Option<&str>, messages: &mut [ThreadMessage], now: Duration) {
        let Some(details) = self.open_step().and_then(|step| step.step_details.as_ref()) else { return };
        let Some(created) = &details.message_creation else { return };
        // It is not there any more if a caller has deleted it.
        let Some(message) = messages.iter_mut().rfind(|message| message.id == created.message_id) else { return };
        let (status, event) = if let Some(reason) = cut {
            let reason = reason.to_owned();
            message.incomplete_details = Some(MessageIncompleteDetails { reason, ..MessageIncompleteDetails::default() });
            message.incomplete_at = Some(stamp(now));
            (MessageStatus::Incomplete, "thread.message.incomplete")
        } else {
            message.completed_at = Some(stamp(now));
            (MessageStatus::Completed, "thread.message.completed")
        };
        message.status = status.into();
        self.events.send(event, message);
    }

    fn send(&mut self, event: &str) {
        self.events.send(&format!("thread.run.{event}"), &self.resource);
    }

    fn send_step_delta(&mut self, call: ToolCall) {
        let Some(step) = self.steps.last() else { return };
        let details = StepDetails { r#type: RunStepType::ToolCalls.into(), tool_calls: vec![call], ..StepDetails::default() };
        let body = RunStepDeltaBody { step_details: Some(details), ..RunStepDeltaBody::default() };
        let object = "thread.run.step.delta".to_owned();
        let delta = RunStepDelta { id: step.id.clone(), object, delta: Some(body), ..RunStepDelta::default() };
        self.events.send("thread.run.step.delta", &delta);
    }
}

fn usage(tokens: Tokens) -> Usage {
    Usage {
        prompt_tokens: Some(tokens.prompt),
        completion_tokens: Some(tokens.completion),
        total_tokens: Some(tokens.prompt + tokens.completion),
        ..Usage::default()
    }
}
