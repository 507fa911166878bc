//! What the embedded API holds at most, and the flags of it.

use clap::Args;

use crate::setting::defaults;

/// How much is kept. Whatever goes beyond drives out the oldest of its kind, of threads the one that
/// was not used for longest; refused are a body that is too large, and what would add to threads
/// that are all in use.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Embedded API")]
// Its group would be called as that of the server's limits.
#[group(skip)]
pub struct Limits {
    /// Threads kept, with all that is on them; the oldest goes first.
    #[arg(id = "embedded-max-threads", long, default_value = "10000")]
    pub threads: usize,

    /// Messages kept on a thread; the oldest goes first.
    #[arg(id = "embedded-max-messages", long, default_value = "1000")]
    pub messages: usize,

    /// Runs kept on a thread; the oldest goes first.
    #[arg(id = "embedded-max-runs", long, default_value = "1000")]
    pub runs: usize,

    /// Assistants kept, besides the one that is always there; the oldest goes first.
    #[arg(id = "embedded-max-assistants", long, default_value = "100")]
    pub assistants: usize,

    /// Bytes kept in all threads together, as protobuf messages; the oldest thread goes first. In
    /// memory it is a small multiple.
    #[arg(id = "embedded-max-bytes", long, default_value_t = 128 << 20)]
    pub bytes: usize,

    /// Bytes in the body of a request.
    #[arg(id = "embedded-max-body-bytes", long, default_value_t = 1 << 20)]
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        defaults()
    }
}
