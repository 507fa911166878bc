//! Callers that a mesh's proxies name, and what those try that are no proxies.
//!
//! Who was taken to call is read where operators read it: in the log, one line a call.

use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Request, metadata::MetadataKey, transport::Channel};

use crate::{
    GetRunRequest, RunServiceClient, SECRET, Tls,
    certificates::Authority,
    connect_to,
    issuer::{AUDIENCE, ISSUER, Signer, claims, jwks},
    support::{program::Running, upstream::Upstream},
    upstream, write,
};

const XFCC: &str = "x-forwarded-client-cert";
const L5D: &str = "l5d-client-id";
const BY: &str = "By=spiffe://mesh/ns/gateway/sa/gateway;Hash=0123456789abcdef";

/// A call: what it is about, its metadata, and its caller's name or words of the refusal.
type Row<'a> = (
    &'a str,
    Vec<(&'static str, String)>,
    Result<&'a str, &'a str>,
);

/// The program with a key of its own, and these flags.
async fn program(upstream: &Upstream, flags: &[&str]) -> Running {
    let url = upstream.url();
    let always = [
        "--upstream-url",
        &url,
        "--upstream-api-key",
        "sk-own",
        "--log-ids",
        "--log-format",
        "json",
    ];
    Running::start(&[&always[..], flags].concat()).await
}

/// Makes the call of a row, and says whether it was answered as it has to be.
async fn call(channel: Channel, (case, metadata, expected): &Row<'_>) {
    let mut request = Request::new(GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_1".to_owned(),
    });
    for (name, value) in metadata {
        let value = value.parse().expect("a value");
        request
            .metadata_mut()
            .append(MetadataKey::from_static(name), value);
    }
    let answer = RunServiceClient::new(channel).get_run(request).await;
    match (answer.map(|_| ()), expected) {
        (Ok(()), Ok(_)) => {}
        (Err(status), Err(words)) => {
            assert_eq!(status.code(), Code::Unauthenticated, "{case}");
            assert!(status.message().contains(words), "{case}: {status:?}");
        }
        (answer, _) => panic!("{case}: {answer:?}"),
    }
}

/// Ends the program, and holds its log to the rows, which are the calls in the order made.
async fn callers(program: Running, rows: &[Row<'_>]) {
    let (_, log) = program.stop("-TERM").await;
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let callers: Vec<_> = lines
        .filter(|line: &Value| line["fields"]["message"] == "call ended")
        .map(|line| line["fields"]["caller"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(callers.len(), rows.len(), "{log}");
    for ((case, _, expected), caller) in rows.iter().zip(callers) {
        assert_eq!(caller.as_deref(), expected.ok(), "{case}");
    }
}

fn stripped(metrics: &str) -> &str {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("runs_gateway_mesh_headers_stripped_total "));
    line.expect("the metric")
}

#[tokio::test]
async fn a_proxy_of_the_mesh_says_who_calls_and_its_word_comes_before_tokens() {
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let key = Signer::ed25519();
    let keys = write(&folder, "jwks", &jwks(&[key.jwk("k")]));
    let tokens = write(&folder, "tokens", &format!("{SECRET} the batch job\n"));
    let flags = [
        "--mesh-identity",
        "xfcc",
        "--mesh-peer",
        "192.0.2.0/24,loopback",
        "--tokens-file",
        &tokens,
        "--jwt-issuer",
        ISSUER,
        "--jwt-audience",
        AUDIENCE,
        "--jwt-jwks-file",
        &keys,
    ];
    let program = program(&upstream, &flags).await;
    let xfcc = |value: &str| (XFCC, value.to_owned());
    let token = |token: &str| ("authorization", format!("Bearer {token}"));
    let jwt = |changes| token(&key.jwt("k", &claims(&changes)));
    let cart = format!("{BY};Subject=\"CN=x\";URI=spiffe://mesh/ns/shop/sa/cart");
    let rows: Vec<Row> = vec![
        (
            "a URI",
            vec![xfcc(&cart)],
            Ok("spiffe://mesh/ns/shop/sa/cart"),
        ),
        (
            "two elements: the nearest",
            vec![xfcc(&format!("URI=spiffe://mesh/ns/admin/sa/admin,{cart}"))],
            Ok("spiffe://mesh/ns/shop/sa/cart"),
        ),
        (
            "a quoted value with an element in it",
            vec![xfcc(&format!(
                "{BY};Subject=\"CN=\\\",URI=admin,\";DNS=cart.shop"
            ))],
            Ok("cart.shop"),
        ),
        (
            "no URI, but DNS",
            vec![xfcc(&format!("{BY};DNS=cart.shop;DNS=b"))],
            Ok("cart.shop"),
        ),
        ("neither", vec![xfcc(BY)], Err("neither URI nor DNS")),
        ("two URIs", vec![xfcc("URI=a;URI=b")], Err("two URIs")),
        (
            "not the grammar",
            vec![xfcc("cart")],
            Err("as Envoy writes it"),
        ),
        ("empty", vec![xfcc("")], Err("as Envoy writes it")),
        ("twice", vec![xfcc(&cart), xfcc(&cart)], Err("came twice")),
        (
            "the header of another mesh",
            vec![(L5D, "admin".to_owned())],
            Err("send a token"),
        ),
        // What comes first decides.
        (
            "beside a token",
            vec![xfcc(&cart), token("secret")],
            Ok("spiffe://mesh/ns/shop/sa/cart"),
        ),
        (
            "beside a bad JWT",
            vec![xfcc(&cart), jwt(json!({"exp": 1}))],
            Ok("spiffe://mesh/ns/shop/sa/cart"),
        ),
        (
            "a bad one beside a JWT",
            vec![xfcc("cart"), jwt(json!({}))],
            Err("as Envoy writes it"),
        ),
        (
            "a bad one beside a token",
            vec![xfcc(BY), token("secret")],
            Err("neither URI nor DNS"),
        ),
        ("none, and a JWT", vec![jwt(json!({}))], Ok("cart")),
        (
            "none, and a token",
            vec![token("secret")],
            Ok("the batch job"),
        ),
        ("nothing", vec![], Err("send a token")),
    ];
    for row in &rows {
        call(program.channel.clone(), row).await;
    }
    let (_, metrics) = program.ask_admin("/metrics").await;
    assert_eq!(stripped(&metrics), "0");
    callers(program, &rows).await;
}

#[tokio::test]
async fn linkerds_header_is_the_callers_name() {
    let upstream = upstream().await;
    let flags = [
        "--mesh-identity",
        "l5d-client-id",
        "--mesh-peer",
        "127.0.0.1",
    ];
    let program = program(&upstream, &flags).await;
    let l5d = |value: &str| (L5D, value.to_owned());
    let cart = "cart.shop.serviceaccount.identity.linkerd.cluster.local";
    let rows: Vec<Row> = vec![
        ("a name", vec![l5d(cart)], Ok(cart)),
        ("empty", vec![l5d(" ")], Err("empty")),
        ("twice", vec![l5d("admin"), l5d(cart)], Err("came twice")),
        ("too long", vec![l5d(&"a".repeat(2049))], Err("too long")),
        (
            "the header of another mesh",
            vec![(XFCC, "URI=admin".to_owned())],
            Err("send a token"),
        ),
    ];
    for row in &rows {
        call(program.channel.clone(), row).await;
    }
    callers(program, &rows).await;
}

#[tokio::test]
async fn a_mesh_header_of_anybody_else_is_taken_off_and_counted() {
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let tokens = write(&folder, "tokens", &format!("{SECRET} the batch job\n"));
    let flags = [
        "--mesh-identity",
        "xfcc",
        "--mesh-peer",
        "192.0.2.0/24",
        "--tokens-file",
        &tokens,
        // What is forwarded is what is left.
        "--forward-metadata",
        "x-forwarded-client-cert,l5d-client-id,x-other",
    ];
    let program = program(&upstream, &flags).await;
    let (forged, token) = (
        (XFCC, "URI=spiffe://mesh/ns/admin/sa/admin".to_owned()),
        ("authorization", "Bearer secret".to_owned()),
    );
    let other = ("x-other", "kept".to_owned());
    let both = vec![
        forged.clone(),
        forged.clone(),
        (L5D, "admin".to_owned()),
        other,
        token.clone(),
    ];
    let rows: Vec<Row> = vec![
        ("alone", vec![forged.clone()], Err("send a token")),
        (
            "beside a token",
            vec![forged.clone(), token.clone()],
            Ok("the batch job"),
        ),
        ("twice, and another", both, Ok("the batch job")),
        ("not there", vec![token], Ok("the batch job")),
    ];
    for row in &rows {
        call(program.channel.clone(), row).await;
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_eq!((request.header(XFCC), request.header(L5D)), (None, None));
    }
    assert_eq!(requests[1].header("x-other"), Some("kept"));
    let (_, metrics) = program.ask_admin("/metrics").await;
    assert_eq!(stripped(&metrics), "3");
    callers(program, &rows).await;
}

#[tokio::test]
async fn a_proxy_that_is_known_by_its_certificate_is_believed_and_is_no_caller_itself() {
    let (authority, upstream) = (Authority::new(), upstream().await);
    let tls = Tls::new(&authority);
    let ca = write(&tls.folder, "ca.crt", authority.pem());
    let tokens = write(&tls.folder, "tokens", &format!("{SECRET} the batch job\n"));
    let flags = [
        "--tls-cert-file",
        &tls.certificate,
        "--tls-key-file",
        &tls.key,
        "--tls-client-ca-file",
        &ca,
        "--allowed-client",
        "cart.shop",
        "--mesh-identity",
        "xfcc",
        "--mesh-peer",
        "name:spiffe://mesh/ns/edge/sa/envoy",
        "--tokens-file",
        &tokens,
    ];
    let program = program(&upstream, &flags).await;
    let said = || (XFCC, "URI=spiffe://mesh/ns/shop/sa/web".to_owned());
    let token = || ("authorization", "Bearer secret".to_owned());
    let proxy = Some("spiffe://mesh/ns/edge/sa/envoy");
    let table: Vec<(Option<&str>, Row)> = vec![
        (
            proxy,
            ("a proxy", vec![said()], Ok("spiffe://mesh/ns/shop/sa/web")),
        ),
        (
            proxy,
            ("a proxy that names nobody", vec![], Err("send a token")),
        ),
        (
            proxy,
            (
                "a proxy that passes a token on",
                vec![token()],
                Ok("the batch job"),
            ),
        ),
        (
            Some("cart.shop"),
            ("a caller that forges", vec![said()], Ok("cart.shop")),
        ),
        (
            Some("cart.shop"),
            ("a caller beside a token", vec![token()], Ok("cart.shop")),
        ),
        (
            Some("other.shop"),
            (
                "a stranger that forges",
                vec![said(), token()],
                Err("--allowed-client"),
            ),
        ),
        (None, ("no certificate", vec![said()], Err("send a token"))),
        (
            None,
            (
                "no certificate, a token",
                vec![said(), token()],
                Ok("the batch job"),
            ),
        ),
    ];
    for (name, row) in &table {
        let client = name.map(|name| authority.client(name));
        let channel = connect_to(program.address, &authority, client.as_ref()).await;
        call(channel.expect("a connection"), row).await;
    }
    let rows: Vec<_> = table.into_iter().map(|(_, row)| row).collect();
    callers(program, &rows).await;
}
