//! What each caller used is counted, by its name, for as many names as are wanted.

use runs_gateway::v1::{run_service_client::RunServiceClient, *};
use tempfile::TempDir;

use crate::{A, B, OTHER, SECRET, api::Store, by, support::program::Running};

#[tokio::test]
async fn usage_is_counted_by_caller_and_names_are_bounded() {
    let (store, upstream) = Store::upstream().await;
    store.put("/threads/thread_1", serde_json::json!({}));
    let folder = TempDir::new().expect("a folder");
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let tokens = file("tokens", format!("{SECRET} a\n{OTHER} b\n"));
    let weights = file("weights", "a=3\n".to_owned());
    let gateway = Running::start(&[
        "--upstream-url",
        &upstream.url(),
        "--upstream-api-key",
        "sk-own",
        "--tokens-file",
        &tokens,
        "--caller-weights-file",
        &weights,
        "--max-named-callers",
        "1",
    ])
    .await;
    let mut runs = RunServiceClient::new(gateway.channel.clone());
    let get = |run: &str| GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: run.to_owned(),
    };
    // The first caller that calls is the one with a name. Each run counts once.
    for _ in 0..2 {
        runs.get_run(by(A, get("run_1"))).await.expect("a run");
    }
    runs.get_run(by(B, get("run_1"))).await.expect("a run");
    runs.get_run(by(B, get("run_2"))).await.expect("a run");
    let watch = WatchRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_3".to_owned(),
        ..WatchRunRequest::default()
    };
    let stream = runs.watch_run(by(A, watch)).await;
    let mut stream = stream.expect("a stream").into_inner();
    while stream.message().await.expect("an event").is_some() {}
    let wait = WaitRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_4".to_owned(),
        ..WaitRunRequest::default()
    };
    runs.wait_run(by(A, wait)).await.expect("a run");

    let (_, text) = gateway.ask_admin("/metrics").await;
    let expected = [
        "calls_total{caller=\"a\"} 4",
        "calls_total{caller=\"other\"} 2",
        "refused_total{caller=\"a\"} 0",
        "live_streams{caller=\"a\"} 0",
        "tokens_total{caller=\"a\",gen_ai_request_model=\"m\",gen_ai_token_type=\"input\"} 9",
        "tokens_total{caller=\"a\",gen_ai_request_model=\"m\",gen_ai_token_type=\"output\"} 15",
        "tokens_total{caller=\"other\",gen_ai_request_model=\"m\",gen_ai_token_type=\"output\"} 5",
    ];
    for sample in expected {
        let line = format!("runs_gateway_caller_{sample}");
        assert!(text.lines().any(|it| it == line), "no {line} in {text}");
    }
    assert!(!text.contains("caller=\"b\""), "{text}");
    let (status, _) = gateway.stop("-TERM").await;
    assert!(status.success());
}
