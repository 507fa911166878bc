//! Who may call, and who the gateway is to its upstream, over real sockets: tokens, certificates,
//! keys, and files that change under a running gateway.

mod certificates;
mod front;
mod issuer;
mod jwt;
mod mesh;
mod outbound;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use certificates::Authority;
use runs_gateway::v1::{GetRunRequest, run_service_client::RunServiceClient};
use support::{
    gateway::{Gateway, spawn_gateway},
    upstream::{Answer, Upstream},
};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::Notify, task::JoinSet};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, pem::PemObject as _},
    },
};
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt as _;

/// `printf %s secret | sha256sum`, and the same of `other`.
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

async fn upstream() -> Upstream {
    Upstream::answering(|_| Answer::json(200, r#"{"id":"run_1","object":"thread.run"}"#)).await
}

fn write(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

async fn get_run(channel: Channel, token: Option<&str>) -> Result<(), Status> {
    let mut request = Request::new(GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_1".to_owned(),
    });
    if let Some(token) = token {
        request.metadata_mut().insert(
            "authorization",
            format!("Bearer {token}").parse().expect("a value"),
        );
    }
    RunServiceClient::new(channel)
        .get_run(request)
        .await
        .map(|_| ())
}

/// Calls until the answer is as wanted. A file's change is seen within the interval, not at once.
async fn until<F: Future<Output = Result<(), Status>>>(
    wanted: Result<(), Code>,
    call: impl Fn() -> F,
) {
    let tries = async {
        while call().await.map_err(|status| status.code()) != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), tries)
        .await
        .expect("the change takes effect");
}

#[tokio::test]
async fn a_caller_is_known_by_its_token_which_the_upstream_never_sees() {
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let tokens = write(&folder, "tokens", &format!("{SECRET} the batch job\n"));
    let flags = [
        "--upstream-api-key",
        "sk-own",
        "--tokens-file",
        &tokens,
        "--reload-interval",
        "20ms",
    ];
    let gateway = spawn_gateway(&upstream.url(), &flags).await;

    get_run(gateway.channel(), Some("secret"))
        .await
        .expect("a known token");
    assert_eq!(
        upstream.requests()[0].header("authorization"),
        Some("Bearer sk-own")
    );
    for token in [None, Some("other"), Some("")] {
        let status = get_run(gateway.channel(), token)
            .await
            .expect_err("an unknown caller");
        assert_eq!(status.code(), Code::Unauthenticated, "{token:?}");
        let details = status.get_error_details();
        assert_eq!(
            details.error_info().map(|info| info.reason.as_str()),
            Some("CALLER_NOT_ADMITTED")
        );
    }
    assert_eq!(
        upstream.requests().len(),
        1,
        "who is not admitted reaches nothing"
    );

    // One token goes, another comes; a file that cannot be used changes nothing.
    fs::write(&tokens, format!("{OTHER}\n")).expect("a file");
    until(Err(Code::Unauthenticated), || {
        get_run(gateway.channel(), Some("secret"))
    })
    .await;
    get_run(gateway.channel(), Some("other"))
        .await
        .expect("the new token");
    fs::write(&tokens, "nonsense\n").expect("a file");
    tokio::time::sleep(Duration::from_millis(100)).await;
    get_run(gateway.channel(), Some("other"))
        .await
        .expect("what was read before stays");
    gateway.drain().await;
}

#[tokio::test]
async fn one_callers_flood_leaves_others_served_though_all_use_the_gateways_key() {
    let (held, free) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (state, run) = (
        (Arc::clone(&held), Arc::clone(&free)),
        r#"{"id":"run_1","object":"thread.run"}"#,
    );
    let upstream = Upstream::answering(move |request| {
        let hangs =
            request.target.starts_with("/threads/flood/") && !state.1.load(Ordering::SeqCst);
        let answer = if hangs {
            Answer::new(200).chunked().wait(&state.0)
        } else {
            Answer::json(200, "")
        };
        answer.bytes(run)
    })
    .await;
    let folder = TempDir::new().expect("a folder");
    let tokens = write(
        &folder,
        "tokens",
        &format!("{SECRET} the batch job\n{OTHER} the shop\n"),
    );
    let own = ["--upstream-api-key", "sk-own", "--tokens-file", &tokens];
    let limits = [
        "--max-upstream-requests",
        "9",
        "--max-upstream-queue",
        "90",
        "--upstream-queue-timeout",
        "1h",
    ];
    let gateway = spawn_gateway(&upstream.url(), &[&own[..], &limits].concat()).await;
    let calls =
        |token: &'static str, thread: &'static str, count: usize| -> JoinSet<Result<(), Status>> {
            let call = |number: usize| {
                let mut request = Request::new(GetRunRequest {
                    thread_id: thread.to_owned(),
                    run_id: "run_1".to_owned(),
                });
                request.set_timeout(Duration::from_secs(20));
                let metadata = request.metadata_mut();
                metadata.insert(
                    "authorization",
                    format!("Bearer {token}").parse().expect("a value"),
                );
                // What a caller chooses does not make it another.
                metadata.insert(
                    "openai-project",
                    format!("{number}").parse().expect("a value"),
                );
                let mut runs = gateway.runs();
                async move { runs.get_run(request).await.map(|_| ()) }
            };
            (0..count).map(call).collect()
        };
    let flood = calls("secret", "flood", 60);
    // Two thirds, and no more.
    upstream.wait_for_requests(7).await;
    for answered in calls("other", "thread_1", 20).join_all().await {
        answered.expect("an answer");
    }
    assert_eq!(upstream.requests().len(), 7 + 20);
    free.store(true, Ordering::SeqCst);
    held.notify_waiters();
    for answered in flood.join_all().await {
        answered.expect("an answer");
    }
    gateway.drain().await;
}

struct Tls {
    folder: TempDir,
    certificate: String,
    key: String,
}

impl Tls {
    fn new(authority: &Authority) -> Self {
        let folder = TempDir::new().expect("a folder");
        let (certificate, key) = authority.server("localhost");
        let (certificate, key) = (
            write(&folder, "tls.crt", &certificate),
            write(&folder, "tls.key", &key),
        );
        Self {
            folder,
            certificate,
            key,
        }
    }

    fn replace(&self, authority: &Authority) {
        let (certificate, key) = authority.server("localhost");
        // The key first, then the certificate: what stands between the two does not fit together
        // and changes nothing.
        fs::write(&self.key, key).expect("a file");
        fs::write(&self.certificate, certificate).expect("a file");
    }
}

/// A new connection by TLS.
async fn connect(
    gateway: &Gateway,
    authority: &Authority,
    client: Option<&(String, String)>,
) -> Result<Channel, Status> {
    connect_to(gateway.address(), authority, client).await
}

async fn connect_to(
    address: SocketAddr,
    authority: &Authority,
    client: Option<&(String, String)>,
) -> Result<Channel, Status> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.pem()))
        .domain_name("localhost");
    if let Some((certificate, key)) = client {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .expect("a URL")
        .tls_config(tls)
        .expect("TLS");
    endpoint
        .connect()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}

async fn call(
    gateway: &Gateway,
    authority: &Authority,
    client: Option<&(String, String)>,
) -> Result<(), Status> {
    get_run(connect(gateway, authority, client).await?, None).await
}

#[tokio::test]
async fn a_changed_certificate_is_shown_by_the_next_handshake_and_open_connections_go_on() {
    let (first, second, upstream) = (Authority::new(), Authority::new(), upstream().await);
    let tls = Tls::new(&first);
    let flags = [
        "--tls-cert-file",
        &tls.certificate,
        "--tls-key-file",
        &tls.key,
        "--reload-interval",
        "20ms",
    ];
    let gateway = spawn_gateway(&upstream.url(), &flags).await;

    let open = connect(&gateway, &first, None).await.expect("a connection");
    get_run(open.clone(), None).await.expect("an answer");
    call(&gateway, &second, None)
        .await
        .expect_err("a certificate of another CA");
    get_run(gateway.channel(), None)
        .await
        .expect_err("a connection in the clear");

    tls.replace(&second);
    until(Ok(()), || call(&gateway, &second, None)).await;
    get_run(open, None)
        .await
        .expect("an answer on the old connection");
    gateway.drain().await;
}

#[tokio::test]
async fn a_caller_is_known_by_a_name_in_its_certificate() {
    let (authority, stranger, upstream) = (Authority::new(), Authority::new(), upstream().await);
    let tls = Tls::new(&authority);
    let ca = write(&tls.folder, "ca.crt", authority.pem());
    let flags = [
        "--upstream-api-key",
        "sk-own",
        "--tls-cert-file",
        &tls.certificate,
        "--tls-key-file",
        &tls.key,
        "--tls-client-ca-file",
        &ca,
        "--allowed-client",
        "spiffe://mesh/ns/shop/sa/cart,cart.shop",
    ];
    let gateway = spawn_gateway(&upstream.url(), &flags).await;

    for name in ["spiffe://mesh/ns/shop/sa/cart", "cart.shop"] {
        call(&gateway, &authority, Some(&authority.client(name)))
            .await
            .unwrap_or_else(|status| panic!("{name}: {status}"));
    }
    for name in ["spiffe://mesh/ns/shop/sa/other", "cart", "other.cart.shop"] {
        let status = call(&gateway, &authority, Some(&authority.client(name)))
            .await
            .expect_err(name);
        assert_eq!(status.code(), Code::Unauthenticated, "{name}");
    }
    for client in [None, Some(stranger.client("cart.shop"))] {
        let status = call(&gateway, &authority, client.as_ref())
            .await
            .expect_err("no certificate of the CA");
        assert_ne!(status.code(), Code::Unauthenticated, "the handshake fails");
    }
    assert_eq!(upstream.requests().len(), 2);
    gateway.drain().await;
}

#[tokio::test]
async fn http1_is_offered_by_tls_only_where_pages_may_call() {
    let (authority, upstream) = (Authority::new(), upstream().await);
    let tls = Tls::new(&authority);
    for (origins, agreed) in [
        (&[][..], None),
        (
            &["--web-origins", "https://app.example"][..],
            Some(b"http/1.1".to_vec()),
        ),
    ] {
        let flags = [
            &[
                "--tls-cert-file",
                &tls.certificate,
                "--tls-key-file",
                &tls.key,
            ],
            origins,
        ]
        .concat();
        let gateway = spawn_gateway(&upstream.url(), &flags).await;
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("a certificate"))
            .expect("a root");
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions");
        let mut browser = versions.with_root_certificates(roots).with_no_client_auth();
        browser.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(gateway.address())
            .await
            .expect("a connection");
        let name = "localhost".try_into().expect("a name");
        let shaken = TlsConnector::from(Arc::new(browser))
            .connect(name, stream)
            .await;
        assert_eq!(
            shaken
                .ok()
                .and_then(|stream| stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)),
            agreed
        );
        // HTTP/2 is offered in both cases, and goes first.
        call(&gateway, &authority, None).await.expect("an answer");
        gateway.drain().await;
    }
}

#[test]
fn the_hashes_are_those_of_the_tokens() {
    for (token, hash) in [("secret", SECRET), ("other", OTHER)] {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let bytes: Vec<u8> = (0..64)
            .step_by(2)
            .map(|at| u8::from_str_radix(&hash[at..at + 2], 16).expect("hexadecimal"))
            .collect();
        assert_eq!(digest.as_ref(), bytes, "{token}");
    }
}
