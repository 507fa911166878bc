//! One row for each RPC of the contract: its requests about one thread.
//!
//! Must hold: an RPC of the contract that has no row here fails the tests that go through them.

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use runs_gateway::{json, v1::*};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataKey,
    transport::Channel,
};

use crate::sources::Caller;

/// All RPCs of the contract.
pub(crate) fn contract() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(DESCRIPTOR).expect("a descriptor");
    let services = pool
        .services()
        .filter(|it| it.package_name() == "runsgateway.v1");
    services
        .flat_map(|it| it.methods().collect::<Vec<_>>())
        .collect()
}

#[expect(clippy::unnecessary_wraps, reason = "as fields have it")]
fn read<M: json::Document>(text: &str) -> Option<M> {
    Some(json::decode(text.as_bytes()).expect("a document"))
}

/// The requests of an RPC that are about this thread. None, if the RPC is about no thread that is
/// there.
pub(crate) fn about(rpc: &MethodDescriptor, thread: &str) -> Vec<Vec<u8>> {
    let thread_id = thread.to_owned();
    let id = |text: &str| text.to_owned();
    let run_id = id("run_1");
    let run = || read::<RunSpec>(r#"{"assistant_id":"asst_1"}"#);
    let outputs = || read::<ToolOutputs>(r#"{"tool_outputs":[{"tool_call_id":"c","output":"o"}]}"#);
    let one = |bytes: Vec<u8>| vec![bytes];
    match rpc.name() {
        "CreateThread"
        | "CreateThreadAndRun"
        | "StreamCreateThreadAndRun"
        | "CreateAssistant"
        | "ListAssistants"
        | "GetAssistant"
        | "ModifyAssistant"
        | "DeleteAssistant" => Vec::new(),
        "GetThread" => one(GetThreadRequest { thread_id }.encode_to_vec()),
        "ModifyThread" => one(ModifyThreadRequest {
            thread_id,
            thread: read("{}"),
        }
        .encode_to_vec()),
        "DeleteThread" => one(DeleteThreadRequest { thread_id }.encode_to_vec()),
        "CreateMessage" => {
            let message = read(r#"{"role":"user","content":"hello"}"#);
            one(CreateMessageRequest {
                thread_id,
                message,
                ..CreateMessageRequest::default()
            }
            .encode_to_vec())
        }
        "ListMessages" => one(ListMessagesRequest {
            thread_id,
            ..Default::default()
        }
        .encode_to_vec()),
        "GetMessage" => one(GetMessageRequest {
            thread_id,
            message_id: id("m"),
        }
        .encode_to_vec()),
        "ModifyMessage" => {
            let message_id = id("m");
            one(ModifyMessageRequest {
                thread_id,
                message_id,
                message: read("{}"),
            }
            .encode_to_vec())
        }
        "DeleteMessage" => one(DeleteMessageRequest {
            thread_id,
            message_id: id("m"),
        }
        .encode_to_vec()),
        "CreateRun" => one(CreateRunRequest {
            thread_id,
            run: run(),
            ..Default::default()
        }
        .encode_to_vec()),
        "ListRuns" => one(ListRunsRequest {
            thread_id,
            ..Default::default()
        }
        .encode_to_vec()),
        "GetRun" => one(GetRunRequest { thread_id, run_id }.encode_to_vec()),
        "ModifyRun" => one(ModifyRunRequest {
            thread_id,
            run_id,
            run: read("{}"),
        }
        .encode_to_vec()),
        "SubmitToolOutputs" => {
            let tool_outputs = outputs();
            one(SubmitToolOutputsRequest {
                thread_id,
                run_id,
                tool_outputs,
            }
            .encode_to_vec())
        }
        "CancelRun" => one(CancelRunRequest { thread_id, run_id }.encode_to_vec()),
        "ListRunSteps" => one(ListRunStepsRequest {
            thread_id,
            run_id,
            ..Default::default()
        }
        .encode_to_vec()),
        "GetRunStep" => {
            let step_id = id("step_1");
            let request = GetRunStepRequest {
                thread_id,
                run_id,
                step_id,
                ..Default::default()
            };
            one(request.encode_to_vec())
        }
        "StreamCreateRun" => {
            let options = |resumable| StreamOptions {
                resumable,
                ..Default::default()
            };
            let request = |resumable| StreamCreateRunRequest {
                thread_id: thread_id.clone(),
                run: run(),
                options: Some(options(resumable)),
                ..Default::default()
            };
            vec![
                request(false).encode_to_vec(),
                request(true).encode_to_vec(),
            ]
        }
        "StreamSubmitToolOutputs" => {
            let tool_outputs = outputs();
            let request = StreamSubmitToolOutputsRequest {
                thread_id,
                run_id,
                tool_outputs,
                options: None,
            };
            one(request.encode_to_vec())
        }
        "WatchRun" => one(WatchRunRequest {
            thread_id,
            run_id,
            ..Default::default()
        }
        .encode_to_vec()),
        "ResumeRun" => one(ResumeRunRequest {
            thread_id,
            run_id,
            ..Default::default()
        }
        .encode_to_vec()),
        "WaitRun" => one(WaitRunRequest {
            thread_id,
            run_id,
            ..Default::default()
        }
        .encode_to_vec()),
        "ConverseRun" => {
            use converse_run_request::Message as M;
            let start = ConverseStart {
                thread_id: thread_id.clone(),
                run: run(),
                ..Default::default()
            };
            let attach = ConverseAttach {
                thread_id,
                run_id,
                ..Default::default()
            };
            let request = |message| {
                ConverseRunRequest {
                    message: Some(message),
                }
                .encode_to_vec()
            };
            vec![
                request(M::Start(start)),
                request(M::Attach(attach.clone())),
                request(M::Attach(ConverseAttach {
                    options: Some(StreamOptions {
                        resumable: true,
                        ..Default::default()
                    }),
                    ..attach
                })),
            ]
        }
        other => panic!("{other} is new: say here how it is about a thread, or that it is not"),
    }
}

/// Makes a call by the caller of this token.
pub(crate) async fn call(
    channel: Channel,
    rpc: &MethodDescriptor,
    token: &str,
    request: Vec<u8>,
) -> Result<Vec<Bytes>, Status> {
    let caller = Caller {
        channel,
        metadata: Some(("authorization", format!("Bearer {token}"))),
    };
    caller.call(rpc, request).await
}

impl Caller {
    /// Makes a call, of whatever kind: all its answers, as bytes.
    pub(crate) async fn call(
        &self,
        rpc: &MethodDescriptor,
        request: Vec<u8>,
    ) -> Result<Vec<Bytes>, Status> {
        let mut request = Request::new(tokio_stream::once(request));
        if let Some((name, value)) = &self.metadata {
            let value = value.parse().expect("a value");
            request
                .metadata_mut()
                .insert(MetadataKey::from_static(name), value);
        }
        let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
        let path = PathAndQuery::try_from(path).expect("a path");
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.expect("a channel");
        let mut stream = client.streaming(request, path, Raw).await?.into_inner();
        let mut answers = Vec::new();
        while let Some(answer) = stream.message().await? {
            answers.push(answer);
        }
        Ok(answers)
    }

    /// A thread that it made.
    pub(crate) async fn thread(&self) -> String {
        let contract = contract();
        let rpc = contract.iter().find(|rpc| rpc.name() == "CreateThread");
        let made = self.call(rpc.expect("an RPC"), Vec::new()).await;
        let made = made.expect("a thread").swap_remove(0);
        ThreadResource::decode(made).expect("a thread").id
    }
}

/// Messages as bytes.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
