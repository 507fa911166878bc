//! What is read from files that may change while the gateway runs: keys, certificates, tokens; and
//! what any value that changes needs (`Setter`, `Complaint`).
//!
//! Must hold:
//!
//! - A file that is changed takes effect within the interval (and a moment to see that it is not
//!   still being written), or at once after [`reload`], without a restart.
//! - What cannot be read whole, is empty, still changes, or cannot be understood changes nothing.
//!   It is logged once, and again when the reason is another; a gauge is 1 meanwhile.
//! - A value that expires is logged a week before, and when it has expired: the gauge is 1 from
//!   then on.
//! - Nothing blocks: only regular files are read, up to a MiB, by threads of their own.
//!
//! Contents are compared, not times: mounted secrets are swapped as links, and some tools keep
//! times. Why not notifications: they miss swapped links and network volumes.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    mem,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{Arc, LazyLock, Weak},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use prometheus::IntGauge;
use tokio::{
    select,
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// The largest file that is read, in bytes: a bundle of all public CAs is a fifth of it.
const MAX_BYTES: u64 = 1 << 20;

/// The longest time between the two looks that see a change: a file that differs in them is still
/// being written.
const SETTLE: Duration = Duration::from_secs(1);

/// How long before a value expires that is said.
const NOTICE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest sleep until something expires: the clock may be set meanwhile.
const CLOCK_LOOK: Duration = Duration::from_secs(3600);

/// Raised by [`reload`]. Signals are the process's, and so is this.
static RELOADS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

/// Looks at all files now, whatever their intervals. Each says in the log what became of it.
pub fn reload() {
    RELOADS.send_modify(|reloads| *reloads += 1);
}

/// Sees each [`reload`] from now on.
pub(crate) fn reloads() -> watch::Receiver<u64> {
    RELOADS.subscribe()
}

/// A file, and the flag that names it.
#[derive(Debug, Clone)]
pub struct NamedFile {
    /// Such as `--tokens-file`.
    pub flag: &'static str,
    /// Where it is.
    pub path: PathBuf,
}

/// What a value is made of, and how often that is looked at.
#[derive(Debug, Clone)]
pub struct Source {
    /// What it is, for the log, such as `tokens`.
    pub what: &'static str,
    /// The files, in the order in which their contents are given.
    pub files: Vec<NamedFile>,
    /// How often they are looked at for changes; zero for never.
    pub interval: Duration,
    /// The age at which the value is made anew even if nothing has changed; zero for never.
    pub renewal: Duration,
    /// 1 while the files cannot be used and what was read before stays.
    pub failing: IntGauge,
}

impl Source {
    /// The same error, with the path of the file that it is about.
    fn with_path(&self, error: String) -> String {
        let named = self.files.iter().find_map(|NamedFile { flag, path }| {
            let rest = error.strip_prefix(flag)?;
            rest.starts_with(':')
                .then(|| format!("{flag} {}{rest}", path.display()))
        });
        named.unwrap_or(error)
    }
}

/// What was made of files.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The value.
    pub value: T,
    /// What it holds, for the log, such as `2 callers by token`. Nothing secret.
    pub summary: String,
    /// When it cannot be used any more.
    pub expires: Option<SystemTime>,
}

/// A value made of files' contents. Cheap to clone; clones see the same value.
#[derive(Debug)]
pub struct Reloadable<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    value: ArcSwap<T>,
    summary: ArcSwap<String>,
}

impl<T> Clone for Reloadable<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> Reloadable<T> {
    /// A value that does not change.
    pub fn fixed(value: T) -> Self {
        Self(Arc::new(Shared {
            value: ArcSwap::from_pointee(value),
            summary: ArcSwap::default(),
        }))
    }

    /// Reads the files of `source` and makes a value of their contents with `make`; again whenever
    /// a content has changed. Has to be called in a runtime. What is wrong is told in words that
    /// name the flag and hold nothing of the files.
    pub fn new(
        source: Source,
        make: impl Fn(&[Vec<u8>]) -> Result<Loaded<T>, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read(&source.files)?;
        let made = make(&contents).map_err(|error| source.with_path(error))?;
        let value = Self::fixed(made.value);
        value.0.summary.store(Arc::new(made.summary));
        let keeper = Keeper {
            value: Arc::downgrade(&value.0),
            contents,
            complaint: Complaint::new(source.what, source.failing.clone()),
            made_at: Instant::now(),
            expires: made.expires,
            noticed: false,
            expired: false,
            make: Arc::new(make),
            source,
        };
        // From now on, and not from when the task begins: a signal may come before.
        tokio::spawn(keeper.keep(reloads()));
        Ok(value)
    }

    /// What changes the value, and does not keep it.
    pub(crate) fn setter(&self) -> Setter<T> {
        Setter(Arc::downgrade(&self.0))
    }

    /// The value as it is now.
    pub fn get(&self) -> Arc<T> {
        self.0.value.load_full()
    }

    /// What it holds, in words without secrets.
    pub fn summary(&self) -> Arc<String> {
        self.0.summary.load_full()
    }
}

/// Changes a value for those who have it.
#[derive(Debug)]
pub(crate) struct Setter<T>(Weak<Shared<T>>);

impl<T> Setter<T> {
    /// Whether anybody has the value.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// From now on the value is this.
    pub(crate) fn set(&self, value: T) {
        if let Some(shared) = self.0.upgrade() {
            shared.value.store(Arc::new(value));
        }
    }
}

/// What is wrong with something that is read again: said once, and again when the reason is
/// another. A gauge is 1 meanwhile.
#[derive(Debug)]
pub(crate) struct Complaint {
    what: &'static str,
    failing: IntGauge,
    said: Option<String>,
}

impl Complaint {
    /// Of `what`, as the log names it.
    pub(crate) fn new(what: &'static str, failing: IntGauge) -> Self {
        Self {
            what,
            failing,
            said: None,
        }
    }

    /// Nothing is wrong any more.
    pub(crate) fn fine(&mut self) {
        self.said = None;
        self.failing.set(0);
    }

    /// This is wrong. It is said in any case if somebody `asked`.
    pub(crate) fn complain(&mut self, error: String, is_asked: bool) {
        self.failing.set(1);
        if is_asked || self.said.as_ref() != Some(&error) {
            let what = self.what;
            tracing::warn!(what, error, "reload: what was read before stays");
        }
        self.said = Some(error);
    }
}

/// Looks at the files for as long as anybody has the value.
struct Keeper<T, F> {
    source: Source,
    value: Weak<Shared<T>>,
    /// What the value is made of.
    contents: Vec<Vec<u8>>,
    complaint: Complaint,
    made_at: Instant,
    /// When the value expires.
    expires: Option<SystemTime>,
    /// That it will was logged.
    noticed: bool,
    /// That it has was logged.
    expired: bool,
    make: Arc<F>,
}

/// What a look has come to.
enum Look {
    /// Nothing has changed.
    Same,
    /// They are these now.
    Changed(Vec<Vec<u8>>),
}

impl<T, F> Keeper<T, F>
where
    T: Send + Sync + 'static,
    F: Fn(&[Vec<u8>]) -> Result<Loaded<T>, String> + Send + Sync + 'static,
{
    async fn keep(mut self, mut reloads: watch::Receiver<u64>) {
        let never = |time: Duration| if time.is_zero() { Duration::MAX } else { time };
        let renewal = never(self.source.renewal);
        // Without files there is nothing to look at before the renewal.
        let interval = if self.source.files.is_empty() {
            renewal
        } else {
            never(self.source.interval).min(renewal)
        };
        loop {
            self.heed_expiry();
            if self.value.strong_count() == 0 {
                return;
            }
            let is_asked = select! {
                () = sleep(interval) => false,
                () = sleep(self.until_notice()) => continue,
                is_asked = reloads.changed() => {
                    if is_asked.is_err() || self.source.files.is_empty() {
                        continue;
                    }
                    true
                }
            };
            let due = self.made_at.elapsed() >= renewal;
            self.look(is_asked, due).await;
        }
    }

    /// How long nothing has to be said of the expiry.
    fn until_notice(&self) -> Duration {
        let Some(remaining) = self.remaining() else {
            return Duration::MAX;
        };
        let remaining = if self.noticed {
            remaining
        } else {
            remaining.saturating_sub(NOTICE)
        };
        // What has expired was said: nothing is new before the files are.
        if remaining.is_zero() {
            Duration::MAX
        } else {
            remaining.min(CLOCK_LOOK)
        }
    }

    /// The time until the value expires: zero if it has.
    fn remaining(&self) -> Option<Duration> {
        let expires = self.expires?;
        let remaining = expires.duration_since(SystemTime::now());
        Some(remaining.unwrap_or(Duration::ZERO))
    }

    /// Says that the value expires soon, or that it has: each once.
    fn heed_expiry(&mut self) {
        let what = self.source.what;
        match self.remaining() {
            Some(Duration::ZERO) => {
                self.source.failing.set(1);
                if !mem::replace(&mut self.expired, true) {
                    tracing::warn!(what, loaded = self.loaded(), "it has expired: renew it");
                }
            }
            Some(remaining) if remaining <= NOTICE && !self.noticed => {
                self.noticed = true;
                tracing::warn!(what, loaded = self.loaded(), "it expires soon: renew it");
            }
            _ => {}
        }
    }

    /// What is in use, for the log.
    fn loaded(&self) -> Option<String> {
        let shared = self.value.upgrade()?;
        Some(shared.summary.load().to_string())
    }

    /// Looks once: `asked` by somebody who reads the log, or `due` to be made anew in any case.
    async fn look(&mut self, is_asked: bool, due: bool) {
        let what = self.source.what;
        // What cannot be used is no reason not to renew. It is tried at each look: it may have
        // failed for want of something else.
        let again = due.then(|| self.contents.clone());
        let changed = match self.settled().await {
            Ok(Look::Changed(contents)) => Some(contents),
            Ok(Look::Same) => {
                if is_asked {
                    let loaded = self.loaded();
                    tracing::info!(what, loaded, "reload: the files are as they were");
                }
                if !due && !self.expired {
                    self.complaint.fine();
                }
                None
            }
            Err(error) => {
                self.complaint.complain(error, is_asked);
                None
            }
        };
        for tried in changed.into_iter().chain(again) {
            if self.make(tried, is_asked).await {
                break;
            }
        }
    }

    /// Makes the value of these contents; false if they cannot be used.
    async fn make(&mut self, contents: Vec<Vec<u8>>, is_asked: bool) -> bool {
        let (make, making) = (Arc::clone(&self.make), contents.clone());
        // The threads that serve calls do not wait for what is made of the files, either.
        match spawn_blocking(move || make(&making)).await {
            Ok(Ok(made)) => {
                let what = self.source.what;
                self.made_at = Instant::now();
                self.expires = made.expires;
                if contents != self.contents {
                    let loaded = &*made.summary;
                    tracing::info!(
                        what,
                        loaded,
                        "reload: the files have changed and are in use"
                    );
                    self.contents = contents;
                    (self.noticed, self.expired) = (false, false);
                    self.complaint.fine();
                }
                if let Some(shared) = self.value.upgrade() {
                    shared.value.store(Arc::new(made.value));
                    shared.summary.store(Arc::new(made.summary));
                }
                true
            }
            Ok(Err(error)) => {
                let error = self.source.with_path(error);
                self.complaint.complain(error, is_asked);
                false
            }
            Err(_) => false,
        }
    }

    /// What the files are, once two looks have seen the same.
    async fn settled(&self) -> Result<Look, String> {
        let first = self.read().await?;
        if first == self.contents {
            return Ok(Look::Same);
        }
        sleep(SETTLE.min(self.source.interval).max(SETTLE / 40)).await;
        if self.read().await? == first {
            Ok(Look::Changed(first))
        } else {
            Err("a file is still being written".to_owned())
        }
    }

    async fn read(&self) -> Result<Vec<Vec<u8>>, String> {
        let files = self.source.files.clone();
        // Files may stand on a network.
        let read = spawn_blocking(move || read(&files)).await;
        read.unwrap_or_else(|_| Err("the files could not be read".to_owned()))
    }
}

fn read(files: &[NamedFile]) -> Result<Vec<Vec<u8>>, String> {
    let each = |NamedFile { flag, path }: &NamedFile| {
        read_one(path).map_err(|error| format!("{flag} {}: {error}", path.display()))
    };
    files.iter().map(each).collect()
}

/// The content of a regular file, which is there as a whole.
fn read_one(path: &PathBuf) -> Result<Vec<u8>, String> {
    // Opening a FIFO would wait for somebody to write to it.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| error.to_string())?;
    // Of what was opened, not of what the path names by now.
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut content = Vec::new();
    let length = file
        .take(MAX_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(|error| error.to_string())?;
    match length as u64 {
        0 => Err("the file is empty".to_owned()),
        length if length > MAX_BYTES => Err(format!("larger than {MAX_BYTES} bytes")),
        _ => Ok(content),
    }
}
