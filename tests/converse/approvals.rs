//! Runs that wait for approvals of tool calls, as MCP tools do: given like outputs, held and
//! submitted by the same rules, and never taken for an output.

use std::sync::Arc;

use runs_gateway::{
    conversation::Conversation,
    v1::{
        ConverseStart, RequiredActionType, RunEvent, RunSpec, RunStatus, ToolApproval, ToolOutputs,
        ToolType, converse_run_request::Message, run_event::Payload,
    },
};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tonic::Code;

use crate::{
    harness::{Caller, DONE, Script, asks, blamed, completes, outputs, run, state, within},
    support::{
        gateway::{spawn_gateway, spawn_retrying_gateway},
        upstream::Answer,
    },
};

/// The run, waiting for the approvals of these calls.
fn needs(calls: &[&str]) -> Value {
    let call = |id: &&str| json!({ "id": id, "type": "mcp", "name": "search", "arguments": "{\"q\":1}", "server_label": "docs" });
    let calls: Vec<_> = calls.iter().map(call).collect();
    let mut run = run("requires_action", &[]);
    run["required_action"] =
        json!({ "type": "submit_tool_approval", "submit_tool_approval": { "tool_calls": calls } });
    run
}

/// The event of that state.
fn asks_approval(calls: &[&str]) -> String {
    let run = needs(calls);
    format!("event: thread.run.requires_action\ndata: {run}\n\n")
}

/// A run that is created, and that waits for approvals, as a stream.
fn waits(calls: &[&str]) -> (Answer, Value) {
    let said = [state("queued", &[]), asks_approval(calls), DONE.to_owned()];
    (Answer::sse(said), needs(calls))
}

fn approval(id: &str, approve: bool) -> ToolApproval {
    ToolApproval {
        tool_call_id: id.into(),
        approve: Some(approve),
        ..ToolApproval::default()
    }
}

fn approvals(approvals: impl Into<Vec<ToolApproval>>) -> Message {
    Message::ToolOutputs(ToolOutputs {
        tool_approvals: approvals.into(),
        ..ToolOutputs::default()
    })
}

fn with_key(mut approval: ToolApproval) -> ToolApproval {
    let header = ("authorization".to_owned(), "Bearer mcp".to_owned());
    approval.headers.insert(header.0, header.1);
    approval
}

#[tokio::test]
async fn approvals_are_submitted_once_a_round_and_rounds_of_outputs_may_stand_between() {
    let script = Script::new([
        waits(&["a", "b"]),
        // Under the same id: it is another thing that is wanted.
        (asks(&["a"]), run("requires_action", &["a"])),
        waits(&["c"]),
        (completes(), run("completed", &[])),
    ])
    .await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
    let mut caller = Caller::start(&gateway).await;
    // Early, out of order, repeated.
    caller.say(approvals([approval("b", false)]));
    let asked = within("the question", async {
        loop {
            let event = caller.next().await.expect("no error").expect("no end");
            if let Some(action) = action(&event) {
                break action;
            }
        }
    })
    .await;
    assert_eq!(asked.r#type(), RequiredActionType::SubmitToolApproval);
    let calls = asked.submit_tool_approval.expect("calls").tool_calls;
    let [call, _] = &*calls else {
        panic!("{calls:?}")
    };
    assert_eq!(
        (call.r#type(), &*call.name, &*call.server_label),
        (ToolType::Mcp, "search", "docs")
    );
    assert_eq!(call.arguments.as_deref(), Some(r#"{"q":1}"#));
    caller.say(approvals([
        with_key(approval("a", true)),
        approval("b", false),
    ]));
    caller.until("run_requires_action").await;
    caller.say(outputs(&[("a", "1")]));
    caller.until("run_requires_action").await;
    caller.say(approvals([approval("c", true)]));
    let (events, end) = caller.rest().await;
    assert!(end.is_ok(), "{events:?}: {end:?}");
    let mcp = json!({ "authorization": "Bearer mcp" });
    let first = json!([
        { "tool_call_id": "a", "approve": true, "headers": mcp },
        { "tool_call_id": "b", "approve": false }
    ]);
    let third = json!([{ "tool_call_id": "c", "approve": true }]);
    assert_eq!(
        script.submits(),
        [
            json!({ "tool_approvals": first, "stream": true }),
            json!({ "tool_outputs": [{ "tool_call_id": "a", "output": "1" }], "stream": true }),
            json!({ "tool_approvals": third, "stream": true }),
        ]
    );
    gateway.drain().await;
    script.finish();
}

/// What the run of an event waits for.
fn action(event: &RunEvent) -> Option<runs_gateway::v1::RequiredAction> {
    match &event.payload {
        Some(Payload::Run(run)) => run.required_action.clone(),
        _ => None,
    }
}

#[tokio::test]
async fn what_is_no_approval_that_the_run_waits_for_is_named() {
    let (a, x) = (approval("a", true), approval("x", true));
    let mixed = ToolOutputs {
        tool_approvals: vec![a.clone(), x.clone()],
        ..ToolOutputs::default()
    };
    // Said before the run asks for the approval of `a`.
    let rows: [(&str, Vec<Message>, &str); 6] = [
        (
            "an output in place of an approval",
            vec![outputs(&[("a", "1")])],
            "tool_outputs.tool_outputs[0].tool_call_id",
        ),
        (
            "an unknown call",
            vec![Message::ToolOutputs(mixed)],
            "tool_outputs.tool_approvals[1].tool_call_id",
        ),
        (
            "another decision",
            vec![approvals([a.clone()]), approvals([approval("a", false)])],
            "tool_outputs.tool_approvals[0].tool_call_id",
        ),
        (
            "other headers",
            vec![approvals([a.clone(), with_key(a.clone())])],
            "tool_outputs.tool_approvals[1].tool_call_id",
        ),
        (
            "no call",
            vec![approvals([approval("", true)])],
            "tool_outputs.tool_approvals[0].tool_call_id",
        ),
        (
            "the same with something else",
            vec![approvals([
                a.clone(),
                ToolApproval {
                    extra_json: r#"{"more":1}"#.into(),
                    ..a
                },
            ])],
            "tool_outputs.tool_approvals[1].tool_call_id",
        ),
    ];
    for (what, said, field) in rows {
        let go = Arc::new(Notify::new());
        let works = Answer::sse([state("queued", &[])]).wait(&go);
        let asks = works.bytes(asks_approval(&["a"])).bytes(DONE);
        let script = Script::new([(asks, needs(&["a"]))]).await;
        let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
        let mut caller = Caller::start(&gateway).await;
        for message in said {
            caller.say(message);
        }
        go.notify_one();
        let (_, end) = caller.rest().await;
        let status = end.expect_err(what);
        assert_eq!(
            (status.code(), &*blamed(&status)),
            (Code::InvalidArgument, field),
            "{what}: {status:?}"
        );
        assert_eq!(script.submits().len(), 0, "{what}");
        gateway.drain().await;
    }
}

#[tokio::test]
async fn approvals_that_are_missing_when_the_caller_closes_are_named() {
    let script = Script::new([waits(&["a", "b"])]).await;
    let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
    let mut caller = Caller::start(&gateway).await;
    caller.say(approvals([approval("a", true)]));
    caller.close();
    let (_, end) = caller.rest().await;
    let status = end.expect_err("an approval is missing");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("approvals of b,"), "{status:?}");
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn approvals_whose_submit_may_not_have_arrived_are_sent_once_more_if_the_run_still_waits() {
    // The run after the submit, and how often it is submitted.
    let rows = [(needs(&["a"]), 2), (run("completed", &[]), 1)];
    for (seen, submits) in rows {
        let more = (submits == 2).then(|| (completes(), run("completed", &[])));
        let lost = (Answer::cut_before_answer(), seen);
        let script = Script::new([waits(&["a"]), lost].into_iter().chain(more)).await;
        let flags = ["--max-retries", "1", "--retry-pause", "1ms"];
        let gateway = spawn_retrying_gateway(&script.upstream.url(), &flags).await;
        let mut caller = Caller::start(&gateway).await;
        caller.say(approvals([approval("a", true)]));
        let (events, end) = caller.rest().await;
        assert!(end.is_ok(), "{events:?}: {end:?}");
        assert_eq!(script.submits().len(), submits, "{events:?}");
        gateway.drain().await;
        script.finish();
    }
}

#[tokio::test]
async fn the_library_asks_its_function_and_refuses_without_one() {
    let on_thread = || ConverseStart {
        thread_id: "thread_1".into(),
        run: Some(RunSpec::default()),
        ..ConverseStart::default()
    };
    for approves in [true, false] {
        let script = Script::new([waits(&["a"]), (completes(), run("completed", &[]))]).await;
        let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
        let mut conversation = Conversation::new(gateway.runs());
        if approves {
            conversation = conversation.approve(|call| async move {
                ToolApproval {
                    approve: Some(call.name == "search"),
                    ..ToolApproval::default()
                }
            });
        }
        let last = within("the run", conversation.start(on_thread(), |_| ()))
            .await
            .expect("a run");
        assert_eq!(last.status(), RunStatus::Completed);
        let given = json!([{ "tool_call_id": "a", "approve": approves }]);
        let body = json!({ "tool_approvals": given, "stream": true });
        assert_eq!(script.submits(), [body]);
        gateway.drain().await;
        script.finish();
    }
}
