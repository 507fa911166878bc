//! One run, from its events to the screen, and what Ctrl-C does to it.

use std::{io, pin::pin, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval, sleep},
};
use tonic::Status;

use super::{
    ended::{Ended, Failure},
    gateway::Gateway,
    view::{Timing, View},
};
use crate::{
    config::CallerArgs,
    resuming::{ResumingStream, is_interruption, pause},
    v1::{
        MessageContent, MessageInput, MessageRole, ResumeRunRequest, RunStatus, ThreadAndRunSpec,
        ThreadSpec,
    },
};

/// How often the time on the screen is renewed.
const TICK: Duration = Duration::from_millis(200);

/// How often in a row waiting for others begins again, at most.
const MAX_RETRIES: u32 = 8;

/// Why a session ended before its run did.
pub(super) enum Stop {
    /// Ctrl-C left.
    Left,
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What Ctrl-C does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnInterrupt {
    Leave,
    Cancel,
    /// It was pressed: the run is cancelled once its name is known.
    Cancelling,
}

/// One run on the screen.
pub(super) struct Session {
    gateway: Gateway,
    view: View,
    ticks: Interval,
    interrupts: Signal,
    terminations: Signal,
    on_interrupt: OnInterrupt,
    cancel: JoinSet<Result<(), Failure>>,
}

impl Session {
    pub(super) fn new(gateway: &Gateway, args: &CallerArgs, timing: Timing) -> io::Result<Self> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            gateway: gateway.clone(),
            view: View::new(timing),
            ticks,
            interrupts: signal(SignalKind::interrupt())?,
            terminations: signal(SignalKind::terminate())?,
            on_interrupt: if args.cancel_on_interrupt {
                OnInterrupt::Cancel
            } else {
                OnInterrupt::Leave
            },
            cancel: JoinSet::new(),
        })
    }

    /// Asks the question on a thread of its own, and shows the run until it is over or requires
    /// action. Without an assistant one is made, of this model, and removed.
    pub(super) async fn ask(
        &mut self,
        question: String,
        assistant: Option<String>,
        model: String,
    ) -> Result<(), Stop> {
        if let Some(assistant) = assistant {
            return self.ask_assistant(question, assistant).await;
        }
        let gateway = self.gateway.clone();
        let made = self
            .unless_stopped(gateway.create_assistant(model))
            .await??;
        let stopped = self.ask_assistant(question, made.clone()).await;
        self.clean_up(made).await?;
        stopped
    }

    async fn ask_assistant(&mut self, question: String, assistant: String) -> Result<(), Stop> {
        let gateway = self.gateway.clone();
        // Boxed: it is large.
        let creating = Box::pin(gateway.create_run(question_to(assistant, question)));
        let mut events = self.unless_stopped(creating).await?;
        self.follow(&mut events).await
    }

    /// Removes the assistant that was made for the run, unless the run needs it.
    async fn clean_up(&mut self, assistant: String) -> Result<(), Stop> {
        let kept = if self.view.may_go_on() {
            "the run may go on".to_owned()
        } else {
            let gateway = self.gateway.clone();
            let deleting = gateway.delete_assistant(assistant.clone());
            match self.unless_stopped(deleting).await? {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            }
        };
        let line = format!("the assistant {assistant} is left: {kept}");
        Ok(self.view.note(&line)?)
    }

    /// Shows the run until it is terminal. While it requires action somebody else has to act.
    pub(super) async fn watch(&mut self, thread_id: String, run_id: String) -> Result<(), Stop> {
        self.view.name_run(&thread_id, &run_id);
        let gateway = self.gateway.clone();
        let mut resume = ResumeRunRequest {
            thread_id,
            run_id,
            ..ResumeRunRequest::default()
        };
        loop {
            let mut events = gateway.resume(resume);
            self.follow(&mut events).await?;
            resume = events.resume_request().clone();
            if self.view.status() != RunStatus::RequiresAction {
                return Ok(());
            }
            self.wait_for_others(&resume).await?;
            // The log of a run may be behind its state: it is asked at this pace.
            self.unless_stopped(sleep(TICK)).await?;
        }
    }

    /// How it ended, once all that can be said is said.
    pub(super) fn end(mut self, stopped: Result<(), Stop>) -> Result<Ended, Failure> {
        let ended = match stopped {
            Ok(()) => {
                self.view.conclude()?;
                Ok(Ended::of(self.view.status()))
            }
            Err(Stop::Left) => {
                self.view.note(&match self.view.run_name() {
                    Some((thread, run)) => {
                        format!("left; the run goes on: runs-gateway watch {thread} {run}")
                    }
                    None => "left; what was asked for may have been made".to_owned(),
                })?;
                Ok(Ended::Left)
            }
            Err(Stop::Failed(failure)) => Err(failure),
        };
        self.view.close()?;
        ended
    }

    /// Shows the events to their end.
    async fn follow(&mut self, events: &mut ResumingStream) -> Result<(), Stop> {
        loop {
            let event = self.unless_stopped(events.message()).await?;
            let Some(event) = event.map_err(|status| self.broken(&status))? else {
                return Ok(());
            };
            self.view.heed(&event)?;
            self.cancel_if_asked();
        }
    }

    /// Waits until the run requires action no more.
    async fn wait_for_others(&mut self, resume: &ResumeRunRequest) -> Result<(), Stop> {
        let gateway = self.gateway.clone();
        let mut retries = 0;
        loop {
            let waiting = gateway.wait_for_others(&resume.thread_id, &resume.run_id);
            let Err(status) = self.unless_stopped(waiting).await? else {
                return Ok(());
            };
            if !is_interruption(&status) || retries == MAX_RETRIES {
                return Err(self.broken(&status).into());
            }
            self.unless_stopped(sleep(pause(&status, retries))).await?;
            retries += 1;
        }
    }

    /// Waits for the work; meanwhile the time goes on, and Ctrl-C is heeded.
    async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = self.ticks.tick() => self.view.tick()?,
                Some(cancelled) = self.cancel.join_next() => {
                    if let Ok(Err(error)) = cancelled {
                        self.view.note(&format!("the run could not be cancelled: {error}"))?;
                    }
                }
                _ = self.interrupts.recv() => self.interrupted()?,
                _ = self.terminations.recv() => return Err(Stop::Left),
            }
        }
    }

    fn interrupted(&mut self) -> Result<(), Stop> {
        if self.on_interrupt != OnInterrupt::Cancel {
            return Err(Stop::Left);
        }
        self.on_interrupt = OnInterrupt::Cancelling;
        self.view.note("cancelling the run; Ctrl-C again leaves")?;
        self.cancel_if_asked();
        Ok(())
    }

    /// Cancels the run once, if that was asked for and its name is known by now.
    fn cancel_if_asked(&mut self) {
        if self.on_interrupt == OnInterrupt::Cancelling
            && let Some((thread_id, run_id)) = self.view.run_name()
        {
            self.on_interrupt = OnInterrupt::Leave;
            let gateway = self.gateway.clone();
            self.cancel
                .spawn(async move { gateway.cancel(thread_id, run_id).await });
        }
    }

    /// What is said of a stream that could not be resumed.
    fn broken(&self, status: &Status) -> Failure {
        let error = self.gateway.say(status);
        match self.view.run_name() {
            Some((thread, run)) => {
                format!("{error}; to look again: runs-gateway watch {thread} {run}").into()
            }
            None => error,
        }
    }
}

fn question_to(assistant_id: String, question: String) -> ThreadAndRunSpec {
    let message = MessageInput {
        role: MessageRole::User.into(),
        content: Some(MessageContent {
            text: Some(question),
            parts: Vec::new(),
        }),
        ..MessageInput::default()
    };
    ThreadAndRunSpec {
        assistant_id,
        thread: Some(ThreadSpec {
            messages: vec![message],
            ..ThreadSpec::default()
        }),
        ..ThreadAndRunSpec::default()
    }
}
