//! The program while it shows a run, and what upstreams say of one.

use std::{net::SocketAddr, process::Stdio};

use bytes::Bytes;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    script::{event, list, run, soon, step},
    support::{
        program::PROGRAM,
        upstream::{Answer, Recorded},
    },
};

/// The program, with its standard output and its standard error in pipes.
pub(crate) struct Shown {
    child: Child,
    stdout: (watch::Receiver<String>, JoinHandle<()>),
    stderr: (watch::Receiver<String>, JoinHandle<()>),
}

/// What it showed to its end.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Shown {
    /// Runs `run QUESTION` or the like against the gateway at this address.
    pub(crate) fn start(gateway: SocketAddr, words: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(words)
            .args(["--addr", &gateway.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let stdout = read(child.stdout.take().expect("a pipe"));
        let stderr = read(child.stderr.take().expect("a pipe"));
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Waits until standard output has this.
    pub(crate) async fn has_text(&mut self, text: &str) {
        has(&mut self.stdout.0, text).await;
    }

    /// Waits until standard error has this.
    pub(crate) async fn has_line(&mut self, text: &str) {
        has(&mut self.stderr.0, text).await;
    }

    pub(crate) fn interrupt(&self) {
        let pid = self.child.id().expect("still running").to_string();
        assert_cmd::Command::new("kill")
            .args(["-INT", &pid])
            .assert()
            .success();
    }

    pub(crate) async fn ended(mut self) -> Told {
        let status = soon(self.child.wait()).await.expect("an end");
        soon(self.stdout.1).await.expect("text");
        soon(self.stderr.1).await.expect("text");
        Told {
            code: status.code(),
            stdout: self.stdout.0.borrow().clone(),
            stderr: self.stderr.0.borrow().clone(),
        }
    }
}

fn read(
    mut pipe: impl AsyncRead + Unpin + Send + 'static,
) -> (watch::Receiver<String>, JoinHandle<()>) {
    let (all, reader) = watch::channel(String::new());
    let reading = tokio::spawn(async move {
        let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = pipe.read(&mut piece).await {
            bytes.extend_from_slice(&piece[..count]);
            all.send_replace(String::from_utf8_lossy(&bytes).into_owned());
        }
    });
    (reader, reading)
}

async fn has(all: &mut watch::Receiver<String>, text: &str) {
    let came = soon(all.wait_for(|all| all.contains(text))).await.is_ok();
    assert!(came, "{text:?} is missing: {:?}", *all.borrow());
}

/// An event that adds to the text of a message.
pub(crate) fn delta(id: &str, text: &str) -> Bytes {
    let part = json!({"index": 0, "type": "text", "text": {"value": text}});
    let delta = json!({"id": id, "object": "thread.message.delta", "delta": {"content": [part]}});
    event("thread.message.delta", delta.to_string())
}

/// A message that is whole, as JSON.
pub(crate) fn message(id: &str, text: &str) -> String {
    let part = json!({"type": "text", "text": {"value": text, "annotations": []}});
    json!({
        "id": id, "object": "thread.message", "thread_id": "thread_1", "run_id": "run_1",
        "role": "assistant", "status": "completed", "content": [part],
    })
    .to_string()
}

/// A run that has begun to say something.
pub(crate) fn begun(text: &str) -> Vec<Bytes> {
    vec![
        event("thread.run.created", run("queued")),
        event("thread.run.in_progress", run("in_progress")),
        event(
            "thread.run.step.created",
            step("step_1", "in_progress", "msg_1"),
        ),
        delta("msg_1", text),
    ]
}

/// And has said it.
pub(crate) fn ended(text: &str) -> Vec<Bytes> {
    vec![
        event("thread.message.completed", message("msg_1", text)),
        event(
            "thread.run.step.completed",
            step("step_1", "completed", "msg_1"),
        ),
        event("thread.run.completed", run("completed")),
        event("done", "[DONE]"),
    ]
}

/// What an upstream says of a run in this status that has written this message.
pub(crate) fn asked(request: &Recorded, status: &str, text: &str) -> Answer {
    let path = request.target.split('?').next().unwrap_or_default();
    let json = match path.rsplit('/').next() {
        Some("run_1") => run(status),
        Some("steps") => list(&[step("step_1", "completed", "msg_1")]),
        Some("msg_1") => message("msg_1", text),
        Some("messages") => list(&[message("msg_1", text)]),
        _ => panic!("{} {path} is not expected", request.method),
    };
    Answer::json(200, json)
}
