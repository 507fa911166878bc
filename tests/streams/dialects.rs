//! What servers in the wild make of the event stream.

use bytes::Bytes;
use runs_gateway::v1::{RunEvent, UnknownEvent, run_event::Payload};
use tonic::Code;

use crate::{
    script::{FAST, Heard, create, done, event, hear, json_of, run, run_event},
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Upstream},
    },
};

async fn heard(bytes: impl Into<Bytes>) -> Heard {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    upstream.push(Answer::sse([bytes.into()]));
    let heard = hear(
        gateway
            .runs()
            .stream_create_run(create())
            .await
            .expect("a stream")
            .into_inner(),
    )
    .await;
    gateway.drain().await;
    heard
}

#[tokio::test]
async fn dialects_are_heard_as_the_plain_stream_is() {
    let (created, completed) = (run("queued"), run("completed"));
    let plain = format!(
        "event: thread.run.created\ndata: {created}\n\nevent: thread.run.completed\ndata: {completed}\n\nevent: done\ndata: [DONE]\n\n"
    );
    let dialects = [
        ("plain", plain.clone()),
        (
            "CRLF with comments",
            format!(
                ": hello\r\n\r\n{}: ping\r\n\r\n",
                plain.replace('\n', "\r\n")
            ),
        ),
        ("CR alone", plain.replace('\n', "\r")),
        ("a byte-order mark", format!("\u{feff}{plain}")),
        ("no last blank line", plain.trim_end().to_owned()),
        ("no space after the colon", plain.replace(": ", ":")),
        (
            "the name inside of the data (LiteLLM)",
            format!(
                "data: {{\"event\":\"thread.run.created\",\"data\":{created}}}\n\ndata: {{\"data\": {completed}, \"event\": \"thread.run.completed\"}}\n\n\
                 data: {{\"event\":\"done\",\"data\":\"[DONE]\"}}\n\n"
            ),
        ),
        ("an unnamed [DONE]", plain.replace("event: done\n", "")),
        (
            "ids and times to reconnect",
            plain.replace("data:", "id: 7\nretry: 10\ndata:"),
        ),
        (
            "data in several lines",
            plain.replace(",\"object\"", ",\ndata: \"object\""),
        ),
    ];
    for (dialect, bytes) in dialects {
        println!("given {dialect}");
        let heard = heard(bytes).await;
        assert_eq!(heard.names(), ["run.created", "run.completed", "done"]);
        assert_eq!(heard.status.code(), Code::Ok);
        for (event, sent) in heard.events.iter().zip([&created, &completed]) {
            let [got, sent] = [&json_of(event), sent]
                .map(|text| serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
            let held = |(name, value): (&String, &serde_json::Value)| got.get(name) == Some(value);
            assert!(
                sent.as_object().expect("an object").iter().all(held),
                "{got} lacks some of {sent}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_not_known_or_does_not_fit_arrives_whole() {
    let cases: [(&str, &[u8], &str); 7] = [
        (
            "thread.run.paused",
            br#"{"id":"run_1", "why": 1e400}"#,
            "thread.run.paused",
        ),
        (
            "thread.run.in_progress",
            b"{\"id\":\"run_1\"",
            "thread.run.in_progress",
        ),
        ("thread.run.in_progress", b"[1,2]", "thread.run.in_progress"),
        ("thread.message.delta", b"\"text\"", "thread.message.delta"),
        (
            "thread.run.in_progress",
            b"{\"id\":\"\xff\"}",
            "thread.run.in_progress",
        ),
        ("gap", b"{}", "gap"),
        ("", b"words", ""),
    ];
    for (name, data, heard_name) in cases {
        println!("given {name:?} with {:?}", String::from_utf8_lossy(data));
        let framed = [
            b"event: ",
            name.as_bytes(),
            b"\ndata: ",
            data,
            b"\n\n",
            &run_event("completed"),
            &done(),
        ]
        .concat();
        let heard = heard(framed).await;
        assert_eq!(heard.names(), ["unknown", "run.completed", "done"]);
        let (text, binary) = match str::from_utf8(data) {
            Ok(text) => (text.to_owned(), vec![]),
            Err(_) => (String::new(), data.to_vec()),
        };
        let unknown = UnknownEvent {
            name: heard_name.to_owned(),
            data: text,
            binary_data: binary,
        };
        let expected = RunEvent {
            r#type: 0,
            payload: Some(Payload::Unknown(Box::new(unknown))),
            synthesized: false,
            position: String::new(),
        };
        assert_eq!(heard.events[0], expected);
    }
}

#[tokio::test]
async fn an_event_without_data_is_none_and_the_last_one_may_lack_its_blank_line() {
    let heard = heard(
        [
            &b"event: thread.run.created\n\n"[..],
            event("thread.run.completed", run("completed")).trim_ascii_end(),
        ]
        .concat(),
    )
    .await;
    assert_eq!(heard.names(), ["run.completed"]);
    assert_eq!(heard.status.code(), Code::Ok);
}
