//! Instructions of the hot paths, for where seconds are too noisy to tell a change: the same on
//! every run but for a few, whatever else the machine does.
//!
//! Each case is counted by callgrind with ten rounds and with sixty; the difference, over fifty, is
//! what one takes without start-up. `cargo bench --bench instructions [CASE]`; needs valgrind.

use std::{env, hint::black_box, process::Command};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use prost::Message as _;
use runs_gateway::{
    error::Error,
    json::{decode, encode},
    telemetry::{LogFormat, Telemetry, log},
    upstream::{error_event, sse::Parser},
    v1::{MessageDelta, Run, RunEvent, run_event::Payload},
    wire,
};
use tonic::Code;

const RUN: &[u8] = include_bytes!("run.json");
const DELTA: &str = r#"{"id":"msg_Qm3zXb8LkT2vYw7Rc5NpHd1F","object":"thread.message.delta","delta":{"content":[{"index":0,"type":"text","text":{"value":" The next train leaves at nine."}}]}}"#;
const ERROR: &str = r#"{"error":{"message":"Rate limit reached. Please try again in 864ms.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#;

/// What is done so many times, by its name.
type Case = (&'static str, fn(rounds: u64));

const CASES: [Case; 11] = [
    ("run decode", |rounds| {
        (0..rounds).for_each(|_| drop(black_box(decode::<Run>(black_box(RUN)))));
    }),
    ("run encode", |rounds| {
        let run: Run = decode(RUN).expect("the run is read");
        (0..rounds).for_each(|_| drop(black_box(encode(black_box(&run)))));
    }),
    ("delta decode", |rounds| {
        (0..rounds).for_each(|_| {
            drop(black_box(decode::<MessageDelta>(black_box(
                DELTA.as_bytes(),
            ))));
        });
    }),
    ("run to protobuf", |rounds| {
        let run: Run = decode(RUN).expect("the run is read");
        (0..rounds).for_each(|_| drop(black_box(wire::encode(black_box(&run), <[u8]>::to_vec))));
    }),
    ("run to protobuf, by prost", |rounds| {
        let run: Run = decode(RUN).expect("the run is read");
        (0..rounds).for_each(|_| drop(black_box(black_box(&run).encode_to_vec())));
    }),
    ("event to protobuf", |rounds| {
        let event = event();
        (0..rounds).for_each(|_| drop(black_box(wire::encode(black_box(&event), <[u8]>::to_vec))));
    }),
    ("event to protobuf, by prost", |rounds| {
        let event = event();
        (0..rounds).for_each(|_| drop(black_box(black_box(&event).encode_to_vec())));
    }),
    ("event framing", |rounds| {
        let event = Bytes::from(format!("event: thread.message.delta\ndata: {DELTA}\n\n"));
        let mut parser = Parser::new(4 << 20);
        for _ in 0..rounds {
            parser.push(event.clone());
            assert!(
                black_box(parser.next_frame())
                    .expect("within the limit")
                    .is_some()
            );
        }
    }),
    ("a call's metrics", |rounds| {
        let (telemetry, headers) = (Telemetry::default(), HeaderMap::new());
        for _ in 0..rounds {
            let call = telemetry.call("/runsgateway.v1.RunService/GetRun", &headers);
            let mut exchange = telemetry.upstream_request(
                &call,
                &Method::GET,
                "/threads/{thread_id}/runs/{run_id}",
                0,
            );
            exchange.answered(StatusCode::OK);
            exchange.ended(&Ok::<(), Error>(()));
            drop(exchange);
            call.ended(Code::Ok);
        }
    }),
    ("a call's log line", |rounds| {
        log::init("info", LogFormat::Json).expect("a filter");
        let unset = || black_box(None::<&str>);
        for _ in 0..rounds {
            tracing::info!(
                rpc.method = black_box("runsgateway.v1.RunService/GetRun"),
                code = black_box("OK"),
                duration_ms = black_box(0.374),
                events = black_box(None::<u64>),
                upstream_request_id = black_box(Some("req_8f14e45fceea167a5a36dedd4bea2543")),
                trace_id = unset(),
                thread_id = unset(),
                run_id = unset(),
                caller = unset(),
                error = unset(),
                "call ended"
            );
        }
        log::flush();
    }),
    ("error to status", |rounds| {
        (0..rounds).for_each(|_| {
            drop(black_box(
                error_event(black_box(ERROR.as_bytes()), false).status(),
            ));
        });
    }),
];

/// A text delta, as it is sent to callers.
fn event() -> RunEvent {
    let delta = decode::<MessageDelta>(DELTA.as_bytes()).expect("the delta is read");
    RunEvent {
        payload: Some(Payload::MessageDelta(Box::new(delta))),
        ..RunEvent::default()
    }
}

fn main() {
    // cargo adds a flag of its own.
    let words: Vec<String> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    if let [name, rounds] = &words[..] {
        let (_, case) = CASES.iter().find(|(case, _)| case == name).expect("a case");
        return case(rounds.parse().expect("a number"));
    }
    for (name, _) in CASES
        .iter()
        .filter(|(name, _)| words.first().is_none_or(|word| name.starts_with(&**word)))
    {
        println!(
            "{name:27} {:>8} instructions",
            (counted(name, 60) - counted(name, 10)) / 50
        );
    }
}

/// The instructions of this program while it runs a case so many times.
fn counted(name: &str, rounds: u64) -> u64 {
    let program = env::current_exe().expect("this program");
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([name, &rounds.to_string()]);
    let said = valgrind.output().expect("valgrind is installed").stderr;
    let said = String::from_utf8_lossy(&said);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    collected.unwrap_or_else(|| panic!("{said}"))
}
