//! The calls that these tests make, and how they ended.

use std::{fmt, time::Duration};

use runs_gateway::v1::{
    CancelRunRequest, CreateRunRequest, CreateThreadAndRunRequest, GetRunRequest, ModifyRunRequest,
    RunSpec, RunUpdate, StreamCreateRunRequest, SubmitToolOutputsRequest, ThreadAndRunSpec,
    ToolOutput, ToolOutputs, run_event::Payload, run_service_client::RunServiceClient,
};
use tonic::{Code, Request, Status, metadata::MetadataMap, transport::Channel};
use tonic_types::StatusExt as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Get,
    Cancel,
    Modify,
    Create,
    CreateThreadAndRun,
    StreamCreate,
    Submit,
}

impl Call {
    /// Doing these twice is the same as doing them once.
    pub(crate) const REPEATABLE: [Self; 3] = [Self::Get, Self::Cancel, Self::Modify];
    /// Doing these twice makes two runs.
    pub(crate) const ONCE: [Self; 3] = [Self::Create, Self::CreateThreadAndRun, Self::StreamCreate];

    pub(crate) async fn on(self, channel: Channel) -> Ended {
        self.with(channel, &[], None).await
    }

    pub(crate) async fn with(
        self,
        channel: Channel,
        metadata: &[(&'static str, &str)],
        timeout: Option<Duration>,
    ) -> Ended {
        Ended::from(self.answer(channel, "thread_1", metadata, timeout).await)
    }

    /// The id of the run that was answered.
    pub(crate) async fn answer(
        self,
        channel: Channel,
        thread: &str,
        metadata: &[(&'static str, &str)],
        timeout: Option<Duration>,
    ) -> Result<String, Status> {
        let mut runs = RunServiceClient::new(channel);
        let (thread_id, run_id) = (thread.to_owned(), thread.replace("thread_", "run_"));
        let run = Some(RunSpec {
            assistant_id: "asst_1".to_owned(),
            ..RunSpec::default()
        });
        let parts = (metadata, timeout);
        let run = match self {
            Self::Get => {
                runs.get_run(request(GetRunRequest { thread_id, run_id }, parts))
                    .await?
            }
            Self::Cancel => {
                runs.cancel_run(request(CancelRunRequest { thread_id, run_id }, parts))
                    .await?
            }
            Self::Modify => {
                let run = Some(RunUpdate::default());
                runs.modify_run(request(
                    ModifyRunRequest {
                        thread_id,
                        run_id,
                        run,
                    },
                    parts,
                ))
                .await?
            }
            Self::Create => {
                runs.create_run(request(
                    CreateRunRequest {
                        thread_id,
                        run,
                        include: vec![],
                        ..CreateRunRequest::default()
                    },
                    parts,
                ))
                .await?
            }
            Self::CreateThreadAndRun => {
                let spec = ThreadAndRunSpec {
                    assistant_id: "asst_1".to_owned(),
                    ..ThreadAndRunSpec::default()
                };
                runs.create_thread_and_run(request(
                    CreateThreadAndRunRequest {
                        thread_and_run: Some(spec),
                        ..CreateThreadAndRunRequest::default()
                    },
                    parts,
                ))
                .await?
            }
            Self::Submit => {
                let output = ToolOutput {
                    tool_call_id: "call_1".to_owned(),
                    output: Some("42".to_owned()),
                    ..ToolOutput::default()
                };
                let tool_outputs = Some(ToolOutputs {
                    tool_outputs: vec![output],
                    ..ToolOutputs::default()
                });
                runs.submit_tool_outputs(request(
                    SubmitToolOutputsRequest {
                        thread_id,
                        run_id,
                        tool_outputs,
                    },
                    parts,
                ))
                .await?
            }
            Self::StreamCreate => {
                let message = StreamCreateRunRequest {
                    thread_id,
                    run,
                    ..StreamCreateRunRequest::default()
                };
                let mut events = runs
                    .stream_create_run(request(message, parts))
                    .await?
                    .into_inner();
                let mut id = String::new();
                while let Some(event) = events.message().await? {
                    if let Some(Payload::Run(run)) = event.payload {
                        id = run.id;
                    }
                }
                return Ok(id);
            }
        };
        Ok(run.into_inner().id)
    }
}

fn request<M>(
    message: M,
    (metadata, timeout): (&[(&'static str, &str)], Option<Duration>),
) -> Request<M> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request
            .metadata_mut()
            .insert(*name, value.parse().expect("a value"));
    }
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    request
}

/// How a call ended: with an answer, or a code and a reason.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) metadata: MetadataMap,
}

impl From<Result<String, Status>> for Ended {
    fn from(result: Result<String, Status>) -> Self {
        match result {
            Ok(_) => Self {
                code: Code::Ok,
                reason: String::new(),
                metadata: MetadataMap::new(),
            },
            Err(status) => {
                let reason = status
                    .get_error_details()
                    .error_info()
                    .map(|info| info.reason.clone())
                    .unwrap_or_default();
                Self {
                    code: status.code(),
                    reason,
                    metadata: status.metadata().clone(),
                }
            }
        }
    }
}

/// What is expected, as `CODE REASON`, or `OK`.
impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.code)?;
        if self.reason.is_empty() {
            Ok(())
        } else {
            write!(out, " {}", self.reason)
        }
    }
}
