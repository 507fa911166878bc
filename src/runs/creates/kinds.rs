//! The creates: what each sends, how what it made is found again, and what its repeats get.
//!
//! Must hold: a stream that is marked is given on only once it has named its run, so that others can
//! follow the run whatever becomes of the stream.

use std::sync::Arc;

use http::HeaderMap;

use super::{Create, Halves, Ids, Made};
use crate::{
    error::{Delivery, Error, Idempotency},
    runs::{
        Streams,
        progress::{Progress, SharedResume, synthesized},
        received::{Received, received},
    },
    upstream::{Answer, Caller, Client, CreateMark, EventStream, UpstreamReply},
    v1::{
        Assistant, CreateAssistantRequest, CreateMessageRequest, CreateRunRequest,
        CreateThreadAndRunRequest, CreateThreadRequest, GetAssistantRequest, GetMessageRequest,
        GetRunRequest, GetThreadRequest, Run, RunEvent, RunEventType, RunSpec,
        StreamCreateRunRequest, StreamCreateThreadAndRunRequest, ThreadAndRunSpec, ThreadMessage,
        ThreadResource, ThreadSpec, run_event::Payload,
    },
};

/// A stream that has not named its run by then will not.
const MAX_UNNAMED: usize = 16;

/// What a call has that asked for a run and its events.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It has made the run.
    Made {
        /// What the upstream said.
        reply: UpstreamReply,
        /// The first events, which were read of the stream to learn the run's name.
        events: Vec<RunEvent>,
        /// The run, if it has a name yet.
        ids: Option<Ids>,
    },
    /// The run was made before, or by another call.
    Repeat(Ids),
}

impl From<UpstreamReply> for Begun {
    fn from(reply: UpstreamReply) -> Self {
        let ids = match &reply {
            UpstreamReply::Run(answer) => Some(Ids::of_run(&answer.message)),
            UpstreamReply::Stream(..) => None,
        };
        Self::Made {
            reply,
            events: Vec::new(),
            ids,
        }
    }
}

impl Ids {
    fn of_run(run: &Run) -> Self {
        Self {
            thread_id: run.thread_id.clone(),
            id: run.id.clone(),
        }
    }
}

/// The same answer once more.
fn copy<M: Clone>(answer: &Answer<M>) -> Answer<M> {
    Answer {
        message: answer.message.clone(),
        headers: answer.headers.clone(),
    }
}

/// What others have of a unary answer.
fn shared<M: Clone + Send + Sync + 'static>(ids: Ids, answer: &Answer<M>) -> Made {
    Made {
        ids,
        answer: Some(Arc::new(copy(answer))),
    }
}

/// The answer that another call got, if it is still there.
fn answered<M: Clone + Send + Sync + 'static>(made: &Made) -> Option<Answer<M>> {
    let answer = made.answer.as_ref()?;
    answer.downcast_ref().map(copy)
}

/// What all creates have in common that are one REST request.
macro_rules! one_request {
    ($thread_id:expr, $policy:expr) => {
        type OnThread = Self;

        fn request_id(&self) -> &str {
            &self.request_id
        }

        fn on_active_run(&self) -> i32 {
            let policy: fn(&Self) -> i32 = $policy;
            policy(self)
        }

        fn thread_id(&self) -> &str {
            let thread_id: fn(&Self) -> &str = $thread_id;
            thread_id(self)
        }
    };
}

/// How a unary create that can be looked for is made, found and given again.
macro_rules! unary {
    ($made:ident, $create:ident) => {
        type Got = Answer<$made>;

        fn mark(&self, client: &Client, caller: &Caller, rpc: &str) -> Result<CreateMark, Error> {
            client.create_mark(caller, rpc, &self.request_id, self)
        }

        async fn send(
            &self,
            streams: &Streams,
            caller: &Caller,
            mark: Option<&CreateMark>,
        ) -> Result<Self::Got, Error> {
            match mark {
                None => streams.client.$create(caller, self).await,
                Some(mark) => streams.client.create_marked(caller, self, mark).await,
            }
        }

        async fn find(
            &self,
            client: &Client,
            caller: &Caller,
            mark: &CreateMark,
        ) -> Result<Option<Self::Got>, Error> {
            client.find(caller, self.thread_id(), mark).await
        }
    };
}

impl Create for CreateRunRequest {
    one_request!(|it| &it.thread_id, |it| it.on_active_run);
    unary!(Run, create_run);

    fn run_id(got: &Answer<Run>) -> Option<&str> {
        Some(&got.message.id)
    }

    fn made(got: &Answer<Run>) -> Made {
        shared(Ids::of_run(&got.message), got)
    }

    async fn again(streams: &Streams, caller: &Caller, made: Made) -> Result<Answer<Run>, Error> {
        match answered(&made) {
            Some(answer) => Ok(answer),
            None => streams.run(caller, made.ids).await,
        }
    }
}

impl Create for CreateMessageRequest {
    one_request!(|it| &it.thread_id, |it| it.on_active_run);
    unary!(ThreadMessage, create_message);

    fn run_id(_: &Self::Got) -> Option<&str> {
        None
    }

    fn made(got: &Self::Got) -> Made {
        let ids = Ids {
            thread_id: got.message.thread_id.clone(),
            id: got.message.id.clone(),
        };
        shared(ids, got)
    }

    async fn again(streams: &Streams, caller: &Caller, made: Made) -> Result<Self::Got, Error> {
        if let Some(answer) = answered(&made) {
            return Ok(answer);
        }
        let request = GetMessageRequest {
            thread_id: made.ids.thread_id,
            message_id: made.ids.id,
        };
        streams.client.get_message(caller, &request).await
    }
}

impl Create for CreateAssistantRequest {
    one_request!(|_| "", |_| 0);
    unary!(Assistant, create_assistant);

    fn run_id(_: &Self::Got) -> Option<&str> {
        None
    }

    fn made(got: &Self::Got) -> Made {
        let ids = Ids {
            thread_id: String::new(),
            id: got.message.id.clone(),
        };
        shared(ids, got)
    }

    async fn again(streams: &Streams, caller: &Caller, made: Made) -> Result<Self::Got, Error> {
        if let Some(answer) = answered(&made) {
            return Ok(answer);
        }
        let request = GetAssistantRequest {
            assistant_id: made.ids.id,
        };
        streams.client.get_assistant(caller, &request).await
    }
}

impl Create for CreateThreadRequest {
    type Got = Answer<ThreadResource>;
    const IS_LISTED: bool = false;
    one_request!(|_| "", |_| 0);

    fn mark(&self, client: &Client, caller: &Caller, _: &str) -> Result<CreateMark, Error> {
        client.thread_mark(caller, &self.request_id, self)
    }

    async fn send(
        &self,
        streams: &Streams,
        caller: &Caller,
        _: Option<&CreateMark>,
    ) -> Result<Self::Got, Error> {
        streams.client.create_thread(caller, self).await
    }

    async fn find(
        &self,
        _: &Client,
        _: &Caller,
        _: &CreateMark,
    ) -> Result<Option<Self::Got>, Error> {
        Ok(None)
    }

    fn run_id(_: &Self::Got) -> Option<&str> {
        None
    }

    fn made(got: &Self::Got) -> Made {
        let ids = Ids {
            thread_id: String::new(),
            id: got.message.id.clone(),
        };
        shared(ids, got)
    }

    async fn again(streams: &Streams, caller: &Caller, made: Made) -> Result<Self::Got, Error> {
        if let Some(answer) = answered(&made) {
            return Ok(answer);
        }
        let request = GetThreadRequest {
            thread_id: made.ids.id,
        };
        streams.client.get_thread(caller, &request).await
    }
}

impl Create for CreateThreadAndRunRequest {
    type Got = Answer<Run>;
    type OnThread = CreateRunRequest;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn on_active_run(&self) -> i32 {
        0
    }

    fn thread_id(&self) -> &'static str {
        ""
    }

    fn mark(&self, client: &Client, caller: &Caller, rpc: &str) -> Result<CreateMark, Error> {
        client.create_mark(caller, rpc, &self.request_id, self)
    }

    async fn send(
        &self,
        streams: &Streams,
        caller: &Caller,
        _: Option<&CreateMark>,
    ) -> Result<Self::Got, Error> {
        streams.client.create_thread_and_run(caller, self).await
    }

    async fn find(
        &self,
        _: &Client,
        _: &Caller,
        _: &CreateMark,
    ) -> Result<Option<Self::Got>, Error> {
        Ok(None)
    }

    fn run_id(got: &Self::Got) -> Option<&str> {
        CreateRunRequest::run_id(got)
    }

    fn made(got: &Self::Got) -> Made {
        CreateRunRequest::made(got)
    }

    async fn again(streams: &Streams, caller: &Caller, made: Made) -> Result<Self::Got, Error> {
        CreateRunRequest::again(streams, caller, made).await
    }

    fn halves(&self) -> Result<Option<Halves<Self>>, Error> {
        let (thread, run) = halves(self.thread_and_run.as_ref())?;
        let second = |thread_id: &str| CreateRunRequest {
            thread_id: thread_id.to_owned(),
            run: Some(run),
            ..CreateRunRequest::default()
        };
        Ok(Some((thread, Box::new(second))))
    }
}

impl Create for StreamCreateRunRequest {
    type Got = Begun;
    one_request!(|it| &it.thread_id, |it| it.on_active_run);

    fn mark(&self, client: &Client, caller: &Caller, rpc: &str) -> Result<CreateMark, Error> {
        client.create_mark(caller, rpc, &self.request_id, self)
    }

    async fn send(
        &self,
        streams: &Streams,
        caller: &Caller,
        mark: Option<&CreateMark>,
    ) -> Result<Begun, Error> {
        let Some(mark) = mark else {
            return Ok(streams.client.stream_create_run(caller, self).await?.into());
        };
        let reply = streams.client.stream_create_marked(caller, self, mark);
        match reply.await? {
            UpstreamReply::Stream(stream, headers) => {
                named(streams, &self.thread_id, stream, headers).await
            }
            reply @ UpstreamReply::Run(_) => Ok(reply.into()),
        }
    }

    async fn find(
        &self,
        client: &Client,
        caller: &Caller,
        mark: &CreateMark,
    ) -> Result<Option<Begun>, Error> {
        let found = client.find(caller, &self.thread_id, mark).await?;
        Ok(found.map(|answer| UpstreamReply::Run(Box::new(answer)).into()))
    }

    fn repeated(found: Begun) -> Begun {
        match found {
            Begun::Made { ids: Some(ids), .. } => Begun::Repeat(ids),
            other => other,
        }
    }

    fn run_id(got: &Begun) -> Option<&str> {
        match got {
            Begun::Made { ids, .. } => ids.as_ref().map(|ids| &*ids.id),
            Begun::Repeat(ids) => Some(&ids.id),
        }
    }

    fn made(got: &Begun) -> Made {
        let ids = match got {
            Begun::Made { ids, .. } => ids.clone(),
            Begun::Repeat(ids) => Some(ids.clone()),
        };
        Made {
            ids: ids.unwrap_or_default(),
            answer: None,
        }
    }

    async fn again(_: &Streams, _: &Caller, made: Made) -> Result<Begun, Error> {
        Ok(Begun::Repeat(made.ids))
    }
}

impl Create for StreamCreateThreadAndRunRequest {
    type Got = Begun;
    type OnThread = StreamCreateRunRequest;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn on_active_run(&self) -> i32 {
        0
    }

    fn thread_id(&self) -> &'static str {
        ""
    }

    fn mark(&self, client: &Client, caller: &Caller, rpc: &str) -> Result<CreateMark, Error> {
        client.create_mark(caller, rpc, &self.request_id, self)
    }

    async fn send(
        &self,
        streams: &Streams,
        caller: &Caller,
        _: Option<&CreateMark>,
    ) -> Result<Begun, Error> {
        let reply = streams.client.stream_create_thread_and_run(caller, self);
        Ok(reply.await?.into())
    }

    async fn find(&self, _: &Client, _: &Caller, _: &CreateMark) -> Result<Option<Begun>, Error> {
        Ok(None)
    }

    fn repeated(found: Begun) -> Begun {
        StreamCreateRunRequest::repeated(found)
    }

    fn run_id(got: &Begun) -> Option<&str> {
        StreamCreateRunRequest::run_id(got)
    }

    fn made(got: &Begun) -> Made {
        StreamCreateRunRequest::made(got)
    }

    async fn again(streams: &Streams, caller: &Caller, made: Made) -> Result<Begun, Error> {
        StreamCreateRunRequest::again(streams, caller, made).await
    }

    fn halves(&self) -> Result<Option<Halves<Self>>, Error> {
        let (thread, run) = halves(self.thread_and_run.as_ref())?;
        let second = |thread_id: &str| StreamCreateRunRequest {
            thread_id: thread_id.to_owned(),
            run: Some(run),
            ..StreamCreateRunRequest::default()
        };
        Ok(Some((thread, Box::new(second))))
    }

    fn joined(mut got: Begun, thread: Box<ThreadResource>) -> Begun {
        if let Begun::Made { events, .. } = &mut got {
            let kind = RunEventType::ThreadCreated;
            events.insert(0, synthesized(kind, Payload::Thread(thread)));
        }
        got
    }
}

/// A thread and a run on it as two requests.
fn halves(spec: Option<&ThreadAndRunSpec>) -> Result<(CreateThreadRequest, RunSpec), Error> {
    let spec = spec.cloned().unwrap_or_default();
    let mut thread = spec.thread.unwrap_or_default();
    // A run on a thread that is there takes none: they are the thread's.
    if spec.tool_resources.is_some() {
        if thread.tool_resources.is_some() {
            return Err(Error::invalid(
                "thread_and_run.tool_resources",
                "must not be set beside thread.tool_resources: with a `request_id` the thread is made first",
            ));
        }
        thread.tool_resources = spec.tool_resources;
    }
    let run = RunSpec {
        assistant_id: spec.assistant_id,
        model: spec.model,
        instructions: spec.instructions,
        tools: spec.tools,
        metadata: spec.metadata,
        temperature: spec.temperature,
        top_p: spec.top_p,
        max_prompt_tokens: spec.max_prompt_tokens,
        max_completion_tokens: spec.max_completion_tokens,
        truncation_strategy: spec.truncation_strategy,
        tool_choice: spec.tool_choice,
        parallel_tool_calls: spec.parallel_tool_calls,
        response_format: spec.response_format,
        extra_json: spec.extra_json,
        ..RunSpec::default()
    };
    let thread = Some(thread).filter(|thread| *thread != ThreadSpec::default());
    let thread = CreateThreadRequest {
        thread,
        ..CreateThreadRequest::default()
    };
    Ok((thread, run))
}

/// Reads a stream until it has named its run.
async fn named(
    streams: &Streams,
    thread_id: &str,
    mut stream: Box<EventStream>,
    headers: HeaderMap,
) -> Result<Begun, Error> {
    let mut progress = Progress::new(SharedResume::default(), thread_id, "");
    let mut events = Vec::new();
    while events.len() < MAX_UNNAMED {
        let Ok(Some(frame)) = stream.next(streams.limits.idle).await else {
            break;
        };
        match received(frame) {
            Received::Event(event) => {
                progress.sent(&event);
                events.push(event);
            }
            Received::Done => break,
            Received::Error(data) => {
                return Err(streams
                    .client
                    .failed_by_event(&data, Idempotency::NonIdempotent));
            }
        }
        let resume = progress.resume();
        if !resume.run_id.is_empty() {
            return Ok(Begun::Made {
                reply: UpstreamReply::Stream(stream, headers),
                events,
                ids: Some(Ids {
                    thread_id: resume.thread_id,
                    id: resume.run_id,
                }),
            });
        }
    }
    Err(Error::Lost {
        delivery: Delivery::Unknown,
        idempotency: Idempotency::NonIdempotent,
        cause: "the upstream's stream ended before it named the run".to_owned(),
        timed_out: false,
        mendable: false,
        request_id: None,
    })
}

impl Streams {
    /// A run that was made.
    pub(in crate::runs) async fn run(
        &self,
        caller: &Caller,
        ids: Ids,
    ) -> Result<Answer<Run>, Error> {
        let request = GetRunRequest {
            thread_id: ids.thread_id,
            run_id: ids.id,
        };
        self.client.get_run(caller, &request).await
    }
}
