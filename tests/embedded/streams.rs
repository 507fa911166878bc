//! Event streams say what polling says, in the order of the real service.

use std::time::Duration;

use reqwest::Response;
use serde_json::{Value, json};

use crate::{
    client::{Embedded, STEP, outputs, spec, text, weather},
    schema,
};

/// The events of an answer, as they come.
struct Events {
    response: Response,
    bytes: Vec<u8>,
}

impl Events {
    async fn of(api: &Embedded, path: &str, mut body: Value) -> Self {
        body["stream"] = json!(true);
        let response = api.send("POST", path, body.to_string()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers()["content-type"],
            "text/event-stream; charset=utf-8"
        );
        assert!(response.headers().contains_key("x-request-id"));
        Self {
            response,
            bytes: Vec::new(),
        }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.bytes.drain(..end + 2).collect();
                let event = String::from_utf8(event).expect("events are text");
                let (name, data) = event.split_once('\n').expect("two lines");
                let name = name.strip_prefix("event: ").expect("a name").to_owned();
                let data = data.strip_prefix("data: ").expect("data").trim_end();
                let data = serde_json::from_str(data).unwrap_or_else(|_| json!(data));
                schema::check_event(&name, &data);
                return Some((name, data));
            }
            self.bytes
                .extend(self.response.chunk().await.expect("the stream is whole")?);
        }
    }

    /// The next event, which must come.
    async fn event(&mut self) -> (String, Value) {
        let next = tokio::time::timeout(Duration::from_secs(10), self.next()).await;
        next.expect("an event comes").expect("the stream goes on")
    }

    /// All events to the end, while the clock moves.
    async fn all(mut self, api: &Embedded) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        loop {
            match tokio::time::timeout(Duration::from_millis(20), self.next()).await {
                Ok(Some(event)) => events.push(event),
                Ok(None) => return events,
                Err(_) => api.advance(STEP),
            }
            assert!(events.len() < 1_000);
        }
    }
}

/// The names of events without `thread.`, repeated ones once.
fn names(events: &[(String, Value)]) -> Vec<&str> {
    let mut names: Vec<&str> = events
        .iter()
        .map(|(name, _)| name.trim_start_matches("thread."))
        .collect();
    names.dedup();
    names
}

const BEGUN: &[&str] = &["run.created", "run.queued", "run.in_progress"];
const WRITING: &[&str] = &[
    "run.step.created",
    "run.step.in_progress",
    "message.created",
    "message.in_progress",
    "message.delta",
];
const WRITTEN: &[&str] = &[
    "message.completed",
    "run.step.completed",
    "run.completed",
    "done",
];
const CALLING: &[&str] = &[
    "run.step.created",
    "run.step.in_progress",
    "run.step.delta",
    "run.requires_action",
    "done",
];

#[tokio::test]
async fn events_come_in_the_order_of_the_service() {
    let scenario = |name: &str| json!({ "metadata": { "embedded.scenario": name } });
    let rows: Vec<(&str, Value, Vec<&[&str]>)> = vec![
        ("an answer", json!({}), vec![BEGUN, WRITING, WRITTEN]),
        (
            "a refusal",
            scenario("refuse"),
            vec![BEGUN, WRITING, WRITTEN],
        ),
        ("calls", weather(json!({})), vec![BEGUN, CALLING]),
        (
            "a failure",
            scenario("fail"),
            vec![BEGUN, &["run.failed", "done"]],
        ),
        (
            "a token limit",
            scenario("incomplete"),
            vec![
                BEGUN,
                WRITING,
                &[
                    "message.incomplete",
                    "run.step.completed",
                    "run.incomplete",
                    "done",
                ],
            ],
        ),
    ];
    for (name, more, expected) in rows {
        let api = Embedded::still().await;
        let thread = api.thread().await;
        let events = Events::of(&api, &format!("{thread}/runs"), spec(more))
            .await
            .all(&api)
            .await;
        assert_eq!(names(&events), expected.concat(), "{name}");
        agree(&api, name, &events).await;
    }
}

/// Polling gives what the events say: the last whole resource of each id, and the texts that deltas
/// add up to.
async fn agree(api: &Embedded, name: &str, events: &[(String, Value)]) {
    let run = &events
        .iter()
        .rfind(|(name, _)| name.starts_with("thread.run.") && !name.contains("step"))
        .expect("a run")
        .1;
    let thread = format!("/threads/{}", text(&run["thread_id"]));
    let path = format!("{thread}/runs/{}", text(&run["id"]));
    assert_eq!(api.get(&path).await, *run, "{name}");
    for (event, data) in events {
        if matches!(
            event.as_str(),
            "thread.message.completed" | "thread.message.incomplete"
        ) {
            assert_eq!(
                api.get(&format!("{thread}/messages/{}", text(&data["id"])))
                    .await,
                *data,
                "{name}"
            );
            let deltas = events
                .iter()
                .filter(|(event, _)| event == "thread.message.delta");
            let parts = deltas.map(|(_, delta)| &delta["delta"]["content"][0]);
            let said: String = parts
                .map(|part| {
                    part["text"]["value"]
                        .as_str()
                        .or(part["refusal"].as_str())
                        .expect("text")
                })
                .collect();
            let part = &data["content"][0];
            assert_eq!(
                part["text"]["value"].as_str().or(part["refusal"].as_str()),
                Some(said.as_str()),
                "{name}"
            );
        }
        if event == "thread.run.requires_action" {
            let deltas = events
                .iter()
                .filter(|(event, _)| event == "thread.run.step.delta");
            let calls = deltas
                .map(|(_, delta)| &delta["delta"]["step_details"]["tool_calls"][0]["function"]);
            let arguments: String = calls.map(|function| text(&function["arguments"])).collect();
            let call = &data["required_action"]["submit_tool_outputs"]["tool_calls"][0];
            assert_eq!(call["function"]["arguments"], arguments, "{name}");
        }
    }
}

#[tokio::test]
async fn a_thread_and_run_is_streamed_round_by_round() {
    let api = Embedded::still().await;
    let messages = json!([{ "role": "user", "content": "What is the weather in Paris?" }]);
    let more = weather(
        json!({ "thread": { "messages": messages }, "metadata": { "embedded.tool_calls": "2" } }),
    );
    let events = Events::of(&api, "/threads/runs", spec(more))
        .await
        .all(&api)
        .await;
    assert_eq!(names(&events), [&["created"], BEGUN, CALLING].concat());
    let run = &events[events.len() - 2].1;
    let path = format!(
        "/threads/{}/runs/{}/submit_tool_outputs",
        text(&run["thread_id"]),
        text(&run["id"])
    );
    let events = Events::of(&api, &path, outputs(run)).await.all(&api).await;
    let begun: &[&str] = &["run.step.completed", "run.queued", "run.in_progress"];
    assert_eq!(names(&events), [begun, WRITING, WRITTEN].concat());
    assert_eq!(
        events[0].1["step_details"]["tool_calls"][1]["function"]["output"],
        "output 1"
    );
    agree(&api, "after the outputs", &events).await;
}

#[tokio::test]
async fn each_word_is_sent_when_it_is_said() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let more = json!({ "metadata": { "embedded.delay_ms": "1000" } });
    let mut events = Events::of(&api, &format!("{thread}/runs"), spec(more)).await;
    assert_eq!(events.event().await.0, "thread.run.created");
    assert_eq!(events.event().await.0, "thread.run.queued");
    api.advance(Duration::from_secs(1));
    let (_, run) = events.event().await;
    let path = format!("{thread}/runs/{}", text(&run["id"]));
    api.advance(Duration::from_secs(1));
    let mut said = String::new();
    loop {
        let (name, data) = events.event().await;
        match name.as_str() {
            "thread.message.delta" => {
                said.push_str(text(&data["delta"]["content"][0]["text"]["value"]));
                let message = api
                    .get(&format!("{thread}/messages/{}", text(&data["id"])))
                    .await;
                assert_eq!(
                    message["content"][0]["text"]["value"], *said,
                    "polling is where the stream is"
                );
                api.advance(Duration::from_secs(1));
            }
            "done" => break,
            _ => {}
        }
    }
    assert_eq!(api.get(&path).await["status"], "completed");
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_cancelled_or_expired_run_says_so_in_its_stream() {
    for (name, path, advance, cut) in [
        ("cancelled", "/cancel", STEP, "run_cancelled"),
        ("expired", "", Duration::from_secs(600), "run_expired"),
    ] {
        let api = Embedded::still().await;
        let thread = api.thread().await;
        let more = json!({ "metadata": { "embedded.delay_ms": "15" } });
        let mut events = Events::of(&api, &format!("{thread}/runs"), spec(more)).await;
        let mut run = Value::Null;
        loop {
            let (event, data) = events.event().await;
            if event == "thread.message.delta" {
                break;
            }
            if event.ends_with("queued") || event.ends_with("run.in_progress") {
                run = data;
                api.advance(STEP);
            }
        }
        if !path.is_empty() {
            api.post(
                &format!("{thread}/runs/{}{path}", text(&run["id"])),
                Value::Null,
            )
            .await;
            assert_eq!(events.event().await.0, "thread.run.cancelling");
        }
        api.advance(advance);
        let (event, message) = events.event().await;
        assert_eq!(
            (event.as_str(), &message["incomplete_details"]["reason"]),
            ("thread.message.incomplete", &json!(cut))
        );
        assert_eq!(events.event().await.0, format!("thread.run.step.{name}"));
        assert_eq!(events.event().await.0, format!("thread.run.{name}"));
        assert_eq!(events.event().await.0, "done");
        assert_eq!(events.next().await, None);
    }
}

#[tokio::test]
async fn a_reader_that_leaves_does_not_stop_the_run() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let mut events = Events::of(&api, &format!("{thread}/runs"), spec(json!({}))).await;
    let (_, run) = events.event().await;
    drop(events);
    api.until(&format!("{thread}/runs/{}", text(&run["id"])), "completed")
        .await;
}

#[tokio::test]
async fn a_stream_whose_run_is_taken_away_ends_in_an_error() {
    let mut api = Embedded::still().await;
    for deleted in [true, false] {
        let thread = api.thread().await;
        let mut events = Events::of(&api, &format!("{thread}/runs"), spec(json!({}))).await;
        events.event().await;
        events.event().await;
        if deleted {
            api.ok("DELETE", &thread, Value::Null).await;
        } else {
            api.stop();
        }
        let (name, data) = events.event().await;
        assert_eq!(
            (name.as_str(), text(&data["type"])),
            ("error", "server_error"),
            "deleted: {deleted}"
        );
        assert_eq!(events.next().await, None);
    }
    api.stopped().await;
}
