//! `ResumingStream`, the library's stream that resumes by itself: a gateway behind a proxy whose
//! connections are cut.

use std::time::Duration;

use bytes::Bytes;
use runs_gateway::{
    resuming::ResumingStream,
    v1::{ResumeRunRequest, RunEvent, StreamOptions},
};
use tokio::sync::mpsc;
use tonic::{Code, Request};

use crate::{
    script::{
        FAST, create_with, done, event, list, message, name, polled, run, run_event, soon, step,
    },
    support::{
        gateway::{Gateway, spawn_gateway},
        proxy::Proxy,
        upstream::{Answer, Upstream},
    },
};

async fn set_up() -> (Upstream, Gateway, Proxy) {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let proxy = Proxy::before(&gateway).await;
    (upstream, gateway, proxy)
}

/// A stream of a run, and what says the upstream's events.
async fn stream(
    upstream: &Upstream,
    proxy: &Proxy,
    resumable: bool,
) -> (mpsc::Sender<Bytes>, ResumingStream) {
    let (say, saying) = mpsc::channel(16);
    upstream.push(Answer::sse_with(saying));
    let options = StreamOptions {
        resumable,
        ..StreamOptions::default()
    };
    let mut client = proxy.client();
    let opened = client.stream_create_run(create_with(options)).await;
    (say, ResumingStream::new(client, opened))
}

fn delta(text: &str) -> Bytes {
    let part = format!(r#"{{"index":0,"type":"text","text":{{"value":"{text}"}}}}"#);
    let data = format!(
        r#"{{"id":"msg_1","object":"thread.message.delta","delta":{{"content":[{part}]}}}}"#
    );
    event("thread.message.delta", data)
}

/// A run that counts, with events that differ.
fn said() -> Vec<Bytes> {
    let mut said = vec![
        event("thread.run.created", run("queued")),
        event("thread.message.created", message("msg_1", "in_progress")),
    ];
    said.extend((0..5).map(|number| delta(&number.to_string())));
    said.push(event(
        "thread.message.completed",
        message("msg_1", "completed"),
    ));
    said.push(run_event("completed"));
    said
}

async fn next(events: &mut ResumingStream) -> RunEvent {
    let event = soon(events.message()).await.expect("no error");
    event.expect("no end")
}

async fn next_few(events: &mut ResumingStream, count: usize) -> Vec<RunEvent> {
    let mut few = Vec::new();
    while few.len() < count {
        few.push(next(events).await);
    }
    few
}

fn without_positions(events: &[RunEvent]) -> Vec<RunEvent> {
    let without = |event: &RunEvent| RunEvent {
        position: String::new(),
        ..event.clone()
    };
    events.iter().map(without).collect()
}

#[tokio::test]
async fn wherever_it_is_cut_each_event_comes_once_and_in_order() {
    let said = said();
    let mut whole = Vec::new();
    // First without a cut, then after each event, then after all of them.
    for cuts in (0..=said.len()).map(Some).chain([None]) {
        let (upstream, gateway, proxy) = set_up().await;
        let (say, mut events) = stream(&upstream, &proxy, true).await;
        let mut heard = Vec::new();
        for (number, bytes) in said.iter().enumerate() {
            say.send(bytes.clone()).await.expect("a reader");
            heard.push(next(&mut events).await);
            if cuts.is_none_or(|cut| cut == number + 1) {
                proxy.cut();
            }
        }
        // After a cut, the gateway may have waited long enough for it.
        _ = say.send(done()).await;
        drop(say);
        let end = soon(events.message()).await.expect("no error");
        assert!(end.is_none(), "{cuts:?}: {end:?}");
        assert_eq!(events.resume_request().run_id, "run_1");
        if cuts == Some(0) {
            whole = without_positions(&heard);
            assert_eq!(whole.len(), said.len());
        }
        assert_eq!(without_positions(&heard), whole, "{cuts:?}");
        assert_eq!(upstream.requests().len(), 1, "nothing was polled");
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_place_that_was_kept_is_gone_on_from() {
    let (upstream, gateway, proxy) = set_up().await;
    let (say, mut events) = stream(&upstream, &proxy, true).await;
    let said = said();
    for bytes in &said {
        say.send(bytes.clone()).await.expect("a reader");
    }
    next(&mut events).await;
    let second = next(&mut events).await;
    assert_eq!(events.resume_request().after_position, second.position);
    let place = events.resume_request().clone();
    drop(events);
    let mut events = ResumingStream::resume(proxy.client(), place);
    let rest = next_few(&mut events, said.len() - 2).await;
    assert_eq!(name(&rest[0]), "message.delta");
    assert_eq!(name(rest.last().expect("events")), "run.completed");
    assert_eq!(soon(events.message()).await.expect("no error"), None);
    drop(say);
    gateway.drain().await;
}

#[tokio::test]
async fn a_run_that_was_not_recorded_goes_on_elsewhere_by_a_gap_and_its_states() {
    let upstream = Upstream::start().await;
    let flags = [&FAST[..], &["--drain-timeout", "10ms"]].concat();
    let first = spawn_gateway(&upstream.url(), &flags).await;
    let second = spawn_gateway(&upstream.url(), &FAST).await;
    let proxy = Proxy::before(&first).await;
    let (say, mut events) = stream(&upstream, &proxy, false).await;
    say.send(said()[0].clone()).await.expect("a reader");
    assert_eq!(name(&next(&mut events).await), "run.created");
    for answer in [
        polled("completed"),
        Answer::json(200, list(&[step("step_1", "completed", "msg_1")])),
        Answer::json(200, message("msg_1", "completed")),
    ] {
        upstream.push(answer);
    }
    proxy.lead_to(Some(&second));
    let rest = async {
        let mut rest = Vec::new();
        while let Some(event) = soon(events.message()).await.expect("no error") {
            rest.push(name(&event));
        }
        rest
    };
    let (rest, ()) = tokio::join!(rest, first.drain());
    assert_eq!(rest, ["gap*", "run.completed*"]);
    drop(say);
    second.drain().await;
}

#[tokio::test]
async fn what_cannot_be_resumed_is_told_and_then_there_is_nothing() {
    let (upstream, gateway, proxy) = set_up().await;

    // Nobody has said which run it is.
    let (say, mut events) = stream(&upstream, &proxy, true).await;
    proxy.cut();
    soon(events.message()).await.expect_err("an unknown run");
    assert_eq!(soon(events.message()).await.expect("no error"), None);
    drop(say);
    gateway.drain().await;

    // The gateway refuses it.
    let (upstream, gateway, proxy) = set_up().await;
    upstream.push(Answer::json(404, crate::script::error("not_found")));
    let place = ResumeRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_2".into(),
        ..ResumeRunRequest::default()
    };
    let mut events = ResumingStream::resume(proxy.client(), place);
    let status = soon(events.message()).await.expect_err("no such run");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(soon(events.message()).await.expect("no error"), None);
    gateway.drain().await;

    // There is nobody any more: whichever part of the budget is used up first counts.
    for (max_resumes, max_outage) in [
        (2, Duration::from_secs(1000)),
        (u32::MAX, Duration::from_millis(500)),
    ] {
        let (upstream, gateway, proxy) = set_up().await;
        let (say, mut events) = stream(&upstream, &proxy, true).await;
        (events.max_resumes, events.max_outage) = (max_resumes, max_outage);
        say.send(said()[0].clone()).await.expect("a reader");
        next(&mut events).await;
        proxy.lead_to(None);
        proxy.cut();
        soon(events.message()).await.expect_err("nobody answers");
        assert_eq!(soon(events.message()).await.expect("no error"), None);
        for bytes in &said()[1..] {
            say.send(bytes.clone()).await.expect("a reader");
        }
        drop(say);
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_credential_goes_along_with_each_resume() {
    let (upstream, gateway, proxy) = set_up().await;
    let (say, saying) = mpsc::channel(16);
    upstream.push(Answer::sse_with(saying));
    let mut request = Request::new(create_with(StreamOptions {
        resumable: true,
        ..StreamOptions::default()
    }));
    let credential: tonic::metadata::MetadataValue<_> = "Bearer mine".parse().expect("a value");
    request
        .metadata_mut()
        .insert("authorization", credential.clone());
    let mut client = proxy.client();
    let opened = client.stream_create_run(request).await;
    let mut events = ResumingStream::new(client, opened);
    events.metadata.insert("authorization", credential);
    for (number, bytes) in said().into_iter().enumerate() {
        say.send(bytes).await.expect("a reader");
        // The log is another one for anybody else.
        assert!(!next(&mut events).await.position.is_empty(), "{number}");
        proxy.cut();
    }
    drop(say);
    assert_eq!(soon(events.message()).await.expect("no error"), None);
    gateway.drain().await;
}
