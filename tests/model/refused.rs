//! What such a model cannot do is refused when the run is made, and leaves nothing behind.

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::{
    harness::{OnModel, asking},
    support::program::PROGRAM,
};

#[test]
fn a_file_that_cannot_be_used_is_said_by_the_models_flag() {
    let url = [
        "dev",
        "--listen",
        "127.0.0.1:0",
        "--model-url",
        "https://host/v1",
    ];
    for (flag, file) in [
        ("--model-api-key-file", "missing"),
        ("--model-ca-file", "missing"),
        ("--model-ca-file", "Cargo.toml"),
    ] {
        let output = Command::new(PROGRAM).args(url).args([flag, file]).output();
        let output = output.expect("an end");
        let line = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{flag} {file}: {line}");
        assert!(line.contains(flag), "{flag} {file}: {line}");
    }
}

#[tokio::test]
async fn what_a_model_cannot_do_is_refused_and_named() {
    let dev = OnModel::start(&[]).await;
    let says = |content: Value| json!({ "thread": { "messages": [{ "role": "user", "content": content }] } });
    let file = json!([{ "type": "image_file", "image_file": { "file_id": "file_1" } }]);
    let attached = json!({ "messages": [{ "role": "user", "content": "Hi", "attachments": [{ "file_id": "file_1" }] }] });
    let rows = [
        (
            json!({ "tools": [{ "type": "code_interpreter" }] }),
            "tools[0].type",
            "code_interpreter",
        ),
        (
            json!({ "tools": [{ "type": "file_search" }] }),
            "tools[0].type",
            "file_search",
        ),
        (
            json!({ "tool_choice": { "type": "file_search" } }),
            "tool_choice.type",
            "file_search",
        ),
        (says(file), "messages[0].content[0].type", "image_file"),
        (
            json!({ "thread": attached }),
            "messages[0].attachments",
            "A file",
        ),
    ];
    for (more, param, word) in rows {
        let (status, body) = dev.ask("POST", "/threads/runs", asking(more.clone())).await;
        let error = &body["error"];
        assert_eq!(status, 400, "{more}");
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("unsupported_parameter"), &json!(param)),
            "{more}"
        );
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| message.contains(word)),
            "{error}"
        );
    }

    let (_, thread) = dev
        .ask(
            "POST",
            "/threads",
            json!({ "messages": [{ "role": "user", "content": "Hi" }] }),
        )
        .await;
    let path = format!("/threads/{}", thread["id"].as_str().expect("an id"));
    let more = json!({
        "assistant_id": "asst_embedded", "tools": [{ "type": "code_interpreter" }],
        "additional_messages": [{ "role": "user", "content": "More" }],
    });
    assert_eq!(dev.ask("POST", &format!("{path}/runs"), more).await.0, 400);
    let (_, messages) = dev
        .ask("GET", &format!("{path}/messages"), Value::Null)
        .await;
    assert_eq!(
        messages["data"].as_array().map(Vec::len),
        Some(1),
        "{messages}"
    );
    assert!(dev.model.requests().is_empty());
}
