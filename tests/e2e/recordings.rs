//! What a real service was asked and answered passes through the gateway and loses nothing.

use std::{collections::BTreeMap, env, fs, path::Path};

use serde_json::{Value, value::RawValue};

use crate::{
    call::{Call, bare, parts},
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Upstream},
    },
};

type Members = BTreeMap<String, Box<RawValue>>;

/// What real answers have that the contract does not name: the recording, the path of the message,
/// and its `extra_json`.
const EXTRA: [(&str, &str, &str); 0] = [];

/// Headers of a recorded answer that were about its way, not about what it says.
const FRAMING: [&str; 4] = [
    "connection",
    "content-encoding",
    "content-length",
    "transfer-encoding",
];

struct Recording {
    name: String,
    method: String,
    /// Path and query, as recorded.
    target: String,
    asked: String,
    status: u16,
    headers: Vec<(String, String)>,
    /// The answer, to the byte.
    answered: String,
}

/// The exchanges with a JSON answer. The others are event streams.
fn recordings(folder: &Path) -> Vec<Recording> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let mut recordings = Vec::new();
    for path in paths
        .iter()
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
    {
        let text = fs::read_to_string(path).expect("a readable file");
        let members = |text: &str| serde_json::from_str::<Members>(text).expect("an object");
        let value = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).expect("JSON");
        let exchange = members(&text);
        let (request, response) = (
            members(exchange["request"].get()),
            members(exchange["response"].get()),
        );
        if !response["body"].get().starts_with('{') {
            continue;
        }
        let (uri, asked) = (value(&request["uri"]), value(&request["body"]));
        let uri = uri.as_str().expect("text");
        recordings.push(Recording {
            name: path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned(),
            method: value(&request["method"]).as_str().expect("text").to_owned(),
            target: uri[uri.find("/v1/threads").expect("a route of the API")..].to_owned(),
            // One of the two recorders kept bodies as text.
            asked: match asked {
                Value::Null => String::new(),
                Value::String(text) => text,
                asked => asked.to_string(),
            },
            status: response["status"].get().parse().expect("a status"),
            headers: members(response["headers"].get())
                .iter()
                .filter(|(name, _)| !FRAMING.contains(&&*name.to_ascii_lowercase()))
                .filter_map(|(name, text)| Some((name.clone(), value(text).as_str()?.to_owned())))
                .collect(),
            answered: response["body"].get().to_owned(),
        });
    }
    recordings
}

#[tokio::test]
async fn every_recorded_exchange_passes_unchanged_both_ways() {
    let Some(folder) = env::var_os("RUNS_RECORDINGS") else {
        return println!("RUNS_RECORDINGS is not set: no recordings to look at");
    };
    let recordings = recordings(Path::new(&folder));
    assert!(
        !recordings.is_empty(),
        "{} has no recordings",
        folder.display()
    );
    let mut extra = Vec::new();
    for Recording {
        name,
        method,
        target,
        asked,
        status,
        headers,
        answered,
    } in recordings
    {
        let upstream = Upstream::start().await;
        let answer = Answer::json(status, answered.clone());
        upstream.push(
            headers
                .iter()
                .filter(|(name, _)| !name.eq_ignore_ascii_case("content-type"))
                .fold(answer, |answer, (name, value)| answer.header(name, value)),
        );
        let gateway = spawn_gateway(&format!("{}/v1", upstream.url()), &[]).await;
        let call = Call::rest(
            &method,
            target.strip_prefix("/v1").expect("a path below /v1"),
            &asked,
        );

        let got = call
            .on(&gateway)
            .await
            .unwrap_or_else(|status| panic!("{name}: {status}"));

        let value = |text: &str| bare(serde_json::from_str(text).unwrap_or(Value::Null));
        assert_eq!(bare(got.json), value(&answered), "{name}");
        extra.extend(
            got.extra
                .into_iter()
                .map(|(path, text)| (name.clone(), path, text)),
        );

        let [seen] = &upstream.requests()[..] else {
            panic!("{name}: not exactly one request")
        };
        let sorted = |target: &str| {
            let (path, mut query) = parts(target);
            query.sort();
            (path, query)
        };
        assert_eq!(
            (&seen.method, sorted(&seen.target)),
            (&method, sorted(&target)),
            "{name}"
        );
        assert_eq!(value(seen.text()), value(&asked), "{name}");
        gateway.drain().await;
    }
    let expected: Vec<_> = EXTRA
        .iter()
        .map(|(name, path, text)| ((*name).into(), (*path).into(), (*text).into()))
        .collect();
    assert_eq!(extra, expected, "what the contract does not name");
}
