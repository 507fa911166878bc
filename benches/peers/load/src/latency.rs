//! Calls at a fixed rate. Each is timed from the moment when it was due, so that one that had to
//! wait for others is not made to look fast.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    Done, Failure, Flags,
    call::{Call, Connection},
};

const CONNECTIONS: usize = 8;

/// The percents of calls whose longest time is told.
const PARTS: [f64; 14] = [
    10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.99, 100.0,
];

pub async fn run(flags: &Flags) -> Done {
    let to: SocketAddr = flags.text("to")?.parse()?;
    let call = Call::named(flags.text("call")?)?;
    let (thread_id, run) = (
        flags.text("thread")?.to_owned(),
        flags.text("run")?.to_owned(),
    );
    let (rate, seconds) = (
        u32::try_from(flags.number("rate")?)?,
        u32::try_from(flags.number("seconds")?)?,
    );
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let connection = Connection::new(to).await?;
        connection.once(call, &thread_id, &run).await?;
        connections.push(connection);
    }

    let mut due = clock(rate, rate * seconds);
    let mut calls: JoinSet<Result<Duration, Failure>> = JoinSet::new();
    let mut turn = connections.iter().cycle();
    while let Some(due) = due.recv().await {
        let connection = turn.next().expect("a cycle").clone();
        let (thread_id, run) = (thread_id.clone(), run.clone());
        calls.spawn(async move {
            connection.once(call, &thread_id, &run).await?;
            Ok(due.elapsed())
        });
    }
    let mut times = Vec::new();
    while let Some(time) = calls.join_next().await {
        times.push(time??);
    }
    times.sort_unstable();
    print!("calls={}", times.len());
    for part in PARTS {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "an index"
        )]
        let index = ((times.len() - 1) as f64 * part / 100.0) as usize;
        print!(" p{part}={:.4}", times[index].as_secs_f64() * 1e3);
    }
    println!();
    Ok(())
}

/// Says when each of `calls` calls is due. A thread of its own, since the runtime's timer ticks in
/// milliseconds.
fn clock(rate: u32, calls: u32) -> mpsc::UnboundedReceiver<Instant> {
    let (say, due) = mpsc::unbounded_channel();
    thread::spawn(move || {
        let begin = Instant::now();
        for call in 0..calls {
            let moment = begin + Duration::from_secs(1) * call / rate;
            thread::sleep(moment.saturating_duration_since(Instant::now()));
            if say.send(moment).is_err() {
                return;
            }
        }
    });
    due
}
