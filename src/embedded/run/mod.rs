//! A run: its states and their events; what it writes is in `run/output.rs`.
//!
//! ```text
//! queued ── begin ──> in_progress ── calls ──> requires_action ── submit ──> queued
//!   any of these ── cancel ──> cancelling ──> cancelled      any of these ── time is over ──> expired
//!   in_progress ──> completed | incomplete | failed
//! ```
//!
//! Must hold: every change of a state sends its event, here and nowhere else; a run that has ended
//! never changes but for its metadata; after `done`, which follows `requires_action` and the end,
//! there are no events until somebody asks for more. No clock and no model in here: the time and
//! the pieces of the answer are handed in.

mod call_order;
mod output;

use std::{sync::Arc, time::Duration};

use call_order::CallOrder;
use output::usage;
use prost::Message as _;
use tokio::sync::Notify;

use super::{
    clock::stamp,
    error::Error,
    model::{End, ModelChunk, Tokens},
    steering::Steering,
    stream::Events,
};
use crate::v1::{
    self, ContentPartType, RequiredAction, RequiredActionType, RequiredFunctionCall,
    RequiredToolCall, RunError, RunIncompleteDetails, RunStatus, RunStep, RunStepStatus,
    RunStepType, SubmitToolOutputsAction, ThreadMessage, ToolOutput,
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
    /// The calls of this round.
    calls: CallOrder,
    /// The cost of the last reply, until its step is completed.
    reply: Tokens,
    /// The cost of all replies.
    pub(super) spent: Tokens,
}

impl Drop for Run {
    /// Nobody can see it any more: whoever drives it is to stop.
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// How a run ends.
#[derive(Debug)]
pub(super) enum Ending {
    Completed,
    /// What the model wrote is not whole, for this reason.
    Incomplete(End),
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
    status
        .as_str_name()
        .trim_start_matches("RUN_STATUS_")
        .to_ascii_lowercase()
}

impl Run {
    pub(super) fn new(
        resource: v1::Run,
        steering: Steering,
        events: Events,
        now: Duration,
    ) -> Self {
        let mut run = Self {
            resource,
            steps: Vec::new(),
            due: now + steering.step,
            steering,
            wake: Arc::default(),
            events,
            calls: CallOrder::default(),
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
        is_active(self.resource.status())
            && self
                .resource
                .expires_at
                .is_some_and(|expiry| expiry.seconds <= stamp(now).seconds)
    }

    pub(super) fn weight(&self) -> usize {
        self.resource.encoded_len()
            + self
                .steps
                .iter()
                .map(prost::Message::encoded_len)
                .sum::<usize>()
    }

    /// The model sets to work.
    pub(super) fn begin(&mut self, now: Duration) {
        self.resource.status = RunStatus::InProgress.into();
        self.resource.started_at = Some(stamp(now));
        self.due = now + self.steering.step;
        self.send("in_progress");
    }

    /// A piece of the model's reply has come.
    pub(super) fn take(
        &mut self,
        piece: ModelChunk,
        messages: &mut Vec<ThreadMessage>,
        now: Duration,
    ) {
        self.due = now + self.steering.piece;
        let held = if piece.is_last() {
            self.calls.end()
        } else {
            Vec::new()
        };
        for piece in held.into_iter().chain(self.calls.take(piece)) {
            self.take_in_order(piece, messages, now);
        }
    }

    fn take_in_order(
        &mut self,
        piece: ModelChunk,
        messages: &mut Vec<ThreadMessage>,
        now: Duration,
    ) {
        match piece {
            ModelChunk::Text(text) => self.write(ContentPartType::Text, text, messages, now),
            ModelChunk::Refusal(text) => self.write(ContentPartType::Refusal, text, messages, now),
            ModelChunk::Call { id, name } => self.call(id, name, messages, now),
            ModelChunk::Arguments { call, text } => self.arguments(call, text),
            ModelChunk::End(end, cost) => {
                self.reply = cost;
                self.spent.add(cost);
                let calls = self
                    .open_step()
                    .is_some_and(|step| step.r#type() == RunStepType::ToolCalls);
                match end {
                    End::Whole if calls => self.require_action(),
                    End::Whole => self.end(Ending::Completed, messages, now),
                    end => self.end(Ending::Incomplete(end), messages, now),
                }
            }
            ModelChunk::Failed(error) => self.end(Ending::Failed(error), messages, now),
        }
    }

    /// The outputs of this round's calls have come, and more events may be wanted.
    pub(super) fn submit(
        &mut self,
        outputs: Vec<ToolOutput>,
        events: Events,
        now: Duration,
    ) -> Result<(), Error> {
        let status = self.resource.status();
        if status != RunStatus::RequiresAction {
            let status = status_name(status);
            return Err(Error::conflict(format!(
                "Runs in status \"{status}\" do not accept tool outputs."
            )));
        }
        let Some(step) = self.open_step() else {
            return Err(Error::internal());
        };
        let expected: Vec<&str> = step
            .step_details
            .iter()
            .flat_map(|it| &it.tool_calls)
            .map(|call| call.id.as_str())
            .collect();
        let got: Vec<&str> = outputs
            .iter()
            .map(|output| output.tool_call_id.as_str())
            .collect();
        let (mut all, mut given) = (expected.clone(), got.clone());
        all.sort_unstable();
        given.sort_unstable();
        if all != given {
            let list = |ids: Vec<&str>| {
                ids.iter()
                    .map(|id| format!("'{id}'"))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let message = format!(
                "Expected tool outputs for call_ids [{}], got [{}]",
                list(expected),
                list(got)
            );
            return Err(Error::conflict(message));
        }
        if let Some(details) = &mut step.step_details {
            for output in outputs {
                let call = details
                    .tool_calls
                    .iter_mut()
                    .find(|call| call.id == output.tool_call_id);
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
            return Err(Error::conflict(format!(
                "Cannot cancel run with status '{status}'."
            )));
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
            Ending::Incomplete(End::Filtered) => (RunStepStatus::Completed, Some("content_filter")),
            Ending::Incomplete(_) => (RunStepStatus::Completed, Some("max_tokens")),
            Ending::Failed(_) => (RunStepStatus::Failed, Some("run_failed")),
            Ending::Cancelled => (RunStepStatus::Cancelled, Some("run_cancelled")),
            Ending::Expired => (RunStepStatus::Expired, Some("run_expired")),
        };
        self.close_message(cut, messages, now);
        let error = if let Ending::Failed(error) = &ending {
            Some(error.clone())
        } else {
            None
        };
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
            Ending::Incomplete(end) => {
                let reason = match end {
                    End::PromptTokens => "max_prompt_tokens",
                    // The schema has no word for it here, and has one on the message.
                    End::Filtered => "",
                    End::CompletionTokens | End::Whole => "max_completion_tokens",
                };
                run.incomplete_details = Some(RunIncompleteDetails {
                    reason: reason.to_owned(),
                    ..RunIncompleteDetails::default()
                });
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
        let calls = self
            .steps
            .last()
            .and_then(|step| step.step_details.as_ref())
            .map(|details| &details.tool_calls);
        let calls = calls.into_iter().flatten().map(|call| {
            let function = call.function.as_ref().map(|function| RequiredFunctionCall {
                name: function.name.clone(),
                arguments: function.arguments.clone(),
                ..RequiredFunctionCall::default()
            });
            RequiredToolCall {
                id: call.id.clone(),
                r#type: call.r#type,
                function,
                ..RequiredToolCall::default()
            }
        });
        let action = SubmitToolOutputsAction {
            tool_calls: calls.collect(),
            ..SubmitToolOutputsAction::default()
        };
        self.resource.required_action = Some(RequiredAction {
            r#type: RequiredActionType::SubmitToolOutputs.into(),
            submit_tool_outputs: Some(action),
            ..RequiredAction::default()
        });
        self.resource.status = RunStatus::RequiresAction.into();
        self.send("requires_action");
        self.events.done();
    }

    fn send(&mut self, event: &str) {
        self.events
            .send(&format!("thread.run.{event}"), &self.resource);
    }
}
