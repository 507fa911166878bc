//! One connection of the scripted upstream: reads requests, plays answers, and notices at once when
//! the client leaves.
//!
//! Must hold: reading goes on while an answer is played. A client that closes its side has left,
//! even if it might still listen: the answer is dropped, and with it the receiver of a live body,
//! so that the test's sender sees it too.

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::Instant,
};

use super::{
    Answer, Recorded, Step,
    answer::{After, Framing},
};

/// Serves a connection to its end: whether the client ended it, or what it sent that is not a
/// request.
pub(super) async fn run(
    stream: &mut TcpStream,
    number: usize,
    script: impl Fn(&Recorded) -> Answer,
) -> Result<bool, String> {
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let (mut read, mut write) = stream.split();
    let mut client = Client {
        read: &mut read,
        unread: BytesMut::new(),
    };
    while let Some(request) = client.request(number).await? {
        let answer = script(&request);
        let after = tokio::select! {
            biased;
            played = play(&mut write, answer) => played.unwrap_or(After::Close),
            () = client.gone() => return Ok(true),
        };
        if matches!(after, After::CloseOnNextRequest | After::CutOnNextRequest)
            && client.unread.is_empty()
            && !client.more().await
        {
            return Ok(true);
        }
        match after {
            After::Keep => {}
            After::Close | After::CloseOnNextRequest => {
                let _ = write.shutdown().await;
                // To drop a socket with something unread would be a reset.
                client.gone().await;
                return Ok(true);
            }
            After::Cut | After::CutOnNextRequest => {
                stream
                    .set_zero_linger()
                    .map_err(|error| error.to_string())?;
                return Ok(false);
            }
        }
    }
    Ok(true)
}

async fn play(write: &mut WriteHalf<'_>, answer: Answer) -> io::Result<After> {
    write.write_all(answer.head().as_bytes()).await?;
    for step in answer.body {
        match step {
            Step::Bytes(bytes) => say(write, answer.framing, &bytes).await?,
            Step::Stream(mut chunks) => {
                while let Some(bytes) = chunks.recv().await {
                    say(write, answer.framing, &bytes).await?;
                }
            }
            Step::Wait(until) => until.notified().await,
            Step::Pause(duration) => tokio::time::sleep(duration).await,
            Step::Cut => return Ok(After::Cut),
            Step::Close => return Ok(After::Close),
        }
    }
    if answer.framing == Framing::Chunked {
        write.write_all(b"0\r\n\r\n").await?;
    }
    Ok(answer.after)
}

async fn say(write: &mut WriteHalf<'_>, framing: Framing, bytes: &[u8]) -> io::Result<()> {
    // An empty chunk would end the body.
    if framing != Framing::Chunked || bytes.is_empty() {
        return write.write_all(bytes).await;
    }
    let size = format!("{:x}\r\n", bytes.len());
    write
        .write_all(&[size.as_bytes(), bytes, b"\r\n"].concat())
        .await
}

/// The reading side, with what was read ahead.
struct Client<'a, 'b> {
    read: &'a mut ReadHalf<'b>,
    unread: BytesMut,
}

impl Client<'_, '_> {
    /// Reads on; false if the client has left.
    async fn more(&mut self) -> bool {
        self.read
            .read_buf(&mut self.unread)
            .await
            .is_ok_and(|count| count > 0)
    }

    async fn gone(&mut self) {
        while self.more().await {}
    }

    /// The next request; none if the client leaves before it is whole.
    async fn request(&mut self, connection: usize) -> Result<Option<Recorded>, String> {
        let (mut request, chunked, length) = loop {
            if let Some(head) = self.head(connection)? {
                break head;
            }
            if !self.more().await {
                return Ok(None);
            }
        };
        let body = if chunked {
            self.chunks().await?
        } else {
            self.exactly(length).await
        };
        let Some(body) = body else { return Ok(None) };
        request.body = body;
        request.at = Instant::now();
        Ok(Some(request))
    }

    /// A request's head, if it is all there: whether its body is chunked, and how long it is if
    /// not.
    fn head(&mut self, connection: usize) -> Result<Option<(Recorded, bool, usize)>, String> {
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut head = httparse::Request::new(&mut headers);
        let parsed = head
            .parse(&self.unread)
            .map_err(|error| format!("a request that is not HTTP/1.1: {error}"))?;
        let httparse::Status::Complete(end) = parsed else {
            return Ok(None);
        };
        let request = Recorded {
            method: head.method.unwrap_or_default().into(),
            target: head.path.unwrap_or_default().into(),
            headers: head
                .headers
                .iter()
                .map(|h| (h.name.to_ascii_lowercase(), Bytes::copy_from_slice(h.value)))
                .collect(),
            body: Bytes::new(),
            connection,
            at: Instant::now(),
        };
        self.unread.advance(end);
        let chunked = request
            .header("transfer-encoding")
            .is_some_and(|coding| coding == "chunked");
        let length = request.header("content-length").unwrap_or("0");
        let length = length
            .parse()
            .map_err(|_| format!("a content-length of {length:?}"))?;
        Ok(Some((request, chunked, length)))
    }

    async fn exactly(&mut self, length: usize) -> Option<Bytes> {
        while self.unread.len() < length {
            if !self.more().await {
                return None;
            }
        }
        Some(self.unread.split_to(length).freeze())
    }

    async fn chunks(&mut self) -> Result<Option<Bytes>, String> {
        let mut body = BytesMut::new();
        loop {
            let size =
                httparse::parse_chunk_size(&self.unread).map_err(|_| "a chunk without a size")?;
            let httparse::Status::Complete((start, size)) = size else {
                if self.more().await {
                    continue;
                }
                return Ok(None);
            };
            self.unread.advance(start);
            let size = usize::try_from(size).map_err(|_| "a chunk beyond memory")?;
            let Some(chunk) = self.exactly(size + 2).await else {
                return Ok(None);
            };
            let data = chunk
                .strip_suffix(b"\r\n")
                .ok_or("a chunk of another size than announced")?;
            if data.is_empty() {
                return Ok(Some(body.freeze()));
            }
            body.extend_from_slice(data);
        }
    }
}
