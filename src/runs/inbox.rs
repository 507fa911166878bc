//! What a conversation's caller says: tool outputs, held until the run asks for them, and the wish
//! to cancel, passed on at once.
//!
//! Must hold: the caller is heard, whatever the conversation waits for
//! ([`ToolOutputInbox::attend`]), as soon as the run has a name: before, a mistake would lose the
//! run, and there is nothing to cancel. What is held for it is bounded in bytes; HTTP/2 bounds what
//! is not heard yet. An output that nobody asked for is told to the caller, unless it is only late.
//! All futures here may be dropped while they wait: nothing is lost.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    pin::pin,
};

use tokio::task::AbortHandle;
use tokio_stream::StreamExt as _;

use super::{Inbound, reader::CancelOnDisconnect};
use crate::{
    error::Error,
    shares::HeldPart,
    v1::{Run, ToolOutput, converse_run_request::Message},
};

/// What an output takes besides its text, in bytes: many empty ones must not get past the limit.
const OVERHEAD: usize = 256;

/// The caller's side of a conversation.
pub(super) struct ToolOutputInbox {
    inbound: Inbound,
    /// The caller will say no more.
    closed: bool,
    /// Outputs of this round and of the next one, with where each stood in its message.
    held: HashMap<String, (ToolOutput, usize)>,
    held_bytes: usize,
    max_bytes: usize,
    /// What they take of what may be held for all callers.
    part: HeldPart,
    /// The calls of the rounds that are over, with the hash of what this caller said to each, if it
    /// did: a repeat must be told from a change.
    past: HashMap<String, Option<u64>>,
    hasher: RandomState,
    /// The calls that the run waits for, in its order, until it is seen to go on: it may turn out
    /// not to have had their outputs.
    round: Vec<String>,
    /// The run waits for them, and they are not being submitted.
    open: bool,
    /// The last cancellation, which may be under way.
    cancellation: Option<AbortHandle>,
}

impl ToolOutputInbox {
    /// The side of a caller whose outputs take at most `max_bytes`, which are counted in `part`.
    pub(super) fn new(inbound: Inbound, max_bytes: usize, part: HeldPart) -> Self {
        Self {
            inbound,
            closed: false,
            held: HashMap::new(),
            held_bytes: 0,
            max_bytes,
            part,
            past: HashMap::new(),
            hasher: RandomState::new(),
            round: Vec::new(),
            open: false,
            cancellation: None,
        }
    }

    /// The caller's next message, as it is. Only for the first one.
    pub(super) async fn first(&mut self) -> Result<Message, Error> {
        let first = self
            .inbound
            .next()
            .await
            .transpose()?
            .and_then(|request| request.message);
        first.ok_or_else(|| {
            Error::invalid("message", "the first message must be `start` or `attach`")
        })
    }

    /// Does `work`, and hears the caller meanwhile. Ends with the caller's mistake, if it makes
    /// one.
    pub(super) async fn attend<T>(
        &mut self,
        canceller: &CancelOnDisconnect,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                heard = self.hear(canceller) => heard?,
            }
        }
    }

    /// Hears the caller's next message. Waits for ever once it will say no more, and as long as the
    /// run has no name.
    pub(super) async fn hear(&mut self, canceller: &CancelOnDisconnect) -> Result<(), Error> {
        if self.closed || !canceller.knows_run() {
            return std::future::pending().await;
        }
        let Some(request) = self.inbound.next().await.transpose()? else {
            self.closed = true;
            return self.check_closed();
        };
        match request.message {
            Some(Message::ToolOutputs(outputs)) if !outputs.extra_json.is_empty() => Err(
                Error::invalid("tool_outputs.extra_json", "must be empty in a conversation"),
            ),
            Some(Message::ToolOutputs(outputs)) => outputs
                .tool_outputs
                .into_iter()
                .enumerate()
                .try_for_each(|(at, output)| self.hold(output, at)),
            Some(Message::Cancel(_)) => {
                // One at a time is enough, however often it is said.
                if self
                    .cancellation
                    .as_ref()
                    .is_none_or(AbortHandle::is_finished)
                {
                    self.cancellation = canceller.clone().begin(None);
                }
                Ok(())
            }
            Some(Message::Start(_)) => Err(Error::invalid(
                "start",
                "only the first message may start a run",
            )),
            Some(Message::Attach(_)) => Err(Error::invalid(
                "attach",
                "only the first message may attach to a run",
            )),
            None => Err(Error::invalid("message", "must be set")),
        }
    }

    fn hold(&mut self, output: ToolOutput, at: usize) -> Result<(), Error> {
        let id = &output.tool_call_id;
        if id.is_empty() {
            return Err(Error::invalid(path(at), "must be set"));
        }
        if let Some(given) = self.past.get(id) {
            return if given.is_none_or(|given| given == self.hash(&output)) {
                Ok(())
            } else {
                Err(differs(at))
            };
        }
        if let Some((held, _)) = self.held.get(id) {
            return if *held == output {
                Ok(())
            } else {
                Err(differs(at))
            };
        }
        if self.open && !self.round.contains(id) {
            return Err(unknown(at));
        }
        self.held_bytes += size(&output);
        if self.held_bytes > self.max_bytes {
            return Err(Error::OutputsTooLarge {
                limit: self.max_bytes,
            });
        }
        self.part.resize(self.held_bytes)?;
        self.held.insert(id.clone(), (output, at));
        Ok(())
    }

    /// The run asks for outputs. Whether it is for others than the last time.
    pub(super) fn open_round(&mut self, calls: Vec<String>) -> Result<bool, Error> {
        let new = !self.is_round(&calls);
        if new {
            self.end_round();
            for id in &calls {
                // Some services count their calls anew in each round.
                self.past.remove(id);
            }
            self.round = calls;
        }
        // An action that this contract does not know has no calls: somebody else has to take it,
        // and any output is early.
        self.open = !self.round.is_empty();
        let unasked = self
            .held
            .iter()
            .filter(|(id, _)| self.open && !self.round.contains(id));
        if let Some(at) = unasked.map(|(_, (_, at))| *at).min() {
            return Err(unknown(at));
        }
        self.check_closed()?;
        Ok(new)
    }

    /// Whether these are the calls that the run waits for, as far as is known.
    pub(super) fn is_round(&self, calls: &[String]) -> bool {
        self.round == calls
    }

    /// All outputs of the round are there.
    pub(super) fn is_complete(&self) -> bool {
        self.open && self.round.iter().all(|id| self.held.contains_key(id))
    }

    /// The outputs of the round, to be submitted now. They are held on: the run may turn out not to
    /// have had them.
    pub(super) fn submit(&mut self) -> Vec<ToolOutput> {
        self.open = false;
        self.round
            .iter()
            .filter_map(|id| Some(self.held.get(id)?.0.clone()))
            .collect()
    }

    /// The run has gone on. Of what it was given only enough is kept to tell a repeat from a
    /// change.
    pub(super) fn end_round(&mut self) {
        self.open = false;
        for id in std::mem::take(&mut self.round) {
            let given = self.held.remove(&id).map(|(output, _)| {
                self.held_bytes -= size(&output);
                self.hash(&output)
            });
            self.past.insert(id, given);
        }
        // Less is always to be had.
        _ = self.part.resize(self.held_bytes);
    }

    /// The run is over: nothing that the caller says matters any more.
    pub(super) fn close(&mut self) {
        self.end_round();
        self.closed = true;
    }

    fn check_closed(&self) -> Result<(), Error> {
        let round = self.round.iter().filter(|_| self.open);
        let missing: Vec<_> = round
            .filter(|id| !self.held.contains_key(*id))
            .cloned()
            .collect();
        if self.closed && !missing.is_empty() {
            Err(Error::OutputsMissing { ids: missing })
        } else {
            Ok(())
        }
    }

    fn hash(&self, output: &ToolOutput) -> u64 {
        self.hasher.hash_one((&output.output, &output.extra_json))
    }
}

/// The ids of the calls that a run waits for, each once: services may name one twice, and it takes
/// one output.
pub(super) fn calls(run: &Run) -> Vec<String> {
    let calls = run
        .required_action
        .iter()
        .filter_map(|action| action.submit_tool_outputs.as_ref())
        .flat_map(|it| &it.tool_calls);
    let mut seen = HashSet::new();
    calls
        .map(|call| &call.id)
        .filter(|id| !id.is_empty() && seen.insert(*id))
        .cloned()
        .collect()
}

/// What holding an output takes, in bytes.
fn size(output: &ToolOutput) -> usize {
    OVERHEAD
        + output.tool_call_id.len()
        + output.output.as_ref().map_or(0, String::len)
        + output.extra_json.len()
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
