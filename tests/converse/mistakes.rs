//! A caller's mistakes: given what it says wrong, it is told where, and the run can still be taken
//! up.

use std::sync::Arc;

use runs_gateway::v1::{
    ConverseAttach, ConverseRunRequest, ConverseStart, RunSpec, StreamOptions, ThreadAndRunSpec,
    ToolOutput, ToolOutputs, converse_run_request::Message,
};
use tokio::sync::Notify;
use tonic::Code;

use crate::{
    harness::{
        Caller, DONE, Script, asks, assert_resumable, attach, blamed, cancel, error_info, name,
        outputs, round_trip, run, start, state,
    },
    support::{gateway::spawn_gateway, upstream::Answer},
};

/// When something wrong is said.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    /// With the first message, before there is a run.
    First,
    /// While the run works.
    Early,
    /// While the run waits for outputs.
    Waiting,
    /// While the run works after its first round.
    NextRound,
}

fn call_id(at: usize) -> String {
    format!("tool_outputs.tool_outputs[{at}].tool_call_id")
}

#[tokio::test]
async fn what_is_said_wrong_is_named_and_ends_the_conversation() {
    use When::{Early, First, NextRound, Waiting};
    let (a, b, x) = (("a", "1"), ("b", "2"), ("x", "1"));
    let other_extra = ToolOutput {
        tool_call_id: "a".into(),
        output: Some("1".into()),
        extra_json: r#"{"more":1}"#.into(),
    };
    let extra = |extra: ToolOutputs| Message::ToolOutputs(extra);
    // The run asks for a and b, then for c and d.
    let rows: Vec<(&str, When, Vec<Message>, String)> = vec![
        (
            "another output, both early",
            Early,
            vec![outputs(&[a]), outputs(&[("a", "2")])],
            call_id(0),
        ),
        (
            "another output, in one message",
            Early,
            vec![outputs(&[a, b, ("a", "2")])],
            call_id(2),
        ),
        (
            "another output, before the submit",
            Waiting,
            vec![outputs(&[a]), outputs(&[("c", "3"), ("a", "2")])],
            call_id(0),
        ),
        (
            "another output, after the submit",
            NextRound,
            vec![outputs(&[b, ("a", "2")])],
            call_id(1),
        ),
        (
            "the same output and something else",
            NextRound,
            vec![extra(ToolOutputs {
                tool_outputs: vec![other_extra],
                ..ToolOutputs::default()
            })],
            call_id(0),
        ),
        (
            "an unknown call, with the first message",
            First,
            vec![outputs(&[a, x])],
            call_id(1),
        ),
        (
            "an unknown call, early",
            Early,
            vec![outputs(&[a]), outputs(&[b, x])],
            call_id(1),
        ),
        (
            "an unknown call, while the run waits",
            Waiting,
            vec![outputs(&[a, b, x])],
            call_id(2),
        ),
        (
            "an unknown call, in the next round",
            NextRound,
            vec![outputs(&[("c", "3"), x])],
            call_id(1),
        ),
        (
            "no call",
            Waiting,
            vec![outputs(&[a, ("", "1")])],
            call_id(1),
        ),
        (
            "extra members beside the outputs",
            Waiting,
            vec![extra(ToolOutputs {
                tool_outputs: vec![],
                extra_json: r#"{"more":1}"#.into(),
                ..ToolOutputs::default()
            })],
            "tool_outputs.extra_json".into(),
        ),
        (
            "a second start, with the first",
            First,
            vec![start(None)],
            "start".into(),
        ),
        ("a second start", Early, vec![start(None)], "start".into()),
        (
            "a second start, while the run waits",
            Waiting,
            vec![start(None)],
            "start".into(),
        ),
        (
            "attach after start",
            Waiting,
            vec![attach(None)],
            "attach".into(),
        ),
    ];
    for (what, when, said, field) in rows {
        let go = Arc::new(Notify::new());
        let works = || Answer::sse([state("queued", &[])]).wait(&go);
        let script = Script::new([
            (
                works()
                    .bytes(state("requires_action", &["a", "b"]))
                    .bytes(DONE),
                run("requires_action", &["a", "b"]),
            ),
            (
                works()
                    .bytes(state("requires_action", &["c", "d"]))
                    .bytes(DONE),
                run("requires_action", &["c", "d"]),
            ),
        ])
        .await;
        let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
        let first = [start(None)]
            .into_iter()
            .chain(said.iter().filter(|_| when == First).cloned());
        let mut caller = Caller::say_first(&gateway, first)
            .await
            .expect("the run is created all the same");
        if when == NextRound {
            go.notify_one();
            caller.until("run_requires_action").await;
            caller.say(outputs(&[a, b]));
            caller.until("run_queued").await;
        }
        if when == Waiting {
            go.notify_one();
            caller.until("run_requires_action").await;
        }
        if when != First {
            for said in said {
                caller.say(said);
            }
        }
        // What is unknown early is known to be wrong once the run asks.
        go.notify_one();
        let (_, end) = caller.rest().await;
        let status = end.expect_err(what);
        assert_eq!(
            (status.code(), blamed(&status)),
            (Code::InvalidArgument, field),
            "{what}: {status:?}"
        );
        let (_, info) = error_info(&status);
        assert_eq!(info["run_id"], "run_1", "{what}");
        let asked = usize::from(when == NextRound);
        assert_eq!(
            script.submits().len(),
            asked,
            "{what}: nothing wrong is submitted"
        );
        gateway.drain().await;
    }
}

#[tokio::test]
async fn an_empty_message_is_a_mistake_and_one_for_a_call_that_somebody_else_answered_is_none() {
    let script = Script::new([(asks(&["a", "b"]), run("requires_action", &["a", "b"]))]).await;
    let gateway = spawn_gateway(
        &script.upstream.url(),
        &["--poll-floor", "10ms", "--poll-ceiling", "20ms"],
    )
    .await;
    let mut caller = Caller::start(&gateway).await;
    caller.until("run_requires_action").await;
    caller.say(outputs(&[("a", "1")]));
    // Somebody else gives both.
    script.show(run("requires_action", &["c"]));
    caller.until("~run_requires_action").await;
    caller.say(outputs(&[("b", "2"), ("a", "1")]));
    caller.heard(&script, &gateway).await;
    caller.say_raw(ConverseRunRequest { message: None });
    let (_, end) = caller.rest().await;
    let status = end.expect_err("an empty message");
    assert_eq!(
        (status.code(), blamed(&status)),
        (Code::InvalidArgument, "message".into()),
        "{status:?}"
    );
    assert_resumable(&status, "THREAD_RUN_REQUIRES_ACTION");
    assert_eq!(script.submits().len(), 0);
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_first_message_that_cannot_be_is_an_answer_without_a_stream_and_without_a_request() {
    let spec = || {
        Some(RunSpec {
            assistant_id: "asst_1".into(),
            ..RunSpec::default()
        })
    };
    let short = StreamOptions {
        heartbeat_interval: Some(prost_types::Duration::default()),
        ..StreamOptions::default()
    };
    let with = |start: ConverseStart| vec![Message::Start(start)];
    let id = |thread_id: &str, run_id: &str| {
        vec![Message::Attach(ConverseAttach {
            thread_id: thread_id.into(),
            run_id: run_id.into(),
            options: None,
            ..ConverseAttach::default()
        })]
    };
    let rows = [
        ("nothing", vec![], "message"),
        ("outputs", vec![outputs(&[("a", "1")])], "message"),
        ("cancel", vec![cancel()], "message"),
        (
            "no run",
            with(ConverseStart {
                thread_id: "t".into(),
                ..ConverseStart::default()
            }),
            "start.run",
        ),
        (
            "no thread",
            with(ConverseStart {
                run: spec(),
                ..ConverseStart::default()
            }),
            "start.thread_id",
        ),
        (
            "both ways of starting",
            with(ConverseStart {
                thread_id: "t".into(),
                thread_and_run: Some(ThreadAndRunSpec::default()),
                ..ConverseStart::default()
            }),
            "start.thread_and_run",
        ),
        (
            "a heartbeat too fast",
            vec![start(Some(short))],
            "start.options.heartbeat_interval",
        ),
        (
            "a heartbeat too fast",
            vec![attach(Some(short))],
            "attach.options.heartbeat_interval",
        ),
        ("attach to no thread", id("", "r"), "attach.thread_id"),
        ("attach to no run", id("t", ""), "attach.run_id"),
        ("attach to what is no id", id("t", ".."), "run_id"),
    ];
    let script = Script::new([]).await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
    for (what, said, field) in rows {
        // Half-closed at once, as `Caller` would not be.
        let said: Vec<_> = said
            .into_iter()
            .map(|message| ConverseRunRequest {
                message: Some(message),
            })
            .collect();
        let status = gateway
            .runs()
            .converse_run(tokio_stream::iter(said))
            .await
            .expect_err(what);
        assert_eq!(
            (status.code(), &*blamed(&status)),
            (Code::InvalidArgument, field),
            "{what}: {status:?}"
        );
    }
    let empty = [ConverseRunRequest { message: None }];
    let status = gateway
        .runs()
        .converse_run(tokio_stream::iter(empty))
        .await
        .expect_err("an empty message");
    assert_eq!(
        (status.code(), &*blamed(&status)),
        (Code::InvalidArgument, "message")
    );
    assert_eq!(script.upstream.requests().len(), 0);
    gateway.drain().await;
}

#[tokio::test]
async fn after_the_end_nothing_that_is_said_matters() {
    // The upstream does not say `done`: the gateway waits for it a while.
    let go = Arc::new(Notify::new());
    let answer = Answer::sse([state("queued", &[]), state("completed", &[])])
        .wait(&go)
        .bytes(DONE);
    let script = Script::new([(answer, run("completed", &[]))]).await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
    let mut caller = Caller::start(&gateway).await;
    caller.until("run_completed").await;
    for said in [cancel(), start(None), outputs(&[("x", "1")])] {
        caller.say(said);
    }
    // By now the gateway could have read it all.
    round_trip(&gateway).await;
    go.notify_one();
    assert_eq!(
        caller
            .next()
            .await
            .expect("no error")
            .map(|event| name(&event))
            .as_deref(),
        Some("done")
    );
    assert!(caller.next().await.expect("no error").is_none());
    assert_eq!(script.cancels(), 0);
    gateway.drain().await;
    script.finish();
}
