//! How streams end: given what the upstream says last and what the run then turns out to be, what
//! the caller sees.

use std::sync::Arc;

use bytes::Bytes;
use runs_gateway::v1::{Gap, RunEvent, RunEventType, WatchRunRequest, run_event::Payload};
use tokio::sync::Notify;
use tonic::Code;

use crate::{
    script::{
        FAST, NEVER, create, done, error, event, hear, list, message, millis, name, next, polled,
        resume, resume_after, run, run_event, step, verdict, watch,
    },
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Step, Upstream},
    },
};

/// One row. The fields read as a sentence: given an upstream that said these events and then ended
/// so, and polls that then show this, the caller sees these events after the said ones, and this
/// status.
struct Ending {
    given: &'static str,
    said: Vec<Bytes>,
    then: fn(Answer) -> Answer,
    flags: &'static [&'static str],
    polls: Vec<Answer>,
    sees: &'static [&'static str],
    gap: Gap,
    status: (Code, &'static str),
}

impl Default for Ending {
    fn default() -> Self {
        Self {
            given: "",
            said: begun(),
            then: |answer| answer,
            flags: &[],
            polls: vec![],
            sees: &[],
            gap: Gap::default(),
            status: (Code::Ok, ""),
        }
    }
}

/// A run that has done a step and is in the middle of a message.
fn begun() -> Vec<Bytes> {
    vec![
        event("thread.run.created", run("queued")),
        event("thread.run.step.completed", step("step_0", "completed", "")),
        event(
            "thread.run.step.created",
            step("step_1", "in_progress", "msg_1"),
        ),
        event("thread.message.created", message("msg_1", "in_progress")),
        event(
            "thread.message.delta",
            r#"{"id":"msg_1","object":"thread.message.delta","delta":{}}"#,
        ),
    ]
}

/// A run that was told to its end.
fn ended() -> Vec<Bytes> {
    vec![
        event("thread.run.created", run("queued")),
        run_event("completed"),
    ]
}

/// The polls that show a run with its steps in a status.
fn shown(status: &str, steps: &str) -> Vec<Answer> {
    let list = list(&[
        step("step_0", "completed", ""),
        step("step_1", steps, "msg_1"),
    ]);
    vec![polled(status), Answer::json(200, list)]
}

fn gap(steps: &[&str], messages: &[&str]) -> Gap {
    let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    Gap {
        run_step_ids: owned(steps),
        message_ids: owned(messages),
    }
}

/// The run's last event was heard.
fn after_the_last_event() -> Vec<Ending> {
    vec![
        Ending {
            given: "done after the run's last event",
            said: ended(),
            then: |answer| answer.bytes(done()),
            sees: &["done"],
            ..Ending::default()
        },
        Ending {
            given: "a clean end after the run's last event, and no done",
            said: ended(),
            ..Ending::default()
        },
        Ending {
            given: "a cut after the run's last event",
            said: ended(),
            then: Answer::cut,
            ..Ending::default()
        },
        Ending {
            given: "silence after the run's last event",
            said: ended(),
            then: |answer| answer.step(Step::Wait(Arc::default())),
            ..Ending::default()
        },
    ]
}

/// The step and the message that [`begun`] began.
fn missing() -> Gap {
    gap(&["step_1"], &["msg_1"])
}

/// The connection was lost, and then the run turns out to be so.
fn cuts() -> Vec<Ending> {
    vec![
        Ending {
            given: "a cut in the middle of an event, and the run completed",
            then: |answer| {
                answer
                    .bytes("event: thread.message.completed\ndata: {\"id\":\"msg_")
                    .cut()
            },
            polls: shown("completed", "completed"),
            sees: &["gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "a cut between events, and the run completed",
            then: Answer::cut,
            polls: shown("completed", "completed"),
            sees: &["gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "a cut after everything but the run's last event was sent whole",
            said: [
                begun(),
                vec![
                    event("thread.message.completed", message("msg_1", "completed")),
                    event(
                        "thread.run.step.completed",
                        step("step_1", "completed", "msg_1"),
                    ),
                ],
            ]
            .concat(),
            then: Answer::cut,
            polls: shown("completed", "completed"),
            sees: &["run.completed*"],
            ..Ending::default()
        },
        Ending {
            given: "a cut between events, and the run goes on, then completes",
            then: Answer::cut,
            polls: [
                shown("queued", "in_progress"),
                shown("in_progress", "in_progress"),
                shown("in_progress", "completed"),
                shown("completed", "completed"),
            ]
            .into_iter()
            .flatten()
            .collect(),
            sees: &[
                "step.in_progress*",
                "run.in_progress*",
                "step.completed*",
                "gap*",
                "run.completed*",
            ],
            gap: gap(&[], &["msg_1"]),
            ..Ending::default()
        },
        Ending {
            given: "a cut between events, and the run failed",
            then: Answer::cut,
            polls: shown("failed", "failed"),
            sees: &["gap*", "run.failed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "a cut between events, and the run waits for tool outputs",
            then: Answer::cut,
            polls: shown("requires_action", "in_progress"),
            sees: &["gap*", "run.requires_action*"],
            gap: gap(&[], &["msg_1"]),
            ..Ending::default()
        },
        Ending {
            given: "a cut between events, and the run is gone",
            then: Answer::cut,
            polls: vec![Answer::json(404, error("not_found"))],
            status: (Code::NotFound, "NOT_FOUND"),
            ..Ending::default()
        },
        Ending {
            given: "a cut between events, and the upstream does not recover",
            then: Answer::cut,
            flags: &["--poll-failure-timeout", "0s"],
            polls: vec![Answer::new(503)],
            status: (Code::Unavailable, "UPSTREAM_UNAVAILABLE"),
            ..Ending::default()
        },
    ]
}

/// The stream came to no good end for other reasons.
fn other_endings() -> Vec<Ending> {
    vec![
        Ending {
            given: "a clean end in the middle",
            polls: shown("completed", "completed"),
            sees: &["gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "a body that lasts until the connection closes, closed in the middle of an event",
            then: |answer| {
                answer.until_close().bytes(
                    "event: thread.run.completed\ndata: {\"id\":\"run_1\",\"status\":\"comple",
                )
            },
            polls: shown("completed", "completed"),
            sees: &["gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "a cut in the middle, and steps that nobody may read",
            then: Answer::cut,
            polls: vec![polled("completed"), Answer::json(403, error("no_access"))],
            sees: &["gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "a cut before a step that the contract has no status for has come to its end",
            then: Answer::cut,
            polls: shown("in_progress", "pondering")
                .into_iter()
                .chain(shown("completed", "completed"))
                .collect(),
            sees: &["other*", "run.in_progress*", "gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "done without the run's last event",
            then: |answer| answer.bytes(done()),
            polls: shown("completed", "completed"),
            sees: &["gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "silence in the middle",
            then: |answer| answer.step(Step::Wait(Arc::default())),
            flags: &["--stream-idle-timeout", "200ms"],
            polls: shown("completed", "completed"),
            sees: &["gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "an event beyond the limit",
            then: |answer| {
                answer
                    .bytes(event("thread.message.completed", "x".repeat(2000)))
                    .step(Step::Wait(Arc::default()))
            },
            flags: &["--max-event-bytes", "2000"],
            polls: shown("completed", "completed"),
            sees: &["gap*", "run.completed*"],
            gap: missing(),
            ..Ending::default()
        },
        Ending {
            given: "a cut before the run had a name",
            said: vec![event(
                "thread.created",
                r#"{"id":"thread_1","object":"thread"}"#,
            )],
            then: Answer::cut,
            status: (Code::Unknown, "OUTCOME_UNKNOWN"),
            ..Ending::default()
        },
        Ending {
            given: "nothing but a clean end",
            said: vec![],
            status: (Code::Unknown, "OUTCOME_UNKNOWN"),
            ..Ending::default()
        },
    ]
}

#[tokio::test]
async fn however_the_upstreams_stream_ends_the_caller_sees_the_runs_end_or_how_to_go_on() {
    for ending in [after_the_last_event(), cuts(), other_endings()]
        .into_iter()
        .flatten()
    {
        println!("given {}", ending.given);
        let upstream = Upstream::start().await;
        let gateway = spawn_gateway(&upstream.url(), &[&FAST[..], ending.flags].concat()).await;
        // What was said is heard before what follows: a reset may overtake it.
        let heard_all = Arc::new(Notify::new());
        upstream.push((ending.then)(
            Answer::sse(ending.said.clone()).wait(&heard_all),
        ));
        for poll in ending.polls {
            upstream.push(poll);
        }

        let mut stream = gateway
            .runs()
            .stream_create_run(create())
            .await
            .expect("a stream")
            .into_inner();
        let mut last = RunEvent::default();
        for _ in &ending.said {
            last = next(&mut stream).await;
            assert!(!last.synthesized);
        }
        heard_all.notify_one();
        let heard = hear(stream).await;

        assert_eq!(heard.names(), ending.sees);
        let gaps: Vec<_> = heard
            .events
            .iter()
            .filter_map(|event| {
                if let Some(Payload::Gap(gap)) = &event.payload {
                    Some(&**gap)
                } else {
                    None
                }
            })
            .collect();
        let expected = ending.sees.contains(&"gap*").then_some(&ending.gap);
        assert_eq!(gaps, expected.into_iter().collect::<Vec<_>>());
        assert_eq!(
            verdict(&heard.status),
            (ending.status.0, ending.status.1.to_owned()),
            "{:?}",
            heard.status
        );
        if ending.status.0 != Code::Ok {
            let last = heard.events.last().unwrap_or(&last);
            let mut expected = resume_after(
                last.r#type()
                    .as_str_name()
                    .trim_start_matches("RUN_EVENT_TYPE_"),
            );
            match last.r#type() {
                // The run has no name yet.
                RunEventType::ThreadCreated => drop(expected.remove("run_id")),
                RunEventType::Unspecified => expected.retain(|name, _| name == "thread_id"),
                _ => {}
            }
            assert_eq!(resume(&heard.status), expected);
        }
        gateway.drain().await;
    }
}

/// There is no place for one more run to be polled. The run that was created goes on: calling again
/// would make another.
#[tokio::test]
async fn a_cut_stream_that_cannot_be_followed_does_not_ask_its_caller_to_call_again() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(
        &upstream.url(),
        &[&NEVER[..], &["--max-polled-runs", "1"]].concat(),
    )
    .await;
    let other_run = run("in_progress").replace("run_1", "run_2");
    upstream.push(Answer::json(200, other_run));
    let other = WatchRunRequest {
        run_id: "run_2".to_owned(),
        ..watch()
    };
    let _watched = gateway.runs().watch_run(other).await.expect("a stream");
    upstream.push(Answer::sse(begun()).cut());
    let heard = hear(
        gateway
            .runs()
            .stream_create_run(create())
            .await
            .expect("a stream")
            .into_inner(),
    )
    .await;
    assert_eq!(
        verdict(&heard.status),
        (Code::Unavailable, "GATEWAY_OVERLOADED".to_owned())
    );
    assert!(
        !heard.status.message().contains("call again"),
        "{:?}",
        heard.status
    );
    assert!(
        heard
            .status
            .message()
            .ends_with("; resume by ResumeRun or ConverseRun.attach"),
        "{:?}",
        heard.status
    );
    gateway.drain().await;
}

#[tokio::test]
async fn an_error_event_of_any_shape_ends_the_stream_with_its_status() {
    let flat = r#"{"message":"it said so","code":"rate_limit_exceeded"}"#;
    let verbose = r#"{"message":"401 it said so","path":"/threads","requestId":"req_1","statusCode":500,"timestamp":"now"}"#;
    let litellm = format!(
        "data: {{\"event\":\"error\",\"data\":{}}}\n\n",
        error("server_error")
    );
    let cases: [(Bytes, Code, &str, &str); 9] = [
        (
            event("error", error("server_error")),
            Code::Internal,
            "SERVER_ERROR",
            "it said so",
        ),
        (
            event("error", error("rate_limit_exceeded")),
            Code::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            "it said so",
        ),
        (
            event("error", error("insufficient_quota")),
            Code::ResourceExhausted,
            "INSUFFICIENT_QUOTA",
            "it said so",
        ),
        (
            event("error", flat),
            Code::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            "it said so",
        ),
        (
            event("error", verbose),
            Code::Internal,
            "SERVER_ERROR",
            "401 it said so",
        ),
        (
            event("error", r#"{"error":"it said so"}"#),
            Code::Internal,
            "SERVER_ERROR",
            "it said so",
        ),
        (
            event("error", "it said so"),
            Code::Internal,
            "SERVER_ERROR",
            "it said so",
        ),
        (litellm.into(), Code::Internal, "SERVER_ERROR", "it said so"),
        (
            format!("data: {}\n\n", error("server_error")).into(),
            Code::Internal,
            "SERVER_ERROR",
            "it said so",
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    for (said, code, reason, text) in cases {
        println!("given {said:?}");
        upstream
            .push(Answer::sse([run_event("in_progress"), said]).step(Step::Wait(Arc::default())));
        let heard = hear(
            gateway
                .runs()
                .stream_create_run(create())
                .await
                .expect("a stream")
                .into_inner(),
        )
        .await;
        assert_eq!(heard.names(), ["run.in_progress"]);
        assert_eq!(verdict(&heard.status), (code, reason.to_owned()));
        assert!(
            heard.status.message().starts_with(text),
            "{:?}",
            heard.status
        );
        assert_eq!(
            resume(&heard.status),
            resume_after("THREAD_RUN_IN_PROGRESS")
        );
    }
    gateway.drain().await;
}

#[tokio::test]
async fn an_upstream_that_answers_with_the_run_alone_is_polled_for_the_rest() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(polled("queued"));
    for poll in [
        shown("in_progress", "in_progress"),
        shown("completed", "completed"),
    ]
    .into_iter()
    .flatten()
    {
        upstream.push(poll);
    }
    let heard = hear(
        gateway
            .runs()
            .stream_create_run(create())
            .await
            .expect("a stream")
            .into_inner(),
    )
    .await;
    let names = [
        "run.queued*",
        "step.completed*",
        "step.in_progress*",
        "run.in_progress*",
        "gap*",
        "run.completed*",
    ];
    assert_eq!(
        (heard.names(), heard.status.code()),
        (names.map(String::from).to_vec(), Code::Ok)
    );

    upstream.push(polled("completed"));
    let heard = hear(
        gateway
            .runs()
            .stream_create_run(create())
            .await
            .expect("a stream")
            .into_inner(),
    )
    .await;
    assert_eq!(
        (heard.names(), heard.status.code()),
        (vec!["run.completed*".to_owned()], Code::Ok)
    );
    gateway.drain().await;
}

#[tokio::test]
async fn comments_break_the_silence_and_a_slow_reader_is_no_silence() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(
        &upstream.url(),
        &[&FAST[..], &["--stream-idle-timeout", "400ms"]].concat(),
    )
    .await;

    // Quiet for a second in all, but never for 400 ms.
    let pinging = Answer::sse([run_event("in_progress")]);
    let pinging = (0..10).fold(pinging, |answer, _| {
        answer.step(Step::Pause(millis(100))).bytes(": ping\n\n")
    });
    upstream.push(pinging.bytes(run_event("completed")).bytes(done()));
    let heard = hear(
        gateway
            .runs()
            .stream_create_run(create())
            .await
            .expect("a stream")
            .into_inner(),
    )
    .await;
    assert_eq!(heard.names(), ["run.in_progress", "run.completed", "done"]);

    // More than all buffers on the way hold.
    let long = event(
        "thread.message.delta",
        format!(
            r#"{{"id":"msg_1","delta":{{}},"more":"{}"}}"#,
            "x".repeat(1 << 20)
        ),
    );
    upstream.push(
        Answer::sse([run_event("in_progress")].into_iter().chain(vec![long; 32]))
            .bytes(run_event("completed"))
            .bytes(done()),
    );
    let mut stream = gateway
        .runs()
        .stream_create_run(create())
        .await
        .expect("a stream")
        .into_inner();
    assert_eq!(name(&next(&mut stream).await), "run.in_progress");
    // The one way to be slow is to let time pass.
    tokio::time::sleep(millis(1000)).await;
    let heard = hear(stream).await;
    assert_eq!(heard.events.len(), 32 + 2);
    assert!(heard.events.iter().all(|event| !event.synthesized));
    assert_eq!(heard.status.code(), Code::Ok);
    gateway.drain().await;
}
