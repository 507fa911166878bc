//! What every log has to do. Each test runs against all of them; Redis, if there is a
//! `redis-server`, which is started here (and must be there if `CI` is set).

use std::{
    env, fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use secrecy::SecretString;
use tokio::time::sleep;

use super::{
    Entry, EventLog, Key, LogError, LogLimits, MemoryLog, PAGE_BYTES, Position, RedisLog,
    RedisStore,
};

/// A Redis on a free port, which ends with its test.
struct Server {
    process: Child,
    url: String,
    folder: std::path::PathBuf,
}

impl Server {
    async fn start() -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let folder = env::temp_dir().join(format!("runs-gateway-redis-{port}"));
        fs::create_dir_all(&folder).expect("a folder");
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .current_dir(&folder)
            .stdout(Stdio::null())
            .spawn();
        let Ok(process) = process else {
            assert!(env::var_os("CI").is_none(), "redis-server is not installed");
            println!("redis-server is not installed: logs in Redis are not tested");
            return None;
        };
        let server = Self {
            process,
            url: format!("redis://127.0.0.1:{port}"),
            folder,
        };
        let client = redis::Client::open(&*server.url).expect("a URL");
        for _ in 0..200 {
            if client.get_multiplexed_async_connection().await.is_ok() {
                return Some(server);
            }
            sleep(Duration::from_millis(25)).await;
        }
        panic!("redis-server does not answer");
    }

    fn log(&self, limits: &LogLimits) -> Arc<dyn EventLog> {
        let secret = SecretString::from("a secret of at least thirty-two bytes");
        let store = RedisStore::new(&self.url, None, None, secret).expect("a store");
        Arc::new(RedisLog::new(&store, Arc::new(limits.clone())).expect("a log"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        _ = fs::remove_dir_all(&self.folder);
    }
}

/// Logs to test: of each kind the one that writes, and one that reads (of another replica, if the
/// kind is shared).
struct Logs {
    _server: Option<Server>,
    all: Vec<[Arc<dyn EventLog>; 2]>,
}

async fn logs(limits: LogLimits) -> Logs {
    let memory: Arc<dyn EventLog> = Arc::new(MemoryLog::new(Arc::new(limits.clone())));
    let mut all = vec![[Arc::clone(&memory), memory]];
    let server = Server::start().await;
    if let Some(server) = &server {
        all.push([server.log(&limits), server.log(&limits)]);
    }
    Logs {
        _server: server,
        all,
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
            .claim(&key, Some(Position::START))
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
            .claim(&key, Some(Position::START))
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
            .claim(&key, Some(Position::START))
            .await
            .expect("a free log");
        let said = payloads(&["a"]);
        let first = Position::new(epoch, 1);
        old.append(&key, first, &said, false).await.expect("room");
        assert_eq!(new.claim(&key, Some(first)).await, Err(LogError::Held));
        let later = new.claim(&key, None).await.expect("a claim");
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
        assert_eq!(old.claim(&key, Some(position)).await, Err(LogError::Held));
    }
}

#[tokio::test]
async fn a_claim_that_is_given_back_is_free_and_its_followers_are_woken() {
    let logs = logs(LogLimits::default()).await;
    for [writer, reader] in &logs.all {
        let key = key("a");
        let epoch = writer
            .claim(&key, Some(Position::START))
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
        assert_eq!(reader.claim(&key, known).await, Err(LogError::Held));
        let last = Some(Position::new(epoch, 1));
        assert!(reader.claim(&key, last).await.expect("a free log") > epoch);
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
        for [writer, reader] in &logs.all {
            let key = key("a");
            let epoch = writer
                .claim(&key, Some(Position::START))
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
            .claim(&key, Some(Position::START))
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
            .claim(&key, Some(Position::START))
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
    let Some(server) = Server::start().await else {
        return;
    };
    let key = key("a");
    let reader = server.log(&limits);
    let writer = server.log(&limits);
    let epoch = writer
        .claim(&key, Some(Position::START))
        .await
        .expect("a free log");
    sleep(Duration::from_millis(900)).await;
    let last = Position::new(epoch, 0);
    assert_eq!(reader.claim(&key, Some(last)).await, Err(LogError::Held));
    // It dies without a word.
    drop(writer);
    let free = async {
        while reader.claim(&key, Some(last)).await == Err(LogError::Held) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), free)
        .await
        .expect("the lease should be over");
}

#[tokio::test]
async fn a_store_that_is_away_is_an_error_within_the_time_and_works_again_when_it_is_back() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let log = server.log(&LogLimits::default());
    let key = key("a");
    let epoch = log
        .claim(&key, Some(Position::START))
        .await
        .expect("a free log");
    server.process.kill().expect("a process");
    server.process.wait().expect("its end");
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
    let log = MemoryLog::new(Arc::new(limits.clone()));
    let said = payloads(&[&"x".repeat(1000)]);
    for run in 0..1000 {
        let key = key(&run.to_string());
        let epoch = log
            .claim(&key, Some(Position::START))
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
    }
    let last = read_all(&log, &key("999"), Position::START).await;
    assert_eq!(last.last().expect("entries").position.sequence, 3);
}
