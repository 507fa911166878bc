//! The codec on documents: whatever bytes an upstream sends, they are an error or nothing is lost.
//!
//! Input: a byte that chooses the message, and the text. Some inputs are documents generated from
//! the contract and then damaged, as in the codec's own tests, and the fuzzer goes on from there
//! byte by byte. The rules they are held to are those tests' too.

#![no_main]

#[path = "../../tests/codec/documents.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod documents;
#[path = "../../tests/codec/oracle.rs"]
mod oracle;
#[path = "../../tests/codec/roots.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod roots;

use std::sync::LazyLock;

use documents::Random;
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target, fuzzer_mutate};
use prost_reflect::MessageDescriptor;
use roots::ROOTS;
use runs_gateway::json::MAX_DEPTH;
use serde_json::value::RawValue;

static DESCRIPTORS: LazyLock<Vec<MessageDescriptor>> =
    LazyLock::new(|| ROOTS.iter().map(roots::descriptor).collect());

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((which, text)) = input.split_first() else {
        return Corpus::Reject;
    };
    let which = usize::from(*which) % ROOTS.len();
    let is_json = serde_json::from_slice::<&RawValue>(text).is_ok();
    match (ROOTS[which].read)(text) {
        Ok(first) => {
            assert!(is_json, "read, but no JSON");
            roots::round(
                &ROOTS[which],
                &DESCRIPTORS[which],
                std::str::from_utf8(text).expect("JSON is UTF-8"),
            );
            let second = (ROOTS[which].read)(&first.written).expect("what was written is read");
            assert!(
                first.message == second.message,
                "another message: {}",
                String::from_utf8_lossy(&first.written)
            );
        }
        // What brackets there are, in strings too, may be too deep. No input here is too long.
        Err(_) if brackets(text) > usize::from(MAX_DEPTH) => {}
        Err(error) => assert!(
            !is_json || text.trim_ascii_start()[0] != b'{',
            "an object is not read: {error}"
        ),
    }
    Corpus::Keep
});

fn brackets(text: &[u8]) -> usize {
    text.iter()
        .filter(|byte| matches!(byte, b'[' | b'{'))
        .count()
}

fuzz_mutator!(
    |input: &mut [u8], size: usize, max_size: usize, seed: u32| {
        if !seed.is_multiple_of(16) {
            return fuzzer_mutate(input, size, max_size);
        }
        let mut random = Random(seed.into());
        let which = random.below(ROOTS.len());
        let mut document = documents::valid(&DESCRIPTORS[which], &mut random);
        documents::damage(&mut document, &mut random);
        let text = document.print(&mut random);
        if text.len() >= max_size {
            return fuzzer_mutate(input, size, max_size);
        }
        input[0] = u8::try_from(which).expect("there are few");
        input[1..=text.len()].copy_from_slice(text.as_bytes());
        text.len() + 1
    }
);
