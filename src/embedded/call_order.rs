//! The pieces of a round's calls, in the order of the calls.
//!
//! Models write several calls at once; the service whose API this is wrote one after the other, and
//! its official clients take a piece of another call for the end of the one before. So a call
//! begins when the arguments of the one before are whole, or when the model has ended.
//!
//! Must hold: every piece comes out once, at the latest before the last one of the reply; pieces of
//! calls that come one after the other are not held back.

use super::model::ModelChunk;
use crate::json;

/// The calls of one reply.
#[derive(Default)]
pub(super) struct CallOrder {
    calls: Vec<Call>,
    /// The call that has begun last.
    current: usize,
}

struct Call {
    id: String,
    name: String,
    /// As far as they have come.
    arguments: String,
}

impl CallOrder {
    /// The pieces that are due now that this one has come.
    pub(super) fn take(&mut self, piece: ModelChunk) -> Vec<ModelChunk> {
        let mut due = Vec::new();
        if piece.is_last() {
            while self.begin_next(&mut due) {}
        }
        match piece {
            ModelChunk::Call { id, name } => {
                if self.calls.is_empty() {
                    let (id, name) = (id.clone(), name.clone());
                    due.push(ModelChunk::Call { id, name });
                }
                self.calls.push(Call {
                    id,
                    name,
                    arguments: String::new(),
                });
            }
            ModelChunk::Arguments { call, text } => {
                if let Some(of) = self.calls.get_mut(call) {
                    of.arguments += &text;
                }
                if call <= self.current {
                    due.push(ModelChunk::Arguments { call, text });
                }
            }
            other => due.push(other),
        }
        while self.calls.get(self.current).is_some_and(Call::is_whole) && self.begin_next(&mut due)
        {
        }
        due
    }

    /// Whether there was another call to begin.
    fn begin_next(&mut self, due: &mut Vec<ModelChunk>) -> bool {
        let Some(next) = self.calls.get(self.current + 1) else {
            return false;
        };
        self.current += 1;
        due.push(ModelChunk::Call {
            id: next.id.clone(),
            name: next.name.clone(),
        });
        if !next.arguments.is_empty() {
            due.push(ModelChunk::Arguments {
                call: self.current,
                text: next.arguments.clone(),
            });
        }
        true
    }
}

impl Call {
    fn is_whole(&self) -> bool {
        // The end is looked at first, since this is asked at every piece.
        self.arguments.trim_end().ends_with('}') && json::is_whole(self.arguments.as_bytes())
    }
}
