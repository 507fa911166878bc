//! Every RPC of the contract, by two callers, about a thread of their own, of the other, without a
//! mark, and that is not there.

use prost_reflect::{Kind, MessageDescriptor};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    A, B, Isolated, KEY,
    rows::{about, call, contract},
};

/// Whether a message has the id of a thread, however deep.
fn has_thread_id(message: &MessageDescriptor, depth: usize) -> bool {
    message.fields().any(|field| match field.kind() {
        Kind::Message(inner) if depth > 0 => has_thread_id(&inner, depth - 1),
        _ => field.name() == "thread_id",
    })
}

#[test]
fn every_rpc_that_has_a_threads_id_has_a_row_about_it() {
    for rpc in contract() {
        let rows = about(&rpc, "thread_1");
        let expected = has_thread_id(&rpc.input(), 1);
        assert_eq!(!rows.is_empty(), expected, "{}", rpc.full_name());
    }
}

/// Code, message, details, metadata.
type Told = (Code, Vec<u8>, Vec<u8>, Vec<(String, String)>);

/// All that a caller is told by an error, without the id that it asked for.
fn told(status: &Status, thread: &str) -> Told {
    let without = |bytes: &[u8]| {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let mut bytes = text.replace(thread, "THREAD").into_bytes();
        // The pairs of an `ErrorInfo` come in any order, each time.
        bytes.sort_unstable();
        bytes
    };
    let mut metadata: Vec<_> = status
        .metadata()
        .clone()
        .into_headers()
        .iter()
        .map(|(name, value)| (name.to_string(), format!("{value:?}")))
        .filter(|(name, _)| name != "date")
        .collect();
    metadata.sort();
    (
        status.code(),
        without(status.message().as_bytes()),
        without(status.details()),
        metadata,
    )
}

#[tokio::test]
async fn a_thread_is_there_for_its_own_caller_and_for_nobody_else() {
    let isolated = Isolated::start(&[]).await;
    isolated.store.put("/threads/thread_unm", json!({}));
    let mut checked = 0;
    for rpc in contract() {
        for (me, other) in [(A, B), (B, A)] {
            for row in 0..about(&rpc, "thread_1").len() {
                let request = |thread: &str| about(&rpc, thread).swap_remove(row);
                let channel = || isolated.gateway.channel();
                let name = format!("{} {row} by {me}", rpc.name());
                let own = isolated.thread_of(me).await;
                let theirs = isolated.thread_of(other).await;
                let mut answers = Vec::new();
                for thread in [&*theirs, "thread_unm", "thread_abs"] {
                    let before = isolated.count();
                    let answer = call(channel(), &rpc, me, request(thread)).await;
                    let status = answer.expect_err(&name);
                    assert_eq!(status.code(), Code::NotFound, "{name} {thread}: {status:?}");
                    // Its mark is read, and nothing else is done: not even that, if it was just
                    // read.
                    let seen = isolated.seen(before);
                    let read = format!("GET /threads/{thread}");
                    assert!(seen.is_empty() || seen == [read], "{name}: {seen:?}");
                    answers.push(told(&status, thread));
                }
                assert_eq!(answers[0], answers[1], "{name}");
                assert_eq!(answers[0], answers[2], "{name}");

                let before = isolated.count();
                let answer = call(channel(), &rpc, me, request(&own)).await;
                let answer = answer.unwrap_or_else(|status| panic!("{name}: {status:?}"));
                let seen = isolated.seen(before);
                assert_eq!(seen[0], format!("GET /threads/{own}"), "{name}");
                assert!(seen.len() > 1, "{name}: {seen:?}");
                for bytes in answer {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    assert!(!text.contains(KEY), "{name}: {text}");
                }
                checked += 1;
            }
        }
    }
    assert!(checked >= 2 * 20, "{checked}");
    isolated.gateway.drain().await;
}

#[tokio::test]
async fn what_has_no_mark_is_everybodys_if_that_is_said_and_stays_so() {
    let isolated = Isolated::start(&["--isolate-unmarked", "allow"]).await;
    for rpc in contract() {
        for (row, request) in about(&rpc, "thread_unm").into_iter().enumerate() {
            isolated.store.put("/threads/thread_unm", json!({"x": "y"}));
            let theirs = isolated.thread_of(A).await;
            for me in [A, B] {
                isolated.store.put("/threads/thread_unm", json!({"x": "y"}));
                let answer = call(isolated.gateway.channel(), &rpc, me, request.clone()).await;
                answer.unwrap_or_else(|status| panic!("{} {row}: {status:?}", rpc.name()));
            }
            let request = about(&rpc, &theirs).swap_remove(row);
            let answer = call(isolated.gateway.channel(), &rpc, B, request).await;
            assert_eq!(answer.expect_err(rpc.name()).code(), Code::NotFound);
        }
    }
    isolated.gateway.drain().await;
}
