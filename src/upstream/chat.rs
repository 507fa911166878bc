//! Chat completions: the one request of another API that this client makes, for a model behind the
//! embedded Runs API.
//!
//! Must hold: a completion that was asked for twice costs twice and harms nobody, so it is asked
//! for again wherever a read would be; but not once its answer has begun.

use bytes::Bytes;
use http::Method;

use super::{
    answer::{self, Reading},
    caller::Caller,
    client::Client,
    request::Request,
    stream::{EventStream, Opened, WholeAnswer},
};
use crate::error::{Error, Idempotency};

/// What a completion came as.
#[derive(Debug)]
pub(crate) enum ChatReply {
    /// The stream that was asked for.
    Stream(Box<EventStream>),
    /// One JSON document in its place.
    Document(Bytes),
}

impl WholeAnswer for Bytes {
    async fn read(
        response: &mut reqwest::Response,
        begun: Bytes,
        reading: &Reading<'_>,
    ) -> Result<Self, Error> {
        answer::read_text(response, begun, reading, &mut reading.held.part()).await
    }
}

impl Client {
    /// `POST /chat/completions` with this body, which asks for a stream.
    pub(crate) async fn chat_completion(&self, body: Vec<u8>) -> Result<ChatReply, Error> {
        let route = "/chat/completions";
        let request = Request::new(Method::POST, route, &[], Idempotency::Idempotent)?;
        let request = request.body("", body);
        Ok(match self.open_any(&Caller::default(), request).await? {
            Opened::Stream(stream, _) => ChatReply::Stream(stream),
            Opened::Whole(document) => ChatReply::Document(document),
        })
    }
}
