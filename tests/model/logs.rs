//! Nothing of a prompt, an answer or a key is logged, however much is logged.

use runs_gateway::v1::{
    CreateThreadAndRunRequest, FunctionDefinition, GetRunRequest, MessageContent, MessageInput,
    MessageRole, RunStatus, SubmitToolOutputsRequest, ThreadAndRunSpec, ThreadSpec, Tool,
    ToolOutput, ToolOutputs, WaitRunRequest, run_service_client::RunServiceClient,
};
use serde_json::json;

use crate::{
    harness::{call, end, text},
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
};

#[tokio::test]
async fn no_prompt_no_answer_and_no_key_is_logged_at_any_level() {
    let model = Upstream::start().await;
    let key = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(key.path(), "SECRET-KEY").expect("written");
    let key = key.path().to_str().expect("a path of text");
    let url = format!("{}/v1?key=SECRET-QUERY", model.url());
    let flags = [
        "--log",
        "trace",
        "--max-retries",
        "0",
        "--model-url",
        &url,
        "--model-api-key-file",
        key,
    ];
    let program = Running::start_as("dev", &flags, &[]).await;
    let mut runs = RunServiceClient::new(program.channel.clone());
    let function = FunctionDefinition {
        name: "SECRET-FUNCTION".to_owned(),
        parameters_json: r#"{"type":"object","title":"SECRET-SCHEMA"}"#.to_owned(),
        ..FunctionDefinition::default()
    };
    let question = MessageInput {
        role: MessageRole::User.into(),
        content: Some(MessageContent {
            text: Some("SECRET-QUESTION".to_owned()),
            parts: Vec::new(),
        }),
        ..MessageInput::default()
    };
    let spec = ThreadAndRunSpec {
        assistant_id: "asst_embedded".to_owned(),
        instructions: Some("SECRET-INSTRUCTIONS".to_owned()),
        thread: Some(ThreadSpec {
            messages: vec![question],
            ..ThreadSpec::default()
        }),
        tools: vec![Tool {
            function: Some(function),
            ..Tool::default()
        }],
        ..ThreadAndRunSpec::default()
    };
    let request = CreateThreadAndRunRequest {
        thread_and_run: Some(spec),
        ..CreateThreadAndRunRequest::default()
    };
    let function = json!({ "name": "SECRET-FUNCTION", "arguments": "{\"x\":\"SECRET-ARGUMENT\"}" });
    let made = call(&json!({ "index": 0, "id": "c", "function": function }));
    let error = r#"{"error":{"message":"SECRET-ERROR","type":"server_error","code":null}}"#;
    let answers = [
        Answer::sse([text("SECRET-ANSWER"), end("stop")]),
        Answer::sse([text("SECRET-ANSWER"), "data: SECRET-ANSWER\n\n".to_owned()]),
        Answer::sse([text("SECRET-ANSWER"), format!("data: {error}\n\n")]),
        Answer::json(401, error),
        Answer::json(500, error),
        Answer::json(200, "SECRET-ANSWER"),
    ];
    for last in answers {
        model.push(Answer::sse([made.clone(), end("tool_calls")]));
        let run = runs
            .create_thread_and_run(request.clone())
            .await
            .expect("made")
            .into_inner();
        let wait = WaitRunRequest {
            thread_id: run.thread_id.clone(),
            run_id: run.id.clone(),
            return_on_requires_action: true,
            ..WaitRunRequest::default()
        };
        let run = runs
            .wait_run(wait.clone())
            .await
            .expect("a run")
            .into_inner();
        assert_eq!(run.status(), RunStatus::RequiresAction);
        model.push(last);
        let output = ToolOutput {
            tool_call_id: "c".to_owned(),
            output: Some("SECRET-OUTPUT".to_owned()),
            ..ToolOutput::default()
        };
        let outputs = SubmitToolOutputsRequest {
            thread_id: run.thread_id.clone(),
            run_id: run.id.clone(),
            tool_outputs: Some(ToolOutputs {
                tool_outputs: vec![output],
                ..ToolOutputs::default()
            }),
        };
        runs.submit_tool_outputs(outputs).await.expect("taken");
        runs.wait_run(wait).await.expect("an end");
        let read = GetRunRequest {
            thread_id: run.thread_id,
            run_id: run.id,
        };
        runs.get_run(read).await.expect("a run");
    }
    assert_eq!(model.requests().len(), 12);
    let (_, log) = program.stop("-TERM").await;
    // It did log, and told what has to be mended in the model's words.
    assert!(log.contains("call ended") && log.contains("TRACE"), "{log}");
    assert!(
        log.contains("rejects the key: mend --model-api-key-file"),
        "{log}"
    );
    let found: Vec<_> = log
        .lines()
        .filter(|line| line.contains("SECRET"))
        .take(3)
        .collect();
    assert!(found.is_empty(), "said:\n{}", found.join("\n"));
}
