//! What is read from files that may change while the gateway runs: keys, certificates, tokens.
//!
//! Must hold: a file that is changed takes effect within the interval, without a restart; one that
//! cannot be read or understood changes nothing and is logged, and keeps nothing from being
//! renewed. Contents are compared, not times: mounted secrets are swapped as links, and some tools
//! keep times.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{task::spawn_blocking, time::Instant};

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
    // What was told to be of no use: told once, not at every look.
    let mut refused = None;
    let mut made_at = Instant::now();
    loop {
        tokio::time::sleep(interval).await;
        let Some(value) = value.upgrade() else { return };
        let files = files.clone();
        // Files may stand on a network; the threads that serve calls do not wait for it, nor for
        // what is made of them.
        let Ok(now) = spawn_blocking(move || read(&files)).await else {
            return;
        };
        let now = now.inspect_err(|error| tracing::warn!(error, "{STAYS}"));
        let changed = now.ok().filter(|now| *now != contents);
        // What cannot be used is no reason not to renew. It is tried at each look: it may have
        // failed for want of something else.
        let due = (made_at.elapsed() >= renewal).then(|| contents.clone());
        if changed.is_none() && due.is_none() {
            refused = None;
        }
        for tried in changed.into_iter().chain(due) {
            let make = Arc::clone(&make);
            let Ok((made, tried)) = spawn_blocking(move || (make(&tried), tried)).await else {
                return;
            };
            match made {
                Ok(made) => {
                    value.store(Arc::new(made));
                    made_at = Instant::now();
                    if tried != contents {
                        (contents, refused) = (tried, None);
                    }
                    tracing::debug!("made anew: files have changed, or it was time");
                    break;
                }
                Err(error) => {
                    if refused.as_ref() != Some(&tried) {
                        tracing::warn!(error, "{STAYS}");
                    }
                    refused = Some(tried);
                }
            }
        }
    }
}

const STAYS: &str = "configuration files cannot be used: what was read before stays";

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let read = |path: &PathBuf| {
        fs::read(path).map_err(|error: io::Error| format!("{}: {error}", path.display()))
    };
    files.iter().map(read).collect()
}
