//! A model behind a chat-completions endpoint, for the embedded Runs API.
//!
//! | file | idea |
//! |---|---|
//! | `request.rs` | from a prompt to a request's body |
//! | `reply.rs` | from an answer's events to pieces of a reply |
//! | `failure.rs` | what a run fails with when there is no answer |
//!
//! Must hold:
//!
//! - One completion is one request. Its retries, connections and time limits are those of any
//!   request to an upstream; an answer that has begun is never asked for again.
//! - A reply that nobody takes any more closes its request at once.
//! - Nothing of a prompt or of an answer is in a log.

mod failure;
mod reply;
mod request;

use std::{sync::Arc, time::Duration};

use clap::Args;
use tokio::{
    sync::mpsc::{self, Sender},
    time::timeout,
};

use crate::{
    embedded::model::{Model, ModelChunk, PIECES, Prompt, Tokens, Unsupported},
    error::Idempotency,
    setting::{defaults, some, some_time},
    upstream::{ChatReply, Client, EventStream},
    v1::{Run, ThreadMessage},
};

/// How long the usage may take that some services send behind the last word.
const USAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What one reply may take.
#[derive(Debug, Clone, Args)]
pub struct ChatLimits {
    /// Tokens that the model reads and writes at most. Of a longer thread the oldest messages are
    /// left out, by an estimate.
    #[arg(id = "model-context-tokens", long, default_value = "128000", value_parser = some::<u32>)]
    pub context_tokens: u32,

    /// Time from a request to the last word of its reply.
    // A run has no more.
    #[arg(id = "model-timeout", long, default_value = "10m", value_parser = some_time)]
    pub time: Duration,

    /// Bytes of text, names and arguments in one reply of the model.
    #[arg(id = "model-max-reply-bytes", long, default_value_t = 1 << 20, value_parser = some::<usize>)]
    pub reply_bytes: usize,

    /// Tool calls in one reply of the model.
    #[arg(id = "model-max-tool-calls", long, default_value = "128")]
    pub tool_calls: usize,
}

impl Default for ChatLimits {
    fn default() -> Self {
        defaults()
    }
}

/// A model behind a chat-completions endpoint.
pub(crate) struct ChatModel(Arc<Endpoint>);

struct Endpoint {
    client: Client,
    name: Option<String>,
    idle: Duration,
    limits: ChatLimits,
}

impl ChatModel {
    /// The model that `client` reaches. `name` stands in every request in place of what runs and
    /// assistants name. A stream that is silent for `idle` has broken.
    pub(crate) fn new(
        client: Client,
        name: Option<String>,
        idle: Duration,
        limits: ChatLimits,
    ) -> Self {
        Self(Arc::new(Endpoint {
            client,
            name,
            idle,
            limits,
        }))
    }
}

impl Model for ChatModel {
    fn description(&self) -> &'static str {
        "Answers by the model at --model-url. It is always there."
    }

    fn reply(&self, prompt: Prompt) -> mpsc::Receiver<ModelChunk> {
        let (to, reply) = mpsc::channel(PIECES);
        let endpoint = Arc::clone(&self.0);
        tokio::spawn(async move {
            let limit = endpoint.limits.time;
            let answering = async {
                let last = timeout(limit, endpoint.answer(&prompt, &to)).await;
                let last = last.unwrap_or_else(|_| failure::too_slow(limit));
                // Fails only if nobody takes it any more.
                let _ = to.send(last).await;
            };
            tokio::select! {
                () = answering => {}
                () = to.closed() => {}
            }
        });
        reply
    }

    fn unsupported(&self, run: &Run, messages: &[&ThreadMessage]) -> Option<Unsupported> {
        request::unsupported(run, messages)
    }
}

impl Endpoint {
    /// Asks for a completion and hands on its pieces; gives the last one.
    async fn answer(&self, prompt: &Prompt, to: &Sender<ModelChunk>) -> ModelChunk {
        let context = i64::from(self.limits.context_tokens);
        let request = match request::of(prompt, self.name.as_deref(), context) {
            Ok(request) => request,
            Err(end) => return ModelChunk::End(end, Tokens::default()),
        };
        let mut reader = reply::Reader::new(&self.limits, request.tokens);
        let read = match self.client.chat_completion(request.body).await {
            Ok(ChatReply::Stream(stream)) => self.read_stream(stream, &mut reader, to).await,
            Ok(ChatReply::Document(text)) => hand_on(reader.document(&text), to).await,
            Err(error) => return failure::of(&error),
        };
        let ended = match read {
            Ok(()) => hand_on(reader.end(), to).await,
            Err(fault) => Err(fault),
        };
        match ended {
            Ok(()) => reader.last(),
            Err(fault) => self.failed(fault),
        }
    }

    /// Reads a stream until it is over or broken.
    async fn read_stream(
        &self,
        mut stream: Box<EventStream>,
        reader: &mut reply::Reader,
        to: &Sender<ModelChunk>,
    ) -> Result<(), reply::Fault> {
        loop {
            let idle = if reader.has_finished() {
                self.idle.min(USAGE_TIMEOUT)
            } else {
                self.idle
            };
            let pieces = match stream.next(idle).await {
                Ok(Some(frame)) if frame.is_done() => return reader.done(),
                Ok(Some(frame)) => reader.event(frame.data),
                // What counts is whether the last word came.
                Ok(None) => return Ok(()),
                Err(_) if reader.has_finished() => return Ok(()),
                Err(broken) => return Err(reply::Fault::Broken(broken.0)),
            };
            hand_on(pieces, to).await?;
        }
    }

    fn failed(&self, fault: reply::Fault) -> ModelChunk {
        match fault {
            reply::Fault::Error(data) => failure::of(
                &self
                    .client
                    .failed_by_event(&data, Idempotency::NonIdempotent),
            ),
            reply::Fault::Broken(why) => failure::broken(&why),
        }
    }
}

async fn hand_on(
    pieces: Result<Vec<ModelChunk>, reply::Fault>,
    to: &Sender<ModelChunk>,
) -> Result<(), reply::Fault> {
    for piece in pieces? {
        // Fails only if nobody takes it any more, which ends all of this.
        let _ = to.send(piece).await;
    }
    Ok(())
}
