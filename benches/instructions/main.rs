//! Instructions of the hot paths, for where seconds are too noisy to tell a change: the same on
//! every run but for a few, whatever else the machine does. Needs valgrind.
//!
//! | command | what it does |
//! |---|---|
//! | `cargo bench --profile dist --bench instructions [CASE]` | prints what each case takes |
//! | `benches/budget` | counts calls, and fails if one is more than 2% from its number in `budget.json`, or grows faster than its document |
//! | `benches/budget --update` | writes `budget.json` |
//!
//! A case is counted by callgrind with few rounds and with many; the difference, over the rounds,
//! is what one takes without start-up. A growth is counted with documents of one, two and four
//! sizes: from two to four it has to grow twice as much as from one to two.

mod budget;
mod callgrind;
mod documents;
mod gateway;
mod upstream;

use std::{
    collections::BTreeMap,
    env,
    hint::black_box,
    net::SocketAddr,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread::{self, ScopedJoinHandle},
};

use budget::Budget;
use bytes::Bytes;
use documents::RUN;
use gateway::Calls;
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

const DELTA: &str = r#"{"id":"msg_Qm3zXb8LkT2vYw7Rc5NpHd1F","object":"thread.message.delta","delta":{"content":[{"index":0,"type":"text","text":{"value":" The next train leaves at nine."}}]}}"#;
const ERROR: &str = r#"{"error":{"message":"Rate limit reached. Please try again in 864ms.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#;

/// What is done so many times, by its name: in this program, as it was built.
type Case = (&'static str, fn(rounds: u64));

const CASES: [Case; 11] = [
    ("run decode", |rounds| {
        (0..rounds).for_each(|_| drop(black_box(decode::<Run>(black_box(RUN.as_bytes())))));
    }),
    ("run encode", |rounds| {
        let run: Run = decode(RUN.as_bytes()).expect("the run is read");
        (0..rounds).for_each(|_| drop(black_box(encode(black_box(&run)))));
    }),
    ("run to protobuf", |rounds| {
        let run: Run = decode(RUN.as_bytes()).expect("the run is read");
        (0..rounds).for_each(|_| {
            black_box(wire::encode(black_box(&run), <[u8]>::len));
        });
    }),
    ("run to protobuf, by prost", |rounds| {
        let run: Run = decode(RUN.as_bytes()).expect("the run is read");
        (0..rounds).for_each(|_| drop(black_box(black_box(&run).encode_to_vec())));
    }),
    ("event to protobuf", |rounds| {
        let event = event();
        (0..rounds).for_each(|_| {
            black_box(wire::encode(black_box(&event), <[u8]>::len));
        });
    }),
    ("event to protobuf, by prost", |rounds| {
        let event = event();
        (0..rounds).for_each(|_| drop(black_box(black_box(&event).encode_to_vec())));
    }),
    ("delta decode", |rounds| {
        (0..rounds).for_each(|_| {
            drop(black_box(decode::<MessageDelta>(black_box(
                DELTA.as_bytes(),
            ))));
        });
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

/// The same in a gateway as it is shipped. Only these are held to numbers: together they go through
/// all of the cases.
const CALLS: [(&str, Calls); 3] = [
    ("a call, GetRun", Calls::Get),
    ("a call, CreateRun", Calls::Create),
    ("an event of a stream", Calls::Events),
];

/// Calls that grow, and the size to begin with.
const GROWTHS: [(&str, Calls, u64); 9] = [
    ("a run, by its bytes", Calls::LargeRun, 64 << 10),
    ("a list, by its runs", Calls::List, 25),
    ("a request, by its bytes", Calls::LargeRequest, 256 << 10),
    ("an event, by its bytes", Calls::LargeEvent, 256 << 10),
    ("an event, by its lines", Calls::Lines, 256 << 10),
    ("a stream, by its messages", Calls::Messages, 250),
    ("a watch, by its steps", Calls::Steps, 250),
    (
        "a watch, by its steps and messages",
        Calls::StepsAndMessages,
        250,
    ),
    ("a stream that is resumed, by its steps", Calls::Resume, 250),
];

/// How much faster than its document a call may grow: what is quadratic grows twice as fast.
const MAX_GROWTH: f64 = 1.1;

/// Rounds of a case, few and many, in this program and in a gateway.
const ROUNDS: [u64; 2] = [10, 60];
const CALL_ROUNDS: [u64; 2] = [100, 600];

/// How often a count is taken that is not as it has to be: what disturbed it passes, and a change
/// does not.
const ATTEMPTS: usize = 3;

fn main() -> ExitCode {
    // cargo adds a flag of its own.
    let words: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["--rounds", name, rounds] => {
            let (_, case) = CASES.iter().find(|it| it.0 == name).expect("a case");
            case(rounds.parse().expect("a number"));
            ExitCode::SUCCESS
        }
        ["--update"] => {
            let counter = Counter::new(None);
            let instructions = counter.calls("");
            let tools = budget::tools();
            Budget {
                tools,
                instructions,
            }
            .write();
            ExitCode::SUCCESS
        }
        ["--check"] => check(),
        [] | [_] => {
            let name = words.first().copied().unwrap_or_default();
            let counter = Counter::new(None);
            counter.cases(name);
            counter.calls(name);
            counter.growths(name);
            ExitCode::SUCCESS
        }
        _ => panic!("one case, --check or --update"),
    }
}

/// Holds all cases to their numbers, and all growths to their limit.
fn check() -> ExitCode {
    let Some(budget) = Budget::read() else {
        println!("there is no benches/instructions/budget.json: benches/budget --update");
        return ExitCode::FAILURE;
    };
    let tools = budget::tools();
    let compares = budget.tools == tools;
    if !compares {
        println!(
            "NOT COMPARED: budget.json is of {:?}, and these are {tools:?}\n",
            budget.tools
        );
    }
    let counter = Counter::new(compares.then_some(budget));
    let mut failures = Vec::new();
    let counts = counter.calls("");
    if let Some(budget) = &counter.budget {
        let counts = counts.into_iter();
        let far = counts.filter(|(name, count)| !budget.holds(name, *count));
        failures.extend(far.map(|(name, _)| {
            format!(
                "{name}: more than 2% from its number. If that is meant: benches/budget --update, \
                 commit benches/instructions/budget.json, and say why."
            )
        }));
    }
    let fast = counter
        .growths("")
        .into_iter()
        .filter(|it| it.1 > MAX_GROWTH);
    failures.extend(fast.map(|(name, _)| {
        format!("{name}: it grows faster. Look for what is searched or copied once for each entry.")
    }));
    println!("\n{}", failures.join("\n"));
    ExitCode::from(u8::from(!failures.is_empty()))
}

/// Counts, and prints each count.
struct Counter {
    upstream: SocketAddr,
    /// What counts are held against.
    budget: Option<Budget>,
}

impl Counter {
    fn new(budget: Option<Budget>) -> Self {
        Self {
            upstream: upstream::start(),
            budget,
        }
    }

    /// What one round takes of each case whose name begins so.
    fn cases(&self, name: &str) -> BTreeMap<String, u64> {
        let cases = CASES.into_iter().filter(|it| it.0.starts_with(name));
        self.counts(cases.map(|(name, _)| (name, None)).collect())
    }

    /// What one call takes of each kind whose name begins so.
    fn calls(&self, name: &str) -> BTreeMap<String, u64> {
        let calls = CALLS.into_iter().filter(|it| it.0.starts_with(name));
        self.counts(calls.map(|(name, calls)| (name, Some(calls))).collect())
    }

    fn counts(&self, all: Vec<(&'static str, Option<Calls>)>) -> BTreeMap<String, u64> {
        in_parallel(all, |(name, calls)| {
            let count = self.count(name, calls);
            println!(
                "{name:40} {count:>10} instructions {}",
                self.deviation(name, count)
            );
            (name.to_owned(), count)
        })
        .into_iter()
        .collect()
    }

    /// How much faster than its document each call grows whose name begins so.
    fn growths(&self, name: &str) -> Vec<(&'static str, f64)> {
        let chosen = GROWTHS.into_iter().filter(|it| it.0.starts_with(name));
        in_parallel(chosen.collect(), |(name, calls, size)| {
            let grow = || {
                let sizes = [size, 2 * size, 4 * size];
                let [one, two, four] = sizes.map(|size| calls.counted(self.upstream, size));
                #[expect(clippy::cast_precision_loss, reason = "no count has so many digits")]
                let growth = (four - two) as f64 / (2 * (two - one)) as f64;
                ((four - two) / (2 * size), growth)
            };
            let (each, growth) = again(grow, |(_, growth)| *growth <= MAX_GROWTH);
            println!("{name:40} {each:>10} instructions each, growing by {growth:.3}");
            (name, growth)
        })
    }

    fn count(&self, name: &str, calls: Option<Calls>) -> u64 {
        let [few, many] = if calls.is_some() { CALL_ROUNDS } else { ROUNDS };
        let taken = |rounds: u64| match calls {
            None => callgrind::counted(["--rounds", name, &rounds.to_string()]),
            Some(calls) => calls.counted(self.upstream, rounds),
        };
        again(
            || (taken(many) - taken(few)) / (many - few),
            |count| self.budget.as_ref().is_none_or(|it| it.holds(name, *count)),
        )
    }

    fn deviation(&self, name: &str, count: u64) -> String {
        let budget = self.budget.as_ref();
        let deviation = budget.and_then(|budget| budget.deviation(name, count));
        deviation.map_or_else(String::new, |it| format!("{:+.1}%", 100.0 * it))
    }
}

/// Takes a count, again while it is not as it has to be.
fn again<T>(take: impl Fn() -> T, is_good: impl Fn(&T) -> bool) -> T {
    let mut taken = take();
    for _ in 1..ATTEMPTS {
        if is_good(&taken) {
            break;
        }
        taken = take();
    }
    taken
}

/// Does all of it, as many at a time as there are cores; the results in their order.
fn in_parallel<T: Send, R: Send>(all: Vec<T>, each: impl Fn(T) -> R + Sync) -> Vec<R> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let todo = Mutex::new(all.into_iter().enumerate());
    let work = || {
        let next = || todo.lock().unwrap_or_else(PoisonError::into_inner).next();
        let mut done = Vec::new();
        while let Some((at, one)) = next() {
            done.push((at, each(one)));
        }
        done
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let workers = workers.into_iter().map(ScopedJoinHandle::join);
        workers.flat_map(|it| it.expect("a count")).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
