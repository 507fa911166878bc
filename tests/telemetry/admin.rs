//! What a probe sees.

use std::{process::Stdio, sync::Arc};

use tokio::{process::Command, sync::Notify};

use crate::{
    runs, stream,
    support::{
        program::{PROGRAM, Running},
        upstream::{Answer, Upstream},
    },
};

#[tokio::test]
async fn the_admin_port_answers_whatever_the_upstream_does_and_during_a_drain() {
    let upstream = Upstream::start().await;
    let gateway =
        Running::start(&["--upstream-url", &upstream.url(), "--drain-timeout", "60s"]).await;
    assert_eq!(gateway.ask_admin("/healthz").await, (200, "ok\n".into()));
    assert_eq!(gateway.ask_admin("/readyz").await, (200, "ready\n".into()));
    let (status, version) = gateway.ask_admin("/version").await;
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!(
        (status, &version["version"]),
        (200, &env!("CARGO_PKG_VERSION").into())
    );
    assert_eq!(gateway.ask_admin("/").await.0, 404);

    let event = "event: thread.run.created\ndata: {\"id\":\"run_1\",\"thread_id\":\"thread_1\",\"status\":\"queued\"}\n\n";
    let end = Arc::new(Notify::new());
    let head = Answer::new(200)
        .header("content-type", "text/event-stream")
        .chunked();
    upstream.push(head.bytes(event).wait(&end).bytes(
        "event: thread.run.completed\ndata: {\"id\":\"run_1\",\"status\":\"completed\"}\n\nevent: done\ndata: [DONE]\n\n",
    ));
    let mut live = runs(&gateway)
        .stream_create_run(stream())
        .await
        .expect("a stream")
        .into_inner();
    live.message().await.expect("open").expect("an event");
    gateway.signal("-TERM");
    while gateway.ask_admin("/readyz").await != (503, "draining\n".into()) {
        tokio::task::yield_now().await;
    }
    assert_eq!(gateway.ask_admin("/healthz").await.0, 200);
    assert!(
        gateway
            .ask_admin("/metrics")
            .await
            .1
            .contains("runs_gateway_active_calls")
    );
    end.notify_one();
    while live
        .message()
        .await
        .expect("the stream ends well")
        .is_some()
    {}
    drop(live);
    let (status, log) = gateway.ended().await;
    assert!(status.success(), "{log}");
}

#[tokio::test]
async fn healthcheck_says_by_its_exit_code_whether_a_gateway_serves() {
    let check = async |address: &str| {
        let output = Command::new(PROGRAM)
            .args(["healthcheck", "--addr", address])
            .stdin(Stdio::null())
            .output()
            .await;
        let output = output.expect("the program runs");
        (
            output.status.code(),
            String::from_utf8(output.stderr).expect("text"),
        )
    };
    let upstream = Upstream::start().await;
    let gateway = Running::start(&["--upstream-url", &upstream.url()]).await;
    let address = gateway.address.to_string();
    assert_eq!(check(&address).await, (Some(0), String::new()));
    gateway.stop("-TERM").await;
    let (code, why) = check(&address).await;
    assert_eq!(code, Some(1));
    assert!(why.contains(&address) && why.lines().count() == 1, "{why}");
}

#[tokio::test]
async fn a_second_gateway_serves_although_the_usual_admin_port_is_taken_but_not_if_it_was_asked_for()
 {
    let upstream = Upstream::start().await;
    let gateway = Running::start(&["--upstream-url", &upstream.url()]).await;
    let taken = gateway.admin.to_string();
    let output = Command::new(PROGRAM)
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", &taken])
        .output()
        .await;
    let output = output.expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--admin-listen"));
    gateway.stop("-TERM").await;
}
