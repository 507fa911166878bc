//! Every RPC of the contract, by two callers that are known in each way, about a thread of their own, of the other, without a
//! mark, and that is not there.

use std::time::Instant;

use prost_reflect::{Kind, MessageDescriptor, MethodDescriptor};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    A, B, Isolated, KEY,
    rows::{about, call, contract},
    sources::{Caller, Source},
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
    for source in Source::ALL {
        let (isolated, callers) = source.start().await;
        isolated.store.put("/threads/thread_unm", json!({}));
        let mut checked = 0;
        for rpc in contract() {
            for (me, other) in [(0, 1), (1, 0)] {
                let (me, other) = (&callers[me], &callers[other]);
                for row in 0..about(&rpc, "thread_1").len() {
                    let name = format!("{source:?}: {} {row} by {:?}", rpc.name(), me.metadata);
                    is_isolated(&isolated, [me, other], &rpc, row, &name).await;
                    checked += 1;
                }
            }
        }
        assert!(checked >= 2 * 20, "{checked}");
        isolated.gateway.drain().await;
    }
}

/// Holds one RPC's request about threads, by the first of two callers.
async fn is_isolated(
    isolated: &Isolated,
    [me, other]: [&Caller; 2],
    rpc: &MethodDescriptor,
    row: usize,
    name: &str,
) {
    let request = |thread: &str| about(rpc, thread).swap_remove(row);
    let (own, theirs) = (me.thread().await, other.thread().await);
    let mut answers = Vec::new();
    for thread in [&*theirs, "thread_unm", "thread_abs"] {
        let before = isolated.count();
        let status = me.call(rpc, request(thread)).await.expect_err(name);
        assert_eq!(status.code(), Code::NotFound, "{name} {thread}: {status:?}");
        // Its mark is read, and nothing else is done: not even that, if it was just read.
        let seen = isolated.seen(before);
        let read = format!("GET /threads/{thread}");
        assert!(seen.is_empty() || seen == [read], "{name}: {seen:?}");
        answers.push(told(&status, thread));
    }
    assert_eq!(answers[0], answers[1], "{name}");
    assert_eq!(answers[0], answers[2], "{name}");

    let before = isolated.count();
    let answer = me.call(rpc, request(&own)).await;
    let answer = answer.unwrap_or_else(|status| panic!("{name}: {status:?}"));
    let seen = isolated.seen(before);
    assert_eq!(seen[0], format!("GET /threads/{own}"), "{name}");
    assert!(seen.len() > 1, "{name}: {seen:?}");
    for bytes in answer {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains(KEY), "{name}: {text}");
    }
}

/// The medians of calls that are made in turn; half as long again is noise here.
#[tokio::test]
async fn a_thread_that_is_not_there_takes_as_long_as_anothers() {
    const CALLS: usize = 150;
    let isolated = Isolated::start(&[]).await;
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..CALLS {
        let theirs = isolated.thread_of(B).await;
        for (thread, times) in [theirs, format!("thread_abs_{number}")]
            .iter()
            .zip(&mut times)
        {
            let began = Instant::now();
            let status = isolated.get(A, thread).await.expect_err("not there");
            assert_eq!(status.code(), Code::NotFound);
            times.push(began.elapsed());
        }
    }
    let [theirs, absent] = times.map(|mut times| {
        times.sort();
        times[CALLS / 2]
    });
    let ratio = theirs.as_secs_f64() / absent.as_secs_f64();
    assert!((0.67..1.5).contains(&ratio), "{theirs:?} {absent:?}");
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
