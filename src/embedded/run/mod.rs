//! A run: its states and their events; what it writes is in `run/output.rs`.
//!
//! ```text
//! queued ── begin ──> in_progress ── calls ──> requires_action ── submit ──> queued
//!   any of these ── cancel ──> cancelling ──> cancelled      any of these ── time is over ──> expired
//!   in_progress ──> completed | incomplete | failed
//! ```
//!
//! Must hold: every change of a state has its event; a run that has ended never changes but for its
//! metadata. No clock and no store in here: the time, the rows and the pieces of the answer are
//! handed in, and new ids come from `id`.

mod create;
mod output;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(super) use create::create;
use output::{closed, usage};

use super::{
    clock::stamp,
    error::Error,
    model::{End, ModelChunk, Tokens},
    rows::{Change, Progress, Row, Run},
};
use crate::v1::{
    self, ContentPartType, RequiredAction, RequiredActionType, RequiredFunctionCall,
    RequiredToolCall, RunError, RunIncompleteDetails, RunStatus, RunStep, RunStepStatus,
    SubmitToolOutputsAction, ThreadMessage, ToolOutput,
};

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

/// A status as JSON has it.
pub(super) fn status_name(status: RunStatus) -> String {
    status
        .as_str_name()
        .trim_start_matches("RUN_STATUS_")
        .to_ascii_lowercase()
}

impl Run {
    /// The model sets to work.
    pub(super) fn begin(&self, now: Duration) -> Vec<Change> {
        let run = v1::Run {
            status: RunStatus::InProgress.into(),
            started_at: Some(stamp(now)),
            ..self.resource.clone()
        };
        vec![run_change("thread.run.in_progress", run), self.rest(now)]
    }

    /// A piece of the model's reply has come. Those of calls come in the order of the calls.
    pub(super) fn take(
        &self,
        piece: ModelChunk,
        messages: &[ThreadMessage],
        now: Duration,
    ) -> Vec<Change> {
        let due = now + self.steering().piece;
        let mut progress = Progress {
            due,
            ..self.progress
        };
        let mut changes = match piece {
            ModelChunk::Text(text) => self.write(ContentPartType::Text, text, messages, now),
            ModelChunk::Refusal(text) => self.write(ContentPartType::Refusal, text, messages, now),
            ModelChunk::Call { id, name } => self.call(id, name, messages, now),
            ModelChunk::Arguments { call, text } => self.arguments(call, text),
            ModelChunk::End(end, cost) => {
                progress.reply = cost;
                progress.spent.add(cost);
                let run = Self {
                    progress,
                    ..self.clone()
                };
                match (end, run.open_calls()) {
                    (End::Whole, Some(step)) => vec![run.require_action(step)],
                    (End::Whole, None) => run.end(Ending::Completed, messages, now),
                    (end, _) => run.end(Ending::Incomplete(end), messages, now),
                }
            }
            ModelChunk::Failed(error) => self.end(Ending::Failed(error), messages, now),
        };
        changes.push(Row::Progress(progress).without_event());
        changes
    }

    /// The outputs of this round's calls have come.
    pub(super) fn submit(
        &self,
        outputs: Vec<ToolOutput>,
        now: Duration,
    ) -> Result<Vec<Change>, Error> {
        let status = self.resource.status();
        if status != RunStatus::RequiresAction {
            let status = status_name(status);
            return Err(Error::conflict(format!(
                "Runs in status \"{status}\" do not accept tool outputs."
            )));
        }
        let Some(mut step) = self.close_step(RunStepStatus::Completed, None, now) else {
            return Err(Error::internal());
        };
        give(&mut step, outputs)?;
        let run = v1::Run {
            status: RunStatus::Queued.into(),
            required_action: None,
            ..self.resource.clone()
        };
        let progress = Progress {
            due: now + self.steering().step,
            reply: Tokens::default(),
            ..self.progress
        };
        Ok(vec![
            closed(step),
            run_change("thread.run.queued", run),
            Row::Progress(progress).without_event(),
        ])
    }

    /// Somebody wants the run to stop.
    pub(super) fn cancel(&self, now: Duration) -> Result<Vec<Change>, Error> {
        use RunStatus::{InProgress, Queued, RequiresAction};
        let status = self.resource.status();
        if !matches!(status, Queued | InProgress | RequiresAction) {
            let status = status_name(status);
            return Err(Error::conflict(format!(
                "Cannot cancel run with status '{status}'."
            )));
        }
        let run = v1::Run {
            status: RunStatus::Cancelling.into(),
            ..self.resource.clone()
        };
        Ok(vec![
            run_change("thread.run.cancelling", run),
            self.rest(now),
        ])
    }

    /// The run is over, and with it what it was at.
    pub(super) fn end(
        &self,
        ending: Ending,
        messages: &[ThreadMessage],
        now: Duration,
    ) -> Vec<Change> {
        let at = Some(stamp(now));
        let (step, cut) = match &ending {
            Ending::Completed => (RunStepStatus::Completed, None),
            Ending::Incomplete(End::Filtered) => (RunStepStatus::Completed, Some("content_filter")),
            Ending::Incomplete(_) => (RunStepStatus::Completed, Some("max_tokens")),
            Ending::Failed(_) => (RunStepStatus::Failed, Some("run_failed")),
            Ending::Cancelled => (RunStepStatus::Cancelled, Some("run_cancelled")),
            Ending::Expired => (RunStepStatus::Expired, Some("run_expired")),
        };
        let error = if let Ending::Failed(error) = &ending {
            Some(error.clone())
        } else {
            None
        };
        let mut changes = Vec::from_iter(self.close_message(cut, messages, now));
        let mut steps = self.steps.clone();
        if let Some(step) = self.close_step(step, error, now) {
            changes.push(closed(step.clone()));
            steps.pop();
            steps.push(step);
        }
        changes.extend(steps.into_iter().map(|step| {
            let expires_at = None;
            Row::Step(Box::new(RunStep { expires_at, ..step })).without_event()
        }));
        let mut run = self.resource.clone();
        run.usage = Some(usage(self.progress.spent));
        run.required_action = None;
        let expires_at = run.expires_at.take();
        let (status, event) = match ending {
            Ending::Completed => {
                run.completed_at = at;
                (RunStatus::Completed, "thread.run.completed")
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
                (RunStatus::Incomplete, "thread.run.incomplete")
            }
            Ending::Failed(error) => {
                run.failed_at = at;
                run.last_error = Some(error);
                (RunStatus::Failed, "thread.run.failed")
            }
            Ending::Cancelled => {
                run.cancelled_at = at;
                (RunStatus::Cancelled, "thread.run.cancelled")
            }
            Ending::Expired => {
                run.expires_at = expires_at;
                (RunStatus::Expired, "thread.run.expired")
            }
        };
        run.status = status.into();
        changes.push(run_change(event, run));
        changes
    }

    /// The outputs of the step's calls are wanted.
    fn require_action(&self, step: &RunStep) -> Change {
        let details = step.step_details.as_ref();
        let calls = details.map(|details| &details.tool_calls);
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
        let action = RequiredAction {
            r#type: RequiredActionType::SubmitToolOutputs.into(),
            submit_tool_outputs: Some(action),
            ..RequiredAction::default()
        };
        let run = v1::Run {
            status: RunStatus::RequiresAction.into(),
            required_action: Some(action),
            ..self.resource.clone()
        };
        run_change("thread.run.requires_action", run)
    }

    /// Nothing happens to it for the pause before a step.
    fn rest(&self, now: Duration) -> Change {
        let due = now + self.steering().step;
        let progress = self.progress;
        Row::Progress(Progress { due, ..progress }).without_event()
    }
}

fn run_change(event: &'static str, run: v1::Run) -> Change {
    Row::Run(Box::new(run)).with_event(event)
}

/// Gives the calls of a step their outputs, which have to be those of all of them.
fn give(step: &mut RunStep, outputs: Vec<ToolOutput>) -> Result<(), Error> {
    let calls = step.step_details.iter_mut();
    let mut calls: Vec<_> = calls.flat_map(|it| &mut it.tool_calls).collect();
    let expected: Vec<_> = calls.iter().map(|call| &*call.id).collect();
    let got: Vec<_> = outputs.iter().map(|output| &*output.tool_call_id).collect();
    let (mut all, mut given) = (expected.clone(), got.clone());
    all.sort_unstable();
    given.sort_unstable();
    if all != given {
        let list = |ids: Vec<&str>| {
            let ids: Vec<_> = ids.iter().map(|id| format!("'{id}'")).collect();
            ids.join(", ")
        };
        let (expected, got) = (list(expected), list(got));
        return Err(Error::conflict(format!(
            "Expected tool outputs for call_ids [{expected}], got [{got}]"
        )));
    }
    for ToolOutput {
        tool_call_id,
        output,
        ..
    } in outputs
    {
        let call = calls.iter_mut().find(|call| call.id == tool_call_id);
        if let Some(function) = call.and_then(|call| call.function.as_mut()) {
            function.output = Some(output.unwrap_or_default());
        }
    }
    Ok(())
}
