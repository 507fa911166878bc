//! What is shown of runs, and the exit codes.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use clap::Parser as _;
use runs_gateway::{
    config::{self, Cli, Command},
    dev::Dev,
    v1::{
        ListAssistantsRequest, StreamOptions, StreamSubmitToolOutputsRequest, ToolOutput,
        ToolOutputs, assistant_service_client::AssistantServiceClient,
    },
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    certificates::Authority,
    script::{FAST, create_with, done, event, hear, run},
    shown::{Shown, asked, begun, delta, ended, message},
    support::{
        gateway::spawn_gateway,
        program::Running,
        upstream::{Answer, Upstream},
    },
};

/// The flags that name an assistant, so that none is made.
const ASSISTANT: [&str; 2] = ["--assistant", "asst_1"];

fn ask<'a>(question: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    [&["run", question], &ASSISTANT[..], flags].concat()
}

#[tokio::test]
async fn a_question_is_answered_and_what_was_made_for_it_is_gone() {
    let words = [
        "dev",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ];
    let cli = Cli::try_parse_from([&["runs-gateway"], &words[..]].concat()).expect("flags");
    let Command::Dev(args) = cli.command else {
        unreachable!("the command is dev")
    };
    let dev = Dev::start(
        config::Dev::try_from(*args).expect("flags"),
        CancellationToken::new(),
    );
    let dev = dev.await.expect("the gateway on the embedded API");
    let address = format!("http://{}", dev.grpc);
    let mut assistants = AssistantServiceClient::connect(address)
        .await
        .expect("a gateway");
    let all = ListAssistantsRequest::default();
    let before = assistants
        .list_assistants(all.clone())
        .await
        .expect("a list");

    let told = Shown::start(dev.grpc, &["run", "Hello, gateway"])
        .ended()
        .await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(
        told.stdout.contains("Hello, gateway") && told.stdout.ends_with('\n'),
        "{told:?}"
    );
    for line in [
        "run run_",
        "model gpt-4o-mini",
        "status in_progress",
        "completed after",
        "written",
    ] {
        assert!(told.stderr.contains(line), "{line}: {told:?}");
    }
    let after = assistants.list_assistants(all).await.expect("a list");
    assert_eq!(after.get_ref(), before.get_ref());

    // Of a run that is over, the same text is there for who watches it.
    let name = told.stderr.split_whitespace().collect::<Vec<_>>();
    let [_, run, _, _, thread, ..] = name[..] else {
        panic!("{told:?}")
    };
    let words = ["watch", thread.trim_end_matches(','), run];
    let again = Shown::start(dev.grpc, &words).ended().await;
    assert_eq!(
        (again.code, again.stdout),
        (Some(0), told.stdout),
        "{}",
        again.stderr
    );
    dev.end().await;
}

/// A run in a status, with these members.
fn run_with(status: &str, members: &Value) -> String {
    let mut run: Value = serde_json::from_str(&run(status)).expect("JSON");
    let run = run.as_object_mut().expect("an object");
    run.extend(members.as_object().expect("an object").clone());
    json!(run).to_string()
}

#[tokio::test]
async fn the_exit_code_says_how_the_run_ended() {
    let function = json!({"name": "get_weather", "arguments": "{\"city\":\"Paris\"}"});
    let call = json!({"id": "call_1", "type": "function", "function": function});
    let action = json!({"required_action": {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": [call]}}});
    let call = json!({"id": "call_2", "type": "mcp", "name": "search", "arguments": "{}", "server_label": "docs"});
    let approval = json!({"required_action": {"type": "submit_tool_approval", "submit_tool_approval": {"tool_calls": [call]}}});
    let call = json!({"id": "call_3", "type": "computer_use", "computer_use": {"action": {}}});
    let other = json!({"required_action": {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": [call]}}});
    let error = json!({"last_error": {"code": "server_error", "message": "it broke"}});
    let incomplete = json!({"incomplete_details": {"reason": "max_completion_tokens"}});
    let usage =
        json!({"usage": {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}});
    let nothing = json!({});
    let table: [(&str, &Value, i32, &[&str]); 8] = [
        (
            "completed",
            &usage,
            0,
            &["completed after", "12 tokens read, 34 written"],
        ),
        (
            "failed",
            &error,
            3,
            &["failed after", "error server_error: it broke"],
        ),
        (
            "incomplete",
            &incomplete,
            3,
            &["reason: max_completion_tokens"],
        ),
        ("cancelled", &nothing, 3, &["cancelled after"]),
        ("expired", &nothing, 3, &["expired after"]),
        (
            "requires_action",
            &action,
            4,
            &[
                "call_1: get_weather({\"city\":\"Paris\"})",
                "it waits for tool outputs, which cannot be given here",
            ],
        ),
        (
            "requires_action",
            &approval,
            4,
            &[
                "call_2 wants approval: search({})",
                "it waits for approvals of tool calls, which cannot be given here",
            ],
        ),
        ("requires_action", &other, 4, &["call_3: computer_use"]),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    for (status, members, code, lines) in table {
        let last = event(&format!("thread.run.{status}"), run_with(status, members));
        upstream.push(Answer::sse([begun("Hi"), vec![last, done()]].concat()));
        let told = Shown::start(gateway.address(), &ask("?", &[]))
            .ended()
            .await;
        assert_eq!(
            (told.code, &*told.stdout),
            (Some(code), "Hi\n"),
            "{status}: {told:?}"
        );
        for line in lines {
            assert!(told.stderr.contains(line), "{status}: {line}: {told:?}");
        }
    }
    upstream.push(Answer::json(
        404,
        r#"{"error":{"message":"No assistant found","code":null}}"#,
    ));
    let told = Shown::start(gateway.address(), &ask("?", &[]))
        .ended()
        .await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(
        told.stderr.contains("NotFound: ") && told.stderr.lines().count() == 1,
        "{told:?}"
    );
    gateway.drain().await;
}

/// What a step called is named, whatever made the call; what the contract does not know has the
/// upstream's name.
#[tokio::test]
async fn what_steps_did_is_shown_by_its_name() {
    let step = |kind: &str, details: Value| {
        let step = json!({
            "id": "step_1", "object": "thread.run.step", "run_id": "run_1", "thread_id": "thread_1",
            "type": kind, "status": "completed", "step_details": details,
        });
        event("thread.run.step.completed", step.to_string())
    };
    let call = |call: Value| {
        step(
            "tool_calls",
            json!({"type": "tool_calls", "tool_calls": [call]}),
        )
    };
    let parts = json!({"name": "weather", "arguments": "{}", "output": "rain"});
    let table = [
        (
            call(json!({"type": "function", "function": parts})),
            "  weather({}) gave rain\n",
        ),
        (
            call(json!({"type": "openapi", "function": parts})),
            "  weather({}) gave rain\n",
        ),
        (
            call(json!({"type": "openapi", "openapi": parts})),
            "  weather({}) gave rain\n",
        ),
        (
            call(
                json!({"type": "mcp", "name": "search", "arguments": "{}", "output": "[1]", "server_label": "docs"}),
            ),
            "  search({}) gave [1]\n",
        ),
        // Services may send its output later, as a delta.
        (
            call(json!({"type": "mcp", "name": "search", "arguments": "{}", "output": null})),
            "  search({})\n",
        ),
        (
            call(json!({"type": "file_search", "file_search": {}})),
            "  file_search\n",
        ),
        (
            call(
                json!({"type": "bing_grounding", "bing_grounding": {"requesturl": "https://a.example"}}),
            ),
            "  bing_grounding\n",
        ),
        (
            step(
                "activities",
                json!({"type": "activities", "activities": []}),
            ),
            "step step_1 activities completed\n",
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    for (did, line) in table {
        let created = event("thread.run.created", run("queued"));
        let completed = event("thread.run.completed", run("completed"));
        upstream.push(Answer::sse(vec![created, did, completed, done()]));
        let told = Shown::start(gateway.address(), &ask("?", &[]))
            .ended()
            .await;
        assert_eq!(told.code, Some(0), "{told:?}");
        assert!(told.stderr.contains(line), "{line}: {told:?}");
    }
    gateway.drain().await;
}

/// A terminal obeys control characters: what others wrote has none, wherever it comes from.
#[tokio::test]
async fn control_characters_are_shown_and_not_sent() {
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\r\u{8}";
    let text = format!("a{evil}\nb");
    let model =
        json!({"model": evil, "id": "run_1", "last_error": {"code": evil, "message": evil}});
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let said: Vec<Bytes> = vec![
        event("thread.run.created", run_with("queued", &model)),
        event(evil.trim_end(), "{}"),
        delta("msg_1", &text),
        event("thread.message.completed", message("msg_1", &text)),
        event("thread.run.failed", run_with("failed", &model)),
        done(),
    ];
    upstream.push(Answer::sse(said));
    let error = json!({"error": {"message": evil, "code": evil}}).to_string();
    upstream.push(Answer::json(400, error));
    for _ in 0..2 {
        let told = Shown::start(gateway.address(), &ask("?", &[]))
            .ended()
            .await;
        for text in [&told.stdout, &told.stderr] {
            let sent = text.chars().find(|it| it.is_control() && *it != '\n');
            assert_eq!(sent, None, "{told:?}");
        }
        assert!(
            [&told.stdout, &told.stderr]
                .iter()
                .any(|text| text.contains("␛[2J")),
            "{told:?}"
        );
    }
    gateway.drain().await;
}

/// A gateway behind TLS that admits callers by certificate or token is called with what it asks
/// for.
#[tokio::test]
async fn a_caller_shows_who_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a file");
        path.to_str().expect("text").to_owned()
    };
    let authority = Authority::new();
    let ((chain, key), (own, own_key)) =
        (authority.server("gateway.example"), authority.client("me"));
    let (ca, chain, key) = (
        write("ca", authority.pem()),
        write("crt", &chain),
        write("key", &key),
    );
    let (own, own_key) = (write("own", &own), write("own-key", &own_key));
    // Of "secret".
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b me\n";
    let (tokens, token) = (write("tokens", hash), write("token", "secret\n"));
    let wrong = write("wrong", "other\n");

    let upstream = Upstream::start().await;
    let url = upstream.url();
    let keyed = [
        "--upstream-url",
        &url,
        "--upstream-api-key",
        "k",
        "--tls-cert-file",
        &chain,
        "--tls-key-file",
        &key,
    ];
    let by_token = Running::start(&[&keyed[..], &["--tokens-file", &tokens]].concat()).await;
    let by_certificate = ["--tls-client-ca-file", &ca, "--allowed-client", "me"];
    let by_certificate = Running::start(&[&keyed[..], &by_certificate].concat()).await;

    let tls = ["--tls-ca-file", &ca, "--tls-name", "gateway.example"];
    let table: [(&Running, &[&str], Option<&str>); 7] = [
        (
            &by_token,
            &[&tls[..], &["--token-file", &token]].concat(),
            None,
        ),
        (
            &by_token,
            &[&tls[..], &["--token-file", &wrong]].concat(),
            Some("Unauthenticated"),
        ),
        (&by_token, &tls, Some("Unauthenticated")),
        (
            &by_token,
            &["--token-file", &token],
            Some("give --tls-ca-file"),
        ),
        (
            &by_token,
            &["--token-file", "/no/file"],
            Some("--token-file /no/file"),
        ),
        (
            &by_certificate,
            &[
                &tls[..],
                &["--client-cert-file", &own, "--client-key-file", &own_key],
            ]
            .concat(),
            None,
        ),
        (&by_certificate, &tls, Some("give --client-cert-file")),
    ];
    for (program, flags, refused) in table {
        if refused.is_none() {
            upstream.push(Answer::sse([begun("Hi"), ended("Hi")].concat()));
        }
        let told = Shown::start(program.address, &ask("?", flags))
            .ended()
            .await;
        assert_eq!(
            told.code,
            Some(i32::from(refused.is_some())),
            "{flags:?}: {told:?}"
        );
        assert!(!told.stderr.contains("secret"), "{told:?}");
        let line = refused.unwrap_or("completed after");
        assert!(told.stderr.contains(line), "{flags:?}: {told:?}");
    }
    for program in [by_token, by_certificate] {
        program.stop("-TERM").await;
    }
}

/// Who watches a run sees what was said, waits with it for somebody else's outputs, and sees what
/// follows.
#[tokio::test]
async fn a_watched_run_is_shown_across_its_tool_calls() {
    let status = Arc::new(Mutex::new("requires_action"));
    let told = Arc::clone(&status);
    // By its path: what is pushed may be taken by a poll of who watches.
    let upstream = Upstream::answering(move |it| {
        if it.target.ends_with("/submit_tool_outputs") {
            Answer::sse([vec![delta("msg_1", "Sunny.")], ended("One moment. Sunny.")].concat())
        } else {
            asked(it, *told.lock().expect("no panic"), "")
        }
    });
    let upstream = upstream.await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let options = StreamOptions {
        resumable: true,
        ..StreamOptions::default()
    };
    let waits = vec![
        event("thread.run.requires_action", run("requires_action")),
        done(),
    ];
    upstream.push(Answer::sse([begun("One moment. "), waits].concat()));
    let made = gateway.runs().stream_create_run(create_with(options)).await;
    hear(made.expect("a stream").into_inner()).await;

    let mut shown = Shown::start(gateway.address(), &["watch", "thread_1", "run_1"]);
    shown.has_line("status requires_action").await;
    shown.has_text("One moment. ").await;
    *status.lock().expect("no panic") = "in_progress";
    let output = ToolOutput {
        tool_call_id: "call_1".into(),
        output: Some("sunny".into()),
        ..ToolOutput::default()
    };
    let outputs = ToolOutputs {
        tool_outputs: vec![output],
        ..ToolOutputs::default()
    };
    let submit = StreamSubmitToolOutputsRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        tool_outputs: Some(outputs),
        options: Some(options),
    };
    let submitted = gateway.runs().stream_submit_tool_outputs(submit).await;
    hear(submitted.expect("a stream").into_inner()).await;
    let told = shown.ended().await;
    assert_eq!(
        (told.code, &*told.stdout),
        (Some(0), "One moment. Sunny.\n"),
        "{told:?}"
    );
    gateway.drain().await;
}
