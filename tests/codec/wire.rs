//! What the contract's messages are as protobuf (`runs_gateway::wire`) is what prost writes, to the
//! byte: for every message of every call, with any of its fields set. The documents of the other
//! tests are held to the same (`roots.rs`).

use std::{collections::BTreeSet, panic};

use prost::{Message, bytes::Bytes};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};
use runs_gateway::{
    v1,
    wire::{self, Wire},
};

use crate::{documents::Random, seeds};

/// Panics if the two encoders differ on what these bytes are.
fn compare<M: Message + Wire + Default>(bytes: &[u8]) {
    let message = M::decode(bytes).expect("protobuf reads its own");
    let written = wire::encode(&message, <[u8]>::to_vec);
    assert_eq!(written, message.encode_to_vec());
    assert_eq!(
        written.len(),
        bytes.len(),
        "a field is neither in the message nor written"
    );
}

macro_rules! messages {
    ($($message:ident),* $(,)?) => { [$((stringify!($message), compare::<v1::$message> as Compare)),*] };
}

type Compare = fn(&[u8]);

const MESSAGES: [(&str, Compare); 43] = messages![
    Assistant,
    CancelRunRequest,
    ConverseRunRequest,
    CreateAssistantRequest,
    CreateMessageRequest,
    CreateRunRequest,
    CreateThreadAndRunRequest,
    CreateThreadRequest,
    DeleteAssistantRequest,
    DeleteAssistantResponse,
    DeleteMessageRequest,
    DeleteMessageResponse,
    DeleteThreadRequest,
    DeleteThreadResponse,
    GetAssistantRequest,
    GetMessageRequest,
    GetRunRequest,
    GetRunStepRequest,
    GetThreadRequest,
    ListAssistantsRequest,
    ListAssistantsResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    ListRunStepsRequest,
    ListRunStepsResponse,
    ListRunsRequest,
    ListRunsResponse,
    ModifyAssistantRequest,
    ModifyMessageRequest,
    ModifyRunRequest,
    ModifyThreadRequest,
    ResumeRunRequest,
    Run,
    RunEvent,
    RunStep,
    StreamCreateRunRequest,
    StreamCreateThreadAndRunRequest,
    StreamSubmitToolOutputsRequest,
    SubmitToolOutputsRequest,
    ThreadMessage,
    ThreadResource,
    WaitRunRequest,
    WatchRunRequest,
];

#[test]
fn every_message_of_every_call_is_written_as_prost_writes_it() {
    let pool = DescriptorPool::decode(v1::DESCRIPTOR).expect("the descriptor set is whole");
    let methods = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    let contract: BTreeSet<_> = methods
        .flat_map(|method| [method.input(), method.output()])
        .map(|it| it.name().to_owned())
        .collect();
    assert_eq!(
        contract,
        MESSAGES
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect(),
        "the table of this test is not complete"
    );

    for seed in seeds() {
        let mut random = Random(seed);
        let (name, compare) = MESSAGES[random.below(MESSAGES.len())];
        let descriptor = pool
            .get_message_by_name(&format!("runsgateway.v1.{name}"))
            .expect("it is in the contract");
        let bytes = message(&descriptor, &mut random, 0).encode_to_vec();
        panic::catch_unwind(|| compare(&bytes))
            .unwrap_or_else(|_| panic!("{name} with CODEC_SEED={seed}"));
    }
}

/// A message with some of its fields set, fewer the deeper it lies.
fn message(descriptor: &MessageDescriptor, random: &mut Random, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if !random.once_in(2 + depth) {
            continue;
        }
        let many = if random.once_in(40) {
            40
        } else {
            random.below(3)
        };
        let value = match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let mut pair = || {
                    (
                        MapKey::String(text(random)),
                        scalar(&entry.map_entry_value_field(), random, depth),
                    )
                };
                Value::Map((0..many).map(|_| pair()).collect())
            }
            _ if field.is_list() => {
                Value::List((0..many).map(|_| scalar(&field, random, depth)).collect())
            }
            _ => scalar(&field, random, depth),
        };
        message.set_field(&field, value);
    }
    message
}

fn scalar(field: &FieldDescriptor, random: &mut Random, depth: usize) -> Value {
    let bits = (random.next() >> random.below(64)).cast_signed();
    #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
    let low = bits as i32;
    match field.kind() {
        Kind::String => Value::String(text(random)),
        Kind::Bytes => Value::Bytes(Bytes::from(text(random))),
        Kind::Bool => Value::Bool(random.once_in(2)),
        Kind::Int32 => Value::I32(low),
        Kind::Int64 => Value::I64(if random.once_in(4) { -bits } else { bits }),
        Kind::Double => Value::F64(f64::from_bits(random.next())),
        Kind::Enum(_) => Value::EnumNumber(low),
        Kind::Message(inner) => Value::Message(self::message(&inner, random, depth + 1)),
        other => panic!("the contract has a kind of field that this test does not make: {other:?}"),
    }
}

/// Texts around the sizes where a length takes one byte more.
fn text(random: &mut Random) -> String {
    let length = match random.below(20) {
        0 => 0,
        1 => 110 + random.below(40),
        2 => 16_350 + random.below(60),
        _ => random.below(20),
    };
    "é".repeat(length / 2) + if length % 2 == 1 { "x" } else { "" }
}
