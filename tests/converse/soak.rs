//! Two hundred conversations at once with the embedded API, through a proxy that breaks connections
//! at random: each one ends completed, or with an error that says how to resume, and resuming
//! completes it. No run is created twice, and no outputs are submitted that it did not ask for.
//!
//! `RUNS_GATEWAY_SOAK_SECONDS` says how long conversations are begun (5 if not set),
//! `RUNS_GATEWAY_SOAK_SEED` what breaks.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reqwest::Method;
use runs_gateway::{
    conversation::Conversation,
    v1::{ConverseAttach, Run, RunStatus},
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, Status};

use crate::{
    embedded::{Api, on_thread},
    harness::error_info,
    support::{
        faults::Faults,
        gateway::{Gateway, spawn_gateway},
    },
};

const AT_ONCE: usize = 200;

/// Short times, so that much breaks in a short soak.
const FLAGS: &str = "--poll-floor 20ms --poll-ceiling 500ms --poll-rate 2000 --poll-failure-timeout 100ms \
    --answer-timeout 1s --stream-idle-timeout 700ms --done-timeout 300ms";

/// What became of the conversations.
#[derive(Debug, Default)]
struct Counts {
    completed: AtomicUsize,
    /// Errors that said how to resume.
    resumed: AtomicUsize,
    /// Creates that did not happen.
    not_created: AtomicUsize,
    /// Creates that were not known to have happened.
    looked_up: AtomicUsize,
}

struct World {
    api: Api,
    http: reqwest::Client,
    gateway: Gateway,
    counts: Counts,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_outlive_a_bad_network() {
    let number = |name: &str| {
        env::var(name).ok().map(|text| {
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name}: no number"))
        })
    };
    let seconds = number("RUNS_GATEWAY_SOAK_SECONDS").unwrap_or(5);
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| u64::from(time.subsec_nanos()))
    };
    let seed = number("RUNS_GATEWAY_SOAK_SEED").unwrap_or_else(clock);
    println!("RUNS_GATEWAY_SOAK_SEED={seed}");

    let api = Api::start().await;
    let faults = Faults::before(api.address, seed).await;
    let gateway = spawn_gateway(&faults.url(), &FLAGS.split_whitespace().collect::<Vec<_>>()).await;
    let http = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let world = Arc::new(World {
        api,
        http,
        gateway,
        counts: Counts::default(),
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (world, next) = (Arc::clone(&world), Arc::clone(&next));
        callers.spawn(async move {
            while Instant::now() < until {
                world.converse(next.fetch_add(1, Ordering::Relaxed)).await;
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap_or_else(|panic| panic!("with seed {seed}: {panic}"));
    }
    println!("{:?}, {} faults", world.counts, faults.injected());
    assert!(faults.injected() > 0, "the network was too good");
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    assert!(
        count(&world.counts.completed) > count(&world.counts.not_created),
        "hardly anything could be done"
    );
    Arc::into_inner(world)
        .expect("all callers have ended")
        .gateway
        .drain()
        .await;
}

impl World {
    /// One conversation, from its thread to the look at what is left.
    async fn converse(&self, number: u64) {
        let pick = |of: u64| usize::try_from(number % of).expect("small");
        let (rounds, calls) = (pick(4), 1 + pick(3));
        let question =
            json!({ "messages": [{ "role": "user", "content": "What is the weather in Paris?" }] });
        let thread = self.ask(Method::POST, "/threads", question).await;
        let thread = thread["id"].as_str().expect("an id");

        let called = Arc::new(AtomicUsize::new(0));
        let function = |name: &'static str| {
            let called = Arc::clone(&called);
            move |arguments: String| {
                called.fetch_add(1, Ordering::Relaxed);
                async move { format!("{number} {name} {arguments}") }
            }
        };
        let mut conversation = Conversation::new(self.gateway.runs())
            .tool("get_weather", function("get_weather"))
            .tool("get_time", function("get_time"));
        // Every other one leaves it to this test to take up what broke.
        let takes_up = number.is_multiple_of(2);
        if !takes_up {
            conversation.resumes = 0;
        }
        let mut ended = conversation
            .start(on_thread(thread, rounds, calls), |_| ())
            .await;
        let first = ended.is_ok();
        let mut attempts = 0;
        let run = loop {
            let status = match ended {
                Ok(run) => break run,
                Err(status) => status,
            };
            attempts += 1;
            assert!(
                attempts < 50,
                "conversation {number} cannot be resumed: {status:?}"
            );
            let Some(attach) = self.how_to_resume(thread, &status).await else {
                return;
            };
            ended = conversation.attach(attach, |_| ()).await;
        };
        assert_eq!(
            run.status(),
            RunStatus::Completed,
            "conversation {number}: {:?}",
            run.last_error
        );
        if first && (takes_up || rounds == 0) {
            assert_eq!(
                called.load(Ordering::Relaxed),
                rounds * calls,
                "conversation {number}: each call once"
            );
        }
        self.look_over(number, thread, &run, rounds * calls).await;
        self.counts.completed.fetch_add(1, Ordering::Relaxed);
    }

    /// What the error says; `None` if there is no run.
    async fn how_to_resume(&self, thread: &str, status: &Status) -> Option<ConverseAttach> {
        let resumable = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::DeadlineExceeded
        );
        assert!(resumable, "{status:?}");
        let (reason, info) = error_info(status);
        let attach = |run_id: &str| {
            Some(ConverseAttach {
                thread_id: thread.to_owned(),
                run_id: run_id.to_owned(),
                options: None,
                ..ConverseAttach::default()
            })
        };
        if let Some(run_id) = info.get("run_id") {
            assert_eq!(info["thread_id"], thread);
            self.counts.resumed.fetch_add(1, Ordering::Relaxed);
            return attach(run_id);
        }
        // The create failed: if its outcome is not known, the caller is told to look.
        let runs = self
            .ask(Method::GET, &format!("/threads/{thread}/runs"), Value::Null)
            .await;
        let run = runs["data"].as_array().expect("a list").first();
        let Some(run) = run else {
            self.counts.not_created.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        assert_eq!(
            (status.code(), &*reason),
            (Code::Unknown, "OUTCOME_UNKNOWN"),
            "but the run was created: {status:?}"
        );
        self.counts.looked_up.fetch_add(1, Ordering::Relaxed);
        attach(run["id"].as_str().expect("an id"))
    }

    /// There is one run, and each of its calls has the output that belongs to it.
    async fn look_over(&self, number: u64, thread: &str, run: &Run, calls: usize) {
        let runs = self
            .ask(Method::GET, &format!("/threads/{thread}/runs"), Value::Null)
            .await;
        let runs: Vec<_> = runs["data"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|run| run["id"].clone())
            .collect();
        assert_eq!(runs, [run.id.as_str()], "conversation {number}: one run");
        let steps = self
            .ask(
                Method::GET,
                &format!("/threads/{thread}/runs/{}/steps?limit=100", run.id),
                Value::Null,
            )
            .await;
        let steps = steps["data"].as_array().expect("a list");
        let functions: Vec<_> = steps
            .iter()
            .filter_map(|step| step["step_details"]["tool_calls"].as_array())
            .flatten()
            .map(|it| &it["function"])
            .collect();
        assert_eq!(functions.len(), calls, "conversation {number}");
        for function in functions {
            let [name, arguments, output] = ["name", "arguments", "output"]
                .map(|member| function[member].as_str().expect("text"));
            assert_eq!(output, format!("{number} {name} {arguments}"));
        }
        self.ask(Method::DELETE, &format!("/threads/{thread}"), Value::Null)
            .await;
    }

    /// Asks the API itself, where nothing is broken.
    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = self
            .http
            .request(method, self.api.url() + path)
            .header("content-type", "application/json")
            .body(body);
        let response = request.send().await.expect("an answer");
        assert!(
            response.status().is_success(),
            "{path}: {}",
            response.status()
        );
        serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON")
    }
}
