//! The events of a run that this call started.
//!
//! Must hold: the end of the upstream's bytes is never quietly success. After `done`, or when the
//! bytes end, the run's last state decides: if it was sent, the stream ends with OK; if not, the
//! run is watched from here on, what was missed is named in a `gap`, and its last state is
//! synthesized. Before any run id is known there is nothing to look at, and the outcome is unknown.

use std::sync::Arc;

use async_stream::try_stream;
use tokio::time::timeout;
use tokio_stream::Stream;

use super::{
    Events, Options, Started, Streams, delivery,
    follow::{Follow, Followed},
    heartbeat::with_heartbeat,
    log::EventLog,
    polls::Interest,
    progress::{Progress, SharedResume, run_event},
    reader::{Reader, Source},
    received::{Received, received},
    watch::Subscription,
};
use crate::{
    error::{Delivery, Error, Idempotency},
    upstream::{Caller, UpstreamReply},
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
        let client = self.client.clone();
        self.start(reader, options, record, leave, async move {
            client.stream_create_run(&caller, &request).await
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
        let client = self.client.clone();
        self.start(reader, options, record, leave, async move {
            client.stream_create_thread_and_run(&caller, &request).await
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
            opened
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
        F: Future<Output = Result<UpstreamReply, Error>> + Send + 'static,
    {
        let permit = self.live_permit(&reader.caller);
        let opened = async move {
            let mut reader = reader;
            let opened = match permit {
                Ok(permit) => opening.await.map(|opened| (opened, permit)),
                Err(error) => Err(error),
            };
            match opened {
                Ok((UpstreamReply::Stream(stream, headers), permit)) => {
                    reader.source = Some(Source {
                        stream,
                        _permit: permit,
                    });
                    Ok((reader, headers, None))
                }
                Ok((UpstreamReply::Run(answer), _)) => {
                    reader
                        .progress
                        .knows(&answer.message.thread_id, &answer.message.id);
                    Ok((reader, answer.headers, Some(run_event(answer.message))))
                }
                Err(error) => Err((reader, error)),
            }
        };
        let (events, headers) = match record.0 {
            None => {
                let opened = if options.cancel_on_disconnect {
                    // If nobody waits for the task, what it gives is dropped, and the reader's drop
                    // cancels the run.
                    self.finish(opened).await?
                } else {
                    opened.await
                };
                let (reader, headers, first) = opened.map_err(|(_, error)| error)?;
                (Box::pin(events(reader, first)) as Events, headers)
            }
            Some(recorded) => {
                let Recorded { log, caller, call } = *recorded;
                let streams = self.clone();
                // What a delivery does when nobody takes it is what it does when its caller leaves.
                let recorded = self.finish(async move {
                    let (reader, headers, first) = opened.await.map_err(|(_, error)| error)?;
                    let resume = reader.progress.shared();
                    let events: Events = Box::pin(events(reader, first));
                    let recording = streams.record(&log, &caller, resume, events);
                    let delivery =
                        delivery::Delivery::of(&streams, &log, caller, call, options, recording);
                    Ok::<_, Error>((delivery, headers))
                });
                let (delivery, headers) = recorded.await??;
                (delivery.events(leave), headers)
            }
        };
        Ok(Started {
            headers,
            events: with_heartbeat(events, options.heartbeat),
        })
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

/// All events, from the first one (of an upstream that answered with the run alone) to the run's
/// last state.
fn events(
    mut reader: Reader,
    first: Option<RunEvent>,
) -> impl Stream<Item = Result<RunEvent, Error>> + Send {
    try_stream! {
        let streams = reader.source.is_some();
        if let Some(event) = first {
            reader.sends(&event);
            yield event;
        }
        while let Some(event) = next(&mut reader).await? {
            reader.sends(&event);
            yield event;
        }
        reader.source = None;
        if !reader.progress.terminal_sent() {
            if streams {
                cut(&reader);
            }
            for await event in rest(&mut reader) {
                yield event?;
            }
        }
    }
}

/// The next event of the upstream's stream; `None` once it is over, in whatever way but an error of
/// the upstream's own.
pub(super) async fn next(reader: &mut Reader) -> Result<Option<RunEvent>, Error> {
    let told = reader.progress.terminal_sent();
    let limits = &reader.streams.limits;
    let Some(source) = &mut reader.source else {
        return Ok(None);
    };
    let next = source.stream.next(limits.idle);
    // After the run's last event only `done` is to come, and some upstreams never send it.
    let next = if told {
        timeout(limits.linger, next).await.unwrap_or(Ok(None))
    } else {
        next.await
    };
    let frame = match next {
        Ok(Some(frame)) => frame,
        Ok(None) => return Ok(None),
        Err(cut) => {
            let super::Resume {
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
            Err(reader.interrupted(reader.streams.client.failed_by_event(&data)))
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
