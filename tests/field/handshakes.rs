//! Handshakes that fail: what an operator sees of them (O5), on the real program.

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        version::TLS12,
    },
};

use crate::{
    certificates::Authority,
    operators::write,
    reloads::{lines, metric},
    support::program::Running,
};

/// A client by TLS.
struct Client<'a> {
    trusts: &'a Authority,
    shows: Option<(String, String)>,
    speaks: &'a [u8],
    old: bool,
}

impl Client<'_> {
    /// Connects, and reads until the server ends the connection.
    async fn connect(self, program: &Running) {
        let chain = |pem: &str| {
            let chain = CertificateDer::pem_slice_iter(pem.as_bytes());
            chain.collect::<Result<Vec<_>, _>>().expect("PEM")
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(chain(self.trusts.pem()));
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = if self.old {
            builder.with_protocol_versions(&[&TLS12])
        } else {
            builder.with_safe_default_protocol_versions()
        };
        let builder = builder.expect("versions").with_root_certificates(roots);
        let mut config = match self.shows {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                builder
                    .with_client_auth_cert(chain(&certificate), key)
                    .expect("an identity")
            }
        };
        config.alpn_protocols = vec![self.speaks.to_vec()];
        let tcp = TcpStream::connect(program.address)
            .await
            .expect("a connection");
        let name = "localhost".try_into().expect("a name");
        if let Ok(mut tls) = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
        {
            let _ = tls.read_to_end(&mut Vec::new()).await;
        }
    }
}

/// Says these bytes, and reads until the server ends the connection, or leaves.
async fn say(program: &Running, bytes: &[u8], stays: bool) {
    let mut tcp = TcpStream::connect(program.address)
        .await
        .expect("a connection");
    tcp.write_all(bytes).await.expect("written");
    if stays {
        let _ = tcp.read_to_end(&mut Vec::new()).await;
    }
}

/// What a handshake that failed for this reason leaves behind.
async fn noted(program: &Running, row: &str, reason: &str) {
    let name = format!("runs_gateway_handshake_failures_total{{reason=\"{reason}\"}}");
    let counted = async {
        while metric(program, &name).await < 1.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let counted = timeout(Duration::from_secs(20), counted).await;
    assert!(counted.is_ok(), "{row}: {:#?}", program.log());
    let word = format!("\"reason\":\"{reason}\"");
    if reason == "probe" {
        assert!(
            !program.log().iter().any(|line| line.contains(&word)),
            "{row}"
        );
        return;
    }
    let said = lines(program, &word, 1).await;
    let fields = &said[0]["fields"];
    assert_eq!(said[0]["level"], "WARN", "{row}: {said:?}");
    assert_eq!(fields["peer"], "127.0.0.1", "{row}: {said:?}");
    let message = fields["message"].as_str().expect("text");
    assert!(message.starts_with("handshake: "), "{row}: {message}");
}

struct Files {
    authority: Authority,
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            authority: Authority::new(),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// A gateway that shows this CA's certificate, and asks for one of it.
    async fn start(&self) -> Running {
        let (certificate, key) = self.authority.server("localhost");
        let certificate = write(&self.folder, "crt", certificate);
        let key = write(&self.folder, "key", key);
        let ca = write(&self.folder, "ca", self.authority.pem());
        let flags = [
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-client-ca-file",
            &ca,
            "--handshake-timeout",
            "500ms",
        ];
        Running::start(&flags).await
    }
}

#[tokio::test]
async fn a_client_that_fails_by_tls_is_a_warning_and_counted_by_reason() {
    let files = Files::new();
    let (ours, stranger) = (&files.authority, Authority::new());
    let good = || Some(ours.client("a"));
    // What the client shows, whom it trusts, what it speaks over it, whether only TLS 1.2.
    let table = [
        (
            "expired",
            Some(ours.expired_client("a")),
            ours,
            "h2",
            false,
            "certificate_expired",
        ),
        (
            "expired, TLS 1.2",
            Some(ours.expired_client("a")),
            ours,
            "h2",
            true,
            "certificate_expired",
        ),
        (
            "a stranger's",
            Some(stranger.client("a")),
            ours,
            "h2",
            false,
            "unknown_ca",
        ),
        (
            "a stranger's, TLS 1.2",
            Some(stranger.client("a")),
            ours,
            "h2",
            true,
            "unknown_ca",
        ),
        ("none", None, ours, "h2", false, "no_certificate"),
        ("none, TLS 1.2", None, ours, "h2", true, "no_certificate"),
        (
            "a server's",
            Some(ours.server("a")),
            ours,
            "h2",
            false,
            "bad_certificate",
        ),
        (
            "it trusts another",
            good(),
            &stranger,
            "h2",
            false,
            "refused_by_peer",
        ),
        (
            "it trusts another, TLS 1.2",
            good(),
            &stranger,
            "h2",
            true,
            "refused_by_peer",
        ),
        (
            "HTTP/1.1 only",
            good(),
            ours,
            "http/1.1",
            false,
            "nothing_in_common",
        ),
    ];
    for (row, shows, trusts, speaks, old, reason) in table {
        let program = files.start().await;
        let client = Client {
            trusts,
            shows,
            speaks: speaks.as_bytes(),
            old,
        };
        client.connect(&program).await;
        noted(&program, row, reason).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_speak_what_the_port_does_is_a_warning_and_counted() {
    let files = Files::new();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let get = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    let hello = [22, 3, 1, 0, 5, 1, 0, 0, 1, 0];
    // Whether the gateway has TLS, what is said, whether the client stays.
    let table: [(&str, bool, &[u8], bool, &str); 10] = [
        ("HTTP/2 to TLS", true, preface, true, "not_tls"),
        ("HTTP/1 to TLS", true, get, true, "not_tls"),
        ("half a hello", true, &hello[..7], true, "timeout"),
        (
            "it leaves in the middle",
            true,
            &hello[..7],
            false,
            "closed",
        ),
        ("a probe of TLS", true, b"", false, "probe"),
        ("TLS to none", false, &hello, true, "tls"),
        ("HTTP/1", false, get, true, "not_http2"),
        ("half a preface", false, &preface[..9], true, "timeout"),
        (
            "it leaves in the preface",
            false,
            &preface[..9],
            false,
            "closed",
        ),
        ("a probe", false, b"", false, "probe"),
    ];
    for (row, tls, bytes, stays, reason) in table {
        let program = if tls {
            files.start().await
        } else {
            Running::start(&["--handshake-timeout", "500ms"]).await
        };
        say(&program, bytes, stays).await;
        noted(&program, row, reason).await;
    }
    let program = Running::start(&["--handshake-timeout", "100ms"]).await;
    say(&program, b"", true).await;
    noted(&program, "silence", "timeout").await;
}

#[tokio::test]
async fn handshakes_that_fail_by_the_hundred_are_a_line_a_second_with_a_count() {
    let program = Running::start(&[]).await;
    for _ in 0..300 {
        say(&program, b"GET / HTTP/1.0\r\n\r\n", true).await;
    }
    let name = r#"runs_gateway_handshake_failures_total{reason="not_http2"}"#;
    assert!((metric(&program, name).await - 300.0).abs() < 0.5);
    let said = lines(&program, "not_http2", 1).await;
    assert!((1..=20).contains(&said.len()), "{said:?}");
    // All are known of: by a line, or by the next line's count.
    tokio::time::sleep(Duration::from_secs(1)).await;
    say(&program, b"GET / HTTP/1.0\r\n\r\n", true).await;
    let said = lines(&program, "not_http2", said.len() + 1).await;
    let counted = said
        .iter()
        .map(|line| line["fields"]["suppressed"].as_u64().expect("a number") + 1);
    assert_eq!(counted.sum::<u64>(), 301, "{said:?}");
}
