//! How messages of calls are read and written: requests have so many fields at most, and what is
//! written goes through [`crate::wire`].
//!
//! Must hold: what a request takes in memory is bounded by what it may take on the wire. By size
//! alone it is not: an empty element of a list is two bytes there and hundreds here, so that four
//! MiB become more than a GiB.
//!
//! Why not a count of elements: only the decoder knows which bytes are elements. What it reads is
//! counted instead: each field is two or three steps through the bytes, however long it is.
//! Answers, which clients decode with the same codec, are the gateway's own and not counted.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::{Message, Name};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{error::Error, wire::Wire};

/// Steps through the bytes of a request: some 20,000 fields. The largest list that services take
/// has 10,000 texts.
const MAX_STEPS: u32 = 50_000;

/// The first buffer of each call, in bytes, for its request and for its answer, and how much of a
/// client's stream goes out together. Most requests are small and most runs are not much larger;
/// tonic's own 8 KiB are more than half of what a quiet stream would hold.
const REQUEST_BUFFER: usize = 512;
const ANSWER_BUFFER: usize = 2 << 10;
const TOGETHER: usize = 32 << 10;

/// tonic's codec for the contract's messages, with that limit.
#[derive(Debug, Clone)]
pub(crate) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Wire + Send + 'static,
    U: Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = WireEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        WireEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// Encodes messages.
#[derive(Debug)]
pub(crate) struct WireEncoder<T>(PhantomData<T>);

impl<T: Wire> Encoder for WireEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.parts(|bytes| buf.put_slice(bytes));
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(ANSWER_BUFFER, TOGETHER)
    }
}

/// Decodes messages.
#[derive(Debug)]
pub(crate) struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let steps = if U::NAME.ends_with("Request") {
            MAX_STEPS
        } else {
            u32::MAX
        };
        decode(buf, steps).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(REQUEST_BUFFER, TOGETHER)
    }
}

fn decode<U: Message + Default>(buf: impl Buf, steps: u32) -> Result<U, Status> {
    let mut counted = Counted {
        buf,
        remaining: steps,
    };
    let decoded = U::decode(&mut counted);
    if counted.remaining == 0 {
        let error = Error::TooLarge {
            what: "the message has more fields than any request needs (some 20000)".to_owned(),
        };
        return Err(error.status());
    }
    decoded.map_err(|error| {
        let what = error.to_string().into();
        Error::Malformed { what }.status()
    })
}

/// Bytes that come to an end after so many steps.
struct Counted<B> {
    buf: B,
    remaining: u32,
}

impl<B: Buf> Buf for Counted<B> {
    fn remaining(&self) -> usize {
        if self.remaining == 0 {
            0
        } else {
            self.buf.remaining()
        }
    }

    fn chunk(&self) -> &[u8] {
        if self.remaining == 0 {
            &[]
        } else {
            self.buf.chunk()
        }
    }

    fn advance(&mut self, count: usize) {
        self.buf.advance(count);
        self.remaining = self.remaining.saturating_sub(1);
    }

    // A slice of what is there, as it would be without the counting.
    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        self.remaining = self.remaining.saturating_sub(1);
        self.buf.copy_to_bytes(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{CreateRunRequest, RunSpec, Tool};

    fn request(tools: usize) -> Vec<u8> {
        let run = Some(RunSpec {
            tools: vec![Tool::default(); tools],
            instructions: Some("x".repeat(100_000)),
            ..RunSpec::default()
        });
        CreateRunRequest {
            thread_id: "thread_1".to_owned(),
            run,
            ..CreateRunRequest::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn a_request_has_many_fields_or_long_ones_and_not_too_many() {
        let decoded: CreateRunRequest = decode(&*request(20_000), MAX_STEPS).expect("a request");
        assert_eq!(decoded.run.map(|run| run.tools.len()), Some(20_000));
        let refused =
            decode::<CreateRunRequest>(&*request(30_000), MAX_STEPS).expect_err("too many");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        // Wherever it comes to its end, it is no message.
        let whole = request(3);
        for steps in 1..=14 {
            let refused = decode::<CreateRunRequest>(&*whole, steps).expect_err("no steps left");
            assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{steps}");
        }
        decode::<CreateRunRequest>(&*whole, 100).expect("a request");
    }
}
