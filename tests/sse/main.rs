//! Server-sent events framing: what bytes mean what frames, however the bytes are cut.

mod standard;

use std::{env, fs};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use runs_gateway::upstream::sse::{Frame, Parser, TooLong};
use standard::{by_the_standard, cut, parse};

const ENOUGH: usize = 1 << 20;

/// What a stream is, the events (name, data) that it has, and what is pending at its end (name,
/// data, whether its last line was ended).
type Case = (
    &'static [u8],
    &'static [(&'static [u8], &'static [u8])],
    Option<(&'static [u8], &'static [u8], bool)>,
);

const CASES: &[Case] = &[
    (b"", &[], None),
    (b"\n\r\r\n\n", &[], None),
    (
        b"event: done\ndata: [DONE]\n\n",
        &[(b"done", b"[DONE]")],
        None,
    ),
    (b"event: a\r\ndata: b\r\n\r\n", &[(b"a", b"b")], None),
    (b"event: a\rdata: b\r\r", &[(b"a", b"b")], None),
    (
        b"data: a\r\r\ndata: b\n\r",
        &[(b"", b"a"), (b"", b"b")],
        None,
    ),
    // CR LF CR is two line ends, CR CR LF too, LF CR LF as well.
    (
        b"data: a\r\n\rdata: b\r\r\ndata: c\n\r\ndata: d\n\n",
        &[(b"", b"a"), (b"", b"b"), (b"", b"c"), (b"", b"d")],
        None,
    ),
    (
        b"data: a\ndata: b\rdata:\r\ndata: d\n\n",
        &[(b"", b"a\nb\n\nd")],
        None,
    ),
    (
        b"data\n\ndata\ndata\n\ndata:\n\n",
        &[(b"", b""), (b"", b"\n"), (b"", b"")],
        None,
    ),
    (
        b"data:a\n\ndata:  a \n\ndata:\ta\n\n",
        &[(b"", b"a"), (b"", b" a "), (b"", b"\ta")],
        None,
    ),
    (
        b"data: a: b:c\n\ndata::\n\n",
        &[(b"", b"a: b:c"), (b"", b":")],
        None,
    ),
    (
        b": ping\n\n:\n\ndata: a\n:data: b\n\n",
        &[(b"", b"a")],
        None,
    ),
    (b"event: a\n\ndata: b\n\n", &[(b"", b"b")], None),
    (
        b"event: a\nevent: b\ndata: c\nevent\n\n",
        &[(b"", b"c")],
        None,
    ),
    (b"event: a\nevent: b\ndata: c\n\n", &[(b"b", b"c")], None),
    (b"data: b\nevent: a\n\n", &[(b"a", b"b")], None),
    (
        b" data: a\nData: b\ndata : c\ndataa: d\ndat: e\nretry: 10\nx\n\n",
        &[],
        None,
    ),
    (b"\xEF\xBB\xBFdata: a\n\n", &[(b"", b"a")], None),
    (b"\xEF\xBB\xBF\ndata: a\n\n", &[(b"", b"a")], None),
    (b"\xEF\xBB\xBF\xEF\xBB\xBFdata: a\n\n", &[], None),
    (
        b"\n\xEF\xBB\xBFdata: a\n\ndata: \xEF\xBB\xBFb\n\n",
        &[(b"", b"\xEF\xBB\xBFb")],
        None,
    ),
    (b"\xEF\xBB\xBF", &[], None),
    (
        b"event: \xff\ndata: \xc3\x28\xed\xa0\x80\0\n\n",
        &[(b"\xff", b"\xc3\x28\xed\xa0\x80\0")],
        None,
    ),
    // No line ends to this format, though some libraries take them for such.
    (
        b"data: a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e\n\n",
        &[(b"", b"a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e")],
        None,
    ),
    (
        b"data: a\n\nevent: done\ndata: [DONE]\n",
        &[(b"", b"a")],
        Some((b"done", b"[DONE]", true)),
    ),
    (
        b"event: done\rdata: [DONE]\r",
        &[],
        Some((b"done", b"[DONE]", true)),
    ),
    (
        b"event: done\r\ndata: [DONE]",
        &[],
        Some((b"done", b"[DONE]", false)),
    ),
    (b"data: {\ndata", &[], Some((b"", b"{\n", false))),
    (b"data: {\ndat", &[], Some((b"", b"{", false))),
    (b"event: thread.ru", &[], Some((b"thread.ru", b"", false))),
    (
        b"event: thread.run\n",
        &[],
        Some((b"thread.run", b"", true)),
    ),
    (b"data: a\n\ne", &[(b"", b"a")], Some((b"", b"", false))),
    (b"data: a\n\n: pin", &[(b"", b"a")], None),
    (b"data: a\n\n: ping\n\r", &[(b"", b"a")], None),
];

fn frame<'a>(event: &'a [u8], data: &'a [u8]) -> Frame<'a> {
    Frame {
        event,
        data,
        id: b"",
    }
}

#[test]
fn each_stream_means_its_frames_however_it_is_cut() {
    for (stream, frames, pending) in CASES {
        let frames = frames
            .iter()
            .map(|(event, data)| frame(event, data).into())
            .collect::<Vec<_>>();
        let pending =
            pending.map(|(event, data, terminated)| (frame(event, data).into(), terminated));
        let outcome = (frames, Ok(pending));
        let shown = stream.escape_ascii();
        assert_eq!(parse(ENOUGH, [*stream]), outcome, "whole: {shown}");
        assert_eq!(
            parse(ENOUGH, stream.chunks(1)),
            outcome,
            "byte by byte: {shown}"
        );
        for split in 0..=stream.len() {
            assert_eq!(
                parse(ENOUGH, [&stream[..split], &stream[split..]]),
                outcome,
                "split at {split}: {shown}"
            );
        }
    }
}

#[test]
fn an_id_stays_until_the_next_and_one_with_nul_is_none() {
    let stream = b"data: a\n\nid: 1\ndata: b\n\ndata: c\nid: 2\0\n\nid:2\n\ndata: d\n\nid\ndata: e\n\nid: 3\n";
    for size in 1..=stream.len() {
        let (frames, end) = parse(ENOUGH, stream.chunks(size));
        let ids = frames.into_iter().map(|frame| frame.id).collect::<Vec<_>>();
        assert_eq!(
            ids,
            [&b""[..], b"1", b"1", b"2", b""],
            "in chunks of {size}"
        );
        assert_eq!(
            end.map(|pending| pending.map(|(event, _)| event.id)),
            Ok(Some(b"3".to_vec()))
        );
    }
}

#[test]
fn a_frame_is_there_with_its_last_byte() {
    for end in ["\n", "\r", "\r\n"] {
        let mut parser = Parser::new(ENOUGH);
        for name in ["a", "b", "c"] {
            let event = format!("event: {name}{end}data: {name}{end}");
            for byte in event.into_bytes() {
                parser.push(Bytes::copy_from_slice(&[byte]));
                assert_eq!(parser.next_frame(), Ok(None));
            }
            // Of CR LF the CR completes it.
            let (first, rest) = end.split_at(1);
            parser.push(first.into());
            assert_eq!(
                parser.next_frame(),
                Ok(Some(frame(name.as_bytes(), name.as_bytes())))
            );
            parser.push(rest.into());
            assert_eq!(parser.next_frame(), Ok(None));
        }
        assert_eq!(parser.finish(), None);
    }
}

#[test]
fn data_within_one_chunk_is_not_copied_and_the_chunk_is_let_go_once_it_is_read() {
    let chunk = Bytes::from(
        b"event: a\ndata: one\n\ndata: two\n\ndata: begun in this chunk\ndata: and more".to_vec(),
    );
    let held = chunk.as_ptr_range();
    let mut parser = Parser::new(ENOUGH);
    parser.push(chunk.clone());
    for _ in 0..2 {
        let frame = parser
            .next_frame()
            .expect("within the limit")
            .expect("a whole event");
        assert!(held.contains(&frame.data.as_ptr()));
    }
    assert!(!chunk.is_unique());
    assert_eq!(parser.next_frame(), Ok(None));
    assert!(chunk.is_unique());
}

#[test]
fn chunks_pushed_before_the_last_was_read_are_not_lost() {
    let mut parser = Parser::new(ENOUGH);
    for chunk in ["data: a\n\nda", "ta: b\n", "\n"] {
        parser.push(chunk.into());
    }
    assert_eq!(parser.next_frame(), Ok(Some(frame(b"", b"a"))));
    assert_eq!(parser.next_frame(), Ok(Some(frame(b"", b"b"))));
    assert_eq!(parser.next_frame(), Ok(None));
}

#[test]
fn an_event_up_to_the_limit_passes_and_one_beyond_it_fails_early_and_for_good() {
    let first = frame(b"", b"first").into();
    // What an event begins with, and how many bytes of it (name, and data with its joints) are held
    // when its last line is read.
    let cases = [
        ("data: ", 0),
        ("event: abc\ndata: ", 3),
        ("data: abc\ndata: ", 3),
        ("data: a\ndata: b\ndata: ", 3),
        (": ", 0),
    ];
    for (begin, held) in cases {
        let fill = 100 - held - begin.rsplit('\n').next().expect("a last line").len();
        for (fill, passes) in [(fill, true), (fill + 1, false)] {
            let stream = format!("data: first\n\n{begin}{}\n\n", "x".repeat(fill));
            for size in 1..=stream.len() {
                let (frames, end) = parse(100, stream.as_bytes().chunks(size));
                assert_eq!(frames[0], first);
                assert_eq!(
                    end,
                    if passes {
                        Ok(None)
                    } else {
                        Err(TooLong { limit: 100 })
                    },
                    "{stream:?} in chunks of {size}"
                );
            }
        }
    }

    let mut parser = Parser::new(100);
    parser.push(vec![b'x'; 101].into());
    assert_eq!(
        parser.next_frame(),
        Err(TooLong { limit: 100 }),
        "without waiting for the line's end"
    );
    parser.push("\n\ndata: a\n\n".into());
    assert_eq!(parser.next_frame(), Err(TooLong { limit: 100 }));
}

/// Were a line searched or moved anew for each chunk, or an event for each line, this would take
/// hours.
#[test]
fn long_events_in_small_pieces_are_read_in_linear_time() {
    let long = format!("data: {}\n\n", "x".repeat(4 << 20));
    assert_eq!(
        parse(8 << 20, long.as_bytes().chunks(1)).0[0].data.len(),
        4 << 20
    );
    let lines = "data\n".repeat(2 << 20) + "\n";
    assert_eq!(
        parse(8 << 20, [lines.as_bytes()]).0[0].data.len(),
        (2 << 20) - 1
    );
}

fn streams() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "data:",
        "data: ",
        "data",
        "event: x",
        "event:",
        "id: 1",
        "id",
        "retry: 1",
        ":",
        " ",
        "\0",
        "{\"a\":1}",
        "[DONE]",
    ];
    let ends = ["\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n"];
    let piece = prop_oneof![
        4 => prop::sample::select(ends.to_vec()).prop_map(|end| end.as_bytes().to_vec()),
        4 => prop::sample::select(known.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => Just(b"\xEF\xBB\xBF".to_vec()),
        1 => vec(any::<u8>(), 0..4),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Chunk sizes, empty chunks among them but never all.
fn sizes() -> impl Strategy<Value = Vec<usize>> {
    vec(0..9_usize, 0..6).prop_map(|mut sizes| {
        sizes.push(1);
        sizes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_stream_is_read_as_the_standard_says(stream in streams(), limit in prop_oneof![0..40_usize, Just(ENOUGH)]) {
        prop_assert_eq!(parse(limit, [&stream[..]]), by_the_standard(limit, &stream));
    }

    #[test]
    fn any_chunking_reads_like_the_whole(stream in streams(), sizes in sizes(), limit in prop_oneof![0..40_usize, Just(ENOUGH)]) {
        prop_assert_eq!(parse(limit, cut(&stream, &sizes)), parse(limit, [&stream[..]]));
    }
}

/// Real streams, for who has some: `RUNS_RECORDINGS` names a directory of `*.sse` files.
#[test]
fn recorded_streams_end_in_done_however_they_are_cut() {
    let Some(directory) = env::var_os("RUNS_RECORDINGS") else {
        return;
    };
    let paths = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("readable").path());
    let streams = paths.filter(|path| path.extension().is_some_and(|extension| extension == "sse"));
    let streams = streams
        .map(|path| fs::read(path).expect("readable"))
        .collect::<Vec<_>>();
    assert!(!streams.is_empty());
    for stream in &streams {
        let outcome = parse(ENOUGH, [&stream[..]]);
        assert_eq!(outcome, by_the_standard(ENOUGH, stream));
        assert_eq!(outcome.1, Ok(None));
        assert_eq!(outcome.0.last(), Some(&frame(b"done", b"[DONE]").into()));
        assert!(outcome.0.iter().all(|frame| !frame.name.is_empty()));
    }
    let streams = prop::sample::select(streams);
    proptest!(ProptestConfig::with_cases(200), |(stream in streams, sizes in vec(1..3000_usize, 1..10))| {
        prop_assert_eq!(parse(ENOUGH, cut(&stream, &sizes)), parse(ENOUGH, [&stream[..]]));
    });
}
