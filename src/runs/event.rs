//! An event as it is sent: a message, or a delta as it stands in the log.
//!
//! Must hold:
//!
//! - A delta that is recorded is encoded once: the log, and each caller that reads it, has the same
//!   bytes. Its position is written behind them, as the last field.
//! - Every other event is a message: few come, and a stream goes by what they say.

use bytes::Bytes;
use prost::{DecodeError, Message as _, encoding::decode_varint};

use super::log::BoundPosition;
use crate::{
    v1::{Run, RunEvent, RunEventType, run_event::Payload},
    wire::{Out, Wire},
};

/// The key of the field `RunEvent.position`, as protobuf has it: number and wire type.
const POSITION: u8 = 11 << 3 | 2;

/// An event as it is sent.
#[derive(Debug)]
pub enum StreamedEvent {
    /// A message.
    Message(RunEvent),
    /// A delta that was recorded, or was to be.
    Delta(EncodedDelta),
}

/// A delta that is encoded.
#[derive(Debug)]
pub struct EncodedDelta {
    kind: RunEventType,
    /// The event without its position.
    event: Bytes,
    /// Where its id stands in that: where it begins, and how long it is.
    id: (u8, u8),
    position: Option<BoundPosition>,
}

impl StreamedEvent {
    /// Takes an event as it was encoded for the log, and its position there if it has one.
    #[inline]
    pub(super) fn read(event: Bytes, position: Option<BoundPosition>) -> Result<Self, DecodeError> {
        if let Some((kind, id)) = find_delta(&event) {
            return Ok(Self::Delta(EncodedDelta {
                kind,
                event,
                id,
                position,
            }));
        }
        let mut event = RunEvent::decode(event)?;
        event.position = position.map_or_else(String::new, |position| position.to_string());
        Ok(Self::Message(event))
    }

    /// Its type.
    pub fn kind(&self) -> RunEventType {
        match self {
            Self::Message(event) => event.r#type(),
            Self::Delta(delta) => delta.kind,
        }
    }

    /// The run that it tells of.
    pub fn run(&self) -> Option<&Run> {
        match self.message()?.payload.as_ref()? {
            Payload::Run(run) => Some(run),
            _ => None,
        }
    }

    /// The message, if it is no encoded delta.
    pub fn message(&self) -> Option<&RunEvent> {
        match self {
            Self::Message(event) => Some(event),
            Self::Delta(_) => None,
        }
    }
}

impl From<RunEvent> for StreamedEvent {
    fn from(event: RunEvent) -> Self {
        Self::Message(event)
    }
}

impl EncodedDelta {
    pub(super) fn kind(&self) -> RunEventType {
        self.kind
    }

    /// The id of the message or the step that it adds to: text.
    pub(super) fn id(&self) -> &[u8] {
        let (begin, length) = (usize::from(self.id.0), usize::from(self.id.1));
        &self.event[begin..begin + length]
    }

    pub(super) fn position(&self) -> Option<BoundPosition> {
        self.position
    }
}

#[expect(private_interfaces, reason = "sealed")]
impl Wire for StreamedEvent {
    fn write(&self, out: &mut Out) {
        match self {
            Self::Message(event) => event.write(out),
            Self::Delta(_) => self.parts(|part| out.encoded(part)),
        }
    }

    fn parts(&self, mut take: impl FnMut(&[u8])) {
        match self {
            Self::Message(event) => event.parts(take),
            Self::Delta(delta) => {
                take(&delta.event);
                if let Some(position) = &delta.position {
                    position.write(POSITION, take);
                }
            }
        }
    }
}

/// The type of a delta and where its id stands, if `event` is one as [`crate::wire`] writes it: its
/// type, then the payload and no more, whose first field is the id.
#[inline]
fn find_delta(event: &[u8]) -> Option<(RunEventType, (u8, u8))> {
    /// Keys of fields: a number, and how the value is written.
    const TYPE: u8 = 1 << 3;
    const STEP_DELTA: u8 = 5 << 3 | 2;
    const MESSAGE_DELTA: u8 = 7 << 3 | 2;
    const ID: u8 = 1 << 3 | 2;
    let (kind, mut payload) = match event {
        [TYPE, kind, STEP_DELTA | MESSAGE_DELTA, payload @ ..] => (*kind, payload),
        _ => return None,
    };
    let kind = RunEventType::try_from(i32::from(kind)).ok()?;
    if !matches!(
        kind,
        RunEventType::ThreadMessageDelta | RunEventType::ThreadRunStepDelta
    ) {
        return None;
    }
    let length = decode_varint(&mut payload).ok()?;
    if length != payload.len() as u64 {
        return None;
    }
    match payload {
        [ID, length @ 0..0x80, id @ ..] => {
            let begin = u8::try_from(event.len() - id.len()).ok()?;
            (usize::from(*length) <= id.len()).then_some((kind, (begin, *length)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        runs::log::{Key, Position},
        v1::{MessageDelta, RunStepDelta},
        wire,
    };

    fn events() -> Vec<RunEvent> {
        let event = |kind: RunEventType, payload| RunEvent {
            r#type: kind.into(),
            payload: Some(payload),
            ..RunEvent::default()
        };
        let message = |id: &str, extra: usize| {
            Payload::MessageDelta(Box::new(MessageDelta {
                id: id.to_owned(),
                extra_json: "x".repeat(extra),
                ..MessageDelta::default()
            }))
        };
        let step = Payload::RunStepDelta(Box::new(RunStepDelta {
            id: "step_1".to_owned(),
            ..RunStepDelta::default()
        }));
        let delta = RunEventType::ThreadMessageDelta;
        vec![
            event(delta, message("msg_1", 0)),
            event(delta, message("msg_1", 100_000)),
            event(RunEventType::ThreadRunStepDelta, step.clone()),
            // Those that are read as messages.
            event(delta, message("", 0)),
            event(delta, message(&"i".repeat(200), 0)),
            event(RunEventType::Unspecified, step),
            RunEvent {
                synthesized: true,
                ..event(delta, message("msg_1", 0))
            },
            event(delta, Payload::Unknown(Box::default())),
            event(RunEventType::Gap, Payload::Gap(Box::default())),
            RunEvent::default(),
        ]
    }

    #[test]
    fn what_is_sent_of_a_recorded_event_is_the_event_with_its_position() {
        let key = Key::new("a");
        for (index, event) in events().into_iter().enumerate() {
            let recorded = Bytes::from(event.encode_to_vec());
            for position in [
                None,
                Some(Position::new(1_764_672_000_123, 456).bound_to(&key)),
            ] {
                let read = StreamedEvent::read(recorded.clone(), position).expect("an event");
                assert_eq!(
                    matches!(read, StreamedEvent::Delta(_)),
                    index < 3,
                    "{index}"
                );
                assert_eq!(read.kind(), event.r#type());
                let (mut sent, written) = (Vec::new(), wire::encode(&read, <[u8]>::to_vec));
                read.parts(|part| sent.extend_from_slice(part));
                assert_eq!(sent, written);
                let sent = RunEvent::decode(&*sent).expect("an event");
                let position = position.map_or_else(String::new, |it| it.to_string());
                let expected = RunEvent {
                    position,
                    ..event.clone()
                };
                assert_eq!(sent, expected);
                if let StreamedEvent::Delta(delta) = read {
                    assert!([&b"msg_1"[..], b"step_1"].contains(&delta.id()), "{index}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_event_is_an_error_and_no_delta() {
        let event = Bytes::from(events()[0].encode_to_vec());
        for end in 1..event.len() {
            assert!(
                !matches!(
                    StreamedEvent::read(event.slice(..end), None),
                    Ok(StreamedEvent::Delta(_))
                ),
                "{end}"
            );
        }
    }
}
