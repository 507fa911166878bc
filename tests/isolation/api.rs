//! An upstream that keeps threads and assistants with their metadata, and answers all that is asked
//! of a thread that is there. Its runs are over when they are seen.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use serde_json::{Map, Value, json};

use crate::support::upstream::{Answer, Recorded, Upstream};

/// What the upstream holds, by path: such as `/threads/thread_1`.
#[derive(Default)]
pub(crate) struct Store {
    resources: Mutex<BTreeMap<String, Map<String, Value>>>,
    made: Mutex<usize>,
}

impl Store {
    pub(crate) async fn upstream() -> (Arc<Self>, Upstream) {
        let store = Arc::new(Self::default());
        let answering = Arc::clone(&store);
        let upstream = Upstream::answering(move |request| answering.answer(request)).await;
        (store, upstream)
    }

    pub(crate) fn resources(&self) -> MutexGuard<'_, BTreeMap<String, Map<String, Value>>> {
        self.resources.lock().expect("never held over a panic")
    }

    /// The metadata of what is at this path.
    pub(crate) fn metadata(&self, path: &str) -> Value {
        self.resources()[path]["metadata"].clone()
    }

    /// Puts something there, as if somebody had made it who does not come through the gateway.
    #[expect(clippy::needless_pass_by_value, reason = "it is made in place")]
    pub(crate) fn put(&self, path: &str, metadata: Value) {
        let id = path.rsplit('/').next().expect("an id");
        let object = if path.starts_with("/threads") {
            "thread"
        } else {
            "assistant"
        };
        let resource = json!({"id": id, "object": object, "created_at": 1, "metadata": metadata});
        let Value::Object(resource) = resource else {
            unreachable!("it is an object")
        };
        self.resources().insert(path.to_owned(), resource);
    }

    fn make(&self, kind: &str, metadata: &Value) -> Map<String, Value> {
        let mut made = self.made.lock().expect("never held over a panic");
        *made += 1;
        let path = format!("/{kind}s/{kind}_{:03}", *made);
        let metadata = if metadata.is_null() {
            json!({})
        } else {
            metadata.clone()
        };
        self.put(&path, metadata);
        self.resources()[&path].clone()
    }

    fn answer(&self, request: &Recorded) -> Answer {
        let path = request.target.split('?').next().expect("a path");
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let segments: Vec<_> = path.split('/').skip(1).collect();
        match (&*request.method, &*segments) {
            ("POST", ["threads"]) => ok(&self.make("thread", &body["metadata"]).into()),
            ("POST", ["assistants"]) => ok(&self.make("assistant", &body["metadata"]).into()),
            ("POST", ["threads", "runs"]) => {
                let thread = self.make("thread", &body["thread"]["metadata"]);
                self.run(&thread.into(), &body, true)
            }
            ("GET", ["assistants"]) => {
                let all = self.resources();
                let assistants = all
                    .iter()
                    .filter(|(path, _)| path.starts_with("/assistants/"));
                let after = parameter(&request.target, "after");
                let all: Vec<_> = assistants
                    .map(|(_, it)| it.clone())
                    .filter(|it| after.is_none_or(|after| it["id"].as_str() > Some(after)))
                    .collect();
                let limit = parameter(&request.target, "limit")
                    .map_or(20, |it| it.parse().expect("a number"));
                // Pages are short, so that there are several.
                let page: Vec<_> = all.iter().take(limit.min(3)).cloned().collect();
                let has_more = page.len() < all.len();
                ok(&json!({"object": "list", "data": page, "has_more": has_more}))
            }
            (method, [kind, id, rest @ ..]) => {
                let own = format!("/{kind}/{id}");
                let Some(resource) = self.resources().get(&own).cloned() else {
                    let message = format!("No {kind} found, says the upstream, with id '{id}'.");
                    let error = json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": null}});
                    return Answer::json(404, error.to_string()).header("x-request-id", "req_404");
                };
                match (method, rest) {
                    ("GET", []) => ok(&resource.into()),
                    ("POST", []) => {
                        if let Some(metadata) = body.get("metadata") {
                            self.put(&own, metadata.clone());
                        }
                        ok(&self.resources()[&own].clone().into())
                    }
                    ("DELETE", []) => {
                        self.resources().remove(&own);
                        ok(&json!({"id": id, "object": "thread.deleted", "deleted": true}))
                    }
                    ("POST", ["runs"]) => self.run(&resource.into(), &body, false),
                    ("POST", ["runs", _, "submit_tool_outputs"]) => {
                        self.run(&resource.into(), &body, false)
                    }
                    ("DELETE", [.., one]) => {
                        ok(&json!({"id": one, "object": "thread.message.deleted", "deleted": true}))
                    }
                    ("POST", ["messages"]) => {
                        ok(&json!({"id": "message_1", "object": "thread.message", "thread_id": id}))
                    }
                    ("GET", ["runs" | "messages"] | ["runs", _, "steps"]) => {
                        ok(&json!({"object": "list", "data": [], "has_more": false}))
                    }
                    (_, ["runs", run] | ["runs", run, "cancel"]) => ok(&run_json(id, run)),
                    (_, [.., one]) => ok(&json!({"id": one, "thread_id": id})),
                    _ => panic!("{method} {path}"),
                }
            }
            _ => panic!("{} {path}", request.method),
        }
    }

    /// A run that is over at once, as a stream if that is asked for.
    #[expect(clippy::unused_self, reason = "it answers for the store")]
    fn run(&self, thread: &Value, body: &Value, is_new: bool) -> Answer {
        let run = run_json(thread["id"].as_str().expect("an id"), "run_1");
        if body["stream"] != true {
            return ok(&run);
        }
        let event = |name: &str, data: &Value| format!("event: {name}\ndata: {data}\n\n");
        let created = is_new.then(|| event("thread.created", thread));
        // An event that nobody knows shows the thread, too.
        let unknown = event("thread.renamed", &json!({"thread": thread, "x": 1}));
        let rest = [
            unknown,
            event("thread.run.completed", &run),
            "event: done\ndata: [DONE]\n\n".to_owned(),
        ];
        Answer::sse(created.into_iter().chain(rest))
    }
}

fn ok(value: &Value) -> Answer {
    Answer::json(200, value.to_string())
}

fn run_json(thread: &str, run: &str) -> Value {
    json!({"id": run, "object": "thread.run", "thread_id": thread, "status": "completed", "created_at": 1,
        // Later than any test: it counts as a run that has just ended.
        "completed_at": 4_102_444_800_i64, "model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}})
}

fn parameter<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(own, _)| *own == name)
        .map(|(_, value)| value)
        .next()
}
