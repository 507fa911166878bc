//! What the API refuses, and in which words.

use runs_gateway::embedded::Limits;
use serde_json::{Value, json};

use crate::client::{Embedded, outputs, spec, text, weather};

#[tokio::test]
async fn a_wrong_body_is_refused_and_the_parameter_named() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let function =
        |function: Value| spec(json!({ "tools": [{ "type": "function", "function": function }] }));
    let many: serde_json::Map<String, Value> =
        (0..17).map(|at| (at.to_string(), json!("x"))).collect();
    let ranking = |options: Value| {
        let search =
            json!({ "type": "file_search", "file_search": { "ranking_options": options } });
        json!({ "model": "m", "tools": [search] })
    };
    let runs = format!("{thread}/runs");
    let messages = format!("{thread}/messages");
    let rows = [
        (
            "/assistants",
            json!({}),
            "model",
            "missing_required_parameter",
        ),
        (
            "/assistants",
            json!({ "model": 5 }),
            "model",
            "invalid_type",
        ),
        (
            "/assistants",
            json!({ "model": "m", "colour": "red" }),
            "colour",
            "unknown_parameter",
        ),
        (
            "/assistants",
            json!({ "model": "m", "name": "n".repeat(257) }),
            "name",
            "string_above_max_length",
        ),
        (
            "/assistants",
            json!({ "model": "m", "temperature": 2.5 }),
            "temperature",
            "decimal_above_max_value",
        ),
        (
            "/assistants",
            json!({ "model": "m", "top_p": -1 }),
            "top_p",
            "decimal_below_min_value",
        ),
        (
            "/assistants",
            ranking(json!({ "ranker": "auto" })),
            "tools[0].file_search.ranking_options.score_threshold",
            "missing_required_parameter",
        ),
        (
            "/assistants",
            ranking(json!({ "ranker": "best", "score_threshold": 0.5 })),
            "tools[0].file_search.ranking_options.ranker",
            "invalid_value",
        ),
        (
            "/threads",
            json!({ "metadata": { "a": true } }),
            "metadata.a",
            "invalid_type",
        ),
        (
            "/threads",
            json!({ "metadata": many }),
            "metadata",
            "object_above_max_properties",
        ),
        (
            "/threads",
            json!({ "metadata": { "k".repeat(65): "v" } }),
            "metadata",
            "property_name_above_max_length",
        ),
        (
            "/threads",
            json!({ "metadata": { "k": "v".repeat(513) } }),
            "metadata.k",
            "string_above_max_length",
        ),
        (
            "/threads",
            json!({ "messages": [{ "role": "user" }] }),
            "messages[0].content",
            "missing_required_parameter",
        ),
        (
            "/threads",
            json!({ "messages": [{ "role": "system", "content": "x" }] }),
            "messages[0].role",
            "invalid_value",
        ),
        (
            &messages,
            json!({ "role": "user", "content": "" }),
            "content",
            "string_below_min_length",
        ),
        (
            &messages,
            json!({ "role": "user", "content": [] }),
            "content",
            "array_below_min_length",
        ),
        (
            &messages,
            json!({ "role": "user", "content": 5 }),
            "content",
            "invalid_type",
        ),
        (
            &messages,
            json!({ "role": "user", "content": [{ "type": "sound" }] }),
            "content[0].type",
            "invalid_value",
        ),
        (
            &messages,
            json!({ "role": "user", "content": [{ "text": "x" }] }),
            "content[0].type",
            "missing_required_parameter",
        ),
        (
            &runs,
            json!({}),
            "assistant_id",
            "missing_required_parameter",
        ),
        (
            &runs,
            spec(json!({ "stream": "yes" })),
            "stream",
            "invalid_type",
        ),
        (
            &runs,
            spec(json!({ "max_prompt_tokens": 255 })),
            "max_prompt_tokens",
            "integer_below_min_value",
        ),
        (
            &runs,
            spec(json!({ "max_completion_tokens": 300.5 })),
            "max_completion_tokens",
            "invalid_type",
        ),
        (
            &runs,
            spec(json!({ "tool_choice": "maybe" })),
            "tool_choice",
            "invalid_value",
        ),
        (
            &runs,
            spec(json!({ "tool_choice": { "type": "function" } })),
            "tool_choice.function",
            "missing_required_parameter",
        ),
        (
            &runs,
            spec(json!({ "response_format": { "type": "xml" } })),
            "response_format.type",
            "invalid_value",
        ),
        (
            &runs,
            spec(json!({ "tools": [{ "type": "telephone" }] })),
            "tools[0].type",
            "invalid_value",
        ),
        (
            &runs,
            function(json!({})),
            "tools[0].function.name",
            "missing_required_parameter",
        ),
        (
            &runs,
            function(json!({ "name": "two words" })),
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            &runs,
            function(json!({ "name": "f", "parameters": [] })),
            "tools[0].function.parameters",
            "invalid_type",
        ),
        (
            &runs,
            spec(json!({ "tools": vec![json!({ "type": "file_search" }); 21] })),
            "tools",
            "array_above_max_length",
        ),
        (
            &runs,
            spec(json!({ "metadata": { "embedded.scenario": "dance" } })),
            "metadata.embedded.scenario",
            "invalid_value",
        ),
        (
            &runs,
            spec(json!({ "metadata": { "embedded.delay_ms": "-1" } })),
            "metadata.embedded.delay_ms",
            "invalid_value",
        ),
        (
            &runs,
            spec(json!({ "metadata": { "embedded.refuse": "200" } })),
            "metadata.embedded.refuse",
            "invalid_value",
        ),
        (
            "/threads/runs",
            spec(json!({ "thread": { "colour": 1 } })),
            "thread.colour",
            "unknown_parameter",
        ),
        (
            "/threads/runs",
            spec(json!({ "additional_messages": [] })),
            "additional_messages",
            "unknown_parameter",
        ),
    ];
    for (path, body, param, code) in rows {
        let answer = api.ask("POST", path, body.clone()).await;
        let error = &answer.body["error"];
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(
            (
                text(&error["param"]),
                text(&error["code"]),
                text(&error["type"])
            ),
            (param, code, "invalid_request_error"),
            "{body}"
        );
    }
    assert_eq!(api.get(&runs).await["data"], json!([]), "nothing was made");
}

#[tokio::test]
async fn a_wrong_query_is_refused_and_the_parameter_named() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let rows = [
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=101", "limit", "integer_above_max_value"),
        ("limit=many", "limit", "invalid_type"),
        ("order=up", "order", "invalid_value"),
        ("after=msg_x", "after", "invalid_value"),
        ("before=msg_x", "before", "invalid_value"),
        ("colour=red", "colour", "unknown_parameter"),
    ];
    for (query, param, code) in rows {
        let answer = api
            .ask("GET", &format!("{thread}/messages?{query}"), Value::Null)
            .await;
        let error = &answer.body["error"];
        assert_eq!(
            (answer.status, text(&error["param"]), text(&error["code"])),
            (400, param, code),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_run_that_asks_to_be_refused_is_refused_and_not_made() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    for (status, waiting_helps) in [(401, false), (429, true), (503, true)] {
        let refuse = spec(json!({ "metadata": { "embedded.refuse": status.to_string() } }));
        let answer = api.ask("POST", &format!("{thread}/runs"), refuse).await;
        assert_eq!(
            (answer.status, answer.headers.contains_key("retry-after-ms")),
            (status, waiting_helps)
        );
    }
    assert_eq!(
        api.get(&format!("{thread}/runs")).await["data"],
        json!([]),
        "nothing was made"
    );
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let run = api.run(&thread, json!({})).await;
    let rows = [
        (
            "GET",
            "/assistants/asst_x".to_owned(),
            "No assistant found with id 'asst_x'.",
        ),
        (
            "DELETE",
            "/assistants/asst_x".to_owned(),
            "No assistant found with id 'asst_x'.",
        ),
        (
            "GET",
            "/threads/thread_x".to_owned(),
            "No thread found with id 'thread_x'.",
        ),
        (
            "DELETE",
            "/threads/thread_x".to_owned(),
            "No thread found with id 'thread_x'.",
        ),
        (
            "GET",
            "/threads/thread_x/messages".to_owned(),
            "No thread found with id 'thread_x'.",
        ),
        (
            "GET",
            "/threads/thread_x/runs/run_x".to_owned(),
            "No thread found with id 'thread_x'.",
        ),
        (
            "GET",
            format!("{thread}/messages/msg_x"),
            "No message found with id 'msg_x'.",
        ),
        (
            "DELETE",
            format!("{thread}/messages/msg_x"),
            "No message found with id 'msg_x'.",
        ),
        (
            "GET",
            format!("{thread}/runs/run_x"),
            "No run found with id 'run_x'.",
        ),
        (
            "POST",
            format!("{thread}/runs/run_x/cancel"),
            "No run found with id 'run_x'.",
        ),
        (
            "GET",
            format!("{thread}/runs/run_x/steps"),
            "No run found with id 'run_x'.",
        ),
        (
            "GET",
            format!("{run}/steps/step_123"),
            "No run step found with id 'step_123'.",
        ),
        ("GET", "/nonsense".to_owned(), "Invalid URL (GET /nonsense)"),
        (
            "GET",
            "/v1/nonsense".to_owned(),
            "Invalid URL (GET /v1/nonsense)",
        ),
    ];
    for (method, path, message) in rows {
        let answer = api.ask(method, &path, Value::Null).await;
        assert_eq!(
            (answer.status, text(&answer.body["error"]["message"])),
            (404, message),
            "{method} {path}"
        );
    }
    let unknown = json!({ "assistant_id": "asst_x" });
    let answer = api.ask("POST", &format!("{thread}/runs"), unknown).await;
    assert_eq!(
        (answer.status, text(&answer.body["error"]["message"])),
        (404, "No assistant found with id 'asst_x'.")
    );
    assert_eq!(
        api.ask("PUT", "/nonsense/../threads", Value::Null)
            .await
            .status,
        405
    );
}

#[tokio::test]
async fn what_the_state_does_not_allow_is_refused() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let run = api
        .run(
            &thread,
            weather(json!({ "metadata": { "embedded.tool_calls": "2" } })),
        )
        .await;
    let (thread_id, run_id) = (
        thread.replace("/threads/", ""),
        run.rsplit('/').next().expect("an id").to_owned(),
    );
    let message = json!({ "role": "user", "content": "Wait!" });
    let submit = format!("{run}/submit_tool_outputs");
    let taken = format!("Thread {thread_id} already has an active run {run_id}.");
    let busy = format!("Can't add messages to {thread_id} while a run {run_id} is active.");
    let refused = async |path: &str, body: Value, words: &str| {
        let answer = api.ask("POST", path, body).await;
        assert_eq!(
            (answer.status, text(&answer.body["error"]["message"])),
            (400, words),
            "{path}"
        );
    };
    let none = json!({ "tool_outputs": [] });

    refused(&format!("{thread}/runs"), spec(json!({})), &taken).await;
    refused(&format!("{thread}/messages"), message.clone(), &busy).await;
    refused(
        &submit,
        none.clone(),
        "Runs in status \"queued\" do not accept tool outputs.",
    )
    .await;
    refused(
        &run,
        json!({ "metadata": {} }),
        "Cannot update run with status 'queued'.",
    )
    .await;

    let waiting = api.until(&run, "requires_action").await;
    refused(&format!("{thread}/runs"), spec(json!({})), &taken).await;
    refused(&format!("{thread}/messages"), message.clone(), &busy).await;
    let all = outputs(&waiting);
    let ids: Vec<&str> = all["tool_outputs"]
        .as_array()
        .expect("two")
        .iter()
        .map(|it| text(&it["tool_call_id"]))
        .collect();
    let expected = format!(
        "Expected tool outputs for call_ids ['{}', '{}'], got",
        ids[0], ids[1]
    );
    let output = |id: &str| json!({ "tool_call_id": id, "output": "x" });
    let wrong = [
        (vec![], "[]".to_owned()),
        (vec![output(ids[0])], format!("['{}']", ids[0])),
        (
            vec![output(ids[0]), output("call_x")],
            format!("['{}', 'call_x']", ids[0]),
        ),
        (
            vec![output(ids[0]), output(ids[0])],
            format!("['{}', '{}']", ids[0], ids[0]),
        ),
    ];
    for (given, got) in wrong {
        refused(
            &submit,
            json!({ "tool_outputs": given }),
            &format!("{expected} {got}"),
        )
        .await;
    }
    let renamed = api.post(&run, json!({ "metadata": { "a": "b" } })).await;
    assert_eq!(
        renamed["metadata"],
        json!({ "a": "b" }),
        "metadata may change while the run waits"
    );

    api.post(&submit, all.clone()).await;
    refused(
        &submit,
        all,
        "Runs in status \"queued\" do not accept tool outputs.",
    )
    .await;
    api.until(&run, "completed").await;
    refused(
        &submit,
        none,
        "Runs in status \"completed\" do not accept tool outputs.",
    )
    .await;
    refused(
        &format!("{run}/cancel"),
        Value::Null,
        "Cannot cancel run with status 'completed'.",
    )
    .await;
}

#[tokio::test]
async fn a_run_with_nothing_to_go_by_is_refused() {
    let api = Embedded::still().await;
    let answer = api.ask("POST", "/threads/runs", spec(json!({}))).await;
    assert_eq!(
        (answer.status, text(&answer.body["error"]["code"])),
        (400, "invalid_thread")
    );
    api.post(
        "/threads/runs",
        spec(json!({ "instructions": "Say something." })),
    )
    .await;
}

#[tokio::test]
async fn a_body_that_is_too_large_or_no_json_is_refused() {
    let api = Embedded::with(Limits {
        body: 1_000,
        ..Limits::default()
    })
    .await;
    for (body, status) in [
        ("x".repeat(1_001), 413),
        ("x".repeat(1_000), 400),
        ("[]".to_owned(), 400),
    ] {
        let length = body.len();
        assert_eq!(
            api.send("POST", "/threads", body).await.status(),
            status,
            "{length} bytes"
        );
    }
}
