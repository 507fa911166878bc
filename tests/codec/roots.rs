//! The messages that are documents of their own, and what reading and writing one must give. Shared
//! with the fuzz targets and the end-to-end tests.
//!
//! Must hold: the table has exactly the bodies and the answers of the contract's REST calls, and
//! what the events of streams carry (`main.rs` compares).

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use runs_gateway::{
    json::{self, Document, Violation},
    v1,
    wire::{self, Wire},
};

use crate::oracle;

/// A message as the tests see it: what the codec reads and what it writes.
pub(crate) struct Root {
    pub(crate) name: &'static str,
    pub(crate) read: fn(&[u8]) -> Result<Read, json::Malformed>,
    /// What a message, in protobuf's own bytes, is as the body of a request; `None` if the bytes
    /// are no such message.
    pub(crate) send: Send,
    /// What it is as an answer.
    pub(crate) write: fn(&[u8]) -> Vec<u8>,
}

type Send = fn(&[u8]) -> Option<Result<Vec<u8>, Violation>>;

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

fn send<M: Document + Message + Default>(bytes: &[u8]) -> Option<Result<Vec<u8>, Violation>> {
    Some(json::encode_request(&M::decode(bytes).ok()?, &["stream"]))
}

fn write<M: Document + Message + Default>(bytes: &[u8]) -> Vec<u8> {
    json::encode(&M::decode(bytes).expect("such a message")).expect("an answer can be written")
}

macro_rules! roots {
    ($($message:ident),* $(,)?) => {
        &[$(Root {
            name: stringify!($message),
            read: read::<v1::$message>,
            send: send::<v1::$message>,
            write: write::<v1::$message>,
        }),*]
    };
}

/// Everything that is sent or received as a document of its own.
pub(crate) const ROOTS: &[Root] = roots![
    Assistant,
    AssistantSpec,
    AssistantUpdate,
    DeleteAssistantResponse,
    DeleteMessageResponse,
    DeleteThreadResponse,
    ListAssistantsResponse,
    ListMessagesResponse,
    ListRunStepsResponse,
    ListRunsResponse,
    MessageDelta,
    MessageInput,
    MessageUpdate,
    Run,
    RunSpec,
    RunStep,
    RunStepDelta,
    RunUpdate,
    ThreadAndRunSpec,
    ThreadMessage,
    ThreadResource,
    ThreadSpec,
    ThreadUpdate,
    ToolOutputs,
];

/// The contract.
pub(crate) fn contract() -> DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(v1::DESCRIPTOR).expect("the descriptor set is whole")
    });
    POOL.clone()
}

pub(crate) fn descriptor(root: &Root) -> MessageDescriptor {
    contract()
        .get_message_by_name(&format!("runsgateway.v1.{}", root.name))
        .expect("the contract has the message")
}

/// The document that a message of the contract is.
pub(crate) fn root(message: &MessageDescriptor) -> &'static Root {
    let found = ROOTS.iter().find(|root| root.name == message.name());
    found.unwrap_or_else(|| panic!("{} is not in the table of documents", message.name()))
}

/// What the contract says of an RPC's REST call, a member of the option `rest`. Empty if it says
/// nothing.
pub(crate) fn rest(rpc: &MethodDescriptor, member: &str) -> String {
    let option = rpc
        .parent_pool()
        .get_extension_by_name("runsgateway.v1.rest");
    let options = rpc.options();
    let rest = options.get_extension(&option.expect("the option is served"));
    let rest = rest.as_message().expect("a message");
    let value = rest
        .get_field_by_name(member)
        .expect("a member of the option");
    value.as_str().expect("text").to_owned()
}

/// The RPCs that are one REST call and its answer.
pub(crate) fn calls() -> Vec<MethodDescriptor> {
    let contract = contract();
    let services: Vec<_> = contract.services().collect();
    let rpcs = services
        .iter()
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    // WaitRun is answered by many reads.
    rpcs.filter(|rpc| !rpc.is_server_streaming() && rpc.name() != "WaitRun")
        .collect()
}

/// The message that is a call's body, if it has one: the request's field and its message.
pub(crate) fn body(rpc: &MethodDescriptor) -> Option<(String, MessageDescriptor)> {
    let name = rest(rpc, "body");
    let field = rpc.input().get_field_by_name(&name)?;
    Some((name, field.kind().as_message()?.clone()))
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
