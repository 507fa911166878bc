//! Streams that outlive their caller: `StreamOptions.resumable` and `ResumeRun`, with the event log
//! in memory.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use runs_gateway::v1::{
    ResumeRunRequest, RunEvent, StreamOptions, StreamSubmitToolOutputsRequest, ToolOutput,
    ToolOutputs, run_event::Payload,
};
use tokio::{sync::mpsc, time::sleep};
use tonic::{Code, Request, Streaming};
use tonic_types::StatusExt as _;

use crate::{
    script::{
        FAST, create_with, done, event, hear, list, message, name, next, polled, run, run_event,
        soon, step, verdict,
    },
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::{Answer, Upstream},
    },
};

fn resumable() -> StreamOptions {
    StreamOptions {
        resumable: true,
        ..StreamOptions::default()
    }
}

fn after(position: &str) -> ResumeRunRequest {
    ResumeRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        after_position: position.into(),
        options: None,
    }
}

/// A whole answer: a run that says something.
fn said() -> Vec<Bytes> {
    vec![
        event("thread.run.created", run("queued")),
        event("thread.message.created", message("msg_1", "in_progress")),
        event(
            "thread.message.delta",
            r#"{"id":"msg_1","object":"thread.message.delta","delta":{}}"#,
        ),
        event("thread.message.completed", message("msg_1", "completed")),
        run_event("completed"),
        done(),
    ]
}

const NAMES: [&str; 5] = [
    "run.created",
    "message.created",
    "message.delta",
    "message.completed",
    "run.completed",
];

async fn resumed(
    gateway: &Gateway,
    request: impl tonic::IntoRequest<ResumeRunRequest>,
) -> Streaming<RunEvent> {
    soon(gateway.runs().resume_run(request))
        .await
        .expect("a stream")
        .into_inner()
}

/// A stream whose upstream says what the test sends.
async fn live(
    upstream: &Upstream,
    gateway: &Gateway,
    options: StreamOptions,
) -> (mpsc::Sender<Bytes>, Streaming<RunEvent>) {
    let (say, saying) = mpsc::channel(16);
    upstream.push(Answer::sse_with(saying));
    let stream = gateway
        .runs()
        .stream_create_run(create_with(options))
        .await
        .expect("a stream")
        .into_inner();
    (say, stream)
}

fn positions(events: &[RunEvent]) -> Vec<String> {
    events.iter().map(|event| event.position.clone()).collect()
}

#[tokio::test]
async fn from_each_position_what_came_after_it_comes_again_once_and_in_order() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::sse(said()));
    let stream = gateway
        .runs()
        .stream_create_run(create_with(resumable()))
        .await;
    let heard = hear(stream.expect("a stream").into_inner()).await;
    assert_eq!(heard.names(), NAMES);
    assert!(heard.events.iter().all(|event| !event.position.is_empty()));

    let all = hear(resumed(&gateway, after("")).await).await;
    assert_eq!(all.events, heard.events);
    for (index, position) in positions(&heard.events).iter().enumerate() {
        let rest = hear(resumed(&gateway, after(position)).await).await;
        assert_eq!(rest.events, heard.events[index + 1..], "after {position}");
        assert_eq!(rest.status.code(), Code::Ok);
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_caller_that_leaves_misses_nothing_and_slows_nothing() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let (say, mut stream) = live(&upstream, &gateway, resumable()).await;
    let said = said();
    say.send(said[0].clone()).await.expect("a reader");
    say.send(said[1].clone()).await.expect("a reader");
    let first = next(&mut stream).await;
    let mut other = resumed(&gateway, after(&first.position)).await;
    drop(stream);
    assert_eq!(name(&next(&mut other).await), "message.created");
    for bytes in &said[2..] {
        say.send(bytes.clone()).await.expect("a reader");
    }
    drop(say);
    let rest = hear(other).await;
    assert_eq!(rest.names(), NAMES[2..]);
    let again = hear(resumed(&gateway, after(&first.position)).await).await;
    assert_eq!(again.names(), NAMES[1..]);
    assert_eq!(upstream.requests().len(), 1, "nothing was polled");
    gateway.drain().await;
}

#[tokio::test]
async fn what_is_no_position_of_this_run_is_refused_and_without_a_log_any_is_answered_by_a_gap() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::sse(said()));
    let stream = gateway
        .runs()
        .stream_create_run(create_with(resumable()))
        .await;
    let heard = hear(stream.expect("a stream").into_inner()).await;
    let last = positions(&heard.events).pop().expect("events");
    let (place, tag) = last.rsplit_once('-').expect("a tag");
    let (epoch, _) = place.split_once('-').expect("an epoch");
    let later = epoch.parse::<u64>().expect("a number") + 1;
    let wrong = [
        "nonsense".to_owned(),
        format!("{epoch}-2"),
        format!("{epoch}-2-00000000"),
        format!("{epoch}-99-{tag}"),
        format!("{later}-0-{tag}"),
        format!("0{epoch}-2-{tag}"),
        format!("{epoch}-+2-{tag}"),
        format!("{last}x"),
    ];
    for position in &wrong {
        let status = gateway.runs().resume_run(after(position)).await;
        let status = status.expect_err("no stream");
        assert_eq!(
            (status.code(), field(&status)),
            (Code::InvalidArgument, "after_position".to_owned()),
            "{position}"
        );
    }
    // Somebody else, whatever it says, is answered as if nothing was recorded.
    for position in wrong.iter().chain([&last, &String::new()]) {
        upstream.push(polled("completed"));
        upstream.push(Answer::json(
            200,
            list(&[step("step_1", "completed", "msg_1")]),
        ));
        upstream.push(Answer::json(200, message("msg_1", "completed")));
        let mut request = Request::new(after(position));
        let credential = "Bearer somebody else".parse().expect("a value");
        request.metadata_mut().insert("authorization", credential);
        let heard = hear(resumed(&gateway, request).await).await;
        assert_eq!(heard.names(), ["gap*", "run.completed*"], "{position}");
        assert_eq!(missed(&heard.events[0]), ["msg_1"]);
        assert!(positions(&heard.events).iter().all(String::is_empty));
    }
    gateway.drain().await;
}

fn field(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let violations = &details.bad_request().expect("a field").field_violations;
    violations[0].field.clone()
}

/// The messages that a gap names.
fn missed(event: &RunEvent) -> Vec<String> {
    match &event.payload {
        Some(Payload::Gap(gap)) => gap.message_ids.clone(),
        other => panic!("{other:?} is no gap"),
    }
}

#[tokio::test]
async fn a_run_that_was_not_recorded_is_resumed_by_a_gap_and_by_polling() {
    for flags in [&FAST[..], &[&FAST[..], &["--event-log", "off"]].concat()] {
        let upstream = Upstream::start().await;
        let gateway = spawn_gateway(&upstream.url(), flags).await;
        let first = step("step_1", "completed", "msg_1");
        for answer in [
            polled("in_progress"),
            Answer::json(
                200,
                list(&[first.clone(), step("step_2", "in_progress", "msg_2")]),
            ),
            Answer::json(200, message("msg_1", "completed")),
            polled("completed"),
            Answer::json(200, list(&[first, step("step_2", "completed", "msg_2")])),
            Answer::json(200, message("msg_2", "completed")),
        ] {
            upstream.push(answer);
        }
        let heard = hear(resumed(&gateway, after("")).await).await;
        let names = [
            "gap*",
            "step.in_progress*",
            "run.in_progress*",
            "step.completed*",
            "message.completed*",
            "run.completed*",
        ];
        assert_eq!(heard.names(), names);
        assert_eq!(missed(&heard.events[0]), ["msg_1"]);
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_run_that_is_not_there_is_an_answer_and_not_a_stream() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::json(404, crate::script::error("not_found")));
    let status = gateway.runs().resume_run(after("")).await;
    assert_eq!(status.expect_err("no stream").code(), Code::NotFound);
    gateway.drain().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_refused_before_anything_is_sent() {
    let upstream = Upstream::start().await;
    let off = ["--event-log", "off"];
    let gateway = spawn_gateway(&upstream.url(), &off).await;
    let stream = gateway
        .runs()
        .stream_create_run(create_with(resumable()))
        .await;
    let status = stream.expect_err("no stream");
    assert_eq!(
        (status.code(), field(&status)),
        (Code::InvalidArgument, "options.resumable".to_owned())
    );
    let request = ResumeRunRequest {
        options: Some(resumable()),
        ..after("")
    };
    let status = gateway
        .runs()
        .resume_run(request)
        .await
        .expect_err("no stream");
    assert_eq!(
        (status.code(), field(&status)),
        (Code::InvalidArgument, "options.resumable".to_owned())
    );
    assert!(upstream.requests().is_empty());
    gateway.drain().await;
}

#[tokio::test]
async fn an_upstream_that_is_cut_leaves_one_gap_in_the_log() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::sse(said()[..3].to_vec()).cut());
    upstream.push(polled("completed"));
    upstream.push(Answer::json(
        200,
        list(&[step("step_1", "completed", "msg_1")]),
    ));
    upstream.push(Answer::json(200, message("msg_1", "completed")));
    let stream = gateway
        .runs()
        .stream_create_run(create_with(resumable()))
        .await;
    let heard = hear(stream.expect("a stream").into_inner()).await;
    let names = [&NAMES[..3], &["gap*", "run.completed*"]].concat();
    assert_eq!(heard.names(), names);
    assert_eq!(missed(&heard.events[3]), ["msg_1"]);
    let again = hear(resumed(&gateway, after("")).await).await;
    assert_eq!(again.events, heard.events);
    // Who asks for what was missed has it.
    let request = ResumeRunRequest {
        options: Some(StreamOptions {
            include_missed_messages: true,
            ..StreamOptions::default()
        }),
        ..after("")
    };
    let with_messages = hear(resumed(&gateway, request).await).await;
    let names = [
        &NAMES[..3],
        &["gap*", "message.completed*", "run.completed*"],
    ];
    assert_eq!(with_messages.names(), names.concat());
    gateway.drain().await;
}

#[tokio::test(start_paused = true)]
async fn however_many_go_on_with_a_run_there_is_one_gap() {
    let status = Arc::new(Mutex::new("in_progress"));
    let shown = Arc::clone(&status);
    let (say, saying) = mpsc::channel(16);
    let saying = Mutex::new(Some(saying));
    let upstream = Upstream::answering(move |request| {
        let path = request.target.split('?').next().unwrap_or_default();
        if path.ends_with("/steps") || path.ends_with("/messages") {
            return Answer::json(200, list(&[]));
        }
        match saying.lock().expect("never held over a panic").take() {
            Some(saying) => Answer::sse_with(saying),
            None => polled(*shown.lock().expect("never held over a panic")),
        }
    })
    .await;
    // Each source ends before the run does, and leaves it to the next.
    let flags = ["--poll-floor", "200ms", "--poll-ceiling", "200ms"];
    let flags = [&flags[..], &["--max-source-age", "2s"]].concat();
    let gateway = spawn_gateway(&upstream.url(), &flags).await;
    let stream = gateway
        .runs()
        .stream_create_run(create_with(resumable()))
        .await;
    say.send(said()[0].clone()).await.expect("a reader");
    let heard = tokio::spawn(hear(stream.expect("a stream").into_inner()));
    sleep(Duration::from_secs(9)).await;
    *status.lock().expect("never held over a panic") = "completed";
    let heard = heard.await.expect("a stream");
    let names = ["run.created", "gap*", "run.in_progress*", "run.completed*"];
    assert_eq!(heard.names(), names);
    let epochs = positions(&heard.events);
    let epochs: Vec<_> = epochs.iter().map(|it| it.split('-').next()).collect();
    assert_eq!(epochs[1], epochs[2]);
    assert_ne!(epochs[2], epochs[3], "nobody else went on");
    let again = hear(resumed(&gateway, after("")).await).await;
    assert_eq!(again.events, heard.events);
    gateway.drain().await;
}

#[tokio::test]
async fn what_was_trimmed_is_a_gap_where_it_was() {
    let upstream = Upstream::start().await;
    let flags = [&FAST[..], &["--event-log-run-entries", "2"]].concat();
    let gateway = spawn_gateway(&upstream.url(), &flags).await;
    let (say, mut stream) = live(&upstream, &gateway, resumable()).await;
    let mut heard = Vec::new();
    for bytes in &said()[..5] {
        say.send(bytes.clone()).await.expect("a reader");
        heard.push(next(&mut stream).await);
    }
    drop(say);
    assert_eq!(heard.iter().map(name).collect::<Vec<_>>(), NAMES);
    let gap = ["gap*", "message.completed", "run.completed"];
    for (position, names) in [
        ("", &gap[..]),
        (&heard[0].position, &gap[..]),
        (&heard[1].position, &gap[..]),
        (&heard[2].position, &gap[1..]),
        (&heard[3].position, &gap[2..]),
    ] {
        let rest = hear(resumed(&gateway, after(position)).await).await;
        assert_eq!(rest.names(), names, "after {position}");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn with_cancel_on_disconnect_a_run_does_not_outlive_its_caller() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let options = StreamOptions {
        cancel_on_disconnect: true,
        ..resumable()
    };
    let (say, mut stream) = live(&upstream, &gateway, options).await;
    say.send(said()[0].clone()).await.expect("a reader");
    next(&mut stream).await;
    upstream.push(polled("cancelling"));
    drop(stream);
    let requests = upstream.wait_for_requests(2).await;
    assert_eq!(requests[1].target, "/threads/thread_1/runs/run_1/cancel");
    drop(say);
    gateway.drain().await;
}

#[tokio::test]
async fn the_rounds_of_a_run_are_one_log() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::sse([
        event("thread.run.created", run("queued")),
        run_event("requires_action"),
        done(),
    ]));
    let stream = gateway
        .runs()
        .stream_create_run(create_with(resumable()))
        .await;
    let first = hear(stream.expect("a stream").into_inner()).await;
    assert_eq!(first.names(), ["run.created", "run.requires_action"]);
    upstream.push(Answer::sse([
        run_event("in_progress"),
        run_event("completed"),
        done(),
    ]));
    let submit = StreamSubmitToolOutputsRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        tool_outputs: Some(ToolOutputs {
            tool_outputs: vec![ToolOutput {
                tool_call_id: "call_1".into(),
                output: Some("1".into()),
                ..ToolOutput::default()
            }],
            ..ToolOutputs::default()
        }),
        options: Some(resumable()),
    };
    let stream = gateway.runs().stream_submit_tool_outputs(submit).await;
    let second = hear(stream.expect("a stream").into_inner()).await;
    assert_eq!(second.names(), ["run.in_progress", "run.completed"]);

    let from_the_start = hear(resumed(&gateway, after("")).await).await;
    assert_eq!(from_the_start.events, first.events);
    let waiting = &first.events[1].position;
    let rest = hear(resumed(&gateway, after(waiting)).await).await;
    assert_eq!(rest.events, second.events);
    gateway.drain().await;
}

#[tokio::test]
async fn after_a_run_came_to_wait_there_is_nothing_until_it_goes_on() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::sse([
        event("thread.run.created", run("queued")),
        run_event("requires_action"),
        done(),
    ]));
    let stream = gateway
        .runs()
        .stream_create_run(create_with(resumable()))
        .await;
    let first = hear(stream.expect("a stream").into_inner()).await;
    let waiting = &first.events[1].position;
    for answer in [polled("requires_action"), Answer::json(200, list(&[]))] {
        upstream.push(answer);
    }
    upstream.push(Answer::json(200, list(&[])));
    let nothing = hear(resumed(&gateway, after(waiting)).await).await;
    assert_eq!(nothing.names(), [""; 0]);
    assert_eq!(nothing.status.code(), Code::Ok);
    // Somebody submitted by another way: what was missed is said once, for all.
    for answer in [
        polled("completed"),
        Answer::json(200, list(&[step("step_1", "completed", "msg_1")])),
        Answer::json(200, message("msg_1", "completed")),
    ] {
        upstream.push(answer);
    }
    let rest = hear(resumed(&gateway, after(waiting)).await).await;
    assert_eq!(rest.names(), ["gap*", "run.completed*"]);
    let again = hear(resumed(&gateway, after(waiting)).await).await;
    assert_eq!(again.events, rest.events);
    gateway.drain().await;
}

#[tokio::test]
async fn a_drain_ends_a_delivery_with_how_to_resume() {
    let upstream = Upstream::start().await;
    let flags = [&FAST[..], &["--drain-timeout", "2s"]].concat();
    let gateway = spawn_gateway(&upstream.url(), &flags).await;
    let (say, mut stream) = live(&upstream, &gateway, resumable()).await;
    say.send(said()[0].clone()).await.expect("a reader");
    let first = next(&mut stream).await;
    let (heard, ()) = tokio::join!(hear(stream), gateway.drain());
    assert_eq!(
        verdict(&heard.status),
        (Code::Unavailable, "GATEWAY_DRAINING".to_owned())
    );
    let details = heard.status.get_error_details();
    let metadata = &details.error_info().expect("an ErrorInfo").metadata;
    assert_eq!(metadata["position"], first.position);
    assert!(
        heard.status.message().contains("resume by ResumeRun"),
        "{:?}",
        heard.status
    );
    drop(say);
}
