//! What a conversation's caller says: tool outputs, held until the run asks for them, and the wish to cancel.
//!
//! Must hold: the caller is always heard, whatever the conversation waits for ([`Desk::attend`]); what is held for it is bounded in bytes; an
//! output is submitted once, and one that nobody asked for is told to the caller.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    pin::pin,
};

use tokio_stream::StreamExt as _;

use super::{Inbound, reader::Farewell};
use crate::{
    error::Error,
    v1::{Run, ToolOutput, converse_run_request::Message},
};

/// The caller's side of a conversation.
pub(super) struct Desk {
    inbound: Inbound,
    /// The caller will say no more.
    closed: bool,
    /// Outputs that were not submitted yet, with where each stood in its message.
    held: HashMap<String, (ToolOutput, usize)>,
    held_bytes: usize,
    max_bytes: usize,
    /// Hashes of the outputs that were submitted: a repeat must be told from a change.
    submitted: HashMap<String, u64>,
    hasher: RandomState,
    /// The calls that the run waits for, or waited for last, in its order. Their outputs are held until it asks for others: a run may turn out
    /// not to have had them.
    round: Vec<String>,
    /// The run waits for them.
    open: bool,
    /// The caller wants the run cancelled, and nobody was told yet.
    cancel: bool,
}

impl Desk {
    pub(super) fn new(inbound: Inbound, max_bytes: usize) -> Self {
        Self {
            inbound,
            closed: false,
            held: HashMap::new(),
            held_bytes: 0,
            max_bytes,
            submitted: HashMap::new(),
            hasher: RandomState::new(),
            round: Vec::new(),
            open: false,
            cancel: false,
        }
    }

    /// The caller's next message, as it is. Only for the first one.
    pub(super) async fn first(&mut self) -> Result<Message, Error> {
        let first = self.inbound.next().await.transpose()?.and_then(|request| request.message);
        first.ok_or_else(|| Error::invalid("message", "the first message must be `start` or `attach`"))
    }

    /// Does `work`, and hears the caller meanwhile. Ends with the caller's mistake, if it makes one.
    pub(super) async fn attend<T>(&mut self, farewell: &Farewell, work: impl Future<Output = T>) -> Result<T, Error> {
        let mut work = pin!(work);
        loop {
            self.cancel_if_known(farewell);
            tokio::select! {
                done = &mut work => return Ok(done),
                heard = self.hear(), if !self.closed => heard?,
            }
        }
    }

    /// Takes the caller's next message.
    async fn hear(&mut self) -> Result<(), Error> {
        let Some(request) = self.inbound.next().await.transpose()? else {
            self.closed = true;
            return self.check_closed();
        };
        match request.message {
            Some(Message::ToolOutputs(outputs)) if !outputs.extra_json.is_empty() => {
                Err(Error::invalid("tool_outputs.extra_json", "must be empty in a conversation"))
            }
            Some(Message::ToolOutputs(outputs)) => {
                outputs.tool_outputs.into_iter().enumerate().try_for_each(|(at, output)| self.hold(output, at))
            }
            Some(Message::Cancel(_)) => {
                self.cancel = true;
                Ok(())
            }
            Some(Message::Start(_)) => Err(Error::invalid("start", "only the first message may start a run")),
            Some(Message::Attach(_)) => Err(Error::invalid("attach", "only the first message may attach to a run")),
            None => Err(Error::invalid("message", "must be set")),
        }
    }

    fn hold(&mut self, output: ToolOutput, at: usize) -> Result<(), Error> {
        let id = &output.tool_call_id;
        if id.is_empty() {
            return Err(Error::invalid(path(at), "must be set"));
        }
        if let Some(submitted) = self.submitted.get(id) {
            return if *submitted == self.hash(&output) { Ok(()) } else { Err(differs(at)) };
        }
        if let Some((held, _)) = self.held.get(id) {
            return if *held == output { Ok(()) } else { Err(differs(at)) };
        }
        if self.open && !self.round.contains(id) {
            return Err(unknown(at));
        }
        self.held_bytes += size(&output);
        if self.held_bytes > self.max_bytes {
            return Err(Error::OutputsTooLarge { limit: self.max_bytes });
        }
        self.held.insert(id.clone(), (output, at));
        Ok(())
    }

    /// The run asks for outputs. Whether it is for the same ones as the last time.
    pub(super) fn open_round(&mut self, run: &Run) -> Result<bool, Error> {
        let same = self.is_same_round(run);
        if !same {
            let round = round(run);
            self.forget_round();
            // An action that this contract does not know has no calls: somebody else has to take it, and any output is early.
            self.open = !round.is_empty();
            self.round = round;
            let unasked = self.held.iter().find(|(id, _)| self.open && !self.round.contains(id));
            if let Some((_, (_, at))) = unasked {
                return Err(unknown(*at));
            }
        }
        self.open = !self.round.is_empty();
        self.check_closed()?;
        Ok(same)
    }

    /// Whether the run asks for the same calls as the last time.
    pub(super) fn is_same_round(&self, run: &Run) -> bool {
        round(run) == self.round
    }

    /// The run goes on.
    pub(super) fn close_round(&mut self) {
        self.open = false;
    }

    /// The run has had these outputs: of them only enough is kept to tell a repeat from a change.
    fn forget_round(&mut self) {
        for id in std::mem::take(&mut self.round) {
            if let Some((output, _)) = self.held.remove(&id) {
                self.held_bytes -= size(&output);
                let hash = self.hash(&output);
                self.submitted.insert(id, hash);
            }
        }
    }

    /// Waits until all outputs of the round are there.
    pub(super) async fn complete(&mut self, farewell: &Farewell) -> Result<Vec<ToolOutput>, Error> {
        loop {
            if self.open && self.round.iter().all(|id| self.held.contains_key(id)) {
                return Ok(self.round.iter().filter_map(|id| Some(self.held.get(id)?.0.clone())).collect());
            }
            self.cancel_if_known(farewell);
            if self.closed {
                // Only the run itself can change anything now.
                std::future::pending::<()>().await;
            }
            self.hear().await?;
        }
    }

    fn check_closed(&self) -> Result<(), Error> {
        let round = self.round.iter().filter(|_| self.open);
        let missing: Vec<_> = round.filter(|id| !self.held.contains_key(*id)).cloned().collect();
        if self.closed && !missing.is_empty() { Err(Error::OutputsMissing { ids: missing }) } else { Ok(()) }
    }

    /// Passes the wish to cancel on, once it is known which run is meant.
    fn cancel_if_known(&mut self, farewell: &Farewell) {
        if self.cancel && farewell.knows_run() {
            self.cancel = false;
            farewell.clone().begin(None);
        }
    }

    fn hash(&self, output: &ToolOutput) -> u64 {
        self.hasher.hash_one((&output.output, &output.extra_json))
    }
}

/// The ids of the calls that a run waits for.
fn round(run: &Run) -> Vec<String> {
    let calls = run.required_action.iter().filter_map(|action| action.submit_tool_outputs.as_ref()).flat_map(|it| &it.tool_calls);
    calls.map(|call| call.id.clone()).filter(|id| !id.is_empty()).collect()
}

/// What holding an output takes, in bytes.
fn size(output: &ToolOutput) -> usize {
    output.tool_call_id.len() + output.output.as_ref().map_or(0, String::len) + output.extra_json.len()
}

fn path(at: usize) -> String {
    format!("tool_outputs.tool_outputs[{at}].tool_call_id")
}

fn unknown(at: usize) -> Error {
    Error::invalid(path(at), "is not a call that the run waits for")
}

fn differs(at: usize) -> Error {
    Error::invalid(path(at), "was given before, with another output")
}
