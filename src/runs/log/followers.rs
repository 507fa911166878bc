//! Who waits for more entries of a log.
//!
//! Must hold: no entry is missed between reading and waiting. A reader follows first, reads, and
//! then waits; what was appended since it began to read ends the wait at once. What wakes is a hint:
//! who is woken reads.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::Key;

/// All followers on this replica. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::runs) struct Followers(Arc<Mutex<HashMap<Key, watch::Sender<()>>>>);

/// One who follows a log. Dropping it leaves.
#[derive(Debug)]
pub(in crate::runs) struct Following {
    followers: Followers,
    key: Key,
    woken: watch::Receiver<()>,
}

impl Followers {
    /// Follows a log. The first to do so is told.
    pub(in crate::runs) fn follow(&self, key: &Key) -> (Following, bool) {
        let mut followed = self.lock();
        let (woken, is_first) = match followed.entry(key.clone()) {
            Entry::Occupied(sender) => (sender.get().subscribe(), false),
            Entry::Vacant(vacant) => (vacant.insert(watch::Sender::new(())).subscribe(), true),
        };
        let following = Following {
            followers: self.clone(),
            key: key.clone(),
            woken,
        };
        (following, is_first)
    }

    /// There may be more in this log.
    pub(in crate::runs) fn wake(&self, key: &str) {
        if let Some(sender) = self.lock().get(key) {
            sender.send_replace(());
        }
    }

    /// There may be more in any log.
    pub(in crate::runs) fn wake_all(&self) {
        for sender in self.lock().values() {
            sender.send_replace(());
        }
    }

    /// The logs that somebody follows.
    pub(in crate::runs) fn followed(&self) -> Vec<Key> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Following {
    /// What is read from here on is read after all that woke before.
    pub(in crate::runs) fn begin_to_read(&mut self) {
        self.woken.borrow_and_update();
    }

    /// Waits until there may be more than was read.
    pub(in crate::runs) async fn more(&mut self) {
        // The sender lives as long as there are followers.
        _ = self.woken.changed().await;
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut followed = self.followers.lock();
        if let Entry::Occupied(sender) = followed.entry(self.key.clone())
            // This one still counts.
            && sender.get().receiver_count() <= 1
        {
            sender.remove();
        }
    }
}
