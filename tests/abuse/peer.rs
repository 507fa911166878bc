//! HTTP/2 frames by hand.

use std::{net::SocketAddr, time::Duration};

use runs_gateway::v1::{CreateRunRequest, RunSpec};
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One connection, which says whatever it is told to, and reads what comes only to see the end.
pub(crate) struct Peer {
    write: OwnedWriteHalf,
    read: OwnedReadHalf,
}

impl Peer {
    /// Connected, with preface and settings.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut peer = Self::bare(address).await;
        peer.say(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat())
            .await
            .expect("a new connection takes a preface");
        peer
    }

    /// Connected, and nothing said.
    pub(crate) async fn bare(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        let (read, write) = stream.into_split();
        Self { write, read }
    }

    /// Says this, reading meanwhile, as the gateway might not listen to whoever does not. An error
    /// if the gateway has closed.
    pub(crate) async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut heard = [0; 4096];
        let mut said = std::pin::pin!(self.write.write_all(bytes));
        loop {
            tokio::select! {
                biased;
                count = self.read.read(&mut heard) => if count? == 0 { return Err(io::ErrorKind::UnexpectedEof.into()) },
                done = &mut said => return done,
            }
        }
    }

    /// Whether the gateway closes this connection within a time.
    pub(crate) async fn is_closed(&mut self, within: Duration) -> bool {
        let mut heard = [0; 4096];
        timeout(within, async {
            while self
                .read
                .read(&mut heard)
                .await
                .is_ok_and(|count| count > 0)
            {}
        })
        .await
        .is_ok()
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len())
        .expect("a short payload")
        .to_be_bytes()[1..]
        .to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The fields of a call of `CreateRun`, none of them indexed.
pub(crate) fn fields() -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    for (name, value) in [
        (":authority", "gateway"),
        (":path", "/runsgateway.v1.RunService/CreateRun"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", "Bearer attacker"),
    ] {
        block.extend(field(name, value));
    }
    block
}

/// A field that is not indexed. Both of its texts are shorter than 127 bytes.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    [
        &[0, length(name)],
        name.as_bytes(),
        &[length(value)],
        value.as_bytes(),
    ]
    .concat()
}

/// A whole call of `CreateRun`.
pub(crate) fn create_run(stream: u32) -> Vec<u8> {
    let run = Some(RunSpec {
        assistant_id: "asst_1".to_owned(),
        ..RunSpec::default()
    });
    let request = CreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run,
        include: vec![],
        ..CreateRunRequest::default()
    };
    let message = prost::Message::encode_to_vec(&request);
    let prefix = [
        &[0],
        &u32::try_from(message.len())
            .expect("a short message")
            .to_be_bytes()[..],
    ]
    .concat();
    [
        frame(HEADERS, END_HEADERS, stream, &fields()),
        frame(DATA, END_STREAM, stream, &[prefix, message].concat()),
    ]
    .concat()
}

/// Its cancellation.
pub(crate) fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}
