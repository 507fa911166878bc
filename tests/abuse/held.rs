//! What attackers make the gateway hold: whatever it is, others are served, newcomers let in, its
//! memory stays below a bound, and all is given back.
//!
//! `RUNS_ABUSE_SCALE` says how many times as much is done as in CI; 10 is an attack in earnest.

use std::{
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use prost::Message;
use runs_gateway::v1::{
    CreateRunRequest, GetRunRequest, RunSpec, StreamCreateRunRequest, Tool, WatchRunRequest,
    run_service_client::RunServiceClient,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    Attacked, BOUND, call_as, call_for, get_run,
    peer::{PREFACE, SETTINGS, frame},
    support::upstream::{Answer, Recorded},
};

/// A connection of an attacker's, which reads nothing that is larger than its windows.
struct Attacker {
    requests: h2::client::SendRequest<Bytes>,
    _connection: AbortOnDropHandle<()>,
    /// What is under way, which is not looked at.
    open: Vec<(h2::client::ResponseFuture, h2::SendStream<Bytes>)>,
}

impl Attacker {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(0)
            .handshake(stream)
            .await
            .expect("a handshake");
        Self {
            requests,
            _connection: AbortOnDropHandle::new(tokio::spawn(
                async move { drop(connection.await) },
            )),
            open: Vec::new(),
        }
    }

    /// Waits until all of its calls that are answered soon have their answer's head.
    async fn settle(&mut self) {
        let answers = async {
            for (answer, _) in &mut self.open {
                // Refused is answered, too.
                _ = answer.await;
            }
        };
        _ = timeout(Duration::from_secs(2), answers).await;
    }

    /// Begins a call by these bytes. True if there was a stream for it.
    async fn call(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        bytes: Vec<u8>,
        ends: bool,
    ) -> bool {
        let mut request = Request::post(format!("http://gateway/{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let Ok(mut requests) = self.requests.clone().ready().await else {
            return false;
        };
        let request = request.body(()).expect("a request");
        let Ok((answer, mut body)) = requests.send_request(request, false) else {
            return false;
        };
        let sent = body.send_data(bytes.into(), ends).is_ok();
        self.open.push((answer, body));
        sent
    }
}

/// A message behind its prefix.
fn whole(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("short");
    [&[0], &length.to_be_bytes()[..], &message].concat()
}

fn get(run_id: &str) -> Vec<u8> {
    whole(&GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: run_id.to_owned(),
    })
}

/// A run, as large as its id says: `run_KIBIBYTES`.
fn run(request: &Recorded) -> String {
    let id = request.target.split('/').next_back().unwrap_or_default();
    let id = if id.starts_with("run_") { id } else { "run_0" };
    let kibibytes: usize = id.trim_start_matches("run_").parse().unwrap_or_default();
    let text = "x".repeat(kibibytes << 10);
    format!(
        r#"{{"id":"{id}","object":"thread.run","thread_id":"thread_1","status":"in_progress","instructions":"{text}"}}"#
    )
}

/// Answers with runs, and streams three large events; creates that do not stream are never answered.
fn upstream(request: &Recorded) -> Answer {
    if request.method == "GET" {
        return Answer::json(200, run(request));
    }
    if !request.text().contains("\"stream\":true") {
        return Answer::never();
    }
    let text = "y".repeat(3 << 20);
    let created = format!("event: thread.run.created\ndata: {}\n\n", run(request));
    let large = format!(
        "event: thread.message.delta\ndata: {{\"id\":\"msg_1\",\"object\":\"thread.message.delta\",\"delta\":{{\"content\":[{{\"index\":0,\"type\":\"text\",\"text\":{{\"value\":\"{text}\"}}}}]}}}}\n\n"
    );
    let chunks = [
        created.into_bytes(),
        large.clone().into_bytes(),
        large.into_bytes(),
    ];
    Answer::sse(chunks.map(Bytes::from))
}

const KEY: [(&str, &str); 1] = [("authorization", "Bearer attacker")];
const GET_RUN: &str = "runsgateway.v1.RunService/GetRun";
const CREATE_RUN: &str = "runsgateway.v1.RunService/CreateRun";

/// What an attack holds open, until it is dropped.
type Held = Vec<Box<dyn Send>>;

const BOGUS: &str = "another key with each call";

type Attack = fn(SocketAddr, usize) -> Pin<Box<dyn Future<Output = Held> + Send>>;

struct Row {
    what: &'static str,
    /// How often it is done in CI.
    count: usize,
    attack: Attack,
}

/// Calls on connections of a hundred each.
async fn calls(
    address: SocketAddr,
    count: usize,
    path: &'static str,
    bytes: impl Fn(usize) -> (Vec<u8>, bool),
) -> Held {
    let mut held: Held = Vec::new();
    for from in (0..count).step_by(100) {
        let mut attacker = Attacker::connect(address).await;
        for number in from..count.min(from + 100) {
            let (bytes, ends) = bytes(number);
            if !attacker.call(path, &KEY, bytes, ends).await {
                break;
            }
        }
        held.push(Box::new(attacker));
    }
    held
}

/// Connections that say no more than this.
async fn connections(address: SocketAddr, count: usize, bytes: Vec<u8>) -> Held {
    let mut held: Held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // One that had to give way may be gone.
        _ = stream.write_all(&bytes).await;
        held.push(Box::new(stream));
    }
    held
}

/// The prefix of a message of so many bytes, and as many of them.
fn announced(length: u32, sent: usize) -> Vec<u8> {
    [&[0], &length.to_be_bytes()[..], &vec![b'x'; sent]].concat()
}

fn rows() -> [Row; 13] {
    let row = |what, count, attack| Row {
        what,
        count,
        attack,
    };
    [
        row("connections that say nothing", 415, |address, count| {
            Box::pin(connections(address, count, Vec::new()))
        }),
        row("connections without a call", 415, |address, count| {
            let settings = frame(SETTINGS, 0, 0, b"");
            Box::pin(connections(address, count, [PREFACE, &settings].concat()))
        }),
        row(
            "gRPC-Web by HTTP/1.1 whose message never ends",
            100,
            |address, count| {
                let head = format!(
                    "POST /{CREATE_RUN} HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc-web\r\ncontent-length: {}\r\n\r\n",
                    5 + (4 << 20)
                );
                let body = announced(4 << 20, 1 << 20);
                Box::pin(connections(
                    address,
                    count,
                    [head.into_bytes(), body].concat(),
                ))
            },
        ),
        row(BOGUS, 100, |address, count| {
            Box::pin(async move {
                let mut attacker = Attacker::connect(address).await;
                for number in 0..count {
                    let key = format!("Bearer bogus {number}");
                    let headers = [("authorization", &*key)];
                    let message = whole(&CreateRunRequest {
                        thread_id: "thread_1".to_owned(),
                        run: Some(RunSpec::default()),
                        ..CreateRunRequest::default()
                    });
                    attacker.call(CREATE_RUN, &headers, message, true).await;
                }
                let held: Held = vec![Box::new(attacker)];
                held
            })
        }),
        row(
            "health checks whose message never comes",
            100,
            |address, count| {
                Box::pin(calls(address, count, "grpc.health.v1.Health/Check", |_| {
                    (announced(4 << 10, 100), false)
                }))
            },
        ),
        row("reflection that asks nothing", 100, |address, count| {
            let path = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
            Box::pin(calls(address, count, path, |_| {
                (announced(4 << 10, 100), false)
            }))
        }),
        row("calls without a message", 1000, |address, count| {
            Box::pin(calls(address, count, GET_RUN, |_| (Vec::new(), false)))
        }),
        row("messages of 4 MiB that never end", 30, |address, count| {
            Box::pin(calls(address, count, CREATE_RUN, |_| {
                (announced(4 << 20, (4 << 20) - 100), false)
            }))
        }),
        row(
            "20,000 empty tools in each message",
            30,
            |address, count| {
                let run = Some(RunSpec {
                    tools: vec![Tool::default(); 20_000],
                    ..RunSpec::default()
                });
                let request = CreateRunRequest {
                    thread_id: "thread_1".to_owned(),
                    run,
                    ..CreateRunRequest::default()
                };
                let message = whole(&request);
                Box::pin(calls(address, count, CREATE_RUN, move |_| {
                    (message.clone(), true)
                }))
            },
        ),
        row(
            "answers of 250 kB that nobody reads",
            90,
            |address, count| Box::pin(calls(address, count, GET_RUN, |_| (get("run_250"), true))),
        ),
        row(
            "answers of 15 MiB that nobody reads",
            10,
            |address, count| Box::pin(calls(address, count, GET_RUN, |_| (get("run_15000"), true))),
        ),
        row("events of 3 MiB that nobody reads", 10, |address, count| {
            let path = "runsgateway.v1.RunService/StreamCreateRun";
            Box::pin(calls(address, count, path, |_| {
                let request = StreamCreateRunRequest {
                    thread_id: "thread_1".to_owned(),
                    run: Some(RunSpec::default()),
                    ..StreamCreateRunRequest::default()
                };
                (whole(&request), true)
            }))
        }),
        row(
            "watches of a run of 250 kB that nobody reads",
            40,
            |address, count| {
                let path = "runsgateway.v1.RunService/WatchRun";
                Box::pin(calls(address, count, path, |_| {
                    let request = WatchRunRequest {
                        thread_id: "thread_1".to_owned(),
                        run_id: "run_250".to_owned(),
                        ..WatchRunRequest::default()
                    };
                    (whole(&request), true)
                }))
            },
        ),
    ]
}

/// What may be held in all.
const HELD: usize = 60 << 20;

/// A value of the gateway's metrics.
async fn metric(attacked: &Attacked, name: &str) -> usize {
    let (_, text) = attacked.program.ask_admin("/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|value| value.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// How many calls of a method are open.
async fn open_calls(attacked: &Attacked, method: &str) -> usize {
    let (_, text) = attacked.program.ask_admin("/metrics").await;
    let of_method = |line: &&str| {
        line.starts_with("runs_gateway_active_calls{") && line.contains(&format!("{method}\"}}"))
    };
    let line = text.lines().find(of_method).expect("a gauge of the method");
    let value = line.split_whitespace().next_back();
    value
        .and_then(|value| value.parse().ok())
        .expect("a number")
}

async fn left(attacked: &Attacked) -> usize {
    metric(attacked, "runs_gateway_held_bytes_left ").await
}

/// A caller that was never here, on a connection of its own, and a health check.
async fn newcomer(attacked: &Attacked, what: &str) -> Duration {
    let began = Instant::now();
    let channel = attacked.program.connect();
    let health = HealthCheckRequest::default();
    let mut client = HealthClient::new(channel.clone());
    let asked = timeout(BOUND, client.check(health));
    asked.await.expect("an answer in time").expect("health");
    // Keys that the upstream has not accepted yet share one part: where they are the attack, a
    // newcomer is one that was here before.
    let key = if what == BOGUS { "other" } else { "newcomer" };
    call_as(&channel, &format!("Bearer {key}")).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_held_for_an_attacker_is_bounded_and_given_back() {
    let scale =
        std::env::var("RUNS_ABUSE_SCALE").map_or(1, |scale| scale.parse().expect("a number"));
    for Row {
        what,
        count,
        attack,
    } in rows()
    {
        let held = HELD.to_string();
        let flags = [
            "--max-held-bytes",
            &held,
            "--max-connections",
            "300",
            "--web-origins",
            "https://app.example",
        ];
        let attacked = Attacked::before(&flags, upstream).await;
        // The attacker is one that the upstream knows.
        call_as(&attacked.program.connect(), KEY[0].1).await;
        let (attackers, grown) = attacked
            .during(what, async {
                let attackers = attack(attacked.program.address, count * scale).await;
                // All that comes has come, and what has to give way does so.
                for _ in 0..5 {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    let waited = newcomer(&attacked, what).await;
                    assert!(waited < BOUND, "{what}: {waited:?}");
                }
                attackers
            })
            .await;
        println!("{what}: {} bytes left", left(&attacked).await);
        assert!(grown < 150, "{what}: {grown} MiB");
        drop(attackers);
        let given_back = timeout(Duration::from_secs(10), async {
            while left(&attacked).await < HELD {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let given_back = given_back.await.is_ok();
        let left = left(&attacked).await;
        assert!(given_back, "{what}: {left} of {HELD} bytes are left");
        get_run(&attacked.program.connect()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_end_at_their_deadline_and_give_back_their_places() {
    let attacked = Attacked::before(&["--max-calls", "30"], upstream).await;
    let address = attacked.program.address;
    call_as(&attacked.program.connect(), KEY[0].1).await;
    let headers = [KEY[0], ("grpc-timeout", "1S")];
    // Alone it may have 20 at a time.
    for _ in 0..3 {
        let mut attacker = Attacker::connect(address).await;
        for _ in 0..20 {
            assert!(attacker.call(GET_RUN, &headers, get("run_250"), true).await);
        }
        attacker.settle().await;
        let over = timeout(Duration::from_secs(10), async {
            while open_calls(&attacked, "GetRun").await > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        over.await.expect("they end at their deadline");
        // What is left of each is a piece, as long as the connection lasts.
        drop(attacker);
    }
}

/// A call by its number: its path and its message.
type NthCall<'a> = &'a dyn Fn(usize) -> (&'static str, Vec<u8>);

/// Two of a thing and two callers: each can have one, whatever the other does.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_things_each_of_two_callers_can_have_one() {
    let stream = || {
        let request = StreamCreateRunRequest {
            thread_id: "thread_1".to_owned(),
            run: Some(RunSpec::default()),
            ..StreamCreateRunRequest::default()
        };
        ("runsgateway.v1.RunService/StreamCreateRun", whole(&request))
    };
    let watch = |run_id: String| {
        let request = WatchRunRequest {
            thread_id: "thread_1".to_owned(),
            run_id,
            ..WatchRunRequest::default()
        };
        ("runsgateway.v1.RunService/WatchRun", whole(&request))
    };
    let never = || {
        let request = CreateRunRequest {
            thread_id: "thread_1".to_owned(),
            run: Some(RunSpec::default()),
            ..CreateRunRequest::default()
        };
        (CREATE_RUN, whole(&request))
    };
    let rows: [(&str, NthCall<'_>); 5] = [
        ("--max-calls", &|number| watch(format!("run_{number}"))),
        ("--max-live-streams", &|_| stream()),
        ("--max-polled-runs", &|number| {
            watch(format!("run_{number}"))
        }),
        ("--max-upstream-requests", &|_| never()),
        // One call is 48 KiB of them.
        ("--max-held-bytes", &|number| watch(format!("run_{number}"))),
    ];
    for (flag, call) in rows {
        let limit = if flag == "--max-held-bytes" {
            "131072"
        } else {
            "2"
        };
        let attacked =
            Attacked::before(&[flag, limit, "--max-upstream-queue", "0"], upstream).await;
        call_as(&attacked.program.connect(), KEY[0].1).await;
        let mut attacker = Attacker::connect(attacked.program.address).await;
        for number in 0..10 {
            let (path, message) = call(number);
            attacker.call(path, &KEY, message, true).await;
        }
        attacker.settle().await;
        for _ in 0..10 {
            get_run(&attacked.program.channel).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_floods_everything_at_once_costs_another_one_nothing() {
    let held = HELD.to_string();
    let flags = [
        "--max-held-bytes",
        &held,
        "--max-connections",
        "300",
        "--web-origins",
        "https://app.example",
    ];
    let attacked = Attacked::before(&flags, upstream).await;
    call_as(&attacked.program.connect(), KEY[0].1).await;
    let address = attacked.program.address;
    let (flood, grown) = attacked
        .during("everything at once", async {
            let attacks = rows().map(|row| tokio::spawn((row.attack)(address, row.count)));
            let mut flood = Vec::new();
            for attack in attacks {
                flood.push(attack.await.expect("no panic"));
            }
            flood
        })
        .await;
    let channel = attacked.program.connect();
    println!("what the other caller did meanwhile | calls | longest");
    for (what, run_id) in [("GetRun, small", "run_1"), ("GetRun, 250 kB", "run_250")] {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            longest = longest.max(call_for(&channel, "Bearer other", run_id).await);
        }
        println!("{what} | 20 of 20 | {longest:?}");
    }
    assert!(grown < 200, "{grown} MiB");
    drop(flood);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_of_a_large_run_takes_little() {
    let attacked = Attacked::before(&[], upstream).await;
    let mut client = RunServiceClient::new(attacked.program.connect());
    let mut watches = Vec::new();
    let mut before = 0;
    for number in 0..250 {
        // What is taken once, for all, is there after some.
        if number == 50 {
            before = attacked.program.memory();
        }
        let request = WatchRunRequest {
            thread_id: "thread_1".to_owned(),
            run_id: "run_250".to_owned(),
            ..WatchRunRequest::default()
        };
        let mut request = tonic::Request::new(request);
        let credential = "Bearer other".parse().expect("a value");
        request.metadata_mut().insert("authorization", credential);
        let mut events = client
            .watch_run(request)
            .await
            .expect("a watch")
            .into_inner();
        let first = events.message().await.expect("an event");
        assert!(first.is_some());
        watches.push(events);
    }
    let each = attacked.program.memory().saturating_sub(before) / 200;
    println!("a watch of a run of 250 kB takes {each} KiB");
    assert!(each < 16, "{each} KiB");
}
