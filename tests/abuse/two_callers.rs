//! Two callers, one of which takes all that it can get: the other one has its share.

use std::time::{Duration, Instant};

use bytes::Bytes;
use runs_gateway::v1::{
    CreateRunRequest, RunSpec, StreamCreateRunRequest, WatchRunRequest,
    run_service_client::RunServiceClient,
};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Request, transport::Channel};

use crate::{
    Attacked, BOUND,
    attacker::{Holding, Tally, Way},
    call_as, call_for, get_run,
    held::{FLAGS, MOST, scale},
    rows::{self, KEY, NthCall, rows, upstream},
    support::upstream::{Answer, Recorded},
};

const OTHER: &str = "Bearer other";

/// Two of a thing and two callers: each can have one, whatever the other does.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_things_each_of_two_callers_can_have_one() {
    let table: [(&str, &str, NthCall); 6] = [
        ("--max-calls", "2", |number| {
            rows::watch(&format!("run_{number}"))
        }),
        ("--max-live-streams", "2", |_| rows::stream()),
        ("--max-polled-runs", "2", |number| {
            rows::watch(&format!("run_{number}"))
        }),
        ("--max-upstream-requests", "2", |_| rows::create_run()),
        // One call is 48 KiB of them.
        ("--max-held-bytes", "131072", |number| {
            rows::watch(&format!("run_{number}"))
        }),
        ("--max-connections", "2", |number| {
            rows::watch(&format!("run_{number}"))
        }),
    ];
    for (flag, limit, call) in table {
        let flags = [&[flag, limit, "--max-upstream-queue", "0"], &FLAGS[4..]].concat();
        let attacked = Attacked::before(&flags, upstream).await;
        // By HTTP/1.1 each call is a connection, from another address than the other caller's.
        let way = if flag == "--max-connections" {
            Way::WebHttp1
        } else {
            call_as(&attacked.connect(), KEY).await;
            Way::Grpc
        };
        let destination = attacked.destination(way);
        let held = destination.calls(10, call).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        for _ in 0..10 {
            get_run(&attacked.program.channel).await;
        }
        drop(held);
    }
}

/// As the table's upstream, but that it answers the other caller.
fn answers_other(request: &Recorded) -> Answer {
    let is_other = request.header("authorization") == Some(OTHER);
    if !is_other || request.method == "GET" {
        return upstream(request);
    }
    let run = r#"{"id":"run_1","object":"thread.run","thread_id":"thread_1","status":"queued"}"#;
    if request.text().contains("\"stream\":true") {
        let created = format!("event: thread.run.created\ndata: {run}\n\n");
        return Answer::sse([Bytes::from(created)]).wait(&std::sync::Arc::default());
    }
    Answer::json(200, run)
}

/// What the other caller gets of one thing: so many at the same time.
#[derive(Debug, Clone, Copy)]
enum Thing {
    Small,
    Large,
    Create,
    Stream,
    Watch,
}

/// Gets one, and holds it for as long as the others of its kind are not there.
async fn get(thing: Thing, channel: Channel, number: usize) -> Option<Box<dyn Send>> {
    fn by_other<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        let credential = OTHER.parse().expect("a value");
        request.metadata_mut().insert("authorization", credential);
        request
    }
    let thread_id = "thread_1".to_owned();
    let mut client = RunServiceClient::new(channel.clone());
    match thing {
        Thing::Small => {
            call_for(&channel, OTHER, "run_1").await;
            Some(Box::new(()))
        }
        Thing::Large => {
            call_for(&channel, OTHER, "run_250").await;
            Some(Box::new(()))
        }
        Thing::Create => {
            let request = by_other(CreateRunRequest {
                thread_id,
                run: Some(RunSpec::default()),
                ..CreateRunRequest::default()
            });
            Some(Box::new(client.create_run(request).await.ok()?))
        }
        Thing::Stream => {
            let request = by_other(StreamCreateRunRequest {
                thread_id,
                run: Some(RunSpec::default()),
                ..StreamCreateRunRequest::default()
            });
            let mut events = client.stream_create_run(request).await.ok()?.into_inner();
            events.message().await.ok()??;
            Some(Box::new(events))
        }
        Thing::Watch => {
            let request = by_other(WatchRunRequest {
                thread_id,
                run_id: format!("run_1_{number}"),
                ..WatchRunRequest::default()
            });
            let mut events = client.watch_run(request).await.ok()?.into_inner();
            events.message().await.ok()??;
            Some(Box::new(events))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_floods_everything_at_once_costs_another_one_nothing() {
    // Of 60 a caller of three (the others are those whom the upstream does not know) has ten.
    let limits = [
        "--max-calls",
        "120",
        "--max-live-streams",
        "60",
        "--max-polled-runs",
        "60",
        "--max-upstream-requests",
        "60",
    ];
    let attacked = Attacked::contained(None, &[&FLAGS[..], &limits].concat(), answers_other).await;
    call_as(&attacked.connect(), KEY).await;
    let ((flood, got), grown) = attacked
        .during("everything at once", async {
            let table = rows();
            let mut flood = Vec::new();
            // Connections last: the others would take their places.
            for row in table.iter().rev() {
                let count = row.count * scale();
                flood.push(
                    row.attack(attacked.destination(Way::Grpc), false, count)
                        .await,
                );
            }
            let channel = attacked.connect();
            let mut got = Vec::new();
            for thing in [
                Thing::Small,
                Thing::Large,
                Thing::Create,
                Thing::Stream,
                Thing::Watch,
            ] {
                let began = Instant::now();
                let mut gets: JoinSet<_> = (0..10)
                    .map(|number| get(thing, channel.clone(), number))
                    .collect();
                let mut held = Vec::new();
                while let Some(one) = timeout(BOUND, gets.join_next()).await.expect("in time") {
                    held.extend(one.expect("no panic"));
                }
                got.push((thing, held.len(), began.elapsed()));
            }
            (flood, got)
        })
        .await;
    println!("what the flood got | taken | refused | nothing yet");
    for (row, held) in rows().iter().rev().zip(flood) {
        let tally: Tally = held.into_iter().map(Holding::tally).sum();
        println!(
            "{} | {} | {} | {}",
            row.what, tally.taken, tally.refused, tally.waiting
        );
    }
    println!("what the other caller got, at the same time | in");
    for (thing, held, within) in &got {
        println!("{thing:?} | {held} of 10 | {within:?}");
    }
    assert!(got.iter().all(|(_, held, _)| *held == 10), "{got:?}");
    let most = attacked.program.most_memory() >> 10;
    println!("{grown} MiB more, {most} MiB in all");
    assert!(most < MOST, "{most} MiB");
}
