//! Gateways that are killed, paused, or cut off from the store in the middle of a create, with and
//! without a shared event log.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tonic::Code;

use crate::{
    calls::{Create, FAST, LISTED},
    model::{Fault, Model},
    repeats::made,
    support::{program::Running, redis::Redis},
};

/// Every create, with as many as there are of what it makes in the end: if the gateway was killed
/// before the create was done, after it, and after it where replicas share no event log.
///
/// What cannot be looked for is made again, unless another replica remembers where to look.
const ALL: [(Create, [usize; 3]); 8] = [
    (Create::Run, [1, 1, 1]),
    (Create::StreamRun, [1, 1, 1]),
    (Create::Converse, [1, 1, 1]),
    (Create::ThreadAndRun, [1, 1, 2]),
    (Create::StreamThreadAndRun, [1, 1, 2]),
    (Create::Message, [1, 1, 1]),
    (Create::Assistant, [1, 1, 1]),
    (Create::Thread, [1, 2, 2]),
];

/// A gateway as a process, which others take for dead soon.
pub(crate) async fn start(model: &Model, redis: Option<&Redis>) -> Running {
    let url = model.upstream.url();
    let shared = redis.map(Redis::flags);
    let mut flags = vec!["--upstream-url", &url, "--event-log-lease", "500ms"];
    flags.extend(["--max-retries", "0"]);
    flags.extend(FAST);
    flags.extend(shared.iter().flatten().map(String::as_str));
    Running::start(&flags).await
}

/// Waits until something holds, which has to be soon.
pub(crate) async fn soon(what: &str, holds: impl Fn() -> bool) {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let held = tokio::time::timeout(Duration::from_secs(20), held).await;
    held.unwrap_or_else(|_| panic!("should have been by now: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_killed_in_a_create_leaves_it_to_the_next() {
    for is_shared in [true, false] {
        let redis = if is_shared {
            Redis::start().await
        } else {
            None
        };
        if is_shared && redis.is_none() {
            continue;
        }
        for (create, [before, after, after_alone]) in ALL {
            for (fault, expected) in [
                (Fault::HeldBefore, before),
                (
                    Fault::HeldAfter,
                    if is_shared { after } else { after_alone },
                ),
            ] {
                let case = format!("{create:?}, {fault:?}, shared log: {is_shared}");
                let model = Model::start().await;
                if matches!(create, Create::ThreadAndRun | Create::StreamThreadAndRun) {
                    model.fail([Fault::None]);
                }
                model.fail([fault]);
                let first = start(&model, redis.as_ref()).await;
                let second = start(&model, redis.as_ref()).await;
                let channel = first.channel.clone();
                // Each case is another create.
                let id = format!("{create:?} {fault:?}");
                let called = tokio::spawn({
                    let id = id.clone();
                    async move { create.call(channel, &id, "one").await }
                });
                soon(&case, || model.state().held == 1).await;
                first.stop("-9").await;
                let lost = called.await.expect("no panic").expect_err(&case);
                let again = create.call(second.channel.clone(), &id, "one").await;
                let again = again.unwrap_or_else(|status| panic!("{case}: {status:?}"));
                println!(
                    "{case}: {} made, the first call {:?}, its repeat OK",
                    made(&model, create),
                    lost.code()
                );
                assert_eq!(made(&model, create), expected, "{case}");
                assert!(matches!(lost.code(), Code::Unavailable | Code::Unknown));
                let third = create.call(second.channel.clone(), &id, "one").await;
                let third = third.unwrap_or_else(|status| panic!("{case}: {status:?}"));
                assert_eq!(third.id, again.id, "{case}");
                assert_eq!(made(&model, create), expected, "{case}");
                second.stop("-9").await;
            }
        }
    }
}

/// However long it lasts; and who waits for it elsewhere may leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_lasts_longer_than_a_lease_is_joined_all_the_same() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let model = Model::start().await;
    let gate = Arc::new(Notify::new());
    model.state().gate = Some(Arc::clone(&gate));
    let first = start(&model, Some(&redis)).await;
    let second = start(&model, Some(&redis)).await;
    let call = |gateway: &Running, id: &'static str| {
        let channel = gateway.channel.clone();
        tokio::spawn(async move { Create::Message.call(channel, id, "one").await })
    };
    let made = call(&first, "id");
    // The look, and the create.
    model.upstream.wait_for_requests(2).await;
    let [joined, leaves] = [call(&second, "id"), call(&second, "id")];
    // Four leases.
    tokio::time::sleep(Duration::from_secs(2)).await;
    leaves.abort();
    assert_eq!(model.upstream.requests().len(), 2);
    gate.notify_one();
    let made = made.await.expect("no panic").expect("made");
    let joined = joined.await.expect("no panic").expect("joined");
    assert_eq!(made.id, joined.id);
    assert_eq!(model.count("POST", "/messages"), 1);

    // With nobody left, nothing waits: the gateway ends at once.
    model.state().gate = None;
    model.fail([Fault::HeldAfter]);
    let held = call(&first, "held");
    soon("held", || model.state().held == 1).await;
    let leaves = call(&second, "held");
    redis.somebody_waits().await;
    leaves.abort();
    let ended = tokio::time::timeout(Duration::from_secs(5), second.stop("-TERM")).await;
    ended.expect("it waits for nobody");
    held.abort();
    first.stop("-9").await;
}

/// It has looked before it was paused, and finds by the store that its look is out of date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_paused_for_longer_than_its_lease_creates_nothing() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let model = Model::start().await;
    let gate = Arc::new(Notify::new());
    model.state().late_list = Some(Arc::clone(&gate));
    let first = start(&model, Some(&redis)).await;
    let second = start(&model, Some(&redis)).await;
    let channel = first.channel.clone();
    let called = tokio::spawn(async move { Create::Run.call(channel, "id", "one").await });
    model.upstream.wait_for_requests(1).await;
    first.signal("-STOP");
    gate.notify_one();
    let made_by_second = Create::Run.call(second.channel.clone(), "id", "one").await;
    let made_by_second = made_by_second.expect("made once the lease was over");
    first.signal("-CONT");
    let got = called.await.expect("no panic").expect("what was made");
    assert_eq!(got.id, made_by_second.id);
    assert_eq!(made(&model, Create::Run), 1);
    assert_eq!(model.count("POST", "/runs"), 1);
    first.stop("-9").await;
    second.stop("-9").await;
}

/// The mark tells, as on one replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_go_on_by_their_marks_while_the_store_is_away() {
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let model = Model::start().await;
    let first = start(&model, Some(&redis)).await;
    let second = start(&model, Some(&redis)).await;
    redis.kill();
    let mut calls = 0;
    for create in LISTED {
        let mut ids = Vec::new();
        for gateway in [&first, &second] {
            let got = create.call(gateway.channel.clone(), "id", "one").await;
            ids.push(
                got.unwrap_or_else(|status| panic!("{create:?}: {status:?}"))
                    .id,
            );
            calls += 1;
        }
        assert_eq!(ids[0], ids[1], "{create:?}");
        assert_eq!(made(&model, create), 1, "{create:?}");
        for run in model.state().runs.get_mut("thread_1").expect("a thread") {
            run["metadata"]["runs_gateway_request_id"] = "of another create".into();
        }
        model
            .state()
            .runs
            .get_mut("thread_1")
            .expect("a thread")
            .clear();
    }
    let mut failures = 0;
    for gateway in [first, second] {
        let (_, metrics) = gateway.ask_admin("/metrics").await;
        let name = "runs_gateway_request_id_store_failures_total ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        failures += line.expect("a metric").parse::<usize>().expect("a number");
        let (_, log) = gateway.stop("-9").await;
        let lines = log.matches("goes on without other replicas").count();
        // One a second at most.
        assert!((1..=calls).contains(&lines), "{lines} lines");
    }
    assert!(failures >= calls, "{failures} failures of {calls} calls");
}
