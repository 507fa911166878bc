//! The parser on chunks, and a slow one by the standard's own words to compare it with. Shared with
//! the fuzz targets.

use bytes::Bytes;
use runs_gateway::upstream::sse::{Frame, Parser, TooLong};

/// A frame that outlives its parser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) id: Vec<u8>,
}

impl From<Frame<'_>> for Event {
    fn from(frame: Frame<'_>) -> Self {
        Self {
            name: frame.event.to_vec(),
            data: frame.data.to_vec(),
            id: frame.id.to_vec(),
        }
    }
}

/// The events of a stream, and what is pending at its end with whether its last line was ended.
pub(crate) type Outcome = (Vec<Event>, Result<Option<(Event, bool)>, TooLong>);

/// What the parser gives for a stream in chunks.
pub(crate) fn parse<'a>(limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut parser = Parser::new(limit);
    let mut frames = Vec::new();
    for chunk in chunks {
        parser.push(Bytes::copy_from_slice(chunk));
        loop {
            match parser.next_frame() {
                Ok(Some(frame)) => frames.push(frame.into()),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    let pending = parser
        .finish()
        .map(|pending| (pending.frame.into(), pending.terminated));
    (frames, Ok(pending))
}

/// Cuts a stream into chunks of the sizes given, over and over.
pub(crate) fn cut<'a>(mut stream: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    for size in sizes.iter().cycle() {
        if stream.is_empty() {
            break;
        }
        let (chunk, rest) = stream.split_at((*size).min(stream.len()));
        chunks.push(chunk);
        stream = rest;
    }
    chunks
}

/// The standard's steps, one after the other and with no thought for cost; and the limit, which is
/// the gateway's.
pub(crate) fn by_the_standard(limit: usize, stream: &[u8]) -> Outcome {
    let mut lines = vec![Vec::new()];
    for (at, byte) in stream.iter().enumerate() {
        match byte {
            b'\n' if at > 0 && stream[at - 1] == b'\r' => {}
            b'\n' | b'\r' => lines.push(Vec::new()),
            _ => lines.last_mut().expect("never empty").push(*byte),
        }
    }
    let unended = lines.pop().expect("never empty");
    let terminated = unended.is_empty();
    if !terminated {
        lines.push(unended);
    }

    let (mut frames, mut begun) = (Vec::new(), false);
    let (mut event, mut data, mut id) = (Vec::new(), Vec::new(), Vec::new());
    let frame = |name: &[u8], data: &[u8], id: &[u8]| Event {
        name: name.to_vec(),
        data: data.strip_suffix(b"\n").unwrap_or(data).to_vec(),
        id: id.to_vec(),
    };
    for (at, line) in lines.iter().enumerate() {
        let joined: &[u8] = data.strip_suffix(b"\n").unwrap_or(&data);
        if event.len() + joined.len() + line.len() > limit {
            return (frames, Err(TooLong { limit }));
        }
        let line = if at == 0 {
            line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line)
        } else {
            line
        };
        if line.is_empty() {
            if !data.is_empty() {
                frames.push(frame(&event, &data, &id));
            }
            (event, data, begun) = (Vec::new(), Vec::new(), false);
            continue;
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (field, value) = (
            parts.next().expect("at least one"),
            parts.next().unwrap_or_default(),
        );
        let value = value.strip_prefix(b" ").unwrap_or(value);
        begun |= !line.starts_with(b":");
        match field {
            b"event" => event = value.to_vec(),
            b"data" => data.extend([value, b"\n"].concat()),
            b"id" if !value.contains(&0) => id = value.to_vec(),
            _ => {}
        }
    }
    (
        frames,
        Ok(begun.then(|| (frame(&event, &data, &id), terminated))),
    )
}
