//! `WaitRun`: one answer, when the run needs somebody or the time is over.

use std::sync::Arc;

use runs_gateway::v1::{
    GetRunRequest, RunStatus, SubmitToolOutputsRequest, ToolOutputs, WaitRunRequest,
};
use tokio::{sync::Notify, time::Instant};
use tonic::{Code, Request};

use crate::{
    script::{FAST, NEVER, error, millis, polled, soon, verdict, wait},
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Upstream},
    },
};

fn time(seconds: i64, nanos: i32) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos }
}

#[tokio::test]
async fn it_returns_once_the_run_is_terminal_or_requires_action_if_that_is_asked_for() {
    let cases: [(&[&str], bool, RunStatus); 4] = [
        (
            &["queued", "in_progress", "completed"],
            false,
            RunStatus::Completed,
        ),
        (
            &["in_progress", "requires_action", "expired"],
            false,
            RunStatus::Expired,
        ),
        (
            &["in_progress", "requires_action"],
            true,
            RunStatus::RequiresAction,
        ),
        // One that the contract does not know may be followed by any other.
        (
            &["pondering", "cancelling", "cancelled"],
            true,
            RunStatus::Cancelled,
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    for (statuses, return_on_requires_action, last) in cases {
        for status in statuses {
            upstream.push(polled(status));
        }
        let run = soon(gateway.runs().wait_run(WaitRunRequest {
            return_on_requires_action,
            ..wait()
        }))
        .await
        .expect("a run");
        assert_eq!(run.into_inner().status(), last);
    }
    gateway.drain().await;
}

#[tokio::test]
async fn at_the_end_of_its_time_it_answers_with_the_run_as_it_is() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(
        &upstream.url(),
        &[&NEVER[..], &["--max-wait", "300ms"]].concat(),
    )
    .await;
    // Zero is a look; none, and more than the gateway waits, is as long as it waits.
    for (timeout, least) in [
        (Some(time(0, 0)), 0),
        (Some(time(0, 100_000_000)), 100),
        (None, 300),
        (Some(time(3600, 0)), 300),
    ] {
        upstream.push(polled("in_progress"));
        let began = Instant::now();
        let run = soon(
            gateway
                .runs()
                .wait_run(WaitRunRequest { timeout, ..wait() }),
        )
        .await
        .expect("a run");
        assert_eq!(run.into_inner().status(), RunStatus::InProgress);
        assert!(
            began.elapsed() >= millis(least),
            "{timeout:?} took {:?}",
            began.elapsed()
        );
    }
    for timeout in [time(-1, 0), time(0, -1)].map(Some) {
        let refused = gateway
            .runs()
            .wait_run(WaitRunRequest { timeout, ..wait() })
            .await
            .expect_err("a refusal");
        assert_eq!(
            verdict(&refused),
            (Code::InvalidArgument, "INVALID_FIELD".to_owned())
        );
    }
    assert_eq!(upstream.requests().len(), 4);
    gateway.drain().await;
}

#[tokio::test]
async fn its_deadline_bounds_it_and_errors_are_its_own() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &NEVER).await;
    upstream.push(polled("in_progress"));
    let mut request = Request::new(wait());
    request
        .metadata_mut()
        .insert("grpc-timeout", "200m".parse().expect("a value"));
    let late = soon(gateway.runs().wait_run(request))
        .await
        .expect_err("a deadline");
    assert!(
        matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{late:?}"
    );

    upstream.push(Answer::json(404, error("not_found")));
    let gone = soon(gateway.runs().wait_run(wait()))
        .await
        .expect_err("no run");
    assert_eq!(verdict(&gone), (Code::NotFound, "NOT_FOUND".to_owned()));
    gateway.drain().await;
}

#[tokio::test]
async fn after_outputs_were_submitted_it_never_answers_the_old_state() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    // A poll that began before the outputs were submitted, and ends after.
    let old = Arc::new(Notify::new());
    let stale = Answer::raw("")
        .wait(&old)
        .bytes(respond(&crate::script::run("requires_action")));
    upstream.push(stale);
    let early = tokio::spawn({
        let mut runs = gateway.runs();
        async move { runs.wait_run(wait()).await }
    });
    upstream.wait_for_requests(1).await;

    upstream.push(polled("queued"));
    let tool_outputs = Some(ToolOutputs::default());
    let submit = SubmitToolOutputsRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        tool_outputs,
    };
    soon(gateway.runs().submit_tool_outputs(submit))
        .await
        .expect("a run");
    let late = tokio::spawn({
        let mut runs = gateway.runs();
        async move {
            runs.wait_run(WaitRunRequest {
                return_on_requires_action: true,
                ..wait()
            })
            .await
        }
    });
    // By the time the gateway answers this it knows of the call before it.
    upstream.push(polled("queued"));
    soon(gateway.runs().get_run(GetRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
    }))
    .await
    .expect("a run");
    for status in ["queued", "completed"] {
        upstream.push(polled(status));
    }
    old.notify_one();

    for waiting in [early, late] {
        let run = soon(waiting)
            .await
            .expect("no panic")
            .expect("a run")
            .into_inner();
        assert_eq!(run.status(), RunStatus::Completed);
    }
    gateway.drain().await;
}

/// A whole answer, for one that waits before its head.
fn respond(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}
