//! Signs of life in quiet streams. Proxies end streams on which nothing happens, and HTTP/2 pings
//! do not count for them.

use std::time::Duration;

use async_stream::stream;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;

use super::StreamedEvents;
use crate::v1::{RunEvent, RunEventType};

/// The same events, and a heartbeat whenever nothing happened for `interval`.
pub(super) fn with_heartbeat(
    mut events: StreamedEvents,
    interval: Option<Duration>,
) -> StreamedEvents {
    let Some(interval) = interval else {
        return events;
    };
    Box::pin(stream! {
        loop {
            // Not a point in time: an interval may be longer than any clock goes.
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => yield event,
                    None => break,
                },
                () = sleep(interval) => {
                    yield Ok(RunEvent {
                        r#type: RunEventType::Heartbeat.into(),
                        synthesized: true,
                        ..RunEvent::default()
                    }
                    .into());
                }
            }
        }
    })
}
