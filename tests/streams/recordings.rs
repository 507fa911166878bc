//! What a real service said, whole and in pieces: every event arrives, in order, and nothing of it
//! is lost.
//!
//! The recordings are not part of the project. `RUNS_RECORDINGS` names the folder that has them:
//! `X.json` with the request, `X.sse` with the bytes of the answer.

use std::{
    fs,
    hash::{BuildHasher as _, RandomState},
    path::Path,
};

use bytes::Bytes;
use runs_gateway::{
    json,
    v1::{
        RunEventType, StreamCreateRunRequest, StreamCreateThreadAndRunRequest,
        StreamSubmitToolOutputsRequest,
    },
};
use serde_json::Value;
use tonic::Code;

use crate::{
    script::{Heard, hear, json_of},
    support::{gateway::Gateway, gateway::spawn_gateway, upstream::Answer, upstream::Upstream},
};

#[tokio::test]
async fn every_recorded_stream_arrives_whole_in_whatever_pieces_it_comes() {
    let Ok(folder) = std::env::var("RUNS_RECORDINGS") else {
        return println!("RUNS_RECORDINGS is not set: nothing is replayed");
    };
    let seed = std::env::var("RUNS_SEED").map_or_else(
        |_| RandomState::new().hash_one(()),
        |seed| seed.parse().expect("a number"),
    );
    println!("RUNS_SEED={seed}");
    let mut random = Random(seed | 1);
    let mut streams: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    streams.retain(|path| path.extension().is_some_and(|it| it == "sse"));
    streams.sort();
    assert!(
        !streams.is_empty(),
        "RUNS_RECORDINGS has no recorded streams"
    );

    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for path in streams {
        let text = fs::read(&path).expect("a recording");
        let recorded = Recorded::read(&path);
        let expected = expected(&text);
        println!("{}: {} events", path.display(), expected.len());
        let mut pieces = vec![vec![Bytes::from(text.clone())]];
        pieces.extend([1, 7, 64, 1500].map(|most| random.cut(&text, most)));
        for pieces in pieces {
            upstream.push(Answer::sse(pieces));
            let heard = recorded.replay(&gateway).await;
            assert_eq!(heard.status.code(), Code::Ok, "{:?}", heard.status);
            assert_eq!(heard.events.len(), expected.len());
            for (event, (name, data)) in heard.events.iter().zip(&expected) {
                let kind = format!("RUN_EVENT_TYPE_{}", name.replace('.', "_").to_uppercase());
                assert_eq!(event.r#type().as_str_name(), kind);
                assert!(!event.synthesized);
                if event.r#type() != RunEventType::Done {
                    let [got, sent] = [json_of(event), data.clone()]
                        .map(|text| without_nothing(serde_json::from_str(&text).expect("JSON")));
                    assert_eq!(got, sent, "{name}");
                }
            }
            assert_eq!(
                heard.events.last().expect("events").r#type(),
                RunEventType::Done
            );
            let request = upstream.requests().pop().expect("a request");
            assert_eq!(
                request.text().matches(r#""stream":true"#).count(),
                1,
                "{}",
                request.text()
            );
            assert_eq!(request.header("accept"), Some("text/event-stream"));
            assert_eq!(request.target, recorded.path);
        }
    }
    gateway.drain().await;
}

/// The request of a recording.
struct Recorded {
    path: String,
    body: Vec<u8>,
}

impl Recorded {
    fn read(stream: &Path) -> Self {
        let recording = fs::read(stream.with_extension("json")).expect("the recorded request");
        let recording: Value = serde_json::from_slice(&recording).expect("JSON");
        let uri = recording["request"]["uri"].as_str().expect("a URI");
        let path = uri
            .split_once("/v1/")
            .map(|(_, path)| format!("/{path}"))
            .expect("a path below /v1");
        let mut body = recording["request"]["body"].clone();
        if let Value::String(text) = &body {
            body = serde_json::from_str(text).expect("JSON");
        }
        // The gateway's own to say.
        assert_eq!(
            body.as_object_mut().expect("an object").remove("stream"),
            Some(Value::Bool(true))
        );
        Self {
            path,
            body: serde_json::to_vec(&body).expect("JSON"),
        }
    }

    async fn replay(&self, gateway: &Gateway) -> Heard {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let segments: Vec<_> = path.split('/').skip(1).collect();
        let include = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("include[]="));
        let include: Vec<_> = include
            .map(|value| {
                value
                    .replace("%5B", "[")
                    .replace("%5D", "]")
                    .replace("%2A", "*")
            })
            .collect();
        let mut runs = gateway.runs();
        let answer = match segments[..] {
            ["threads", "runs"] => {
                let thread_and_run = Some(json::decode(&self.body).expect("a body"));
                let request = StreamCreateThreadAndRunRequest {
                    thread_and_run,
                    ..Default::default()
                };
                runs.stream_create_thread_and_run(request).await
            }
            ["threads", thread_id, "runs"] => {
                let run = Some(json::decode(&self.body).expect("a body"));
                runs.stream_create_run(StreamCreateRunRequest {
                    thread_id: thread_id.into(),
                    run,
                    include,
                    ..Default::default()
                })
                .await
            }
            ["threads", thread_id, "runs", run_id, "submit_tool_outputs"] => {
                let tool_outputs = Some(json::decode(&self.body).expect("a body"));
                let (thread_id, run_id) = (thread_id.into(), run_id.into());
                let request = StreamSubmitToolOutputsRequest {
                    thread_id,
                    run_id,
                    tool_outputs,
                    ..Default::default()
                };
                runs.stream_submit_tool_outputs(request).await
            }
            _ => panic!("{} does not stream", self.path),
        };
        hear(answer.expect("a stream").into_inner()).await
    }
}

/// Name and data of each event, read in the plainest way: the recordings have one data line in
/// each, and end lines with LF.
fn expected(text: &[u8]) -> Vec<(String, String)> {
    let text = str::from_utf8(text).expect("UTF-8");
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').expect("two lines");
        let name = name.strip_prefix("event: ").expect("a name");
        (
            name.to_owned(),
            data.strip_prefix("data: ").expect("data").to_owned(),
        )
    };
    text.split("\n\n")
        .filter(|text| !text.trim().is_empty())
        .map(event)
        .collect()
}

/// The value without the members that are null or empty: those are the same as none.
fn without_nothing(value: Value) -> Value {
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(members) => {
            let members = members
                .into_iter()
                .map(|(name, value)| (name, without_nothing(value)));
            Value::Object(members.filter(|(_, value)| !is_nothing(value)).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nothing).collect()),
        other => other,
    }
}

/// Numbers that only look random (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        for shift in [13, -7, 17_i32] {
            self.0 ^= if shift > 0 {
                self.0 << shift
            } else {
                self.0 >> -shift
            };
        }
        usize::try_from(self.0 % bound as u64).expect("less than the bound")
    }

    /// Pieces of 1 to `most` bytes.
    fn cut(&mut self, text: &[u8], most: usize) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut rest = Bytes::copy_from_slice(text);
        while !rest.is_empty() {
            let length = (1 + self.below(most)).min(rest.len());
            pieces.push(rest.split_to(length));
        }
        pieces
    }
}
