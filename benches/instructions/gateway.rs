//! Calls through the program as it is shipped, which runs in callgrind: what it alone takes, from
//! the socket of the caller to that of the upstream.
//!
//! Must hold: one call at a time, so that every count has the same wake-ups.

use std::{
    env,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread,
};

use runs_gateway::v1::{
    CreateRunRequest, GetRunRequest, ListRunsRequest, ResumeRunRequest, RunEvent, RunSpec,
    StreamCreateRunRequest, StreamOptions, WatchRunRequest, run_event::Payload,
    run_service_client::RunServiceClient,
};
use tempfile::NamedTempFile;
use tokio::runtime;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    callgrind,
    documents::{self, RUN_ID},
};

/// What is called, of the size or as often as a number says.
#[derive(Clone, Copy)]
pub(crate) enum Calls {
    /// `GetRun`, so often.
    Get,
    /// `CreateRun`, so often.
    Create,
    /// A stream of so many events in bulk.
    Events,
    /// `GetRun` of a run of so many bytes.
    LargeRun,
    /// `ListRuns` of so many runs of 25 kB.
    List,
    /// `CreateRun` of so many bytes.
    LargeRequest,
    /// An event of so many bytes.
    LargeEvent,
    /// An event of so many bytes in lines of sixty.
    Lines,
    /// A stream of so many messages that are written in turns.
    Messages,
    /// `WatchRun` of a run with so many steps.
    Steps,
    /// The same, with the message that each step made.
    StepsAndMessages,
    /// `ResumeRun` of a run with so many steps, of which nothing is known.
    Resume,
}

impl Calls {
    /// The instructions of a gateway that is started, called, and ended.
    pub(crate) fn counted(self, upstream: SocketAddr, number: u64) -> u64 {
        let log = NamedTempFile::new().expect("a file");
        let mut gateway = Gateway::start(upstream, &log);
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let called = runtime
            .expect("a runtime")
            .block_on(self.call(gateway.address, usize::try_from(number).expect("a size")));
        called.expect("every call is answered");
        gateway.end();
        callgrind::collected(&std::fs::read_to_string(log.path()).expect("text"))
    }

    async fn call(self, to: SocketAddr, number: usize) -> Result<(), Status> {
        let channel = Endpoint::try_from(format!("http://{to}")).expect("an address");
        let channel = channel.initial_stream_window_size(1 << 26);
        let channel = channel.initial_connection_window_size(1 << 26);
        let channel = channel.connect().await.expect("it listens");
        let mut client = RunServiceClient::new(channel).max_decoding_message_size(1 << 26);
        let client = &mut client;
        match self {
            Self::Get => {
                for _ in 0..number {
                    get(client, "run-0".to_owned()).await?;
                }
            }
            Self::LargeRun => get(client, format!("run-{number}")).await?,
            Self::Create => {
                for _ in 0..number {
                    create(client, "Answer in one short paragraph.".to_owned()).await?;
                }
            }
            Self::LargeRequest => create(client, documents::text(number)).await?,
            Self::List => {
                let request = ListRunsRequest {
                    thread_id: format!("list-{number}"),
                    ..ListRunsRequest::default()
                };
                let listed = client.list_runs(request).await?.into_inner();
                assert_eq!(listed.data.len(), number);
            }
            Self::Events => {
                let events = stream(client, format!("deltas-{number}")).await?;
                assert_eq!(deltas(&events), number);
            }
            Self::LargeEvent => {
                let events = stream(client, format!("event-{number}")).await?;
                assert_eq!(deltas(&events), 1);
            }
            Self::Lines => {
                let events = stream(client, format!("lines-{number}")).await?;
                assert_eq!(deltas(&events), 1);
            }
            Self::Messages => {
                let events = stream(client, format!("messages-{number}")).await?;
                assert_eq!(deltas(&events), 3 * number);
            }
            Self::Steps | Self::StepsAndMessages => {
                let request = WatchRunRequest {
                    thread_id: format!("steps-{number}"),
                    run_id: RUN_ID.to_owned(),
                    include_steps: true,
                    include_messages: matches!(self, Self::StepsAndMessages),
                    options: None,
                };
                let events = read(client.watch_run(request).await?.into_inner()).await?;
                assert_eq!(steps(&events), number);
            }
            Self::Resume => {
                let request = ResumeRunRequest {
                    thread_id: format!("steps-{number}"),
                    run_id: RUN_ID.to_owned(),
                    options: Some(StreamOptions {
                        include_missed_messages: true,
                        ..StreamOptions::default()
                    }),
                    ..ResumeRunRequest::default()
                };
                read(client.resume_run(request).await?.into_inner()).await?;
            }
        }
        Ok(())
    }
}

type Client = RunServiceClient<Channel>;

async fn get(client: &mut Client, thread_id: String) -> Result<(), Status> {
    let run_id = RUN_ID.to_owned();
    client.get_run(GetRunRequest { thread_id, run_id }).await?;
    Ok(())
}

fn spec(instructions: String) -> RunSpec {
    RunSpec {
        assistant_id: "asst_1".to_owned(),
        instructions: Some(instructions),
        ..RunSpec::default()
    }
}

async fn create(client: &mut Client, instructions: String) -> Result<(), Status> {
    let request = CreateRunRequest {
        thread_id: "run-0".to_owned(),
        run: Some(spec(instructions)),
        ..CreateRunRequest::default()
    };
    client.create_run(request).await?;
    Ok(())
}

async fn stream(client: &mut Client, thread_id: String) -> Result<Vec<RunEvent>, Status> {
    let request = StreamCreateRunRequest {
        thread_id,
        run: Some(spec(String::new())),
        ..StreamCreateRunRequest::default()
    };
    read(client.stream_create_run(request).await?.into_inner()).await
}

async fn read(mut stream: Streaming<RunEvent>) -> Result<Vec<RunEvent>, Status> {
    let mut events = Vec::new();
    while let Some(event) = stream.message().await? {
        events.push(event);
    }
    Ok(events)
}

fn deltas(events: &[RunEvent]) -> usize {
    count(events, |payload| {
        matches!(payload, Payload::MessageDelta(_))
    })
}

fn steps(events: &[RunEvent]) -> usize {
    count(events, |payload| matches!(payload, Payload::RunStep(_)))
}

fn count(events: &[RunEvent], counts: impl Fn(&Payload) -> bool) -> usize {
    let payloads = events.iter().filter_map(|event| event.payload.as_ref());
    payloads.filter(|payload| counts(payload)).count()
}

/// The program, in callgrind.
struct Gateway {
    child: Child,
    address: SocketAddr,
}

impl Gateway {
    fn start(upstream: SocketAddr, log: &NamedTempFile) -> Self {
        let program = env::var_os("RUNS_GATEWAY_BIN");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_runs-gateway").into());
        let mut child = callgrind::command(log.path())
            .arg(program)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(["--upstream-url", &format!("http://{upstream}")])
            .args(["--worker-threads", "1", "--drain-delay", "0s"])
            .args(["--poll-rate", "100000", "--max-answer-bytes", "67108864"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("valgrind is installed");
        let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let address = said.find_map(|line| {
            let address = line.ok()?.strip_prefix("grpc listening on ")?.parse();
            address.ok()
        });
        // A pipe that nobody reads would stop it.
        thread::spawn(move || said.for_each(drop));
        Self {
            child,
            address: address.expect("it listens"),
        }
    }

    fn end(&mut self) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(killed.expect("kill").success());
        assert!(self.child.wait().expect("an end").success());
    }
}

impl Drop for Gateway {
    /// Where a call has failed, it is still there.
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
