//! What every log has to do. Each test runs against all of them; Redis, if there is a
//! `redis-server`, which is started here (and must be there if `CI` is set).

#[path = "../../../tests/support/redis.rs"]
#[allow(dead_code, reason = "the tests of the whole gateway use the rest")]
mod redis_server;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use secrecy::SecretString;
use tokio::time::sleep;

use super::{
    Entry, EventLog, Key, LogError, LogLimits, MemoryLog, PAGE_BYTES, Position, RedisLog,
    RedisStore,
};
use crate::{shares::Owner, telemetry::EventLogMetrics};
use redis_server::Redis;

/// A log in this store, as another replica would have it.
fn log(redis: &Redis, limits: &LogLimits) -> Arc<dyn EventLog> {
    counted_log(redis, limits, EventLogMetrics::default())
}

fn counted_log(redis: &Redis, limits: &LogLimits, metrics: EventLogMetrics) -> Arc<dyn EventLog> {
    let secret = SecretString::from("a secret of at least thirty-two bytes");
    let store = RedisStore::new(&redis.url(), None, None, secret).expect("a store");
    Arc::new(RedisLog::new(&store, Arc::new(limits.clone()), metrics).expect("a log"))
}

/// Logs to test: of each kind the one that writes, and one that reads (of another replica, if the
/// kind is shared).
struct Logs {
    _server: Option<Redis>,
    all: Vec<[Arc<dyn EventLog>; 2]>,
    /// What each of those that write counts.
    metrics: Vec<EventLogMetrics>,
}

async fn logs(limits: LogLimits) -> Logs {
    let metrics = vec![EventLogMetrics::default(), EventLogMetrics::default()];
    let memory = MemoryLog::new(Arc::new(limits.clone()), metrics[0].clone());
    let memory: Arc<dyn EventLog> = Arc::new(memory);
    let mut all = vec![[Arc::clone(&memory), memory]];
    let server = Redis::start().await;
    if let Some(server) = &server {
        let writer = counted_log(server, &limits, metrics[1].clone());
        all.push([writer, log(server, &limits)]);
    }
    Logs {
        _server: server,
        all,
        metrics,
    }
}

fn key(name: &str) -> Key {
    Key::new(name)
}

fn payloads(texts: &[&str]) -> Vec<Bytes> {
    let bytes = |text: &&str| Bytes::copy_from_slice(text.as_bytes());
    texts.iter().map(bytes).collect()
}

/// Everything after a position, page by page.
async fn read_all(log: &dyn EventLog, key: &Key, mut after: Position) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let page = log.read(key, after).await.expect("a store").expect("a log");
        let Some(last) = page.entries.last() else {
            return all;
        };
        after = last.position;
        all.extend(page.entries);
    }
}

fn texts(entries: &[Entry]) -> Vec<String> {
    let events = entries.iter().filter(|it| !it.position.begins_epoch());
    let text = |entry: &Entry| String::from_utf8(entry.payload.to_vec()).expect("text");
    events.map(text).collect()
}

/// From each entry to the next nothing is missing.
fn is_whole(entries: &[Entry], mut after: Position) -> bool {
    entries.iter().all(|entry| {
        let follows = entry.follows(after);
        after = entry.position;
        follows
    })
}

#[tokio::test]
async fn what_is_appended_is_read_in_order_from_each_position_on_each_replica() {
    let logs = logs(LogLimits::default()).await;
    for [writer, reader] in &logs.all {
        let key = key("a");
        assert_eq!(reader.read(&key, Position::START).await, Ok(None));
        let epoch = writer
            .claim(&key, Owner::default(), Some(Position::START))
            .await
            .expect("a free log");
        let first = Position::new(epoch, 1);
        let said = payloads(&["a", "b", "c"]);
        writer
            .append(&key, first, &said, false)
            .await
            .expect("room");
        let next = Position::new(epoch, 4);
        let end = payloads(&["d"]);
        writer.append(&key, next, &end, true).await.expect("room");
        for log in [writer, reader] {
            let all = read_all(&**log, &key, Position::START).await;
            assert_eq!(texts(&all), ["a", "b", "c", "d"]);
            assert!(is_whole(&all, Position::START));
            for (index, entry) in all.iter().enumerate() {
                let rest = read_all(&**log, &key, entry.position).await;
                assert_eq!(rest, all[index + 1..]);
            }
            let page = log.read(&key, next).await.expect("a store").expect("a log");
            assert_eq!((page.last, page.is_held), (next, true));
        }
    }
}

#[tokio::test]
async fn an_append_that_is_repeated_is_stored_once() {
    let logs = logs(LogLimits::default()).await;
    for [writer, reader] in &logs.all {
        let key = key("a");
        let epoch = writer
            .claim(&key, Owner::default(), Some(Position::START))
            .await
            .expect("a free log");
        let first = Position::new(epoch, 1);
        let said = payloads(&["a", "b"]);
        for _ in 0..3 {
            writer
                .append(&key, first, &said, false)
                .await
                .expect("room");
        }
        let more = payloads(&["a", "b", "c"]);
        writer
            .append(&key, first, &more, false)
            .await
            .expect("room");
        let all = read_all(&**reader, &key, Position::START).await;
        assert_eq!(texts(&all), ["a", "b", "c"]);
    }
}

#[tokio::test]
async fn whoever_is_driven_out_writes_no_more() {
    let logs = logs(LogLimits::default()).await;
    for [old, new] in &logs.all {
        let key = key("a");
        let epoch = old
            .claim(&key, Owner::default(), Some(Position::START))
            .await
            .expect("a free log");
        let said = payloads(&["a"]);
        let first = Position::new(epoch, 1);
        old.append(&key, first, &said, false).await.expect("room");
        assert_eq!(
            new.claim(&key, Owner::default(), Some(first)).await,
            Err(LogError::Held)
        );
        let later = new
            .claim(&key, Owner::default(), None)
            .await
            .expect("a claim");
        assert!(later > epoch);
        let late = payloads(&["late"]);
        let refused = old.append(&key, first.next(), &late, false).await;
        assert_eq!(refused, Err(LogError::Fenced));
        let on = payloads(&["b"]);
        let position = Position::new(later, 1);
        new.append(&key, position, &on, false).await.expect("room");
        for log in [old, new] {
            let all = read_all(&**log, &key, Position::START).await;
            assert_eq!(texts(&all), ["a", "b"]);
            assert!(is_whole(&all, Position::START));
        }
        // What the old one gives back is not its own any more.
        old.release(&key, epoch);
        assert_eq!(
            old.claim(&key, Owner::default(), Some(position)).await,
            Err(LogError::Held)
        );
    }
}

#[tokio::test]
async fn a_claim_that_is_given_back_is_free_and_its_followers_are_woken() {
    let logs = logs(LogLimits::default()).await;
    for [writer, reader] in &logs.all {
        let key = key("a");
        let epoch = writer
            .claim(&key, Owner::default(), Some(Position::START))
            .await
            .expect("a free log");
        let mut following = reader.follow(&key);
        // Woken once it has subscribed; what comes after that is announced.
        for step in ["append", "release"] {
            loop {
                following.begin_to_read();
                let page = reader.read(&key, Position::START).await;
                let page = page.expect("a store").expect("a log");
                let is_done = match step {
                    "append" => page.entries.len() == 2,
                    _ => !page.is_held,
                };
                if is_done {
                    break;
                }
                if step == "append" {
                    let said = payloads(&["a"]);
                    let first = Position::new(epoch, 1);
                    writer
                        .append(&key, first, &said, false)
                        .await
                        .expect("room");
                } else {
                    writer.release(&key, epoch);
                }
                tokio::time::timeout(Duration::from_secs(10), following.more())
                    .await
                    .expect("a hint");
            }
        }
        // Not by whoever knows less than there is.
        let known = Some(Position::new(epoch, 0));
        assert_eq!(
            reader.claim(&key, Owner::default(), known).await,
            Err(LogError::Held)
        );
        let last = Some(Position::new(epoch, 1));
        assert!(
            reader
                .claim(&key, Owner::default(), last)
                .await
                .expect("a free log")
                > epoch
        );
    }
}

#[tokio::test]
async fn a_log_that_is_too_long_or_too_large_loses_its_oldest_and_the_reader_sees_it() {
    let large = "x".repeat(1000);
    for (limits, texts_of_it) in [
        (
            LogLimits {
                run_entries: 10,
                ..LogLimits::default()
            },
            "x",
        ),
        (
            LogLimits {
                run_bytes: 10_000,
                ..LogLimits::default()
            },
            &*large,
        ),
    ] {
        let logs = logs(limits).await;
        for ([writer, reader], metrics) in logs.all.iter().zip(&logs.metrics) {
            let key = key("a");
            let epoch = writer
                .claim(&key, Owner::default(), Some(Position::START))
                .await
                .expect("a free log");
            for number in 1..=100 {
                let said = payloads(&[texts_of_it]);
                let position = Position::new(epoch, number);
                writer
                    .append(&key, position, &said, false)
                    .await
                    .expect("room");
            }
            let all = read_all(&**reader, &key, Position::START).await;
            assert!((5..=11).contains(&all.len()), "{} entries", all.len());
            // The first one is that of the epoch.
            assert_eq!(metrics.trimmed.get(), 101 - all.len() as u64);
            assert!(!all[0].follows(Position::START));
            assert!(is_whole(&all[1..], all[0].position));
            assert_eq!(all.last().expect("entries").position.sequence, 100);
        }
    }
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_and_has_one_entry_at_least() {
    let logs = logs(LogLimits::default()).await;
    let huge = Bytes::from(vec![b'x'; PAGE_BYTES * 2]);
    let small = Bytes::from(vec![b'x'; PAGE_BYTES / 8]);
    for [writer, reader] in &logs.all {
        let key = key("a");
        let epoch = writer
            .claim(&key, Owner::default(), Some(Position::START))
            .await
            .expect("a free log");
        let mut said = vec![huge.clone()];
        said.extend(std::iter::repeat_n(small.clone(), 40));
        said.push(huge.clone());
        let first = Position::new(epoch, 1);
        writer
            .append(&key, first, &said, false)
            .await
            .expect("room");
        let (mut after, mut seen) = (Position::new(epoch, 0), 0);
        while seen < said.len() {
            let page = reader.read(&key, after).await.expect("a store");
            let page = page.expect("a log");
            let bytes: usize = page.entries.iter().map(|it| it.payload.len()).sum();
            assert!(bytes <= PAGE_BYTES || page.entries.len() == 1, "{bytes}");
            after = page.entries.last().expect("an entry").position;
            seen += page.entries.len();
        }
    }
}

#[tokio::test]
async fn a_log_is_kept_after_its_end_for_a_time_and_then_gone() {
    let limits = LogLimits {
        ttl: Duration::from_millis(50),
        lease: Duration::from_millis(300),
        ..LogLimits::default()
    };
    let logs = logs(limits).await;
    for [writer, reader] in &logs.all {
        let key = key("a");
        let epoch = writer
            .claim(&key, Owner::default(), Some(Position::START))
            .await
            .expect("a free log");
        let said = payloads(&["a"]);
        let first = Position::new(epoch, 1);
        writer.append(&key, first, &said, true).await.expect("room");
        writer.release(&key, epoch);
        let gone = async {
            while reader.read(&key, Position::START).await != Ok(None) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone)
            .await
            .expect("it should be gone by now");
    }
}

#[tokio::test]
async fn a_writer_is_known_to_live_as_long_as_it_does_and_no_longer_than_its_lease() {
    let limits = LogLimits {
        lease: Duration::from_millis(300),
        ..LogLimits::default()
    };
    let Some(server) = Redis::start().await else {
        return;
    };
    let key = key("a");
    let reader = log(&server, &limits);
    let writer = log(&server, &limits);
    let epoch = writer
        .claim(&key, Owner::default(), Some(Position::START))
        .await
        .expect("a free log");
    sleep(Duration::from_millis(900)).await;
    let last = Position::new(epoch, 0);
    assert_eq!(
        reader.claim(&key, Owner::default(), Some(last)).await,
        Err(LogError::Held)
    );
    // It dies without a word.
    drop(writer);
    let free = async {
        while reader.claim(&key, Owner::default(), Some(last)).await == Err(LogError::Held) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), free)
        .await
        .expect("the lease should be over");
}

#[tokio::test]
async fn a_store_that_is_away_is_an_error_within_the_time_and_works_again_when_it_is_back() {
    let Some(mut server) = Redis::start().await else {
        return;
    };
    let log = log(&server, &LogLimits::default());
    let key = key("a");
    let epoch = log
        .claim(&key, Owner::default(), Some(Position::START))
        .await
        .expect("a free log");
    server.kill();
    let said = payloads(&["a"]);
    let append = log.append(&key, Position::new(epoch, 1), &said, false);
    let failed = tokio::time::timeout(Duration::from_secs(5), append).await;
    assert!(
        matches!(failed, Ok(Err(LogError::Away(_))) | Err(_)),
        "{failed:?}"
    );
}

#[tokio::test]
async fn memory_is_bounded_over_all_logs() {
    let limits = LogLimits {
        bytes: 100_000,
        ..LogLimits::default()
    };
    let metrics = EventLogMetrics::default();
    let log = MemoryLog::new(Arc::new(limits.clone()), metrics.clone());
    let said = payloads(&[&"x".repeat(1000)]);
    for run in 0..1000 {
        let key = key(&run.to_string());
        let epoch = log
            .claim(&key, Owner::default(), Some(Position::START))
            .await
            .expect("a free log");
        for number in 1..=3 {
            let position = Position::new(epoch, number);
            log.append(&key, position, &said, false)
                .await
                .expect("room");
        }
        // Every other writer stays.
        if run % 2 == 0 {
            log.release(&key, epoch);
        }
        assert!(log.bytes() <= limits.bytes + 4 * 1200, "{}", log.bytes());
        assert_eq!(metrics.bytes.get(), i64::try_from(log.bytes()).unwrap());
    }
    let last = read_all(&log, &key("999"), Position::START).await;
    assert_eq!(last.last().expect("entries").position.sequence, 3);
}

#[tokio::test]
async fn a_caller_that_fills_the_memory_drops_its_own_oldest_and_nobody_elses() {
    let limits = LogLimits {
        bytes: 1 << 20,
        ..LogLimits::default()
    };
    let log = MemoryLog::new(Arc::new(limits), EventLogMetrics::default());
    let of = |name: &str| Owner::of(&name);
    let record = async |name: &str, owner: Owner, bytes: usize| {
        let key = key(name);
        let epoch = log.claim(&key, owner, None).await.expect("a free log");
        let said = payloads(&[&*"x".repeat(bytes)]);
        let first = Position::new(epoch, 1);
        log.append(&key, first, &said, true).await.expect("room");
        log.release(&key, epoch);
    };
    record("modest", of("modest"), 200 << 10).await;
    // Of the weight 3 it holds less for each than one that holds half of that.
    record("weighty", of("weighty").of_weight(3), 500 << 10).await;
    for number in 0..100 {
        record(&format!("flood {number}"), of("flooding"), 50 << 10).await;
    }
    assert!(log.bytes() <= 1 << 20);
    for (name, is_kept) in [
        ("modest", true),
        ("weighty", true),
        ("flood 0", false),
        ("flood 99", true),
    ] {
        let kept = log.read(&key(name), Position::START).await.expect("read");
        assert_eq!(kept.is_some(), is_kept, "{name}");
    }
}
