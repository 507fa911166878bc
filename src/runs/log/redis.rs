//! Logs that replicas share, in Redis or Valkey: a stream per run, and a lease beside it.
//!
//! | key | what |
//! |---|---|
//! | `runs-gateway:{KEY}:events` | stream; the ids are positions, the one field is the event |
//! | `runs-gateway:{KEY}:lease` | who writes, until when |
//!
//! Must hold:
//!
//! - All keys of a run are in one hash slot. Each script names its keys.
//! - Redis refuses an id that is not above the last one. So an append that is repeated is stored
//!   once, and whoever lost its lease to somebody else can write no more.
//! - A message on the channel of a run's stream is a hint that there is more; what there is, is
//!   read. One connection does all of it, however many runs are followed.
//! - What this replica writes it reads from its own memory, after the store has it.
//!
//! One primary (by its own name, or behind a name that moves): no Redis Cluster client. After a
//! failover the connection is made anew when the old one ends; what the old primary had not yet
//! copied is lost, which readers see as a gap.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{
    Client, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _, ProtocolVersion, PushInfo,
    PushKind, RedisError, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Board, Entry, EventLog, Followers, Following, Key, LogError, LogLimits, MemoryLog, PAGE_BYTES,
    Page, Position, SharedCreate,
    key::{hex, random},
    scripts::{APPEND, CLAIM, READ, RELEASE, RENEW},
};
use crate::{shares::Owner, telemetry::EventLogMetrics};

/// The most that this replica remembers of a log that it writes, in bytes. Who is further behind
/// reads from the store.
const OWN_BYTES: usize = 512 << 10;

/// The most leases that are renewed at a time: one after the other they would take a round trip
/// each, and the last would come too late.
const RENEWALS: usize = 256;

/// Where the store is. Printed without its secrets.
#[derive(Clone)]
pub struct RedisStore {
    connection: ConnectionInfo,
    certificates: Option<Vec<u8>>,
    secret: Arc<SecretString>,
}

impl RedisStore {
    /// The store at `url` (`redis://host:port/db`, or `rediss://` for TLS), with a password of its
    /// own if the URL has none, and the CA certificates (PEM) that it is trusted by, if not the
    /// system's. `secret` is that of the logs' keys, the same on all replicas.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL.
    pub fn new(
        url: &str,
        password: Option<&SecretString>,
        certificates: Option<Vec<u8>>,
        secret: SecretString,
    ) -> Result<Self, String> {
        let wrong = |error: RedisError| error.category().to_owned();
        let connection = url.into_connection_info().map_err(wrong)?;
        let mut settings = connection
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        if let Some(password) = password {
            settings = settings.set_password(password.expose_secret());
        }
        Ok(Self {
            connection: connection.set_redis_settings(settings),
            certificates,
            secret: Arc::new(secret),
        })
    }

    /// The secret of the logs' keys.
    pub(in crate::runs) fn secret(&self) -> &[u8] {
        self.secret.expose_secret().as_bytes()
    }

    fn client(&self) -> Result<Client, RedisError> {
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(
                self.connection.clone(),
                TlsCertificates {
                    client_tls: None,
                    root_cert: Some(certificates.clone()),
                },
            ),
            None => Client::open(self.connection.clone()),
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisStore({})", self.connection.addr())
    }
}

/// Logs in Redis.
#[derive(Debug)]
pub(in crate::runs) struct RedisLog {
    shared: Arc<Shared>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

pub(super) struct Shared {
    pub(super) connection: ConnectionManager,
    pub(super) limits: Arc<LogLimits>,
    metrics: EventLogMetrics,
    /// This replica.
    pub(super) owner: String,
    /// Since when the store does not answer, and when it last did not.
    silent: Mutex<Option<(Instant, Instant)>>,
    /// What this replica writes, as far as it is in the store.
    own: MemoryLog,
    claims: Mutex<HashMap<Key, Claimed>>,
    followers: Followers,
    /// Told of the runs that other replicas have changed.
    on_change: Arc<OnceLock<Heard>>,
    /// Other logs are followed than the connection has subscribed to.
    changed: Arc<Notify>,
}

/// A log that this replica writes.
struct Claimed {
    epoch: u64,
    /// What was written, in up to [`PARTS`] parts: the number of the first entry, and bytes.
    parts: VecDeque<(u64, usize)>,
    bytes: usize,
}

/// A log that is too large loses a part of this fraction.
const PARTS: usize = 64;

impl Claimed {
    fn new(epoch: u64) -> Self {
        Self {
            epoch,
            parts: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Counts what is appended, and gives the number of the oldest entry that stays; 0 for all.
    fn add(&mut self, first: u64, bytes: usize, most: usize) -> u64 {
        self.bytes += bytes;
        match self.parts.back_mut() {
            Some((_, part)) if *part + bytes <= most / PARTS => *part += bytes,
            _ => self.parts.push_back((first, bytes)),
        }
        let mut oldest = 0;
        while self.bytes > most && self.parts.len() > 1 {
            if let Some((_, part)) = self.parts.pop_front() {
                self.bytes -= part;
            }
            oldest = self.parts.front().map_or(0, |(first, _)| *first);
        }
        oldest
    }
}

/// Is told the key of a run.
type Heard = Box<dyn Fn(&str) + Send + Sync>;

/// The channel on which replicas say which runs they have changed.
const CHANGED: &str = "runs-gateway:changed";

impl RedisLog {
    /// Connects when first used. Has to be called in a runtime.
    ///
    /// # Errors
    ///
    /// What is wrong with the certificates.
    pub(in crate::runs) fn new(
        store: &RedisStore,
        limits: Arc<LogLimits>,
        metrics: EventLogMetrics,
    ) -> Result<Self, String> {
        let followers = Followers::default();
        let changed = Arc::new(Notify::new());
        let on_change = Arc::new(OnceLock::new());
        let owner = hex(&random()[..16]);
        let name = owner.clone();
        let (woken, subscribe, told) = (
            followers.clone(),
            Arc::clone(&changed),
            Arc::clone(&on_change),
        );
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(limits.timeout))
            .set_response_timeout(Some(limits.timeout))
            .set_max_delay(Duration::from_secs(1))
            .set_automatic_resubscription()
            .set_push_sender(move |push: PushInfo| -> Result<(), redis::aio::SendError> {
                pushed(&name, &woken, &subscribe, &told, &push);
                Ok(())
            });
        let connection = store
            .client()
            .and_then(|client| ConnectionManager::new_lazy_with_config(client, config))
            .map_err(|error| error.category().to_owned())?;
        let own = Arc::new(LogLimits {
            run_bytes: OWN_BYTES.min(limits.run_bytes),
            ..LogLimits::clone(&limits)
        });
        // What leaves this replica's memory is in the store.
        let own_metrics = EventLogMetrics {
            bytes: metrics.bytes.clone(),
            ..EventLogMetrics::default()
        };
        let shared = Arc::new(Shared {
            connection,
            limits,
            metrics,
            owner,
            silent: Mutex::default(),
            own: MemoryLog::with(own, followers.clone(), own_metrics),
            claims: Mutex::default(),
            followers,
            on_change,
            changed,
        });
        let tasks = [
            tokio::spawn(renew(Arc::downgrade(&shared))),
            tokio::spawn(subscribe_to_followed(Arc::downgrade(&shared))),
        ];
        Ok(Self {
            shared,
            _tasks: tasks.map(AbortOnDropHandle::new),
        })
    }
}

#[async_trait]
impl EventLog for RedisLog {
    fn is_shared(&self) -> bool {
        true
    }

    async fn claim(
        &self,
        key: &Key,
        owner: Owner,
        after: Option<Position>,
    ) -> Result<u64, LogError> {
        let shared = &self.shared;
        let mut claim = CLAIM.key(events(key));
        claim
            .key(lease(key))
            .arg(&shared.owner)
            .arg(millis(shared.limits.lease))
            .arg(millis(shared.limits.live_ttl))
            .arg(after.map(|after| after.to_string()).unwrap_or_default());
        let epoch: u64 = shared.run(&claim).await?;
        if epoch == 0 {
            return Err(LogError::Held);
        }
        shared.own.begin(key, owner, epoch);
        shared.claims().insert(key.clone(), Claimed::new(epoch));
        shared.changed.notify_one();
        Ok(epoch)
    }

    async fn append(
        &self,
        key: &Key,
        first: Position,
        payloads: &[Bytes],
        is_over: bool,
    ) -> Result<(), LogError> {
        let shared = &self.shared;
        let ttl = if is_over {
            shared.limits.ttl
        } else {
            shared.limits.live_ttl
        };
        let mut append = APPEND.key(events(key));
        append
            .arg(first.epoch)
            .arg(first.sequence)
            .arg(millis(ttl))
            .arg(shared.limits.run_entries)
            .arg(shared.oldest_to_keep(key, first, payloads));
        for payload in payloads {
            append.arg(&payload[..]);
        }
        let stored: i64 = shared.run(&append).await?;
        match stored {
            0 => {
                shared.lost(key, first.epoch);
                return Err(LogError::Fenced);
            }
            1.. => shared.metrics.trimmed.inc_by(stored.unsigned_abs() - 1),
            _ => return Err(LogError::Away("the log is gone".to_owned())),
        }
        shared.own.append(key, first, payloads, is_over).await
    }

    async fn read(&self, key: &Key, after: Position) -> Result<Option<Page>, LogError> {
        let shared = &self.shared;
        if let Some(page) = shared.own.own_page(key, after) {
            return Ok(Some(page));
        }
        let mut read = READ.key(events(key));
        read.key(lease(key)).arg(after.to_string()).arg(PAGE_BYTES);
        let (held, last, found): (u8, String, Vec<Vec<u8>>) = shared.run(&read).await?;
        if last.is_empty() {
            return Ok(None);
        }
        let mut entries = Vec::new();
        let mut found = found.into_iter();
        while let (Some(id), Some(payload)) = (found.next(), found.next()) {
            entries.push(Entry {
                position: position(&id)?,
                payload: payload.into(),
            });
        }
        Ok(Some(Page {
            entries,
            last: position(last.as_bytes())?,
            is_held: held == 1,
        }))
    }

    fn follow(&self, key: &Key) -> Following {
        self.shared.follow(key)
    }

    fn release(&self, key: &Key, epoch: u64) {
        let shared = &self.shared;
        let mut claims = shared.claims();
        if claims.get(key).is_none_or(|claimed| claimed.epoch != epoch) {
            return;
        }
        claims.remove(key);
        drop(claims);
        shared.own.release(key, epoch);
        shared.changed.notify_one();
        // Without a runtime the program is at its end, and the lease expires.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (shared, key) = (Arc::clone(shared), key.clone());
            runtime.spawn(async move { shared.release(&key, epoch).await });
        }
    }

    fn forget(&self, key: &Key, epoch: u64) {
        self.shared.own.drop_log(key, epoch);
    }

    fn board(&self, key: &Key, lease: Duration) -> Option<Board> {
        let following = self.follow(key);
        let lease = lease.max(self.shared.limits.lease);
        Some(Board::new(
            Arc::clone(&self.shared),
            key.clone(),
            following,
            lease,
        ))
    }

    fn create(&self, key: &Key, fingerprint: &str) -> Option<SharedCreate> {
        let shared = Arc::clone(&self.shared);
        Some(SharedCreate::new(
            shared,
            key.clone(),
            fingerprint.to_owned(),
        ))
    }

    async fn changed(&self, key: &Key) {
        let mut connection = self.shared.connection.clone();
        let mut publish = redis::cmd("PUBLISH");
        let change = format!("{}:{}", self.shared.owner, key.as_str());
        publish.arg(CHANGED).arg(change);
        _ = publish.query_async::<u64>(&mut connection).await;
    }

    fn on_change(&self, heard: Box<dyn Fn(&str) + Send + Sync>) {
        _ = self.shared.on_change.set(heard);
    }

    async fn close(&self) {
        let claims: Vec<_> = self.shared.claims().drain().collect();
        let released = async {
            for (key, claimed) in claims {
                self.shared.release(&key, claimed.epoch).await;
            }
        };
        _ = timeout(self.shared.limits.timeout, released).await;
    }
}

impl Shared {
    pub(super) fn follow(&self, key: &Key) -> Following {
        let (following, is_first) = self.followers.follow(key);
        if is_first {
            self.changed.notify_one();
        }
        following
    }

    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &redis::ScriptInvocation<'_>,
    ) -> Result<T, LogError> {
        let mut connection = self.connection.clone();
        let done = script.invoke_async(&mut connection).await;
        if done.is_ok() {
            *self.silent() = None;
        }
        done.map_err(|error| away(&error))
    }

    /// The store did not answer. Whether it has not for the time of a lease: then it is away, and
    /// not late.
    pub(super) fn is_away(&self) -> bool {
        let LogLimits { lease, timeout, .. } = *self.limits;
        let now = Instant::now();
        let mut silent = self.silent();
        let since = match *silent {
            // Asked once more, it takes no longer to be silent again.
            Some((since, last)) if now - last < lease + 2 * timeout => since,
            _ => now,
        };
        *silent = Some((since, now));
        now - since >= lease
    }

    fn silent(&self) -> MutexGuard<'_, Option<(Instant, Instant)>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn renew(&self, key: &Key, epoch: u64) -> Result<(), LogError> {
        let mut renew = RENEW.key(events(key));
        renew
            .key(lease(key))
            .arg(&self.owner)
            .arg(epoch)
            .arg(millis(self.limits.lease));
        if self.run::<u8>(&renew).await? == 0 {
            self.lost(key, epoch);
        }
        Ok(())
    }

    async fn release(&self, key: &Key, epoch: u64) {
        let mut release = RELEASE.key(events(key));
        release.key(lease(key)).arg(&self.owner).arg(epoch);
        if let Err(error) = self.run::<u8>(&release).await {
            tracing::debug!(?error, "a lease was not given back: it will expire");
        }
    }

    /// The number of the oldest entry of this epoch that stays when these are appended; 0 for all.
    fn oldest_to_keep(&self, key: &Key, first: Position, payloads: &[Bytes]) -> u64 {
        let mut claims = self.claims();
        let claimed = claims.get_mut(key);
        let bytes = payloads.iter().map(Bytes::len).sum();
        claimed.map_or(0, |claimed| {
            claimed.add(first.sequence, bytes, self.limits.run_bytes)
        })
    }

    /// Somebody else may write this log from here on: it is read from the store.
    fn lost(&self, key: &Key, epoch: u64) {
        let mut claims = self.claims();
        if claims
            .get(key)
            .is_some_and(|claimed| claimed.epoch == epoch)
        {
            claims.remove(key);
        }
        drop(claims);
        self.own.drop_log(key, epoch);
        self.followers.wake(key.as_str());
        self.changed.notify_one();
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<Key, Claimed>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Renews the leases of this replica.
async fn renew(shared: Weak<Shared>) {
    let Some(lease_time) = shared.upgrade().map(|shared| shared.limits.lease) else {
        return;
    };
    let mut tick = interval(lease_time / 3);
    loop {
        tick.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let claims: Vec<_> = shared
            .claims()
            .iter()
            .map(|(key, claimed)| (key.clone(), claimed.epoch))
            .collect();
        for some in claims.chunks(RENEWALS) {
            let mut renewals = JoinSet::new();
            for (key, epoch) in some.iter().cloned() {
                let shared = Arc::clone(&shared);
                renewals.spawn(async move { shared.renew(&key, epoch).await });
            }
            if renewals.join_all().await.iter().any(Result::is_err) {
                // All others would wait as long.
                break;
            }
        }
    }
}

/// Keeps the connection subscribed to the logs that are followed and written elsewhere.
async fn subscribe_to_followed(shared: Weak<Shared>) {
    let mut subscribed = HashSet::new();
    let Some(changed) = shared.upgrade().map(|shared| Arc::clone(&shared.changed)) else {
        return;
    };
    let mut hears_changes = false;
    loop {
        // Whoever leaves does not say so.
        _ = timeout(Duration::from_secs(5), changed.notified()).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let wanted: HashSet<Key> = {
            let claims = shared.claims();
            let followed = shared.followers.followed().into_iter();
            followed.filter(|key| !claims.contains_key(key)).collect()
        };
        let mut connection = shared.connection.clone();
        if !hears_changes && shared.on_change.get().is_some() {
            hears_changes = connection.subscribe(CHANGED).await.is_ok();
        }
        for key in &wanted {
            if !subscribed.contains(key) && connection.subscribe(events(key)).await.is_ok() {
                subscribed.insert(key.clone());
                // What came before is not announced.
                shared.followers.wake(key.as_str());
            }
        }
        for key in subscribed.extract_if(|key| !wanted.contains(key)) {
            _ = connection.unsubscribe(events(&key)).await;
        }
    }
}

/// What the store says of itself.
fn pushed(
    owner: &str,
    followers: &Followers,
    changed: &Notify,
    on_change: &OnceLock<Heard>,
    push: &PushInfo,
) {
    match push.kind {
        PushKind::Message => {
            let text = |index: usize| {
                let value = push.data.get(index).cloned();
                value.and_then(|it| String::from_redis_value(it).ok())
            };
            let channel = text(0);
            if channel.as_deref() == Some(CHANGED) {
                let change = text(1).unwrap_or_default();
                if let (Some(heard), Some((by, key))) = (on_change.get(), change.split_once(':'))
                    && by != owner
                {
                    heard(key);
                }
                return;
            }
            let key = channel.as_deref().and_then(key_of);
            if let Some(key) = key {
                followers.wake(key);
            }
        }
        // What was announced meanwhile is lost.
        PushKind::Disconnection => {
            followers.wake_all();
            changed.notify_one();
        }
        _ => {}
    }
}

/// The channel of a run's hints.
pub(super) fn channel(key: &Key) -> String {
    events(key)
}

fn events(key: &Key) -> String {
    format!("runs-gateway:{{{}}}:events", key.as_str())
}

fn lease(key: &Key) -> String {
    format!("runs-gateway:{{{}}}:lease", key.as_str())
}

/// The log whose events have this name.
fn key_of(events: &str) -> Option<&str> {
    let rest = events.strip_prefix("runs-gateway:{")?;
    rest.strip_suffix("}:events")
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn position(id: &[u8]) -> Result<Position, LogError> {
    Position::parse(id).ok_or_else(|| LogError::Away("an id is no position".to_owned()))
}

/// In words without what was sent.
fn away(error: &RedisError) -> LogError {
    let code = error.code().map(str::to_owned);
    LogError::Away(code.unwrap_or_else(|| error.category().to_owned()))
}
