//! What a model is asked.

use serde_json::{Value, json};

use crate::{
    harness::{OnModel, asking, call, end, text, tools},
    support::upstream::Answer,
};

fn hi() -> Answer {
    Answer::sse([text("Hi"), end("stop")])
}

#[tokio::test]
async fn all_that_a_run_says_is_asked_and_nothing_that_nobody_said() {
    let dev = OnModel::start(&[]).await;
    dev.run(hi(), Value::Null).await;
    assert_eq!(
        dev.asked(0).await,
        json!({
            "model": "embedded",
            "stream": true,
            "stream_options": { "include_usage": true },
            "messages": [{ "role": "user", "content": "What is the weather in Paris?" }],
        })
    );
    assert_eq!(dev.model.requests()[0].header("authorization"), None);

    let schema = json!({ "type": "object", "properties": { "x": { "type": "string" } } });
    let function =
        json!({ "name": "a", "description": "An A.", "parameters": schema, "strict": true });
    let tools = json!([{ "type": "function", "function": function }]);
    let format = json!({ "type": "json_schema", "json_schema": { "name": "f", "schema": schema, "strict": true } });
    let image = json!({ "type": "image_url", "image_url": { "url": "https://images.test/a.png", "detail": "low" } });
    let messages = json!([
        { "role": "user", "content": [{ "type": "text", "text": "One" }, { "type": "text", "text": "two" }] },
        { "role": "assistant", "content": "Three" },
        { "role": "user", "content": [{ "type": "text", "text": "What is this?" }, image] },
    ]);
    let choice = json!({ "type": "function", "function": { "name": "a" } });
    dev.run(
        hi(),
        json!({
            "model": "m", "instructions": "Be kind.", "thread": { "messages": messages }, "tools": tools,
            "tool_choice": choice, "parallel_tool_calls": false, "response_format": format,
            "temperature": 0.5, "top_p": 0.25, "max_completion_tokens": 300,
        }),
    )
    .await;
    assert_eq!(
        dev.asked(1).await,
        json!({
            "model": "m",
            "stream": true,
            "stream_options": { "include_usage": true },
            "messages": [
                { "role": "system", "content": "Be kind." },
                { "role": "user", "content": "One\ntwo" },
                { "role": "assistant", "content": "Three" },
                { "role": "user", "content": messages[2]["content"] },
            ],
            "tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "response_format": format,
            "temperature": 0.5, "top_p": 0.25, "max_completion_tokens": 300,
        })
    );
}

#[tokio::test]
async fn members_of_a_schema_keep_their_order_which_models_follow() {
    let dev = OnModel::start(&[]).await;
    dev.model.push(hi());
    let schema = r#"{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"string"}}}"#;
    let function = format!(r#"{{"name":"f","parameters":{schema}}}"#);
    let tools = format!(r#"[{{"type":"function","function":{function}}}]"#);
    let body = format!(
        r#"{{"assistant_id":"asst_embedded","instructions":"Hi","stream":true,"tools":{tools}}}"#
    );
    let answer = dev.post("/threads/runs", body).await;
    let events = answer.text().await.expect("events");
    assert!(events.contains("thread.run.completed"), "{events}");
    assert!(dev.model.requests()[0].text().contains(schema));
}

#[tokio::test]
async fn a_name_and_a_key_stand_in_every_request() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "KEY\n").expect("written");
    let path = file.path().to_str().expect("a path of text");
    let dev = OnModel::start(&["--model", "mine", "--model-api-key-file", path]).await;
    let body = json!({ "model": "m", "reasoning_effort": "low" });
    let (_, assistant) = dev.ask("POST", "/assistants", body).await;
    dev.run(hi(), json!({ "assistant_id": assistant["id"] }))
        .await;
    let asked = dev.asked(0).await;
    assert_eq!(
        (&asked["model"], &asked["reasoning_effort"]),
        (&json!("mine"), &json!("low"))
    );
    assert_eq!(
        dev.model.requests()[0].header("authorization"),
        Some("Bearer KEY")
    );
}

#[tokio::test]
async fn rounds_of_calls_follow_each_other_in_the_order_of_the_run() {
    let dev = OnModel::start(&[]).await;
    let round = |word: &str, id: &str, name: &str| {
        let function = json!({ "name": name, "arguments": "{\"x\":1}" });
        let made = json!({ "index": 0, "id": id, "type": "function", "function": function });
        Answer::sse([text(word), call(&made), end("tool_calls")])
    };
    let mut more = tools(&["a", "b"]);
    more["tool_choice"] = json!("required");
    more["max_completion_tokens"] = json!(300);
    let first = dev.run(round("One.", "c1", "a"), more).await;
    dev.model.push(round("Two.", "c2", "b"));
    let second = dev.submit(&first.run, "1").await;
    dev.model.push(hi());
    let last = dev.submit(&second.run, "2").await;
    assert_eq!(last.line(), "completed, said \"Hi\"");

    let made = |word: &str, id: &str, name: &str| {
        let function = json!({ "name": name, "arguments": "{\"x\":1}" });
        let made = json!({ "id": id, "type": "function", "function": function });
        json!({ "role": "assistant", "content": word, "tool_calls": [made] })
    };
    assert_eq!(
        dev.asked(2).await["messages"],
        json!([
            { "role": "user", "content": "What is the weather in Paris?" },
            made("One.", "c1", "a"),
            { "role": "tool", "tool_call_id": "c1", "content": "a: 1" },
            made("Two.", "c2", "b"),
            { "role": "tool", "tool_call_id": "c2", "content": "b: 2" },
        ])
    );
    // Something has been called: the answer may come.
    assert_eq!(dev.asked(0).await["tool_choice"], "required");
    assert_eq!(dev.asked(2).await["tool_choice"], Value::Null);
    // What the first rounds wrote is gone from what the last may write.
    let left = dev.asked(2).await["max_completion_tokens"].as_i64();
    assert!(left.is_some_and(|left| left < 300), "{left:?}");

    // The next run reads what was said, and not what was called.
    dev.model.push(hi());
    let thread = last.run["thread_id"].as_str().expect("an id");
    let body = json!({ "assistant_id": "asst_embedded" });
    dev.outcome(&format!("/threads/{thread}/runs"), body).await;
    let asked = dev.asked(3).await;
    let roles: Vec<_> = asked["messages"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| &it["content"])
        .collect();
    assert_eq!(
        roles,
        ["What is the weather in Paris?", "One.", "Two.", "Hi"]
    );
}

#[tokio::test]
async fn a_thread_that_is_too_long_loses_its_oldest_messages() {
    let long = "word ".repeat(300);
    let says =
        |role: &str, number: usize| json!({ "role": role, "content": format!("{number} {long}") });
    let messages: Vec<_> = (0..4)
        .flat_map(|number| [says("user", 2 * number), says("assistant", 2 * number + 1)])
        .collect();
    let ask = |more: Value| {
        let mut body = asking(json!({ "instructions": "Be kind." }));
        body["thread"]["messages"] = messages.clone().into();
        body["additional_messages"] = Value::Null;
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        body.as_object_mut()
            .expect("an object")
            .remove("additional_messages");
        body
    };
    let rows = [
        ("all fits", "128000", json!({}), 9),
        (
            "the last ones",
            "128000",
            json!({ "truncation_strategy": { "type": "last_messages", "last_messages": 3 } }),
            4,
        ),
        ("by what the model reads", "1700", json!({}), 4),
        (
            "by what the run may read",
            "128000",
            json!({ "max_prompt_tokens": 1700 }),
            4,
        ),
        ("never the last that the user said", "100", json!({}), 3),
    ];
    for (what, context, more, count) in rows {
        let dev = OnModel::start(&["--model-context-tokens", context]).await;
        dev.model.push(hi());
        dev.outcome("/threads/runs", ask(more)).await;
        let asked = dev.asked(0).await;
        let asked = asked["messages"].as_array().expect("a list");
        assert_eq!(asked.len(), count, "{what}");
        assert_eq!(asked[0]["role"], "system", "{what}");
        let last = asked[count - 1]["content"].as_str().expect("text");
        assert!(last.starts_with("7 "), "{what}");
    }
}
