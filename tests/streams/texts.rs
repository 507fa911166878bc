//! Every text is there once a stream is over: of a stream that was cut at any byte, and of a run
//! that was only watched.

use std::{collections::BTreeMap, env, fs, path::Path, sync::Arc};

use bytes::Bytes;
use runs_gateway::v1::{
    ConverseAttach, ConverseRunRequest, Gap, RunEvent, RunEventType, RunSpec,
    StreamCreateRunRequest, StreamOptions, ThreadMessage, WatchRunRequest,
    converse_run_request::Message, run_event::Payload,
};
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    script::{
        FAST, Heard, create_with, error, event, hear, list, message, name, polled, run, run_event,
        step, watch,
    },
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Recorded, Upstream},
    },
};

/// What a service said of a run to its end, and what it says of the run afterwards.
#[derive(Default)]
struct Said {
    stream: Bytes,
    run: String,
    steps: Vec<String>,
    messages: BTreeMap<String, String>,
}

impl Said {
    /// Reads a stream: one data line in each event, lines end with LF.
    fn new(stream: Bytes) -> Self {
        let mut said = Self::default();
        let text = str::from_utf8(&stream).expect("UTF-8");
        for event in text.split_terminator("\n\n") {
            let (name, data) = event.split_once('\n').expect("two lines");
            let data = data.strip_prefix("data: ").expect("data").to_owned();
            match name.strip_prefix("event: ").expect("a name") {
                "thread.run.completed" => said.run = data,
                "thread.run.step.completed" => said.steps.push(data),
                "thread.message.completed" => {
                    let id = json(&data)["id"].as_str().expect("an id").to_owned();
                    said.messages.insert(id, data);
                }
                _ => {}
            }
        }
        said.stream = stream;
        said
    }

    /// Cuts the stream at the byte that the thread's name says, and answers everything else.
    fn answer(&self, request: &Recorded) -> Answer {
        let path = request.target.split('?').next().unwrap_or_default();
        let segments: Vec<_> = path.split('/').skip(1).collect();
        match segments[..] {
            ["threads", thread, "runs"] => {
                let at: usize = thread.trim_start_matches("cut_").parse().expect("a number");
                Answer::sse([self.stream.slice(..at)]).cut()
            }
            ["threads", _, "runs", _] => Answer::json(200, self.run.clone()),
            ["threads", _, "runs", _, "steps"] => Answer::json(200, list(&self.steps)),
            ["threads", _, "messages", id] => Answer::json(200, self.messages[id].clone()),
            _ => panic!("{request:?}"),
        }
    }

    /// The text of each message.
    fn texts(&self) -> BTreeMap<String, String> {
        let text = |(id, data): (&String, &String)| {
            let content = json(data)["content"].clone();
            let parts = content.as_array().expect("content").iter();
            let text = parts.filter_map(|part| part["text"]["value"].as_str());
            (id.clone(), text.collect())
        };
        self.messages.iter().map(text).collect()
    }
}

/// The texts that a caller has at the end, from the messages that were sent whole.
fn texts(heard: &Heard) -> BTreeMap<String, String> {
    let text = |message: &ThreadMessage| {
        let parts = message.content.iter();
        let values = parts.filter_map(|part| Some(part.text.as_ref()?.value().to_owned()));
        (message.id.clone(), values.collect())
    };
    messages(&heard.events).map(text).collect()
}

/// The messages that were sent whole.
fn messages(events: &[RunEvent]) -> impl Iterator<Item = &ThreadMessage> {
    events.iter().filter_map(|event| match &event.payload {
        Some(Payload::Message(message))
            if event.r#type() == RunEventType::ThreadMessageCompleted =>
        {
            Some(&**message)
        }
        _ => None,
    })
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn text(id: &str, text: &str) -> String {
    let content = serde_json::json!([{"type": "text", "text": {"value": text, "annotations": []}}]);
    let mut message = json(&message(id, "completed"));
    message["content"] = content;
    message.to_string()
}

/// Two messages with a tool call between them.
fn two_messages() -> Bytes {
    let delta = |id: &str, text: &str| {
        let delta = serde_json::json!({"id": id, "object": "thread.message.delta",
            "delta": {"content": [{"index": 0, "type": "text", "text": {"value": text}}]}});
        event("thread.message.delta", delta.to_string())
    };
    let say = |step_id: &str, id: &str, words: [&str; 2]| {
        [
            event("thread.run.step.created", step(step_id, "in_progress", id)),
            event("thread.message.created", message(id, "in_progress")),
            delta(id, words[0]),
            delta(id, words[1]),
            event("thread.message.completed", text(id, &words.concat())),
            event("thread.run.step.completed", step(step_id, "completed", id)),
        ]
    };
    let events = [event("thread.run.created", run("queued"))]
        .into_iter()
        .chain(say("step_1", "msg_1", ["Grüße, ", "\u{1F30D} \"you\""]))
        .chain([event(
            "thread.run.step.completed",
            step("step_2", "completed", ""),
        )])
        .chain(say("step_3", "msg_2", ["It is", " 20\u{b0}.\n"]))
        .chain([run_event("completed"), event("done", "[DONE]")]);
    events.collect::<Vec<_>>().concat().into()
}

#[tokio::test]
async fn a_stream_cut_at_any_byte_gives_every_text_in_the_end() {
    let mut said = vec![(Said::new(two_messages()), 1)];
    match env::var("RUNS_RECORDINGS") {
        Ok(folder) => {
            for (recording, stride) in [
                ("StreamingRunWorks-02.sse", 1),
                ("FileSearchStreamingWorks-03.sse", 7),
            ] {
                let stream = fs::read(Path::new(&folder).join(recording)).expect("a recording");
                said.push((Said::new(stream.into()), stride));
            }
        }
        Err(_) => println!("RUNS_RECORDINGS is not set: only a stream made here is cut"),
    }
    for (said, stride) in said {
        cut_everywhere(said, stride).await;
    }
}

async fn cut_everywhere(said: Said, stride: usize) {
    let (wanted, length) = (said.texts(), said.stream.len());
    assert!(!wanted.is_empty() && wanted.values().all(|text| !text.is_empty()));
    let upstream = Upstream::answering(move |request| said.answer(request)).await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let mut streams = JoinSet::new();
    let (mut whole, mut unnamed) = (0, 0);
    for at in (0..=length).step_by(stride) {
        let mut runs = gateway.runs();
        streams.spawn(async move {
            let request = StreamCreateRunRequest {
                thread_id: format!("cut_{at}"),
                run: Some(RunSpec {
                    assistant_id: "asst_1".into(),
                    ..RunSpec::default()
                }),
                options: Some(missed()),
                ..StreamCreateRunRequest::default()
            };
            (
                at,
                runs.stream_create_run(request)
                    .await
                    .map(tonic::Response::into_inner),
            )
        });
        while streams.len() >= 32 || (at + stride > length && !streams.is_empty()) {
            let (at, stream) = streams
                .join_next()
                .await
                .expect("a stream")
                .expect("no panic");
            let heard = hear(stream.expect("a stream")).await;
            if heard.events.is_empty() {
                // Nobody knows which run that was.
                assert_eq!(heard.status.code(), Code::Unknown, "cut at {at}");
                unnamed += 1;
                continue;
            }
            assert_eq!(
                heard.status.code(),
                Code::Ok,
                "cut at {at}: {:?}",
                heard.status
            );
            assert_eq!(texts(&heard), wanted, "cut at {at}: {:?}", heard.names());
            assert_eq!(messages(&heard.events).count(), wanted.len(), "cut at {at}");
            whole += 1;
        }
    }
    println!("{length} bytes: {whole} streams whole, {unnamed} cut before the run had a name");
    assert!(whole > unnamed);
    gateway.drain().await;
}

fn missed() -> StreamOptions {
    StreamOptions {
        include_missed_messages: true,
        ..StreamOptions::default()
    }
}

fn attach() -> ConverseRunRequest {
    ConverseRunRequest {
        message: Some(Message::Attach(ConverseAttach {
            thread_id: "thread_1".into(),
            run_id: "run_1".into(),
            options: Some(missed()),
            ..ConverseAttach::default()
        })),
    }
}

/// One row: given a run that turns out to have these steps, and these answers to what is asked
/// then, the caller sees this.
struct Row {
    given: &'static str,
    status: &'static str,
    steps: Result<Vec<String>, u16>,
    messages: fn(&str) -> Answer,
    /// What a stream that was cut in the middle of `msg_1` goes on with, and what a conversation
    /// that takes up the run begins with.
    cut: &'static [&'static str],
    /// What the gap names.
    gap: &'static [&'static str],
    /// What a watch gives, where it differs.
    watched: &'static [&'static str],
}

fn steps(steps: &[String]) -> Answer {
    Answer::json(200, list(steps))
}

/// Every message is there.
fn there(path: &str) -> Answer {
    match path.rsplit('/').next() {
        Some("messages") => Answer::json(
            200,
            list(&[
                message("msg_of_another_run", "completed").replace("run_1", "run_0"),
                text("msg_1", "one"),
                text("msg_2", "two"),
            ]),
        ),
        Some(id) => Answer::json(200, text(id, "here")),
        None => unreachable!(),
    }
}

fn rows() -> Vec<Row> {
    let answered = || Ok(vec![step("step_1", "completed", "msg_1")]);
    vec![
        Row {
            given: "a message that can be read",
            status: "completed",
            steps: answered(),
            messages: there,
            cut: &["gap*", "message.completed*", "run.completed*"],
            gap: &["msg_1"],
            watched: &["message.completed*", "run.completed*"],
        },
        Row {
            given: "a message that was cut short",
            status: "incomplete",
            steps: answered(),
            messages: |_| Answer::json(200, message("msg_1", "incomplete")),
            cut: &["gap*", "message.incomplete*", "run.incomplete*"],
            gap: &["msg_1"],
            watched: &["message.incomplete*", "run.incomplete*"],
        },
        Row {
            given: "a message that is gone",
            status: "completed",
            steps: answered(),
            messages: |_| Answer::json(404, error("not_found")),
            cut: &["gap*", "run.completed*"],
            gap: &["msg_1"],
            watched: &["gap*", "run.completed*"],
        },
        Row {
            given: "one of two messages that may not be read",
            status: "completed",
            steps: Ok(vec![
                step("step_1", "completed", "msg_1"),
                step("step_2", "completed", "msg_2"),
            ]),
            messages: |path| {
                if path.ends_with("msg_1") {
                    Answer::json(403, error("forbidden"))
                } else {
                    there(path)
                }
            },
            cut: &["gap*", "message.completed*", "run.completed*"],
            gap: &["msg_1", "msg_2"],
            watched: &["message.completed*", "gap*", "run.completed*"],
        },
        Row {
            given: "a message that is never whole",
            status: "failed",
            steps: Ok(vec![step("step_1", "failed", "msg_1")]),
            messages: |_| Answer::json(200, message("msg_1", "in_progress")),
            cut: &["gap*", "run.failed*"],
            gap: &["msg_1"],
            watched: &["gap*", "run.failed*"],
        },
        Row {
            given: "an upstream that lists no steps",
            status: "completed",
            steps: Ok(vec![]),
            messages: there,
            cut: &[
                "gap*",
                "message.completed*",
                "message.completed*",
                "run.completed*",
            ],
            gap: &["msg_1", "msg_2"],
            watched: &["message.completed*", "message.completed*", "run.completed*"],
        },
        Row {
            given: "an upstream that has no route for steps",
            status: "requires_action",
            steps: Err(404),
            messages: there,
            cut: &[
                "gap*",
                "message.completed*",
                "message.completed*",
                "run.requires_action*",
            ],
            gap: &["msg_1", "msg_2"],
            watched: &[
                "message.completed*",
                "message.completed*",
                "run.requires_action*",
            ],
        },
        Row {
            given: "an upstream that has neither steps nor messages",
            status: "completed",
            steps: Err(404),
            messages: |_| Answer::json(404, error("not_found")),
            cut: &["gap*", "run.completed*"],
            gap: &[],
            watched: &["gap*", "run.completed*"],
        },
    ]
}

/// What is said of the run that a row is about.
fn answer(row: &Row, request: &Recorded) -> Answer {
    let path = request.target.split('?').next().unwrap_or_default();
    match path.trim_start_matches("/threads/thread_1") {
        "/runs" => Answer::sse([
            event("thread.run.created", run("queued")),
            event("thread.message.created", message("msg_1", "in_progress")),
        ])
        .cut(),
        "/runs/run_1" => polled(row.status),
        "/runs/run_1/steps" => match &row.steps {
            Ok(listed) => steps(listed),
            Err(status) => Answer::json(*status, error("not_found")),
        },
        path => (row.messages)(path),
    }
}

#[tokio::test]
async fn what_a_cut_stream_or_a_watch_gives_of_a_run_messages() {
    for row in rows().into_iter().map(Arc::new) {
        let asked = Arc::clone(&row);
        let upstream = Upstream::answering(move |request| answer(&asked, request)).await;
        let gateway = spawn_gateway(&upstream.url(), &FAST).await;
        let stream = gateway
            .runs()
            .stream_create_run(create_with(missed()))
            .await;
        let heard = hear(stream.expect("a stream").into_inner()).await;
        assert_eq!(heard.names()[2..], *row.cut, "{}", row.given);
        assert_eq!(heard.status.code(), Code::Ok, "{}", row.given);
        assert_eq!(gap(&heard.events).message_ids, row.gap, "{}", row.given);

        if row.status != "requires_action" {
            let attached = tokio_stream::iter([attach()]);
            let stream = gateway.runs().converse_run(attached).await;
            let heard = hear(stream.expect("a stream").into_inner()).await;
            assert_eq!(heard.names(), *row.cut, "{}", row.given);
        }

        let request = WatchRunRequest {
            include_messages: true,
            ..watch()
        };
        let stream = gateway.runs().watch_run(request).await;
        let mut stream = stream.expect("a stream").into_inner();
        let mut events = Vec::new();
        while events.len() < row.watched.len() {
            events.push(crate::script::next(&mut stream).await);
        }
        let names: Vec<_> = events.iter().map(name).collect();
        assert_eq!(names, row.watched, "{}", row.given);
        drop(stream);
        gateway.drain().await;
    }
}

/// The one gap among the events.
fn gap(events: &[RunEvent]) -> Gap {
    let gaps = events.iter().filter_map(|event| match &event.payload {
        Some(Payload::Gap(gap)) => Some((**gap).clone()),
        _ => None,
    });
    let gaps: Vec<_> = gaps.collect();
    assert_eq!(gaps.len(), 1);
    gaps[0].clone()
}

#[tokio::test]
async fn a_watch_gives_each_message_after_its_step_as_soon_as_it_is_whole_and_reads_it_once() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let first = step("step_1", "completed", "msg_1");
    let open = step("step_2", "in_progress", "msg_2");
    for answer in [
        polled("in_progress"),
        steps(&[first.clone(), open.clone()]),
        there("/messages/msg_1"),
        // The next poll fails to read the second message, and the one after it does not.
        polled("in_progress"),
        steps(&[first.clone(), step("step_2", "completed", "msg_2")]),
        Answer::json(503, error("overloaded")),
        polled("completed"),
        steps(&[first, step("step_2", "completed", "msg_2")]),
        there("/messages/msg_2"),
    ] {
        upstream.push(answer);
    }
    let request = WatchRunRequest {
        include_steps: true,
        include_messages: true,
        ..watch()
    };
    let stream = gateway.runs().watch_run(request).await;
    let heard = hear(stream.expect("a stream").into_inner()).await;
    assert_eq!(
        heard.names(),
        [
            "step.completed*",
            "message.completed*",
            "step.in_progress*",
            "run.in_progress*",
            "step.completed*",
            "message.completed*",
            "run.completed*",
        ]
    );
    gateway.drain().await;
}

#[tokio::test]
async fn a_message_that_fails_to_be_read_at_the_end_is_read_again() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let listed = || steps(&[step("step_1", "completed", "msg_1")]);
    for message in [
        Answer::json(503, error("overloaded")),
        there("/messages/msg_1"),
    ] {
        upstream.push(polled("completed"));
        upstream.push(listed());
        upstream.push(message);
    }
    let request = WatchRunRequest {
        include_messages: true,
        ..watch()
    };
    let stream = gateway.runs().watch_run(request).await;
    let heard = hear(stream.expect("a stream").into_inner()).await;
    assert_eq!(heard.names(), ["message.completed*", "run.completed*"]);
    gateway.drain().await;
}
