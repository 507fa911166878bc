//! What the upstream answers with.

use super::target::Target;
use crate::{json, v1::Run};

/// A message that the upstream answers with. Generated from the contract.
pub(super) trait Answerable: json::Document {
    /// Whether the ids that it has, its own and those of what it belongs to, are those that were
    /// asked for, if it was asked for by its id. A create and a list ask for none.
    fn is_of(&self, target: &Target) -> bool;

    /// Whether a document that was read is such a resource at all. `text` is the document.
    fn is_whole(&self, text: &[u8]) -> bool;

    /// The run, if that is what it is.
    fn run(&self) -> Option<&Run> {
        None
    }
}
