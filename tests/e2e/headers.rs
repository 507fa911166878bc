//! What reaches the upstream beside the request itself, and what of the answer's headers reaches
//! the caller: both by allow-list.

use std::collections::BTreeMap;

use tonic::metadata::{KeyAndValueRef, MetadataMap};

use crate::{
    call::{ALL, Call},
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Recorded, Upstream, agreed},
    },
};

/// Metadata as a caller may send it: what is passed on by default, credentials, and what has no
/// business upstream.
const METADATA: [(&str, &str); 16] = [
    ("authorization", "Bearer caller"),
    ("api-key", "caller"),
    ("idempotency-key", "i"),
    ("openai-organization", "o"),
    ("openai-project", "p"),
    ("x-client-request-id", "c"),
    (
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    ("tracestate", "s"),
    ("openai-beta", "caller"),
    ("accept", "text/html"),
    ("accept-encoding", "gzip"),
    ("cookie", "a=b"),
    ("host", "elsewhere.example"),
    ("x-forwarded-for", "1.2.3.4"),
    ("x-foo", "bar"),
    ("transfer-encoding", "chunked"),
];

/// Flags; what comes before `/threads` and after; headers in addition to those of every request, or
/// in their place.
type Row<'a> = (Vec<&'a str>, &'a str, &'a str, Vec<(&'a str, &'a str)>);

#[tokio::test]
async fn the_upstream_gets_the_configured_headers_and_query_and_of_the_callers_only_what_is_allowed()
 {
    let always = [
        ("accept", "application/json"),
        ("accept-encoding", "identity"),
        ("openai-beta", "assistants=v2"),
    ];
    let passed = &METADATA[2..8];
    let own_key = ["--upstream-api-key", "own"];
    let table: Vec<Row> = vec![
        (vec![], "", "", vec![("authorization", "Bearer caller")]),
        (
            own_key.into(),
            "",
            "",
            vec![("authorization", "Bearer own")],
        ),
        (
            vec!["--upstream-auth", "api-key"],
            "",
            "",
            vec![("api-key", "caller")],
        ),
        (
            [&own_key[..], &["--upstream-auth", "api-key"]].concat(),
            "",
            "",
            vec![("api-key", "own")],
        ),
        (
            [&own_key[..], &["--upstream-profile", "azure"]].concat(),
            "/openai",
            "?api-version=2024-05-01-preview",
            vec![("api-key", "own")],
        ),
        (
            vec!["--upstream-query", "a=b%"],
            "/v1/",
            "?a=b%25",
            vec![("authorization", "Bearer caller")],
        ),
        (
            vec![
                "--upstream-header",
                "OpenAI-Beta: assistants=v9",
                "--upstream-header",
                "X-Extra:  e ",
            ],
            "/a/b",
            "",
            vec![
                ("authorization", "Bearer caller"),
                ("openai-beta", "assistants=v9"),
                ("x-extra", "e"),
            ],
        ),
        (
            vec!["--upstream-header", "OpenAI-Project: ours"],
            "",
            "",
            vec![
                ("authorization", "Bearer caller"),
                ("openai-project", "ours"),
            ],
        ),
        (
            vec!["--forward-metadata", "x-foo,openai-beta"],
            "",
            "",
            vec![
                ("authorization", "Bearer caller"),
                ("openai-beta", "caller"),
                ("x-foo", "bar"),
            ],
        ),
    ];
    for (flags, prefix, query, headers) in table {
        let upstream = Upstream::answering(Recorded::agreed).await;
        let gateway = spawn_gateway(&format!("{}{prefix}", upstream.url()), &flags).await;
        for (call, (_, target, _)) in Call::all().zip(ALL) {
            call.with(&gateway, &METADATA)
                .await
                .unwrap_or_else(|status| panic!("{flags:?}: {status}"));
            let seen = upstream.requests().pop().expect("a request");
            assert_eq!(
                seen.target,
                format!("{}{target}{query}", prefix.trim_end_matches('/')),
                "{flags:?}"
            );

            let mut expected: BTreeMap<_, _> = always.into_iter().collect();
            if !flags.contains(&"--forward-metadata") {
                expected.extend(passed.iter().copied());
            }
            expected.extend(headers.iter().copied());
            let host = upstream.address().to_string();
            expected.extend([
                ("host", &*host),
                (
                    "user-agent",
                    concat!("runs-gateway/", env!("CARGO_PKG_VERSION")),
                ),
            ]);
            let length = seen.body.len().to_string();
            if seen.method == "POST" {
                expected.insert("content-length", &length);
            }
            if !seen.body.is_empty() {
                expected.insert("content-type", "application/json");
            }
            let mut got: BTreeMap<_, _> = seen
                .headers
                .iter()
                .map(|(name, value)| (&**name, str::from_utf8(value).expect("text")))
                .collect();
            assert_eq!(got.len(), seen.headers.len(), "none twice");
            if call.rpc().starts_with("Create") && !expected.contains_key("idempotency-key") {
                assert_eq!(
                    got.remove("idempotency-key").map(str::len),
                    Some(36),
                    "a create has a key in any case"
                );
            }
            assert_eq!(got, expected, "{} with {flags:?}", call.rpc());
        }
        gateway.drain().await;
    }
}

#[tokio::test]
async fn the_caller_sees_the_allowed_headers_of_good_and_bad_answers() {
    let shown = [
        ("apim-request-id", "apim"),
        ("openai-poll-after-ms", "500"),
        ("openai-processing-ms", "26"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-limit-tokens", "1"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-remaining-tokens", "2"),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-reset-tokens", "0s"),
        ("x-request-id", "req_1"),
    ];
    let hidden = [
        ("set-cookie", "a=b"),
        ("server", "s"),
        ("x-foo", "bar"),
        ("grpc-status", "0"),
        ("grpc-message", "m"),
        ("openai-organization", "o"),
    ];
    let with = |answer: Answer| {
        shown
            .iter()
            .chain(&hidden)
            .fold(answer, |answer, (name, value)| answer.header(name, value))
    };
    let of = |metadata: &MetadataMap| {
        // What gRPC itself adds.
        let ours = [
            "content-type",
            "date",
            "grpc-status",
            "grpc-message",
            "grpc-status-details-bin",
            "grpc-retry-pushback-ms",
        ];
        let pairs = metadata.iter().filter_map(|pair| match pair {
            KeyAndValueRef::Ascii(name, value) => Some((
                name.as_str().to_owned(),
                value.to_str().expect("text").to_owned(),
            )),
            KeyAndValueRef::Binary(..) => None,
        });
        let mut pairs: Vec<_> = pairs.filter(|(name, _)| !ours.contains(&&**name)).collect();
        pairs.sort();
        pairs
    };
    let expected: Vec<_> = shown
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (call, (_, target, _)) in Call::all().zip(ALL) {
        upstream.push(with(agreed(target)));
        assert_eq!(
            of(&call.on(&gateway).await.expect("an answer").metadata),
            expected,
            "{}",
            call.rpc()
        );
        for status in [400, 404, 429, 500, 503, 302] {
            upstream.push(with(Answer::json(status, r#"{"error":{"message":"no"}}"#)));
            let error = call.on(&gateway).await.expect_err("an error");
            assert_eq!(of(error.metadata()), expected, "{} {status}", call.rpc());
        }
    }
    gateway.drain().await;
}
