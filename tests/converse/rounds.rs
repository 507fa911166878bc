//! Conversations that go well: given when and how a caller gives its outputs, the upstream gets
//! those of each round once, all together, in the run's order, and the caller sees one sequence of
//! events.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    harness::{Caller, DONE, Outputs, Script, asks, completes, outputs, run, start, state},
    support::{gateway::spawn_gateway, upstream::Answer},
};

/// A round: what is said while the run works, what it then asks for with the outputs that are to be
/// submitted, and what is said after that.
struct Round<'a> {
    before: &'a [Outputs<'a>],
    asks: Outputs<'a>,
    after: &'a [Outputs<'a>],
}

const A: (&str, &str) = ("a", "1");
const B: (&str, &str) = ("b", "2");
const C: (&str, &str) = ("c", "3");
const D: (&str, &str) = ("d", "");

/// What a submit must look like.
fn body(calls: Outputs) -> Value {
    let outputs: Vec<_> = calls
        .iter()
        .map(|(id, output)| json!({ "tool_call_id": id, "output": output }))
        .collect();
    json!({ "tool_outputs": outputs, "stream": true })
}

#[tokio::test]
async fn outputs_may_be_given_in_any_way() {
    let rows: Vec<(&str, Vec<Round>)> = vec![
        ("no round", vec![]),
        (
            "one round",
            vec![Round {
                before: &[],
                asks: &[A],
                after: &[&[A]],
            }],
        ),
        (
            "three rounds, parallel calls",
            vec![
                Round {
                    before: &[],
                    asks: &[A, B],
                    after: &[&[A, B]],
                },
                Round {
                    before: &[],
                    asks: &[C],
                    after: &[&[C]],
                },
                Round {
                    before: &[],
                    asks: &[D, ("e", "4"), ("f", "5")],
                    after: &[&[D, ("e", "4"), ("f", "5")]],
                },
            ],
        ),
        (
            "one by one, out of order",
            vec![Round {
                before: &[],
                asks: &[A, B, C],
                after: &[&[C], &[A], &[B]],
            }],
        ),
        (
            "together, out of order",
            vec![Round {
                before: &[],
                asks: &[A, B, C],
                after: &[&[C, B, A]],
            }],
        ),
        (
            "before they are asked for",
            vec![Round {
                before: &[&[B], &[A]],
                asks: &[A, B],
                after: &[],
            }],
        ),
        (
            "some before, some after",
            vec![Round {
                before: &[&[B]],
                asks: &[A, B],
                after: &[&[A]],
            }],
        ),
        (
            "before, in the second round",
            vec![
                Round {
                    before: &[],
                    asks: &[A],
                    after: &[&[A]],
                },
                Round {
                    before: &[&[C, B]],
                    asks: &[B, C],
                    after: &[],
                },
            ],
        ),
        (
            "repeated before they are asked for",
            vec![Round {
                before: &[&[A, A], &[A]],
                asks: &[A, B],
                after: &[&[B]],
            }],
        ),
        (
            "repeated before the submit",
            vec![Round {
                before: &[],
                asks: &[A, B],
                after: &[&[A], &[A, A], &[A, B]],
            }],
        ),
        (
            "repeated after the submit, and in the next round",
            vec![
                Round {
                    before: &[],
                    asks: &[A],
                    after: &[&[A]],
                },
                Round {
                    before: &[&[A]],
                    asks: &[B],
                    after: &[&[A], &[A, B]],
                },
            ],
        ),
        (
            "calls counted anew in each round",
            vec![
                Round {
                    before: &[],
                    asks: &[A, B],
                    after: &[&[A, B]],
                },
                Round {
                    before: &[],
                    asks: &[("a", "7"), ("b", "8")],
                    after: &[&[("b", "8")], &[("a", "7")]],
                },
            ],
        ),
    ];
    for (name, rounds) in rows {
        converse(name, &rounds).await;
    }
}

async fn converse(name: &str, rounds: &[Round<'_>]) {
    let go = Arc::new(Notify::new());
    let works = || Answer::sse([state("queued", &[]), state("in_progress", &[])]).wait(&go);
    let mut posts = Vec::new();
    for round in rounds {
        let calls: Vec<_> = round.asks.iter().map(|(id, _)| *id).collect();
        posts.push((
            works().bytes(state("requires_action", &calls)).bytes(DONE),
            run("requires_action", &calls),
        ));
    }
    posts.push((
        works().bytes(state("completed", &[])).bytes(DONE),
        run("completed", &[]),
    ));
    let script = Script::new(posts).await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;

    let mut caller = Caller::start(&gateway).await;
    for round in rounds {
        caller.until("run_in_progress").await;
        if !round.before.is_empty() {
            round
                .before
                .iter()
                .for_each(|said| caller.say(outputs(said)));
            caller.heard(&script, &gateway).await;
        }
        go.notify_one();
        caller.until("run_requires_action").await;
        round
            .after
            .iter()
            .for_each(|said| caller.say(outputs(said)));
    }
    caller.until("run_in_progress").await;
    go.notify_one();
    let (events, end) = caller.rest().await;
    assert!(end.is_ok(), "{name}: {end:?}");
    assert_eq!(events, ["run_completed", "done"], "{name}");
    assert_eq!(
        script.submits(),
        rounds
            .iter()
            .map(|round| body(round.asks))
            .collect::<Vec<_>>(),
        "{name}"
    );
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn the_events_of_all_rounds_are_one_sequence_and_done_is_its_end() {
    let script = Script::new([
        (asks(&["a"]), run("requires_action", &["a"])),
        (asks(&["b"]), run("requires_action", &["b"])),
        (completes(), run("completed", &[])),
    ])
    .await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
    let mut caller = Caller::start(&gateway).await;
    caller.say(outputs(&[("a", "1")]));
    caller.until("run_requires_action").await;
    caller.say(outputs(&[("b", "2")]));
    let (events, end) = caller.rest().await;
    assert!(end.is_ok(), "{end:?}");
    let round = ["run_queued", "run_in_progress", "run_requires_action"];
    assert_eq!(
        events,
        [&round[..], &["run_in_progress", "run_completed", "done"]].concat()
    );
    let create = &script.upstream.requests()[0];
    assert_eq!(create.target, "/threads/thread_1/runs");
    assert_eq!(create.text(), r#"{"assistant_id":"asst_1","stream":true}"#);
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn the_callers_idempotency_key_is_that_of_the_create_alone() {
    let script = Script::new([
        (asks(&["a"]), run("requires_action", &["a"])),
        (completes(), run("completed", &[])),
    ])
    .await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
    let keyed = |request: &mut tonic::Request<_>| {
        request
            .metadata_mut()
            .insert("idempotency-key", "k".parse().expect("a value"));
    };
    let mut caller = Caller::call(&gateway, [start(None)], keyed)
        .await
        .expect("a conversation");
    caller.say(outputs(&[("a", "1")]));
    let (_, end) = caller.rest().await;
    assert!(end.is_ok(), "{end:?}");
    let requests = script.upstream.requests();
    let posts = requests.iter().filter(|request| request.method == "POST");
    let keys: Vec<_> = posts
        .map(|request| request.header("idempotency-key"))
        .collect();
    assert_eq!(keys, [Some("k"), None]);
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn an_upstream_that_does_not_stream_is_followed_by_polling() {
    let json = |run: &Value| Answer::json(200, run.to_string());
    let (waits, ends) = (run("requires_action", &["a"]), run("completed", &[]));
    let rows = [
        (
            "the run is created",
            run("queued", &[]),
            ends.clone(),
            vec!["~run_queued", "~run_requires_action", "~run_completed"],
        ),
        (
            "the run waits at once",
            waits.clone(),
            ends.clone(),
            vec!["~run_requires_action", "~run_completed"],
        ),
    ];
    for (name, created, submitted, expected) in rows {
        let script = Script::new([
            (json(&created), waits.clone()),
            (json(&submitted), ends.clone()),
        ])
        .await;
        let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
        let mut caller = Caller::start(&gateway).await;
        caller.say(outputs(&[("a", "1")]));
        let (events, end) = caller.rest().await;
        assert!(end.is_ok(), "{name}: {end:?}");
        assert_eq!(events, expected, "{name}");
        gateway.drain().await;
        script.finish();
    }
    let script = Script::new([(json(&ends), ends.clone())]).await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
    let (events, end) = Caller::start(&gateway).await.rest().await;
    assert!(
        end.is_ok() && events == ["~run_completed"],
        "the run is over at once: {events:?}, {end:?}"
    );
    gateway.drain().await;
    script.finish();
}
