//! The libraries alone: three methods on tonic and reqwest, as their documentation shows them, with
//! the gateway's codec and event framing. No limits, deadlines, retries, metrics, logs or checks,
//! and nothing is kept that the contract does not name. What it takes is what is left to the
//! gateway once its own work costs nothing.
//!
//! `bare serve --listen ADDRESS --upstream-url URL`

use std::{env, error::Error, pin::Pin};

use reqwest::{Client, RequestBuilder};
use runs_gateway::{
    json::{decode, encode},
    upstream::sse::{Frame, Parser},
    v1::{
        CreateRunRequest, GetRunRequest, MessageDelta, Run, RunEvent, RunEventType, RunSpec,
        StreamCreateRunRequest, run_event::Payload,
    },
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, transport::Server};

use self::run_service_server::{RunService, RunServiceServer};

#[allow(clippy::pedantic, reason = "generated")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/runsgateway.v1.RunService.rs"));
}
use generated::run_service_server;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The longest event.
const EVENT: usize = 1 << 20;

struct Bare {
    client: Client,
    upstream: String,
}

impl Bare {
    fn create(&self, thread: &str, run: &RunSpec, stream: bool) -> Result<RequestBuilder, Status> {
        let mut body = encode(run).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if stream {
            body.pop();
            body.extend(br#","stream":true}"#);
        }
        Ok(self
            .client
            .post(format!("{}/threads/{thread}/runs", self.upstream))
            .header("content-type", "application/json")
            .body(body))
    }
}

#[tonic::async_trait]
impl RunService for Bare {
    async fn get_run(&self, request: Request<GetRunRequest>) -> Result<Response<Run>, Status> {
        let GetRunRequest {
            thread_id, run_id, ..
        } = request.into_inner();
        run(self.client.get(format!(
            "{}/threads/{thread_id}/runs/{run_id}",
            self.upstream
        )))
        .await
    }

    async fn create_run(
        &self,
        request: Request<CreateRunRequest>,
    ) -> Result<Response<Run>, Status> {
        let CreateRunRequest {
            thread_id,
            run: spec,
            ..
        } = request.into_inner();
        run(self.create(&thread_id, &spec.unwrap_or_default(), false)?).await
    }

    type StreamCreateRunStream = Pin<Box<dyn Stream<Item = Result<RunEvent, Status>> + Send>>;

    async fn stream_create_run(
        &self,
        request: Request<StreamCreateRunRequest>,
    ) -> Result<Response<Self::StreamCreateRunStream>, Status> {
        let StreamCreateRunRequest { thread_id, run, .. } = request.into_inner();
        let mut answer = self
            .create(&thread_id, &run.unwrap_or_default(), true)?
            .send()
            .await
            .map_err(unavailable)?;
        Ok(Response::new(Box::pin(async_stream::try_stream! {
            let mut parser = Parser::new(EVENT);
            while let Some(chunk) = answer.chunk().await.map_err(unavailable)? {
                parser.push(chunk);
                while let Some(frame) = parser.next_frame().map_err(|error| Status::internal(error.to_string()))? {
                    if let Some(event) = event(frame)? {
                        yield event;
                    }
                }
            }
        })))
    }
}

async fn run(request: RequestBuilder) -> Result<Response<Run>, Status> {
    let answer = request
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(unavailable)?;
    let body = answer.bytes().await.map_err(unavailable)?;
    Ok(Response::new(decode(&body).map_err(internal)?))
}

/// The event of a frame, if it is one of those that this upstream sends.
fn event(frame: Frame<'_>) -> Result<Option<RunEvent>, Status> {
    let (kind, payload) = match frame.event {
        b"thread.message.delta" => {
            let delta: MessageDelta = decode(frame.data).map_err(internal)?;
            (
                RunEventType::ThreadMessageDelta,
                Payload::MessageDelta(Box::new(delta)),
            )
        }
        b"thread.run.created" => (
            RunEventType::ThreadRunCreated,
            Payload::Run(Box::new(decode(frame.data).map_err(internal)?)),
        ),
        b"thread.run.completed" => (
            RunEventType::ThreadRunCompleted,
            Payload::Run(Box::new(decode(frame.data).map_err(internal)?)),
        ),
        _ => return Ok(None),
    };
    Ok(Some(RunEvent {
        r#type: kind.into(),
        payload: Some(payload),
        synthesized: false,
        position: String::new(),
    }))
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn unavailable(error: reqwest::Error) -> Status {
    Status::unavailable(error.to_string())
}

fn internal(error: impl Error) -> Status {
    Status::internal(error.to_string())
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let ["serve", "--listen", address, "--upstream-url", upstream] =
        &*words.iter().map(String::as_str).collect::<Vec<_>>()
    else {
        return Err("bare serve --listen ADDRESS --upstream-url URL".into());
    };
    // reqwest asks for one, though nothing here is encrypted.
    _ = rustls::crypto::ring::default_provider().install_default();
    let bare = Bare {
        client: Client::builder().no_proxy().build()?,
        upstream: (*upstream).to_owned(),
    };
    let server = Server::builder()
        .max_concurrent_streams(1024)
        .add_service(RunServiceServer::new(bare))
        .serve(address.parse()?);
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(server)?)
}
