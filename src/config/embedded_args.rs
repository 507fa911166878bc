//! The flags of the limits of the embedded API. What each means stands with [`Limits`].

use clap::Args;

use crate::embedded::Limits;

/// The flags.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "a flag is called like its field")]
#[command(next_help_heading = "Embedded API")]
pub(super) struct EmbeddedArgs {
    /// Threads kept; the oldest goes first.
    #[arg(long, default_value_t = Limits::default().threads)]
    embedded_max_threads: usize,

    /// Messages kept on a thread; the oldest goes first.
    #[arg(long, default_value_t = Limits::default().messages)]
    embedded_max_messages: usize,

    /// Runs kept on a thread; the oldest goes first.
    #[arg(long, default_value_t = Limits::default().runs)]
    embedded_max_runs: usize,

    /// Assistants kept; the oldest goes first.
    #[arg(long, default_value_t = Limits::default().assistants)]
    embedded_max_assistants: usize,

    /// Bytes kept in all threads together; the oldest thread goes first.
    #[arg(long, default_value_t = Limits::default().bytes)]
    embedded_max_bytes: usize,

    /// Bytes in the body of a request.
    #[arg(long, default_value_t = Limits::default().body)]
    embedded_max_body_bytes: usize,
}

impl From<EmbeddedArgs> for Limits {
    fn from(args: EmbeddedArgs) -> Self {
        Self {
            threads: args.embedded_max_threads,
            messages: args.embedded_max_messages,
            runs: args.embedded_max_runs,
            assistants: args.embedded_max_assistants,
            body: args.embedded_max_body_bytes,
            bytes: args.embedded_max_bytes,
        }
    }
}
