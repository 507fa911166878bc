//! Bytes that are not HTTP/2, or HTTP/2 that nobody means well.

use std::time::Duration;

use crate::{
    Attacked,
    peer::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, PRIORITY, Peer,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, cancel, create_run, field, fields, frame,
    },
};

/// What an attacker says once, what again and again, and whether it is sent away for that.
struct Row {
    what: &'static str,
    first: Vec<u8>,
    again: Vec<u8>,
    sent_away: bool,
}

/// How much an attacker says at most.
const ENOUGH: usize = 16 << 20;

fn row(
    what: &'static str,
    first: impl Into<Vec<u8>>,
    again: impl Into<Vec<u8>>,
    sent_away: bool,
) -> Row {
    Row {
        what,
        first: first.into(),
        again: again.into(),
        sent_away,
    }
}

/// Bytes without any order.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

/// After a whole preface.
fn spoken(first: impl AsRef<[u8]>) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, b""), first.as_ref()].concat()
}

fn rows() -> Vec<Row> {
    let many = |one: Vec<u8>| one.repeat((16 << 10) / one.len() + 1);
    let oversized = [
        &[0xff, 0xff, 0xff, DATA, 0][..],
        &1_u32.to_be_bytes(),
        &[0; 1000],
    ]
    .concat();
    let open = frame(HEADERS, 0, 1, &fields());
    // One long value, put into the decoder's table, and then named again and again by one byte
    // each.
    let value = "x".repeat(4000);
    let indexed = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], value.as_bytes()].concat();
    let bomb = [fields(), indexed, vec![0xbe; 12_000]].concat();
    let long_fields = field("x-name", &"v".repeat(100)).repeat(140);
    vec![
        row(
            "noise instead of a preface",
            noise(24),
            noise(1 << 14),
            true,
        ),
        row(
            "HTTP/1.1 instead of a preface",
            &b"POST / HTTP/1.1\r\nhost: gateway\r\n\r\n"[..],
            noise(1 << 14),
            true,
        ),
        row("noise after the preface", PREFACE, noise(1 << 14), true),
        row(
            "noise after the settings",
            spoken(b""),
            noise(1 << 14),
            true,
        ),
        row(
            "a frame larger than allowed",
            spoken(oversized),
            vec![0; 1 << 14],
            true,
        ),
        row(
            "data of no stream",
            spoken(frame(DATA, 0, 1, b"x")),
            vec![],
            true,
        ),
        row(
            "headers of the server's own stream",
            spoken(frame(HEADERS, END_HEADERS, 2, &fields())),
            vec![],
            true,
        ),
        row(
            "headers that are no HPACK",
            spoken(frame(HEADERS, END_HEADERS, 1, &[0xff; 64])),
            vec![],
            true,
        ),
        row(
            "a window beyond its largest",
            spoken(b""),
            frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
            true,
        ),
        row(
            "headers without an end",
            spoken(open.clone()),
            frame(CONTINUATION, 0, 1, &long_fields.clone()),
            true,
        ),
        row(
            "headers without an end, in empty frames",
            spoken(open),
            many(frame(CONTINUATION, 0, 1, b"")),
            true,
        ),
        row("a reset of no stream", spoken(b""), many(cancel(1)), true),
        row(
            "headers that unpack to fifty megabytes",
            spoken(frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)),
            vec![],
            false,
        ),
        row(
            "more headers than allowed",
            spoken(frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &[fields(), long_fields].concat(),
            )),
            vec![],
            false,
        ),
        row(
            "settings",
            spoken(b""),
            many(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
            false,
        ),
        row(
            "pings",
            spoken(b""),
            many(frame(PING, 0, 0, &[7; 8])),
            false,
        ),
        row(
            "empty data",
            spoken(&create_run(1)[..9 + fields().len()]),
            many(frame(DATA, 0, 1, b"")),
            false,
        ),
        row(
            "priorities",
            spoken(b""),
            many(frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7])),
            false,
        ),
        row(
            "frames of an unknown kind",
            spoken(b""),
            frame(0xfa, 0xff, 5, &noise(1 << 14)),
            false,
        ),
        row(
            "resets of a stream that is over",
            spoken([create_run(1), cancel(1)].concat()),
            many(frame(RST_STREAM, 0, 1, &[0; 4])),
            false,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_speaks_nonsense_is_sent_away_or_borne_and_others_are_served() {
    let attacked = Attacked::start(&[]).await;
    let address = attacked.program.address;
    for Row {
        what,
        first,
        again,
        sent_away,
    } in rows()
    {
        let attack = async {
            let mut peer = Peer::bare(address).await;
            let mut said = 0;
            let mut open = peer.say(&first).await.is_ok();
            while open && !again.is_empty() && said < ENOUGH {
                said += again.len();
                open = peer.say(&again).await.is_ok();
            }
            println!("{what}: {} KiB were said", said >> 10);
            // A connection that is to be closed is closed soon, and before all of that was said.
            let closed = !open
                || peer
                    .is_closed(if sent_away {
                        Duration::from_secs(10)
                    } else {
                        Duration::from_millis(50)
                    })
                    .await;
            (closed, said)
        };
        let ((closed, said), grown) = attacked.during(what, attack).await;
        if sent_away {
            assert!(closed, "{what}: it is sent away");
            assert!(said < ENOUGH, "{what}: soon");
        }
        assert!(grown < 32, "{what}: {grown} MiB");
    }
    assert_eq!(attacked.posts(), 0, "nothing of it reached the upstream");
}
