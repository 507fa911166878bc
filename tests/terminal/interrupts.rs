//! Ctrl-C leaves, and cancels if that is asked for.

use tokio::sync::mpsc;

use crate::{
    script::{FAST, event, run},
    shown::{Shown, asked, begun, ended},
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Upstream},
    },
};

const ASK: [&str; 4] = ["run", "?", "--assistant", "asst_1"];

#[tokio::test]
async fn ctrl_c_leaves_a_run_that_goes_on() {
    let upstream = Upstream::answering(|it| asked(it, "in_progress", "")).await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let (say, saying) = mpsc::channel(16);
    upstream.push(Answer::sse_with(saying));
    let mut shown = Shown::start(gateway.address(), &ASK);
    for bytes in begun("Hello, ") {
        say.send(bytes).await.expect("a reader");
    }
    shown.has_text("Hello, ").await;
    shown.interrupt();
    let told = shown.ended().await;
    assert_eq!(
        (told.code, &*told.stdout),
        (Some(130), "Hello, \n"),
        "{told:?}"
    );
    assert!(
        told.stderr
            .contains("goes on: runs-gateway watch thread_1 run_1"),
        "{told:?}"
    );
    // What is recorded goes on.
    for bytes in ended("Hello, ") {
        say.send(bytes).await.expect("a reader");
    }
    let cancels = upstream.requests();
    assert!(!cancels.iter().any(|it| it.target.ends_with("/cancel")));
    gateway.drain().await;
}

#[tokio::test]
async fn ctrl_c_cancels_if_asked_to_and_shows_the_end() {
    let upstream = Upstream::answering(|it| {
        if it.target.ends_with("/cancel") {
            Answer::json(200, run("cancelling"))
        } else {
            asked(it, "cancelled", "Hello, ")
        }
    });
    let upstream = upstream.await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let (say, saying) = mpsc::channel(16);
    upstream.push(Answer::sse_with(saying));
    let mut shown = Shown::start(
        gateway.address(),
        &[&ASK[..], &["--cancel-on-interrupt"]].concat(),
    );
    for bytes in begun("Hello, ") {
        say.send(bytes).await.expect("a reader");
    }
    shown.has_text("Hello, ").await;
    shown.interrupt();
    upstream.wait_for_requests(2).await;
    say.send(event("thread.run.cancelled", run("cancelled")))
        .await
        .expect("a reader");
    drop(say);
    let told = shown.ended().await;
    assert_eq!(told.code, Some(3), "{told:?}");
    assert!(
        told.stderr.contains("cancelling") && told.stderr.contains("cancelled after"),
        "{told:?}"
    );
    let cancels = upstream.requests();
    let cancels = cancels.iter().filter(|it| it.target.ends_with("/cancel"));
    assert_eq!(cancels.count(), 1);
    gateway.drain().await;
}
