//! Who the gateway is to its upstream, and whom it takes for its upstream.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus::IntGauge;
use runs_gateway::{
    reloadable::{Loaded, NamedFile, Reloadable, Source},
    v1::{CreateRunRequest, RunSpec, run_service_client::RunServiceClient},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    certificates::Authority, front::front, get_run, spawn_gateway, support::program::Running,
    until, upstream, write,
};

#[tokio::test]
async fn only_an_upstream_whose_certificate_holds_is_talked_to() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let folder = TempDir::new().expect("a folder");
    let ca = write(&folder, "ca.crt", authority.pem());
    let cases = [
        (
            "a certificate of the CA",
            authority.server("localhost"),
            true,
        ),
        ("another CA", stranger.server("localhost"), false),
        ("another name", authority.server("internal.example"), false),
        ("expired", authority.expired_server("localhost"), false),
    ];
    for (case, certificate, holds) in cases {
        let upstream = upstream().await;
        let address = front(&upstream, certificate, None).await;
        let url = format!("https://localhost:{}", address.port());
        let gateway = spawn_gateway(
            &url,
            &["--upstream-ca-file", &ca, "--upstream-api-key", "sk-own"],
        )
        .await;
        // A create, too, is told that it may be repeated: nothing was sent.
        for told in [
            get_run(gateway.channel(), None).await,
            create_run(gateway.channel()).await,
        ] {
            let told = told.map_err(|status| {
                assert!(
                    !status.message().contains("internal.example")
                        && !status.message().contains("localhost"),
                    "{status:?}"
                );
                status.code()
            });
            assert_eq!(
                told,
                if holds {
                    Ok(())
                } else {
                    Err(Code::Unavailable)
                },
                "{case}"
            );
        }
        assert_eq!(
            upstream.requests().len(),
            if holds { 2 } else { 0 },
            "{case}"
        );
        gateway.drain().await;
    }
}

async fn create_run(channel: Channel) -> Result<(), Status> {
    let run = Some(RunSpec {
        assistant_id: "asst_1".to_owned(),
        ..RunSpec::default()
    });
    let request = CreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run,
        include: vec![],
        ..CreateRunRequest::default()
    };
    RunServiceClient::new(channel)
        .create_run(request)
        .await
        .map(|_| ())
}

#[tokio::test]
async fn an_upstream_that_does_not_come_to_speak_tls_is_sent_nothing() {
    let folder = TempDir::new().expect("a folder");
    let ca = write(&folder, "ca.crt", Authority::new().pem());
    let cases: [(&str, &[u8], bool); 4] = [
        ("closes at once", b"", true),
        ("says nothing", b"", false),
        (
            "speaks HTTP",
            b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"id\":\"run_1\"}",
            true,
        ),
        (
            "closes in the handshake",
            b"\x16\x03\x03\x00\x7a\x02\x00",
            true,
        ),
    ];
    for (case, says, closes) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!(
            "https://localhost:{}",
            listener.local_addr().expect("an address").port()
        );
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = Arc::clone(&heard);
        let upstream = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut hello = vec![0; 4096];
                let count = stream.read(&mut hello).await.unwrap_or_default();
                hearing
                    .lock()
                    .expect("never held over a panic")
                    .extend_from_slice(&hello[..count]);
                let _ = stream.write_all(says).await;
                if !closes {
                    open.push(stream);
                }
            }
        });
        let flags = [
            "--upstream-ca-file",
            &ca,
            "--upstream-api-key",
            "sk-own",
            "--connect-timeout",
            "200ms",
        ];
        let gateway = spawn_gateway(&url, &flags).await;
        for told in [
            get_run(gateway.channel(), None).await,
            create_run(gateway.channel()).await,
        ] {
            assert_eq!(
                told.map_err(|status| status.code()),
                Err(Code::Unavailable),
                "{case}"
            );
        }
        gateway.drain().await;
        upstream.abort();
        let heard = heard.lock().expect("never held over a panic").clone();
        assert!(
            !heard.windows(6).any(|part| part == b"sk-own"),
            "{case}: the key in the clear"
        );
        assert!(
            !heard.windows(7).any(|part| part == b"threads"),
            "{case}: a request in the clear"
        );
    }
}

#[tokio::test]
async fn an_upstream_that_asks_for_a_certificate_gets_the_gateways() {
    let authority = Authority::new();
    let folder = TempDir::new().expect("a folder");
    let ca = write(&folder, "ca.crt", authority.pem());
    let (certificate, key) = authority.client("gateway");
    let (certificate, key) = (
        write(&folder, "client.crt", &certificate),
        write(&folder, "client.key", &key),
    );
    let upstream = upstream().await;
    let address = front(&upstream, authority.server("localhost"), Some(&authority)).await;
    let url = format!("https://localhost:{}", address.port());
    let identity = [
        "--upstream-ca-file",
        &ca,
        "--upstream-client-cert-file",
        &certificate,
        "--upstream-client-key-file",
        &key,
    ];

    let gateway = spawn_gateway(&url, &identity).await;
    get_run(gateway.channel(), None).await.expect("an answer");
    gateway.drain().await;
    let gateway = spawn_gateway(&url, &identity[..2]).await;
    get_run(gateway.channel(), None)
        .await
        .expect_err("no certificate");
    gateway.drain().await;
}

#[tokio::test]
async fn a_changed_key_file_takes_effect_and_a_broken_one_does_not() {
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let key = write(&folder, "key", "sk-first\n");
    let gateway = spawn_gateway(
        &upstream.url(),
        &["--upstream-api-key-file", &key, "--reload-interval", "20ms"],
    )
    .await;
    let seen = || async {
        get_run(gateway.channel(), Some("callers-own"))
            .await
            .expect("an answer");
        upstream
            .requests()
            .last()
            .and_then(|request| request.header("authorization").map(str::to_owned))
    };
    assert_eq!(
        seen().await.as_deref(),
        Some("Bearer sk-first"),
        "the callers' own credential goes nowhere"
    );

    fs::write(&key, "sk-second\n").expect("a file");
    let second = || async {
        (seen().await.as_deref() == Some("Bearer sk-second"))
            .then_some(())
            .ok_or(tonic::Status::unknown(""))
    };
    until(Ok(()), second).await;
    fs::write(&key, "\n").expect("a file");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        seen().await.as_deref(),
        Some("Bearer sk-second"),
        "what was read before stays"
    );
    gateway.drain().await;
}

#[tokio::test]
async fn connections_are_renewed_in_time_while_they_are_used() {
    let upstream = upstream().await;
    let gateway = spawn_gateway(&upstream.url(), &["--upstream-renewal", "100ms"]).await;
    let renewed = || async {
        get_run(gateway.channel(), None).await?;
        if upstream.accepted() >= 3 {
            Ok(())
        } else {
            Err(tonic::Status::unknown(""))
        }
    };
    until(Ok(()), renewed).await;
    let (requests, connections) = (upstream.requests().len(), upstream.accepted());
    assert!(
        requests > connections,
        "a connection serves more than one request: {requests} on {connections}"
    );
    gateway.drain().await;
}

fn loaded(value: u32) -> Loaded<u32> {
    Loaded {
        value,
        summary: String::new(),
        expires: None,
    }
}

/// A value made of a file, looked at and renewed every `interval`.
fn source(file: Option<&str>, interval: Duration) -> Source {
    let named = |path: &str| NamedFile {
        flag: "--file",
        path: path.into(),
    };
    Source {
        what: "test",
        files: file.map(named).into_iter().collect(),
        interval,
        renewal: interval,
        failing: IntGauge::new("failing", "Whether it fails.").expect("a name"),
    }
}

#[tokio::test]
async fn what_cannot_be_made_anew_once_is_made_the_next_time_with_what_can_be_read() {
    let folder = TempDir::new().expect("a folder");
    for broken in [false, true] {
        let file = write(&folder, "file", "good");
        let tries = AtomicU32::new(0);
        // The second and the third time something else is wanting: the system's roots, or a
        // descriptor.
        let make = move |contents: &[Vec<u8>]| match tries.fetch_add(1, Relaxed) {
            1 | 2 => Err("not now".to_owned()),
            count if contents == [b"good"] => Ok(loaded(count)),
            _ => Err("no use".to_owned()),
        };
        let moment = Duration::from_millis(5);
        let made = Reloadable::new(source(Some(&file), moment), make).expect("made at first");
        if broken {
            fs::write(&file, "bad").expect("a file");
        }
        let renewed = async {
            while *made.get() < 3 {
                tokio::time::sleep(moment).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), renewed)
            .await
            .expect("made anew");
    }
}

#[tokio::test(start_paused = true)]
async fn an_interval_of_zero_is_never() {
    let folder = TempDir::new().expect("a folder");
    let tries = Arc::new(AtomicU32::new(0));
    for file in [None, Some(write(&folder, "file", "good"))] {
        let tried = Arc::clone(&tries);
        let make = move |_: &[Vec<u8>]| Ok(loaded(tried.fetch_add(1, Relaxed)));
        let made = Reloadable::new(source(file.as_deref(), Duration::ZERO), make);
        let made = made.expect("made at first");
        tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
        assert_eq!(
            (*made.get() + 1, tries.load(Relaxed)),
            (tries.load(Relaxed), *made.get() + 1)
        );
    }
    assert_eq!(tries.load(Relaxed), 2);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_to_its_end_does_not_keep_the_gateway_from_ending() {
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let key = write(&folder, "key", "sk-first\n");
    let flags = [
        "--upstream-url",
        &upstream.url(),
        "--upstream-api-key-file",
        &key,
        "--reload-interval",
        "20ms",
    ];
    let gateway = Running::start(&flags).await;
    fs::remove_file(&key).expect("a file");
    assert_cmd::Command::new("mkfifo")
        .arg(&key)
        .assert()
        .success();
    // Opened once somebody reads it, and never written to: the reader waits for ever.
    let _writer = tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(key))
        .await
        .expect("a reader");
    let ended = tokio::time::timeout(Duration::from_secs(20), gateway.stop("-TERM")).await;
    let (ended, log) = ended.expect("it ends");
    assert_eq!(ended.code(), Some(0), "{log}");
    assert!(log.contains("drained"), "{log}");
}
