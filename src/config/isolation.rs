//! The flags that keep callers from each other. What each means stands with [`IsolationRules`].

use std::{path::PathBuf, time::Duration};

use clap::Args;
use secrecy::ExposeSecret as _;

use super::{
    Invalid,
    access::WAYS,
    event_log::{MIN_SECRET, read_secret},
};
use crate::{
    setting::time,
    upstream::{IsolationRules, MarkKey, Unmarked},
};

/// The flags.
#[derive(Debug, Args)]
#[command(next_help_heading = "Isolation")]
pub(super) struct IsolationArgs {
    /// Keep callers from each other: a thread belongs to the caller that made it through the
    /// gateway, and for all others it is as if it were not there. The gateway marks it by one pair
    /// of its metadata, `runs_gateway_caller`. Needs a key of the gateway's own and callers with
    /// names.
    #[arg(long, requires = "isolation_key_file")]
    isolate_callers: bool,

    /// A file with the secret of the marks, the same on all replicas: at least 32 bytes. Read at
    /// start. With another secret all threads are those of nobody that calls.
    #[arg(long, value_name = "FILE", requires = "isolate_callers")]
    isolation_key_file: Option<PathBuf>,

    /// Who may use threads (and assistants) without a mark, such as those that were made before.
    #[arg(long, value_enum, default_value = "deny", requires = "isolate_callers")]
    isolate_unmarked: Unmarked,

    /// Assistants, too, belong to the callers that made them. Otherwise all callers share them.
    #[arg(long, requires = "isolate_callers")]
    isolate_assistants: bool,

    /// The most threads that are remembered to be their callers'; the mark of any other is read
    /// first.
    #[arg(long, default_value_t = 100_000, requires = "isolate_callers")]
    max_remembered_threads: usize,

    /// How long it is remembered that a thread is its caller's.
    #[arg(long, default_value = "10m", value_parser = time, requires = "isolate_callers")]
    remembered_thread_age: Duration,
}

impl IsolationArgs {
    /// The rules, if callers are to be isolated. `has_key`: the gateway has a key of its own;
    /// `has_names`: callers are told apart.
    pub(super) fn rules(
        &self,
        has_key: bool,
        has_names: bool,
    ) -> Result<Option<IsolationRules>, Invalid> {
        let Some(file) = self
            .isolation_key_file
            .as_ref()
            .filter(|_| self.isolate_callers)
        else {
            return Ok(None);
        };
        if !has_key {
            return Err(Invalid::new(
                "--isolate-callers needs a key of the gateway's own, by --upstream-api-key-file: with \
                 their own keys, callers see what those may see",
            ));
        }
        if !has_names {
            return Err(Invalid::new(format!(
                "--isolate-callers needs callers with names: admit them by {WAYS}"
            )));
        }
        let secret = read_secret("--isolation-key-file", file)?;
        let secret = secret.expose_secret().as_bytes();
        if secret.len() < MIN_SECRET {
            return Err(Invalid::new(format!(
                "--isolation-key-file: the secret must have at least {MIN_SECRET} bytes"
            )));
        }
        Ok(Some(IsolationRules {
            key: MarkKey::new(secret),
            unmarked: self.isolate_unmarked,
            assistants: self.isolate_assistants,
            max_remembered: self.max_remembered_threads,
            max_age: self.remembered_thread_age,
        }))
    }
}
