//! HTTP/1.1 as a browser without TLS speaks it, byte by byte: what is under test is also what goes
//! over the wire, and when.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tonic::Code;

use crate::harness::soon;

/// One connection.
pub(crate) struct Page(BufReader<TcpStream>);

/// An answer's head.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
}

impl Head {
    /// The names of the headers that begin with `access-control-`.
    pub(crate) fn told(&self) -> Vec<&str> {
        let mut names: Vec<_> = self
            .headers
            .keys()
            .map(HeaderName::as_str)
            .filter(|name| name.starts_with("access-control-"))
            .collect();
        names.sort_unstable();
        names
    }
}

impl Page {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends a call of gRPC-Web.
    pub(crate) async fn call(&mut self, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        self.write([head.as_bytes(), b"\r\n", body].concat()).await;
    }

    /// The next answer's head.
    pub(crate) async fn head(&mut self) -> Head {
        let line = self.line().await;
        let status = line
            .split(' ')
            .nth(1)
            .unwrap_or_else(|| panic!("no answer: {line:?}"))
            .parse()
            .unwrap();
        let mut headers = HeaderMap::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(": ") else {
                return Head { status, headers };
            };
            headers.append(
                HeaderName::try_from(name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
    }

    /// The next chunk of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Option<Bytes> {
        let length = usize::from_str_radix(&self.line().await, 16).expect("a chunk");
        let mut chunk = vec![0; length + 2];
        soon(self.0.read_exact(&mut chunk)).await.unwrap();
        chunk.truncate(length);
        (length > 0).then(|| chunk.into())
    }

    pub(crate) fn into_inner(self) -> TcpStream {
        self.0.into_inner()
    }

    /// What comes before the server closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset, if the server closed before it had read all.
        _ = soon(self.0.read_to_end(&mut rest)).await;
        rest
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        soon(self.0.read_line(&mut line)).await.unwrap();
        line.trim_end().to_owned()
    }
}

/// The code in a frame of trailers.
pub(crate) fn code(frame: &[u8]) -> Code {
    assert_eq!(frame[0], 0x80, "trailers");
    assert_eq!(
        frame[1..5],
        u32::try_from(frame.len() - 5).unwrap().to_be_bytes()
    );
    let lines = std::str::from_utf8(&frame[5..]).unwrap();
    let code = lines
        .split("\r\n")
        .find_map(|line| line.strip_prefix("grpc-status:"))
        .expect("a status");
    Code::from_bytes(code.as_bytes())
}
