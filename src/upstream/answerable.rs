//! What the upstream answers with.

use crate::{json, v1::Run};

/// A message that the upstream answers with. Generated from the contract.
pub(super) trait Answerable: json::Document {
    /// The resource's own id, behind the name that it has in routes; of a list nothing.
    fn id(&self) -> Option<(&'static str, &str)> {
        None
    }

    /// Whether a document that was read is such a resource at all. `text` is the document.
    fn is_whole(&self, text: &[u8]) -> bool;

    /// The run, if that is what it is.
    fn run(&self) -> Option<&Run> {
        None
    }
}
