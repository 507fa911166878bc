//! The codec keeps its promises (`runs_gateway::json`) on documents generated from the contract and
//! then damaged.
//!
//! A run takes new documents each time and says which seed failed. `CODEC_SEED=<seed>` takes that
//! one document again, `CODEC_DOCUMENTS=<number>` takes another number than 10,000. What is read
//! must not depend on the documents before, but the way there does (the order of members is
//! remembered): a failure that one seed does not repeat needs those before it.

mod azure;
mod documents;
mod oracle;
mod requests;
#[allow(dead_code, reason = "the end-to-end tests use more of it")]
mod roots;
mod sample;
mod text;
mod wire;

use std::{
    collections::BTreeSet,
    env,
    ops::Range,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use documents::{Doc, Random};
use oracle::Json;
use prost_reflect::MessageDescriptor;
use roots::{ROOTS, Root, body, calls, contract, descriptor, root, round};
use runs_gateway::json::MAX_DEPTH;

/// Says which document it was when a check fails, by panic or otherwise.
struct Failed<'a>(u64, &'a str, &'a str);

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "failed with CODEC_SEED={} as {}: {}",
                self.0, self.1, self.2
            );
        }
    }
}

/// The seeds to take.
fn seeds() -> Range<u64> {
    let number = |name| {
        env::var(name).ok().map(|text| {
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} is no number"))
        })
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970")
        .as_nanos();
    let first = number("CODEC_SEED")
        .unwrap_or(u64::try_from(now % u128::from(u32::MAX)).expect("it has 32 bits"));
    let many = if number("CODEC_SEED").is_some() {
        1
    } else {
        number("CODEC_DOCUMENTS").unwrap_or(10_000)
    };
    first..first + many
}

/// Runs `check` on many documents, valid and with `damage`.
fn each_document(damage: bool, check: impl Fn(&Root, &MessageDescriptor, &Doc, &str, &mut Random)) {
    let descriptors: Vec<_> = ROOTS.iter().map(descriptor).collect();
    for seed in seeds() {
        let mut random = Random(seed);
        let which = random.below(ROOTS.len());
        let mut doc = documents::valid(&descriptors[which], &mut random);
        if damage {
            documents::damage(&mut doc, &mut random);
        }
        let text = doc.print(&mut random);
        let _failed = Failed(seed, ROOTS[which].name, &text);
        check(&ROOTS[which], &descriptors[which], &doc, &text, &mut random);
    }
}

#[test]
fn a_valid_document_is_read_into_fields_alone_and_written_back_the_same() {
    each_document(false, |root, descriptor, _, text, _| {
        assert_eq!(
            round(root, descriptor, text),
            0,
            "there are members in extra_json"
        );
    });
}

#[test]
fn a_damaged_document_is_written_back_the_same_and_only_what_does_not_fit_is_in_extra_json() {
    each_document(true, |root, descriptor, doc, text, _| {
        if doc.depth() > usize::from(MAX_DEPTH) {
            let error = (root.read)(text.as_bytes()).err().map(|error| error.what);
            assert_eq!(error, Some("nested too deeply"));
        } else {
            round(root, descriptor, text);
        }
    });
}

/// The messages that the events of streams carry: those that an RPC of the gateway's own makes of
/// others, and the marks that stand for something missing, are none of the upstream's.
fn payloads() -> impl Iterator<Item = MessageDescriptor> {
    let event = contract()
        .get_message_by_name("runsgateway.v1.RunEvent")
        .expect("the event");
    let payload = event.oneofs().next().expect("a payload");
    let fields: Vec<_> = payload.fields().collect();
    let messages = fields
        .into_iter()
        .filter_map(|field| field.kind().as_message().cloned());
    messages.filter(oracle::is_object)
}

#[test]
fn the_roots_are_the_bodies_and_answers_of_all_calls_and_what_events_carry() {
    let calls = calls();
    let bodies = calls
        .iter()
        .filter_map(|rpc| body(rpc).map(|(_, message)| message));
    let answers = calls.iter().map(prost_reflect::MethodDescriptor::output);
    let documents: BTreeSet<_> = bodies
        .chain(answers)
        .chain(payloads())
        .map(|message| message.name().to_owned())
        .collect();
    let roots: Vec<_> = ROOTS.iter().map(|root| root.name.to_owned()).collect();
    assert_eq!(documents.iter().cloned().collect::<Vec<_>>(), roots);
}

#[test]
fn what_is_read_of_a_body_is_sent_as_the_same_body() {
    let bodies: Vec<_> = calls()
        .iter()
        .filter_map(|rpc| body(rpc).map(|(field, message)| (field, root(&message), message)))
        .collect();
    for seed in seeds() {
        let mut random = Random(seed);
        let (field, root, descriptor) = &bodies[random.below(bodies.len())];
        let text = documents::valid(descriptor, &mut random).print(&mut random);
        let _failed = Failed(seed, root.name, &text);
        let message = (root.read)(text.as_bytes()).expect("it is read").message;
        let sent = (root.send)(&message).expect("the same message");
        let sent = sent.unwrap_or_else(|violation| panic!("{}", violation.within(field)));
        let [before, after] =
            [text.as_bytes(), &sent].map(|text| oracle::normal(&oracle::parse(text), descriptor));
        let sent = String::from_utf8_lossy(&sent);
        assert!(infers_alone(&before, &after), "sent as {sent}");
    }
}

/// Whether one value is the other, but for a `type` here and there that was inferred.
fn infers_alone(before: &Json, after: &Json) -> bool {
    let name: Vec<u16> = "type".encode_utf16().collect();
    match (before, after) {
        (Json::Object(before), Json::Object(after)) => {
            before.keys().all(|member| after.contains_key(member))
                && after
                    .iter()
                    .all(|(member, value)| match before.get(member) {
                        Some(known) => infers_alone(known, value),
                        None => *member == name && matches!(value, Json::Text(_)),
                    })
        }
        (Json::List(before), Json::List(after)) => {
            let mut pairs = before.iter().zip(after);
            before.len() == after.len() && pairs.all(|(one, other)| infers_alone(one, other))
        }
        _ => before == after,
    }
}

#[test]
fn the_roots_reach_every_message_that_mirrors_json() {
    let mut open: Vec<_> = ROOTS.iter().map(descriptor).collect();
    let mut seen = Vec::new();
    while let Some(message) = open.pop() {
        if !seen.contains(&message) {
            open.extend(
                message
                    .fields()
                    .filter_map(|field| field.kind().as_message().cloned()),
            );
            seen.push(message);
        }
    }
    for message in descriptor(&ROOTS[0])
        .parent_pool()
        .all_messages()
        .filter(oracle::is_object)
    {
        assert!(
            seen.iter()
                .any(|known| known.full_name() == message.full_name()),
            "{} is in no document",
            message.name()
        );
    }
}

#[test]
fn the_oracle_tells_values_apart() {
    let same = [
        ("1e3", "1000.0"),
        ("-0", "0"),
        (r#""\u0061""#, r#""a""#),
        (r#""\ud83d\ude00""#, r#""😀""#),
        (r#"{"a":1,"\u0061":2}"#, r#"{"a":2}"#),
    ];
    let different = [
        ("1e400", "1e401"),
        ("9007199254740993", "9007199254740992"),
        (r#""\ud800""#, r#""\ud801""#),
        ("-1", "1"),
        ("0.10000000000000001", "0.1"),
        (r#"{"a":1,"a":2}"#, r#"{"a":1}"#),
        ("[]", "null"),
        (r#"{"a":null}"#, "{}"),
    ];
    for (one, other) in same {
        assert_eq!(
            oracle::parse(one.as_bytes()),
            oracle::parse(other.as_bytes())
        );
    }
    for (one, other) in different {
        assert_ne!(
            oracle::parse(one.as_bytes()),
            oracle::parse(other.as_bytes())
        );
    }
}
