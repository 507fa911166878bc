//! Given what a model answers, this is what becomes of the run.

use serde_json::{Value, json};

use crate::{
    harness::{OnModel, call, delta, end, event, text, tools},
    support::upstream::Answer,
};

/// What happens, the answer, the outcome, and what is in the words of the error.
type Row = (&'static str, Answer, &'static str, &'static str);

/// Holds each row to its outcome, all on one `dev`. Nothing is asked for twice.
async fn hold(rows: Vec<Row>) {
    let dev = OnModel::start(&["--max-retries", "0"]).await;
    for (number, (what, answer, line, words)) in rows.into_iter().enumerate() {
        let outcome = dev.run(answer, tools(&["a", "b"])).await;
        assert_eq!(outcome.line(), line, "{what}: {}", outcome.error());
        let error = outcome.error();
        assert!(error.contains(words), "{what}: {error}");
        assert!(!error.contains("upstream"), "{what}: {error}");
        assert_eq!(dev.model.requests().len(), number + 1, "{what}");
    }
}

#[tokio::test]
async fn words_come_as_they_are_and_end_for_a_reason() {
    let rows: Vec<Row> = vec![
        (
            "words",
            Answer::sse([text("Hel"), text("lo"), end("stop")]),
            "completed, said \"Hello\"",
            "",
        ),
        (
            "a role, nothing, and comments around them",
            Answer::sse([
                ": hello\n\n".to_owned(),
                delta(&json!({ "role": "assistant", "content": "" })),
                event(&json!({ "choices": [], "prompt_filter_results": [] })),
                text("Hi"),
                end("stop"),
            ]),
            "completed, said \"Hi\"",
            "",
        ),
        (
            "thoughts",
            Answer::sse([delta(&json!({ "reasoning_content": "Hm." })), text("Hi"), end("stop")]),
            "completed, said \"Hi\"",
            "",
        ),
        (
            "no word",
            Answer::sse([end("stop")]),
            "completed",
            "",
        ),
        (
            "too many words",
            Answer::sse([text("Hel"), end("length")]),
            "incomplete max_completion_tokens max_tokens, said \"Hel\"",
            "",
        ),
        (
            "words that may not be said",
            Answer::sse([text("Hel"), end("content_filter")]),
            "incomplete content_filter, said \"Hel\"",
            "",
        ),
        (
            "a refusal",
            Answer::sse([
                delta(&json!({ "refusal": "I can" })),
                delta(&json!({ "refusal": "not." })),
                end("stop"),
            ]),
            "completed, refused \"I cannot.\"",
            "",
        ),
        (
            "a mark and no reason",
            Answer::sse([text("Hi"), "data: [DONE]\n\n".to_owned()]),
            "completed, said \"Hi\"",
            "",
        ),
        (
            "a reason and no mark",
            Answer::sse([text("Hi"), end("stop").replace("data: [DONE]\n\n", "")]),
            "completed, said \"Hi\"",
            "",
        ),
        (
            "a cut behind the reason",
            Answer::sse([text("Hi"), end("stop").replace("data: [DONE]\n\n", "")]).close(),
            "completed, said \"Hi\"",
            "",
        ),
        (
            "JSON in place of a stream",
            Answer::json(
                200,
                json!({ "choices": [{ "message": { "role": "assistant", "content": "Hi" }, "finish_reason": "stop" }] })
                    .to_string(),
            ),
            "completed, said \"Hi\"",
            "",
        ),
        (
            "a list of parts",
            Answer::sse([delta(&json!({ "content": [{ "type": "text", "text": "Hi" }] })), end("stop")]),
            "completed, said \"Hi\"",
            "",
        ),
    ];
    hold(rows).await;
}

#[tokio::test]
async fn calls_are_told_apart_whatever_a_service_gives_them() {
    let piece = |index: Value, id: Value, name: Value, arguments: &str| {
        call(
            &json!({ "index": index, "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }),
        )
    };
    let both = "requires_action, calls a({\"x\":1}), calls b({\"y\":2})";
    let null = || Value::Null;
    let rows: Vec<Row> = vec![
        (
            "one after the other",
            Answer::sse([
                piece(json!(0), json!("c1"), json!("a"), ""),
                piece(json!(0), null(), null(), "{\"x\":"),
                piece(json!(0), null(), null(), "1}"),
                piece(json!(1), json!("c2"), json!("b"), "{\"y\":2}"),
                end("tool_calls"),
            ]),
            both,
            "",
        ),
        (
            "interleaved",
            Answer::sse([
                piece(json!(0), json!("c1"), json!("a"), "{"),
                piece(json!(1), json!("c2"), json!("b"), "{\"y\""),
                piece(json!(0), null(), null(), "\"x\":1"),
                piece(json!(1), null(), null(), ":2}"),
                piece(json!(0), null(), null(), "}"),
                end("tool_calls"),
            ]),
            both,
            "",
        ),
        (
            "all with the index 0",
            Answer::sse([
                piece(json!(0), json!("c1"), json!("a"), "{\"x\":1}"),
                piece(json!(0), json!("c2"), json!("b"), "{\"y\""),
                piece(json!(0), null(), null(), ":2}"),
                end("tool_calls"),
            ]),
            both,
            "",
        ),
        (
            "by id alone, and ended as words are",
            Answer::sse([
                piece(null(), json!("c1"), json!("a"), "{\"x\":1}"),
                piece(null(), json!("c2"), json!("b"), "{\"y\":2}"),
                end("stop"),
            ]),
            both,
            "",
        ),
        (
            "with indexes that begin at 1, and the name in each piece",
            Answer::sse([
                piece(json!(1), json!("c1"), json!("a"), "{\"x\":"),
                piece(json!(1), json!("c1"), json!("a"), "1}"),
                piece(json!(2), json!("c2"), json!("b"), "{\"y\":2}"),
                end("tool_calls"),
            ]),
            both,
            "",
        ),
        (
            "with the name behind the arguments, and without arguments",
            Answer::sse([
                piece(json!(0), json!("c1"), null(), "{\"x\""),
                piece(json!(0), null(), json!("a"), ":1}"),
                piece(json!(1), json!("c2"), json!("b"), ""),
                end("tool_calls"),
            ]),
            "requires_action, calls a({\"x\":1}), calls b({})",
            "",
        ),
        (
            "with the same id for all, which no outputs could tell apart",
            Answer::sse([
                piece(json!(0), json!("c"), json!("a"), "{\"x\":1}"),
                piece(json!(1), json!("c"), json!("b"), "{\"y\":2}"),
                end("tool_calls"),
            ]),
            both,
            "",
        ),
        (
            "words before them, and words behind them, which have no place",
            Answer::sse([
                text("One moment."),
                piece(json!(0), json!("c1"), json!("a"), "{\"x\":1}"),
                text("\n"),
                piece(json!(1), json!("c2"), json!("b"), "{\"y\":2}"),
                end("tool_calls"),
            ]),
            "requires_action, said \"One moment.\", calls a({\"x\":1}), calls b({\"y\":2})",
            "",
        ),
        (
            "JSON in place of a stream, with arguments that are not text",
            Answer::json(
                200,
                json!({ "choices": [{ "finish_reason": "tool_calls", "message": { "content": null, "tool_calls": [
                    { "type": "function", "function": { "name": "a", "arguments": { "x": 1 } } },
                    { "type": "function", "function": { "name": "b", "arguments": "{\"y\":2}" } },
                ] } }] })
                .to_string(),
            ),
            both,
            "",
        ),
        (
            "a call without a name",
            Answer::sse([piece(json!(0), json!("c1"), null(), "{}"), end("tool_calls")]),
            "failed server_error",
            "a tool call has no name",
        ),
        (
            "a call that is not whole",
            Answer::sse([piece(json!(0), json!("c1"), json!("a"), "{\"x"), end("length")]),
            "incomplete max_completion_tokens",
            "",
        ),
    ];
    hold(rows).await;
}

#[tokio::test]
async fn what_is_no_whole_answer_fails_the_run_and_says_why() {
    let error = |message: &str, code: &str| {
        json!({ "error": { "message": message, "type": code, "code": code, "param": null } })
            .to_string()
    };
    let rows: Vec<Row> = vec![
        (
            "too many requests",
            Answer::json(429, error("Slow down.", "rate_limit_exceeded")),
            "failed rate_limit_exceeded",
            "status 429: Slow down.",
        ),
        (
            "a key that is not known",
            Answer::json(401, error("Incorrect key sk-abc.", "invalid_api_key")),
            "failed invalid_prompt",
            "does not accept the key: see --model-api-key-file",
        ),
        (
            "a prompt that is too long",
            Answer::json(400, error("This is too long.", "context_length_exceeded")),
            "failed invalid_prompt",
            "status 400: This is too long.",
        ),
        (
            "no such model",
            Answer::json(404, "{}"),
            "failed invalid_prompt",
            "status 404",
        ),
        (
            "a server in trouble",
            Answer::json(500, error("Oh.", "server_error")),
            "failed server_error",
            "status 500: Oh.",
        ),
        (
            "a redirect",
            Answer::new(302).header("location", "http://elsewhere/"),
            "failed server_error",
            "status 302",
        ),
        (
            "no answer",
            Answer::cut_before_answer(),
            "failed server_error",
            "the connection to the model's service was lost",
        ),
        (
            "no HTTP",
            Answer::raw("garbage\r\n\r\n").close(),
            "failed server_error",
            "--model-url",
        ),
        (
            "a page",
            Answer::new(200)
                .header("content-type", "text/html")
                .bytes("<html>Hi</html>"),
            "failed server_error",
            "neither an event stream nor JSON",
        ),
        (
            "JSON of another kind",
            Answer::json(200, "{\"object\":\"list\",\"data\":[]}"),
            "failed server_error",
            "no choices",
        ),
        (
            "an error in place of an answer",
            Answer::json(200, error("Overloaded.", "rate_limit_exceeded")),
            "failed rate_limit_exceeded",
            "Overloaded.",
        ),
        (
            "an error in the middle",
            Answer::sse([
                text("Hel"),
                format!("data: {}\n\n", error("Oh.", "server_error")),
            ]),
            "failed server_error run_failed, said \"Hel\"",
            "Oh.",
        ),
        (
            "garbage in the middle",
            Answer::sse([text("Hel"), "data: {\"choices\": [\n\n".to_owned()]),
            "failed server_error run_failed, said \"Hel\"",
            "an event is not JSON",
        ),
        (
            "a stream that is cut",
            Answer::sse([text("Hel")]).close(),
            "failed server_error run_failed, said \"Hel\"",
            "broke off",
        ),
        (
            "a stream that ends in good order, in the middle",
            Answer::sse([text("Hel")]),
            "failed server_error run_failed, said \"Hel\"",
            "the stream ended in the middle",
        ),
        (
            "a mark alone",
            Answer::sse(["data: [DONE]\n\n"]),
            "failed server_error",
            "before a word",
        ),
    ];
    hold(rows).await;
}

#[tokio::test]
async fn the_cost_is_the_services_count_or_an_estimate() {
    let dev = OnModel::start(&[]).await;
    let usage = json!({
        "prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18,
        "prompt_tokens_details": { "cached_tokens": 5 },
        "completion_tokens_details": { "reasoning_tokens": 3 },
    });
    let counted = event(&json!({ "choices": [], "usage": usage }));
    let answer = Answer::sse([
        text("Hi"),
        end("stop").replace("data: [DONE]\n\n", ""),
        counted,
    ]);
    let run = dev.run(answer, Value::Null).await.run;
    assert_eq!(run["usage"]["prompt_tokens"], 11);
    assert_eq!(run["usage"]["completion_tokens"], 7);
    assert_eq!(run["usage"]["total_tokens"], 18);
    assert_eq!(run["usage"]["prompt_token_details"]["cached_tokens"], 5);
    assert_eq!(
        run["usage"]["completion_tokens_details"]["reasoning_tokens"],
        3
    );

    let run = dev
        .run(Answer::sse([text("Six words"), end("stop")]), Value::Null)
        .await
        .run;
    assert_eq!(run["usage"]["completion_tokens"], 3);
    assert!(
        run["usage"]["prompt_tokens"]
            .as_i64()
            .is_some_and(|tokens| tokens > 5)
    );
}
