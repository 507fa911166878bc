//! What the upstream answers with.

use super::target::Target;
use crate::{json, v1::Run};

/// A message that the upstream answers with. Generated from the contract.
pub(super) trait Answerable: json::Document {
    /// Whether its own id is the one that was asked for, if one was.
    fn is_of(&self, _target: &Target) -> bool {
        true
    }

    /// Whether what it belongs to is what was asked for.
    fn is_within(&self, _target: &Target) -> bool {
        true
    }

    /// Whether a document that was read is such a resource at all. `text` is the document.
    fn is_whole(&self, text: &[u8]) -> bool;

    /// The run, if that is what it is.
    fn run(&self) -> Option<&Run> {
        None
    }
}
