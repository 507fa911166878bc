//! The calls, with the caller's credential.

use std::{error::Error as _, fmt::Write as _, time::Duration};

use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{MetadataMap, MetadataValue},
    transport::Channel,
};
use tonic_types::StatusExt as _;

use super::{ended::Failure, printable::printable_line};
use crate::{
    config::CallerArgs,
    connection::{connect, hint, innermost, read},
    resuming::ResumingStream,
    v1::{
        AssistantSpec, CancelRunRequest, CreateAssistantRequest, DeleteAssistantRequest,
        ResumeRunRequest, RunEvent, RunStatus, StreamCreateThreadAndRunRequest, StreamOptions,
        ThreadAndRunSpec, WatchRunRequest, assistant_service_client::AssistantServiceClient,
        run_event::Payload, run_service_client::RunServiceClient,
    },
};

/// How long a call that is no stream may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest message that is taken; the gateway's own limits are below.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The longest line of a message of others.
const MAX_LINE: usize = 500;

/// A gateway, as one caller calls it.
#[derive(Clone)]
pub(super) struct Gateway {
    runs: RunServiceClient<Channel>,
    assistants: AssistantServiceClient<Channel>,
    metadata: MetadataMap,
    hint: &'static str,
}

impl Gateway {
    pub(super) async fn connect(args: &CallerArgs) -> Result<Self, Failure> {
        let mut metadata = MetadataMap::new();
        if let Some(file) = &args.token_file {
            let token = read("--token-file", file)?;
            metadata.insert("authorization", bearer(&token)?);
        }
        let hint = hint(&args.gateway);
        let channel = connect(&args.gateway).await.map_err(|error| {
            let hint = error.hint.map(|hint| format!(" ({hint})"));
            format!("{error}{}", hint.unwrap_or_default())
        })?;
        Ok(Self {
            runs: RunServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            assistants: AssistantServiceClient::new(channel),
            metadata,
            hint,
        })
    }

    /// The id of an assistant without tools.
    pub(super) async fn create_assistant(&self, model: String) -> Result<String, Failure> {
        let assistant = AssistantSpec {
            model,
            name: Some("runs-gateway run".to_owned()),
            ..AssistantSpec::default()
        };
        let request = self.call(CreateAssistantRequest {
            assistant: Some(assistant),
            ..CreateAssistantRequest::default()
        });
        let made = self.assistants.clone().create_assistant(request).await;
        let made = made.map_err(|status| self.say(&status))?;
        Ok(made.into_inner().id)
    }

    pub(super) async fn delete_assistant(&self, assistant_id: String) -> Result<(), Failure> {
        let request = self.call(DeleteAssistantRequest { assistant_id });
        let deleted = self.assistants.clone().delete_assistant(request).await;
        deleted.map(drop).map_err(|status| self.say(&status))
    }

    pub(super) async fn cancel(&self, thread_id: String, run_id: String) -> Result<(), Failure> {
        let request = self.call(CancelRunRequest { thread_id, run_id });
        let cancelled = self.runs.clone().cancel_run(request).await;
        cancelled.map(drop).map_err(|status| self.say(&status))
    }

    /// Makes a thread and a run on it; recorded, if the gateway has an event log.
    pub(super) async fn create_run(&self, spec: ThreadAndRunSpec) -> ResumingStream {
        let mut opened = self.open(spec.clone(), true).await;
        if opened.as_ref().is_err_and(has_no_event_log) {
            opened = self.open(spec, false).await;
        }
        let resume = ResumeRunRequest {
            options: Some(options(false)),
            ..ResumeRunRequest::default()
        };
        let mut events = ResumingStream::new(self.runs.clone(), opened).after(resume);
        events.metadata.clone_from(&self.metadata);
        events
    }

    async fn open(
        &self,
        spec: ThreadAndRunSpec,
        resumable: bool,
    ) -> Result<Response<Streaming<RunEvent>>, Status> {
        let request = self.stream(StreamCreateThreadAndRunRequest {
            thread_and_run: Some(spec),
            options: Some(options(resumable)),
            ..StreamCreateThreadAndRunRequest::default()
        });
        let mut runs = self.runs.clone();
        runs.stream_create_thread_and_run(request).await
    }

    /// The events of a run after this place, until it is terminal or requires action.
    pub(super) fn resume(&self, resume: ResumeRunRequest) -> ResumingStream {
        let resume = ResumeRunRequest {
            options: Some(options(false)),
            ..resume
        };
        let mut events = ResumingStream::resume(self.runs.clone(), resume);
        events.metadata.clone_from(&self.metadata);
        events
    }

    /// Waits until the run requires action no more.
    pub(super) async fn wait_for_others(
        &self,
        thread_id: &str,
        run_id: &str,
    ) -> Result<(), Status> {
        let request = self.stream(WatchRunRequest {
            thread_id: thread_id.to_owned(),
            run_id: run_id.to_owned(),
            ..WatchRunRequest::default()
        });
        let mut events = self.runs.clone().watch_run(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(Payload::Run(run)) = event.payload
                && run.status() != RunStatus::RequiresAction
            {
                break;
            }
        }
        Ok(())
    }

    fn stream<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().clone_from(&self.metadata);
        request
    }

    fn call<T>(&self, message: T) -> Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// What a status says, in one line.
    pub(super) fn say(&self, status: &Status) -> Failure {
        if let Some(source) = status.source() {
            let cause = innermost(source).to_string();
            return format!("{} ({})", printable_line(&cause, MAX_LINE), self.hint).into();
        }
        let mut line = format!(
            "{:?}: {}",
            status.code(),
            printable_line(status.message(), MAX_LINE)
        );
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| ("reason", &info.reason));
        let request = details
            .request_info()
            .map(|info| ("upstream request", &info.request_id));
        for (name, value) in reason.into_iter().chain(request) {
            if !value.is_empty() {
                let value = printable_line(value, MAX_LINE);
                _ = write!(line, ", {name} {value}");
            }
        }
        line.into()
    }
}

fn options(resumable: bool) -> StreamOptions {
    StreamOptions {
        resumable,
        include_missed_messages: true,
        ..StreamOptions::default()
    }
}

/// The gateway refused to record: nothing was asked of the upstream.
fn has_no_event_log(status: &Status) -> bool {
    let details = status.get_details_bad_request();
    let mut violations = details.into_iter().flat_map(|it| it.field_violations);
    status.code() == Code::InvalidArgument && violations.any(|it| it.field == "options.resumable")
}

fn bearer(token: &[u8]) -> Result<MetadataValue<tonic::metadata::Ascii>, Failure> {
    let token = str::from_utf8(token).map(str::trim).unwrap_or_default();
    let value = MetadataValue::try_from(format!("Bearer {token}"));
    match value {
        Ok(mut value) if !token.is_empty() => {
            value.set_sensitive(true);
            Ok(value)
        }
        _ => Err("--token-file: there is no token in it".into()),
    }
}
