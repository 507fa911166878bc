//! `demo --model-url`: the same conversation, with a model's own words.

use assert_cmd::Command;
use serde_json::json;

use crate::{
    harness::{call, end, text},
    support::{
        program::PROGRAM,
        upstream::{Answer, Upstream},
    },
};

#[tokio::test]
async fn a_demo_shows_what_a_model_says() {
    let function = json!({ "name": "get_weather", "arguments": "{\"city\":\"Paris\"}" });
    let made = call(&json!({ "index": 0, "id": "call_1", "function": function }));
    let model = Upstream::start().await;
    model.push(Answer::sse([made, end("tool_calls")]));
    model.push(Answer::sse([
        text("It is "),
        text("22 degrees."),
        end("stop"),
    ]));
    let url = model.url();
    let run = tokio::task::spawn_blocking(move || {
        let words = ["demo", "--model-url", &url, "--model", "mine"];
        Command::new(PROGRAM).args(words).output().expect("an end")
    });
    let output = run.await.expect("no panic");
    let shown = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{shown}");
    for line in [
        "the embedded Runs API: the model at --model-url",
        "get_weather({\"city\":\"Paris\"}) is called here",
        "It is 22 degrees.",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let asked = &model.requests()[1];
    assert!(asked.text().contains("22 degrees and sunny") && asked.text().contains("\"mine\""));
}
