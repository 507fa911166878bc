//! `dev` in this process, a scripted model, and a client of the REST API.

use std::fmt::Write as _;

use bytes::Bytes;
use clap::Parser as _;
use runs_gateway::{
    config::{Cli, Command},
    dev::Dev,
    upstream::sse::Parser,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    schema,
    support::upstream::{Answer, Upstream},
};

/// `dev` and its model.
pub(crate) struct OnModel {
    pub(crate) model: Upstream,
    dev: Dev,
    client: reqwest::Client,
}

/// What became of a run.
pub(crate) struct Outcome {
    pub(crate) run: Value,
    /// The names of its events.
    pub(crate) events: Vec<String>,
    text: String,
    refusal: String,
    message: Value,
    /// The number of the call that the last piece was of.
    call: i64,
}

impl OnModel {
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let model = Upstream::start().await;
        let url = format!("{}/v1", model.url());
        Self::start_at(model, &url, flags).await
    }

    /// The same, with the model's URL.
    pub(crate) async fn start_at(model: Upstream, url: &str, flags: &[&str]) -> Self {
        let free = "127.0.0.1:0";
        let mut words = vec![
            "runs-gateway",
            "dev",
            "--listen",
            free,
            "--admin-listen",
            free,
        ];
        words.extend(["--model-url", url, "--retry-pause", "1ms"]);
        words.extend(flags);
        let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        let Command::Dev(args) = cli.command else {
            unreachable!("the command is dev")
        };
        let config = (*args).try_into().expect("it can be run");
        let dev = Dev::start(config, CancellationToken::new()).await;
        let client = reqwest::Client::builder().no_proxy().build();
        Self {
            model,
            dev: dev.expect("it starts"),
            client: client.expect("a client"),
        }
    }

    /// Sends a request and holds the answer to the schema.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let url = format!("http://{}{path}", self.dev.rest);
        let request = self.client.request(reqwest::Method::clone(&method), url);
        let request = request.header("content-type", "application/json");
        let answer = request
            .body(body.to_string())
            .send()
            .await
            .expect("an answer");
        let status = answer.status().as_u16();
        let body = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
        schema::check_answer(method.as_str(), path, status, &body);
        (status, body)
    }

    /// Sends a request with this body.
    pub(crate) async fn post(&self, path: &str, body: String) -> reqwest::Response {
        let url = format!("http://{}{path}", self.dev.rest);
        let request = self.client.post(url).body(body);
        let request = request.header("content-type", "application/json");
        request.send().await.expect("an answer")
    }

    /// Sends a request for a stream, reads it to its end, and then the run.
    pub(crate) async fn outcome(&self, path: &str, mut body: Value) -> Outcome {
        body["stream"] = true.into();
        let answer = self.post(path, body.to_string()).await;
        let status = answer.status();
        let bytes = answer.bytes().await.expect("a whole stream");
        assert!(status.is_success(), "{status}: {bytes:?}");
        let mut outcome = Outcome::read(bytes);
        let id = |name: &str| outcome.run[name].as_str().expect("an id").to_owned();
        let path = format!("/threads/{}/runs/{}", id("thread_id"), id("id"));
        let (_, run) = self.ask("GET", &path, Value::Null).await;
        assert_eq!(
            run["status"], outcome.run["status"],
            "the stream and the run disagree"
        );
        outcome.run = run;
        outcome
    }

    /// The outcome of a run that asks the model one thing, whose next answers are these.
    pub(crate) async fn run(&self, answer: Answer, more: Value) -> Outcome {
        self.model.push(answer);
        self.outcome("/threads/runs", asking(more)).await
    }

    /// Sends outputs for all calls that the run waits for: the call's name and this.
    pub(crate) async fn submit(&self, run: &Value, output: &str) -> Outcome {
        let path = format!(
            "/threads/{}/runs/{}/submit_tool_outputs",
            run["thread_id"].as_str().expect("an id"),
            run["id"].as_str().expect("an id")
        );
        let calls = calls(run).iter().map(|call| {
            let name = call["function"]["name"].as_str().expect("a name");
            json!({ "tool_call_id": call["id"], "output": format!("{name}: {output}") })
        });
        let outputs: Vec<_> = calls.collect();
        self.outcome(&path, json!({ "tool_outputs": outputs }))
            .await
    }

    /// The body of the model's request with this number.
    pub(crate) async fn asked(&self, number: usize) -> Value {
        let requests = self.model.wait_for_requests(number + 1).await;
        let request = &requests[number];
        assert_eq!(
            (&*request.method, &*request.target),
            ("POST", "/v1/chat/completions")
        );
        serde_json::from_str(request.text()).expect("JSON")
    }
}

impl Outcome {
    fn read(stream: Bytes) -> Self {
        let mut parser = Parser::new(1 << 20);
        parser.push(stream);
        let mut outcome = Self {
            run: Value::Null,
            events: Vec::new(),
            text: String::new(),
            refusal: String::new(),
            message: Value::Null,
            call: 0,
        };
        while let Some(frame) = parser.next_frame().expect("short") {
            let name = str::from_utf8(frame.event).expect("text").to_owned();
            if !frame.is_done() {
                let data = serde_json::from_slice(frame.data).expect("JSON");
                schema::check_event(&name, &data);
                outcome.take(&name, data);
            }
            outcome.events.push(name);
        }
        assert_eq!(outcome.events.last().map(String::as_str), Some("done"));
        outcome
    }

    fn take(&mut self, name: &str, data: Value) {
        if name == "thread.message.delta" {
            for part in data["delta"]["content"].as_array().into_iter().flatten() {
                self.text += part["text"]["value"].as_str().unwrap_or_default();
                self.refusal += part["refusal"].as_str().unwrap_or_default();
            }
        } else if name == "thread.run.step.delta" {
            // The official clients take a piece of another call for the end of the one before.
            for call in data["delta"]["step_details"]["tool_calls"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let index = call["index"].as_i64().expect("an index");
                assert!(index >= self.call, "a piece of call {index} comes late");
                self.call = index;
            }
        } else if name.starts_with("thread.message.") {
            self.message = data;
        } else if name.starts_with("thread.run.") && !name.contains(".step.") {
            self.run = data;
        }
    }

    /// In one line: the state and why, what was said, what is to be called.
    pub(crate) fn line(&self) -> String {
        let mut line = self.run["status"].as_str().expect("a status").to_owned();
        let whys = [
            &self.run["last_error"]["code"],
            &self.run["incomplete_details"]["reason"],
            &self.message["incomplete_details"]["reason"],
        ];
        for why in whys.into_iter().filter_map(Value::as_str) {
            let _ = write!(line, " {why}");
        }
        if !self.text.is_empty() {
            let _ = write!(line, ", said {:?}", self.text);
        }
        if !self.refusal.is_empty() {
            let _ = write!(line, ", refused {:?}", self.refusal);
        }
        for call in calls(&self.run) {
            let function = &call["function"];
            let (name, arguments) = (function["name"].as_str(), function["arguments"].as_str());
            let call = name
                .zip(arguments)
                .expect("a function's name and arguments");
            let _ = write!(line, ", calls {}({})", call.0, call.1);
        }
        line
    }

    /// What the run failed with, in words.
    pub(crate) fn error(&self) -> &str {
        self.run["last_error"]["message"]
            .as_str()
            .unwrap_or_default()
    }
}

/// The calls that a run waits for.
pub(crate) fn calls(run: &Value) -> &[Value] {
    let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"].as_array();
    calls.map_or(&[], Vec::as_slice)
}

/// A thread and run that asks one thing, and more of its body.
pub(crate) fn asking(more: Value) -> Value {
    let question = json!({ "role": "user", "content": "What is the weather in Paris?" });
    let mut body = json!({ "assistant_id": "asst_embedded", "thread": { "messages": [question] } });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

/// Tools with these names.
pub(crate) fn tools(names: &[&str]) -> Value {
    let tool = |name: &&str| json!({ "type": "function", "function": { "name": name } });
    json!({ "tools": names.iter().map(tool).collect::<Vec<_>>() })
}

/// An event with these data.
pub(crate) fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// An event with a delta of the one choice.
pub(crate) fn delta(delta: &Value) -> String {
    event(
        &json!({ "object": "chat.completion.chunk", "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] }),
    )
}

pub(crate) fn text(text: &str) -> String {
    delta(&json!({ "content": text }))
}

/// An event with a piece of a call.
pub(crate) fn call(piece: &Value) -> String {
    delta(&json!({ "tool_calls": [piece] }))
}

/// The end for this reason, and the mark.
pub(crate) fn end(reason: &str) -> String {
    let last = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] });
    event(&last) + "data: [DONE]\n\n"
}
