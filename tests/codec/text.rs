//! What the codec takes for JSON, on texts that were damaged byte by byte: no more and no less than
//! `serde_json` does.

use runs_gateway::{
    json::{self, MAX_UNFOLDED},
    v1::{ListRunsResponse, MessageContent, Run},
};
use serde_json::value::RawValue;

use crate::{documents::Random, each_document, roots::Root};

const BYTES: &[u8] =
    b"{}[]\",:\\/0019-+.eEutrfnalsb \t\n\r\x00\x0b\x0c\x1f\x7f\x80\xbf\xc3\xa9\xed\xa0\xff";

fn mutate(text: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(text.len() + 1);
        let byte = BYTES[random.below(BYTES.len())];
        match random.below(6) {
            0 => text.insert(at, byte),
            1 if at < text.len() => text[at] = byte,
            2 if at < text.len() => drop(text.remove(at)),
            3 if at + 1 < text.len() => text.swap(at, at + 1),
            4 if random.once_in(4) => text.truncate(at),
            _ => {
                // A piece of it once more.
                let end = (at + random.below(9)).min(text.len());
                let piece = text[at..end].to_vec();
                text.splice(at..at, piece);
            }
        }
    }
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(text).is_ok()
}

/// An upper bound of the depth: how many more brackets were opened than closed, strings or not.
fn depth(text: &[u8]) -> usize {
    text.iter()
        .filter(|byte| matches!(byte, b'[' | b'{'))
        .count()
}

#[test]
fn the_codec_takes_for_json_what_serde_json_does() {
    let taken = std::cell::Cell::new((0, 0));
    each_document(true, |root: &Root, _, _, text, random| {
        let mut text = text.as_bytes().to_vec();
        mutate(&mut text, random);
        if depth(&text) > usize::from(json::MAX_DEPTH) {
            return;
        }
        let is_json = is_json(&text);
        let first = text.trim_ascii_start().first().copied();
        let shown = String::from_utf8_lossy(&text);
        assert_eq!(
            (root.read)(&text).is_ok(),
            is_json && first == Some(b'{'),
            "as an object: {shown}"
        );
        // Text or a list, the content of a message.
        let bare =
            matches!(first, Some(b'"' | b'[')) && !shown.contains("\\u") || shown.trim() == "null";
        if bare || !is_json {
            assert_eq!(
                json::decode::<MessageContent>(&text).is_ok(),
                is_json,
                "as content: {shown}"
            );
        }
        let (yes, no) = taken.get();
        taken.set(if is_json {
            (yes + 1, no)
        } else {
            (yes, no + 1)
        });
    });
    let (yes, no) = taken.get();
    assert!(
        yes + no < 1000 || (yes > 500 && no > 500),
        "one-sided: {yes} are JSON, {no} are not"
    );
}

#[test]
fn every_short_text_of_json_letters_is_judged_like_serde_json_does() {
    const LETTERS: &[u8] = b"{}[]\",:\\ 01-.eEutn\x0c";
    let mut random = Random(1);
    for length in 0..=12 {
        for _ in 0..20_000 {
            let inner: Vec<u8> = (0..length)
                .map(|_| LETTERS[random.below(LETTERS.len())])
                .collect();
            // Known member, unknown member, and the whole.
            for (before, after) in [
                (&b"{\"usage\":"[..], &b"}"[..]),
                (b"{\"a\":", b"}"),
                (b"{\"tools\":[", b"]}"),
                (b"{", b"}"),
            ] {
                let text = [before, &inner, after].concat();
                let taken = json::decode::<Run>(&text).is_ok();
                assert_eq!(taken, is_json(&text), "{}", String::from_utf8_lossy(&text));
            }
        }
    }
}

#[test]
fn a_text_that_was_cut_is_no_json_wherever_it_was_cut() {
    let text = include_bytes!("../../benches/run.json").trim_ascii_end();
    json::decode::<Run>(text).expect("the whole is read");
    for end in 0..text.len() {
        assert!(json::decode::<Run>(&text[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn random_bytes_are_an_error_and_nothing_worse() {
    let mut random = Random(2);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..random.below(64))
            .map(|_| random.next().to_le_bytes()[0])
            .collect();
        assert_eq!(
            json::decode::<Run>(&bytes).is_ok(),
            is_json(&bytes) && bytes.trim_ascii_start().first() == Some(&b'{')
        );
        bytes.splice(0..0, *b"{\"id\":\"");
        bytes.extend_from_slice(b"\"}");
        assert_eq!(json::decode::<Run>(&bytes).is_ok(), is_json(&bytes));
    }
}

#[test]
fn a_list_of_anything_but_objects_takes_no_more_memory_than_the_bound() {
    let list = |length: usize| format!("{{\"data\":[{}0]}}", "0,".repeat(length - 1));
    let most = MAX_UNFOLDED / size_of::<Run>();
    let page: ListRunsResponse = json::decode(list(most).as_bytes()).expect("within the bound");
    assert_eq!(page.data.len(), most);
    let beyond =
        json::decode::<ListRunsResponse>(list(most + 1).as_bytes()).expect_err("beyond the bound");
    assert_eq!(beyond.what, "too many list elements");
    // Duplicates do not begin anew, though the last one wins.
    let half = list(most / 2 + 1);
    let twice = format!(
        "{},{}",
        half.trim_end_matches('}'),
        half.trim_start_matches('{')
    );
    assert!(json::decode::<ListRunsResponse>(twice.as_bytes()).is_err());
}

#[test]
fn nesting_is_bounded_for_fields_and_for_unknown_members() {
    for (before, after, within) in [
        ("{\"a\":", "}", 1),
        ("{\"tools\":[{\"function\":{\"parameters\":", "}}]}", 4),
        ("{\"data\":[", "]}", 2),
    ] {
        for (levels, fits) in [
            (128 - within, true),
            (129 - within, false),
            (100_000, false),
        ] {
            let text = format!(
                "{before}{}{}{after}",
                "[".repeat(levels),
                "]".repeat(levels)
            );
            let read = json::decode::<Run>(text.as_bytes()).is_ok();
            assert_eq!(read, fits, "{before} and {levels} levels");
        }
    }
}

#[test]
fn many_unknown_and_many_duplicate_members_take_time_in_proportion() {
    // Quadratic time would be tens of minutes here.
    let many = 200_000;
    let read = |members: Vec<String>| {
        json::decode::<Run>(format!("{{{}}}", members.join(",")).as_bytes()).expect("it is JSON")
    };

    let run = read((0..many).map(|at| format!("\"a{at}\":0")).collect());
    let written = json::encode(&run).expect("it is written");
    assert_eq!(
        colons(written),
        many + json::encode(&Run::default()).map_or(0, colons)
    );

    let run = read(vec!["\"made_up\":0,\"id\":0,\"usage\":[]".to_owned(); many]);
    assert_eq!(run.extra_json, r#"{"id":0,"usage":[],"made_up":0}"#);

    let pairs: Vec<String> = (0..many)
        .map(|at| format!("\"k{at}\":0,\"k{at}\":\"\""))
        .collect();
    let run = read(vec![format!("\"metadata\":{{{}}}", pairs.join(","))]);
    assert_eq!((run.extra_json.as_str(), run.metadata.len()), ("", many));
}

#[test]
fn a_text_of_many_lines_takes_time_in_proportion() {
    // Quadratic time would be minutes here, too: nothing but line ends needs an escape, and they
    // are far apart.
    let lines =
        "A line without anything that would need an escape but for its end.\n".repeat(200_000);
    let run = Run {
        instructions: Some(lines.clone()),
        ..Run::default()
    };
    let written = json::encode(&run).expect("it is written");
    assert_eq!(
        json::decode::<Run>(&written)
            .expect("it is JSON")
            .instructions,
        Some(lines)
    );
}

fn colons(text: Vec<u8>) -> usize {
    text.into_iter().filter(|byte| *byte == b':').count()
}
