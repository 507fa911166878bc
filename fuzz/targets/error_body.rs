//! Answers of the upstream, errors above all: whatever they are, they are a run or an error that
//! fits into a status.
//!
//! Input, parted by NUL: three characters for the status and two for what was asked; the header
//! `retry-after`; the header `x-request-id`; the body, with as many more NULs as it likes.

#![no_main]

mod status;

use std::sync::LazyLock;

use http::{HeaderValue, Response, StatusCode};
use libfuzzer_sys::{Corpus, fuzz_target};
use runs_gateway::{
    error::{Error, Idempotency},
    upstream::fuzzing::read_answer,
};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime of one thread")
});

fuzz_target!(|input: &[u8]| -> Corpus {
    answered(input).map_or(Corpus::Reject, |()| Corpus::Keep)
});

/// `None` if the input is no answer.
fn answered(input: &[u8]) -> Option<()> {
    let mut parts = input.splitn(4, |byte| *byte == 0);
    let (code, asked) = parts.next()?.split_at_checked(3)?;
    let [idempotency, own_key] = asked else {
        return None;
    };
    let mut answer = Response::new(Vec::new());
    *answer.status_mut() = StatusCode::from_bytes(code).ok()?;
    for name in ["retry-after", "x-request-id"] {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_bytes(parts.next()?).ok()?);
    }
    let body = parts.next()?;
    *answer.body_mut() = body.to_vec();
    let is_success = answer.status().is_success();
    let idempotency = if *idempotency == b'1' {
        Idempotency::NonIdempotent
    } else {
        Idempotency::Idempotent
    };
    match RUNTIME.block_on(read_answer(answer, idempotency, *own_key == b'1')) {
        Ok(answer) => {
            assert!(is_success, "an error became a run");
            assert!(!answer.message.id.is_empty(), "a run without an id");
        }
        Err(error) => {
            quiet(&error, *own_key == b'1');
            status::check_interrupted(error, &String::from_utf8_lossy(body));
        }
    }
    Some(())
}

/// A log has no text of the upstream's but codes and types; about the gateway's own key plain words,
/// of which none is long.
fn quiet(error: &Error, own_key: bool) {
    let Error::Rejected(rejection) = error else {
        return;
    };
    let Some(said) = &rejection.body else { return };
    let elsewhere = [&said.code, &said.r#type]
        .into_iter()
        .any(|word| word.contains(&said.message));
    let log = error.log().to_string();
    let mut texts = match own_key {
        true => said.message.split_whitespace().collect(),
        false => vec![&*said.message],
    };
    texts.retain(|text| text.len() >= 32 && !elsewhere);
    for text in texts {
        assert!(!log.contains(text), "the upstream's message is logged");
    }
}
