//! Two gateways that share an event log: creates at the same time, on both.

use std::{collections::BTreeSet, sync::Arc};

use runs_gateway::v1::{
    ActiveRunPolicy, CreateRunRequest, RunEventType, StreamCreateRunRequest, StreamOptions,
    run_service_client::RunServiceClient,
};
use tokio::{sync::Notify, task::JoinSet};
use tokio_stream::StreamExt as _;
use tonic::{Code, transport::Channel};

use crate::{
    busy::is_full,
    calls::{Create, FAST, run, run_spec, verdict},
    model::{Fault, Model, text},
    repeats::made,
    support::{
        gateway::{Gateway, spawn_gateway},
        redis::Redis,
    },
};

const ALL: [Create; 8] = [
    Create::Run,
    Create::StreamRun,
    Create::Converse,
    Create::ThreadAndRun,
    Create::StreamThreadAndRun,
    Create::Message,
    Create::Assistant,
    Create::Thread,
];

/// A model, and two gateways before it that share a store.
struct Pair {
    model: Model,
    gateways: [Gateway; 2],
    redis: Redis,
}

impl Pair {
    /// `None` where no Redis is installed.
    async fn start(flags: &[&str]) -> Option<Self> {
        let redis = Redis::start().await?;
        let model = Model::start().await;
        let shared = redis.flags();
        let flags: Vec<_> = shared
            .iter()
            .map(String::as_str)
            .chain(FAST)
            .chain(flags.iter().copied())
            .collect();
        let url = model.upstream.url();
        let first = spawn_gateway(&url, &flags).await;
        let second = spawn_gateway(&url, &flags).await;
        Some(Self {
            model,
            gateways: [first, second],
            redis,
        })
    }

    fn channel(&self, number: usize) -> Channel {
        self.gateways[number % 2].channel()
    }

    async fn drain(self) {
        for gateway in self.gateways {
            gateway.drain().await;
        }
    }
}

/// While the first is at work: a repeat on the other replica has what it makes, another request is
/// told so.
#[tokio::test]
async fn a_repeat_elsewhere_joins_what_is_under_way() {
    for create in [
        Create::Run,
        Create::Message,
        Create::Assistant,
        Create::Thread,
    ] {
        let Some(pair) = Pair::start(&[]).await else {
            return;
        };
        let gate = Arc::new(Notify::new());
        pair.model.state().gate = Some(Arc::clone(&gate));
        let looks = usize::from(create != Create::Thread);
        let call = |number: usize, text: &'static str| {
            let channel = pair.channel(number);
            tokio::spawn(async move { create.call(channel, "id", text).await })
        };
        let first = call(0, "one");
        // The look, and the create.
        pair.model.upstream.wait_for_requests(looks + 1).await;
        let second = call(1, "one");
        pair.redis.somebody_waits().await;
        if create != Create::Thread {
            let other = call(0, "two").await.expect("no panic");
            let other = verdict(&other.expect_err("another request"));
            assert_eq!(other, (Code::AlreadyExists, "REQUEST_ID_USED".to_owned()));
        }
        assert_eq!(pair.model.upstream.requests().len(), looks + 1);
        gate.notify_one();
        let first = first.await.expect("no panic").expect("made");
        let second = second.await.expect("no panic").expect("joined");
        assert_eq!(first.id, second.id, "{create:?}");
        assert_eq!(made(&pair.model, create), 1, "{create:?}");
        // The other replica has only read it.
        let requests = pair.model.upstream.requests();
        let posts = requests.iter().filter(|it| it.method == "POST").count();
        assert_eq!((posts, requests.len()), (1, looks + 2), "{create:?}");
        if create != Create::Thread {
            let other = call(1, "two").await.expect("no panic");
            let other = verdict(&other.expect_err("another request"));
            assert_eq!(other, (Code::AlreadyExists, "REQUEST_ID_USED".to_owned()));
        }
        pair.drain().await;
    }
}

/// The first has begun to record it, or is about to.
#[tokio::test]
async fn repeats_of_a_stream_that_is_recorded_have_all_of_it() {
    let Some(pair) = Pair::start(&[]).await else {
        return;
    };
    let mut calls = JoinSet::new();
    for number in 0..20 {
        let mut runs = RunServiceClient::new(pair.channel(number));
        let request = StreamCreateRunRequest {
            thread_id: "thread_1".to_owned(),
            run: Some(run_spec("one")),
            request_id: "id".to_owned(),
            options: Some(StreamOptions {
                resumable: true,
                ..StreamOptions::default()
            }),
            ..StreamCreateRunRequest::default()
        };
        calls.spawn(async move {
            let events = runs.stream_create_run(request).await.expect("a stream");
            let events: Vec<_> = events.into_inner().collect().await;
            let events = events.into_iter().map(|it| it.expect("an event"));
            let facts = events.map(|it| (it.r#type(), it.position));
            facts.collect::<Vec<_>>()
        });
    }
    let seen = calls.join_all().await;
    let kinds: Vec<_> = seen[0].iter().map(|(kind, _)| *kind).collect();
    assert_eq!(
        kinds,
        [
            RunEventType::ThreadRunCreated,
            RunEventType::ThreadRunCompleted
        ]
    );
    assert!(seen.iter().all(|it| *it == seen[0]), "{seen:?}");
    assert_eq!(made(&pair.model, Create::StreamRun), 1);
    pair.drain().await;
}

/// What was not made is no repeat's: the next begins.
#[tokio::test]
async fn a_repeat_elsewhere_begins_when_the_first_has_failed() {
    for create in ALL {
        let Some(pair) = Pair::start(&[]).await else {
            return;
        };
        pair.model.fail([Fault::ErrorBefore(400)]);
        let refused = create.call(pair.channel(0), "id", "one").await;
        assert_eq!(
            refused.expect_err("refused").code(),
            Code::InvalidArgument,
            "{create:?}"
        );
        let got = create.call(pair.channel(1), "id", "one").await;
        got.unwrap_or_else(|status| panic!("{create:?}: {status:?}"));
        assert_eq!(made(&pair.model, create), 1, "{create:?}");
        pair.drain().await;
    }
}

/// Calls creates with these ids, half of them on each replica, all at once. Gives the ids of what
/// they have.
async fn at_once(
    pair: &Pair,
    create: Create,
    ids: impl Iterator<Item = usize>,
) -> BTreeSet<String> {
    let mut calls = JoinSet::new();
    for (number, id) in ids.enumerate() {
        let channel = pair.channel(number);
        calls.spawn(async move { create.call(channel, &format!("id {id}"), "one").await });
    }
    let calls = calls.join_all().await.into_iter();
    calls.map(|call| call.expect("made").id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_with_one_id_over_two_replicas_are_one_create() {
    for create in ALL {
        let Some(pair) = Pair::start(&[]).await else {
            return;
        };
        let got = at_once(&pair, create, (0..1000).map(|_| 1)).await;
        println!(
            "{create:?}: {} made, {} known",
            made(&pair.model, create),
            got.len()
        );
        assert_eq!((got.len(), made(&pair.model, create)), (1, 1), "{create:?}");
        pair.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_ids_over_two_replicas_are_a_thousand_creates() {
    for create in [Create::ThreadAndRun, Create::Message] {
        let Some(pair) = Pair::start(&[]).await else {
            return;
        };
        let got = at_once(&pair, create, 0..1000).await;
        println!(
            "{create:?}: {} made, {} known",
            made(&pair.model, create),
            got.len()
        );
        assert_eq!(
            (got.len(), made(&pair.model, create)),
            (1000, 1000),
            "{create:?}"
        );
        pair.drain().await;
    }
}

/// Creates that wait, `count` on each replica, in the order of their numbers there.
fn waiting(pair: &Pair, count: usize, request_id: bool) -> JoinSet<(usize, bool)> {
    let mut calls = JoinSet::new();
    for number in 0..2 * count {
        let mut runs = RunServiceClient::new(pair.channel(number));
        let text = format!("{number:03}");
        let id = if request_id { &*text } else { "" };
        let request = CreateRunRequest {
            on_active_run: ActiveRunPolicy::Wait.into(),
            ..run(id, &text)
        };
        calls.spawn(async move {
            loop {
                match runs.create_run(request.clone()).await {
                    // Those that have left are not gone yet.
                    Err(status) if status.code() == Code::Unavailable => {}
                    answered => break (number, answered.is_ok()),
                }
            }
        });
    }
    calls
}

/// The numbers of the runs that were made on a thread, in their order. None was ever active beside
/// another one: the model refuses that.
fn order(model: &Model) -> Vec<usize> {
    let state = model.state();
    let runs = state.runs["thread_1"].iter();
    runs.map(|run| text(&run["metadata"]["text"]).parse().expect("a number"))
        .collect()
}

#[tokio::test]
async fn a_hundred_creates_that_wait_on_two_replicas_are_all_made_in_order_on_each() {
    for request_id in [false, true] {
        let Some(pair) = Pair::start(&[]).await else {
            return;
        };
        let calls = waiting(&pair, 50, request_id).join_all().await;
        assert!(calls.iter().all(|(_, is_made)| *is_made));
        let order = order(&pair.model);
        let refused = pair.model.state().refused;
        println!(
            "request_id: {request_id}: {} made, {refused} refused meanwhile",
            order.len()
        );
        assert_eq!(order.len(), 100);
        for replica in 0..2 {
            let of_replica = order.iter().filter(|number| *number % 2 == replica);
            assert!(of_replica.is_sorted(), "{order:?}");
        }
        pair.drain().await;
    }
}

#[tokio::test]
async fn callers_that_leave_keep_no_place_on_either_replica() {
    for request_id in [false, true] {
        let flags = ["--active-run-queue", "24"];
        let Some(pair) = Pair::start(&flags).await else {
            return;
        };
        let active = pair.model.state().begin_run("thread_1");
        pair.model.state().polls = usize::MAX;
        for _ in 0..2 {
            // As many as there are places: one at work, and those that wait.
            let mut calls = waiting(&pair, 25, request_id);
            for gateway in &pair.gateways {
                is_full(gateway).await;
            }
            calls.abort_all();
            while calls.join_next().await.is_some() {}
        }
        let mut calls = waiting(&pair, 25, request_id);
        pair.model.state().polls = 1;
        pair.model.state().set("thread_1", &active, "completed");
        let mut made = 0;
        while let Some(call) = calls.join_next().await {
            made += usize::from(call.expect("no panic").1);
        }
        println!("request_id: {request_id}: {made} of 50 made after 100 have left");
        assert_eq!(made, 50);
        pair.drain().await;
    }
}
