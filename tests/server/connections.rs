//! One connection: what it takes to open it, what it may hold, how it ends.

use runs_gateway::server::Limits;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

use crate::harness::{Gateway, code, data, millis, soon, status};

#[tokio::test]
async fn silent_connections_are_closed_at_the_handshake_limit_and_others_served_meanwhile() {
    let mut gateway = Gateway::start(Limits {
        handshake: millis(500),
        ..Limits::default()
    })
    .await;
    let mut silent = TcpStream::connect(gateway.address).await.unwrap();
    let mut stopped = TcpStream::connect(gateway.address).await.unwrap();
    stopped.write_all(b"PRI * HTTP").await.unwrap();

    let mut client = gateway.client().await;
    let pending = client.call("/test.Script/Unary", &[]).await.unwrap();
    let call = gateway.call().await;

    assert_eq!(
        soon(silent.read(&mut [0; 64])).await.unwrap(),
        0,
        "closed without a word"
    );
    assert_eq!(
        soon(stopped.read(&mut [0; 64])).await.unwrap(),
        0,
        "closed without a word"
    );
    // The client's own connection is older than the limit by now.
    call.answer(status(Code::Ok));
    assert_eq!(pending.code_in_head().await, Code::Ok);
}

#[tokio::test]
async fn a_peer_that_does_not_speak_http2_is_closed_at_once() {
    let gateway = Gateway::start(Limits::default()).await;
    let mut peer = TcpStream::connect(gateway.address).await.unwrap();
    peer.write_all(b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // A reset, if the server closed before it had read all.
    _ = soon(peer.read_to_end(&mut answer)).await;
    assert!(answer.is_empty());
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once_and_served_when_another_has_left() {
    let mut gateway = Gateway::start(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    let mut first = gateway.client().await;
    let pending = first.call("/test.Script/Unary", &[]).await.unwrap();
    gateway.call().await.answer(status(Code::Ok));
    assert_eq!(pending.code_in_head().await, Code::Ok);

    let mut second = TcpStream::connect(gateway.address).await.unwrap();
    assert_eq!(soon(second.read(&mut [0; 64])).await.unwrap(), 0);

    drop(first);
    soon(async {
        loop {
            // Refused as long as the server has not seen the first one go.
            let mut stream = TcpStream::connect(gateway.address).await.unwrap();
            _ = stream
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await;
            if stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_streams_are_accepted_on_a_connection_and_the_next_one_refused() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let mut peer = Peer::connect(&gateway).await;
    let calls: Vec<_> = (0..1001).flat_map(|call| headers(2 * call + 1)).collect();
    peer.0.write_all(&calls).await.unwrap();

    let (stream, payload) = peer.next(RST_STREAM).await;
    assert_eq!((stream, &payload[..]), (2001, &REFUSED_STREAM[..]));
    let mut accepted = Vec::new();
    for _ in 0..1000 {
        accepted.push(gateway.call().await);
    }
    assert!(!gateway.has_calls());
}

#[tokio::test]
async fn a_peer_that_resets_its_calls_as_fast_as_it_makes_them_is_sent_away() {
    let gateway = Gateway::start(Limits::default()).await;
    let mut peer = Peer::connect(&gateway).await;
    let cancel = 8_u32.to_be_bytes();
    let calls: Vec<_> = (0..200)
        .map(|call| 2 * call + 1)
        .flat_map(|stream| [headers(stream), frame(RST_STREAM, 0, stream, &cancel)])
        .flatten()
        .collect();
    peer.0.write_all(&calls).await.unwrap();

    let (_, payload) = peer.next(GOAWAY).await;
    assert_eq!(payload[4..8], ENHANCE_YOUR_CALM);
    assert!(!gateway.has_calls());
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_closed() {
    let limits = Limits {
        ping_interval: Some(millis(100)),
        ping_timeout: millis(100),
        ..Limits::default()
    };
    let gateway = Gateway::start(limits).await;
    let mut peer = Peer::connect(&gateway).await;
    peer.next(PING).await;
    _ = soon(peer.0.read_to_end(&mut Vec::new())).await;
}

/// Frames by hand: a well-behaved client does not do what must be withstood.
struct Peer(TcpStream);

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];

impl Peer {
    async fn connect(gateway: &Gateway) -> Self {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
        Self(stream)
    }

    /// The stream and the payload of the next frame of a kind.
    async fn next(&mut self, kind: u8) -> (u32, Vec<u8>) {
        soon(async {
            loop {
                let mut head = [0; 9];
                self.0.read_exact(&mut head).await.unwrap();
                let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
                self.0.read_exact(&mut payload).await.unwrap();
                if head[3] == kind {
                    return (u32::from_be_bytes(head[5..].try_into().unwrap()), payload);
                }
            }
        })
        .await
    }
}

/// A call without a message.
fn headers(stream: u32) -> Vec<u8> {
    let end_stream_and_headers = 5;
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    for (name, value) in [
        (":authority", "gateway"),
        (":path", "/test.Script/Unary"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ] {
        block.extend([0, u8::try_from(name.len()).unwrap()]);
        block.extend(name.as_bytes());
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    frame(HEADERS, end_stream_and_headers, stream, &block)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[tokio::test]
async fn a_connection_of_age_takes_no_more_calls_and_after_the_grace_an_open_stream_ends_as_unavailable()
 {
    let limits = Limits {
        age: Some(millis(600)),
        age_grace: millis(600),
        ..Limits::default()
    };
    let mut gateway = Gateway::start(limits).await;
    let mut client = gateway.client().await;

    let unary = client.call("/test.Script/Unary", &[]).await.unwrap();
    let waits = gateway.call().await;
    let stream = client.call("/test.Script/Stream", &[]).await.unwrap();
    let events = gateway.call().await.stream();
    let mut answer = stream.head().await.unwrap();

    assert_eq!(client.goaway().await.reason(), Some(h2::Reason::NO_ERROR));

    // In the grace the stream goes on.
    events.send(data("late")).await.unwrap();
    assert_eq!(answer.data().await.unwrap(), "late");

    let trailers = answer.trailers().await;
    assert_eq!(code(&trailers), Code::Unavailable);
    assert!(
        trailers["grpc-message"]
            .to_str()
            .unwrap()
            .contains("call%20again"),
        "{trailers:?}"
    );
    assert_eq!(unary.code_in_head().await, Code::Unavailable);
    soon(events.closed()).await;
    drop(waits);
    soon(client.closed).await.unwrap().unwrap();

    // The server goes on.
    let mut next = gateway.client().await;
    let pending = next.call("/test.Script/Unary", &[]).await.unwrap();
    gateway.call().await.answer(status(Code::Ok));
    assert_eq!(pending.code_in_head().await, Code::Ok);
}

#[tokio::test]
async fn a_connection_without_calls_is_closed_after_the_idle_time_and_one_with_a_call_is_not() {
    let mut gateway = Gateway::start(Limits {
        idle: Some(millis(200)),
        age_grace: millis(0),
        ..Limits::default()
    })
    .await;
    let mut busy = gateway.client().await;
    let pending = busy.call("/test.Script/Unary", &[]).await.unwrap();
    let call = gateway.call().await;

    for _ in 0..3 {
        // The requests' side is held on to: it is the server that closes.
        let mut idle = gateway.client().await;
        soon(&mut idle.closed).await.unwrap().unwrap();
    }

    assert!(!busy.closed.is_finished());
    call.answer(status(Code::Ok));
    assert_eq!(pending.code_in_head().await, Code::Ok);
    soon(busy.closed).await.unwrap().unwrap();
}
