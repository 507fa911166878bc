//! Errors as upstreams really word and frame them: each row an answer, and what its caller sees.

use std::{io::Write as _, time::Duration};

use flate2::write::GzEncoder;
use runs_gateway::v1::{
    GetMessageRequest, GetRunStepRequest, ListRunsRequest, RunStep, ThreadMessage,
    message_service_client::MessageServiceClient,
};
use tonic::{Code as C, Request, Status};
use tonic_types::StatusExt as _;

use crate::{
    reloads::{lines, metric},
    script::{FAST, create, event, list, message, run, run_event, step, watch},
    seen::{Seen, hear},
    support::{
        gateway::{Gateway, spawn_gateway, spawn_retrying_gateway},
        program::Running,
        upstream::{Answer, Upstream},
    },
    upstream::Do,
};

fn json(status: u16, text: &str) -> Answer {
    Answer::json(status, text.to_owned())
}

/// The fields that a status blames, each with its words.
fn blamed(status: &Status) -> Vec<(String, String)> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|it| it.field_violations.clone());
    let pair = |it: tonic_types::FieldViolation| (it.field, it.description);
    violations
        .unwrap_or_default()
        .into_iter()
        .map(pair)
        .collect()
}

/// What services and frameworks say of several fields, and shapes of edges.
#[tokio::test]
async fn each_field_that_is_wrong_is_named_with_its_words() {
    type Row = (
        &'static str,
        u16,
        &'static str,
        C,
        &'static [&'static str],
        &'static [(&'static str, &'static str)],
    );
    let rows: [Row; 23] = [
        (
            "FastAPI, two errors",
            422,
            r#"{"detail":[{"loc":["body","assistant_id"],"msg":"Field required","type":"missing"},{"loc":["body","tools",0,"type"],"msg":"Bad type","type":"enum"}]}"#,
            C::InvalidArgument,
            &["assistant_id: Field required", "tools[0].type: Bad type"],
            &[
                ("assistant_id", "Field required"),
                ("tools[0].type", "Bad type"),
            ],
        ),
        (
            "RFC 9457, a map",
            400,
            r#"{"title":"Validation failed.","status":400,"errors":{"assistant_id":["is required","is no id"],"model":["is unknown"]}}"#,
            C::InvalidArgument,
            &[
                "Validation failed",
                "is required",
                "is no id",
                "model: is unknown",
            ],
            &[
                ("assistant_id", "is required"),
                ("assistant_id", "is no id"),
                ("model", "is unknown"),
            ],
        ),
        (
            "RFC 9457, a list with pointers",
            422,
            r##"{"type":"about:blank","title":"Not valid.","errors":[{"detail":"must be positive","pointer":"#/max_prompt_tokens"},{"detail":"is no type","pointer":"#/tools/0/type"}]}"##,
            C::InvalidArgument,
            &["Not valid", "must be positive"],
            &[
                ("max_prompt_tokens", "must be positive"),
                ("tools[0].type", "is no type"),
            ],
        ),
        (
            "RFC 9457, a list with names",
            400,
            r#"{"detail":"Two fields are wrong","errors":[{"detail":"too long","name":"model"}]}"#,
            C::InvalidArgument,
            &["Two fields are wrong", "too long"],
            &[("model", "too long")],
        ),
        (
            "RFC 7807, names and reasons",
            400,
            r#"{"title":"No","invalid-params":[{"name":"model","reason":"is unknown"}]}"#,
            C::InvalidArgument,
            &["is unknown"],
            &[("model", "is unknown")],
        ),
        (
            "JSON API, a source",
            422,
            r#"{"errors":[{"detail":"too small","source":{"pointer":"/temperature"}},{"detail":"too large","source":{"parameter":"limit"}}]}"#,
            C::InvalidArgument,
            &["too small", "too large"],
            &[("temperature", "too small"), ("limit", "too large")],
        ),
        (
            "Django, a field",
            400,
            r#"{"assistant_id":["This field is required."]}"#,
            C::InvalidArgument,
            &["This field is required."],
            &[("assistant_id", "This field is required.")],
        ),
        (
            "Django, fields in fields",
            400,
            r#"{"truncation_strategy":{"type":["Bad."]},"tools":[{},{"type":["Worse."]}],"non_field_errors":["All is wrong."]}"#,
            C::InvalidArgument,
            &["Bad.", "Worse.", "All is wrong."],
            &[
                ("tools[1].type", "Worse."),
                ("truncation_strategy.type", "Bad."),
            ],
        ),
        (
            "Django, in an error",
            400,
            r#"{"error":{"model":["No such model."]},"status":"error"}"#,
            C::InvalidArgument,
            &["No such model."],
            &[("model", "No such model.")],
        ),
        (
            "Django, not there",
            404,
            r#"{"detail":"Not found."}"#,
            C::NotFound,
            &["Not found."],
            &[],
        ),
        (
            "Django, words",
            403,
            r#"{"detail":"You do not have permission to do this."}"#,
            C::PermissionDenied,
            &["You do not have permission"],
            &[],
        ),
        (
            "Apigee",
            429,
            r#"{"fault":{"faultstring":"Rate limit quota violation.","detail":{"errorcode":"policies.ratelimit.QuotaViolation"}}}"#,
            C::ResourceExhausted,
            &["Rate limit quota violation."],
            &[],
        ),
        (
            "an error in two members",
            400,
            r#"{"error_msg":"Bad model","error_code":336003}"#,
            C::InvalidArgument,
            &["Bad model"],
            &[],
        ),
        (
            "a list of errors",
            400,
            r#"{"errors":[{"message":"First."},{"message":"Second."}]}"#,
            C::InvalidArgument,
            &["First.; Second."],
            &[],
        ),
        (
            "Google",
            400,
            r#"{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"Bad","details":[{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"field":"model","description":"is unknown"}]}]}}"#,
            C::InvalidArgument,
            &["Bad; model: is unknown"],
            &[("model", "is unknown")],
        ),
        (
            "Azure, a target",
            400,
            r#"{"error":{"code":"BadArgument","message":"Bad","target":"model"}}"#,
            C::InvalidArgument,
            &["Bad"],
            &[("model", "Bad")],
        ),
        (
            "Zod",
            400,
            r#"{"success":false,"error":{"issues":[{"code":"invalid_type","path":["tools",0,"type"],"message":"Required"}],"name":"ZodError"}}"#,
            C::InvalidArgument,
            &["Required"],
            &[("tools[0].type", "Required")],
        ),
        (
            "AI/ML API",
            400,
            r#"{"statusCode":400,"message":"Invalid payload provided.","meta":[{"code":"invalid_type","path":["model"],"message":"Required"}]}"#,
            C::InvalidArgument,
            &["Invalid payload provided", "Required"],
            &[("model", "Required")],
        ),
        (
            "Spring",
            400,
            r#"{"status":400,"error":"Bad Request","errors":[{"field":"model","defaultMessage":"must not be null"}]}"#,
            C::InvalidArgument,
            &["must not be null"],
            &[("model", "must not be null")],
        ),
        (
            "Elastic",
            400,
            r#"{"error":{"root_cause":[{"type":"t","reason":"Words"}],"type":"t","reason":"Words"},"status":400}"#,
            C::InvalidArgument,
            &["Words"],
            &[],
        ),
        (
            "Okta",
            400,
            r#"{"errorCode":"E1","errorSummary":"Failed","errorCauses":[{"errorSummary":"model: no"}]}"#,
            C::InvalidArgument,
            &["Failed; model: no"],
            &[],
        ),
        (
            "a page in words",
            400,
            r#"{"error":{"message":"Error: <html>Secret</html>"}}"#,
            C::InvalidArgument,
            &["Error"],
            &[],
        ),
        (
            "errors that are words",
            400,
            r#"{"message":"Wrong","errors":{"model":"unknown"}}"#,
            C::InvalidArgument,
            &["Wrong", "unknown"],
            &[("model", "unknown")],
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (row, http, body, code, words, fields) in rows {
        upstream.push(json(http, body));
        let status = Do::Create.on(&gateway).await.expect_err(row);
        assert_eq!(status.code(), code, "{row}: {status:?}");
        for word in words {
            assert!(status.message().contains(word), "{row}: {status:?}");
        }
        let blamed = blamed(&status);
        let blamed: Vec<_> = blamed.iter().map(|(a, b)| (&**a, &**b)).collect();
        assert_eq!(blamed, fields, "{row}");
    }
    // However many there are, it stays a status that clients take.
    let many: Vec<_> = (0..500)
        .map(|at| {
            format!(
                r#"{{"loc":["body","field_{at}","{0}"],"msg":"wrong {0}"}}"#,
                "x".repeat(99)
            )
        })
        .collect();
    upstream.push(json(422, &format!(r#"{{"detail":[{}]}}"#, many.join(","))));
    let status = Do::Create.on(&gateway).await.expect_err("many");
    assert!((2..=5).contains(&blamed(&status).len()), "{status:?}");
    assert!(status.details().len() + status.message().len() < 4096);
    for (body, code) in [
        (
            r#"{"fault":{"faultstring":"F","detail":{"errorcode":"steps.x"}}}"#,
            "steps.x",
        ),
        (r#"{"error_msg":"M","error_code":336003}"#, "336003"),
    ] {
        upstream.push(json(400, body));
        let status = Do::Create.on(&gateway).await.expect_err(body);
        assert_eq!(Seen::from(&status).upstream_code, code, "{body}");
    }
    gateway.drain().await;
}

/// What the upstream says of the gateway's own key is the operator's to read.
#[tokio::test]
async fn words_about_the_gateways_own_key_are_the_operators() {
    let words = "Incorrect API key provided: sk-SEC**RET.";
    let rows = [
        (
            "400, a code",
            400,
            format!(r#"{{"error":{{"message":"{words}","code":"invalid_api_key"}}}}"#),
        ),
        ("400, words", 400, format!(r#"{{"error":"{words}"}}"#)),
        (
            "400, a type",
            400,
            format!(r#"{{"error":{{"message":"{words}","type":"authentication_error"}}}}"#),
        ),
        ("401", 401, format!(r#"{{"detail":"{words}"}}"#)),
        (
            "403, a code",
            403,
            format!(r#"{{"error":{{"message":"{words}","code":"invalid_api_key"}}}}"#),
        ),
        ("403", 403, format!(r#"{{"message":"{words}"}}"#)),
        (
            "200",
            200,
            format!(r#"{{"error":{{"message":"{words}","code":"invalid_api_key"}}}}"#),
        ),
    ];
    for (row, http, body) in rows {
        let upstream = Upstream::start().await;
        let url = upstream.url();
        let flags = ["--upstream-url", &url, "--upstream-api-key", "sk-SECRET"];
        let program = Running::start(&flags).await;
        upstream.push(json(http, &body));
        let status = crate::troubles::failed(&program).await;
        let seen = Seen::from(&status);
        assert_eq!(
            (seen.code, &*seen.reason, &*seen.upstream_code),
            (C::Internal, "GATEWAY_KEY_REJECTED", ""),
            "{row}: {seen:?}"
        );
        assert!(
            !format!("{status:?}").contains("ncorrect"),
            "{row}: {status:?}"
        );
        let said = lines(&program, "gateway_key_rejected", 1).await;
        let line = said[0].to_string();
        assert!(
            line.contains("Incorrect API key provided: ***"),
            "{row}: {line}"
        );
        let name = r#"runs_gateway_troubles_total{what="gateway_key_rejected"}"#;
        assert!(metric(&program, name).await >= 1.0, "{row}");
        let (_, log) = program.stop("-TERM").await;
        assert!(!log.contains("SEC"), "{row}: {log}");
    }

    // A caller's own key is the caller's to mend.
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for http in [400, 401, 403] {
        upstream.push(json(
            http,
            r#"{"error":{"message":"Incorrect API key provided: x","code":"invalid_api_key"}}"#,
        ));
        let seen = Seen::from(&Do::Get.on(&gateway).await.expect_err("no key"));
        assert_eq!(
            (seen.code, &*seen.reason),
            (C::Unauthenticated, "INVALID_API_KEY"),
            "{http}"
        );
        assert!(seen.message.contains("Incorrect API key"), "{seen:?}");
    }
    gateway.drain().await;
}

/// An error is one, whatever the status.
#[tokio::test]
async fn an_error_with_status_200_is_an_error() {
    let rows = [
        (
            r#"{"error":{"message":"Slow down","code":"rate_limit_exceeded"}}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            r#"{"error":{"message":"Slow down","code":429}}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            r#"{"error":{"status":"RESOURCE_EXHAUSTED","message":"Slow down"}}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            r#"{"error":{"code":"TooManyRequests","message":"Slow down"}}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            r#"{"__type":"ThrottlingException","message":"Slow down"}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            r#"{"error":{"code":429.0,"message":"Slow down"}}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            r#"{"error":"Slow down: rate limit exceeded"}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (r#"{"error":"Slow down"}"#, C::Internal, "SERVER_ERROR"),
        (
            r#"[{"error":{"message":"Slow down","code":404}}]"#,
            C::NotFound,
            "NOT_FOUND",
        ),
        (r#"{"detail":"Slow down"}"#, C::Internal, "SERVER_ERROR"),
        (
            r#"{"detail":[{"loc":["body","model"],"msg":"Slow down"}],"status":422}"#,
            C::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (
            r#"{"statusCode":404,"message":"Slow down"}"#,
            C::NotFound,
            "NOT_FOUND",
        ),
        (
            r#"{"object":"error","message":"Slow down","type":"invalid_request_error"}"#,
            C::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (
            r#"{"error_msg":"Slow down","error_code":"429"}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            r#"{"fault":{"faultstring":"Slow down"},"status":429}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            r#"{"errors":[{"message":"Slow down"}]}"#,
            C::Internal,
            "SERVER_ERROR",
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (body, code, reason) in rows {
        for call in [Do::Get, Do::Cancel] {
            upstream.push(json(200, body));
            let seen = Seen::from(&call.on(&gateway).await.expect_err(body));
            assert_eq!(
                (seen.code, &*seen.reason),
                (code, reason),
                "{call:?} {body}: {seen:?}"
            );
            assert!(seen.message.contains("Slow down"), "{body}: {seen:?}");
        }
        upstream.push(json(200, body));
        let request = ListRunsRequest {
            thread_id: "thread_1".to_owned(),
            ..ListRunsRequest::default()
        };
        let status = gateway.runs().list_runs(request).await.expect_err(body);
        assert_eq!(status.code(), code, "a list: {body}");

        // In a stream: as an event without a name, and in place of all events.
        let data = format!("data: {body}\n\n");
        let named = |text: String| {
            Answer::new(200)
                .header("content-type", "text/event-stream")
                .chunked()
                .bytes(text)
        };
        for (answer, events) in [
            (
                Answer::sse([run_event("queued"), data.into()]),
                vec!["run_queued"],
            ),
            (named(body.to_owned()), vec![]),
            (json(200, body), vec![]),
        ] {
            upstream.push(answer);
            let stream = gateway.runs().stream_create_run(create()).await;
            let (heard, ended) = hear(stream.map(tonic::Response::into_inner)).await;
            let ended = ended.expect(body);
            assert_eq!(
                (heard, ended.code),
                (events.into_iter().map(str::to_owned).collect(), code),
                "{body}: {ended:?}"
            );
            assert!(ended.message.contains("Slow down"), "{body}: {ended:?}");
        }
    }
    // These say nothing of an error.
    for body in [
        "[]",
        "{}",
        "null",
        r#"{"message":"hello"}"#,
        r#"{"code":0,"message":"ok"}"#,
        r#"{"error":null}"#,
    ] {
        upstream.push(json(200, body));
        let seen = Seen::from(&Do::Get.on(&gateway).await.expect_err(body));
        assert_eq!(&*seen.reason, "UNUSABLE_ANSWER", "{body}");
    }
    let last = r#"{"id":"run_1","thread_id":"thread_1","last_error":{"code":"server_error","message":"M"},"error":{"message":"M"}}"#;
    upstream.push(json(200, last));
    Do::Get
        .on(&gateway)
        .await
        .expect("a run that failed is a run");
    gateway.drain().await;
}

/// A run in place of its stream, by whatever name.
#[tokio::test]
async fn a_run_that_is_called_a_stream_is_read_as_the_run() {
    let (queued, completed) = (run("queued"), run("completed"));
    let typed = |chunks: Vec<String>| {
        let head = Answer::new(200)
            .header("content-type", "text/event-stream")
            .chunked();
        chunks.into_iter().fold(head, Answer::bytes)
    };
    let (begin, end) = queued.split_at(20);
    let rows = [
        ("at once", typed(vec![queued.clone()])),
        (
            "in pieces",
            typed(vec![" \n".into(), begin.into(), end.into()]),
        ),
        ("a mark first", typed(vec![format!("\u{FEFF}{queued}\n")])),
        ("in lines", typed(vec![queued.replace(',', ",\n\n")])),
        (
            "with a length",
            Answer::new(200)
                .header("content-type", "text/event-stream")
                .bytes(queued.clone()),
        ),
        (
            "as an event without a name",
            typed(vec![format!("data: {queued}\n\n")]),
        ),
    ];
    for (row, answer) in rows {
        let upstream = Upstream::start().await;
        let gateway = spawn_gateway(&upstream.url(), &FAST).await;
        upstream.push(answer);
        upstream.push(json(200, &completed));
        // Its steps and its messages.
        upstream.push(json(200, &list(&[])));
        upstream.push(json(200, &list(&[])));
        let stream = gateway.runs().stream_create_run(create()).await;
        let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
        assert_eq!(
            (events, ended),
            (
                vec!["run_queued*".to_owned(), "run_completed*".to_owned()],
                None
            ),
            "{row}"
        );
        gateway.drain().await;
    }
    // Half of one, and one that is too large, are none.
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &["--max-event-bytes", "10000"]).await;
    let long = format!(
        r#"{{"id":"run_1","instructions":"{}"}}"#,
        "x".repeat(10_000)
    );
    for text in [begin.to_owned(), long] {
        upstream.push(typed(vec![text]));
        let stream = gateway.runs().stream_create_run(create()).await;
        let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
        let ended = ended.expect("no run");
        assert_eq!(
            (events.len(), &*ended.reason),
            (0, "OUTCOME_UNKNOWN"),
            "{ended:?}"
        );
    }
    gateway.drain().await;
}

/// How long to wait stands in the words of any error that may pass.
#[tokio::test]
async fn a_delay_in_the_words_of_any_error_that_may_pass_is_kept_to() {
    for http in [408, 425, 429, 500, 502, 503, 504, 529] {
        for (words, millis) in [
            ("try again in 20s", 20_000),
            ("Retry after 26 seconds.", 26_000),
        ] {
            let upstream = Upstream::start().await;
            let gateway = spawn_retrying_gateway(&upstream.url(), &[]).await;
            upstream.push(json(
                http,
                &format!(r#"{{"error":{{"message":"Busy, {words}"}}}}"#),
            ));
            let mut request = Request::new(runs_gateway::v1::GetRunRequest {
                thread_id: "thread_1".to_owned(),
                run_id: "run_1".to_owned(),
            });
            request.set_timeout(Duration::from_secs(5));
            let status = gateway.runs().get_run(request).await.expect_err(words);
            let seen = Seen::from(&status);
            // 425 has no meaning here.
            let expected = (http != 425).then(|| Duration::from_millis(millis));
            assert_eq!(seen.retry_after, expected, "{http} {words}: {seen:?}");
            assert_eq!(upstream.requests().len(), 1, "{http} {words}");
            // Nobody repeats a create whose fate is not known.
            if http >= 502 {
                upstream.push(json(
                    http,
                    &format!(r#"{{"error":{{"message":"Busy, {words}"}}}}"#),
                ));
                let seen = Seen::from(&Do::Create.on(&gateway).await.expect_err(words));
                assert_eq!(
                    (&*seen.reason, seen.retry_after),
                    ("OUTCOME_UNKNOWN", None),
                    "{http}"
                );
            }
            gateway.drain().await;
        }
    }
    // What an ordinary error repeats of the request is no delay.
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for http in [400, 404, 422] {
        upstream.push(json(
            http,
            r#"{"error":{"message":"Bad name 'try again in 20s'"}}"#,
        ));
        let seen = Seen::from(&Do::Get.on(&gateway).await.expect_err("an error"));
        assert_eq!(seen.retry_after, None, "{http}");
    }
    gateway.drain().await;
}

/// A delay stands in a member of an error, or in words of many spellings.
#[tokio::test]
async fn a_delay_is_read_however_it_is_written() {
    let words = |words: &str| format!(r#"{{"error":{{"message":"Slow down; {words}"}}}}"#);
    let day = Duration::from_secs(24 * 3600);
    let rows = [
        (
            r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Q","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"17s"}]}}"#.to_owned(),
            Duration::from_secs(17),
        ),
        (
            r#"{"error":{"message":"Q","retry_after":12}}"#.to_owned(),
            Duration::from_secs(12),
        ),
        (
            r#"{"message":"Q","retryAfter":"12s"}"#.to_owned(),
            Duration::from_secs(12),
        ),
        (
            r#"{"message":"Q","retry_after_ms":9500}"#.to_owned(),
            Duration::from_millis(9500),
        ),
        (
            r#"{"message":"Q","retry_after_seconds":12}"#.to_owned(),
            Duration::from_secs(12),
        ),
        (words("retry after 9,500 ms"), Duration::from_millis(9500)),
        (
            words("retry after 9500000 \u{b5}s"),
            Duration::from_millis(9500),
        ),
        (words("wait 30s and retry"), Duration::from_secs(30)),
        (words("reset after 30s"), Duration::from_secs(30)),
        (words("retry after PT30S"), Duration::from_secs(30)),
        (words("try again in one minute"), Duration::from_secs(60)),
        (words("cooldown 30 seconds"), Duration::from_secs(30)),
        (words("retry after 2999-01-01T00:00:00Z"), 30 * day),
        (words("retry after 100000000000000000000 s"), 30 * day),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_retrying_gateway(&upstream.url(), &[]).await;
    for (at, (body, delay)) in rows.into_iter().enumerate() {
        upstream.push(json(429, &body));
        let mut request = Request::new(runs_gateway::v1::GetRunRequest {
            thread_id: "thread_1".to_owned(),
            run_id: "run_1".to_owned(),
        });
        request.set_timeout(Duration::from_secs(5));
        let status = gateway.runs().get_run(request).await.expect_err(&body);
        assert_eq!(Seen::from(&status).retry_after, Some(delay), "{body}");
        assert_eq!(upstream.requests().len(), at + 1, "{body}");
    }
    gateway.drain().await;
}

/// A missing route is the operator's to mend, a missing run the caller's.
#[tokio::test]
async fn a_name_of_the_services_own_tells_a_run_from_a_route() {
    let runs = [
        r#"{"code":"RunNotFound","message":"Not Found"}"#,
        r#"{"error":{"code":"not_found","message":"Not found"}}"#,
        r#"{"error":{"type":"not_found_error","message":"Not Found"}}"#,
        r#"{"error":{"code":"NotFound","message":"Not found"}}"#,
        r#"{"error":{"code":"ResourceNotFound","message":"Not found"}}"#,
        r#"{"type":"https://example.com/probs/run-not-found","title":"Not Found","status":404}"#,
        r#"{"error":{"code":404,"status":"NOT_FOUND","message":"Not Found"}}"#,
    ];
    let routes = [
        r#"{"error":{"message":"Unknown request URL: GET /v1/threads. Please check it","code":"unknown_url"}}"#,
        r#"{"error":"Unknown endpoint"}"#,
        r#"{"message":"Path /threads/thread_1 not found"}"#,
        r#"{"code":5,"message":"Not Found","details":[]}"#,
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let runs = runs.map(|body| (body, C::NotFound, "NOT_FOUND"));
    let routes = routes.map(|body| (body, C::Unimplemented, "ROUTE_NOT_FOUND"));
    for (body, code, reason) in runs.into_iter().chain(routes) {
        upstream.push(json(404, body));
        let seen = Seen::from(&Do::Get.on(&gateway).await.expect_err(body));
        assert_eq!((seen.code, &*seen.reason), (code, reason), "{body}");
    }
    gateway.drain().await;
}

/// Edges pack their own errors, asked or not.
#[tokio::test]
async fn a_packed_error_is_unpacked_or_told_by_its_status() {
    let packed = |text: &str| {
        let mut packing = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packing.write_all(text.as_bytes()).expect("written");
        packing.finish().expect("packed")
    };
    let quota = r#"{"error":{"message":"Pay","code":"insufficient_quota"}}"#;
    let bomb = "x".repeat(8 << 20);
    let rows = [
        (
            404,
            "gzip",
            packed(r#"{"detail":"Run run_1 not found"}"#),
            "NOT_FOUND",
        ),
        (
            404,
            "x-gzip",
            packed(r#"{"detail":"Not Found"}"#),
            "ROUTE_NOT_FOUND",
        ),
        (404, "br", b"\x0b\x02\x80{}\x03".to_vec(), "NOT_FOUND"),
        (404, "gzip", b"{}".to_vec(), "NOT_FOUND"),
        (404, "gzip", packed(&bomb), "NOT_FOUND"),
        (429, "gzip", packed(quota), "INSUFFICIENT_QUOTA"),
        (429, "utf-8", quota.into(), "INSUFFICIENT_QUOTA"),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (http, encoding, body, reason) in rows {
        let answer = Answer::json(http, body).header("content-encoding", encoding);
        upstream.push(answer);
        let seen = Seen::from(&Do::Get.on(&gateway).await.expect_err(reason));
        assert_eq!(&*seen.reason, reason, "{http} {encoding}: {seen:?}");
    }
    gateway.drain().await;
}

/// An empty list of a Go server is null; what cannot be read of a run holds its end up no longer.
#[tokio::test]
async fn no_list_is_an_empty_one_and_what_cannot_be_read_is_a_gap_at_once() {
    type Steps = Box<dyn Fn() -> Answer + Send + Sync>;
    let null = r#"{"object":"list","data":null,"has_more":false}"#;
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    upstream.push(json(200, null));
    let request = ListRunsRequest {
        thread_id: "thread_1".to_owned(),
        ..ListRunsRequest::default()
    };
    let runs = gateway.runs().list_runs(request.clone()).await;
    assert!(runs.expect("no runs").into_inner().data.is_empty());
    // Others have an envelope of that form for errors.
    upstream.push(json(200, r#"{"code":1,"message":"No","data":null}"#));
    let status = gateway.runs().list_runs(request).await;
    assert_eq!(
        &*Seen::from(&status.expect_err("no list")).reason,
        "UNUSABLE_ANSWER"
    );
    gateway.drain().await;

    let page = || Answer::new(200).bytes("<html>Sorry</html>");
    let rows: [(&str, Steps, &[&str]); 4] = [
        (
            "null",
            Box::new(move || json(200, null)),
            &["run_completed*"],
        ),
        (
            "501",
            Box::new(|| json(501, r#"{"message":"No steps"}"#)),
            &["gap()", "run_completed*"],
        ),
        ("a page", Box::new(page), &["gap()", "run_completed*"]),
        (
            "no list",
            Box::new(|| json(200, r#"{"data":7}"#)),
            &["gap()", "run_completed*"],
        ),
    ];
    for (row, steps, expected) in rows {
        let upstream = Upstream::answering(move |request| match &*request.target {
            _ if request.method == "POST" => Answer::sse([run_event("in_progress")]),
            target if target.contains("/steps") => steps(),
            target if target.contains("/messages") => json(200, null),
            _ => json(200, &run("completed")),
        })
        .await;
        let gateway = spawn_gateway(&upstream.url(), &FAST).await;
        let stream = gateway.runs().stream_create_run(create()).await;
        let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
        let expected = ["run_in_progress"].iter().chain(expected);
        let expected: Vec<_> = expected.map(|it| (*it).to_owned()).collect();
        assert_eq!((events, ended), (expected, None), "{row}");
        gateway.drain().await;
    }
}

/// State conflicts in the words of many services.
#[tokio::test]
async fn a_conflict_of_states_is_told_from_a_request_that_is_wrong() {
    let conflicts = [
        (Do::Create, "A run is already in progress on this thread."),
        (Do::Create, "Thread thread_1 is locked by another run"),
        (
            Do::Create,
            "Can\u{2019}t create a run while another run is active",
        ),
        (
            Do::Create,
            "Another run is still running for thread thread_1",
        ),
        (Do::Submit, "There are no pending tool outputs for this run"),
        (Do::Submit, "Run run_1 is not in requires_action state"),
        (Do::Submit, "The run isn't waiting for tool outputs"),
        (
            Do::Submit,
            "Run must be in requires_action to submit tool outputs",
        ),
        (Do::Submit, "Run run_1 has expired"),
        (Do::Cancel, "The run was already canceled"),
        (Do::Cancel, "Run is completed"),
        (
            Do::Cancel,
            "Unable to cancel run: it is in a terminal state",
        ),
        (Do::Modify, "Cannot modify run in status completed"),
        (
            Do::Modify,
            "Run run_1 has been cancelled and can not be modified",
        ),
        (Do::Create, "a run is still in_progress for this thread"),
        (Do::Create, "Thread is currently locked"),
        (Do::Create, "Another run is running"),
        (Do::Create, "Concurrent runs are not allowed on a thread"),
        (Do::Cancel, "run is not cancellable"),
        (Do::Submit, "tool outputs have already been submitted"),
        (Do::Submit, "This run expired"),
        (Do::Modify, "Conflict: run state changed"),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (call, words) in conflicts {
        for http in [400, 422] {
            upstream.push(json(http, &format!(r#"{{"detail":"{words}"}}"#)));
            let seen = Seen::from(&call.on(&gateway).await.expect_err(words));
            assert_eq!(
                (seen.code, &*seen.reason),
                (C::FailedPrecondition, "STATE_CONFLICT"),
                "{words}"
            );
        }
    }
    for words in [
        "run_id cannot be empty",
        "Invalid value: 'requires_action'",
        "tool_outputs is required",
        "The model of the run does not exist",
        "An error occurred while parsing the body of the run",
        "'status' must be one of queued, in_progress, completed",
    ] {
        upstream.push(json(400, &format!(r#"{{"detail":"{words}"}}"#)));
        let seen = Seen::from(&Do::Create.on(&gateway).await.expect_err(words));
        assert_eq!(
            (seen.code, &*seen.reason),
            (C::InvalidArgument, "INVALID_REQUEST"),
            "{words}"
        );
    }
    for body in [
        r#"{"error":{"code":400,"status":"FAILED_PRECONDITION","message":"No"}}"#,
        r#"{"error":{"code":"run_not_active","message":"No"}}"#,
        r#"{"code":"RunNotCancellable","message":"No"}"#,
        r#"{"code":9,"message":"No","details":[]}"#,
    ] {
        upstream.push(json(400, body));
        let seen = Seen::from(&Do::Create.on(&gateway).await.expect_err(body));
        assert_eq!(&*seen.reason, "STATE_CONFLICT", "{body}");
    }
    gateway.drain().await;
}

/// Pages of steps without end: said, counted, and never taken for all steps.
#[tokio::test]
async fn steps_without_end_are_an_honest_end_and_a_gap() {
    let upstream = Upstream::answering(|request| {
        if request.method == "POST" {
            return Answer::sse([run_event("in_progress")]);
        }
        if !request.target.contains("/steps") {
            return json(200, &run("completed"));
        }
        let after = request
            .target
            .split("after=step_")
            .nth(1)
            .and_then(|it| it.split('&').next());
        let number = after.and_then(|it| it.parse().ok()).unwrap_or(0) + 1;
        let step = step(&format!("step_{number}"), "completed", "");
        json(
            200,
            &format!(
                r#"{{"object":"list","data":[{step}],"last_id":"step_{number}","has_more":true}}"#
            ),
        )
    })
    .await;
    let url = upstream.url();
    let flags = [
        "--upstream-url",
        &url,
        "--poll-rate",
        "1000",
        "--poll-floor",
        "2ms",
    ];
    let program = Running::start(&flags).await;
    let mut runs =
        runs_gateway::v1::run_service_client::RunServiceClient::new(program.channel.clone());

    let request = runs_gateway::v1::WatchRunRequest {
        include_steps: true,
        ..watch()
    };
    let stream = runs
        .watch_run(request)
        .await
        .map(tonic::Response::into_inner);
    let (events, ended) = hear(stream).await;
    let ended = ended.expect("not all steps");
    assert_eq!(
        (events.len(), ended.code, &*ended.reason),
        (0, C::Internal, "UNUSABLE_ANSWER")
    );
    assert!(ended.message.contains("100 pages"), "{ended:?}");
    let pages = upstream.requests().len();
    assert!(pages <= 102, "the pages were read {pages} times");
    let said = lines(&program, "list_unread", 1).await;
    assert!(
        said[0]["level"] == "WARN" && said[0].to_string().contains("run_1"),
        "{said:?}"
    );
    let name = r#"runs_gateway_troubles_total{what="list_unread"}"#;
    assert!(metric(&program, name).await >= 1.0);

    // A stream that lost its upstream says that it cannot name what it lost.
    let stream = runs
        .stream_create_run(create())
        .await
        .map(tonic::Response::into_inner);
    let (events, ended) = hear(stream).await;
    assert_eq!(
        (events, ended),
        (
            ["run_in_progress", "gap()", "run_completed*"]
                .map(str::to_owned)
                .to_vec(),
            None
        )
    );
}

/// A5: what belongs to another thread or run is not what was asked for.
#[tokio::test]
async fn an_answer_of_another_thread_is_not_passed_on() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let own = |text: &str| text.to_owned();
    let other = |text: &str| text.replace("thread_1", "thread_2");
    let (a_run, a_step, a_message) = (
        run("queued"),
        step("step_1", "completed", ""),
        message("msg_1", "completed"),
    );
    for (of, code) in [
        (&own as &dyn Fn(&str) -> String, C::Ok),
        (&other, C::Internal),
    ] {
        upstream.push(json(200, &of(&a_run)));
        let told = Do::Get.on(&gateway).await;
        let told = told.map_or_else(|status| status.code(), |_| C::Ok);
        assert_eq!(told, code, "a run");
        upstream.push(json(200, &of(&a_step)));
        assert_eq!(step_code(&gateway).await, code, "a step");
        upstream.push(json(200, &of(&a_message)));
        assert_eq!(message_code(&gateway).await, code, "a message");
    }
    // A write was done, and a list names none. Mock servers answer both with examples.
    for call in [Do::Create, Do::Cancel, Do::Modify, Do::Submit] {
        upstream.push(json(200, &other(&a_run)));
        call.on(&gateway).await.expect("a run");
    }
    upstream.push(json(200, &list(&[other(&a_run)])));
    let request = ListRunsRequest {
        thread_id: "thread_1".into(),
        ..ListRunsRequest::default()
    };
    gateway.runs().list_runs(request).await.expect("a list");
    // Another run's step.
    upstream.push(json(200, &a_step.replace("run_1", "run_2")));
    assert_eq!(step_code(&gateway).await, C::Internal);
    // Some services do not say what their answers belong to.
    upstream.push(json(200, r#"{"id":"run_1"}"#));
    Do::Get.on(&gateway).await.expect("a run");
    gateway.drain().await;
}

async fn step_code(gateway: &Gateway) -> C {
    let request = GetRunStepRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        step_id: "step_1".into(),
        ..GetRunStepRequest::default()
    };
    let told: Result<tonic::Response<RunStep>, Status> =
        gateway.steps().get_run_step(request).await;
    told.map_or_else(|status| status.code(), |_| C::Ok)
}

async fn message_code(gateway: &Gateway) -> C {
    let mut messages = MessageServiceClient::new(gateway.channel());
    let request = GetMessageRequest {
        thread_id: "thread_1".into(),
        message_id: "msg_1".into(),
    };
    let read: Result<tonic::Response<ThreadMessage>, Status> = messages.get_message(request).await;
    read.map_or_else(|status| status.code(), |_| C::Ok)
}

/// An event's name is not what makes it an error.
#[tokio::test]
async fn named_events_are_what_their_names_say() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::sse([
        event("thread.run.queued", format!("\u{FEFF}{}", run("queued"))),
        event("x.detail", r#"{"detail":"not an error"}"#),
        event("thread.run.completed", run("completed")),
        event("done", "[DONE]"),
    ]));
    let stream = gateway.runs().stream_create_run(create()).await;
    let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
    assert_eq!(
        (events, ended),
        (
            ["run_queued", "unknown(x.detail)", "run_completed", "done"]
                .map(str::to_owned)
                .to_vec(),
            None
        )
    );
    gateway.drain().await;
}
