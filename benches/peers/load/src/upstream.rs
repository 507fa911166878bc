//! An upstream that streams the events of runs, over HTTP/1.1, written for speed: it must not be
//! what is measured.
//!
//! A thread's id says what is streamed: `bulk-N-…` is N deltas in chunks of 16 KiB, as fast as they
//! are read; `paced-MS-N-…` is a delta every MS milliseconds, each in a chunk of its own, N of
//! them, with the time at which it was sent; `large-BYTES-N-…` is N deltas of so many bytes more.
//! Deltas are numbered in their text. A run on `steps-N-…` is completed and has N steps, numbered
//! likewise; one on `kept-N-…` has them, too, and goes on.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{Done, Failure, Flags, frames::now};

const CHUNK: usize = 16 << 10;
const CREATED: &str = r#"event: thread.run.created
data: {"id":"run_load","object":"thread.run","created_at":1764672000,"thread_id":"thread_load","assistant_id":"asst_load","status":"queued"}

"#;
const ENDED: &str = r#"event: thread.run.completed
data: {"id":"run_load","object":"thread.run","created_at":1764672000,"thread_id":"thread_load","assistant_id":"asst_load","status":"completed"}

event: done
data: [DONE]

"#;
const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A delta of about 300 bytes.
fn delta(number: u64, more: usize) -> String {
    let more = "All trains call at every station. ".repeat(more.div_ceil(34));
    format!(
        "event: thread.message.delta\ndata: {{\"id\":\"msg_Qm3zXb8LkT2vYw7Rc5NpHd1F\",\"object\":\"thread.message.delta\",\"delta\":{{\"content\":\
         [{{\"index\":0,\"type\":\"text\",\"text\":{{\"value\":\"#{number:08}# The next train to the coast leaves at nine from platform four, and \
         the one after it an hour later.{more}\",\"annotations\":[]}}}}]}}}}\n\n"
    )
}

/// `text` as one chunk of a chunked body.
fn chunk(text: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

/// Bodies of bulk streams, whole, by the size of their deltas and by how many they are.
type Bodies = Arc<Mutex<HashMap<(usize, u64), Arc<Vec<u8>>>>>;

pub async fn run(flags: &Flags) -> Done {
    let listener = TcpListener::bind(flags.text("listen")?.parse::<SocketAddr>()?).await?;
    println!("listening");
    let bodies = Bodies::default();
    loop {
        let (stream, _) = listener.accept().await?;
        let bodies = Arc::clone(&bodies);
        // A caller that leaves ends its connection, and only that.
        tokio::spawn(async move { _ = serve(stream, &bodies).await });
    }
}

async fn serve(mut stream: TcpStream, bodies: &Bodies) -> Done {
    stream.set_nodelay(true)?;
    let mut unread = Vec::with_capacity(4 << 10);
    while let Some(path) = request(&mut stream, &mut unread).await? {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match parts[..] {
            ["threads", thread, "runs"] => match thread.split('-').collect::<Vec<_>>()[..] {
                ["bulk", deltas, ..] => {
                    let body = bulk(bodies, 0, deltas.parse()?).await;
                    stream.write_all(&body).await?;
                }
                ["large", bytes, deltas, ..] => {
                    let body = bulk(bodies, bytes.parse()?, deltas.parse()?).await;
                    stream.write_all(&body).await?;
                }
                ["paced", pause, deltas, ..] => {
                    paced(&mut stream, pause.parse()?, deltas.parse()?).await?;
                }
                _ => return Err("no such plan".into()),
            },
            ["threads", thread, "runs", run] => {
                stream.write_all(found(thread, run).as_bytes()).await?;
            }
            ["threads", thread, "runs", run, list] if list.starts_with("steps?") => {
                let page = steps(thread, run, list)?;
                stream.write_all(document(&page).as_bytes()).await?;
            }
            _ => return Err("no such path".into()),
        }
    }
    Ok(())
}

/// The path of the next request, once all of the request has been read.
async fn request(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Result<Option<String>, Failure> {
    let body = loop {
        if let Some(end) = memmem::find(unread, b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    };
    let head = str::from_utf8(&unread[..body])?.to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Ok(0), |it| it.trim().parse())?;
    let path = str::from_utf8(&unread[..body])?
        .split(' ')
        .nth(1)
        .ok_or("not a request")?
        .to_owned();
    while unread.len() < body + length {
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
    unread.drain(..body + length);
    Ok(Some(path))
}

async fn bulk(bodies: &Bodies, more: usize, deltas: u64) -> Arc<Vec<u8>> {
    let mut bodies = bodies.lock().await;
    let body = bodies.entry((more, deltas)).or_insert_with(|| {
        let mut text = CREATED.to_owned();
        text.extend((0..deltas).map(|number| delta(number, more)));
        text.push_str(ENDED);
        let mut body = STREAM_HEAD.as_bytes().to_vec();
        body.extend(text.as_bytes().chunks(CHUNK).flat_map(chunk));
        body.extend(b"0\r\n\r\n");
        Arc::new(body)
    });
    Arc::clone(body)
}

async fn paced(stream: &mut TcpStream, pause: u64, deltas: u64) -> Done {
    stream
        .write_all(&[STREAM_HEAD.as_bytes(), &chunk(CREATED.as_bytes())].concat())
        .await?;
    let mut event = chunk(delta(0, 0).as_bytes());
    let digits = 1 + memchr::memchr(b'#', &event).expect("a delta has a number");
    // Behind the number, in place of the text's beginning.
    let time = digits + 10;
    let pause = Duration::from_millis(pause);
    let mut ticks = interval_at(Instant::now() + pause, pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0..deltas {
        event[digits..digits + 8].copy_from_slice(format!("{number:08}").as_bytes());
        ticks.tick().await;
        event[time..time + 18].copy_from_slice(format!("@{:016}@", now()).as_bytes());
        stream.write_all(&event).await?;
    }
    stream
        .write_all(&[&chunk(ENDED.as_bytes()), "0\r\n\r\n".as_bytes()].concat())
        .await?;
    Ok(())
}

/// A page of the steps of a run.
fn steps(thread: &str, run: &str, list: &str) -> Result<String, Failure> {
    const PAGE: usize = 100;
    let (_, total) = thread.split_once('-').ok_or("no such plan")?;
    let total: usize = total.split('-').next().unwrap_or_default().parse()?;
    let after = list
        .split(['?', '&'])
        .find_map(|it| it.strip_prefix("after=step_"));
    let begin = after.map_or(Ok(0), |number| number.parse().map(|last: usize| last + 1))?;
    let end = total.min(begin + PAGE);
    let page: Vec<_> = (begin..end)
        .map(|number| step(thread, run, number))
        .collect();
    Ok(format!(
        "{{\"object\":\"list\",\"data\":[{}],\"has_more\":{}}}",
        page.join(","),
        end < total
    ))
}

/// A step of about 1,000 bytes.
fn step(thread: &str, run: &str, number: usize) -> String {
    let output = "The train to the coast leaves at nine from platform four. ".repeat(9);
    format!(
        "{{\"id\":\"step_{number:06}\",\"object\":\"thread.run.step\",\"created_at\":1764672002,\"run_id\":\"{run}\",\
         \"assistant_id\":\"asst_load\",\"thread_id\":\"{thread}\",\"type\":\"tool_calls\",\"status\":\"completed\",\
         \"completed_at\":1764672003,\"step_details\":{{\"type\":\"tool_calls\",\"tool_calls\":[{{\"id\":\"call_{number:06}\",\
         \"type\":\"function\",\"function\":{{\"name\":\"find_trains\",\"arguments\":\"{{\\\"to\\\":\\\"coast\\\"}}\",\
         \"output\":\"#{number:08}# {output}\"}}}}]}}}}"
    )
}

/// A run that goes on for ever, but on `steps-…`.
fn found(thread: &str, run: &str) -> String {
    let status = if thread.starts_with("steps-") {
        "completed"
    } else {
        "in_progress"
    };
    let run = format!(
        "{{\"id\":\"{run}\",\"object\":\"thread.run\",\"created_at\":1764672000,\"thread_id\":\"{thread}\",\"assistant_id\":\"asst_load\",\
         \"status\":\"{status}\",\"started_at\":1764672001,\"expires_at\":null,\"model\":\"gpt-4o\",\"instructions\":\"Answer briefly.\",\
         \"tools\":[],\"metadata\":{{}}}}"
    );
    document(&run)
}

/// An answer that is a document.
fn document(text: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    )
}
