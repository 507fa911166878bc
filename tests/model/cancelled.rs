//! A run that nobody wants any more closes its request at once.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    harness::{OnModel, asking, text},
    support::upstream::Answer,
};

#[tokio::test]
async fn a_run_that_is_cancelled_or_taken_away_closes_its_request() {
    for (what, method, path, ended) in [
        (
            "cancelled",
            "POST",
            "/runs/{run}/cancel",
            "event: thread.run.cancelled",
        ),
        ("deleted", "DELETE", "", "event: error"),
    ] {
        let dev = OnModel::start(&[]).await;
        // The model goes on for as long as the sender lives.
        let (words, said) = mpsc::channel(1);
        dev.model.push(Answer::sse_with(said));
        let mut stream = dev
            .post(
                "/threads/runs",
                asking(json!({ "stream": true })).to_string(),
            )
            .await;
        words.send(text("Hel").into()).await.expect("it is read");
        let mut seen = String::new();
        while !seen.contains("thread.message.delta") {
            let chunk = stream.chunk().await.expect("a stream").expect("a delta");
            seen += str::from_utf8(&chunk).expect("text");
        }
        let id = |prefix: &str| {
            let from = seen.find(&format!("\"{prefix}_")).expect("an id") + 1;
            let rest = &seen[from..];
            &rest[..rest.find('"').expect("its end")]
        };
        let path = format!(
            "/threads/{}{}",
            id("thread"),
            path.replace("{run}", id("run"))
        );
        let (status, _) = dev.ask(method, &path, Value::Null).await;
        assert_eq!(status, 200, "{what}");
        assert!(dev.model.closed(0).await.by_client, "{what}");
        let rest = stream.text().await.expect("the rest");
        assert!(rest.contains(ended), "{what}: {rest}");
        drop(words);
    }
}
