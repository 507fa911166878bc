//! A server and a client of it, with a clock that the test moves.

use std::{io, time::Duration};

use reqwest::{Method, Response, header::HeaderMap};
use runs_gateway::embedded::{self, Clock, Limits, ManualClock};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::schema;

/// How long a run stays in a state before it is moved on, unless its metadata says otherwise.
pub(crate) const STEP: Duration = Duration::from_millis(15);

/// The embedded API, stopped when dropped.
pub(crate) struct Embedded {
    pub(crate) url: String,
    client: reqwest::Client,
    hand: Option<ManualClock>,
    stop: Option<DropGuard>,
    served: JoinHandle<io::Result<()>>,
}

/// An answer with a JSON body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Embedded {
    /// With a clock that stands still.
    pub(crate) async fn still() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let (clock, hand) = Clock::by_hand(Duration::from_secs(1_750_000_000));
        Self::start(limits, clock, Some(hand)).await
    }

    /// With the machine's clock.
    pub(crate) async fn running() -> Self {
        Self::start(Limits::default(), Clock::real(), None).await
    }

    async fn start(limits: Limits, clock: Clock, hand: Option<ManualClock>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let stop = CancellationToken::new();
        let served = tokio::spawn(embedded::serve(listener, limits, clock, stop.clone()));
        // Set once; later attempts find it set.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client without surprises");
        Self {
            url,
            client,
            hand,
            stop: Some(stop.drop_guard()),
            served,
        }
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.hand
            .as_ref()
            .expect("the clock is moved by hand")
            .advance(by);
    }

    /// Asks the server to stop.
    pub(crate) fn stop(&mut self) {
        self.stop = None;
    }

    /// Waits until the server has stopped.
    pub(crate) async fn stopped(self) {
        let served = tokio::time::timeout(Duration::from_secs(10), self.served).await;
        served
            .expect("it stops")
            .expect("it does not panic")
            .expect("it served");
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> Response {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = self
            .client
            .request(method, format!("{}{path}", self.url))
            .body(body);
        request
            .header("content-type", "application/json")
            .send()
            .await
            .expect("the server answers")
    }

    /// Sends a request and holds the answer to the schema.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Value) -> Answer {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let response = self.send(method, path, text).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        assert_eq!(
            headers["content-type"], "application/json",
            "{method} {path}"
        );
        assert!(headers["x-request-id"].len() == 28, "{method} {path}");
        let body = serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON");
        // What the API does not have, the schema does not know.
        if !path.contains("/nonsense") {
            schema::check_answer(method, path, status, &body);
        }
        Answer {
            status,
            headers,
            body,
        }
    }

    /// Sends a request that must succeed.
    pub(crate) async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.ask(method, path, body).await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        answer.body
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.ok("GET", path, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.ok("POST", path, body).await
    }

    /// Makes a thread where the user has said something, and gives its path.
    pub(crate) async fn thread(&self) -> String {
        let message = json!({ "role": "user", "content": "What is the weather in Paris?" });
        let thread = self
            .post("/threads", json!({ "messages": [message] }))
            .await;
        format!("/threads/{}", text(&thread["id"]))
    }

    /// Makes a run on a thread, and gives its path.
    pub(crate) async fn run(&self, thread: &str, more: Value) -> String {
        let run = self.post(&format!("{thread}/runs"), spec(more)).await;
        format!("{thread}/runs/{}", text(&run["id"]))
    }

    /// Waits until the run at `path` is in another state than `before`. The clock has been moved:
    /// it only has to be noticed.
    pub(crate) async fn changed(&self, path: &str, before: &str) -> Value {
        let look = async {
            loop {
                let run = self.get(path).await;
                if run["status"] != before {
                    return run;
                }
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), look).await;
        waited.unwrap_or_else(|_| panic!("{path} is still {before}"))
    }

    /// Moves the clock by one step, and waits until the run at `path` is in another state.
    pub(crate) async fn step(&self, path: &str) -> Value {
        let before = self.get(path).await;
        self.advance(STEP);
        self.changed(path, text(&before["status"])).await
    }

    /// Moves the clock until the run at `path` is in the given state.
    pub(crate) async fn until(&self, path: &str, status: &str) -> Value {
        loop {
            let run = self.get(path).await;
            if run["status"] == status {
                return run;
            }
            assert!(
                matches!(
                    text(&run["status"]),
                    "queued" | "in_progress" | "cancelling"
                ),
                "never {status}: {run}"
            );
            self.step(path).await;
        }
    }
}

/// A run by the assistant that is always there, and more of its body.
pub(crate) fn spec(more: Value) -> Value {
    let mut spec = json!({ "assistant_id": embedded::ASSISTANT });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

/// A run's body with a function tool.
pub(crate) fn weather(more: Value) -> Value {
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "type": "string" }, "days": { "type": "integer", "minimum": 1, "maximum": 7 } },
        "required": ["city"],
    });
    let mut spec = json!({
        "tools": [{ "type": "function", "function": { "name": "get_weather", "parameters": parameters } }],
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

/// The body that answers all calls that `run` waits for.
pub(crate) fn outputs(run: &Value) -> Value {
    let calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        .as_array()
        .expect("the run waits");
    let outputs = calls.iter().enumerate();
    let outputs: Vec<Value> = outputs
        .map(|(at, call)| json!({ "tool_call_id": call["id"], "output": format!("output {at}") }))
        .collect();
    json!({ "tool_outputs": outputs })
}

pub(crate) fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not text"))
}
