//! Streams that break: the run is shown to its end, and no text twice.

use tokio::sync::mpsc;

use crate::{
    script::{FAST, done, event, run},
    shown::{Shown, asked, begun, delta, ended},
    support::{
        gateway::spawn_gateway,
        proxy::Proxy,
        upstream::{Answer, Upstream},
    },
};

const ASK: [&str; 4] = ["run", "?", "--assistant", "asst_1"];

/// The upstream's stream is cut in the middle of a text. The gateway polls, and gives the message
/// as a whole: what was not shown of it is shown.
#[tokio::test]
async fn a_stream_that_the_upstream_cuts_is_shown_to_its_end() {
    let table = [
        ("Hello, wor", "Hello, world", "Hello, world\n"),
        ("Hello, world", "Hello, world", "Hello, world\n"),
        // What was said is not what the message begins with: it is shown again, and that is said.
        ("Hello, ", "Good bye", "Hello, \nGood bye\n"),
    ];
    for flags in [&FAST[..], &[&FAST[..], &["--event-log", "off"]].concat()] {
        for (said, whole, shown) in table {
            let upstream = Upstream::answering(move |it| asked(it, "completed", whole)).await;
            let gateway = spawn_gateway(&upstream.url(), flags).await;
            upstream.push(Answer::sse(begun(said)).cut());
            let told = Shown::start(gateway.address(), &ASK).ended().await;
            assert_eq!(
                (told.code, &*told.stdout),
                (Some(0), shown),
                "{flags:?}: {told:?}"
            );
            assert!(told.stderr.contains("gap: "), "{told:?}");
            assert_eq!(
                told.stderr.contains("has a hole"),
                whole == "Good bye",
                "{told:?}"
            );
            gateway.drain().await;
        }
    }
}

/// The connection to the gateway is cut in the middle of a text. The program resumes by itself: the
/// text goes on, or, where nothing was recorded, is completed from the message.
#[tokio::test]
async fn a_connection_that_is_cut_is_resumed() {
    for flags in [&FAST[..], &[&FAST[..], &["--event-log", "off"]].concat()] {
        let is_recorded = flags.len() == FAST.len();
        let upstream = Upstream::answering(|it| asked(it, "completed", "Hello, world")).await;
        let gateway = spawn_gateway(&upstream.url(), flags).await;
        let proxy = Proxy::before(&gateway).await;
        let (say, saying) = mpsc::channel(16);
        upstream.push(Answer::sse_with(saying));
        for bytes in begun("Hello, ") {
            say.send(bytes).await.expect("a reader");
        }
        let mut shown = Shown::start(proxy.address(), &ASK);
        shown.has_text("Hello, ").await;
        proxy.cut();
        if is_recorded {
            say.send(delta("msg_1", "wor")).await.expect("a reader");
            shown.has_text("wor").await;
            proxy.cut();
            for bytes in [vec![delta("msg_1", "ld")], ended("Hello, world")].concat() {
                say.send(bytes).await.expect("a reader");
            }
        }
        let told = shown.ended().await;
        drop(say);
        assert_eq!(
            (told.code, &*told.stdout),
            (Some(0), "Hello, world\n"),
            "{flags:?}: {told:?}"
        );
        assert_eq!(told.stderr.contains("gap: "), !is_recorded, "{told:?}");
        let requests = upstream.requests();
        let created = requests.iter().filter(|it| it.method == "POST").count();
        assert_eq!(created, 1, "nothing is made twice");
        gateway.drain().await;
    }
}

/// A gateway that is gone for good is an error that says how to look again.
#[tokio::test]
async fn what_cannot_be_resumed_says_how_to_look_again() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::sse([
        event("thread.run.created", run("queued")),
        event(
            "error",
            r#"{"error":{"message":"no more","type":"invalid_request_error","code":null}}"#,
        ),
        done(),
    ]));
    let told = Shown::start(gateway.address(), &ASK).ended().await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(
        told.stderr.contains("no more")
            && told.stderr.contains("runs-gateway watch thread_1 run_1"),
        "{told:?}"
    );
    gateway.drain().await;
}
