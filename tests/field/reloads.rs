//! Files that change under a running gateway, and signals: rows O2, O3, O4, O8, G9 and A4, on the
//! real program.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use assert_cmd::Command;
use runs_gateway::v1::{GetRunRequest, run_service_client::RunServiceClient};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tonic::{Request, Status};

use crate::{
    certificates::Authority,
    operators::{HASH, text, write},
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
};

const LIMIT: Duration = Duration::from_secs(20);

/// The lines that say this, once there are so many.
pub(crate) async fn lines(program: &Running, words: &str, count: usize) -> Vec<Value> {
    let found = async {
        loop {
            let log = program.log();
            let lines = log.iter().filter(|line| line.contains(words));
            let lines: Vec<Value> = lines
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect();
            if lines.len() >= count {
                return lines;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let found = timeout(LIMIT, found).await;
    found.unwrap_or_else(|_| panic!("{count} x {words:?}: {:#?}", program.log()))
}

/// The value of a metric, by its name and labels.
pub(crate) async fn metric(program: &Running, name: &str) -> f64 {
    let (_, page) = program.ask_admin("/metrics").await;
    let value = page.lines().find_map(|line| line.strip_prefix(name));
    let value = value.unwrap_or_else(|| panic!("{name}: {page}"));
    value.trim().parse().expect("a number")
}

/// Waits until a metric has this value.
async fn becomes(program: &Running, name: &str, value: f64) {
    let same = async {
        while (metric(program, name).await - value).abs() > 0.5 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, same)
        .await
        .unwrap_or_else(|_| panic!("{name} is not {value}: {:#?}", program.log()));
}

async fn call(program: &Running) -> Result<(), Status> {
    let mut request = Request::new(GetRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
    });
    let token = "Bearer secret".parse().expect("a value");
    request.metadata_mut().insert("authorization", token);
    let mut runs = RunServiceClient::new(program.channel.clone());
    runs.get_run(request).await.map(drop)
}

/// What happens to a file.
#[derive(Debug)]
enum To {
    /// It is emptied in place.
    Truncated,
    /// It is replaced.
    Content(&'static str),
    /// It is gone.
    Nothing,
    /// A FIFO takes its place, which nobody writes to.
    Fifo,
    /// A folder does.
    Folder,
}

impl To {
    /// It is made beside the file and takes its place at once: no look sees anything between.
    fn come(&self, path: &Path) {
        let made = path.with_extension("made");
        match self {
            Self::Nothing => return fs::remove_file(path).expect("a file"),
            Self::Truncated => return fs::write(path, "").expect("a file"),
            Self::Content(content) => fs::write(&made, content).expect("a file"),
            // A link to one: a folder itself cannot take a file's place.
            Self::Folder => symlink("/", &made).expect("a link"),
            Self::Fifo => {
                Command::new("mkfifo").arg(&made).assert().success();
            }
        }
        fs::rename(&made, path).expect("its place");
    }
}

/// A4, G9: what cannot be used changes nothing and is said once, whatever became of the file.
#[tokio::test]
async fn a_file_that_cannot_be_used_keeps_the_old_and_is_said_once() {
    let upstream = Upstream::answering(|request| {
        let key = request
            .headers
            .iter()
            .find(|(name, _)| name == "authorization");
        assert_eq!(
            key.map(|(_, value)| &**value),
            Some(&b"Bearer sk-whole-key"[..])
        );
        Answer::json(200, r#"{"id":"run_1","thread_id":"thread_1"}"#)
    })
    .await;
    let half = &HASH[..40];
    let table: [(&str, &str, To, &str); 11] = [
        ("tokens", "emptied", To::Truncated, "the file is empty"),
        (
            "tokens",
            "comments only",
            To::Content("# soon\n"),
            "nobody could call",
        ),
        ("tokens", "half a hash", To::Content(half), "SHA-256"),
        ("tokens", "gone", To::Nothing, "No such file"),
        ("tokens", "a FIFO", To::Fifo, "not a regular file"),
        ("tokens", "a folder", To::Folder, "not a regular file"),
        ("upstream", "emptied", To::Truncated, "the file is empty"),
        ("upstream", "blank", To::Content("\n\n"), "the key is empty"),
        (
            "upstream",
            "two lines",
            To::Content("sk-\u{1}"),
            "not a key",
        ),
        ("upstream", "gone", To::Nothing, "No such file"),
        ("upstream", "a FIFO", To::Fifo, "not a regular file"),
    ];
    for (what, row, to, reason) in table {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = write(&folder, "tokens", HASH);
        let key = write(&folder, "upstream", "sk-whole-key\n");
        let url = upstream.url();
        let flags = [
            "--upstream-url",
            &url,
            "--upstream-api-key-file",
            &key,
            "--tokens-file",
            &tokens,
            "--reload-interval",
            "20ms",
        ];
        let program = Running::start(&flags).await;
        let gauge = format!("runs_gateway_reload_failing{{files=\"{what}\"}}");
        assert!(metric(&program, &gauge).await < 0.5, "{row}");
        let path = folder.path().join(what);
        to.come(&path);
        let said = lines(&program, "what was read before stays", 1).await;
        let fields = &said[0]["fields"];
        assert_eq!(
            (&said[0]["level"], &fields["what"]),
            (&"WARN".into(), &what.into()),
            "{what} {row}"
        );
        let error = fields["error"].as_str().expect("text");
        let flag = if what == "tokens" {
            "--tokens-file"
        } else {
            "--upstream-api-key-file"
        };
        assert!(
            error.contains(reason) && error.contains(flag),
            "{what} {row}: {error}"
        );
        becomes(&program, &gauge, 1.0).await;
        // Many looks later nothing more has been said, and callers are served as before.
        sleep(Duration::from_millis(400)).await;
        call(&program)
            .await
            .unwrap_or_else(|status| panic!("{what} {row}: {status}"));
        assert_eq!(
            lines(&program, "what was read before stays", 1).await.len(),
            1,
            "{what} {row}"
        );
        // Reloading goes on: nothing hangs at what was there.
        let good = if what == "tokens" {
            "# back\n2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b x"
        } else {
            "sk-whole-key"
        };
        To::Content(good).come(&path);
        let said = lines(&program, "are in use", 1).await;
        let loaded = if what == "tokens" {
            "1 callers by 1 tokens"
        } else {
            "a key"
        };
        assert_eq!(said[0]["fields"]["loaded"], loaded, "{what} {row}");
        becomes(&program, &gauge, 0.0).await;
        call(&program)
            .await
            .unwrap_or_else(|status| panic!("{what} {row}: {status}"));
        let (ended, log) = program.stop("-TERM").await;
        assert!(ended.success(), "{log}");
    }
}

/// A4: a file that is still being written is not used before it is whole.
#[tokio::test]
async fn a_file_in_mid_write_is_read_when_it_rests() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = write(&folder, "key", "sk-first");
    let upstream = Upstream::answering(|request| {
        let key = request
            .headers
            .iter()
            .find(|(name, _)| name == "authorization");
        let key = key.map(|(_, value)| value.to_vec()).unwrap_or_default();
        assert!(
            [&b"Bearer sk-first"[..], b"Bearer sk-second"].contains(&&*key),
            "half a key"
        );
        Answer::json(200, r#"{"id":"run_1","thread_id":"thread_1"}"#)
    })
    .await;
    let url = upstream.url();
    let flags = [
        "--upstream-url",
        &url,
        "--upstream-api-key-file",
        &key,
        "--reload-interval",
        "150ms",
    ];
    let program = Running::start(&flags).await;
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&key)
        .expect("a file");
    for piece in ["sk-", "s", "e", "c", "o", "n", "d"] {
        file.write_all(piece.as_bytes()).expect("written");
        call(&program).await.expect("an answer");
        sleep(Duration::from_millis(60)).await;
    }
    drop(file);
    lines(&program, "are in use", 1).await;
    call(&program).await.expect("an answer");
    let last = upstream.requests().pop().expect("a request");
    let key = last
        .headers
        .iter()
        .find(|(name, _)| name == "authorization");
    assert_eq!(
        key.map(|(_, value)| &**value),
        Some(&b"Bearer sk-second"[..])
    );
    let (_, log) = program.stop("-TERM").await;
    assert_eq!(log.matches("are in use").count(), 1, "{log}");
}

/// O2, O4: SIGHUP ends nothing, looks at once, and says what became of each kind of file.
#[tokio::test]
async fn a_hangup_reads_the_files_again_and_says_what_they_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let tokens = write(&folder, "tokens", HASH);
    let (certificate, key) = authority.server("localhost");
    let (certificate, key) = (
        write(&folder, "crt", certificate),
        write(&folder, "key", key),
    );
    let flags = [
        "--upstream-api-key",
        "k",
        "--reload-interval",
        "0s",
        "--tokens-file",
        &tokens,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
    ];
    let program = Running::start(&flags).await;
    program.signal("-HUP");
    for what in ["\"what\":\"tokens\"", "\"what\":\"server certificate\""] {
        let said = lines(&program, what, 1).await;
        let message = said[0]["fields"]["message"].as_str().expect("text");
        assert!(message.contains("as they were"), "{message}");
        assert!(said[0]["fields"]["loaded"].is_string(), "{said:?}");
    }
    let second = "0".repeat(64);
    for (content, words, loaded) in [
        (
            format!("{HASH} name\n{second} other"),
            "are in use",
            "2 callers by 2 tokens",
        ),
        (
            format!("{HASH} name\n{second} name"),
            "are in use",
            "1 callers by 2 tokens",
        ),
        (String::new(), "the file is empty", ""),
        ("# nobody".to_owned(), "nobody could call", ""),
    ] {
        fs::write(&tokens, content).expect("a file");
        program.signal("-HUP");
        let said = lines(&program, if loaded.is_empty() { words } else { loaded }, 1).await;
        assert!(said[0].to_string().contains(words), "{said:?}");
    }
    let (ended, log) = program.stop("-TERM").await;
    assert_eq!(ended.code(), Some(0), "{log}");
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
}

/// O3, O8: when a certificate expires is a metric, which follows it; one that has expired, or soon
/// will, is a line, whether it was swapped in or grew old.
#[tokio::test]
async fn certificates_that_expire_are_a_metric_and_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let certificate = folder.path().join("crt");
    let key = folder.path().join("key");
    let replace = |pair: (String, String)| {
        fs::write(&certificate, pair.0).expect("a file");
        fs::write(&key, pair.1).expect("a file");
    };
    let year = seconds(SystemTime::now()) + 365 * 24 * 3600;
    replace(authority.server_until("localhost", year));
    let (crt, key_path) = (text(&certificate), text(&key));
    let flags = [
        "--tls-cert-file",
        &crt,
        "--tls-key-file",
        &key_path,
        "--reload-interval",
        "50ms",
    ];
    let program = Running::start(&flags).await;
    let expiry = r#"runs_gateway_certificate_expiry_timestamp_seconds{certificate="server"}"#;
    let failing = r#"runs_gateway_reload_failing{files="server certificate"}"#;
    #[allow(clippy::cast_precision_loss, reason = "seconds fit")]
    let float = |seconds: u64| seconds as f64;
    becomes(&program, expiry, float(year)).await;
    becomes(&program, failing, 0.0).await;

    // Swapped in when it has expired already, or is another's: not used.
    for (pair, words) in [
        (authority.expired_server("localhost"), "has expired"),
        (authority.future_server("localhost"), "not valid yet"),
        (
            (
                authority.server("localhost").0,
                authority.server("localhost").1,
            ),
            "is not the key of",
        ),
    ] {
        replace(pair);
        let said = lines(&program, words, 1).await;
        assert_eq!(said[0]["level"], "WARN", "{said:?}");
        becomes(&program, failing, 1.0).await;
        becomes(&program, expiry, float(year)).await;
    }

    // Soon.
    let soon = seconds(SystemTime::now()) + 3 * 24 * 3600;
    replace(authority.server_until("localhost", soon));
    let said = lines(&program, "expires soon", 1).await;
    assert_eq!(said[0]["level"], "WARN", "{said:?}");
    becomes(&program, expiry, float(soon)).await;
    becomes(&program, failing, 0.0).await;

    // Grown old in use.
    let now = seconds(SystemTime::now()) + 3;
    replace(authority.server_until("localhost", now));
    becomes(&program, expiry, float(now)).await;
    becomes(&program, failing, 0.0).await;
    let said = lines(&program, "it has expired", 1).await;
    assert_eq!(said[0]["level"], "WARN", "{said:?}");
    becomes(&program, failing, 1.0).await;
    replace(authority.server_until("localhost", year));
    becomes(&program, failing, 0.0).await;
    becomes(&program, expiry, float(year)).await;
    let (ended, log) = program.stop("-TERM").await;
    assert!(ended.success(), "{log}");
    assert_eq!(log.matches("it has expired").count(), 1, "{log}");
    assert_eq!(log.matches("expires soon").count(), 2, "one each: {log}");
}

/// O8: the certificate that is shown to the upstream has one, too; without any there is no metric.
#[tokio::test]
async fn the_certificate_for_the_upstream_has_its_metric_and_none_has_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let (certificate, key) = authority.client("gateway");
    let (certificate, key) = (
        write(&folder, "crt", certificate),
        write(&folder, "key", key),
    );
    let flags = [
        "--upstream-url",
        "https://localhost:1",
        "--upstream-client-cert-file",
        &certificate,
        "--upstream-client-key-file",
        &key,
    ];
    let program = Running::start(&flags).await;
    let name =
        r#"runs_gateway_certificate_expiry_timestamp_seconds{certificate="upstream client"}"#;
    becomes(&program, name, 64_060_588_800.0).await;
    drop(program);
    let program = Running::start(&[]).await;
    let (_, page) = program.ask_admin("/metrics").await;
    assert!(!page.contains("runs_gateway_certificate_expiry_timestamp_seconds{"));
}
