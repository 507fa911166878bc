//! The live view, on a terminal that is one: what stands on the screen.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    num::NonZero,
    process::Stdio,
    thread,
    time::Duration,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{process::Command, sync::mpsc, time::timeout};

use crate::{
    script::{FAST, soon},
    shown::{begun, delta, ended},
    support::{
        gateway::spawn_gateway,
        program::PROGRAM,
        upstream::{Answer, Upstream},
    },
};

const ROWS: NonZero<u16> = NonZero::new(24).expect("more than none");
const COLUMNS: NonZero<u16> = NonZero::new(40).expect("more than none");

/// How long anything is waited for.
const LIMIT: Duration = Duration::from_secs(20);

/// The text stands once, broken between words, with the line of the status below it while the run
/// goes on, and without it afterwards.
#[tokio::test]
async fn the_text_grows_above_the_status() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let (say, saying) = mpsc::channel(16);
    upstream.push(Answer::sse_with(saying));

    let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&control).expect("a terminal");
    unlockpt(&control).expect("a terminal");
    let name = ptsname(&control, Vec::new()).expect("a name");
    let size = Winsize {
        ws_row: ROWS.get(),
        ws_col: COLUMNS.get(),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&control, size).expect("a size");
    let terminal = || {
        let name = name.to_str().expect("text");
        let file = File::options().read(true).write(true).open(name);
        Stdio::from(file.expect("a terminal"))
    };
    let mut child = Command::new(PROGRAM)
        .args([
            "run",
            "?",
            "--assistant",
            "asst_1",
            "--addr",
            &gateway.address().to_string(),
        ])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(terminal())
        .stderr(terminal())
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts");
    let (shows, mut shown) = tokio::sync::watch::channel(String::new());
    thread::spawn(move || {
        let (mut control, mut piece) = (File::from(control), [0; 4096]);
        let mut screen = vt100::Parser::new(ROWS, COLUMNS, 0);
        while let Ok(count @ 1..) = control.read(&mut piece) {
            screen.write_all(&piece[..count]).expect("never fails");
            let rows = screen.screen().rows(0, COLUMNS.get());
            let rows: Vec<_> = rows.map(|row| row.trim_end().to_owned()).collect();
            shows.send_replace(rows.join("\n"));
        }
    });
    let mut has = async |text: &str| {
        let came = timeout(LIMIT, shown.wait_for(|screen| screen.contains(text)))
            .await
            .is_ok();
        assert!(
            came,
            "{text:?} is missing:
{}",
            *shown.borrow()
        );
        shown.borrow().clone()
    };

    for bytes in begun("The weather in Paris ") {
        say.send(bytes).await.expect("a reader");
    }
    let screen = has("The weather in Paris\nin_progress · 1 step · ").await;
    assert!(
        screen.starts_with("run run_1 on thread thread_1, model m\n"),
        "{screen}"
    );
    for word in ["is sunny ", "and warm, 漢字\tis ", "it not?\nAnd "] {
        say.send(delta("msg_1", word)).await.expect("a reader");
    }
    let text = "The weather in Paris is sunny and warm,\n漢字    is it not?\nAnd";
    let screen = has(&format!("{text}\nin_progress · 1 step · ")).await;
    assert_eq!(screen.matches("in_progress ·").count(), 1, "{screen}");
    let whole = "The weather in Paris is sunny and warm, 漢字\tis it not?\nAnd so on.";
    for bytes in [vec![delta("msg_1", "so on.")], ended(whole)].concat() {
        say.send(bytes).await.expect("a reader");
    }
    drop(say);
    let status = soon(child.wait()).await.expect("an end");
    assert_eq!(status.code(), Some(0));
    let screen = has("completed after").await;
    assert!(screen.contains(&format!("{text} so on.\n")), "{screen}");
    assert_eq!(screen.matches("weather").count(), 1, "{screen}");
    assert!(!screen.contains("in_progress ·"), "{screen}");
    gateway.drain().await;
}
