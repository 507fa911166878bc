//! What the gateway itself ends, holds or repeats.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use runs_gateway::{
    embedded::{self, Clock, Limits},
    v1::{
        ConverseAttach, ConverseRunRequest, ConverseStart, FunctionDefinition, RunEvent,
        RunEventType, RunSpec, StreamCreateRunRequest, StreamCreateThreadAndRunRequest,
        StreamOptions, StreamSubmitToolOutputsRequest, ThreadAndRunSpec, ThreadSpec, Tool,
        ToolOutput, ToolOutputs, ToolType, WatchRunRequest, converse_run_request::Message,
        run_event::Payload, run_service_client::RunServiceClient,
    },
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use crate::support::{
    gateway::{Gateway, spawn_gateway},
    upstream::{Answer, Recorded, Upstream},
};

type Runs = RunServiceClient<Channel>;

const LIMIT: Duration = Duration::from_secs(20);

fn run(status: &str, calls: &[&str]) -> String {
    let calls: Vec<_> = calls
        .iter()
        .map(|id| json!({ "id": id, "type": "function", "function": { "name": "f" } }))
        .collect();
    let mut run = json!({ "id": "run_1", "thread_id": "thread_1", "status": status });
    if !calls.is_empty() {
        run["required_action"] = json!({
            "type": "submit_tool_outputs", "submit_tool_outputs": { "tool_calls": calls },
        });
    }
    run.to_string()
}

fn event(status: &str, calls: &[&str]) -> String {
    format!(
        "event: thread.run.{status}\ndata: {}\n\n",
        run(status, calls)
    )
}

fn spec() -> RunSpec {
    RunSpec {
        assistant_id: "asst_1".into(),
        ..RunSpec::default()
    }
}

fn said(message: Message) -> ConverseRunRequest {
    ConverseRunRequest {
        message: Some(message),
    }
}

/// How the gateway comes to end the call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    StreamAge,
    ConnectionAge,
    Drain,
    /// The caller's own.
    Deadline,
    /// The longest that the gateway allows: the caller's own is later.
    MaxDeadline,
}

fn request<M>(end: End, message: M) -> Request<M> {
    let mut request = Request::new(message);
    match end {
        End::Deadline => request.set_timeout(Duration::from_millis(500)),
        End::MaxDeadline => request.set_timeout(2 * LIMIT),
        End::StreamAge | End::ConnectionAge | End::Drain => {}
    }
    request
}

/// Calls, and ends in the error that comes.
async fn call(mut runs: Runs, name: &'static str, cancels: bool, end: End) -> Status {
    let options = Some(StreamOptions {
        cancel_on_disconnect: cancels,
        ..StreamOptions::default()
    });
    let (thread_id, run_id) = ("thread_1".to_owned(), "run_1".to_owned());
    let (say, inbound) = mpsc::unbounded_channel();
    let inbound = UnboundedReceiverStream::new(inbound);
    let answered: Result<tonic::Response<Streaming<RunEvent>>, Status> = match name {
        "WatchRun" => {
            let message = WatchRunRequest {
                thread_id,
                run_id,
                options,
                ..WatchRunRequest::default()
            };
            runs.watch_run(request(end, message)).await
        }
        "StreamCreateRun" => {
            let message = StreamCreateRunRequest {
                thread_id,
                run: Some(spec()),
                options,
                ..StreamCreateRunRequest::default()
            };
            runs.stream_create_run(request(end, message)).await
        }
        "StreamCreateThreadAndRun" => {
            let message = StreamCreateThreadAndRunRequest {
                thread_and_run: Some(ThreadAndRunSpec {
                    assistant_id: "asst_1".into(),
                    ..ThreadAndRunSpec::default()
                }),
                options,
                ..StreamCreateThreadAndRunRequest::default()
            };
            runs.stream_create_thread_and_run(request(end, message))
                .await
        }
        "StreamSubmitToolOutputs" => {
            let message = StreamSubmitToolOutputsRequest {
                thread_id,
                run_id,
                tool_outputs: Some(ToolOutputs::default()),
                options,
            };
            runs.stream_submit_tool_outputs(request(end, message)).await
        }
        "ConverseRun start" => {
            let start = ConverseStart {
                thread_id,
                run: Some(spec()),
                options,
                ..ConverseStart::default()
            };
            say.send(said(Message::Start(start))).expect("a reader");
            runs.converse_run(request(end, inbound)).await
        }
        "ConverseRun attach" => {
            let attach = ConverseAttach {
                thread_id,
                run_id,
                options,
                ..ConverseAttach::default()
            };
            say.send(said(Message::Attach(attach))).expect("a reader");
            runs.converse_run(request(end, inbound)).await
        }
        _ => unreachable!("{name} is no call"),
    };
    let mut stream = match answered {
        Ok(answered) => answered.into_inner(),
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(event) => assert!(event.is_some(), "{name}: ended with OK"),
            Err(status) => return status,
        }
    }
}

/// G1, G2: a run is cancelled if its caller left, or cannot know it, and asked for that.
#[tokio::test]
async fn a_stream_that_the_gateway_ends_does_not_look_like_a_caller_that_left() {
    use End::{ConnectionAge, Deadline, Drain, MaxDeadline, StreamAge};
    const ALL: [End; 5] = [StreamAge, ConnectionAge, Drain, Deadline, MaxDeadline];
    // After its timeout a drain waits for no create, so that end is not among those of one.
    // The call, whether its first upstream answer is still to come, the ends, and what the gateway
    // answers when it closes, and whether it then cancels the run.
    let rows: [(&str, bool, &[End], Code, bool); 9] = [
        ("WatchRun", true, &ALL, Code::Unavailable, false),
        (
            "StreamCreateRun",
            true,
            &[StreamAge, ConnectionAge, Deadline, MaxDeadline],
            Code::Unknown,
            true,
        ),
        (
            "StreamCreateThreadAndRun",
            true,
            &[StreamAge],
            Code::Unknown,
            true,
        ),
        (
            "StreamSubmitToolOutputs",
            true,
            &[StreamAge, Drain],
            Code::Unknown,
            false,
        ),
        (
            "ConverseRun start",
            true,
            &[StreamAge, Deadline],
            Code::Unknown,
            true,
        ),
        (
            "ConverseRun attach",
            true,
            &[StreamAge, ConnectionAge, MaxDeadline],
            Code::Unavailable,
            false,
        ),
        ("WatchRun", false, &[StreamAge], Code::Unavailable, false),
        ("StreamCreateRun", false, &ALL, Code::Unavailable, false),
        (
            "ConverseRun start",
            false,
            &[StreamAge, Deadline],
            Code::Unavailable,
            false,
        ),
    ];
    let mut cases = tokio::task::JoinSet::new();
    for (name, pending, ends, code, cancelled) in rows {
        for &end in ends {
            for asks in [true, false] {
                cases.spawn(ended(name, pending, end, code, cancelled, asks));
            }
        }
    }
    while let Some(case) = cases.join_next().await {
        case.expect("the case holds");
    }
}

async fn ended(
    name: &'static str,
    pending: bool,
    end: End,
    code: Code,
    cancelled: bool,
    asks: bool,
) {
    let what = format!("{name}, pending: {pending}, {end:?}, cancel_on_disconnect: {asks}");
    let head = Arc::new(Notify::new());
    let waits = Arc::clone(&head);
    let upstream = Upstream::answering(move |request: &Recorded| {
        let started = if request.method == "GET" || request.target.ends_with("/cancel") {
            let body = run("in_progress", &[]);
            let length = body.len();
            format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        } else {
            let first = event("queued", &[]);
            format!("content-type: text/event-stream\r\n\r\n{first}")
        };
        let started = format!("HTTP/1.1 200 OK\r\n{started}");
        let streams = started.contains("event-stream");
        let answer = if pending && !request.target.ends_with("/cancel") {
            Answer::raw("").wait(&waits).bytes(started)
        } else {
            Answer::raw(started)
        };
        if streams {
            answer.wait(&Arc::default())
        } else {
            answer
        }
    })
    .await;
    let flags: &[&str] = match end {
        End::StreamAge => &["--max-stream-age", "500ms"],
        End::ConnectionAge => &[
            "--max-connection-age",
            "300ms",
            "--max-connection-age-grace",
            "200ms",
        ],
        End::Drain => &["--drain-timeout", "500ms"],
        End::MaxDeadline => &["--max-deadline", "500ms"],
        End::Deadline => &[],
    };
    let gateway = spawn_gateway(&upstream.url(), flags).await;
    let calling = timeout(LIMIT, call(gateway.runs(), name, asks, end));
    let status = if end == End::Drain {
        let mut calling = std::pin::pin!(calling);
        tokio::select! {
            status = &mut calling => panic!("{what}: ended early: {status:?}"),
            _ = upstream.wait_for_requests(1) => {}
        }
        if !pending {
            // The first event is on its way to the caller.
            let _ = timeout(Duration::from_millis(200), &mut calling).await;
        }
        // It drains while the call goes on; a head that is late comes after the caller's end.
        let late = async {
            sleep(Duration::from_millis(900)).await;
            head.notify_one();
        };
        let channel = gateway.channel();
        let (status, (), ()) = tokio::join!(calling, gateway.drain(), late);
        drop(channel);
        status
    } else {
        let status = calling.await;
        head.notify_one();
        // A call on another connection, so that nothing is left of the first one.
        let wanted = asks && (cancelled || end == End::Deadline);
        if wanted {
            let cancel = async {
                let mut seen = 1;
                while !is_cancelled(&upstream) {
                    seen += 1;
                    upstream.wait_for_requests(seen).await;
                }
            };
            timeout(LIMIT, cancel)
                .await
                .unwrap_or_else(|_| panic!("{what}: not cancelled"));
        }
        gateway.drain().await;
        status
    };
    let status = status.unwrap_or_else(|_| panic!("{what}: never ended"));
    let code = if matches!(end, End::Deadline | End::MaxDeadline) {
        Code::DeadlineExceeded
    } else {
        code
    };
    // The client's own clock may be the faster one.
    let own = end == End::Deadline && status.code() == Code::Cancelled;
    assert!(own || status.code() == code, "{what}: {status:?}");
    // What was begun is waited for by the drain.
    let wanted = asks && (cancelled || end == End::Deadline);
    assert_eq!(is_cancelled(&upstream), wanted, "{what}");
}

fn is_cancelled(upstream: &Upstream) -> bool {
    let requests = upstream.requests();
    requests.iter().any(|it| it.target.ends_with("/cancel"))
}

/// An upstream whose run asks for these calls, round after round, and then completes.
async fn rounds(rounds: Vec<Vec<&'static str>>) -> Upstream {
    let shown = Mutex::new((rounds.into_iter(), run("queued", &[])));
    Upstream::answering(move |request: &Recorded| {
        let (rounds, polled) = &mut *shown.lock().expect("never held over a panic");
        if request.method == "GET" {
            let steps = request.target.contains("/steps");
            let list = r#"{"object":"list","data":[],"has_more":false}"#.to_owned();
            return Answer::json(200, if steps { list } else { polled.clone() });
        }
        let next = rounds.next();
        let (status, calls) = match &next {
            Some(calls) => ("requires_action", &**calls),
            None => ("completed", &[][..]),
        };
        *polled = run(status, calls);
        let done = "event: done\ndata: [DONE]\n\n".to_owned();
        Answer::sse([event("in_progress", &[]), event(status, calls), done])
    })
    .await
}

/// Converses to the end; `tool` is how long the tools of a round take. Each call is answered once.
async fn converse(gateway: &Gateway, tool: Duration) -> Result<(), Status> {
    let (say, inbound) = mpsc::unbounded_channel();
    let start = ConverseStart {
        thread_id: "thread_1".into(),
        run: Some(spec()),
        ..ConverseStart::default()
    };
    say.send(said(Message::Start(start))).expect("a reader");
    let inbound = UnboundedReceiverStream::new(inbound);
    let mut events = gateway.runs().converse_run(inbound).await?.into_inner();
    while let Some(event) = events.message().await? {
        let Some(Payload::Run(run)) = event.payload else {
            continue;
        };
        let Some(action) = run.required_action.and_then(|it| it.submit_tool_outputs) else {
            continue;
        };
        let mut ids: Vec<_> = action.tool_calls.into_iter().map(|call| call.id).collect();
        ids.retain(|id| !id.is_empty());
        ids.dedup();
        sleep(tool).await;
        let outputs = ids.into_iter().map(|tool_call_id| ToolOutput {
            tool_call_id,
            output: Some("x".into()),
            ..ToolOutput::default()
        });
        let outputs = ToolOutputs {
            tool_outputs: outputs.collect(),
            ..ToolOutputs::default()
        };
        say.send(said(Message::ToolOutputs(outputs)))
            .expect("a reader");
    }
    Ok(())
}

/// G6: rounds x time of a tool -> requests.
#[tokio::test]
async fn a_conversation_looks_at_its_run_only_when_it_must() {
    const FIVE: [[&str; 1]; 5] = [["c1"], ["c2"], ["c3"], ["c4"], ["c5"]];
    // Rounds, milliseconds, the ceiling of polling, and reads at most.
    let rows = [
        (5, 0, "5s", 0),
        (1, 2000, "5s", 0),
        (5, 300, "5s", 0),
        (2, 1000, "300ms", 8),
    ];
    for (count, millis, ceiling, reads) in rows {
        let asked = FIVE[..count].iter().map(|calls| calls.to_vec()).collect();
        let upstream = rounds(asked).await;
        let flags = ["--poll-floor", "10ms", "--poll-ceiling", ceiling];
        let gateway = spawn_gateway(&upstream.url(), &flags).await;
        let conversing = converse(&gateway, Duration::from_millis(millis));
        timeout(LIMIT, conversing)
            .await
            .expect("an end")
            .expect("OK");
        let requests = upstream.requests();
        let (gets, posts): (Vec<_>, Vec<_>) = requests.iter().partition(|it| it.method == "GET");
        let row = format!("{count} rounds of {millis} ms, ceiling {ceiling}: {gets:?}");
        assert_eq!(posts.len(), count + 1, "{row}");
        assert!(gets.len() <= reads, "{row}");
        // Tools that take longer than the ceiling are looked after.
        assert_eq!(reads > 0, !gets.is_empty(), "{row}");
        assert!(gets.iter().all(|it| !it.target.contains("/steps")), "{row}");
        gateway.drain().await;
    }
}

/// U13: one output for each distinct call, once.
#[tokio::test]
async fn a_call_that_is_named_twice_takes_one_output() {
    let rows: [(&[&str], Value); 3] = [
        (&["call_1", "call_1"], json!(["call_1"])),
        (&["call_1", "", "call_1"], json!(["call_1"])),
        (&["call_2", "call_2", "call_1"], json!(["call_2", "call_1"])),
    ];
    for (calls, submitted) in rows {
        let upstream = rounds(vec![calls.to_vec()]).await;
        let gateway = spawn_gateway(&upstream.url(), &[]).await;
        let conversing = converse(&gateway, Duration::ZERO);
        timeout(LIMIT, conversing)
            .await
            .expect("an end")
            .expect("OK");
        let requests = upstream.requests();
        let submits: Vec<_> = requests
            .iter()
            .filter(|it| it.target.ends_with("/submit_tool_outputs"))
            .collect();
        assert_eq!(submits.len(), 1, "{calls:?}");
        let body: Value = serde_json::from_slice(&submits[0].body).expect("JSON");
        let outputs = body["tool_outputs"].as_array().expect("outputs");
        let ids: Vec<_> = outputs.iter().map(|it| &it["tool_call_id"]).collect();
        assert_eq!(json!(ids), submitted, "{calls:?}");
        gateway.drain().await;
    }
}

/// G7: line ends between the tokens of raw JSON do not cut events of the embedded API.
#[tokio::test]
async fn events_of_the_embedded_api_arrive_whole_whatever_line_ends_are_in_them() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(embedded::serve(
        listener,
        Limits::default(),
        Clock::real(),
        stop,
    ));
    let gateway = spawn_gateway(&url, &[]).await;
    for end in ["\n", "\r\n", "\r", "\n\n", "\r\r\n\n", "\n\r"] {
        let parameters = format!("{{{end}\"type\":{end}\"object\"{end}}}");
        let tool = Tool {
            r#type: ToolType::Function.into(),
            function: Some(FunctionDefinition {
                name: "f".into(),
                parameters_json: parameters,
                ..FunctionDefinition::default()
            }),
            ..Tool::default()
        };
        let request = StreamCreateThreadAndRunRequest {
            thread_and_run: Some(ThreadAndRunSpec {
                assistant_id: embedded::ASSISTANT.into(),
                thread: Some(ThreadSpec::default()),
                instructions: Some("Answer.".into()),
                tools: vec![tool],
                ..ThreadAndRunSpec::default()
            }),
            options: None,
            ..StreamCreateThreadAndRunRequest::default()
        };
        let streamed = gateway.runs().stream_create_thread_and_run(request).await;
        let mut stream = streamed.expect("a stream").into_inner();
        let mut runs = 0;
        loop {
            let event = timeout(LIMIT, stream.message()).await.expect("in time");
            let Some(event) = event.expect("no error") else {
                break;
            };
            assert_ne!(
                event.r#type(),
                RunEventType::Unspecified,
                "{end:?}: {event:?}"
            );
            if let Some(Payload::Run(run)) = event.payload {
                let function = run.tools[0].function.as_ref().expect("a function");
                let read: Value = serde_json::from_str(&function.parameters_json).expect("JSON");
                assert_eq!(read, json!({ "type": "object" }), "{end:?}");
                runs += 1;
            }
        }
        assert!(runs > 1, "{end:?}");
    }
    gateway.drain().await;
}
