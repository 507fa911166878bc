//! Azure AI Foundry's agents, scripted: bearer tokens that a command prints and that expire, and a
//! run whose tools need an approval; on the real program.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use assert_cmd::Command;
use runs_gateway::v1::{
    ConverseRunRequest, ConverseStart, GetRunRequest, RequiredActionType, Run, RunEvent, RunStatus,
    StepDetails, ThreadAndRunSpec, ToolApproval, ToolOutputs, ToolType,
    converse_run_request::Message, run_event::Payload, run_service_client::RunServiceClient,
};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::{
    operators::{text, write},
    reloads::{lines, metric},
    support::{
        program::{PROGRAM, Running},
        upstream::{Answer, Recorded, Upstream},
    },
};

const LIMIT: Duration = Duration::from_secs(20);

const FAILING: &str = r#"runs_gateway_reload_failing{files="upstream key"}"#;

/// What the command prints of a token that lives so long.
fn credential(token: &str, lives: Duration) -> String {
    let expires = humantime::format_rfc3339(SystemTime::now() + lives);
    let status = json!({ "token": token, "expirationTimestamp": expires.to_string() });
    json!({ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status })
        .to_string()
}

/// A run in this state, as the service writes it.
fn run(status: &str, action: &Value) -> Value {
    json!({
        "id": "run_1", "object": "thread.run", "created_at": 1_764_400_000, "assistant_id": "asst_1",
        "thread_id": "thread_1", "status": status, "started_at": 1_764_400_001, "expires_at": null,
        "cancelled_at": null, "failed_at": null, "completed_at": null, "required_action": action,
        "last_error": null, "model": "gpt-4o", "instructions": "Be brief.",
        "tools": [{ "type": "mcp", "server_label": "docs", "server_url": "https://docs.example/mcp" }],
        "tool_resources": { "mcp": [{ "server_label": "docs", "require_approval": "always" }] },
        "metadata": {}, "temperature": 1.0, "top_p": 1.0, "max_completion_tokens": null,
        "max_prompt_tokens": null, "truncation_strategy": { "type": "auto", "last_messages": null },
        "incomplete_details": null, "usage": null, "response_format": "auto", "tool_choice": "auto",
        "parallel_tool_calls": true
    })
}

fn waiting() -> Value {
    let call = json!({
        "id": "call_1", "type": "mcp", "name": "search", "arguments": "{\"q\":\"news\"}", "server_label": "docs"
    });
    let calls = json!({ "tool_calls": [call] });
    run(
        "requires_action",
        &json!({ "type": "submit_tool_approval", "submit_tool_approval": calls }),
    )
}

fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

const DONE: &str = "event: done\ndata: [DONE]\n\n";

/// The rest of the run: the call that was approved, piece by piece, and the page that it found.
fn approved() -> Answer {
    let piece = json!({ "index": 0, "id": "call_1", "type": "mcp", "arguments": "{\"q\"" });
    let details = json!({ "type": "mcp", "tool_calls": [piece] });
    let page = json!({
        "type": "url_citation", "text": "[1]", "start_index": 5, "end_index": 8,
        "url_citation": { "url": "https://docs.example/news", "title": "News" }
    });
    let part = json!({ "type": "text", "text": { "value": "News [1]", "annotations": [page] } });
    Answer::sse([
        event("thread.run.in_progress", &run("in_progress", &Value::Null)),
        event(
            "thread.run.step.delta",
            &json!({ "id": "step_1", "object": "thread.run.step.delta", "delta": { "step_details": details } }),
        ),
        event(
            "thread.message.completed",
            &json!({ "id": "msg_1", "object": "thread.message", "role": "assistant", "status": "completed", "content": [part] }),
        ),
        event("thread.run.completed", &run("completed", &Value::Null)),
        DONE.to_owned(),
    ])
}

/// The service. Its first stream goes on when it is told to.
async fn service(go: &Arc<Notify>) -> Upstream {
    let go = Arc::clone(go);
    Upstream::answering(move |request| {
        let (path, query) = request.target.split_once('?').expect("a query");
        assert_eq!(query, "api-version=v1");
        let path = path.strip_prefix("/api/projects/p").expect("the project");
        match (request.method.as_str(), path) {
            ("POST", "/threads/runs") => {
                let queued = event("thread.run.queued", &run("queued", &Value::Null));
                let waits = event("thread.run.requires_action", &waiting());
                Answer::sse([queued]).wait(&go).bytes(waits).bytes(DONE)
            }
            ("POST", "/threads/thread_1/runs/run_1/submit_tool_outputs") => approved(),
            ("GET", "/threads/thread_1/runs/run_1") => Answer::json(200, waiting().to_string()),
            other => panic!("unexpected: {other:?}"),
        }
    })
    .await
}

/// The gateway in front of it, whose command prints the file.
async fn gateway(upstream: &Upstream, file: &str) -> Running {
    let (url, command) = (
        format!("{}/api/projects/p", upstream.url()),
        format!("cat '{file}'"),
    );
    let flags = [
        ["--upstream-profile", "foundry"],
        ["--upstream-url", &url],
        ["--upstream-key-command", &command],
        ["--log-format", "json"],
    ];
    Running::start(flags.as_flattened()).await
}

async fn read(program: &Running) -> Run {
    let request = GetRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
    };
    let mut runs = RunServiceClient::new(program.channel.clone());
    let run = timeout(LIMIT, runs.get_run(request))
        .await
        .expect("in time");
    run.expect("a run").into_inner()
}

/// Reads the run until a request has this token.
async fn has_token(program: &Running, upstream: &Upstream, token: &str) {
    let seen = async {
        loop {
            read(program).await;
            if bearer(upstream.requests().last()) == Some(token) {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, seen)
        .await
        .unwrap_or_else(|_| panic!("no request has {token}: {:#?}", program.log()));
}

fn bearer(request: Option<&Recorded>) -> Option<&str> {
    request?.header("authorization")?.strip_prefix("Bearer ")
}

async fn next(events: &mut Streaming<RunEvent>) -> Option<RunEvent> {
    let event = timeout(LIMIT, events.message()).await.expect("in time");
    event.expect("no error")
}

#[tokio::test]
async fn a_token_that_expires_in_mid_stream_is_renewed_for_the_next_request_of_the_conversation() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write(
        &folder,
        "credential",
        credential("token-1", Duration::from_secs(3)),
    );
    let go = Arc::default();
    let upstream = service(&go).await;
    let program = gateway(&upstream, &file).await;

    let (say, said) = mpsc::unbounded_channel();
    let say = |message| {
        let message = Some(message);
        say.send(ConverseRunRequest { message }).expect("heard");
    };
    let spec = ThreadAndRunSpec {
        assistant_id: "asst_1".into(),
        ..ThreadAndRunSpec::default()
    };
    say(Message::Start(ConverseStart {
        thread_and_run: Some(spec),
        ..ConverseStart::default()
    }));
    let mut runs = RunServiceClient::new(program.channel.clone());
    let events = runs.converse_run(UnboundedReceiverStream::new(said)).await;
    let mut events = events.expect("a conversation").into_inner();
    next(&mut events).await.expect("the run is queued");

    // The stream is open, and the token runs out.
    write(
        &folder,
        "credential",
        credential("token-2", Duration::from_secs(3600)),
    );
    has_token(&program, &upstream, "token-2").await;
    go.notify_one();

    let mut rest = Vec::new();
    while let Some(event) = next(&mut events).await {
        if let Some(Payload::Run(run)) = &event.payload
            && let Some(action) = &run.required_action
        {
            assert_eq!(action.r#type(), RequiredActionType::SubmitToolApproval);
            assert_eq!(run.extra_json, "", "what the service says has fields");
            say(Message::ToolOutputs(ToolOutputs {
                tool_approvals: vec![ToolApproval {
                    tool_call_id: "call_1".into(),
                    approve: Some(true),
                    ..ToolApproval::default()
                }],
                ..ToolOutputs::default()
            }));
        }
        rest.push(event);
    }
    let [_, _, delta, message, last, _] = &*rest else {
        panic!("{rest:#?}")
    };
    let Some(Payload::RunStepDelta(delta)) = &delta.payload else {
        panic!("{delta:?}")
    };
    let details = delta.delta.as_ref().and_then(|it| it.step_details.as_ref());
    let StepDetails { tool_calls, .. } = details.expect("details");
    let [call] = &**tool_calls else {
        panic!("{tool_calls:?}")
    };
    assert_eq!(
        (call.r#type(), call.arguments.as_deref()),
        (ToolType::Mcp, Some(r#"{"q""#))
    );
    let Some(Payload::Message(message)) = &message.payload else {
        panic!("{message:?}")
    };
    let text = message.content[0].text.as_ref().expect("text");
    let page = text.annotations[0].url_citation.as_ref().expect("a page");
    assert_eq!(page.url, "https://docs.example/news");
    assert!(
        matches!(&last.payload, Some(Payload::Run(run)) if run.status() == RunStatus::Completed)
    );

    let requests = upstream.requests();
    let posts: Vec<_> = requests.iter().filter(|it| it.method == "POST").collect();
    let [create, submit] = &*posts else {
        panic!("{posts:?}")
    };
    assert_eq!(bearer(Some(create)), Some("token-1"));
    assert_eq!(bearer(Some(submit)), Some("token-2"));
    let body: Value = serde_json::from_slice(&submit.body).expect("JSON");
    let approval = json!({ "tool_call_id": "call_1", "approve": true });
    assert_eq!(
        body,
        json!({ "tool_approvals": [approval], "stream": true })
    );
    let log = program.log().join("\n");
    assert!(!log.contains("token-"), "{log}");
    program.stop("-TERM").await;
}

#[tokio::test]
async fn while_the_command_fails_the_old_token_is_used_and_that_is_said_once_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write(
        &folder,
        "credential",
        credential("token-1", Duration::from_secs(3600)),
    );
    let upstream = service(&Arc::default()).await;
    let program = gateway(&upstream, &file).await;
    // What it prints now is no credential, and a secret all the same.
    fs::write(&file, "token-x").expect("a file");
    program.signal("-HUP");
    let [line] = &*lines(&program, "the key before stays in use", 1).await else {
        panic!("{:#?}", program.log())
    };
    assert_eq!(line["level"], "WARN", "{line}");
    assert!(line.to_string().contains("it prints no JSON"), "{line}");
    assert!(metric(&program, FAILING).await > 0.5);
    has_token(&program, &upstream, "token-1").await;
    let expiry = metric(
        &program,
        "runs_gateway_upstream_key_expiry_timestamp_seconds",
    )
    .await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let left = expiry - now.expect("after 1970").as_secs_f64();
    assert!((3500.0..3601.0).contains(&left), "{left}");

    // It is tried again, and nobody has to ask for it.
    write(
        &folder,
        "credential",
        credential("token-2", Duration::from_secs(3600)),
    );
    has_token(&program, &upstream, "token-2").await;
    assert!(metric(&program, FAILING).await < 0.5);
    let log = program.log().join("\n");
    assert!(!log.contains("token-"), "{log}");
    program.stop("-TERM").await;
}

#[test]
fn a_command_that_gives_no_key_is_a_line_at_start_that_holds_nothing_of_what_it_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = text(&folder.path().join("nowhere"));
    let expired = write(
        &folder,
        "expired",
        r#"{"status":{"token":"secret","expirationTimestamp":"2025-01-01T00:00:00Z"}}"#,
    );
    let rows = [
        (format!("{nowhere} secret"), "No such file"),
        ("sh -c 'echo secret; exit 3'".to_owned(), "exit status: 3"),
        ("echo secret".to_owned(), "it prints no JSON"),
        (format!("cat {expired}"), "has expired"),
        ("sleep 60".to_owned(), "no end within 300ms"),
        // It is not read to the end, and does not go on.
        ("yes secret".to_owned(), "more than 65536 bytes"),
    ];
    for (command, words) in rows {
        let flags = [
            ["--listen", "127.0.0.1:0"],
            ["--upstream-key-command", &command],
            ["--upstream-key-command-timeout", "300ms"],
        ];
        let ended = Command::new(PROGRAM)
            .arg("serve")
            .args(flags.as_flattened())
            .timeout(LIMIT)
            .output()
            .expect("the program runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{command}: {said}");
        assert!(said.contains(words), "{command}: {said}");
        assert!(!said.contains("secret"), "{command}: {said}");
        assert_eq!(said.lines().count(), 1, "{command}: {said}");
    }
}

#[tokio::test]
async fn the_profile_of_a_service_that_has_ended_says_so_at_start() {
    let upstream = Upstream::start().await;
    for (profile, says) in [("azure", 1), ("foundry", 0)] {
        let url = upstream.url();
        let flags = ["--upstream-profile", profile, "--upstream-url", &url];
        let program = Running::start(&flags).await;
        let (_, log) = program.stop("-TERM").await;
        let said = log.lines().filter(|line| line.contains("2026-08-26"));
        assert_eq!(said.count(), says, "{profile}: {log}");
    }
}
