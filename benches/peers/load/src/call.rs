//! Calls over HTTP/2 in the clear: to the gateway as gRPC, to an upstream or a proxy as REST.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;

use crate::Failure;

/// No call of any load takes longer, or something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// gRPC `GetRun`.
    Get,
    /// gRPC `StreamCreateRun`.
    Create,
    /// gRPC `StreamCreateRun`, recorded.
    Record,
    /// gRPC `GetRun` of the contract that Envoy transcodes.
    Transcoded,
    /// gRPC `WatchRun`.
    Watch,
    /// gRPC `WatchRun` with steps.
    Steps,
    /// REST: the run as JSON.
    Json,
    /// REST: a run is created, its events are streamed.
    Sse,
}

impl Call {
    pub fn named(name: &str) -> Result<Self, Failure> {
        match name {
            "get" => Ok(Self::Get),
            "create" => Ok(Self::Create),
            "record" => Ok(Self::Record),
            "transcoded" => Ok(Self::Transcoded),
            "watch" => Ok(Self::Watch),
            "steps" => Ok(Self::Steps),
            "json" => Ok(Self::Json),
            "sse" => Ok(Self::Sse),
            _ => Err(format!("no such call: {name}").into()),
        }
    }

    pub fn is_grpc(self) -> bool {
        !matches!(self, Self::Json | Self::Sse)
    }

    /// The request's head and body.
    fn request(
        self,
        to: SocketAddr,
        thread: &str,
        run: &str,
    ) -> Result<(Request<()>, Vec<u8>), http::Error> {
        let (path, body) = match self {
            Self::Get => grpc("GetRun", &[thread.as_bytes(), run.as_bytes()], &[]),
            Self::Transcoded => {
                let (path, body) = grpc("GetRun", &[thread.as_bytes(), run.as_bytes()], &[]);
                (path.replace("runsgateway.v1", "transcoded.v1"), body)
            }
            Self::Watch => grpc("WatchRun", &[thread.as_bytes(), run.as_bytes()], &[]),
            // The third field is `include_steps`.
            Self::Steps => grpc(
                "WatchRun",
                &[thread.as_bytes(), run.as_bytes()],
                &[3 << 3, 1],
            ),
            Self::Create => grpc(
                "StreamCreateRun",
                &[thread.as_bytes(), &field(1, b"asst_load")],
                &[],
            ),
            Self::Record => {
                // Of the options the fourth, `resumable`.
                let fields = [
                    thread.as_bytes(),
                    &field(1, b"asst_load"),
                    b"",
                    &[4 << 3, 1],
                ];
                grpc("StreamCreateRun", &fields, &[])
            }
            Self::Json => (format!("/threads/{thread}/runs/{run}"), Vec::new()),
            Self::Sse => (
                format!("/threads/{thread}/runs"),
                br#"{"assistant_id":"asst_load","stream":true}"#.to_vec(),
            ),
        };
        let mut request = Request::builder().uri(format!("http://{to}{path}"));
        if !body.is_empty() {
            request = request.method("POST").header("content-length", body.len());
        }
        if let Self::Record = self {
            // The upstream has one run only: its logs are told apart by whose they are.
            request = request.header("authorization", format!("Bearer {thread}"));
        }
        request = match self {
            Self::Json => request,
            Self::Sse => request.header("content-type", "application/json"),
            _ => request
                .header("content-type", "application/grpc")
                .header("te", "trailers"),
        };
        Ok((request.body(())?, body))
    }
}

/// A gRPC request whose message has these fields, numbered from 1, and then what is encoded already.
fn grpc(method: &str, fields: &[&[u8]], encoded: &[u8]) -> (String, Vec<u8>) {
    let message: Vec<u8> = (1..)
        .zip(fields)
        .filter(|(_, value)| !value.is_empty())
        .flat_map(|(number, value)| field(number, value))
        .chain(encoded.iter().copied())
        .collect();
    let mut body = vec![
        0,
        0,
        0,
        0,
        u8::try_from(message.len()).expect("a short message"),
    ];
    body.extend(message);
    (format!("/runsgateway.v1.RunService/{method}"), body)
}

/// A field of a protobuf message that holds text or another message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut field = vec![
        number << 3 | 2,
        u8::try_from(value.len())
            .ok()
            .filter(|it| *it < 128)
            .expect("a short field"),
    ];
    field.extend(value);
    field
}

/// A connection to one of the sides.
#[derive(Clone)]
pub struct Connection {
    to: SocketAddr,
    sender: SendRequest<Bytes>,
}

impl Connection {
    /// Connects. Windows are those of a client that means to read fast: 1 MiB a stream, 16 MiB a
    /// connection.
    pub async fn new(to: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let mut client = h2::client::Builder::new();
        client
            .initial_window_size(1 << 20)
            .initial_connection_window_size(16 << 20)
            .enable_push(false);
        let (sender, connection) = client.handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Self { to, sender })
    }

    /// Begins a call: its answer's body, once there is a head of status 200.
    pub async fn open(&self, call: Call, thread: &str, run: &str) -> Result<RecvStream, Failure> {
        let mut sender = self.sender.clone().ready().await?;
        let (head, body) = call.request(self.to, thread, run)?;
        let (response, mut sending) = sender.send_request(head, body.is_empty())?;
        if !body.is_empty() {
            sending.send_data(body.into(), true)?;
        }
        let response: Response<RecvStream> = response.await?;
        if response.status() != 200 {
            return Err(format!("status {}", response.status()).into());
        }
        if let Some(status) = response.headers().get("grpc-status") {
            return Err(format!(
                "gRPC status {status:?} {:?}",
                response.headers().get("grpc-message")
            )
            .into());
        }
        Ok(response.into_body())
    }

    /// A call with one answer, which has to hold the run's id.
    pub async fn once(&self, call: Call, thread: &str, run: &str) -> Result<(), Failure> {
        let mut body = self.open(call, thread, run).await?;
        let mut answer = Vec::new();
        while let Some(bytes) = body.data().await {
            let bytes = bytes?;
            body.flow_control().release_capacity(bytes.len())?;
            answer.extend_from_slice(&bytes);
        }
        if memchr::memmem::find(&answer, run.as_bytes()).is_none() {
            return Err("an answer without the run's id".into());
        }
        ended(call, body.trailers().await?.as_ref())
    }
}

/// Whether a call ended well.
pub fn ended(call: Call, trailers: Option<&HeaderMap>) -> Result<(), Failure> {
    let status = trailers.and_then(|trailers| trailers.get("grpc-status"));
    if call.is_grpc() && status.is_none_or(|status| status != "0") {
        let message = trailers.and_then(|trailers| trailers.get("grpc-message"));
        return Err(format!("the call ended with gRPC status {status:?} {message:?}").into());
    }
    Ok(())
}
