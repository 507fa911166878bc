//! Lists come in pages, and memory is bounded.

use std::time::Duration;

use runs_gateway::embedded::Limits;
use serde_json::{Value, json};

use crate::client::{Embedded, spec, text};

#[tokio::test]
async fn following_the_cursor_gives_every_entry_once_in_either_order() {
    let api = Embedded::still().await;
    let thread = api.thread().await;
    let message = |at: usize| json!({ "role": "user", "content": format!("message {at}") });
    for at in 0..24 {
        api.post(&format!("{thread}/messages"), message(at)).await;
    }
    for at in 0..24 {
        api.post(
            "/assistants",
            json!({ "model": "m", "name": at.to_string() }),
        )
        .await;
    }
    for _ in 0..7 {
        let run = api.run(&thread, json!({})).await;
        api.until(&run, "completed").await;
    }
    let metadata = json!({ "embedded.tool_rounds": "6" });
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let run = api
        .run(&thread, json!({ "tools": tools, "metadata": metadata }))
        .await;
    for _ in 0..6 {
        let waiting = api.until(&run, "requires_action").await;
        api.post(
            &format!("{run}/submit_tool_outputs"),
            crate::client::outputs(&waiting),
        )
        .await;
    }
    api.until(&run, "completed").await;

    let lists = [
        ("/assistants".to_owned(), 25),
        (format!("{thread}/messages"), 33),
        (format!("{thread}/runs"), 8),
        (format!("{run}/steps"), 7),
    ];
    for (list, length) in lists {
        for limit in [1, 2, 7, 20, 100] {
            let oldest_first = walk(
                &api,
                &format!("{list}?limit={limit}&order=asc"),
                "after",
                limit,
            )
            .await;
            let mut newest_first = walk(
                &api,
                &format!("{list}?limit={limit}&order=desc"),
                "after",
                limit,
            )
            .await;
            assert_eq!(oldest_first.len(), length, "{list} by {limit}");
            newest_first.reverse();
            assert_eq!(oldest_first, newest_first, "{list} by {limit}");
            let last = oldest_first.last().expect("an entry");
            let mut backwards = walk(
                &api,
                &format!("{list}?limit={limit}&order=asc&before={last}"),
                "before",
                limit,
            )
            .await;
            backwards.sort();
            let mut all_but_last = oldest_first[..length - 1].to_vec();
            all_but_last.sort();
            assert_eq!(backwards, all_but_last, "{list} backwards by {limit}");
        }
        let standard = api.get(&list).await;
        assert_eq!(
            standard["data"].as_array().map(Vec::len),
            Some(length.min(20)),
            "{list} without a limit"
        );
        assert_eq!(standard["has_more"], length > 20, "{list} without a limit");
    }
}

/// The ids of all entries, page by page.
async fn walk(api: &Embedded, query: &str, cursor: &str, limit: usize) -> Vec<String> {
    let mut ids = Vec::new();
    let mut next = query.to_owned();
    loop {
        let page = api.get(&next).await;
        let entries = page["data"].as_array().expect("a list");
        let here: Vec<String> = entries
            .iter()
            .map(|entry| text(&entry["id"]).to_owned())
            .collect();
        assert_eq!(page["first_id"].as_str(), here.first().map(String::as_str));
        assert_eq!(page["last_id"].as_str(), here.last().map(String::as_str));
        assert!(here.len() <= limit);
        ids.extend(here);
        if page["has_more"] == false {
            return ids;
        }
        let at = if cursor == "after" {
            &page["last_id"]
        } else {
            &page["first_id"]
        };
        // The last cursor in a query counts.
        next = format!("{query}&{cursor}={}", text(at));
    }
}

#[tokio::test]
async fn beyond_the_limits_the_oldest_goes_first() {
    let limits = Limits {
        threads: 3,
        messages: 4,
        runs: 2,
        assistants: 2,
        ..Limits::default()
    };
    let api = Embedded::with(limits).await;
    let mut threads = [
        api.thread().await,
        api.thread().await,
        api.thread().await,
        String::new(),
    ];
    let refused = api.ask("POST", "/threads", json!({})).await.status;
    assert_eq!(refused, 429, "all threads were used just now");
    api.advance(Duration::from_secs(1));
    threads[3] = api.thread().await;
    let mut found = Vec::new();
    for thread in &threads {
        found.push(api.ask("GET", thread, Value::Null).await.status);
    }
    assert_eq!(found, [404, 200, 200, 200], "threads");

    let thread = &threads[3];
    for at in 0..6 {
        api.post(
            &format!("{thread}/messages"),
            json!({ "role": "user", "content": at.to_string() }),
        )
        .await;
    }
    let messages = api.get(&format!("{thread}/messages?order=asc")).await;
    let kept: Vec<&str> = messages["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| text(&it["content"][0]["text"]["value"]))
        .collect();
    assert_eq!(kept, ["2", "3", "4", "5"], "messages");

    let mut runs = Vec::new();
    for _ in 0..3 {
        let run = api.run(thread, json!({})).await;
        runs.push(api.until(&run, "completed").await["id"].clone());
    }
    let list = api.get(&format!("{thread}/runs?order=asc")).await;
    let kept: Vec<&Value> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| &it["id"])
        .collect();
    assert_eq!(kept, [&runs[1], &runs[2]], "runs");

    for name in ["a", "b", "c"] {
        api.post("/assistants", json!({ "model": "m", "name": name }))
            .await;
    }
    let list = api.get("/assistants?order=asc").await;
    let kept: Vec<&str> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| text(&it["name"]))
        .collect();
    assert_eq!(kept, ["Embedded", "b", "c"], "assistants");
}

#[tokio::test]
async fn all_threads_together_stay_within_their_bytes() {
    let api = Embedded::with(Limits {
        bytes: 20_000,
        ..Limits::default()
    })
    .await;
    let mut threads = Vec::new();
    for _ in 0..10 {
        // What was used just now does not go.
        api.advance(Duration::from_secs(1));
        let message = json!({ "role": "user", "content": "x".repeat(5_000) });
        let thread = api.post("/threads", json!({ "messages": [message] })).await;
        threads.push(format!("/threads/{}", text(&thread["id"])));
    }
    let mut kept = 0;
    for (at, thread) in threads.iter().enumerate() {
        let here = api.ask("GET", thread, Value::Null).await.status == 200;
        assert!(here || kept == 0, "thread {at} went before an older one");
        kept += usize::from(here);
    }
    assert_eq!(kept, 3);
    // A run adds to what its thread weighs.
    api.advance(Duration::from_secs(1));
    let tools = json!([{ "type": "function", "function": { "name": "f", "description": "y".repeat(9_000) } }]);
    api.post(
        &format!("{}/runs", threads[9]),
        spec(json!({ "tools": tools })),
    )
    .await;
    assert_eq!(api.ask("GET", &threads[7], Value::Null).await.status, 404);
    assert_eq!(api.ask("GET", &threads[9], Value::Null).await.status, 200);
}

#[tokio::test]
async fn a_thread_whose_run_is_active_does_not_go() {
    let api = Embedded::with(Limits {
        threads: 2,
        ..Limits::default()
    })
    .await;
    let thread = api.thread().await;
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let run = api.run(&thread, json!({ "tools": tools })).await;
    api.until(&run, "requires_action").await;
    for _ in 0..3 {
        api.advance(Duration::from_secs(2));
        api.thread().await;
    }
    assert_eq!(api.get(&run).await["status"], "requires_action");
}
