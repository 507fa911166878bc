//! What a conversation's caller says: tool outputs and approvals, held until the run asks for them,
//! and the wish to cancel, passed on at once. What is said of outputs here is true of approvals.
//!
//! Must hold: the caller is heard as soon as the run has a name: before, a mistake would lose the
//! run, and there is nothing to cancel. What is held for it is bounded in bytes; HTTP/2 bounds what
//! is not heard yet. An output that nobody asked for is told to the caller, unless it is only late.
//! All futures here may be dropped while they wait: nothing is lost.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
};

use tokio::task::AbortHandle;
use tokio_stream::StreamExt as _;

use super::{Inbound, reader::CancelOnDisconnect};
use crate::{
    error::Error,
    shares::HeldPart,
    upstream::Wanted,
    v1::{ToolApproval, ToolOutput, ToolOutputs, converse_run_request::Message},
};

/// What an output takes besides its text, in bytes: many empty ones must not get past the limit.
const OVERHEAD: usize = 256;

/// What the caller gives to a call.
#[derive(Debug, Clone, PartialEq)]
enum Given {
    Output(ToolOutput),
    Approval(ToolApproval),
}

/// The caller's side of a conversation.
pub(super) struct ToolOutputInbox {
    inbound: Inbound,
    /// The caller will say no more.
    closed: bool,
    /// Outputs of this round and of the next one, with where each stood in its message.
    held: HashMap<Wanted, (Given, usize)>,
    held_bytes: usize,
    max_bytes: usize,
    /// What they take of what may be held for all callers.
    part: HeldPart,
    /// The calls of the rounds that are over, with the hash of what this caller said to each, if it
    /// did: a repeat must be told from a change.
    past: HashMap<Wanted, Option<u64>>,
    hasher: RandomState,
    /// The calls that the run waits for, in its order, until it is seen to go on: it may turn out
    /// not to have had their outputs.
    round: Vec<Wanted>,
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

    /// Hears the caller's next message. Waits for ever once it will say no more, and as long as the
    /// run has no name.
    pub(super) async fn recv(&mut self, canceller: &CancelOnDisconnect) -> Result<(), Error> {
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
            Some(Message::ToolOutputs(outputs)) => {
                let given = outputs.tool_outputs.into_iter().map(Given::Output);
                let approvals = outputs.tool_approvals.into_iter().map(Given::Approval);
                given
                    .enumerate()
                    .chain(approvals.enumerate())
                    .try_for_each(|(at, given)| self.keep(given, at))
            }
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

    fn keep(&mut self, given: Given, at: usize) -> Result<(), Error> {
        let call = given.call();
        if call.id().is_empty() {
            return Err(Error::invalid(path(&call, at), "must be set"));
        }
        if let Some(before) = self.past.get(&call) {
            return if before.is_none_or(|before| before == given.hash(&self.hasher)) {
                Ok(())
            } else {
                Err(differs(&call, at))
            };
        }
        if let Some((held, _)) = self.held.get(&call) {
            return if *held == given {
                Ok(())
            } else {
                Err(differs(&call, at))
            };
        }
        if self.open && !self.round.contains(&call) {
            return Err(unknown(&call, at));
        }
        self.held_bytes += given.size();
        if self.held_bytes > self.max_bytes {
            return Err(Error::OutputsTooLarge {
                limit: self.max_bytes,
            });
        }
        self.part.resize(self.held_bytes)?;
        self.held.insert(call, (given, at));
        Ok(())
    }

    /// The run asks for outputs. Whether it is for others than the last time.
    pub(super) fn open_round(&mut self, calls: Vec<Wanted>) -> Result<bool, Error> {
        let new = !self.is_round(&calls);
        if new {
            self.end_round();
            for call in &calls {
                // Some services count their calls anew in each round.
                self.past.remove(call);
            }
            self.round = calls;
        }
        // An action that this contract does not know has no calls: somebody else has to take it,
        // and any output is early.
        self.open = !self.round.is_empty();
        let unasked = self
            .held
            .iter()
            .filter(|(call, _)| self.open && !self.round.contains(call));
        if let Some((call, (_, at))) = unasked.min_by_key(|(_, (_, at))| *at) {
            return Err(unknown(call, *at));
        }
        self.check_closed()?;
        Ok(new)
    }

    /// Whether these are the calls that the run waits for, as far as is known.
    pub(super) fn is_round(&self, calls: &[Wanted]) -> bool {
        self.round == calls
    }

    /// All outputs of the round are there.
    pub(super) fn is_complete(&self) -> bool {
        self.open && self.round.iter().all(|it| self.held.contains_key(it))
    }

    /// The outputs of the round, to be submitted now. They are held on: the run may turn out not to
    /// have had them.
    pub(super) fn submit(&mut self) -> ToolOutputs {
        self.open = false;
        let mut submitted = ToolOutputs::default();
        for (given, _) in self.round.iter().filter_map(|it| self.held.get(it)) {
            match given.clone() {
                Given::Output(output) => submitted.tool_outputs.push(output),
                Given::Approval(approval) => submitted.tool_approvals.push(approval),
            }
        }
        submitted
    }

    /// The run has gone on. Of what it was given only enough is kept to tell a repeat from a
    /// change.
    pub(super) fn end_round(&mut self) {
        self.open = false;
        for call in std::mem::take(&mut self.round) {
            let given = self.held.remove(&call).map(|(given, _)| {
                self.held_bytes -= given.size();
                given.hash(&self.hasher)
            });
            self.past.insert(call, given);
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
            .filter(|call| !self.held.contains_key(*call))
            .map(|call| call.id().to_owned())
            .collect();
        if self.closed && !missing.is_empty() {
            Err(Error::OutputsMissing { ids: missing })
        } else {
            Ok(())
        }
    }
}

impl Given {
    fn call(&self) -> Wanted {
        match self {
            Self::Output(output) => Wanted::Output(output.tool_call_id.clone()),
            Self::Approval(approval) => Wanted::Approval(approval.tool_call_id.clone()),
        }
    }

    /// What holding it takes, in bytes.
    fn size(&self) -> usize {
        OVERHEAD
            + match self {
                Self::Output(output) => {
                    output.tool_call_id.len()
                        + output.output.as_ref().map_or(0, String::len)
                        + output.extra_json.len()
                }
                Self::Approval(approval) => {
                    let headers = approval.headers.iter();
                    approval.tool_call_id.len()
                        + headers
                            .map(|it| OVERHEAD + it.0.len() + it.1.len())
                            .sum::<usize>()
                        + approval.extra_json.len()
                }
            }
    }

    fn hash(&self, hasher: &RandomState) -> u64 {
        match self {
            Self::Output(output) => hasher.hash_one((&output.output, &output.extra_json)),
            Self::Approval(approval) => {
                let headers: BTreeMap<_, _> = approval.headers.iter().collect();
                hasher.hash_one((approval.approve, headers, &approval.extra_json))
            }
        }
    }
}

fn path(call: &Wanted, at: usize) -> String {
    let field = match call {
        Wanted::Output(_) => "tool_outputs",
        Wanted::Approval(_) => "tool_approvals",
    };
    format!("tool_outputs.{field}[{at}].tool_call_id")
}

fn unknown(call: &Wanted, at: usize) -> Error {
    Error::invalid(path(call, at), "is not a call that the run waits for")
}

fn differs(call: &Wanted, at: usize) -> Error {
    let what = match call {
        Wanted::Output(_) => "was given before, with another output",
        Wanted::Approval(_) => "was given before, with another approval",
    };
    Error::invalid(path(call, at), what)
}
