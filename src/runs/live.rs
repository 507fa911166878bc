//! The events of a run that this call started.
//!
//! Must hold: the end of the upstream's bytes is never quietly success. After `done`, or when the
//! bytes end, the run's last state decides: if it was sent, the stream ends with OK; if not, the
//! run is watched from here on, what was missed is named in a `gap`, and its last state is
//! synthesized. Before any run id is known there is nothing to look at, and the outcome is unknown.

use std::sync::Arc;

use async_stream::try_stream;
use http::HeaderMap;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::{
    Options, Started, StreamedEvents, Streams,
    creates::{Begun, Disconnect, Ids},
    delivery,
    follow::{Follow, Followed},
    heartbeat::with_heartbeat,
    log::{EventLog, Position},
    polls::Interest,
    progress::{Progress, SharedResume},
    reader::Reader,
    received::{Received, received},
    watch::Subscription,
};
use crate::{
    error::{Delivery, Error, Idempotency, Resume},
    shares::Permit,
    upstream::Caller,
    v1::{
        RunEvent, RunEventType, StreamCreateRunRequest, StreamCreateThreadAndRunRequest,
        StreamSubmitToolOutputsRequest,
    },
};

impl Streams {
    /// Creates a run and gives its events. `resume` says at any time how to resume them.
    pub async fn create_run(
        &self,
        caller: Caller,
        request: StreamCreateRunRequest,
        resume: SharedResume,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Started, Error> {
        let options = Options::new(request.options.as_ref())?;
        let record = self.recorded(&caller, options, &resume)?;
        let progress = record.progress(&resume, &request.thread_id, "");
        let reader = Reader::new(self, &caller, progress, options);
        let (streams, disconnect) = (self.clone(), CancellationToken::new());
        let _left = disconnect.clone().drop_guard();
        self.start(reader, options, record, leave, async move {
            let disconnect = Disconnect::Token(&disconnect);
            let rpc = "StreamCreateRun";
            streams
                .create_unless(rpc, &caller, &request, disconnect)
                .await
        })
        .await
    }

    /// Creates a thread and a run and gives their events. `resume` says at any time how to resume
    /// them.
    pub async fn create_thread_and_run(
        &self,
        caller: Caller,
        request: StreamCreateThreadAndRunRequest,
        resume: SharedResume,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Started, Error> {
        let options = Options::new(request.options.as_ref())?;
        let record = self.recorded(&caller, options, &resume)?;
        let reader = Reader::new(self, &caller, record.progress(&resume, "", ""), options);
        let streams = self.clone();
        self.start(reader, options, record, leave, async move {
            let rpc = "StreamCreateThreadAndRun";
            streams.create(rpc, &caller, &request).await
        })
        .await
    }

    /// Submits tool outputs and gives the run's further events. `resume` says at any time how to
    /// resume them.
    pub async fn submit_tool_outputs(
        &self,
        caller: Caller,
        request: StreamSubmitToolOutputsRequest,
        resume: SharedResume,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Started, Error> {
        let options = Options::new(request.options.as_ref())?;
        let record = self.recorded(&caller, options, &resume)?;
        let progress = record.progress(&resume, &request.thread_id, &request.run_id);
        let reader = Reader::new(self, &caller, progress, options);
        let streams = self.clone();
        let opening = async move {
            let opened = streams
                .client
                .stream_submit_tool_outputs(&caller, &request)
                .await;
            streams.touched(&request.thread_id, &request.run_id);
            opened.map(Begun::from)
        };
        self.start(reader, options, record, leave, opening).await
    }

    /// Opens the upstream's stream. If the run is to be cancelled when its reader leaves, opening
    /// goes on when it leaves meanwhile: without the answer nobody would know which run to cancel.
    /// It goes on as well if the run is to be recorded, and then that goes on, too.
    async fn start<F>(
        &self,
        reader: Reader,
        options: Options,
        record: Record,
        leave: impl Future<Output = ()> + Send + 'static,
        opening: F,
    ) -> Result<Started, Error>
    where
        F: Future<Output = Result<Begun, Error>> + Send + 'static,
    {
        let permit = self.live_permit(&reader.caller);
        // In a box: what it needs, a stream does not need once it has begun.
        let opened = Box::pin(open(reader, permit, opening));
        let (events, headers) = match record.0 {
            None => {
                let opened = if options.cancel_on_disconnect {
                    // If nobody waits for the task, what it gives is dropped, and the reader's drop
                    // cancels the run.
                    self.finish(opened).await?
                } else {
                    opened.await
                };
                match opened.map_err(|(_, error)| error)? {
                    Opened::Made(reader, headers, first) => {
                        (Box::pin(events(reader, first)) as StreamedEvents, headers)
                    }
                    Opened::Repeat(reader, ids) => {
                        let call = reader.progress.shared();
                        let repeat = self.repeat(reader, &ids, options, call, leave);
                        return Box::pin(repeat).await;
                    }
                }
            }
            Some(recorded) => {
                let Recorded { log, caller, call } = *recorded;
                let (streams, of_repeat) = (self.clone(), call.clone());
                // What a delivery does when nobody takes it is what it does when its caller leaves.
                let recorded = self.finish(async move {
                    let opened = opened.await.map_err(|(_, error)| error)?;
                    let (reader, headers, first) = match opened {
                        Opened::Made(reader, headers, first) => (reader, headers, first),
                        Opened::Repeat(reader, ids) => return Ok(Err((reader, ids))),
                    };
                    let resume = reader.progress.shared();
                    let events = Box::pin(events(reader, first));
                    let recording = streams.record(&log, &caller, resume, events);
                    let delivery =
                        delivery::Delivery::of(&streams, &log, caller, call, options, recording);
                    Ok::<_, Error>(Ok((delivery, headers)))
                });
                match recorded.await?? {
                    Ok((delivery, headers)) => (delivery.events(leave), headers),
                    Err((reader, ids)) => {
                        let repeat = self.repeat(reader, &ids, options, of_repeat, leave);
                        return Box::pin(repeat).await;
                    }
                }
            }
        };
        Ok(Started {
            headers,
            events: with_heartbeat(events, options.heartbeat),
        })
    }

    /// Follows a run that was made before, or by another call. It is not this call's to cancel or to
    /// record.
    async fn repeat(
        &self,
        mut reader: Reader,
        ids: &Ids,
        options: Options,
        call: SharedResume,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Started, Error> {
        reader.keeps_run();
        let progress = Progress::new(call, &ids.thread_id, &ids.id);
        // By the call that made it, which asks for the same.
        let is_recorded = options.resumable;
        let options = Options {
            cancel_on_disconnect: false,
            resumable: false,
            ..options
        };
        let caller = reader.caller.clone();
        if is_recorded {
            self.wait_for_log(&caller, ids).await;
        }
        let from_the_beginning = ("after_position", "");
        let delivery =
            delivery::Delivery::after(self, caller, progress, options, from_the_beginning).await?;
        Ok(with_heartbeat(delivery.events(leave), options.heartbeat).into())
    }

    /// Waits until there is a log of a run that another call has made just now. There is none if the
    /// run was not recorded, or is forgotten.
    async fn wait_for_log(&self, caller: &Caller, ids: &Ids) {
        let Some((log, keys)) = &self.log else {
            return;
        };
        let key = keys.key(caller, &ids.thread_id, &ids.id);
        let mut following = log.follow(&key);
        let is_there = async {
            loop {
                following.begin_to_read();
                if !matches!(log.read(&key, Position::START).await, Ok(None)) {
                    break;
                }
                following.more().await;
            }
        };
        _ = timeout(self.log_limits().timeout, is_there).await;
    }

    /// Does work to its end, whoever waits for it.
    fn finish<T, F>(&self, work: F) -> impl Future<Output = Result<T, Error>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let task = self.detached.spawn(work);
        async move {
            task.await.map_err(|_| Error::Unusable {
                what: "the request was aborted".to_owned(),
                request_id: None,
            })
        }
    }

    /// How a stream with these options is recorded.
    pub(super) fn recorded(
        &self,
        caller: &Caller,
        options: Options,
        resume: &SharedResume,
    ) -> Result<Record, Error> {
        let log = self.log_for(options)?;
        Ok(Record(log.map(|log| {
            Box::new(Recorded {
                log,
                caller: caller.clone(),
                call: resume.clone(),
            })
        })))
    }
}

/// What opening the upstream's stream came to.
enum Opened {
    /// The run is this call's; these are its first events.
    Made(Reader, HeaderMap, Vec<RunEvent>),
    /// The run was made before.
    Repeat(Reader, Ids),
}

async fn open(
    mut reader: Reader,
    permit: Result<Permit, Error>,
    opening: impl Future<Output = Result<Begun, Error>>,
) -> Result<Opened, (Reader, Error)> {
    let opened = match permit {
        Ok(permit) => opening.await.map(|begun| (begun, permit)),
        Err(error) => Err(error),
    };
    let (begun, permit) = match opened {
        Ok(opened) => opened,
        Err(error) => return Err((reader, error)),
    };
    Ok(match begun {
        Begun::Made { reply, events, .. } => {
            let (headers, events) = reader.opened(reply, events, permit);
            Opened::Made(reader, headers, events)
        }
        Begun::Repeat(ids) => Opened::Repeat(reader, ids),
    })
}

/// How a stream is recorded, if it is.
pub(super) struct Record(pub(super) Option<Box<Recorded>>);

pub(super) struct Recorded {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) caller: Caller,
    /// How its call is resumed.
    pub(super) call: SharedResume,
}

impl Record {
    /// What the stream's source has sent: what is recorded runs ahead of the call.
    pub(super) fn progress(
        &self,
        resume: &SharedResume,
        thread_id: &str,
        run_id: &str,
    ) -> Progress {
        let own = match self.0 {
            Some(_) => resume.ahead(),
            None => resume.clone(),
        };
        Progress::new(own, thread_id, run_id)
    }
}

/// All events, from the first ones (those that were read already, or of an upstream that answered
/// with the run alone) to the run's last state.
fn events<E: From<RunEvent> + Send>(
    mut reader: Reader,
    first: Vec<RunEvent>,
) -> impl Stream<Item = Result<E, Error>> + Send {
    try_stream! {
        let streams = reader.source.is_some();
        for event in first {
            reader.sends(&event);
            yield event.into();
        }
        while let Some(event) = next(&mut reader).await? {
            reader.sends(&event);
            yield event.into();
        }
        reader.source = None;
        if !reader.progress.terminal_sent() {
            if streams {
                cut(&reader);
            }
            for await event in rest(&mut reader) {
                yield event?.into();
            }
        }
    }
}

/// The next event of the upstream's stream; `None` once it is over, in whatever way but an error of
/// the upstream's own. May be dropped while it waits: nothing is lost.
pub(super) async fn next(reader: &mut Reader) -> Result<Option<RunEvent>, Error> {
    let told = reader.progress.terminal_sent();
    let limits = &reader.streams.limits;
    let Some(source) = &mut reader.source else {
        return Ok(None);
    };
    let next = source.stream.next(limits.idle);
    // After the run's last event only `done` is to come, and some upstreams never send it.
    let next = if told {
        let until = *source
            .done_until
            .get_or_insert_with(|| Instant::now() + limits.linger);
        timeout_at(until, next).await.unwrap_or(Ok(None))
    } else {
        next.await
    };
    source.done_until = None;
    let frame = match next {
        Ok(Some(frame)) => frame,
        Ok(None) => return Ok(None),
        Err(cut) => {
            let Resume {
                thread_id, run_id, ..
            } = reader.progress.resume();
            tracing::warn!(
                cause = cut.0,
                told,
                thread_id,
                run_id,
                "the upstream's stream was cut"
            );
            return Ok(None);
        }
    };
    match received(frame) {
        Received::Event(event) => Ok(Some(event)),
        // The upstream's word for the end of a stream is passed on only where it is true.
        Received::Done => {
            reader.source = None;
            let event = RunEvent {
                r#type: RunEventType::Done.into(),
                payload: None,
                synthesized: false,
                position: String::new(),
            };
            Ok(told.then_some(event))
        }
        Received::Error(data) => {
            // Once it is known which run it is, its caller goes on with that one.
            let idempotency = if reader.progress.resume().run_id.is_empty() {
                Idempotency::NonIdempotent
            } else {
                Idempotency::Idempotent
            };
            let client = &reader.streams.client;
            Err(reader.interrupted(client.failed_by_event(&data, idempotency)))
        }
    }
}

/// What comes after the upstream's stream, if that was cut or there was none: the run's changes by
/// polling, what was missed, its last state.
fn rest(reader: &mut Reader) -> impl Stream<Item = Result<RunEvent, Error>> + Send {
    try_stream! {
        let mut follow = follow(reader)?;
        loop {
            let (events, settled) = match follow.next(&reader.progress).await.map_err(|error| reader.interrupted(error))? {
                Followed::On(events) => (events, false),
                Followed::Settled(events, _) => (events, true),
            };
            for event in events {
                reader.sends(&event);
                yield event;
            }
            if settled {
                break;
            }
        }
    }
}

/// Counts a stream that ended before its run did.
pub(super) fn cut(reader: &Reader) {
    reader
        .streams
        .client
        .telemetry()
        .metrics()
        .streams_cut
        .inc();
}

/// Begins to follow the run.
pub(super) fn follow(reader: &Reader) -> Result<Follow, Error> {
    let follow = watch(reader, Interest::Now(reader.parts)).map(Follow::new)?;
    let client = reader.streams.client.clone();
    Ok(follow.reading(client, reader.caller.clone()))
}

/// Joins the run's watchers.
pub(super) fn watch(reader: &Reader, interest: Interest) -> Result<Subscription, Error> {
    let resume = reader.progress.resume();
    if resume.run_id.is_empty() {
        let cause = "the upstream's stream ended before it named the run".to_owned();
        return Err(reader.interrupted(Error::Lost {
            delivery: Delivery::Unknown,
            idempotency: Idempotency::NonIdempotent,
            cause,
            timed_out: false,
            mendable: false,
            request_id: None,
        }));
    }
    let watch =
        reader
            .streams
            .watches
            .join(&reader.caller, &resume.thread_id, &resume.run_id, interest);
    watch.map_err(|error| reader.interrupted(error))
}
