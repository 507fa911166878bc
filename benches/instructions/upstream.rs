//! An upstream whose threads say by their names what it answers with: `KIND-SIZE`.
//!
//! Must hold: it answers from memory, each body in one piece, so that what reads it finds it there.

use std::{
    collections::HashMap,
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
    sync::{Mutex, PoisonError},
    thread,
};

use axum::{
    Router,
    extract::{Path, RawQuery},
    http::header,
    response::IntoResponse,
    routing::get,
};
use tokio::{net, runtime};

use crate::documents::{self as document, RUN_ID};

/// The most entries on a page.
const PAGE: usize = 100;

/// Starts it, on a thread of its own that ends with the program.
pub(crate) fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    thread::spawn(move || {
        runtime.block_on(async {
            let listener = net::TcpListener::from_std(listener).expect("a listener");
            axum::serve(listener, routes()).await.expect("it serves");
        });
    });
    address
}

fn routes() -> Router {
    let runs = get(async |Path(thread_id): Path<String>| json(listed(&thread_id)))
        .post(async |Path(thread_id): Path<String>, body: String| created(&thread_id, &body));
    let run = get(async |Path((thread_id, run_id)): Path<(String, String)>| {
        let (kind, size) = plan(&thread_id);
        let bytes = if kind == "run" { size } else { 0 };
        json(kept(&format!("{thread_id}/{run_id}"), || {
            document::run(&thread_id, &run_id, bytes)
        }))
    });
    let message = get(async |Path((thread_id, id)): Path<(String, String)>| {
        json(document::message(&thread_id, RUN_ID, &id))
    });
    Router::new()
        .route("/threads/{thread_id}/runs", runs)
        .route("/threads/{thread_id}/runs/{run_id}", run)
        .route("/threads/{thread_id}/runs/{run_id}/steps", get(steps))
        .route("/threads/{thread_id}/messages/{message_id}", message)
}

fn plan(thread_id: &str) -> (&str, usize) {
    let (kind, size) = thread_id.split_once('-').expect("KIND-SIZE");
    (kind, size.parse().expect("a size"))
}

/// What was made once is kept: runs of many bytes take longer to make than to send.
fn kept(name: &str, make: impl FnOnce() -> String) -> String {
    static KEPT: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept.get_or_insert_default();
    kept.entry(name.to_owned()).or_insert_with(make).clone()
}

fn json(text: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text)
}

fn listed(thread_id: &str) -> String {
    kept(thread_id, || document::runs(thread_id, plan(thread_id).1))
}

async fn steps(
    Path((thread_id, run_id)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> impl IntoResponse {
    let (kind, size) = plan(&thread_id);
    let total = if kind == "steps" { size } else { 0 };
    let query = query.unwrap_or_default();
    let mut query = query.split('&');
    let after = query.find_map(|pair| pair.strip_prefix("after=step_"));
    let begin = after.map_or(0, |number| 1 + number.parse::<usize>().expect("a number"));
    let end = total.min(begin + PAGE);
    let page: Vec<_> = (begin..end)
        .map(|number| document::step(&thread_id, &run_id, number))
        .collect();
    json(document::page(&page, end < total))
}

fn created(thread_id: &str, body: &str) -> axum::response::Response {
    let (kind, size) = plan(thread_id);
    if !body.contains(r#""stream":true"#) {
        return json(document::small_run(thread_id, RUN_ID).to_string()).into_response();
    }
    let stream = kept(thread_id, || {
        document::stream(thread_id, RUN_ID, &events(kind, size))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], stream).into_response()
}

fn events(kind: &str, size: usize) -> String {
    let mut events = String::new();
    match kind {
        "deltas" => {
            let delta = document::delta("msg_1", " The next train leaves at nine.");
            events = delta.repeat(size);
        }
        // So many messages, written in turns.
        "messages" => {
            for turn in 0..3 * size {
                events += &document::delta(&format!("msg_{}", turn % size), " and");
            }
        }
        "event" => events = document::delta("msg_1", &document::text(size)),
        // The same, in lines of data.
        "lines" => {
            let name = events.write_str("event: thread.message.delta\n");
            name.expect("a string takes all");
            let delta = document::delta("msg_1", "");
            let delta = delta.lines().nth(1).expect("its data");
            events += delta;
            events += &format!("\ndata:{}", " ".repeat(60)).repeat(size / 60);
            events += "\n\n";
        }
        _ => {}
    }
    events
}
