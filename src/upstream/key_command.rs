//! A key that expires, from a command that prints it: run at start, and again before the key
//! expires.
//!
//! The command prints one JSON object, of which Kubernetes' exec credentials are one:
//! `{"status": {"token": "…", "expirationTimestamp": "2026-12-01T12:00:00Z"}}`. Without a time the
//! key is good until a SIGHUP asks for another.
//!
//! Must hold:
//!
//! - What it prints, on standard output or standard error, is in no log and no error.
//! - It is bounded in time and in what it prints. Beyond either it is killed.
//! - While it fails the key before stays in use, up to its expiry and beyond: the upstream says
//!   when it is not good any more. That it fails is logged, and again when the reason is another; a
//!   gauge is 1 meanwhile.
//! - A request takes the key of the time when it is sent. Requests and streams under way keep
//!   theirs.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;
use prost_types::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt as _,
    process::Command,
    select,
    sync::watch,
    time::{sleep, timeout},
};

use super::{auth::AuthStyle, own_secrets::OwnSecrets};
use crate::{
    reloadable::{Complaint, Reloadable, Setter, reloads},
    telemetry::Telemetry,
};

/// As much as the command may print, in bytes: tokens have some thousands.
const MAX_PRINTED: u64 = 64 << 10;

/// How long before its expiry a key is renewed, unless it lives less than five times as long.
const EARLY: Duration = Duration::from_secs(300);

/// The shortest time between two runs of the command, and the first pause after a failure.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause after failures.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The longest sleep until a key is renewed: the clock may be set meanwhile.
const CLOCK_LOOK: Duration = Duration::from_secs(60);

const FLAG: &str = "--upstream-key-command";

/// A command that prints a key.
#[derive(Debug, Clone)]
pub struct KeyCommand {
    /// The program. No shell is between.
    pub program: String,
    /// Its arguments. They may hold secrets.
    pub arguments: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// A key, as it was printed.
struct Key {
    secret: SecretString,
    header: HeaderValue,
    expires: Option<SystemTime>,
    /// When it is to be renewed.
    due: Option<SystemTime>,
}

impl KeyCommand {
    /// The value of the header that `auth` names, renewed before it expires. Has to be called in a
    /// runtime.
    ///
    /// Fails if the command does.
    pub(super) async fn watch(
        self,
        auth: AuthStyle,
        telemetry: &Telemetry,
        secrets: Arc<OwnSecrets>,
    ) -> Result<Reloadable<HeaderValue>, String> {
        // From now on: a signal may come before the task begins.
        let is_asked = reloads();
        let Key {
            secret,
            header,
            expires,
            due,
        } = self.key(&auth).await?;
        secrets.add(secret.expose_secret());
        let metrics = telemetry.metrics();
        let value = Reloadable::fixed(header);
        let mut keeper = Keeper {
            command: self,
            auth,
            secrets,
            value: value.setter(),
            complaint: Complaint::new("upstream key", metrics.reload_failing("upstream key")),
            expiry: metrics.upstream_key_expiry.clone(),
            expires: None,
            due,
            failures: 0,
        };
        keeper.expires(expires);
        tokio::spawn(keeper.keep(is_asked));
        Ok(value)
    }

    async fn key(&self, auth: &AuthStyle) -> Result<Key, String> {
        let printed = timeout(self.timeout, self.print()).await;
        let printed = printed.unwrap_or_else(|_| {
            let limit = humantime::format_duration(self.timeout);
            Err(format!("no end within {limit} ({FLAG}-timeout)"))
        });
        let read = printed.and_then(|printed| read(&printed, auth, SystemTime::now()));
        read.map_err(|error| format!("{FLAG}: {}: {error}", self.program))
    }

    async fn print(&self) -> Result<Vec<u8>, String> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut printed = Vec::new();
        if let Some(output) = child.stdout.take() {
            let mut output = output.take(MAX_PRINTED + 1);
            let read = output.read_to_end(&mut printed).await;
            read.map_err(|error| error.to_string())?;
        }
        if printed.len() as u64 > MAX_PRINTED {
            return Err(format!("it prints more than {MAX_PRINTED} bytes"));
        }
        let status = child.wait().await.map_err(|error| error.to_string())?;
        if status.success() {
            Ok(printed)
        } else {
            Err(status.to_string())
        }
    }
}

/// The key in what was printed. No error holds any of it.
fn read(printed: &[u8], auth: &AuthStyle, now: SystemTime) -> Result<Key, String> {
    let object: Value =
        serde_json::from_slice(printed).map_err(|_| "it prints no JSON".to_owned())?;
    let token = object.pointer("/status/token").and_then(Value::as_str);
    let token = token.map(str::trim).filter(|token| !token.is_empty());
    let token = token.ok_or("what it prints has no text in status.token")?;
    let secret = SecretString::from(token);
    let header = auth
        .value(&secret)
        .map_err(|_| "status.token is not a key that a header can hold")?;
    let expires = match object.pointer("/status/expirationTimestamp") {
        None | Some(Value::Null) => None,
        Some(time) => Some(
            time.as_str()
                .and_then(|time| time.parse::<Timestamp>().ok())
                .and_then(|time| SystemTime::try_from(time).ok())
                .ok_or("status.expirationTimestamp is not a time, such as 2026-12-01T12:00:00Z")?,
        ),
    };
    let due = match expires.map(|expires| expires.duration_since(now)) {
        None => None,
        Some(Ok(remaining)) if !remaining.is_zero() => {
            let early = EARLY.min(remaining / 5);
            Some(now + remaining.saturating_sub(early).max(MIN_PAUSE))
        }
        Some(_) => return Err("the key that it prints has expired".to_owned()),
    };
    Ok(Key {
        secret,
        header,
        expires,
        due,
    })
}

/// Runs the command for as long as anybody has the key.
struct Keeper {
    command: KeyCommand,
    auth: AuthStyle,
    secrets: Arc<OwnSecrets>,
    value: Setter<HeaderValue>,
    complaint: Complaint,
    expiry: prometheus::IntGauge,
    /// When the key in use expires.
    expires: Option<SystemTime>,
    /// When the command is run again.
    due: Option<SystemTime>,
    /// How often it has failed since it last did not.
    failures: u32,
}

impl Keeper {
    async fn keep(mut self, mut reloads: watch::Receiver<u64>) {
        while self.value.is_wanted() {
            let remaining = self.remaining();
            let is_asked = !remaining.is_zero();
            if is_asked {
                select! {
                    () = sleep(remaining.min(CLOCK_LOOK)) => continue,
                    // The sender lives as long as the process.
                    _ = reloads.changed() => {}
                }
            }
            self.renew(is_asked).await;
        }
    }

    /// The time until the command is run again.
    fn remaining(&self) -> Duration {
        let Some(due) = self.due else {
            return Duration::MAX;
        };
        due.duration_since(SystemTime::now()).unwrap_or_default()
    }

    /// Runs the command: `asked` by somebody who reads the log, or because it is time.
    async fn renew(&mut self, is_asked: bool) {
        match self.command.key(&self.auth).await {
            Ok(key) => {
                self.secrets.add(key.secret.expose_secret());
                self.value.set(key.header);
                self.expires(key.expires);
                self.due = key.due;
                self.failures = 0;
                self.complaint.fine();
                tracing::info!("the upstream key was renewed");
            }
            Err(error) => {
                let now = SystemTime::now();
                let expired = self.expires.is_some_and(|expires| expires <= now);
                let before = if expired {
                    "has expired"
                } else {
                    "stays in use"
                };
                self.complaint
                    .complain(format!("{error}; the key before {before}"), is_asked);
                let pause = MIN_PAUSE * 2_u32.saturating_pow(self.failures.min(6));
                self.due = Some(now + pause.min(MAX_PAUSE));
                self.failures += 1;
            }
        }
    }

    fn expires(&mut self, expires: Option<SystemTime>) {
        self.expires = expires;
        let seconds = expires.and_then(|expires| expires.duration_since(UNIX_EPOCH).ok());
        let seconds = seconds.map_or(0, |time| time.as_secs());
        self.expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_764_590_400);

    /// The header's value, and the seconds until the key is renewed.
    fn key(printed: &str) -> Result<(String, Option<u64>), String> {
        let now = UNIX_EPOCH + NOW;
        let key = read(printed.as_bytes(), &AuthStyle::Bearer, now)?;
        let due = key.due.map(|due| due.duration_since(now).expect("later"));
        let value = key.header.to_str().expect("text").to_owned();
        Ok((value, due.map(|due| due.as_secs())))
    }

    #[test]
    fn what_is_printed_is_read_or_what_is_wrong_is_said_without_it() {
        let expires = |time: &str| {
            format!(r#"{{"status":{{"token":"secret","expirationTimestamp":"{time}"}}}}"#)
        };
        let bearer = |due| Ok(("Bearer secret".to_owned(), due));
        let full = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",
            "status":{"token":" secret\n","expirationTimestamp":"2025-12-01T13:00:00Z"}}"#;
        let rows = [
            (full.to_owned(), bearer(Some(3300))),
            (expires("2025-12-01T13:00:00+01:00"), Err("has expired")),
            (expires("2025-12-01T14:00:00+01:00"), bearer(Some(3300))),
            (expires("2025-12-01T12:00:50Z"), bearer(Some(40))),
            (expires("2025-12-01T12:00:01Z"), bearer(Some(1))),
            (expires("2025-12-01T12:00:00Z"), Err("has expired")),
            (expires("tomorrow secret"), Err("not a time")),
            (r#"{"status":{"token":"secret"}}"#.to_owned(), bearer(None)),
            (
                r#"{"status":{"token":"se\ncret"}}"#.to_owned(),
                Err("a header"),
            ),
            (
                r#"{"status":{"token":" "}}"#.to_owned(),
                Err("status.token"),
            ),
            (r#"{"token":"secret"}"#.to_owned(), Err("status.token")),
            ("secret".to_owned(), Err("no JSON")),
        ];
        for (printed, expected) in rows {
            match (key(&printed), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{printed}"),
                (Err(found), Err(expected)) => {
                    assert!(found.contains(expected), "{printed}: {found}");
                    assert!(!found.contains("secret"), "{found}");
                }
                (found, expected) => panic!("{printed}: {found:?}, not {expected:?}"),
            }
        }
    }
}
