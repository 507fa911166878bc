//! Runs go through the states of the real service, each for the reason that the real service has.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Embedded, outputs, text, weather};

/// What happens next to a run.
enum Next {
    /// The clock moves by a step.
    Step,
    /// The clock moves to the end of the run's ten minutes.
    TenMinutes,
    /// The outputs that it waits for are given.
    Submit,
    Cancel,
}

/// What happens, and the state that the run is in then.
type Script = Vec<(Next, &'static str)>;

#[tokio::test]
async fn given_what_happens_a_run_is_in_this_state_next() {
    use Next::{Cancel, Step, Submit, TenMinutes};
    let steered = |name: &str, value: &str| json!({ "metadata": { name: value } });
    let scenario = |name: &str| steered("embedded.scenario", name);
    let rounds = json!({ "metadata": { "embedded.tool_rounds": "3", "embedded.tool_calls": "2" } });
    let both = json!({ "metadata": { "embedded.tool_rounds": "1", "embedded.scenario": "fail" } });
    let to_action = || vec![(Step, "in_progress"), (Step, "requires_action")];
    let after = |mut first: Script, more: Script| {
        first.extend(more);
        first
    };
    let round = || {
        vec![
            (Submit, "queued"),
            (Step, "in_progress"),
            (Step, "requires_action"),
        ]
    };
    let answered = || {
        vec![
            (Submit, "queued"),
            (Step, "in_progress"),
            (Step, "completed"),
        ]
    };
    let rows: Vec<(&str, Value, Script)> = vec![
        (
            "an answer",
            json!({}),
            vec![(Step, "in_progress"), (Step, "completed")],
        ),
        (
            "one round of calls",
            weather(json!({})),
            after(to_action(), answered()),
        ),
        (
            "three rounds",
            weather(rounds),
            after(to_action(), after(round(), after(round(), answered()))),
        ),
        (
            "no calls allowed",
            weather(json!({ "tool_choice": "none" })),
            vec![(Step, "in_progress"), (Step, "completed")],
        ),
        (
            "a failure",
            scenario("fail"),
            vec![(Step, "in_progress"), (Step, "failed")],
        ),
        (
            "a rate limit",
            scenario("rate_limit"),
            vec![(Step, "in_progress"), (Step, "failed")],
        ),
        (
            "a failure after a round",
            weather(both),
            after(
                to_action(),
                vec![(Submit, "queued"), (Step, "in_progress"), (Step, "failed")],
            ),
        ),
        (
            "a token limit",
            scenario("incomplete"),
            vec![(Step, "in_progress"), (Step, "incomplete")],
        ),
        (
            "a refusal",
            scenario("refuse"),
            vec![(Step, "in_progress"), (Step, "completed")],
        ),
        (
            "a model that says nothing",
            scenario("expire"),
            vec![(Step, "in_progress"), (TenMinutes, "expired")],
        ),
        (
            "outputs that never come",
            weather(json!({})),
            after(to_action(), vec![(TenMinutes, "expired")]),
        ),
        (
            "cancelled while queued",
            json!({}),
            vec![(Cancel, "cancelling"), (Step, "cancelled")],
        ),
        (
            "cancelled at work",
            scenario("expire"),
            vec![
                (Step, "in_progress"),
                (Cancel, "cancelling"),
                (Step, "cancelled"),
            ],
        ),
        (
            "cancelled while waiting",
            weather(json!({})),
            after(
                to_action(),
                vec![(Cancel, "cancelling"), (Step, "cancelled")],
            ),
        ),
        (
            "cancelled between words",
            steered("embedded.delay_ms", "15"),
            vec![
                (Step, "in_progress"),
                (Cancel, "cancelling"),
                (Step, "cancelled"),
            ],
        ),
    ];
    for (name, more, script) in rows {
        let api = Embedded::still().await;
        let thread = api.thread().await;
        let path = api.run(&thread, more).await;
        let mut run = api.get(&path).await;
        assert_eq!(run["status"], "queued", "{name}");
        for (next, state) in script {
            let before = text(&run["status"]).to_owned();
            run = match next {
                Step => api.step(&path).await,
                TenMinutes => {
                    api.advance(Duration::from_secs(599));
                    assert_eq!(
                        api.get(&path).await["status"],
                        *before,
                        "{name}: ten minutes are not over"
                    );
                    api.advance(Duration::from_secs(1));
                    api.get(&path).await
                }
                Submit => {
                    api.post(&format!("{path}/submit_tool_outputs"), outputs(&run))
                        .await
                }
                Cancel => api.post(&format!("{path}/cancel"), Value::Null).await,
            };
            assert_eq!(run["status"], state, "{name}, after {before}");
        }
        look_over(&api, name, &thread, &path, &run).await;
    }
}

/// What must hold for any run that has ended.
async fn look_over(api: &Embedded, name: &str, thread: &str, path: &str, run: &Value) {
    let status = text(&run["status"]);
    let usage = &run["usage"];
    assert_eq!(
        usage["total_tokens"].as_i64(),
        usage["prompt_tokens"]
            .as_i64()
            .zip(usage["completion_tokens"].as_i64())
            .map(|(read, wrote)| read + wrote),
        "{name}"
    );
    for (stamp, of) in [
        ("completed_at", "completed"),
        ("failed_at", "failed"),
        ("cancelled_at", "cancelled"),
        ("expires_at", "expired"),
    ] {
        assert_eq!(!run[stamp].is_null(), status == of, "{name}: {stamp}");
    }
    assert_eq!(!run["last_error"].is_null(), status == "failed", "{name}");
    assert_eq!(
        !run["incomplete_details"].is_null(),
        status == "incomplete",
        "{name}"
    );
    assert!(run["required_action"].is_null(), "{name}");

    let mut spent = 0;
    let steps = api.get(&format!("{path}/steps?order=asc")).await["data"]
        .as_array()
        .expect("steps")
        .clone();
    for step in &steps {
        let whole = api
            .get(&format!("{path}/steps/{}", text(&step["id"])))
            .await;
        assert_eq!(whole, *step, "{name}");
        assert_ne!(step["status"], "in_progress", "{name}");
        assert!(step["expires_at"].is_null(), "{name}");
        spent += step["usage"]["total_tokens"]
            .as_i64()
            .expect("a step has its cost");
    }
    if matches!(status, "completed" | "incomplete") {
        assert_eq!(
            usage["total_tokens"], spent,
            "{name}: a run costs what its steps cost"
        );
        assert!(spent > 0, "{name}");
    }
    // The thread is free again.
    let message = json!({ "role": "user", "content": "And tomorrow?" });
    api.post(&format!("{thread}/messages"), message).await;
}

#[tokio::test]
async fn tool_outputs_are_in_the_answer_and_in_the_steps() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let metadata = json!({ "embedded.tool_calls": "2" });
    let path = api
        .run(&thread, weather(json!({ "metadata": metadata })))
        .await;
    let run = api.until(&path, "requires_action").await;
    let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        .as_array()
        .expect("calls")
        .clone();
    assert_eq!(calls.len(), 2);
    for call in &calls {
        let arguments: Value =
            serde_json::from_str(text(&call["function"]["arguments"])).expect("arguments are JSON");
        assert_eq!(arguments["city"], "Paris", "the name in the question");
        assert!((1..=7).contains(&arguments["days"].as_i64().expect("a number")));
    }
    api.post(&format!("{path}/submit_tool_outputs"), outputs(&run))
        .await;
    api.until(&path, "completed").await;
    let messages = api
        .get(&format!("{thread}/messages?run_id={}", text(&run["id"])))
        .await;
    let answer = text(&messages["data"][0]["content"][0]["text"]["value"]);
    assert!(answer.contains("What is the weather in Paris?"), "{answer}");
    assert!(
        answer.contains("output 0") && answer.contains("output 1"),
        "{answer}"
    );
    let steps = api.get(&format!("{path}/steps?order=asc")).await;
    assert_eq!(
        steps["data"][0]["step_details"]["tool_calls"][1]["function"]["output"],
        "output 1"
    );
    assert_eq!(
        steps["data"][1]["step_details"]["message_creation"]["message_id"],
        messages["data"][0]["id"]
    );
}

#[tokio::test]
async fn what_the_model_may_call_is_what_the_run_says() {
    let function = |name: &str| json!({ "type": "function", "function": { "name": name } });
    let tools = json!([function("first"), function("get_weather"), { "type": "code_interpreter" }]);
    let steered = json!({ "embedded.tool_calls": "2" });
    let rows = [
        (
            "auto takes what the question mentions first",
            json!("auto"),
            true,
            vec!["get_weather", "first"],
        ),
        (
            "required calls",
            json!("required"),
            true,
            vec!["get_weather", "first"],
        ),
        ("one at a time", json!("auto"), false, vec!["get_weather"]),
        (
            "the named one",
            json!({ "type": "function", "function": { "name": "first" } }),
            true,
            vec!["first", "first"],
        ),
        (
            "another kind of tool",
            json!({ "type": "code_interpreter" }),
            true,
            vec![],
        ),
        ("none", json!("none"), true, vec![]),
    ];
    for (name, choice, parallel, called) in rows {
        let api = Embedded::still().await;
        let thread = api.thread().await;
        let more = json!({ "tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel, "metadata": steered });
        let path = api.run(&thread, more).await;
        let run = api
            .until(
                &path,
                if called.is_empty() {
                    "completed"
                } else {
                    "requires_action"
                },
            )
            .await;
        let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let names: Vec<&str> = calls
            .iter()
            .map(|call| text(&call["function"]["name"]))
            .collect();
        assert_eq!(names, called, "{name}");
    }
}

#[tokio::test]
async fn scenarios_say_why_in_the_words_of_the_service() {
    let rows = [
        ("fail", "failed", "/last_error/code", "server_error"),
        (
            "rate_limit",
            "failed",
            "/last_error/code",
            "rate_limit_exceeded",
        ),
        (
            "incomplete",
            "incomplete",
            "/incomplete_details/reason",
            "max_completion_tokens",
        ),
    ];
    for (scenario, status, pointer, reason) in rows {
        let api = Embedded::still().await;
        let thread = api.thread().await;
        let path = api
            .run(
                &thread,
                json!({ "metadata": { "embedded.scenario": scenario } }),
            )
            .await;
        let run = api.until(&path, status).await;
        assert_eq!(run.pointer(pointer), Some(&json!(reason)), "{scenario}");
    }
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let path = api
        .run(
            &thread,
            json!({ "metadata": { "embedded.scenario": "refuse" } }),
        )
        .await;
    api.until(&path, "completed").await;
    let content = &api.get(&format!("{thread}/messages")).await["data"][0]["content"][0];
    assert_eq!(content["type"], "refusal");
}

#[tokio::test]
async fn an_answer_in_a_format_fits_its_schema() {
    let schema = json!({
        "type": "object",
        "properties": { "city": { "type": "string" }, "sunny": { "type": "boolean" } },
        "required": ["city", "sunny"],
        "additionalProperties": false,
    });
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "weather", "schema": schema } });
    let path = api.run(&thread, json!({ "response_format": format })).await;
    api.until(&path, "completed").await;
    let messages = api.get(&format!("{thread}/messages")).await;
    let answer = text(&messages["data"][0]["content"][0]["text"]["value"]);
    let answer: Value = serde_json::from_str(answer).expect("the answer is JSON");
    assert!(jsonschema::is_valid(&schema, &answer), "{answer}");
}

#[tokio::test]
async fn a_run_takes_from_its_assistant_what_it_does_not_say_itself() {
    let api = Embedded::still().await;
    let assistant = json!({
        "model": "a-model", "instructions": "Be kind.", "temperature": 0.5, "tools": [{ "type": "code_interpreter" }],
    });
    let assistant = api.post("/assistants", assistant).await;
    let thread = api.thread().await;
    let more = json!({ "assistant_id": assistant["id"], "additional_instructions": "Be brief.", "top_p": 0.25 });
    let path = api.run(&thread, more).await;
    let run = api.get(&path).await;
    let found =
        ["model", "instructions", "temperature", "top_p", "tools"].map(|name| run[name].clone());
    let wanted = [
        json!("a-model"),
        json!("Be kind.\nBe brief."),
        json!(0.5),
        json!(0.25),
        json!([{ "type": "code_interpreter" }]),
    ];
    assert_eq!(found, wanted);
}
