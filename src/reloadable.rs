//! What is read from files that may change while the gateway runs: keys, certificates, tokens.
//!
//! Must hold:
//!
//! - A file that is changed takes effect within the interval (and a moment to see that it is not
//!   still being written), or at once after [`reload`], without a restart.
//! - What cannot be read whole, is empty, still changes, or cannot be understood changes nothing.
//!   It is logged once, and again when the reason is another; a gauge is 1 meanwhile.
//! - Nothing blocks: only regular files are read, up to a MiB, by threads of their own.
//!
//! Contents are compared, not times: mounted secrets are swapped as links, and some tools keep
//! times. Why not notifications: they miss swapped links and network volumes.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{Arc, LazyLock, Weak},
    time::Duration,
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

/// Raised by [`reload`]. Signals are the process's, and so is this.
static RELOADS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

/// Looks at all files now, whatever their intervals. Each says in the log what became of it.
pub fn reload() {
    RELOADS.send_modify(|reloads| *reloads += 1);
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

    /// Reads the files of `source` and makes a value of their contents with `make`; again whenever
    /// a content has changed. Has to be called in a runtime. What is wrong is told in words that
    /// name the flag and hold nothing of the files.
    pub fn new(
        source: Source,
        make: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read(&source.files)?;
        let value = Self::fixed(make(&contents)?);
        let keeper = Keeper {
            value: Arc::downgrade(&value.0),
            contents,
            complained: None,
            made_at: Instant::now(),
            make: Arc::new(make),
            source,
        };
        // From now on, and not from when the task begins: a signal may come before.
        tokio::spawn(keeper.keep(RELOADS.subscribe()));
        Ok(value)
    }

    /// The value as it is now.
    pub fn get(&self) -> Arc<T> {
        self.0.load_full()
    }
}

/// Looks at the files for as long as anybody has the value.
struct Keeper<T, F> {
    source: Source,
    value: Weak<ArcSwap<T>>,
    /// What the value is made of.
    contents: Vec<Vec<u8>>,
    /// Why the files cannot be used, as it was logged.
    complained: Option<String>,
    made_at: Instant,
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
    F: Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
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
            let asked = select! {
                () = sleep(interval) => false,
                asked = reloads.changed() => {
                    if asked.is_err() || self.source.files.is_empty() {
                        continue;
                    }
                    true
                }
            };
            if self.value.strong_count() == 0 {
                return;
            }
            let due = self.made_at.elapsed() >= renewal;
            self.look(asked, due).await;
        }
    }

    /// Looks once: `asked` by somebody who reads the log, or `due` to be made anew in any case.
    async fn look(&mut self, asked: bool, due: bool) {
        let what = self.source.what;
        // What cannot be used is no reason not to renew. It is tried at each look: it may have
        // failed for want of something else.
        let again = due.then(|| self.contents.clone());
        let changed = match self.settled().await {
            Ok(Look::Changed(contents)) => Some(contents),
            Ok(Look::Same) => {
                if asked {
                    tracing::info!(what, "reload: the files are as they were");
                }
                if !due {
                    self.fine();
                }
                None
            }
            Err(error) => {
                self.complain(error, asked);
                None
            }
        };
        for tried in changed.into_iter().chain(again) {
            if self.make(tried, asked).await {
                break;
            }
        }
    }

    /// Makes the value of these contents; false if they cannot be used.
    async fn make(&mut self, contents: Vec<Vec<u8>>, asked: bool) -> bool {
        let (make, making) = (Arc::clone(&self.make), contents.clone());
        // The threads that serve calls do not wait for what is made of the files, either.
        match spawn_blocking(move || make(&making)).await {
            Ok(Ok(made)) => {
                if let Some(value) = self.value.upgrade() {
                    value.store(Arc::new(made));
                }
                self.made_at = Instant::now();
                if contents != self.contents {
                    let what = self.source.what;
                    tracing::info!(what, "reload: the files have changed and are in use");
                    self.contents = contents;
                    self.fine();
                }
                true
            }
            Ok(Err(error)) => {
                self.complain(error, asked);
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

    fn fine(&mut self) {
        self.complained = None;
        self.source.failing.set(0);
    }

    fn complain(&mut self, error: String, asked: bool) {
        self.source.failing.set(1);
        if asked || self.complained.as_ref() != Some(&error) {
            let what = self.source.what;
            tracing::warn!(what, error, "reload: what was read before stays");
        }
        self.complained = Some(error);
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
