//! Opens streams, reads them, and holds every event to its number.
//!
//! Commands on standard input, each answered with a line: `open N` opens streams until there are N,
//! and answers when each of them has given its first frame; `count` says how many deltas have come;
//! `late PERCENT` says within how many microseconds that part of the deltas came which came since
//! it was last asked for; `finish` answers when all streams have ended well.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, stdin},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{
    Done, Failure, Flags,
    call::{Call, Connection, PATIENCE, ended},
    frames::{Frames, Framing, now, number, sent},
};

pub async fn run(flags: &Flags) -> Done {
    let to: SocketAddr = flags.text("to")?.parse()?;
    let call = Call::named(flags.text("call")?)?;
    let plan = flags.text("thread")?.to_owned();
    let mut connections = Vec::new();
    for _ in 0..flags.number("connections")? {
        connections.push(Connection::new(to).await?);
    }

    let deltas = Arc::new(AtomicU64::new(0));
    let late = Late::default();
    let begun = Arc::new(Semaphore::new(0));
    let mut streams = JoinSet::new();
    let mut opened = 0;
    let mut commands = BufReader::new(stdin()).lines();
    loop {
        let line = tokio::select! {
            line = commands.next_line() => line?,
            // Any stream that fails is the end; one that has ended well is not looked at again.
            Some(stream) = streams.join_next() => {
                stream??;
                continue;
            }
        };
        let Some(line) = line else { return Ok(()) };
        match &line.split(' ').collect::<Vec<_>>()[..] {
            ["open", total] => {
                let total: usize = total.parse()?;
                let more = total.saturating_sub(opened);
                for index in opened..total {
                    let connection = connections[index % connections.len()].clone();
                    let stream = Stream {
                        call,
                        thread: format!("{plan}-{index}"),
                        run: format!("run_{index}"),
                        late: late.clone(),
                    };
                    streams.spawn(stream.read(connection, Arc::clone(&deltas), Arc::clone(&begun)));
                }
                opened = total;
                let all = timeout(PATIENCE, begun.acquire_many(u32::try_from(more)?));
                tokio::pin!(all);
                loop {
                    tokio::select! {
                        all = &mut all => break all.map_err(|_| "not all streams have begun")??.forget(),
                        Some(stream) = streams.join_next() => stream??,
                    }
                }
                println!("open={opened}");
            }
            ["count"] => println!("deltas={}", deltas.load(Relaxed)),
            ["late", percent] => println!("late={}", late.within(percent.parse()?)),
            ["finish"] => {
                while let Some(stream) = streams.join_next().await {
                    stream??;
                }
                println!("deltas={}", deltas.load(Relaxed));
            }
            _ => return Err(format!("no such command: {line}").into()),
        }
    }
}

struct Stream {
    call: Call,
    thread: String,
    run: String,
    late: Late,
}

/// How late deltas came, in microseconds.
#[derive(Clone, Default)]
struct Late(Arc<Mutex<Vec<u64>>>);

impl Late {
    fn add(&self, late: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(late);
    }

    /// Within what time so many percent of them came. Forgets them.
    fn within(&self, percent: usize) -> u64 {
        let mut all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        all.sort_unstable();
        let index = all.len() * percent / 100;
        all.get(index).or(all.last()).copied().unwrap_or(0)
    }
}

impl Stream {
    /// Reads to the end.
    async fn read(
        self,
        connection: Connection,
        deltas: Arc<AtomicU64>,
        begun: Arc<Semaphore>,
    ) -> Result<(), Failure> {
        let mut body = connection.open(self.call, &self.thread, &self.run).await?;
        let mut frames = Frames::new(if self.call.is_grpc() {
            Framing::Grpc
        } else {
            Framing::Events
        });
        let mut first = true;
        let mut next = 0;
        let mut in_order = true;
        while let Some(bytes) = body.data().await {
            let bytes = bytes?;
            body.flow_control().release_capacity(bytes.len())?;
            let (before, came) = (next, now());
            frames.push(&bytes, |frame| {
                if std::mem::take(&mut first) {
                    begun.add_permits(1);
                }
                if let Some(number) = number(frame) {
                    in_order &= number == next;
                    next += 1;
                    if let Some(sent) = sent(frame) {
                        self.late.add(came.saturating_sub(sent));
                    }
                }
            });
            deltas.fetch_add(next - before, Relaxed);
            if !in_order {
                return Err(format!(
                    "{}: an event is missing, or out of order, before the {next}th",
                    self.thread
                )
                .into());
            }
        }
        ended(self.call, body.trailers().await?.as_ref())?;
        if frames.is_empty() {
            Ok(())
        } else {
            Err("a stream ended in the middle of a frame".into())
        }
    }
}
