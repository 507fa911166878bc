//! The event parser, and what its frames say: the same however the bytes are cut, by the standard,
//! within the limit, and all of it.
//!
//! Input: a byte for the limit, four for the sizes of chunks, and the stream. The parser that it is
//! compared with is the tests' slow one.

#![no_main]

#[path = "../../tests/sse/standard.rs"]
mod standard;
mod status;

use libfuzzer_sys::{Corpus, fuzz_target};
use runs_gateway::{
    runs::fuzzing::event,
    upstream::sse::{Frame, Parser},
    v1::run_event::Payload,
};
use standard::Event;

/// The limit that real streams are far below.
const ENOUGH: usize = 1 << 20;

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&[limit, ref sizes @ ..], stream)) = input.split_first_chunk::<5>() else {
        return Corpus::Reject;
    };
    let limit = if limit < 128 {
        usize::from(limit)
    } else {
        ENOUGH
    };
    let mut sizes = sizes.map(usize::from).to_vec();
    sizes.push(1);
    let expected = standard::by_the_standard(limit, stream);
    assert_eq!(standard::parse(limit, [stream]), expected, "whole");
    assert_eq!(
        standard::parse(limit, standard::cut(stream, &sizes)),
        expected,
        "in chunks of {sizes:?}"
    );
    assert_eq!(
        standard::parse(limit, stream.chunks(1)),
        expected,
        "byte by byte"
    );
    if expected.1.is_ok() {
        assert_eq!(
            unread(limit, &standard::cut(stream, &sizes)),
            expected.0,
            "pushed before it was read"
        );
    }
    expected.0.iter().for_each(check);
    Corpus::Keep
});

/// The frames of chunks that are all pushed before the first is read.
fn unread(limit: usize, chunks: &[&[u8]]) -> Vec<Event> {
    let mut parser = Parser::new(limit);
    for chunk in chunks {
        parser.push(chunk.to_vec().into());
    }
    std::iter::from_fn(|| {
        parser
            .next_frame()
            .expect("within the limit")
            .map(Event::from)
    })
    .collect()
}

/// Checks that a frame says something, and that what is not known is passed on as it came.
fn check(received: &Event) {
    let Event { name, data, id } = received;
    match event(Frame {
        event: name,
        data,
        id,
    }) {
        Ok(None) => {}
        Ok(Some(event)) => {
            let payload = event.payload.expect("each has one");
            // Without a name, name and data may stand in the data.
            if let Payload::Unknown(unknown) = payload
                && !name.is_empty()
            {
                assert_eq!(
                    *data,
                    [unknown.data.as_bytes(), &unknown.binary_data].concat()
                );
            }
        }
        Err(error) => status::check_interrupted(error, &String::from_utf8_lossy(data)),
    }
}
