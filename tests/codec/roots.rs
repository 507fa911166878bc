//! The messages that are documents of their own, and what reading and writing one must give. Shared
//! with the fuzz targets.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use runs_gateway::{
    json::{self, Document},
    v1,
    wire::{self, Wire},
};

use crate::oracle;

/// A message as the tests see it: what the codec reads and what it writes.
pub(crate) struct Root {
    pub(crate) name: &'static str,
    pub(crate) read: fn(&[u8]) -> Result<Read, json::Malformed>,
}

/// What became of a document.
pub(crate) struct Read {
    /// The message in protobuf's own bytes.
    pub(crate) message: Vec<u8>,
    /// What is written for it.
    pub(crate) written: Vec<u8>,
}

fn read<M: Document + Message + Wire + PartialEq>(text: &[u8]) -> Result<Read, json::Malformed> {
    let message: M = json::decode(text)?;
    // The order of a document's members is remembered, and tried first: the same document, where
    // all guesses are right.
    assert!(
        message == json::decode(text)?,
        "read again, it is another message"
    );
    let written = json::encode(&message).expect("what was read can be written");
    let bytes = wire::encode(&message, <[u8]>::to_vec);
    assert!(
        bytes == message.encode_to_vec(),
        "protobuf that is not prost's"
    );
    Ok(Read {
        message: bytes,
        written,
    })
}

macro_rules! roots {
    ($($message:ident),*) => { [$(Root { name: stringify!($message), read: read::<v1::$message> }),*] };
}

/// Everything that is sent or received as a document of its own.
pub(crate) const ROOTS: [Root; 22] = roots![
    Run,
    RunStep,
    ListRunsResponse,
    ListRunStepsResponse,
    ThreadMessage,
    ThreadResource,
    MessageDelta,
    RunStepDelta,
    RunSpec,
    ThreadAndRunSpec,
    RunUpdate,
    ToolOutputs,
    Assistant,
    AssistantSpec,
    AssistantUpdate,
    DeleteAssistantResponse,
    DeleteMessageResponse,
    DeleteThreadResponse,
    ListAssistantsResponse,
    ListMessagesResponse,
    MessageUpdate,
    ThreadUpdate
];

pub(crate) fn descriptor(root: &Root) -> MessageDescriptor {
    let pool = DescriptorPool::decode(v1::DESCRIPTOR).expect("the descriptor set is whole");
    pool.get_message_by_name(&format!("runsgateway.v1.{}", root.name))
        .expect("the contract has the message")
}

/// Reads and writes a document; gives how many of its members were in `extra_json`.
pub(crate) fn round(root: &Root, descriptor: &MessageDescriptor, text: &str) -> usize {
    let Read { message, written } = (root.read)(text.as_bytes()).expect("it is read");
    let (before, after) = (oracle::parse(text.as_bytes()), oracle::parse(&written));
    let (before_normal, after_normal) = (
        oracle::normal(&before, descriptor),
        oracle::normal(&after, descriptor),
    );
    assert_eq!(
        before_normal,
        after_normal,
        "written as {}",
        String::from_utf8_lossy(&written)
    );
    let message =
        DynamicMessage::decode(descriptor.clone(), &*message).expect("protobuf reads its own");
    oracle::extra(&before, &message, root.name).unwrap_or_else(|wrong| panic!("{wrong}"))
}
