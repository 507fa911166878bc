//! The rows that are kept of a thread, and what transitions make of them.
//!
//! A transition (`thread`, `run`) takes the rows as they are and what happens. It changes nothing:
//! it returns [`Change`]s, and the store keeps their rows and publishes their events.
//!
//! Must hold: the data of an event are the row that it tells of, so that streams and polling cannot
//! disagree; rows change by [`Rows::put`] and nowhere else.

use std::time::Duration;

use prost::Message as _;

use super::{clock::stamp, error::Error, model::Tokens, steering::Steering};
use crate::v1::{
    self, ContentPart, MessageDelta, MessageDeltaBody, RunStatus, RunStep, RunStepDelta,
    RunStepDeltaBody, ThreadMessage, ThreadResource, ToolCall,
};

/// A row that changed, and the event that tells of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub(super) row: Row,
    /// The event's name; `None` if there is no event.
    pub(super) event: Option<&'static str>,
}

/// A row as it is now, or what is added to one.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Row {
    Thread(ThreadResource),
    Message(ThreadMessage),
    MessageDelta(MessageDelta),
    /// By its id.
    DeletedMessage(String),
    Run(Box<v1::Run>),
    /// Of the thread's last run, as are the two below.
    Progress(Progress),
    Step(Box<RunStep>),
    StepDelta(RunStepDelta),
}

impl Row {
    pub(super) fn with_event(self, name: &'static str) -> Change {
        let event = Some(name);
        Change { row: self, event }
    }

    pub(super) fn without_event(self) -> Change {
        let event = None;
        Change { row: self, event }
    }
}

/// All rows of a thread.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) resource: ThreadResource,
    /// In the order of their creation.
    pub(super) messages: Vec<ThreadMessage>,
    /// In the order of their creation: only the last one can be active.
    pub(super) runs: Vec<Run>,
}

/// A run with its steps.
#[derive(Debug, Default, Clone)]
pub(super) struct Run {
    pub(super) resource: v1::Run,
    pub(super) steps: Vec<RunStep>,
    pub(super) progress: Progress,
}

/// What callers do not see of a run.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Progress {
    /// When it is to be moved on.
    pub(super) due: Duration,
    /// The cost of the last reply, until its step is completed.
    pub(super) reply: Tokens,
    /// The cost of all replies.
    pub(super) spent: Tokens,
}

/// Whether a run in this state holds its thread.
pub(super) fn is_active(status: RunStatus) -> bool {
    use RunStatus::{Cancelling, InProgress, Queued, RequiresAction};
    matches!(status, Queued | InProgress | RequiresAction | Cancelling)
}

impl Rows {
    /// The run that holds the thread, if there is one.
    pub(super) fn active_run(&self) -> Option<&Run> {
        let last = self.runs.last();
        last.filter(|run| is_active(run.resource.status()))
    }

    pub(super) fn run(&self, id: &str) -> Result<&Run, Error> {
        let run = self.runs.iter().find(|run| run.resource.id == id);
        run.ok_or_else(|| Error::not_found("run", id))
    }

    pub(super) fn message(&self, id: &str) -> Result<&ThreadMessage, Error> {
        let message = self.messages.iter().find(|message| message.id == id);
        message.ok_or_else(|| Error::not_found("message", id))
    }

    /// How many bytes they are, as protobuf messages.
    pub(super) fn weight(&self) -> usize {
        let messages: usize = self.messages.iter().map(prost::Message::encoded_len).sum();
        let runs = self.runs.iter().map(|run| {
            let steps: usize = run.steps.iter().map(prost::Message::encoded_len).sum();
            run.resource.encoded_len() + steps
        });
        self.resource.encoded_len() + messages + runs.sum::<usize>()
    }

    /// Keeps a row.
    pub(super) fn put(&mut self, row: Row) {
        match (row, self.runs.last_mut()) {
            (Row::Thread(row), _) => self.resource = row,
            (Row::Message(row), _) => upsert(&mut self.messages, row, |message| &message.id),
            (Row::MessageDelta(MessageDelta { id, delta, .. }), _) => {
                // It is not there any more if a caller has deleted it.
                let message = self.messages.iter_mut().rfind(|message| message.id == id);
                message.zip(delta).into_iter().for_each(add_to_message);
            }
            (Row::DeletedMessage(id), _) => self.messages.retain(|message| message.id != id),
            (Row::Run(row), _) => {
                match self.runs.iter_mut().rfind(|run| run.resource.id == row.id) {
                    Some(run) => run.resource = *row,
                    None => self.runs.push(Run {
                        resource: *row,
                        ..Run::default()
                    }),
                }
            }
            (Row::Progress(progress), Some(run)) => run.progress = progress,
            (Row::Step(row), Some(run)) => upsert(&mut run.steps, *row, |step| &step.id),
            (Row::StepDelta(RunStepDelta { id, delta, .. }), Some(run)) => {
                let step = run.steps.iter_mut().rfind(|step| step.id == id);
                step.zip(delta).into_iter().for_each(add_to_step);
            }
            // There is no run that it could be of.
            (Row::Progress(_) | Row::Step(_) | Row::StepDelta(_), None) => {}
        }
    }
}

/// Puts a row in the place of the one that it is a newer form of, or behind all others.
fn upsert<T>(rows: &mut Vec<T>, row: T, id: impl Fn(&T) -> &str) {
    match rows.iter().rposition(|it| id(it) == id(&row)) {
        Some(at) => rows[at] = row,
        None => rows.push(row),
    }
}

fn add_to_message((message, delta): (&mut ThreadMessage, MessageDeltaBody)) {
    for piece in delta.content {
        let index = usize::try_from(piece.index()).unwrap_or_default();
        if index >= message.content.len() {
            message.content.push(ContentPart {
                r#type: piece.r#type,
                ..ContentPart::default()
            });
        }
        let Some(part) = message.content.get_mut(index) else {
            continue;
        };
        if let Some(value) = piece.text.and_then(|text| text.value) {
            let text = part.text.get_or_insert_default();
            text.value.get_or_insert_default().push_str(&value);
        }
        if let Some(refusal) = piece.refusal {
            part.refusal.get_or_insert_default().push_str(&refusal);
        }
    }
}

fn add_to_step((step, delta): (&mut RunStep, RunStepDeltaBody)) {
    let Some((details, delta)) = step.step_details.as_mut().zip(delta.step_details) else {
        return;
    };
    for piece in delta.tool_calls {
        let index = usize::try_from(piece.index()).unwrap_or_default();
        if let Some(call) = details.tool_calls.get_mut(index) {
            let function = call.function.as_mut().zip(piece.function);
            if let Some((function, more)) = function {
                let arguments = function.arguments.get_or_insert_default();
                arguments.push_str(more.arguments());
            }
        } else {
            // It said that there are none yet.
            details.extra_json.clear();
            let index = None;
            details.tool_calls.push(ToolCall { index, ..piece });
        }
    }
}

impl Run {
    /// Whether its time is over.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        let expiry = self.resource.expires_at;
        is_active(self.resource.status())
            && expiry.is_some_and(|expiry| expiry.seconds <= stamp(now).seconds)
    }

    /// What its metadata asks for.
    pub(super) fn steering(&self) -> Steering {
        // What cannot be read was refused when it was sent.
        Steering::of(&self.resource.metadata).unwrap_or_default()
    }
}
