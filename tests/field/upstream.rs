//! What upstreams answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use runs_gateway::v1::{
    CancelRunRequest, CreateRunRequest, GetRunRequest, ModifyRunRequest, Run, RunSpec, RunUpdate,
    SubmitToolOutputsRequest, ToolOutput, ToolOutputs, WatchRunRequest,
};
use tokio::sync::Notify;
use tonic::{Code as C, Request, Status};

use crate::{
    script::{FAST, create, event, list, message, run, run_event, step, watch},
    seen::{Seen, hear},
    support::{
        gateway::{Gateway, spawn_gateway, spawn_retrying_gateway},
        upstream::{Answer, Upstream},
    },
};

/// The calls that rows make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Do {
    Get,
    Create,
    Cancel,
    Modify,
    Submit,
}

impl Do {
    pub(crate) async fn on(self, gateway: &Gateway) -> Result<Run, Status> {
        let (thread_id, run_id) = ("thread_1".to_owned(), "run_1".to_owned());
        let mut runs = gateway.runs();
        let answer = match self {
            Self::Get => runs.get_run(GetRunRequest { thread_id, run_id }).await,
            Self::Create => {
                let run = Some(RunSpec {
                    assistant_id: "asst_1".to_owned(),
                    ..RunSpec::default()
                });
                let include = Vec::new();
                runs.create_run(CreateRunRequest {
                    thread_id,
                    run,
                    include,
                    ..CreateRunRequest::default()
                })
                .await
            }
            Self::Cancel => {
                runs.cancel_run(CancelRunRequest { thread_id, run_id })
                    .await
            }
            Self::Modify => {
                let run = Some(RunUpdate::default());
                runs.modify_run(ModifyRunRequest {
                    thread_id,
                    run_id,
                    run,
                })
                .await
            }
            Self::Submit => {
                let output = ToolOutput {
                    tool_call_id: "call_1".to_owned(),
                    ..ToolOutput::default()
                };
                let tool_outputs = Some(ToolOutputs {
                    tool_outputs: vec![output],
                    ..ToolOutputs::default()
                });
                let request = SubmitToolOutputsRequest {
                    thread_id,
                    run_id,
                    tool_outputs,
                };
                runs.submit_tool_outputs(request).await
            }
        };
        answer.map(tonic::Response::into_inner)
    }
}

fn plain(status: u16, text: &str) -> Answer {
    Answer::new(status)
        .header("content-type", "text/plain; charset=utf-8")
        .bytes(text.to_owned())
}

fn json(status: u16, text: &str) -> Answer {
    Answer::json(status, text.to_owned())
}

/// U2 to U5, U8, U15: the call, the answer, what the caller sees.
#[tokio::test]
async fn an_error_says_what_it_is_in_whatever_shape() {
    use Do::{Cancel, Create, Get, Modify, Submit};
    type Row = (
        &'static str,
        Do,
        Answer,
        C,
        &'static str,
        &'static str,
        &'static str,
    );
    let late = Arc::new(Notify::new());
    let padding = format!(
        r#"{{"input":"{}","detail":"Run run_1 not found"}}"#,
        "x".repeat(200_000)
    );
    let conflict = "STATE_CONFLICT";
    // The row, the call, the answer; code, reason, words, field.
    let rows: Vec<Row> = vec![
        (
            "U2 a field",
            Create,
            json(
                422,
                r#"{"detail":[{"loc":["body","assistant_id"],"msg":"field required","type":"value_error.missing"}]}"#,
            ),
            C::InvalidArgument,
            "INVALID_REQUEST",
            "field required",
            "assistant_id",
        ),
        (
            "U2 a field in a list",
            Create,
            json(
                422,
                r#"{"detail":[{"loc":["body","tools",0,"type"],"msg":"bad"},{"loc":["body","model"],"msg":"worse"}]}"#,
            ),
            C::InvalidArgument,
            "INVALID_REQUEST",
            "model: worse",
            "tools[0].type",
        ),
        (
            "U2 words",
            Get,
            json(404, r#"{"detail":"Run run_1 not found"}"#),
            C::NotFound,
            "NOT_FOUND",
            "Run run_1 not found",
            "",
        ),
        (
            "U2 an object",
            Get,
            json(404, r#"{"detail":{"message":"no run_1","code":"gone"}}"#),
            C::NotFound,
            "NOT_FOUND",
            "no run_1",
            "",
        ),
        (
            "U2 a problem",
            Get,
            json(
                403,
                r#"{"type":"about:blank","title":"Forbidden","status":403,"detail":"not yours"}"#,
            ),
            C::PermissionDenied,
            "PERMISSION_DENIED",
            "not yours",
            "",
        ),
        (
            "U2 a route",
            Get,
            json(404, r#"{"detail":"Not Found"}"#),
            C::Unimplemented,
            "ROUTE_NOT_FOUND",
            "",
            "",
        ),
        (
            "U2 a route of Nest's",
            Get,
            json(
                404,
                r#"{"statusCode":404,"message":"Cannot GET /threads","error":"Not Found"}"#,
            ),
            C::Unimplemented,
            "ROUTE_NOT_FOUND",
            "",
            "",
        ),
        (
            "U2 a route of Go's",
            Get,
            plain(404, "404 page not found\n"),
            C::Unimplemented,
            "ROUTE_NOT_FOUND",
            "",
            "",
        ),
        (
            "U3 text",
            Create,
            plain(
                400,
                "Invalid assistant_id did you create this assistant beforehand?",
            ),
            C::InvalidArgument,
            "INVALID_REQUEST",
            "did you create this assistant beforehand?",
            "",
        ),
        (
            "U3 control characters",
            Create,
            plain(400, "no\u{7}\r\nway"),
            C::InvalidArgument,
            "INVALID_REQUEST",
            "no way",
            "",
        ),
        (
            "U3 a string",
            Create,
            json(400, r#""just words""#),
            C::InvalidArgument,
            "INVALID_REQUEST",
            "just words",
            "",
        ),
        (
            "U3 a page",
            Create,
            plain(400, "<html>Sorry</html>"),
            C::InvalidArgument,
            "INVALID_REQUEST",
            "no error message",
            "",
        ),
        (
            "U4 cancel",
            Cancel,
            json(
                400,
                r#"{"code":"bad_request","message":"run run_1 cannot cancel"}"#,
            ),
            C::FailedPrecondition,
            conflict,
            "cannot cancel",
            "",
        ),
        (
            "U4 submit",
            Submit,
            json(
                400,
                r#"{"detail":"Run status is \"completed\", cannot submit tool outputs"}"#,
            ),
            C::FailedPrecondition,
            conflict,
            "cannot submit",
            "",
        ),
        (
            "U4 a framework's status",
            Submit,
            json(
                422,
                r#"{"detail":"Run run_1 is not in requires_action state"}"#,
            ),
            C::FailedPrecondition,
            conflict,
            "requires_action",
            "",
        ),
        (
            "U4 modify",
            Modify,
            json(
                400,
                r#"{"error":{"message":"Cannot modify run: already completed"}}"#,
            ),
            C::FailedPrecondition,
            conflict,
            "already",
            "",
        ),
        (
            "U4 create",
            Create,
            plain(400, "thread has an active run"),
            C::FailedPrecondition,
            conflict,
            "active run",
            "",
        ),
        (
            "U4 only a value",
            Create,
            json(
                400,
                r#"{"error":{"message":"Invalid value: 'requires_action'. Supported values are: 'a'."}}"#,
            ),
            C::InvalidArgument,
            "INVALID_REQUEST",
            "Invalid value",
            "",
        ),
        (
            "U8 a mark before an error",
            Get,
            json(
                429,
                "\u{FEFF}{\"error\":{\"message\":\"Pay.\",\"code\":\"insufficient_quota\"}}",
            ),
            C::ResourceExhausted,
            "INSUFFICIENT_QUOTA",
            "Pay.",
            "",
        ),
        (
            "U15 a slow body",
            Get,
            Answer::new(404)
                .header("content-type", "application/json")
                .chunked()
                .bytes(r#"{"error":"#)
                .wait(&late)
                .bytes(r#"{"message":"No run"}}"#),
            C::NotFound,
            "NOT_FOUND",
            "No run",
            "",
        ),
        (
            "U15 a large body",
            Get,
            Answer::json(404, padding),
            C::NotFound,
            "NOT_FOUND",
            "Run run_1 not found",
            "",
        ),
        (
            "U15 a body that is cut",
            Get,
            Answer::new(404)
                .chunked()
                .bytes(r#"{"error":{"mess"#)
                .close(),
            C::NotFound,
            "NOT_FOUND",
            "404",
            "",
        ),
        (
            "U15 half a body, as if whole",
            Get,
            json(404, r#"{"error":{"mess"#),
            C::NotFound,
            "NOT_FOUND",
            "404",
            "",
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (row, call, answer, code, reason, words, field) in rows {
        upstream.push(answer);
        let slow = row == "U15 a slow body";
        let ended = tokio::join!(call.on(&gateway), async {
            if slow {
                tokio::time::sleep(Duration::from_millis(2500)).await;
                late.notify_one();
            }
        });
        let status = ended.0.expect_err(row);
        let seen = Seen::from(&status);
        assert_eq!(
            (seen.code, &*seen.reason),
            (code, reason),
            "{row}: {seen:?}"
        );
        assert!(seen.message.contains(words), "{row}: {seen:?}");
        assert_eq!(seen.field, field, "{row}");
        assert!(!seen.message.contains("Sorry"), "{row}");
    }
    gateway.drain().await;
}

/// U5: how long to wait stands in the words, for the caller and for the gateway itself.
#[tokio::test]
async fn a_delay_in_words_is_kept_to_by_the_gateway_too() {
    let rows = [
        ("Please try again in 20s.", 20_000),
        (
            "Limit 3, used 3. Please try again in 7.5s. Visit the site.",
            7_500,
        ),
        ("Please try again in 6m0s.", 360_000),
        ("Too many requests, retry after 26 seconds", 26_000),
    ];
    for (words, millis) in rows {
        let upstream = Upstream::start().await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &[]).await;
        let body = format!(r#"{{"error":{{"message":"{words}","code":"rate_limit_exceeded"}}}}"#);
        upstream.push(Answer::json(429, body.clone()));
        let mut request = Request::new(GetRunRequest {
            thread_id: "thread_1".to_owned(),
            run_id: "run_1".to_owned(),
        });
        request.set_timeout(Duration::from_secs(5));
        let began = Instant::now();
        let status = gateway.runs().get_run(request).await.expect_err(words);
        let seen = Seen::from(&status);
        assert_eq!(seen.code, C::ResourceExhausted, "{words}");
        assert_eq!(
            seen.retry_after,
            Some(Duration::from_millis(millis)),
            "{words}"
        );
        assert_eq!(upstream.requests().len(), 1, "{words}");
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{words}: waited for nothing"
        );
        gateway.drain().await;
    }
}

/// U6: an edge has given the request on, and has no answer.
#[tokio::test]
async fn what_an_edge_says_for_an_origin_without_answer() {
    for status in [520, 521, 522, 523, 524, 525, 526, 527, 529, 530] {
        let page = || {
            Answer::new(status)
                .header("content-type", "text/html")
                .bytes("<html>524: A timeout occurred</html>")
        };
        let upstream = Upstream::start().await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &["--retry-pause", "1ms"]).await;
        upstream.push(page());
        let seen = Seen::from(&Do::Create.on(&gateway).await.expect_err("an error"));
        assert_eq!(
            (seen.code, &*seen.reason),
            (C::Unknown, "OUTCOME_UNKNOWN"),
            "{status}"
        );
        assert_eq!(
            upstream.requests().len(),
            1,
            "{status}: a create is sent once"
        );

        (0..3).for_each(|_| upstream.push(page()));
        let seen = Seen::from(&Do::Get.on(&gateway).await.expect_err("an error"));
        assert_eq!(
            (seen.code, &*seen.reason),
            (C::Unavailable, "UPSTREAM_UNAVAILABLE"),
            "{status}"
        );
        assert_eq!(
            upstream.requests().len(),
            4,
            "{status}: a read is tried again"
        );
        assert!(
            !seen.message.contains("timeout occurred"),
            "{status}: {seen:?}"
        );
        gateway.drain().await;
    }
}

/// U7: nothing that is packed was asked for.
#[tokio::test]
async fn a_packed_answer_or_stream_cannot_be_used_and_says_so_at_once() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for encoding in ["gzip", "br", "GZIP", "identity, deflate"] {
        let packed = Answer::new(200)
            .header("content-type", "text/event-stream")
            .header("content-encoding", encoding)
            .chunked()
            .bytes("\x1f\u{8}")
            .wait(&Arc::default());
        upstream.push(packed);
        let stream = gateway.runs().stream_create_run(create()).await;
        let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
        let ended = ended.expect("an error");
        assert_eq!(
            (events.len(), ended.code, &*ended.reason),
            (0, C::Internal, "UNUSABLE_ANSWER"),
            "{encoding}"
        );

        upstream.push(json(200, &run("queued")).header("content-encoding", encoding));
        let seen = Seen::from(&Do::Get.on(&gateway).await.expect_err("an error"));
        assert_eq!(
            (seen.code, &*seen.reason),
            (C::Internal, "UNUSABLE_ANSWER"),
            "{encoding}"
        );
    }
    for encoding in ["identity", "", "none", "utf-8"] {
        upstream.push(json(200, &run("queued")).header("content-encoding", encoding));
        Do::Get.on(&gateway).await.expect("an answer");
    }
    for request in upstream.requests() {
        assert_eq!(
            request.header("accept-encoding"),
            Some("identity"),
            "{}",
            request.target
        );
    }
    gateway.drain().await;
}

/// U8: a byte-order mark before JSON is as if it were not there.
#[tokio::test]
async fn a_byte_order_mark_before_json_is_passed_over() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for call in [Do::Get, Do::Create, Do::Cancel] {
        upstream.push(json(200, &format!("\u{FEFF}{}", run("queued"))));
        let run = call
            .on(&gateway)
            .await
            .unwrap_or_else(|status| panic!("{call:?}: {status}"));
        assert_eq!((&*run.id, &*run.extra_json), ("run_1", ""), "{call:?}");
    }
    upstream.push(json(200, &format!("\u{FEFF}\u{FEFF}{}", run("queued"))));
    Do::Get
        .on(&gateway)
        .await
        .expect_err("two are one too many");
    gateway.drain().await;
}

/// U9 to U11: other ways to say the same events.
#[tokio::test]
async fn the_same_events_in_whatever_dialect() {
    let created = format!("data: {}\n\n", run("created"))
        .replace("\"status\":\"created\"", "\"status\":\"queued\"");
    let (queued, completed) = (run("queued"), run("completed"));
    let events = format!(
        "event: thread.run.created\n{created}event: thread.run.completed\ndata: {completed}\n\nevent: done\ndata: [DONE]\n\n"
    );
    let wrapped =
        |name: &str, data: &str| format!("data: {{\"event\":\"{name}\",\"data\":{data}}}\n\n");
    let typed = |kind: Option<&str>, text: String| {
        let answer = Answer::new(200).chunked().bytes(text);
        match kind {
            Some(kind) => answer.header("content-type", kind),
            None => answer,
        }
    };
    let sse = Some("text/event-stream");
    let all = &["run_created", "run_completed", "done"][..];
    let alone = &["run_queued*", "run_completed*"][..];
    let rows: Vec<(&str, Answer, &[&str])> = vec![
        ("U9 no type", typed(None, events.clone()), all),
        (
            "U9 JSON's type",
            typed(Some("application/json"), events.clone()),
            all,
        ),
        (
            "U9 plain text",
            typed(Some("text/plain"), events.clone()),
            all,
        ),
        (
            "U9 bytes",
            typed(Some("application/octet-stream"), events.clone()),
            all,
        ),
        (
            "U9 upper case",
            typed(Some("Text/Event-Stream;charset=utf-8"), events.clone()),
            all,
        ),
        (
            "U9 a mark first",
            typed(None, format!("\u{FEFF}{events}")),
            all,
        ),
        (
            "U9 a comment first",
            typed(None, format!(": hello\n\n{events}")),
            all,
        ),
        (
            "U9 blank lines first",
            typed(None, format!("\r\n\n{events}")),
            all,
        ),
        (
            "U9 an id first",
            typed(None, format!("id: 1\nretry: 3000\n{events}")),
            all,
        ),
        (
            "U9 byte by byte",
            events
                .bytes()
                .fold(Answer::new(200).chunked(), |answer, byte| {
                    answer.bytes(vec![byte])
                }),
            all,
        ),
        (
            "U9 a run",
            typed(Some("application/json"), queued.clone()),
            alone,
        ),
        (
            "U9 a run without a type",
            typed(None, format!(" \n{queued}")),
            alone,
        ),
        (
            "U10 message",
            typed(
                sse,
                format!(
                    "event: message\n{}event: message\n{}event: message\ndata: [DONE]\n\n",
                    wrapped("thread.run.created", &queued),
                    wrapped("thread.run.completed", &completed)
                ),
            ),
            all,
        ),
        (
            "U10 none",
            typed(
                sse,
                format!(
                    "{}{}data: [DONE]\n\n",
                    wrapped("thread.run.created", &queued),
                    wrapped("thread.run.completed", &completed)
                ),
            ),
            all,
        ),
        (
            "U11 a blank behind",
            typed(
                sse,
                events.replace("event: done\ndata: [DONE]", "data: [DONE] "),
            ),
            all,
        ),
        (
            "U11 a tab before",
            typed(
                sse,
                events.replace(
                    "event: done\ndata: [DONE]",
                    "event: message\ndata: \t[DONE]\t",
                ),
            ),
            all,
        ),
        (
            "U11 at the end of the bytes",
            typed(
                sse,
                events.replace("event: done\ndata: [DONE]\n\n", "data:  [DONE] \n"),
            ),
            all,
        ),
    ];
    for (row, answer, expected) in rows {
        let upstream = Upstream::start().await;
        let gateway = spawn_gateway(&upstream.url(), &FAST).await;
        upstream.push(answer);
        if expected == alone {
            upstream.push(json(200, &completed));
            // Its steps and its messages.
            upstream.push(json(200, &list(&[])));
            upstream.push(json(200, &list(&[])));
        }
        let stream = gateway.runs().stream_create_run(create()).await;
        let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
        assert_eq!(
            (events, ended),
            (expected.iter().map(|it| (*it).to_owned()).collect(), None),
            "{row}"
        );
        gateway.drain().await;
    }
}

/// U1, U3: an error in a stream says what it is, in whatever shape.
#[tokio::test]
async fn an_error_event_is_the_status_in_its_body() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let rows = [
        (
            "U1 a word",
            "event: error\n",
            r#"{"error":{"message":"slow, retry after 26 seconds","type":"throttling_error","code":"429"}}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(26),
            "429",
        ),
        (
            "U1 a number",
            "event: error\n",
            r#"{"error":{"message":"retry after 26 seconds","code":429}}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(26),
            "429",
        ),
        (
            "U1 no name",
            "",
            r#"{"error":{"message":"Please try again in 1.5s","code":"429"}}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            Some(Duration::from_millis(1500)),
            "429",
        ),
        (
            "U1 another shape",
            "",
            r#"{"statusCode":429,"message":"busy"}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(1),
            "",
        ),
        (
            "U1 a type alone",
            "",
            r#"{"object":"error","type":"rate_limit_error","message":"busy"}"#,
            C::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            seconds(1),
            "",
        ),
        (
            "U1 a key",
            "event: error\n",
            r#"{"error":{"message":"who?","code":"401"}}"#,
            C::Unauthenticated,
            "INVALID_API_KEY",
            None,
            "401",
        ),
        (
            "U1 not there",
            "event: error\n",
            r#"{"detail":"no assistant","status":404}"#,
            C::NotFound,
            "NOT_FOUND",
            None,
            "",
        ),
        // It began with a create, but which run that made is known.
        (
            "U1 overloaded",
            "event: error\n",
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            C::Unavailable,
            "UPSTREAM_UNAVAILABLE",
            seconds(1),
            "",
        ),
        (
            "U3 text",
            "event: error\n",
            "Model overloaded",
            C::Internal,
            "SERVER_ERROR",
            None,
            "",
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (row, name, data, code, reason, retry_after, upstream_code) in rows {
        let chunks = [
            run_event("queued"),
            Bytes::from(format!("{name}data: {data}\n\n")),
        ];
        upstream.push(Answer::sse(chunks));
        let stream = gateway.runs().stream_create_run(create()).await;
        let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
        assert_eq!(events, ["run_queued"], "{row}");
        let ended = ended.expect(row);
        assert_eq!(
            (ended.code, &*ended.reason),
            (code, reason),
            "{row}: {ended:?}"
        );
        assert_eq!(
            (ended.retry_after, &*ended.upstream_code),
            (retry_after, upstream_code),
            "{row}"
        );
        assert_eq!(ended.run_id, "run_1", "{row}");
        if row.starts_with("U3") {
            assert!(ended.message.contains(data), "{row}: {ended:?}");
        }
    }
    gateway.drain().await;
}

/// U12, G11: pages of steps that do not advance, or are too many.
#[tokio::test]
async fn steps_are_read_once_each_and_only_so_many_of_them() {
    let page = |steps: &[&str], last: &str| {
        let steps: Vec<_> = steps.iter().map(|id| step(id, "completed", "")).collect();
        format!(
            r#"{{"object":"list","data":[{}],"last_id":{last},"has_more":true}}"#,
            steps.join(",")
        )
    };
    // The pages; the requests for them.
    let rows = [
        (
            "U12 always the same page",
            vec![page(&["step_1", "step_2"], "\"step_2\"")],
            2,
        ),
        (
            "U12 its last id is the first one's",
            vec![page(&["step_1", "step_2"], "\"step_1\"")],
            2,
        ),
        (
            "U12 no last id",
            vec![page(&["step_1", "step_2"], "null")],
            2,
        ),
        (
            "U12 in a circle",
            vec![
                page(&["step_1"], "\"step_1\""),
                page(&["step_2"], "\"step_2\""),
            ],
            3,
        ),
        (
            "U12 nothing behind",
            vec![page(&["step_1", "step_2"], "\"step_2\""), page(&[], "null")],
            2,
        ),
    ];
    for (row, pages, requests) in rows {
        let served = std::sync::atomic::AtomicUsize::new(0);
        let upstream = Upstream::answering(move |request| {
            if !request.target.contains("/steps") {
                return json(200, &run("completed"));
            }
            let at = served.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            json(200, &pages[at % pages.len()])
        })
        .await;
        let gateway = spawn_gateway(&upstream.url(), &FAST).await;
        let request = WatchRunRequest {
            include_steps: true,
            ..watch()
        };
        let stream = gateway.runs().watch_run(request).await;
        let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
        assert_eq!(
            (events, ended),
            (
                [
                    "run_step_completed*",
                    "run_step_completed*",
                    "run_completed*"
                ]
                .map(str::to_owned)
                .to_vec(),
                None
            ),
            "{row}"
        );
        assert_eq!(upstream.requests().len(), 1 + requests, "{row}");
        gateway.drain().await;
    }
}

/// G11: every page counts in the rate of polls, and the steps of one run are bounded.
#[tokio::test]
async fn pages_of_steps_count_in_the_rate_and_in_bytes() {
    let upstream = Upstream::answering(|request| {
        if !request.target.contains("/steps") {
            return json(200, &run("completed"));
        }
        let after = request
            .target
            .split("after=")
            .nth(1)
            .and_then(|it| it.split('&').next());
        let number: usize = after
            .and_then(|it| it.trim_start_matches("step_").parse().ok())
            .unwrap_or(0);
        let (id, more) = (format!("step_{}", number + 1), number < 5);
        json(
            200,
            &format!(
                r#"{{"object":"list","data":[{}],"last_id":"{id}","has_more":{more}}}"#,
                step(&id, "completed", "")
            ),
        )
    })
    .await;
    let gateway = spawn_gateway(&upstream.url(), &["--poll-rate", "10"]).await;
    let request = WatchRunRequest {
        include_steps: true,
        ..watch()
    };
    let stream = gateway.runs().watch_run(request.clone()).await;
    let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
    assert_eq!((events.len(), ended), (7, None));
    let requests = upstream.requests();
    let took = requests[requests.len() - 1].at - requests[0].at;
    assert!(
        took >= Duration::from_millis(450),
        "seven requests at ten a second took {took:?}"
    );
    gateway.drain().await;

    let small = [
        "--max-polled-step-bytes",
        "200",
        "--poll-failure-timeout",
        "0s",
    ];
    let gateway = spawn_gateway(&upstream.url(), &small).await;
    let stream = gateway.runs().watch_run(request).await;
    let (_, ended) = hear(stream.map(tonic::Response::into_inner)).await;
    let ended = ended.expect("too many");
    assert!(
        ended
            .message
            .contains("200 bytes (--max-polled-step-bytes)"),
        "{ended:?}"
    );
    gateway.drain().await;
}

/// U14: what was begun and never came whole is named, though the upstream lists no steps.
#[tokio::test]
async fn a_cut_stream_names_all_that_it_lost() {
    let begun = |id: &str| event("thread.message.created", message(id, "in_progress"));
    let delta = |id: &str| {
        event(
            "thread.message.delta",
            format!(r#"{{"id":"{id}","object":"thread.message.delta","delta":{{}}}}"#),
        )
    };
    let whole = |id: &str| event("thread.message.completed", message(id, "completed"));
    let step_begun = |id: &str| event("thread.run.step.created", step(id, "in_progress", ""));
    let none = || json(200, &list(&[]));
    let rows = [
        (
            "U14 a message",
            vec![begun("msg_1"), delta("msg_1")],
            none(),
            "gap(msg_1)",
        ),
        (
            "U14 only a delta of it",
            vec![delta("msg_1"), delta("msg_1")],
            none(),
            "gap(msg_1)",
        ),
        (
            "U14 two, one of them whole",
            vec![
                begun("msg_1"),
                delta("msg_1"),
                whole("msg_1"),
                begun("msg_2"),
            ],
            none(),
            "gap(msg_2)",
        ),
        (
            "U14 taking turns",
            vec![delta("msg_1"), delta("msg_2"), delta("msg_1")],
            none(),
            "gap(msg_1,msg_2)",
        ),
        (
            "U14 a step",
            vec![step_begun("step_1")],
            none(),
            "gap(step_1)",
        ),
        (
            "U14 another message by its step",
            vec![begun("msg_1")],
            json(200, &list(&[step("step_1", "completed", "msg_2")])),
            "gap(step_1,msg_2,msg_1)",
        ),
        (
            "U14 steps cannot be listed",
            vec![begun("msg_1")],
            json(404, r#"{"error":{"message":"no"}}"#),
            "gap(msg_1)",
        ),
        (
            "U14 steps cannot be listed, and nothing was begun",
            vec![],
            json(404, r#"{"error":{"message":"no"}}"#),
            "gap()",
        ),
        (
            "nothing was begun, no steps, and a message is listed",
            vec![],
            none(),
            "gap(msg_1)",
        ),
        (
            "nothing was begun, no steps, and more messages than a page has",
            vec![],
            none(),
            "gap()",
        ),
        (
            "nothing was lost",
            vec![begun("msg_1"), whole("msg_1")],
            none(),
            "",
        ),
    ];
    for (row, chunks, steps, gap) in rows {
        let upstream = Upstream::start().await;
        let gateway = spawn_gateway(&upstream.url(), &FAST).await;
        let head = [run_event("created"), run_event("in_progress")];
        upstream.push(Answer::sse(head.into_iter().chain(chunks)));
        upstream.push(json(200, &run("completed")));
        upstream.push(steps);
        if row.contains("more messages") {
            upstream.push(json(200, r#"{"object":"list","data":[],"has_more":true}"#));
        } else if row.starts_with("nothing was begun") {
            upstream.push(json(200, &list(&[message("msg_1", "completed")])));
        }
        let stream = gateway.runs().stream_create_run(create()).await;
        let (events, ended) = hear(stream.map(tonic::Response::into_inner)).await;
        assert_eq!(ended, None, "{row}");
        let expected = [gap, "run_completed*"];
        let expected = &expected[usize::from(gap.is_empty())..];
        assert_eq!(
            &events[events.len() - expected.len()..],
            expected,
            "{row}: {events:?}"
        );
        assert_eq!(
            events.iter().any(|it| it.starts_with("gap")),
            !gap.is_empty(),
            "{row}"
        );
        gateway.drain().await;
    }
}

/// A5: an answer is the resource that was asked for.
#[tokio::test]
async fn an_answer_about_another_resource_is_not_passed_on() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let other = r#"{"id":"run_2","object":"thread.run","thread_id":"thread_1"}"#;
    for call in [Do::Get, Do::Modify, Do::Cancel, Do::Submit] {
        for answer in [other, r#"{"id":"RUN_1"}"#, r#"{"id":"run_1/"}"#] {
            upstream.push(json(200, answer));
            let seen = Seen::from(&call.on(&gateway).await.expect_err("another"));
            assert_eq!(
                (seen.code, &*seen.reason),
                (C::Internal, "UNUSABLE_ANSWER"),
                "{call:?} {answer}"
            );
        }
    }
    // A create names none.
    upstream.push(json(200, other));
    Do::Create.on(&gateway).await.expect("a run");
    upstream.push(json(200, r#"{"id":"run_1"}"#));
    Do::Get.on(&gateway).await.expect("a run");
    gateway.drain().await;
}

/// A7: names that the gateway owns, in whatever letters.
#[tokio::test]
async fn a_name_that_the_gateway_owns_is_refused_in_any_case_of_letters() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for extra in [
        r#"{"Stream":true}"#,
        r#"{"STREAM":false}"#,
        r#"{"\u0053tream":true}"#,
        r#"{"stream":null}"#,
        // LATIN SMALL LETTER LONG S, which is an s to Go's decoder of JSON.
        "{\"\u{17f}tream\":true}",
        r#"{"\u017ftream":true}"#,
        // What a field says, too.
        r#"{"Assistant_Id":"asst_2"}"#,
        r#"{"ASSISTANT_ID":null}"#,
        "{\"a\u{17f}\u{17f}istant_id\":\"asst_2\"}",
    ] {
        let run = Some(RunSpec {
            assistant_id: "asst_1".to_owned(),
            extra_json: extra.to_owned(),
            ..RunSpec::default()
        });
        let request = CreateRunRequest {
            thread_id: "thread_1".to_owned(),
            run,
            include: Vec::new(),
            ..CreateRunRequest::default()
        };
        let seen = Seen::from(&gateway.runs().create_run(request).await.expect_err(extra));
        assert_eq!(
            (seen.code, &*seen.field),
            (C::InvalidArgument, "run.extra_json"),
            "{extra}"
        );
    }
    assert!(upstream.requests().is_empty());

    // A name that no field says is passed on as it is.
    upstream.push(json(200, &run("queued")));
    let run = Some(RunSpec {
        assistant_id: "asst_1".to_owned(),
        extra_json: r#"{"Model":"m"}"#.to_owned(),
        ..RunSpec::default()
    });
    let request = CreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run,
        ..CreateRunRequest::default()
    };
    let created = gateway.runs().create_run(request).await;
    created.expect("a run");
    let body = upstream.requests()[0].body.clone();
    assert_eq!(body, r#"{"assistant_id":"asst_1","Model":"m"}"#);
    gateway.drain().await;
}

/// The gateway's own secrets are in no error, whatever an upstream says, and in whatever shape.
#[tokio::test]
async fn no_error_repeats_a_secret_of_the_gateways() {
    const KEY: &str = "sk-own-0123456789";
    const HEADER: &str = "header-secret-1";
    let hides = |status: &tonic::Status, what: &str| {
        let details = String::from_utf8_lossy(status.details()).into_owned();
        let all = format!("{:?} {details}", status.message());
        assert!(!all.contains(KEY) && !all.contains(HEADER), "{what}: {all}");
    };
    let words = [
        format!("the key {KEY} is bad"),
        format!("Invalid Authorization header: 'Bearer {KEY}', {HEADER}"),
    ];
    let shapes: [fn(&str) -> String; 5] = [
        |words| serde_json::json!({"error": {"message": words, "param": words}}).to_string(),
        |words| {
            let at = serde_json::json!(["header", "authorization"]);
            serde_json::json!({"detail": [{"loc": at, "msg": words}]}).to_string()
        },
        |words| serde_json::json!({"title": words, "detail": words}).to_string(),
        |words| words.to_owned(),
        |words| format!("<html><title>{words}</title></html>"),
    ];
    let upstream = Upstream::start().await;
    let header = format!("x-partner: {HEADER}");
    let flags = ["--upstream-api-key", KEY, "--upstream-header", &header];
    let gateway = spawn_gateway(&upstream.url(), &flags).await;
    let get = GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_1".to_owned(),
    };
    for (words, shape) in words
        .iter()
        .flat_map(|words| shapes.map(|shape| (words, shape)))
    {
        let body = shape(words);
        for status in [400, 401, 402, 404, 409, 422, 429, 500, 503] {
            upstream.push(Answer::json(status, body.clone()));
            let asked = gateway.runs().get_run(get.clone()).await.expect_err(&body);
            hides(&asked, &format!("{status} {body}"));
        }
        upstream.push(Answer::sse([run_event("queued"), event("error", &body)]));
        let stream = gateway.runs().stream_create_run(create()).await;
        let mut stream = stream.expect("a stream").into_inner();
        let ended = loop {
            match stream.message().await {
                Ok(event) => assert!(event.is_some(), "{body}: ended with OK"),
                Err(status) => break status,
            }
        };
        hides(&ended, &format!("error event {body}"));
    }
    gateway.drain().await;
}

/// U1: an `error` event about the gateway's own key is not the caller's to read.
#[tokio::test]
async fn an_error_event_about_the_gateways_own_key_keeps_its_words() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &["--upstream-api-key", "sk-own"]).await;
    let error = r#"{"error":{"message":"Incorrect key: sk-o**n","code":"401"}}"#;
    upstream.push(Answer::sse([run_event("queued"), event("error", error)]));
    let stream = gateway.runs().stream_create_run(create()).await;
    let (_, ended) = hear(stream.map(tonic::Response::into_inner)).await;
    let ended = ended.expect("an error");
    assert_eq!(
        (ended.code, &*ended.reason),
        (C::Internal, "GATEWAY_KEY_REJECTED")
    );
    assert!(!ended.message.contains("sk-o"), "{ended:?}");
    gateway.drain().await;
}
