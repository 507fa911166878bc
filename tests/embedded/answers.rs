//! Assistants, threads and messages are kept as they were sent, and answers look like the
//! service's.

use serde_json::{Value, json};

use crate::client::{Embedded, spec, text};

#[tokio::test]
async fn a_resource_is_made_read_changed_and_deleted() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let messages = format!("{thread}/messages");
    let metadata = json!({ "a": "1" });
    let parts = json!([
        { "type": "text", "text": "Look:" },
        { "type": "image_url", "image_url": { "url": "https://example.com/a.png", "detail": "low" } },
    ]);
    let rows = [
        (
            "/assistants",
            json!({ "model": "m", "name": "n", "tools": [{ "type": "file_search" }], "metadata": metadata }),
            json!({ "name": null, "instructions": "i", "tools": [], "metadata": { "b": "2" } }),
            "asst_",
            "assistant.deleted",
        ),
        (
            "/threads",
            json!({ "metadata": metadata }),
            json!({ "metadata": { "b": "2" } }),
            "thread_",
            "thread.deleted",
        ),
        (
            &messages,
            json!({ "role": "user", "content": parts, "metadata": metadata }),
            json!({ "metadata": { "b": "2" } }),
            "msg_",
            "thread.message.deleted",
        ),
    ];
    for (path, body, change, prefix, deleted) in rows {
        let made = api.post(path, body).await;
        let id = text(&made["id"]);
        let random = id
            .strip_prefix(prefix)
            .unwrap_or_else(|| panic!("{id} lacks {prefix}"));
        assert!(
            random.len() == 24 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "{id}"
        );
        assert_eq!(made["metadata"], metadata);
        let path = format!("{path}/{id}");
        assert_eq!(api.get(&path).await, made);
        let mut expected = made.clone();
        for (name, value) in change.as_object().expect("an object") {
            expected[name] = value.clone();
        }
        assert_eq!(api.post(&path, change).await, expected);
        assert_eq!(
            api.post(&path, json!({})).await,
            expected,
            "nothing named, nothing changed"
        );
        assert_eq!(
            api.post(&path, json!({ "metadata": {} })).await["metadata"],
            json!({}),
            "an empty one clears"
        );
        let gone = api.ok("DELETE", &path, Value::Null).await;
        assert_eq!(
            gone,
            json!({ "id": id, "object": deleted, "deleted": true })
        );
        assert_eq!(api.ask("GET", &path, Value::Null).await.status, 404);
    }
}

#[tokio::test]
async fn content_comes_back_part_by_part() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let image =
        json!({ "type": "image_file", "image_file": { "file_id": "file-1", "detail": "high" } });
    let content = json!([{ "type": "text", "text": "Look:" }, image]);
    let attachments = json!([{ "file_id": "file-2", "tools": [{ "type": "file_search" }] }]);
    let body = json!({ "role": "assistant", "content": content, "attachments": attachments });
    let message = api.post(&format!("{thread}/messages"), body).await;
    let text = json!({ "type": "text", "text": { "value": "Look:", "annotations": [] } });
    assert_eq!(message["content"], json!([text, image]));
    assert_eq!(message["attachments"], attachments);
    assert_eq!(
        (&message["role"], &message["status"]),
        (&json!("assistant"), &json!("completed"))
    );
}

#[tokio::test]
async fn paths_work_with_the_version_and_without_and_keys_do_not_matter() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    assert_eq!(
        api.get(&format!("/v1{thread}")).await,
        api.get(&thread).await
    );
    let run = api
        .post(
            "/v1/threads/runs",
            spec(json!({ "instructions": "Say something." })),
        )
        .await;
    let path = format!(
        "/threads/{}/runs/{}",
        text(&run["thread_id"]),
        text(&run["id"])
    );
    assert_eq!(api.get(&path).await["id"], run["id"]);
}

#[tokio::test]
async fn an_answer_has_the_headers_of_the_service() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let run = api.run(&thread, json!({})).await;
    let unfinished = api.ask("GET", &run, Value::Null).await;
    let hint: u64 = unfinished.headers["openai-poll-after-ms"]
        .to_str()
        .ok()
        .and_then(|it| it.parse().ok())
        .expect("a number");
    assert!((20..=1_000).contains(&hint));
    assert!(unfinished.headers.contains_key("openai-processing-ms"));
    api.until(&run, "completed").await;
    let finished = api.ask("GET", &run, Value::Null).await;
    assert!(!finished.headers.contains_key("openai-poll-after-ms"));
    assert_ne!(
        finished.headers["x-request-id"],
        unfinished.headers["x-request-id"]
    );
}

#[test]
fn the_contract_knows_nothing_of_the_embedded_package() {
    let name = b"runsgateway.embedded";
    assert!(
        !runs_gateway::v1::DESCRIPTOR
            .windows(name.len())
            .any(|window| window == name)
    );
}
