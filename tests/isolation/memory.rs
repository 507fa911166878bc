//! How often marks are read, and when they are read again.

use runs_gateway::v1::*;
use serde_json::json;
use tonic::Code;

use crate::{A, B, Isolated, by};

impl Isolated {
    async fn run(&self, token: &str, thread: &str) -> Result<(), Code> {
        let request = GetRunRequest {
            thread_id: thread.to_owned(),
            run_id: "run_1".to_owned(),
        };
        let run = self.gateway.runs().get_run(by(token, request)).await;
        run.map(drop).map_err(|status| status.code())
    }

    /// How often a thread's mark was read.
    fn reads(&self, thread: &str) -> usize {
        let read = format!("GET /threads/{thread}");
        self.seen(0).iter().filter(|line| **line == read).count()
    }

    async fn delete(&self, token: &str, thread: &str) -> Result<(), Code> {
        let request = DeleteThreadRequest {
            thread_id: thread.to_owned(),
        };
        let deleted = self.threads().delete_thread(by(token, request)).await;
        deleted.map(drop).map_err(|status| status.code())
    }
}

#[tokio::test]
async fn a_mark_is_read_once_however_many_calls_there_are() {
    let isolated = Isolated::start(&[]).await;
    let own = isolated.thread_of(A).await;
    let calls = (0..20).map(|_| isolated.run(A, &own));
    for answer in futures(calls).await {
        answer.expect("a run");
    }
    isolated.run(A, &own).await.expect("a run");
    assert_eq!(isolated.reads(&own), 1);
    // Nobody learns from that, and what is not theirs is read as often as what is not there.
    for thread in [&*own, "thread_abs"] {
        let before = isolated.reads(thread);
        for answer in futures((0..20).map(|_| isolated.run(B, thread))).await {
            assert_eq!(answer, Err(Code::NotFound));
        }
        assert_eq!(isolated.reads(thread) - before, 1, "{thread}");
    }
    isolated.gateway.drain().await;
}

#[tokio::test]
async fn what_is_remembered_has_an_age_and_a_bound() {
    for flags in [
        ["--remembered-thread-age", "0s"],
        ["--max-remembered-threads", "2"],
    ] {
        let isolated = Isolated::start(&flags).await;
        let mut threads = Vec::new();
        for _ in 0..3 {
            threads.push(isolated.thread_of(A).await);
        }
        for _ in 0..2 {
            for thread in &threads {
                isolated.run(A, thread).await.expect("a run");
            }
        }
        for thread in &threads {
            assert_eq!(isolated.reads(thread), 2, "{flags:?}");
        }
        isolated.gateway.drain().await;
    }
}

#[tokio::test]
async fn a_thread_whose_id_is_used_again_is_the_new_callers() {
    let isolated = Isolated::start(&[]).await;
    let (own, theirs) = (isolated.thread_of(A).await, isolated.thread_of(B).await);
    let theirs = isolated.store.metadata(&format!("/threads/{theirs}"));
    isolated.run(A, &own).await.expect("a run");
    assert_eq!(isolated.delete(B, &own).await, Err(Code::NotFound));
    isolated.run(A, &own).await.expect("a run");
    isolated.delete(A, &own).await.expect("it is its own");
    isolated
        .store
        .put(&format!("/threads/{own}"), theirs.clone());
    assert_eq!(isolated.run(A, &own).await, Err(Code::NotFound));
    isolated.delete(B, &own).await.expect("now it is theirs");

    // Deleted by somebody else: the upstream says so, and what was remembered is read again.
    let own = isolated.thread_of(A).await;
    let path = format!("/threads/{own}");
    isolated.run(A, &own).await.expect("a run");
    isolated.store.resources().remove(&path);
    assert_eq!(isolated.run(A, &own).await, Err(Code::NotFound));
    isolated.store.put(&path, theirs);
    assert_eq!(isolated.run(A, &own).await, Err(Code::NotFound));
    isolated.gateway.drain().await;
}

#[tokio::test]
async fn a_run_is_not_resumed_by_another_caller() {
    let isolated = Isolated::start(&[]).await;
    let own = isolated.thread_of(A).await;
    let request = StreamCreateRunRequest {
        thread_id: own.clone(),
        run: Some(RunSpec::default()),
        options: Some(StreamOptions {
            resumable: true,
            ..StreamOptions::default()
        }),
        ..StreamCreateRunRequest::default()
    };
    let mut runs = isolated.gateway.runs();
    let stream = runs.stream_create_run(by(A, request)).await;
    let mut stream = stream.expect("a stream").into_inner();
    let mut last = String::new();
    while let Some(event) = stream.message().await.expect("an event") {
        last = event.position;
    }
    assert!(!last.is_empty(), "it is recorded");
    for after_position in [String::new(), last] {
        let request = ResumeRunRequest {
            thread_id: own.clone(),
            run_id: "run_1".to_owned(),
            after_position,
            options: None,
        };
        let theirs = runs.resume_run(by(B, request.clone())).await;
        assert_eq!(theirs.expect_err("not theirs").code(), Code::NotFound);
        let own = runs.resume_run(by(A, request)).await;
        own.expect("its own");
    }
    isolated.gateway.drain().await;
}

#[tokio::test]
async fn a_caller_that_watches_shows_its_run_to_nobody_else() {
    let isolated = Isolated::start(&[]).await;
    isolated.store.put("/threads/thread_x", json!({}));
    let own = isolated.thread_of(A).await;
    let request = || WatchRunRequest {
        thread_id: own.clone(),
        run_id: "run_1".to_owned(),
        ..WatchRunRequest::default()
    };
    let mut runs = isolated.gateway.runs();
    let watching = runs.watch_run(by(A, request())).await.expect("its own");
    let theirs = runs.watch_run(by(B, request())).await;
    assert_eq!(theirs.expect_err("not theirs").code(), Code::NotFound);
    drop(watching);
    isolated.gateway.drain().await;
}

/// All of them at once.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(move |cx| {
        all.retain_mut(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(answer) => {
                done.push(answer);
                false
            }
            std::task::Poll::Pending => true,
        });
        if all.is_empty() {
            std::task::Poll::Ready(std::mem::take(&mut done))
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}
