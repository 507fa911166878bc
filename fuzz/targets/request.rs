//! The codec on requests: whatever a caller puts into a message, `extra_json` included, the body is
//! the JSON that it says, or it is refused.
//!
//! Input: a byte that chooses the message, and the message in protobuf's own bytes, as callers send
//! it.

#![no_main]

#[path = "../../tests/codec/documents.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod documents;
#[path = "../../tests/codec/oracle.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod oracle;
#[path = "../../tests/codec/roots.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod roots;
mod status;

use std::sync::LazyLock;

use documents::Random;
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target, fuzzer_mutate};
use oracle::Json;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor, Value};
use roots::Root;
use runs_gateway::error::Error;
use serde_json::value::RawValue;

/// The bodies of all requests of the contract: the request's field, and the message in it.
static BODIES: LazyLock<Vec<(String, &Root, MessageDescriptor)>> = LazyLock::new(|| {
    let bodies = roots::calls();
    let bodies = bodies.iter().filter_map(roots::body);
    bodies
        .map(|(field, message)| (field, roots::root(&message), message))
        .collect()
});

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((which, bytes)) = input.split_first() else {
        return Corpus::Reject;
    };
    let which = usize::from(*which) % BODIES.len();
    let (field, root, descriptor) = &BODIES[which];
    let body = match (root.send)(bytes) {
        None => return Corpus::Reject,
        Some(Err(violation)) => {
            let wrong = violation
                .field
                .split(['.', '['])
                .next()
                .expect("there is a first");
            let known = descriptor
                .fields()
                .any(|known| [known.name(), oracle::member(&known)].contains(&wrong));
            assert!(known, "{} is no field of {}", violation.field, root.name);
            status::check(&Error::from(violation.within(field)));
            return Corpus::Keep;
        }
        Some(Ok(body)) => body,
    };
    assert!(
        serde_json::from_slice::<&RawValue>(&body).is_ok(),
        "no JSON: {}",
        String::from_utf8_lossy(&body)
    );
    let Json::Object(members) = oracle::parse(&body) else {
        panic!("no object: {}", String::from_utf8_lossy(&body))
    };
    assert!(
        !members.contains_key(&"stream".encode_utf16().collect::<Vec<_>>()),
        "the caller sets what the gateway owns"
    );

    // What `extra_json` adds changes nothing of what the fields say.
    let mut alone =
        DynamicMessage::decode(descriptor.clone(), bytes).expect("it was decoded before");
    alone.set_field_by_name("extra_json", Value::String(String::new()));
    let alone = (root.send)(&alone.encode_to_vec())
        .expect("a message")
        .expect("less of what is written");
    let Json::Object(fields) = oracle::parse(&alone) else {
        panic!("no object")
    };
    for (name, value) in fields {
        assert_eq!(
            members.get(&name),
            Some(&value),
            "{:?}",
            String::from_utf16_lossy(&name)
        );
    }

    // An upstream with the same codec reads it as it was meant. Text within text may go deeper than
    // is read.
    if let Ok(read) = (root.read)(&body) {
        let [sent, read] =
            [&body, &read.written].map(|text| oracle::normal(&oracle::parse(text), descriptor));
        assert_eq!(sent, read);
    }
    Corpus::Keep
});

fuzz_mutator!(
    |input: &mut [u8], size: usize, max_size: usize, seed: u32| {
        if !seed.is_multiple_of(16) {
            return fuzzer_mutate(input, size, max_size);
        }
        let mut random = Random(seed.into());
        let which = random.below(BODIES.len());
        let (_, root, descriptor) = &BODIES[which];
        let mut document = documents::valid(descriptor, &mut random);
        if seed.is_multiple_of(32) {
            documents::damage(&mut document, &mut random);
        }
        match (root.read)(document.print(&mut random).as_bytes()) {
            Ok(read) if read.message.len() < max_size => {
                input[0] = u8::try_from(which).expect("there are few");
                input[1..=read.message.len()].copy_from_slice(&read.message);
                read.message.len() + 1
            }
            _ => fuzzer_mutate(input, size, max_size),
        }
    }
);
