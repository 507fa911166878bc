//! One reader for every shape: tables of bodies, and what they say.

use super::{text::MAX_TEXT, *};

/// Words, code, type, field, status.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Option<u16>,
);

#[test]
fn every_shape_is_read_as_one_thing() {
    let table: [Row; 22] = [
        (
            r#"{"error":{"message":"W","type":"t","param":"p","code":"c"}}"#,
            "W",
            "c",
            "t",
            "p",
            None,
        ),
        (
            r#"{"error":{"code":"429","message":"W"}}"#,
            "W",
            "429",
            "",
            "",
            Some(429),
        ),
        (
            r#"{"error":{"code":429,"message":"W"}}"#,
            "W",
            "429",
            "",
            "",
            Some(429),
        ),
        (
            r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"W"}}"#,
            "W",
            "RESOURCE_EXHAUSTED",
            "",
            "",
            Some(429),
        ),
        (
            r#"[{"error":{"code":404,"message":"W"}}]"#,
            "W",
            "404",
            "",
            "",
            Some(404),
        ),
        (
            r#"{"message":"W","statusCode":"503","path":"/"}"#,
            "W",
            "",
            "",
            "",
            Some(503),
        ),
        (
            r#"{"message":"400 {\"error\":{\"message\":\"W\",\"code\":\"c\"}} (x)","statusCode":400}"#,
            "W",
            "c",
            "",
            "",
            Some(400),
        ),
        (
            r#"{"message":["a","b"],"error":"Bad Request"}"#,
            "a; b",
            "",
            "",
            "",
            None,
        ),
        (r#"{"detail":"W"}"#, "W", "", "", "", None),
        (
            r#"{"detail":[{"loc":["body","assistant_id"],"msg":"field required","type":"missing"}]}"#,
            "assistant_id: field required",
            "",
            "missing",
            "assistant_id",
            None,
        ),
        (
            r#"{"detail":[{"loc":["body","tools",0,"type"],"msg":"A"},{"loc":["query","limit"],"msg":"B"}]}"#,
            "tools[0].type: A; limit: B",
            "",
            "",
            "tools[0].type",
            None,
        ),
        (
            r#"{"detail":{"message":"W","code":"c"}}"#,
            "W",
            "c",
            "",
            "",
            None,
        ),
        (
            r#"{"type":"about:blank","title":"T","detail":"W","status":422}"#,
            "W",
            "",
            "about:blank",
            "",
            Some(422),
        ),
        (r#"{"title":"T","status":400}"#, "T", "", "", "", Some(400)),
        (r#"{"error":"W"}"#, "W", "", "", "", None),
        (
            r#"{"error":"invalid","error_description":"W"}"#,
            "W",
            "",
            "",
            "",
            None,
        ),
        (
            r#"{"error":"Not Found","message":"W","statusCode":404}"#,
            "W",
            "",
            "",
            "",
            Some(404),
        ),
        (
            r#"{"errors":[{"message":"A"},{"message":"B"}]}"#,
            "A; B",
            "",
            "",
            "",
            None,
        ),
        (
            r#"{"object":"error","message":"W","type":"t","code":40303}"#,
            "W",
            "40303",
            "t",
            "",
            None,
        ),
        (
            r#"{"code":"bad_request","message":"W"}"#,
            "W",
            "bad_request",
            "",
            "",
            None,
        ),
        (r#""W""#, "W", "", "", "", None),
        (
            "\u{FEFF} Model\n\u{1b}overloaded ",
            "Model overloaded",
            "",
            "",
            "",
            None,
        ),
    ];
    for (text, message, code, kind, param, status) in table {
        let said = read(text.as_bytes(), "application/json");
        let error = said.error.unwrap_or_else(|| panic!("no words: {text}"));
        let seen = (
            &*error.message,
            &*error.code,
            &*error.r#type,
            &*error.param,
            said.status,
        );
        assert_eq!(seen, (message, code, kind, param, status), "{text}");
    }
}

#[test]
fn a_page_a_part_and_nothing_have_no_words() {
    for (text, content_type) in [
        ("", ""),
        ("{}", ""),
        ("null", ""),
        ("[]", ""),
        (r#"{"error":null}"#, ""),
        ("<html>Sorry</html>", "text/plain"),
        ("\u{FEFF}\n <!DOCTYPE html>", ""),
        ("Sorry", "text/html; charset=utf-8"),
        (r#"{"error":{"message":"W"#, "application/json"),
    ] {
        assert_eq!(read(text.as_bytes(), content_type).error, None, "{text}");
    }
    assert_eq!(read(b"\xff\xfe\0x", "").error, None);
    let long = "\u{fc}".repeat(MAX_TEXT);
    let said = read(long.as_bytes(), "text/plain").error.expect("words");
    assert!(said.message.len() <= MAX_TEXT);
}

#[test]
fn a_missing_route_is_told_from_a_missing_run() {
    let routes = [
        "",
        "{}",
        "<html>404</html>",
        r#"{"detail":"Not Found"}"#,
        r#"{"message":"Cannot GET /threads/t/runs","error":"Not Found","statusCode":404}"#,
        r#"{"message":"Route GET:/threads not found","error":"Not Found","statusCode":404}"#,
        r#"{"timestamp":"x","status":404,"error":"Not Found","path":"/threads"}"#,
        r#"{"error":{"message":"Invalid URL (GET /v1/thread)","type":"invalid_request_error"}}"#,
        r#"{"message":"no Route matched with those values"}"#,
        r#"{"error":{"message":"Unknown request URL: GET /v1/x. Please check the URL for typos","type":"invalid_request_error","code":"unknown_url"}}"#,
        r#"{"error":{"message":"Unrecognized request URL (GET: /v1/x)."}}"#,
        r#"{"error":"Unknown endpoint"}"#,
        r#"{"message":"Path /v1/threads/t not found"}"#,
        r#"{"message":"The requested path '/threads' does not exist."}"#,
        r#"{"message":"The requested URL /threads was not found on the server."}"#,
        r#"{"message":"No such endpoint: /threads"}"#,
        r#"{"code":"route_not_found","message":"Nothing here"}"#,
        r#"{"type":"https://example.com/probs/unknown-endpoint","title":"Not Found"}"#,
        r#"{"type":"https://example.com/security/probs","title":"Not Found"}"#,
        r#"{"code":5,"message":"Not Found","details":[]}"#,
        r#"{"detail":"<html>404</html>"}"#,
        "404 page not found\n",
        "Not Found",
        "Cannot GET /threads",
    ];
    for text in routes {
        assert!(read(text.as_bytes(), "").missing_route, "{text}");
    }
    let runs = [
        r#"{"detail":"Run run_1 not found"}"#,
        r#"{"detail":"Not found."}"#,
        r#"{"error":{"message":"No run found with id 'run_1'."}}"#,
        "No thread found with id thread_1",
        r#"{"code":"RunNotFound","message":"Not Found"}"#,
        r#"{"error":{"code":"not_found","message":"Not found"}}"#,
        r#"{"error":{"type":"not_found_error","message":"Not Found"}}"#,
        r#"{"error":{"code":"NotFound","message":"Not found"}}"#,
        r#"{"error":{"code":"ResourceNotFound","message":"404"}}"#,
        r#"{"type":"https://example.com/security/run-not-found","title":"Not Found"}"#,
        r#"{"error":{"code":404,"status":"NOT_FOUND","message":"Not Found"}}"#,
        r#"{"error":{"status":"NOT_FOUND","message":"not found"}}"#,
        r#"{"code":5,"message":"run not found","details":[]}"#,
        r#"{"message":"Path metadata.x of the run does not exist"}"#,
        r#"{"message":"No routers, and no run_1"}"#,
        r#"{"error":{"message":"cut"#,
    ];
    for text in runs {
        assert!(!read(text.as_bytes(), "").missing_route, "{text}");
    }
}

#[test]
fn an_event_has_the_status_in_its_body_or_by_its_words() {
    let table = [
        (
            r#"{"error":{"code":"429","type":"throttling_error","message":"W"}}"#,
            429,
        ),
        (
            r#"{"error":{"type":"throttling_error","message":"W"}}"#,
            429,
        ),
        (r#"{"code":"rate_limit_exceeded","message":"W"}"#, 429),
        (
            r#"{"error":{"type":"Rate Limit Error","message":"W"}}"#,
            429,
        ),
        (r#"{"type":"overloaded_error","message":"W"}"#, 503),
        (r#"{"code":"server_error","message":"W"}"#, 500),
        (r#"{"code":"invalid_request_error","message":"W"}"#, 400),
        (r#"{"statusCode":401,"message":"W"}"#, 401),
        ("Model overloaded", 500),
        (r#"{"error":{"status":"RESOURCE_EXHAUSTED"}}"#, 429),
        (
            r#"{"error":{"status":"RESOURCE_EXHAUSTED","message":"W"}}"#,
            429,
        ),
        (r#"{"error":{"code":"TooManyRequests","message":"W"}}"#, 429),
        (
            r#"{"error":{"code":"RateLimitReached","message":"W"}}"#,
            429,
        ),
        (r#"{"__type":"ThrottlingException","message":"W"}"#, 429),
        (
            r#"{"__type":"com.amazonaws#ThrottlingException","Message":"W"}"#,
            429,
        ),
        (r#"{"Message":"W","Code":"Throttling"}"#, 429),
        (r#"{"error":{"code":429.0,"message":"W"}}"#, 429),
        (r#"{"error":{"code":"429.0","message":"W"}}"#, 429),
        (r#"{"error":{"code":"HTTP_429","message":"W"}}"#, 429),
        (r#"{"error":"Rate limit exceeded"}"#, 429),
        ("Rate limit reached for gpt-4", 429),
        ("Too Many Requests", 429),
        (r#"{"code":8,"message":"W","details":[]}"#, 429),
        (r#"{"code":14,"message":"W","details":[]}"#, 503),
        (r#"{"code":8,"message":"W"}"#, 500),
        (
            r#"{"error":{"code":"InternalServerError","message":"W"}}"#,
            500,
        ),
        ("", 500),
    ];
    for (text, status) in table {
        assert_eq!(status_of(&read(text.as_bytes(), "")), status, "{text}");
    }
}

#[test]
fn a_page_in_words_is_not_passed_on() {
    let rows = [
        (r#"{"error":{"message":"<!DOCTYPE html><p>Secret"}}"#, None),
        (r#"{"detail":"<html><body>Secret</body></html>"}"#, None),
        (
            r#"{"message":"<HTML>Secret","title":"Bad Gateway"}"#,
            Some("Bad Gateway"),
        ),
        (
            r#"{"detail":[{"loc":["body","a"],"msg":"<html>Secret"}]}"#,
            None,
        ),
        (r#"{"error":"502: <html>Secret"}"#, Some("502")),
        ("Error: <html>Secret</html>", Some("Error")),
        ("Wrong: 1 < 2", Some("Wrong: 1 < 2")),
    ];
    for (text, words) in rows {
        let said = read(text.as_bytes(), "").error;
        let said = said.as_ref().map(|error| &*error.message);
        assert_eq!(said, words, "{text}");
    }
}

#[test]
fn words_and_fields_are_found_wherever_they_stand() {
    // The body; its words, and the field to blame.
    let rows = [
        (
            r#"{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"Bad","details":[{"@type":"type.googleapis.com/google.rpc.DebugInfo","detail":"secret"},{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"field":"model","description":"is unknown"}]}]}}"#,
            "Bad; model: is unknown",
            "model",
        ),
        (
            r#"{"error":{"code":"BadArgument","message":"Bad","target":"model"}}"#,
            "Bad",
            "model",
        ),
        (
            r#"{"error":{"code":"Bad","message":"Two.","details":[{"code":"NullValue","target":"model","message":"is null"}]}}"#,
            "Two; model: is null",
            "model",
        ),
        (
            r#"{"success":false,"error":{"issues":[{"code":"invalid_type","path":["tools",0,"type"],"message":"Required"}],"name":"ZodError"}}"#,
            "tools[0].type: Required",
            "tools[0].type",
        ),
        (
            r#"{"statusCode":400,"message":"Invalid payload provided.","meta":[{"code":"invalid_type","path":["model"],"message":"Required"}]}"#,
            "Invalid payload provided; model: Required",
            "model",
        ),
        (
            r#"{"status":400,"error":"Bad Request","errors":[{"field":"model","defaultMessage":"must not be null"}]}"#,
            "model: must not be null",
            "model",
        ),
        (r#"{"reason":"Words"}"#, "Words", ""),
        (
            r#"{"error":{"root_cause":[{"type":"t","reason":"Words"}],"type":"t","reason":"Words"},"status":400}"#,
            "Words",
            "",
        ),
        (
            r#"{"errorCode":"E0000001","errorSummary":"Api validation failed","errorCauses":[{"errorSummary":"model: is unknown"}]}"#,
            "Api validation failed; model: is unknown",
            "",
        ),
        (
            "event: error\ndata: {\"error\":{\"code\":429,\ndata: \"message\":\"Words\"}}\n\ndata: x\n\n",
            "Words",
            "",
        ),
        ("{\"message\":\"Words\"}\n{\"x\":1}", "Words", ""),
    ];
    for (text, words, field) in rows {
        let error = read(text.as_bytes(), "").error.expect(text);
        assert_eq!((&*error.message, &*error.param), (words, field), "{text}");
    }
    let latin = read(b"{\"error\":{\"message\":\"caf\xe9\"}}", "").error;
    assert_eq!(latin.expect("words").message, "caf\u{e9}");
}

#[test]
fn a_delay_in_a_member_is_read() {
    let rows = [
        (
            r#"{"error":{"message":"W","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"17s"}]}}"#,
            Some(17_000),
        ),
        (
            r#"{"error":{"message":"W","retry_after":12}}"#,
            Some(12_000),
        ),
        (r#"{"retryAfter":12.5,"message":"W"}"#, Some(12_500)),
        (r#"{"retry_after_ms":1500,"message":"W"}"#, Some(1_500)),
        (r#"{"retryAfterMs":"1500","message":"W"}"#, Some(1_500)),
        (r#"{"retry_after_seconds":12,"message":"W"}"#, Some(12_000)),
        (r#"{"retry-after":"12s","message":"W"}"#, Some(12_000)),
        (r#"{"retry_after":"1970-01-01T00:00:00Z"}"#, Some(0)),
        (
            r#"{"retryDelay":{"seconds":17,"nanos":500000000}}"#,
            Some(17_500),
        ),
        (r#"[{"error":{"retryDelay":"9s"}}]"#, Some(9_000)),
        (r#"{"retry_after":null,"x":{"retry_after":3}}"#, Some(3_000)),
        (r#"{"retry_after":-3}"#, None),
        (r#"{"retry":12}"#, None),
    ];
    for (text, millis) in rows {
        let said = read(text.as_bytes(), "");
        assert_eq!(
            said.retry_after,
            millis.map(Duration::from_millis),
            "{text}"
        );
    }
}
