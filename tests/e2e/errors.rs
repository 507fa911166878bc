//! What the upstream's errors become: one table over statuses, body shapes and what repeating the
//! call would do.

use std::{collections::BTreeMap, env, fs, path::Path, sync::Arc, time::Duration};

use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    call::Call,
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::{Answer, Upstream},
    },
};

/// The three shapes of error bodies, with the same message in each.
const OPENAI: &str = r#"{"error":{"message":"The words.","type":"some_type","param":"the_param","code":"some_code"}}"#;
const AZURE: &str = r#"{"error":{"code":"999","message":"The words."}}"#;
const AIMLAPI: &str = r#"{"message":"The words.","path":"/threads","requestId":"req_body","statusCode":"999","timestamp":"2025-03-11T07:13:27.813Z"}"#;
/// Another service's error inside the third.
const NESTED: &str = r#"{"requestId":"req_body","statusCode":999,"path":"/threads",
    "message":"999 {\"type\":\"error\",\"error\":{\"type\":\"some_type\",\"message\":\"The words.\"}}"}"#;
const HTML: &str = "<html><title>Sorry</title></html>";

/// A status of the gateway's, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    code: Code,
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    request_id: Option<String>,
    /// The fields that are to blame.
    fields: Vec<String>,
    retry_after: Option<Duration>,
    pushback: Option<String>,
    quota: bool,
}

impl From<&Status> for Told {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().expect("ErrorInfo");
        assert_eq!(info.domain, "runsgateway.v1");
        Self {
            code: status.code(),
            reason: info.reason.clone(),
            message: status.message().to_owned(),
            metadata: info.metadata.clone().into_iter().collect(),
            request_id: details.request_info().map(|it| it.request_id.clone()),
            fields: details
                .bad_request()
                .map(|it| {
                    it.field_violations
                        .iter()
                        .map(|it| it.field.clone())
                        .collect()
                })
                .unwrap_or_default(),
            retry_after: details
                .retry_info()
                .map(|it| it.retry_delay.expect("a delay")),
            pushback: status
                .metadata()
                .get("grpc-retry-pushback-ms")
                .map(|it| it.to_str().expect("text").to_owned()),
            quota: details.quota_failure().is_some(),
        }
    }
}

async fn told(gateway: &Gateway, upstream: &Upstream, call: &Call, answer: Answer) -> Status {
    let before = upstream.requests().len();
    upstream.push(answer);
    let status = call.on(gateway).await.expect_err("an error");
    assert_eq!(upstream.requests().len(), before + 1, "asked once");
    status
}

/// The size of a status on the wire: `grpc-message` percent-encoded, the details in base64.
fn size(status: &Status) -> usize {
    let letter = |byte| {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            1
        } else {
            3
        }
    };
    status.message().bytes().map(letter).sum::<usize>() + status.details().len().div_ceil(3) * 4
}

#[tokio::test]
async fn every_status_has_its_code_and_reason_for_reads_and_for_writes() {
    use Code as C;
    /// What a caller is asked to do about it.
    #[derive(Clone, Copy, PartialEq)]
    enum Again {
        Unsaid,
        Never,
        Wait,
    }
    use Again::{Never, Unsaid, Wait};
    let unknown = (C::Unknown, "OUTCOME_UNKNOWN", Never);
    let same = |it: (Code, &'static str, Again)| [it, it];
    let unexpected = same((C::Internal, "UNEXPECTED_STATUS", Unsaid));
    // The status; what a read and what a write are told.
    let table = [
        (400, same((C::InvalidArgument, "INVALID_REQUEST", Unsaid))),
        (401, same((C::Unauthenticated, "INVALID_API_KEY", Unsaid))),
        (402, same((C::ResourceExhausted, "PAYMENT_REQUIRED", Never))),
        (
            403,
            same((C::PermissionDenied, "PERMISSION_DENIED", Unsaid)),
        ),
        (404, same((C::NotFound, "NOT_FOUND", Unsaid))),
        (
            408,
            [(C::Unavailable, "UPSTREAM_UNAVAILABLE", Unsaid), unknown],
        ),
        (409, same((C::Aborted, "CONFLICT", Unsaid))),
        (413, same((C::InvalidArgument, "INVALID_REQUEST", Unsaid))),
        (415, same((C::InvalidArgument, "INVALID_REQUEST", Unsaid))),
        (422, same((C::InvalidArgument, "INVALID_REQUEST", Unsaid))),
        (
            429,
            same((C::ResourceExhausted, "RATE_LIMIT_EXCEEDED", Wait)),
        ),
        (499, same((C::Cancelled, "CANCELLED", Unsaid))),
        (500, same((C::Internal, "SERVER_ERROR", Unsaid))),
        (501, same((C::Unimplemented, "UNSUPPORTED", Unsaid))),
        (
            502,
            [(C::Unavailable, "UPSTREAM_UNAVAILABLE", Unsaid), unknown],
        ),
        (
            503,
            [(C::Unavailable, "UPSTREAM_UNAVAILABLE", Wait), unknown],
        ),
        (
            504,
            [(C::DeadlineExceeded, "UPSTREAM_TIMEOUT", Unsaid), unknown],
        ),
        (300, unexpected),
        (405, unexpected),
        (410, unexpected),
        (418, unexpected),
        (505, unexpected),
        (
            520,
            [(C::Unavailable, "UPSTREAM_UNAVAILABLE", Unsaid), unknown],
        ),
        (
            529,
            [(C::Unavailable, "UPSTREAM_UNAVAILABLE", Unsaid), unknown],
        ),
        (531, unexpected),
        (599, unexpected),
    ];
    // The body; whether it is a JSON error; code and type as it gives them; its own request id.
    let shapes = [
        (OPENAI, true, Some("some_code"), Some("some_type"), None),
        (AZURE, true, Some("999"), None, None),
        (AIMLAPI, true, None, None, Some("req_body")),
        (NESTED, true, None, Some("some_type"), Some("req_body")),
        (HTML, false, None, None, None),
        ("", false, None, None, None),
        ("[]", false, None, None, None),
        (r#"{"error":null}"#, false, None, None, None),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (http, expected) in table {
        for (body, is_error, code_word, type_word, body_id) in shapes {
            for (effect, call) in [Call::get_run(), Call::create_run()].iter().enumerate() {
                let (mut code, mut reason, again) = expected[effect];
                if http == 404 && !is_error {
                    (code, reason) = (Code::Unimplemented, "ROUTE_NOT_FOUND");
                }
                let answer = Answer::new(http)
                    .header("content-type", "application/json")
                    .bytes(body);
                let status = told(&gateway, &upstream, call, answer).await;
                let told = Told::from(&status);

                let info = [
                    ("http_status", Some(&*http.to_string())),
                    ("upstream_code", code_word),
                    ("upstream_type", type_word),
                ];
                let info = info
                    .into_iter()
                    .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
                    .collect();
                let blames = code == Code::InvalidArgument && body == OPENAI;
                let expected = Told {
                    code,
                    reason: reason.to_owned(),
                    message: told.message.clone(),
                    metadata: info,
                    request_id: body_id.map(str::to_owned),
                    fields: blames.then(|| "the_param".to_owned()).into_iter().collect(),
                    retry_after: (again == Wait).then_some(Duration::from_secs(1)),
                    pushback: match again {
                        Unsaid => None,
                        Never => Some("-1".to_owned()),
                        Wait => Some("1000".to_owned()),
                    },
                    quota: false,
                };
                assert_eq!(told, expected, "{http} {body} for {}", call.rpc());

                // The upstream's words reach the caller; where there are none, the status does.
                let words = if is_error {
                    "The words."
                } else {
                    &*http.to_string()
                };
                assert!(
                    told.message.contains(words),
                    "{http} {body}: {}",
                    told.message
                );
                assert!(!told.message.contains("Sorry"), "{}", told.message);
                if reason == "OUTCOME_UNKNOWN" {
                    assert!(
                        told.message.contains("look before doing it again"),
                        "{}",
                        told.message
                    );
                }
            }
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn what_a_service_says_in_its_own_way_is_understood() {
    let error = |status: u16, body: &str| Answer::json(status, body.to_owned());
    let message = |status, message: &str| {
        Answer::json(
            status,
            format!(r#"{{"error":{{"message":{message:?},"code":null,"param":null}}}}"#),
        )
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let table = [
        // A state that does not allow the call.
        (
            message(400, "Thread thread_1 already has an active run run_1."),
            Code::FailedPrecondition,
            "STATE_CONFLICT",
            None,
        ),
        (
            message(400, "Runs in status \"queued\" do not accept tool outputs."),
            Code::FailedPrecondition,
            "STATE_CONFLICT",
            None,
        ),
        (
            message(
                400,
                "Can't add messages to thread_1 while a run run_1 is active.",
            ),
            Code::FailedPrecondition,
            "STATE_CONFLICT",
            None,
        ),
        (
            message(400, "Cannot update run with status 'in_progress'."),
            Code::FailedPrecondition,
            "STATE_CONFLICT",
            None,
        ),
        (
            message(400, "Cannot cancel run with status 'completed'."),
            Code::FailedPrecondition,
            "STATE_CONFLICT",
            None,
        ),
        (
            message(400, "Invalid 'status'."),
            Code::InvalidArgument,
            "INVALID_REQUEST",
            None,
        ),
        // How long to wait, from headers and from words.
        (
            message(429, "Slow down.").header("retry-after", "7"),
            Code::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(7),
        ),
        (
            message(429, "Slow down.")
                .header("retry-after", "7")
                .header("retry-after-ms", "2000"),
            Code::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(2),
        ),
        (
            message(429, "Try again in 2 seconds."),
            Code::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(2),
        ),
        (
            message(429, "Please retry after 86400 seconds."),
            Code::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(86400),
        ),
        (
            message(429, "Slow down.").header("retry-after", "1e300"),
            Code::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(1),
        ),
        (
            message(503, "Busy.").header("retry-after", "30"),
            Code::Unavailable,
            "UPSTREAM_UNAVAILABLE",
            seconds(30),
        ),
        // A quota is no matter of waiting, whatever the headers say.
        (
            error(
                429,
                r#"{"error":{"message":"Pay.","code":"insufficient_quota"}}"#,
            )
            .header("retry-after", "7"),
            Code::ResourceExhausted,
            "INSUFFICIENT_QUOTA",
            None,
        ),
        (
            error(
                429,
                r#"{"error":{"message":"Pay.","type":"insufficient_quota"}}"#,
            ),
            Code::ResourceExhausted,
            "INSUFFICIENT_QUOTA",
            None,
        ),
        // Bodies that are almost of a known shape.
        (
            error(400, r#"{"error":"The words."}"#),
            Code::InvalidArgument,
            "INVALID_REQUEST",
            None,
        ),
        (
            error(
                404,
                r#"{"error":"Not Found","message":"Cannot GET /threads","statusCode":404}"#,
            ),
            Code::Unimplemented,
            "ROUTE_NOT_FOUND",
            None,
        ),
        (
            error(
                400,
                r#"{"error":{"message":7,"code":8,"type":[],"param":{}}}"#,
            ),
            Code::InvalidArgument,
            "INVALID_REQUEST",
            None,
        ),
        (
            error(400, r#"{"message":["a","b"]}"#),
            Code::InvalidArgument,
            "INVALID_REQUEST",
            None,
        ),
        (
            error(400, "{\"error\":{\"message\":\"\u{0}\"}}"),
            Code::InvalidArgument,
            "INVALID_REQUEST",
            None,
        ),
        (
            error(400, r#"{"error":{"message":"a\n\u0000\ud83d\ude00b"}}"#),
            Code::InvalidArgument,
            "INVALID_REQUEST",
            None,
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (row, (answer, code, reason, retry_after)) in table.into_iter().enumerate() {
        let status = told(&gateway, &upstream, &Call::get_run(), answer).await;
        let told = Told::from(&status);
        assert_eq!(
            (told.code, &*told.reason, told.retry_after),
            (code, reason, retry_after),
            "row {row}: {status}"
        );
        assert_eq!(told.quota, reason == "INSUFFICIENT_QUOTA", "row {row}");
        let pushback = if told.quota {
            Some("-1".to_owned())
        } else {
            retry_after.map(|it| it.as_millis().to_string())
        };
        assert_eq!(told.pushback, pushback, "row {row}");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn an_error_whose_body_is_lost_is_still_that_error() {
    let head =
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 100\r\nx-request-id: req_1\r\n\r\n{\"error\":";
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for lost in [
        Answer::raw(head).close(),
        Answer::raw(head).wait(&Arc::default()),
    ] {
        let told = Told::from(&told(&gateway, &upstream, &Call::create_run(), lost).await);
        assert_eq!(
            (told.code, &*told.reason),
            (Code::InvalidArgument, "INVALID_REQUEST")
        );
        assert_eq!(told.request_id.as_deref(), Some("req_1"));
    }
    gateway.drain().await;
}

#[tokio::test]
async fn an_answer_that_is_lost_or_of_no_use_names_the_request_if_its_head_came() {
    const HEAD: &str =
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\nx-request-id: req_1\r\n\r\n{\"id\":";
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &["--answer-timeout", "300ms"]).await;
    let (unusable, lost) = (
        "UNUSABLE_ANSWER",
        ["UPSTREAM_UNAVAILABLE", "OUTCOME_UNKNOWN"],
    );
    let table: [(fn() -> Answer, _, _); 6] = [
        (
            || Answer::json(200, "[]").header("x-request-id", "req_1"),
            [unusable; 2],
            Some("req_1"),
        ),
        (
            || Answer::json(200, "[]").header("apim-request-id", "req_2"),
            [unusable; 2],
            Some("req_2"),
        ),
        (|| Answer::raw(HEAD).close(), lost, Some("req_1")),
        (
            || Answer::raw(HEAD).wait(&Arc::default()),
            ["UPSTREAM_TIMEOUT", "OUTCOME_UNKNOWN"],
            Some("req_1"),
        ),
        (Answer::cut_before_answer, lost, None),
        (|| Answer::json(200, "[]"), [unusable; 2], None),
    ];
    for (answer, reasons, id) in table {
        for (call, reason) in [Call::get_run(), Call::create_run()]
            .into_iter()
            .zip(reasons)
        {
            let told = Told::from(&told(&gateway, &upstream, &call, answer()).await);
            assert_eq!(
                (&*told.reason, told.request_id.as_deref()),
                (reason, id),
                "{}",
                call.rpc()
            );
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn whatever_the_upstream_says_status_and_details_stay_below_4_kib() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for text in [
        "x".repeat(9_000),
        "é".repeat(4_500),
        "😀%\n".repeat(1_500),
        "\u{1}".repeat(2_000),
    ] {
        for http in [400, 404, 429, 500, 503] {
            let body = serde_json::json!({"error": {"message": text, "type": text, "param": text, "code": text}});
            for call in [Call::get_run(), Call::create_run()] {
                upstream.push(
                    Answer::json(http, body.to_string()).header("x-request-id", &"r".repeat(4_000)),
                );
                let status = call.on(&gateway).await.expect_err("an error");
                assert!(size(&status) <= 4096, "{http}: {} bytes", size(&status));
                // Not by saying nothing: enough of the words is there to be understood.
                assert!(status.message().len() >= 200, "{http}: {status}");
            }
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_rejected_key_is_the_callers_or_the_gateways_and_its_letters_are_nobodys() {
    let body = r#"{"error":{"message":"Incorrect API key provided: sk-SECRET-part.","type":"invalid_request_error","code":"invalid_api_key"}}"#;
    for (flags, code, reason) in [
        (&[][..], Code::Unauthenticated, "INVALID_API_KEY"),
        (
            &["--upstream-api-key", "sk-SECRET-part"],
            Code::Internal,
            "GATEWAY_KEY_REJECTED",
        ),
        (
            &[
                "--upstream-api-key",
                "sk-SECRET-part",
                "--upstream-auth",
                "api-key",
            ],
            Code::Internal,
            "GATEWAY_KEY_REJECTED",
        ),
    ] {
        let upstream = Upstream::start().await;
        let gateway = spawn_gateway(&upstream.url(), flags).await;
        for call in [Call::get_run(), Call::create_run()] {
            let status = told(&gateway, &upstream, &call, Answer::json(401, body)).await;
            let told = Told::from(&status);
            assert_eq!((told.code, &*told.reason), (code, reason), "{flags:?}");
            let all = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
            assert_eq!(
                all.contains("SECRET"),
                code == Code::Unauthenticated,
                "{all}"
            );
            assert_eq!(
                all.contains("Incorrect"),
                code == Code::Unauthenticated,
                "{all}"
            );
        }
        gateway.drain().await;
    }
}

#[tokio::test]
async fn every_error_body_that_services_really_send_is_understood() {
    let Some(path) = env::var_os("RUNS_OPENAPI")
        .map(|path| Path::new(&path).with_file_name("error_bodies.json"))
    else {
        return println!("RUNS_OPENAPI is not set: no error bodies to look at");
    };
    let entries: Vec<Value> =
        serde_json::from_slice(&fs::read(&path).expect("a readable file")).expect("a list");
    assert!(!entries.is_empty());
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for entry in entries {
        // Two entries are not error answers but what stands in good ones.
        let Some(http) = entry["status"]
            .as_u64()
            .filter(|http| *http >= 400)
            .and_then(|http| u16::try_from(http).ok())
        else {
            continue;
        };
        let (body, headers) = (
            &entry["body"],
            entry["headers"].as_object().expect("headers"),
        );
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let plain = headers.iter().filter(|(name, _)| *name != "content-type");
        let answer = plain.fold(Answer::json(http, text), |answer, (name, value)| {
            answer.header(name, value.as_str().expect("text"))
        });
        let told = Told::from(&told(&gateway, &upstream, &Call::get_run(), answer).await);

        let words = body["error"]["message"]
            .as_str()
            .or(body["message"].as_str())
            .unwrap_or_default();
        let conflict = [
            "while a run",
            "do not accept tool outputs",
            "Cannot update run",
        ]
        .iter()
        .any(|it| words.contains(it));
        let code = match http {
            400 if conflict => Code::FailedPrecondition,
            400 => Code::InvalidArgument,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::NotFound,
            429 => Code::ResourceExhausted,
            500 => Code::Internal,
            other => panic!("a status that this test does not know: {other}"),
        };
        assert_eq!(told.code, code, "{entry}");
        assert_eq!(
            told.quota,
            body["error"]["code"] == "insufficient_quota",
            "{entry}"
        );
        assert_eq!(
            told.retry_after.is_some(),
            http == 429 && !told.quota,
            "{entry}"
        );
        let param = body["error"]["param"]
            .as_str()
            .filter(|_| code == Code::InvalidArgument);
        assert_eq!(
            told.fields,
            param.into_iter().collect::<Vec<_>>(),
            "{entry}"
        );
        let id = ["x-request-id", "apim-request-id"]
            .iter()
            .find_map(|name| headers.get(*name)?.as_str());
        assert_eq!(
            told.request_id.as_deref(),
            id.or(body["requestId"].as_str()),
            "{entry}"
        );
        let plain_words = words
            .split('{')
            .next()
            .unwrap_or_default()
            .trim_start_matches("400 ");
        assert!(
            told.message.contains(plain_words) && !told.message.contains("{\""),
            "{entry}: {}",
            told.message
        );
    }
    gateway.drain().await;
}
