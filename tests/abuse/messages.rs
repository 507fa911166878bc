//! Messages that are too large, not what they say they are, or larger than they look.

use bytes::Bytes;
use http::Request;
use runs_gateway::v1::{CreateRunRequest, RunSpec, Tool};
use tonic::Code;

use crate::Attacked;

/// What is sent as the body of a `CreateRun`, with which headers, and how it is answered.
struct Row {
    what: &'static str,
    encoding: Option<&'static str>,
    /// Sent piece by piece, as the gateway takes it.
    piece: Bytes,
    pieces: usize,
    /// Whether that was all.
    ends: bool,
    code: Code,
}

/// A message's prefix.
fn prefix(compressed: u8, length: u32) -> Vec<u8> {
    [&[compressed], &length.to_be_bytes()[..]].concat()
}

fn rows() -> Vec<Row> {
    let whole = |what, code, body: Vec<u8>| Row {
        what,
        encoding: None,
        piece: body.into(),
        pieces: 1,
        ends: true,
        code,
    };
    let message = |message: &[u8]| {
        [
            prefix(0, u32::try_from(message.len()).expect("short")),
            message.to_vec(),
        ]
        .concat()
    };
    // A gzip member of a MiB of zeros would be as good: it is not looked at.
    let packed = [
        prefix(1, 1 << 20),
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(),
        vec![0; (1 << 20) - 10],
    ]
    .concat();
    let encoded = |what, encoding, code| Row {
        encoding: Some(encoding),
        ..whole(what, code, packed.clone())
    };
    // Two bytes each on the wire, and much more in memory.
    let tools = {
        let run = Some(RunSpec {
            tools: vec![Tool::default(); 2_000_000],
            ..RunSpec::default()
        });
        let request = CreateRunRequest {
            thread_id: "thread_1".to_owned(),
            run,
            include: vec![],
            ..CreateRunRequest::default()
        };
        message(&prost::Message::encode_to_vec(&request))
    };
    // Groups of a field that there is not, each in the one before.
    let deep: Vec<u8> = vec![0x7b; 200];
    vec![
        Row {
            ends: false,
            ..whole(
                "a prefix of 4 GiB",
                Code::ResourceExhausted,
                prefix(0, u32::MAX),
            )
        },
        Row {
            ends: false,
            ..whole(
                "a byte more than allowed",
                Code::ResourceExhausted,
                prefix(0, (4 << 20) + 1),
            )
        },
        whole("many messages, all empty", Code::Internal, vec![0; 50_000]),
        whole("two million empty tools", Code::ResourceExhausted, tools),
        whole(
            "less than it says",
            Code::Internal,
            [prefix(0, 100), vec![10; 50]].concat(),
        ),
        whole("half a prefix", Code::Internal, vec![0, 0]),
        whole("no message", Code::Internal, vec![]),
        whole("noise as a message", Code::Internal, message(&[0xff; 100])),
        whole("a message deeper than any", Code::Internal, message(&deep)),
        whole(
            "a flag that there is not",
            Code::Internal,
            [prefix(7, 1), vec![0]].concat(),
        ),
        whole("packed without saying how", Code::Internal, packed.clone()),
        encoded("packed by gzip, and broken", "gzip", Code::Internal),
        encoded("packed by zstd", "zstd", Code::Unimplemented),
        encoded("packed by something", "rar", Code::Unimplemented),
        encoded("packed by nothing", "identity", Code::Internal),
    ]
}

/// The code of the answer. What the gateway does not take is not sent.
async fn call(requests: &h2::client::SendRequest<Bytes>, row: &Row) -> Code {
    let mut request = Request::post("http://gateway/runsgateway.v1.RunService/CreateRun")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(encoding) = row.encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let mut requests = requests.clone().ready().await.expect("an open connection");
    let (answer, mut body) = requests
        .send_request(request.body(()).expect("a request"), false)
        .expect("a stream");
    let sending = async {
        for number in 1..=row.pieces {
            let mut rest = row.piece.clone();
            let last = row.ends && number == row.pieces;
            loop {
                body.reserve_capacity(rest.len());
                let room = if rest.is_empty() {
                    0
                } else {
                    std::future::poll_fn(|cx| body.poll_capacity(cx))
                        .await
                        .and_then(Result::ok)?
                };
                let now = rest.split_to(room.min(rest.len()));
                let end = rest.is_empty();
                body.send_data(now, last && end).ok()?;
                if end {
                    break;
                }
            }
        }
        Some(())
    };
    // Whoever does not end its message may be answered nevertheless.
    let (head, _) = tokio::join!(answer, sending);
    let (head, mut body) = head.expect("an answer").into_parts();
    let code = |headers: &http::HeaderMap| {
        headers
            .get("grpc-status")
            .map(|code| Code::from_bytes(code.as_bytes()))
    };
    if let Some(code) = code(&head.headers) {
        return code;
    }
    while let Some(data) = body.data().await {
        data.expect("an answer without an error");
    }
    code(&body.trailers().await.expect("trailers").expect("trailers")).expect("a status")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_what_it_should_be_is_refused_unread() {
    let attacked = Attacked::start(&[]).await;
    let stream = tokio::net::TcpStream::connect(attacked.program.address)
        .await
        .expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    let (requests, connection) = h2::client::handshake(stream).await.expect("a handshake");
    let connection = tokio::spawn(connection);
    for row in rows() {
        let (codes, grown) = attacked
            .during(row.what, async {
                let mut codes = Vec::new();
                for _ in 0..20 {
                    codes.push(
                        tokio::time::timeout(crate::BOUND, call(&requests, &row))
                            .await
                            .expect("an answer in time"),
                    );
                }
                codes
            })
            .await;
        assert!(
            codes.iter().all(|code| *code == row.code),
            "{}: {codes:?}",
            row.what
        );
        assert!(grown < 100, "{}: {grown} MiB", row.what);
    }
    assert_eq!(attacked.posts(), 0, "nothing of it reached the upstream");
    // All on one connection, which is still good.
    assert!(!connection.is_finished());
}
