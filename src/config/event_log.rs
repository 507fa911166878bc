//! The flags that say where the event log is kept. Those of its limits stand with
//! [`LogLimits`](crate::runs::LogLimits).

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use super::invalid::Invalid;
use crate::runs::{LogStore, RedisStore};

/// The fewest bytes of a secret.
pub(super) const MIN_SECRET: usize = 32;

/// The flags.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "a flag is called like its field")]
#[command(next_help_heading = "Event log")]
pub(super) struct EventLogArgs {
    /// Where resumable streams are recorded: `memory` (of this replica), `off`, or the URL of a
    /// Redis or Valkey that all replicas share: `redis://HOST:PORT/DB`, `rediss://` for TLS.
    // A URL may hold a password.
    #[arg(long, default_value = "memory", hide_env_values = true)]
    event_log: String,

    /// A file with the secret of the logs' names, the same on all replicas: at least 32 bytes.
    /// Required with Redis.
    #[arg(long, value_name = "FILE")]
    event_log_key_file: Option<PathBuf>,

    /// A file with the password of the store.
    #[arg(long, value_name = "FILE")]
    event_log_password_file: Option<PathBuf>,

    /// A file with the CA certificates (PEM) that the store is trusted by. Not set: the system's.
    #[arg(long, value_name = "FILE")]
    event_log_ca_file: Option<PathBuf>,
}

impl EventLogArgs {
    /// Where logs are kept.
    pub(super) fn store(&self) -> Result<LogStore, Invalid> {
        match &*self.event_log {
            "off" => Ok(LogStore::Off),
            "memory" => Ok(LogStore::Memory),
            url => self.redis(url).map(Box::new).map(LogStore::Redis),
        }
    }

    fn redis(&self, url: &str) -> Result<RedisStore, Invalid> {
        if !url.starts_with("redis://") && !url.starts_with("rediss://") {
            let wrong = "--event-log must be memory, off, redis://… or rediss://…";
            return Err(Invalid::new(wrong));
        }
        let Some(key_file) = &self.event_log_key_file else {
            let missing = "--event-log redis://… needs --event-log-key-file: a secret of at least \
                           32 bytes, the same on all replicas";
            return Err(Invalid::new(missing));
        };
        let secret = read_secret("--event-log-key-file", key_file)?;
        if secret.expose_secret().len() < MIN_SECRET {
            return Err(Invalid::new(format!(
                "--event-log-key-file: the secret must have at least {MIN_SECRET} bytes"
            )));
        }
        let password = self.event_log_password_file.as_ref();
        let password = password.map(|file| read_secret("--event-log-password-file", file));
        let certificates = self.event_log_ca_file.as_ref().map(|file| {
            fs::read(file).map_err(|error| {
                Invalid::new(format!("--event-log-ca-file {}: {error}", file.display()))
            })
        });
        RedisStore::new(
            url,
            password.transpose()?.as_ref(),
            certificates.transpose()?,
            secret,
        )
        .map_err(|error| Invalid::new(format!("--event-log: {error}")))
    }
}

/// The text of a file without white space at its end.
pub(super) fn read_secret(flag: &str, file: &Path) -> Result<SecretString, Invalid> {
    let text = fs::read_to_string(file)
        .map_err(|error| Invalid::new(format!("{flag} {}: {error}", file.display())))?;
    Ok(SecretString::from(text.trim_end().to_owned()))
}
