//! Documents of any size, as an upstream of the Runs API writes them.

use serde_json::{Value, json};

/// A run of an upstream, of 2.7 kB.
pub(crate) const RUN: &str = include_str!("../run.json");

/// What [`RUN`] belongs to.
pub(crate) const RUN_ID: &str = "run_5Qb1vVnT0mYkD3cXjH7aLpZe";

/// What a run of `bytes` has one tool for: 128 in one of 250 kB.
const BYTES_PER_TOOL: usize = 1950;

/// A run of about so many bytes: instructions, and tools with schemas.
pub(crate) fn run(thread_id: &str, run_id: &str, bytes: usize) -> String {
    let mut run = small_run(thread_id, run_id);
    run["instructions"] = text(bytes / 4).into();
    run["tools"] = (0..bytes / BYTES_PER_TOOL).map(tool).collect();
    run.to_string()
}

/// [`RUN`] as another run, which is completed.
pub(crate) fn small_run(thread_id: &str, run_id: &str) -> Value {
    let mut run: Value = serde_json::from_str(RUN).expect("a run");
    run["id"] = run_id.into();
    run["thread_id"] = thread_id.into();
    run["status"] = "completed".into();
    run["required_action"] = Value::Null;
    run
}

/// Lines of text, with what JSON has to escape.
pub(crate) fn text(bytes: usize) -> String {
    "Name trains with their numbers, and say \"from where\" and when they leave.\n"
        .chars()
        .cycle()
        .take(bytes)
        .collect()
}

/// A tool of some 1,450 bytes.
fn tool(number: usize) -> Value {
    let properties: serde_json::Map<String, Value> = (0..12)
        .map(|property| {
            let schema = json!({
                "type": "string",
                "description": format!("Station {property} of the journey, by its name or its code"),
            });
            (format!("station_{property}"), schema)
        })
        .collect();
    json!({"type": "function", "function": {
        "name": format!("find_trains_{number}"),
        "description": "Finds trains between stations on a day.",
        "parameters": {"type": "object", "properties": properties, "required": ["station_0", "station_1"]},
    }})
}

/// A list of so many runs of 25 kB.
pub(crate) fn runs(thread_id: &str, number: usize) -> String {
    let runs: Vec<String> = (0..number)
        .map(|number| run(thread_id, &format!("run_{number}"), 25_000))
        .collect();
    page(&runs, false)
}

/// A page of a list, of entries that are JSON.
pub(crate) fn page(entries: &[String], has_more: bool) -> String {
    format!(
        r#"{{"object":"list","data":[{}],"has_more":{has_more}}}"#,
        entries.join(",")
    )
}

/// The step of a number, which made the message of the same number.
pub(crate) fn step(thread_id: &str, run_id: &str, number: usize) -> String {
    json!({
        "id": format!("step_{number:06}"), "object": "thread.run.step", "created_at": 1_764_672_002, "run_id": run_id,
        "assistant_id": "asst_1", "thread_id": thread_id, "type": "message_creation", "status": "completed",
        "completed_at": 1_764_672_003, "step_details": {
            "type": "message_creation", "message_creation": {"message_id": format!("msg_{number:06}")}},
    })
    .to_string()
}

/// A message that is whole.
pub(crate) fn message(thread_id: &str, run_id: &str, id: &str) -> String {
    json!({
        "id": id, "object": "thread.message", "created_at": 1_764_672_003, "thread_id": thread_id, "run_id": run_id,
        "status": "completed", "role": "assistant",
        "content": [{"type": "text", "text": {"value": text(200), "annotations": []}}],
    })
    .to_string()
}

/// An event that adds `text` to a message.
pub(crate) fn delta(message_id: &str, text: &str) -> String {
    let delta = json!({
        "id": message_id, "object": "thread.message.delta",
        "delta": {"content": [{"index": 0, "type": "text", "text": {"value": text}}]},
    });
    event("thread.message.delta", &delta.to_string())
}

/// An event.
pub(crate) fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// A whole stream that has these events between a run's beginning and its end.
pub(crate) fn stream(thread_id: &str, run_id: &str, events: &str) -> String {
    let completed = small_run(thread_id, run_id);
    let mut created = completed.clone();
    created["status"] = "in_progress".into();
    let created = event("thread.run.in_progress", &created.to_string());
    let completed = event("thread.run.completed", &completed.to_string());
    format!("{created}{events}{completed}event: done\ndata: [DONE]\n\n")
}
