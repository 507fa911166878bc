//! What is read from files that may change while the gateway runs: keys, certificates, tokens.
//!
//! Must hold:
//!
//! - A file that is changed takes effect within the interval, or at once by [`look_now`] (SIGHUP).
//! - What cannot be read or understood, or still changes between two looks, changes nothing. It is
//!   logged once for each reason, and when it can be read again. It does not stop renewals.
//! - Nothing blocks: only regular files up to [`MAX_BYTES`] are read, which is checked on the
//!   opened descriptor. A FIFO or a device in a file's place is an error.
//!
//! Contents are compared, not times: mounted secrets are swapped as links, and some tools keep
//! times.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// The largest file that is read. A bundle of all public CAs has a quarter of it.
const MAX_BYTES: u64 = 1 << 20;

/// The longest time between the two looks that a change takes. It has to be the same in both:
/// else somebody is still writing it.
const SETTLE: Duration = Duration::from_secs(1);

/// Counts the requests to look now.
static LOOKS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

/// Has all files looked at now. Each group of files logs what came of it.
pub fn look_now() {
    LOOKS.send_modify(|looks| *looks += 1);
}

/// A value made of files' contents. Cheap to clone; clones see the same value.
#[derive(Debug)]
pub struct Reloadable<T>(Arc<ArcSwap<T>>);

impl<T> Clone for Reloadable<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> Reloadable<T> {
    /// A value that does not change.
    pub fn fixed(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// Reads `files` and makes a value of their contents with `make`; again, every `interval`
    /// (never if that is zero), whenever a content has changed. Has to be called in a runtime. What
    /// is wrong is told in words that hold nothing of the files.
    pub fn new(
        files: Vec<PathBuf>,
        interval: Duration,
        make: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        Self::renewed(files, interval, Duration::MAX, make)
    }

    /// The same, and the value is made anew at the age of `renewal` (never if that is zero) even if
    /// nothing has changed.
    pub fn renewed(
        files: Vec<PathBuf>,
        interval: Duration,
        renewal: Duration,
        make: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read(&files)?;
        let value = Self::fixed(make(&contents)?);
        let renewal = if renewal.is_zero() {
            Duration::MAX
        } else {
            renewal
        };
        // Without files there is nothing to look at before the renewal.
        let interval = if files.is_empty() || interval.is_zero() {
            renewal
        } else {
            interval
        };
        tokio::spawn(keep(
            Arc::downgrade(&value.0),
            files,
            contents,
            interval,
            renewal,
            Arc::new(make),
        ));
        Ok(value)
    }

    /// The value as it is now.
    pub fn get(&self) -> Arc<T> {
        self.0.load_full()
    }
}

/// Looks at the files for as long as anybody has the value.
async fn keep<T: Send + Sync + 'static>(
    value: Weak<ArcSwap<T>>,
    files: Vec<PathBuf>,
    mut contents: Vec<Vec<u8>>,
    interval: Duration,
    renewal: Duration,
    make: Arc<impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static>,
) {
    let mut looks = LOOKS.subscribe();
    let names = files.iter().map(|path| path.display().to_string());
    let names = names.collect::<Vec<_>>().join(", ");
    let mut trouble = Trouble::default();
    let mut made_at = Instant::now();
    loop {
        let asked = tokio::select! {
            () = sleep(interval) => false,
            asked = looks.changed() => asked.is_ok(),
        };
        let Some(value) = value.upgrade() else { return };
        let Some(now) = settled(&files, &contents, interval.min(SETTLE)).await else {
            return;
        };
        let read_error = now.as_ref().err().cloned();
        let changed = now.ok().filter(|now| *now != contents);
        // What cannot be used is no reason not to renew. It is tried at each look: it may have
        // failed for want of something else.
        let due = (made_at.elapsed() >= renewal).then(|| contents.clone());
        let mut failed = read_error;
        let mut renewed = false;
        for tried in changed.into_iter().chain(due) {
            let make = Arc::clone(&make);
            let Ok((made, tried)) = spawn_blocking(move || (make(&tried), tried)).await else {
                return;
            };
            match made {
                Ok(made) => {
                    value.store(Arc::new(made));
                    made_at = Instant::now();
                    renewed = tried != contents;
                    contents = tried;
                    break;
                }
                Err(error) => failed = Some(error),
            }
        }
        let kept = failed.is_some();
        trouble.note(failed, &names);
        if renewed {
            tracing::info!(
                files = names,
                "changed files were read: they are in use now"
            );
        } else if asked && !names.is_empty() && !kept {
            tracing::info!(files = names, "files were read again: nothing has changed");
        } else if asked && kept {
            tracing::warn!(files = names, "{STAYS}");
        }
    }
}

/// What files cannot be used for, as it was logged last: logged once, not at every look.
#[derive(Default)]
struct Trouble(Option<String>);

impl Trouble {
    fn note(&mut self, failed: Option<String>, files: &str) {
        match (&failed, &self.0) {
            (Some(error), told) if told.as_ref() != Some(error) => {
                tracing::warn!(error, files, "{STAYS}");
            }
            (None, Some(_)) => tracing::info!(files, "configuration files can be used again"),
            _ => {}
        }
        self.0 = failed;
    }
}

const STAYS: &str = "configuration files cannot be used: what was read before stays";

/// The files' contents, if they are `known` or the same in two looks. `None` in a shutdown.
async fn settled(
    files: &[PathBuf],
    known: &[Vec<u8>],
    pause: Duration,
) -> Option<Result<Vec<Vec<u8>>, String>> {
    // Files may stand on a network; the threads that serve calls do not wait for it, nor for what
    // is made of them.
    let look = || {
        let files = files.to_vec();
        spawn_blocking(move || read(&files))
    };
    let first = match look().await.ok()? {
        Ok(first) if first != known => first,
        other => return Some(other),
    };
    sleep(pause).await;
    let second = look().await.ok()?;
    Some(second.and_then(|second| {
        if first == second {
            Ok(second)
        } else {
            Err("the files are still being written".to_owned())
        }
    }))
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let read = |path: &PathBuf| {
        read_file(path).map_err(|error: io::Error| format!("{}: {error}", path.display()))
    };
    files.iter().map(read).collect()
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a FIFO would wait for whoever writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    // It may grow while it is read.
    file.take(MAX_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(content)
}
