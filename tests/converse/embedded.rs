//! Conversations with the embedded API, which has runs of its own: what is told is what polling
//! shows in the end. And the caller's side in the library, which holds them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use runs_gateway::{
    conversation::Conversation,
    embedded::{self, Clock, Limits},
    v1::{
        ConverseAttach, ConverseStart, FunctionCall, FunctionDefinition, GetRunRequest,
        ListRunStepsRequest, MessageContent, MessageInput, MessageRole, Run, RunEvent,
        RunEventType, RunSpec, RunStatus, RunStep, SortOrder, ThreadAndRunSpec, ThreadSpec, Tool,
        ToolType, converse_run_request::Message, run_event::Payload,
    },
};
use tokio::{net::TcpListener, sync::Barrier};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;

use crate::{
    harness::{Caller, Script, asks, completes, outputs, refusal, run, within},
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::Answer,
    },
};

/// The embedded API, stopped when dropped.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    _stop: DropGuard,
}

impl Api {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let stop = CancellationToken::new();
        tokio::spawn(embedded::serve(
            listener,
            Limits::default(),
            Clock::real(),
            stop.clone(),
        ));
        Self {
            address,
            _stop: stop.drop_guard(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The tools that runs are offered.
fn tools() -> Vec<Tool> {
    let tool = |name: &str| Tool {
        r#type: ToolType::Function.into(),
        function: Some(FunctionDefinition {
            name: name.to_owned(),
            parameters_json:
                r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#
                    .to_owned(),
            ..FunctionDefinition::default()
        }),
        ..Tool::default()
    };
    vec![tool("get_weather"), tool("get_time")]
}

fn metadata(rounds: usize, calls: usize) -> impl Iterator<Item = (String, String)> {
    [
        ("embedded.tool_rounds", rounds),
        ("embedded.tool_calls", calls),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_string()))
}

/// A run on a thread, with so many rounds of so many calls.
pub(crate) fn on_thread(thread_id: &str, rounds: usize, calls: usize) -> ConverseStart {
    let run = RunSpec {
        assistant_id: embedded::ASSISTANT.to_owned(),
        tools: tools(),
        metadata: metadata(rounds, calls).collect(),
        ..RunSpec::default()
    };
    ConverseStart {
        thread_id: thread_id.to_owned(),
        run: Some(run),
        ..ConverseStart::default()
    }
}

/// A thread with a question and a run on it, with so many rounds of so many calls.
fn with_thread(rounds: usize, calls: usize) -> ConverseStart {
    let question = MessageInput {
        role: MessageRole::User.into(),
        content: Some(MessageContent {
            text: "What is the weather in Paris?".to_owned().into(),
            ..MessageContent::default()
        }),
        ..MessageInput::default()
    };
    let thread_and_run = ThreadAndRunSpec {
        assistant_id: embedded::ASSISTANT.to_owned(),
        thread: Some(ThreadSpec {
            messages: vec![question],
            ..ThreadSpec::default()
        }),
        tools: tools(),
        metadata: metadata(rounds, calls).collect(),
        ..ThreadAndRunSpec::default()
    };
    ConverseStart {
        thread_and_run: Some(thread_and_run),
        ..ConverseStart::default()
    }
}

/// The events of a type, each as its payload's id.
fn ids(events: &[RunEvent], of: RunEventType) -> Vec<&str> {
    let events = events.iter().filter(|event| event.r#type() == of);
    events
        .map(|event| match &event.payload {
            Some(Payload::Run(run)) => run.id.as_str(),
            Some(Payload::RunStep(step)) => step.id.as_str(),
            Some(Payload::Message(message)) => message.id.as_str(),
            other => panic!("no id: {other:?}"),
        })
        .collect()
}

#[tokio::test]
async fn the_events_of_all_rounds_tell_what_polling_shows_in_the_end() {
    for (rounds, calls) in [(0, 1), (1, 1), (3, 4)] {
        let api = Api::start().await;
        let gateway = spawn_gateway(&api.url(), &[]).await;
        let mut caller = Caller::say_first(&gateway, [Message::Start(with_thread(rounds, calls))])
            .await
            .expect("a conversation");
        let mut events = Vec::new();
        while let Some(event) = caller.next().await.expect("no error") {
            if let Some(Payload::Run(run)) = &event.payload {
                let action = run
                    .required_action
                    .iter()
                    .filter_map(|action| action.submit_tool_outputs.as_ref());
                let said: Vec<_> = action
                    .flat_map(|action| &action.tool_calls)
                    .map(|call| (call.id.as_str(), "sunny"))
                    .collect();
                for output in said.into_iter().rev() {
                    caller.say(outputs(&[output]));
                }
            }
            events.push(event);
        }
        let [.., last, done] = &*events else {
            panic!("{events:?}")
        };
        assert_eq!(done.r#type(), RunEventType::Done);
        let Some(Payload::Run(last)) = &last.payload else {
            panic!("{last:?}")
        };
        let found = |of| ids(&events, of);
        assert_eq!(
            events
                .iter()
                .filter(|event| event.r#type() == RunEventType::Done)
                .count(),
            1
        );
        assert_eq!(found(RunEventType::ThreadRunRequiresAction).len(), rounds);
        assert!(events.iter().all(|event| !event.synthesized));

        let (thread_id, run_id) = (last.thread_id.clone(), last.id.clone());
        let polled = gateway
            .runs()
            .get_run(GetRunRequest { thread_id, run_id })
            .await
            .expect("the run")
            .into_inner();
        assert_eq!((polled.status(), &polled), (RunStatus::Completed, &**last));
        let steps = steps(&gateway, last).await;
        let polled: Vec<_> = steps.iter().map(|step| step.id.as_str()).collect();
        assert_eq!(found(RunEventType::ThreadRunStepCompleted), polled);
        let given: Vec<_> = function_calls(&steps)
            .map(|call| call.output.as_deref())
            .collect();
        assert_eq!(given, vec![Some("sunny"); rounds * calls]);
        assert_eq!(found(RunEventType::ThreadMessageCompleted).len(), 1);
        gateway.drain().await;
    }
}

async fn steps(gateway: &Gateway, run: &Run) -> Vec<RunStep> {
    let request = ListRunStepsRequest {
        thread_id: run.thread_id.clone(),
        run_id: run.id.clone(),
        order: SortOrder::Asc.into(),
        ..ListRunStepsRequest::default()
    };
    gateway
        .steps()
        .list_run_steps(request)
        .await
        .expect("steps")
        .into_inner()
        .data
}

fn function_calls(steps: &[RunStep]) -> impl Iterator<Item = &FunctionCall> {
    steps
        .iter()
        .filter_map(|step| step.step_details.as_ref())
        .flat_map(|it| &it.tool_calls)
        .filter_map(|call| call.function.as_ref())
}

#[tokio::test]
async fn functions_answer_the_calls_of_all_rounds_side_by_side() {
    let api = Api::start().await;
    let gateway = spawn_gateway(&api.url(), &[]).await;
    // No function returns before both were called.
    let both = Arc::new(Barrier::new(2));
    let other = Arc::clone(&both);
    let conversation = Conversation::new(gateway.runs())
        .tool("get_weather", move |arguments| {
            let both = Arc::clone(&both);
            async move {
                both.wait().await;
                format!("sunny for {arguments}")
            }
        })
        .tool("get_time", move |_| {
            let both = Arc::clone(&other);
            async move {
                both.wait().await;
                "noon".to_owned()
            }
        });
    let mut events = Vec::new();
    let run = within(
        "the run",
        conversation.start(with_thread(3, 2), |event| events.push(event)),
    )
    .await
    .expect("a run");
    assert_eq!(run.status(), RunStatus::Completed);
    assert_eq!(ids(&events, RunEventType::ThreadRunRequiresAction).len(), 3);
    let steps = steps(&gateway, &run).await;
    let mut given: Vec<_> = function_calls(&steps)
        .filter_map(|call| call.output.clone())
        .collect();
    given.sort_unstable();
    assert_eq!(
        given,
        [vec!["noon"; 3], vec![r#"sunny for {"city":"Paris"}"#; 3]].concat()
    );
    // It is over: taking it up gives its last state.
    let attach = ConverseAttach {
        thread_id: run.thread_id.clone(),
        run_id: run.id.clone(),
        options: None,
        ..ConverseAttach::default()
    };
    assert_eq!(
        conversation.attach(attach, |_| ()).await.expect("a run"),
        run
    );
    gateway.drain().await;
}

#[tokio::test]
async fn a_call_of_a_tool_without_a_function_is_answered_with_words() {
    let api = Api::start().await;
    let gateway = spawn_gateway(&api.url(), &[]).await;
    let conversation = Conversation::new(gateway.runs());
    let run = within("the run", conversation.start(with_thread(1, 1), |_| ()))
        .await
        .expect("a run");
    assert_eq!(run.status(), RunStatus::Completed);
    let steps = steps(&gateway, &run).await;
    assert_eq!(
        function_calls(&steps)
            .next()
            .expect("a call")
            .output
            .as_deref(),
        Some("There is no tool \"get_weather\".")
    );
    gateway.drain().await;
}

#[tokio::test]
async fn a_conversation_that_breaks_is_taken_up_again_and_its_function_is_called_once() {
    let waits = || run("requires_action", &["a"]);
    // The conversation ends with the second failure. The third submit is that of the one that takes
    // it up.
    let script = Script::new([
        (asks(&["a"]), waits()),
        (refusal(502, "Bad gateway"), waits()),
        (Answer::cut_before_answer(), waits()),
        (completes(), run("completed", &[])),
    ])
    .await;
    let gateway = spawn_gateway(&script.upstream.url(), &["--poll-floor", "10ms"]).await;
    let called = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&called);
    let conversation = Conversation::new(gateway.runs()).tool("f", move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { "1".to_owned() }
    });
    let start = on_thread("thread_1", 1, 1);
    let last = within("the run", conversation.start(start, |_| ()))
        .await
        .expect("a run");
    assert_eq!(last.status(), RunStatus::Completed);
    assert_eq!(
        (called.load(Ordering::Relaxed), script.submits().len()),
        (1, 3)
    );
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_conversation_that_cannot_be_taken_up_ends_with_its_error() {
    let rows = [
        (refusal(400, "No."), Code::InvalidArgument),
        (Answer::cut_before_answer(), Code::Unknown),
    ];
    for (answer, code) in rows {
        let script = Script::new([(answer, run("queued", &[]))]).await;
        let gateway = spawn_gateway(&script.upstream.url(), &[]).await;
        let conversation = Conversation::new(gateway.runs());
        let ended = within(
            "the end",
            conversation.start(on_thread("thread_1", 0, 1), |_| ()),
        )
        .await;
        assert_eq!(ended.expect_err("no run").code(), code);
        gateway.drain().await;
        script.finish();
    }
    // The run is known, and stays out of reach.
    let script = Script::new([(asks(&["a"]), serde_json::json!("no run"))]).await;
    let gateway = spawn_gateway(
        &script.upstream.url(),
        &["--poll-floor", "10ms", "--poll-failure-timeout", "50ms"],
    )
    .await;
    let mut conversation = Conversation::new(gateway.runs()).tool("f", |_| std::future::pending());
    conversation.resumes = 2;
    let ended = within(
        "the end",
        conversation.start(on_thread("thread_1", 0, 1), |_| ()),
    )
    .await;
    assert_eq!(ended.expect_err("no run").code(), Code::Internal);
    gateway.drain().await;
    script.finish();
}
