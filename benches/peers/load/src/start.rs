//! The time from starting a command until it has answered a call.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    Done, Failure, Flags,
    call::{Call, Connection, PATIENCE},
};

const PAUSE: Duration = Duration::from_millis(1);

pub async fn run(flags: &Flags) -> Done {
    let to: SocketAddr = flags.text("to")?.parse()?;
    let (thread, run) = (flags.text("thread")?, flags.text("run")?);
    let [program, args @ ..] = &flags.rest[..] else {
        return Err("no command".into());
    };
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let answered = answered(to, thread, run, begin).await;
    let took = begin.elapsed();
    child.kill()?;
    child.wait()?;
    answered?;
    println!("ms={:.3}", took.as_secs_f64() * 1e3);
    Ok(())
}

async fn answered(to: SocketAddr, thread: &str, run: &str, begin: Instant) -> Result<(), Failure> {
    loop {
        match Connection::new(to).await {
            Ok(connection) => return connection.once(Call::Get, thread, run).await,
            Err(error) if begin.elapsed() > PATIENCE => return Err(error),
            Err(_) => sleep(PAUSE).await,
        }
    }
}
