//! The creates, as one table: how each is called, and what its caller has of it.

use std::time::Duration;

use runs_gateway::v1::{
    ConverseRunRequest, ConverseStart, CreateAssistantRequest, CreateMessageRequest,
    CreateRunRequest, CreateThreadAndRunRequest, CreateThreadRequest, MessageContent, MessageInput,
    MessageRole, RunEvent, RunSpec, StreamCreateRunRequest, StreamCreateThreadAndRunRequest,
    ThreadAndRunSpec, assistant_service_client::AssistantServiceClient,
    converse_run_request::Message, message_service_client::MessageServiceClient,
    run_event::Payload, run_service_client::RunServiceClient,
    thread_service_client::ThreadServiceClient,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

/// Polling fast enough for a test, no retries of the gateway's own, and no long looks.
pub(crate) const FAST: [&str; 6] = [
    "--poll-floor",
    "2ms",
    "--poll-ceiling",
    "5ms",
    "--request-id-look",
    "250ms",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Create {
    Run,
    ThreadAndRun,
    StreamRun,
    StreamThreadAndRun,
    Converse,
    Message,
    Assistant,
    Thread,
}

/// Those that make something that can be looked for on a thread that is there, or on none.
pub(crate) const LISTED: [Create; 5] = [
    Create::Run,
    Create::StreamRun,
    Create::Converse,
    Create::Message,
    Create::Assistant,
];

/// What a caller has of a create that went well.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Got {
    /// The id of what was made: the run's, if it is a run.
    pub(crate) id: String,
    pub(crate) metadata: Vec<(String, String)>,
    /// Of a stream, the types of its events, without the prefix.
    pub(crate) events: Vec<String>,
}

/// With this, a create is told from others of the same `request_id`.
pub(crate) fn run_spec(text: &str) -> RunSpec {
    RunSpec {
        assistant_id: "asst_1".to_owned(),
        metadata: [("text".to_owned(), text.to_owned())].into(),
        ..RunSpec::default()
    }
}

fn thread_and_run(text: &str) -> ThreadAndRunSpec {
    let run = run_spec(text);
    ThreadAndRunSpec {
        assistant_id: run.assistant_id,
        metadata: run.metadata,
        ..ThreadAndRunSpec::default()
    }
}

pub(crate) fn run(request_id: &str, text: &str) -> CreateRunRequest {
    CreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run: Some(run_spec(text)),
        request_id: request_id.to_owned(),
        ..CreateRunRequest::default()
    }
}

impl Create {
    /// Calls it. `text` is a part of the request.
    pub(crate) async fn call(
        self,
        channel: Channel,
        request_id: &str,
        text: &str,
    ) -> Result<Got, Status> {
        let soon = tokio::time::timeout(
            Duration::from_secs(60),
            self.answer(channel, request_id, text),
        );
        soon.await.expect("should have been answered by now")
    }

    async fn answer(self, channel: Channel, id: &str, text: &str) -> Result<Got, Status> {
        let request_id = id.to_owned();
        let mut runs = RunServiceClient::new(channel.clone());
        let metadata = run_spec(text).metadata;
        match self {
            Self::Run => {
                let made = runs.create_run(run(id, text)).await?.into_inner();
                Ok(Got::new(made.id, made.metadata))
            }
            Self::ThreadAndRun => {
                let request = CreateThreadAndRunRequest {
                    thread_and_run: Some(thread_and_run(text)),
                    request_id,
                };
                let made = runs.create_thread_and_run(request).await?.into_inner();
                Ok(Got::new(made.id, made.metadata))
            }
            Self::StreamRun => {
                let request = StreamCreateRunRequest {
                    thread_id: "thread_1".to_owned(),
                    run: Some(run_spec(text)),
                    request_id,
                    ..StreamCreateRunRequest::default()
                };
                Got::of(runs.stream_create_run(request).await?.into_inner()).await
            }
            Self::StreamThreadAndRun => {
                let request = StreamCreateThreadAndRunRequest {
                    thread_and_run: Some(thread_and_run(text)),
                    request_id,
                    ..StreamCreateThreadAndRunRequest::default()
                };
                let events = runs.stream_create_thread_and_run(request).await?;
                Got::of(events.into_inner()).await
            }
            Self::Converse => {
                let start = ConverseStart {
                    thread_id: "thread_1".to_owned(),
                    run: Some(run_spec(text)),
                    request_id,
                    ..ConverseStart::default()
                };
                let start = ConverseRunRequest {
                    message: Some(Message::Start(start)),
                };
                let (say, said) = tokio::sync::mpsc::channel(1);
                say.send(start).await.expect("room");
                let events = runs.converse_run(Request::new(ReceiverStream::new(said)));
                let got = Got::of(events.await?.into_inner()).await;
                drop(say);
                got
            }
            Self::Message => {
                let message = MessageInput {
                    role: MessageRole::User.into(),
                    content: Some(MessageContent {
                        text: Some(text.to_owned()),
                        ..MessageContent::default()
                    }),
                    metadata,
                    ..MessageInput::default()
                };
                let request = CreateMessageRequest {
                    thread_id: "thread_1".to_owned(),
                    message: Some(message),
                    request_id,
                    ..CreateMessageRequest::default()
                };
                let mut messages = MessageServiceClient::new(channel);
                let made = messages.create_message(request).await?.into_inner();
                Ok(Got::new(made.id, made.metadata))
            }
            Self::Assistant => {
                let spec = runs_gateway::v1::AssistantSpec {
                    model: "m".to_owned(),
                    metadata,
                    ..runs_gateway::v1::AssistantSpec::default()
                };
                let request = CreateAssistantRequest {
                    assistant: Some(spec),
                    request_id,
                };
                let mut assistants = AssistantServiceClient::new(channel);
                let made = assistants.create_assistant(request).await?.into_inner();
                Ok(Got::new(made.id, made.metadata))
            }
            Self::Thread => {
                let request = CreateThreadRequest {
                    request_id,
                    ..CreateThreadRequest::default()
                };
                let mut threads = ThreadServiceClient::new(channel);
                let made = threads.create_thread(request).await?.into_inner();
                Ok(Got::new(made.id, made.metadata))
            }
        }
    }
}

impl Got {
    fn new(id: String, metadata: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            id,
            metadata: metadata.into_iter().collect(),
            events: Vec::new(),
        }
    }

    /// What a stream told of its run, which came to its end.
    async fn of(mut events: Streaming<RunEvent>) -> Result<Self, Status> {
        let mut got = Self::new(String::new(), []);
        while let Some(event) = events.next().await {
            let event = event?;
            let name = event.r#type().as_str_name();
            got.events
                .push(name.trim_start_matches("RUN_EVENT_TYPE_").to_owned());
            if let Some(Payload::Run(run)) = event.payload {
                got.id = run.id;
                got.metadata = run.metadata.into_iter().collect();
            }
        }
        let end = "THREAD_RUN_COMPLETED".to_owned();
        assert!(got.events.contains(&end), "{:?}", got.events);
        Ok(got)
    }
}

/// Code and reason.
pub(crate) fn verdict(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info();
    (
        status.code(),
        info.map(|info| info.reason).unwrap_or_default(),
    )
}
