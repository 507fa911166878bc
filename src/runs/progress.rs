//! What a stream has sent so far.
//!
//! It answers three questions: how to resume (a broken stream says so in its `ErrorInfo`), whether
//! the run has come to an end or waits for somebody, and, after a cut, which steps and messages
//! were not sent whole.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use indexmap::IndexSet;

use super::{
    event::StreamedEvent,
    fetch::{Messages, Snapshot, has_ended, message_id},
    is_settled,
    log::BoundPosition,
};
use crate::error::Resume;
use crate::v1::{
    Gap, MessageStatus, Run, RunEvent, RunEventType, RunStatus, RunStep, RunStepStatus,
    ThreadMessage, run_event::Payload,
};

/// A [`Resume`] that both a stream and whoever may cut it can see.
#[derive(Debug, Clone, Default)]
pub struct SharedResume {
    progress: Arc<Mutex<Reached>>,
    /// Once the call was ended for its stream: whether the run is left without a reader. The first
    /// word counts: what is dropped later is dropped for the same reason.
    abandoned: Arc<OnceLock<bool>>,
    /// Set once it is known that the call begins with no write.
    reads: Arc<OnceLock<()>>,
}

/// How far a stream has come.
#[derive(Debug, Default)]
struct Reached {
    /// Its position is behind `delta`, if there is one.
    resume: Resume,
    /// The position of the last event, if that was a delta.
    delta: Option<BoundPosition>,
}

impl SharedResume {
    /// How to resume the stream as far as it has come.
    pub fn get(&self) -> Resume {
        let reached = self.lock();
        let mut resume = reached.resume.clone();
        if let Some(position) = reached.delta {
            resume.position = position.to_string();
        }
        resume
    }

    /// An event that a progress [knows of](Progress::will_send) is sent now.
    pub(super) fn sent(&self, event: &StreamedEvent) {
        let reached = &mut *self.lock();
        reached.resume.last_event = event.kind();
        match event {
            StreamedEvent::Delta(delta) => {
                if let Some(position) = delta.position() {
                    reached.delta = Some(position);
                }
            }
            StreamedEvent::Message(event) => {
                if !event.position.is_empty() {
                    event.position.clone_into(&mut reached.resume.position);
                    reached.delta = None;
                }
            }
        }
    }

    /// The reader left, or its own deadline passed: nobody goes on with the run.
    pub fn abandon(&self) -> Resume {
        self.end(|_| true)
    }

    /// The gateway ends the stream of a reader that is there: the run is the reader's to go on
    /// with, if it can be told which one that is.
    pub fn hand_over(&self) -> Resume {
        self.end(|resume| resume.run_id.is_empty())
    }

    fn end(&self, abandoned: impl FnOnce(&Resume) -> bool) -> Resume {
        let resume = self.get();
        self.abandoned.get_or_init(|| abandoned(&resume));
        resume
    }

    /// The call begins with no write: it may be made again, however far it has come.
    pub(super) fn begins_with_a_read(&self) {
        self.reads.get_or_init(|| ());
    }

    /// Whether it is known that the call begins with no write.
    pub fn is_read(&self) -> bool {
        self.reads.get().is_some()
    }

    /// Of the same call, with a progress of its own: what is recorded runs ahead of its reader.
    pub(super) fn ahead(&self) -> Self {
        Self {
            progress: Arc::default(),
            ..self.clone()
        }
    }

    /// It is known which run this is about.
    pub(super) fn names_run(&self) -> bool {
        !self.lock().resume.run_id.is_empty()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.get() == Some(&true)
    }

    fn lock(&self) -> MutexGuard<'_, Reached> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was sent.
#[derive(Debug, Default, Clone)]
pub(super) struct Progress {
    resume: SharedResume,
    /// The type of the event that was sent last, as it stands in `resume`, which is not looked at
    /// for every delta of a text.
    last_event: RunEventType,
    /// The status of the run, as far as it was told.
    status: RunStatus,
    /// There was a gap, and all behind it came from polling.
    is_polled: bool,
    /// Steps and messages that were sent whole, or named as missed, by id.
    whole: HashSet<String>,
    begun: Box<Begun>,
}

/// Ids of which something was sent, in this order. Boxed, since a progress lies in every stream.
#[derive(Debug, Default, Clone)]
struct Begun {
    steps: IndexSet<String>,
    messages: IndexSet<String>,
}

impl Progress {
    /// Nothing was sent. Of `thread_id` and `run_id` either may be empty, if it is not known yet.
    pub(super) fn new(resume: SharedResume, thread_id: &str, run_id: &str) -> Self {
        let last_event = resume.lock().resume.last_event;
        let progress = Self {
            resume,
            last_event,
            ..Self::default()
        };
        progress.knows(thread_id, run_id);
        progress
    }

    /// The same, of a call that may be ended from outside.
    pub(super) fn of_call(self, call: &SharedResume) -> Self {
        let resume = SharedResume {
            progress: Arc::clone(&self.resume.progress),
            ..call.clone()
        };
        Self { resume, ..self }
    }

    pub(super) fn resume(&self) -> Resume {
        self.resume.get()
    }

    pub(super) fn shared(&self) -> SharedResume {
        self.resume.clone()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.resume.is_abandoned()
    }

    /// What an event tells was told before.
    pub(super) fn has(&self, event: &RunEvent) -> bool {
        match &event.payload {
            Some(Payload::Run(run)) => {
                run.status() == self.status && self.status != RunStatus::Unspecified
            }
            Some(Payload::RunStep(step)) => self.whole.contains(&step.id),
            _ => false,
        }
    }

    /// The run's last state was sent, or one in which somebody else has to act: a stream may end
    /// here.
    pub(super) fn terminal_sent(&self) -> bool {
        is_settled(self.status)
    }

    /// The run's last state was sent.
    pub(super) fn is_terminal(&self) -> bool {
        self.status.is_terminal()
    }

    /// The run goes on: its last state that was sent is not its state any more.
    pub(super) fn resumed(&mut self) {
        self.status = RunStatus::Unspecified;
    }

    /// There was a gap, and all behind it came from polling. Whoever goes on has missed no text that
    /// this gap does not stand for.
    pub(super) fn is_polled(&self) -> bool {
        self.is_polled
    }

    /// Notes an event that is sent now. It has no position: none that has is the work of a source.
    pub(super) fn sent(&mut self, event: &RunEvent) {
        self.told(event);
        let kind = event.r#type();
        if self.last_event != kind {
            self.last_event = kind;
            self.resume.lock().resume.last_event = kind;
        }
    }

    /// Notes what an event tells that [will be sent](SharedResume::sent).
    pub(super) fn will_send(&mut self, event: &StreamedEvent) {
        match event {
            StreamedEvent::Message(event) => self.told(event),
            StreamedEvent::Delta(delta) => {
                self.is_polled = false;
                let begun = if delta.kind() == RunEventType::ThreadMessageDelta {
                    &mut self.begun.messages
                } else {
                    &mut self.begun.steps
                };
                let is_known = begun
                    .last()
                    .is_some_and(|last| last.as_bytes() == delta.id());
                if !is_known {
                    note(begun, &String::from_utf8_lossy(delta.id()));
                }
            }
        }
    }

    /// Notes what an event tells.
    fn told(&mut self, event: &RunEvent) {
        use RunEventType as T;
        let kind = event.r#type();
        self.is_polled = kind == T::Gap || (self.is_polled && event.synthesized);
        match &event.payload {
            Some(Payload::Run(run)) => {
                self.status = run.status();
                self.knows(&run.thread_id, &run.id);
            }
            Some(Payload::RunStep(step)) => {
                self.knows(&step.thread_id, &step.run_id);
                let ended = matches!(
                    kind,
                    T::ThreadRunStepCompleted
                        | T::ThreadRunStepFailed
                        | T::ThreadRunStepCancelled
                        | T::ThreadRunStepExpired
                );
                if ended {
                    self.whole.insert(step.id.clone());
                } else {
                    note(&mut self.begun.steps, &step.id);
                }
            }
            Some(Payload::Message(message)) => {
                self.knows(&message.thread_id, &message.run_id);
                if matches!(kind, T::ThreadMessageCompleted | T::ThreadMessageIncomplete) {
                    self.whole.insert(message.id.clone());
                } else {
                    note(&mut self.begun.messages, &message.id);
                }
            }
            Some(Payload::RunStepDelta(delta)) => note(&mut self.begun.steps, &delta.id),
            Some(Payload::MessageDelta(delta)) => note(&mut self.begun.messages, &delta.id),
            Some(Payload::Thread(thread)) => self.knows(&thread.id, ""),
            Some(Payload::Gap(gap)) => self
                .whole
                .extend(gap.run_step_ids.iter().chain(&gap.message_ids).cloned()),
            _ => {}
        }
    }

    /// Notes which run this is about, as far as is known.
    pub(super) fn knows(&self, thread_id: &str, run_id: &str) {
        let resume = &mut self.resume.lock().resume;
        for (known, id) in [
            (&mut resume.thread_id, thread_id),
            (&mut resume.run_id, run_id),
        ] {
            if known != id && !id.is_empty() {
                id.clone_into(known);
            }
        }
    }

    /// Steps and messages that were sent whole, or named as missed.
    pub(super) fn whole(&self) -> impl Iterator<Item = &String> {
        self.whole.iter()
    }

    /// What was missed of a run that may go on: steps and messages that have ended, and what was
    /// begun. What is at work and was not begun here comes later, as it ends.
    pub(super) fn missed(&self, snapshot: &Snapshot) -> Gap {
        let missing = |id: &String| !id.is_empty() && !self.whole.contains(id);
        let ended: Vec<_> = snapshot.steps().iter().filter(|it| has_ended(it)).collect();
        let is_over = snapshot.run.status().is_terminal();
        let run_step_ids = ended.iter().map(|step| step.id.clone());
        let begun_steps = self.begun.steps.iter().filter(|_| is_over).cloned();
        let message_ids = ended.iter().filter_map(|step| message_id(step));
        let listed = snapshot.messages.iter().flat_map(Messages::ids);
        let message_ids = message_ids.map(str::to_owned).chain(listed);
        Gap {
            run_step_ids: once(run_step_ids.chain(begun_steps).filter(missing)),
            message_ids: once(
                message_ids
                    .chain(self.begun.messages.iter().cloned())
                    .filter(missing),
            ),
        }
    }

    /// What of a run was not sent whole, by its steps, by its messages if they were read, and by
    /// what was begun, since some services list no steps; `None` if nothing is missing. A step that
    /// is open while the run waits for outputs is not missing.
    pub(super) fn gap(&self, snapshot: &Snapshot) -> Option<Gap> {
        let missing = |id: &String| !id.is_empty() && !self.whole.contains(id);
        let is_over = snapshot.run.status().is_terminal();
        let steps = snapshot.steps();
        let begun_steps = self.begun.steps.iter().filter(|_| is_over).cloned();
        let run_step_ids = steps.iter().filter(|step| has_ended(step));
        let run_step_ids = run_step_ids.map(|step| step.id.clone());
        let message_ids = steps.iter().filter_map(message_id).map(str::to_owned);
        let listed = snapshot.messages.iter().flat_map(Messages::ids);
        let begun_messages = self.begun.messages.iter().cloned();
        let message_ids = message_ids.chain(listed).chain(begun_messages);
        let gap = Gap {
            run_step_ids: once(run_step_ids.chain(begun_steps).filter(missing)),
            message_ids: once(message_ids.filter(missing)),
        };
        (gap != Gap::default()).then_some(gap)
    }
}

/// Notes an id behind those that came before, unless it is the last one again, as it mostly is.
fn note(ids: &mut IndexSet<String>, id: &str) {
    if ids.last().is_none_or(|last| last != id) && !ids.contains(id) {
        ids.insert(id.to_owned());
    }
}

/// Each id where it came first.
fn once(ids: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    ids.filter(|id| seen.insert(id.clone())).collect()
}

/// The event that tells of a run's state.
pub(super) fn run_event(run: Box<Run>) -> RunEvent {
    use {RunEventType as T, RunStatus as S};
    let kind = match run.status() {
        S::Unspecified => T::Unspecified,
        S::Queued => T::ThreadRunQueued,
        S::InProgress => T::ThreadRunInProgress,
        S::RequiresAction => T::ThreadRunRequiresAction,
        S::Cancelling => T::ThreadRunCancelling,
        S::Cancelled => T::ThreadRunCancelled,
        S::Failed => T::ThreadRunFailed,
        S::Completed => T::ThreadRunCompleted,
        S::Incomplete => T::ThreadRunIncomplete,
        S::Expired => T::ThreadRunExpired,
    };
    synthesized(kind, Payload::Run(run))
}

/// The event that tells of a step's state.
pub(super) fn step_event(step: RunStep) -> RunEvent {
    use {RunEventType as T, RunStepStatus as S};
    let kind = match step.status() {
        S::Unspecified => T::Unspecified,
        S::InProgress => T::ThreadRunStepInProgress,
        S::Cancelled => T::ThreadRunStepCancelled,
        S::Failed => T::ThreadRunStepFailed,
        S::Completed => T::ThreadRunStepCompleted,
        S::Expired => T::ThreadRunStepExpired,
    };
    synthesized(kind, Payload::RunStep(Box::new(step)))
}

/// The event that tells of a message that is whole.
pub(super) fn message_event(message: ThreadMessage) -> RunEvent {
    let kind = if message.status() == MessageStatus::Incomplete {
        RunEventType::ThreadMessageIncomplete
    } else {
        RunEventType::ThreadMessageCompleted
    };
    synthesized(kind, Payload::Message(Box::new(message)))
}

/// The event that names what was missed.
pub(super) fn gap_event(gap: Gap) -> RunEvent {
    synthesized(RunEventType::Gap, Payload::Gap(Box::new(gap)))
}

/// An event of the gateway's own making.
pub(super) fn synthesized(kind: RunEventType, payload: Payload) -> RunEvent {
    RunEvent {
        r#type: kind.into(),
        payload: Some(payload),
        synthesized: true,
        position: String::new(),
    }
}
