//! Framing's throughput: events of some 300 bytes, as a run's message deltas are, by how they
//! arrive.

#![allow(missing_docs, reason = "criterion's macros write public functions")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use runs_gateway::upstream::sse::Parser;

const EVENTS: usize = 4096;

fn event(number: usize) -> String {
    let text = "x".repeat(120);
    format!(
        "event: thread.message.delta\ndata: {{\"id\":\"msg_{number:016}\",\"object\":\"thread.message.delta\",\"delta\":{{\"content\":\
         [{{\"index\":0,\"type\":\"text\",\"text\":{{\"value\":\"{text}\"}}}}]}}}}\n\n"
    )
}

fn read(chunks: &[Bytes]) -> usize {
    let mut parser = Parser::new(4 << 20);
    let mut frames = 0;
    for chunk in chunks {
        parser.push(chunk.clone());
        while let Some(frame) = parser.next_frame().expect("within the limit") {
            black_box(frame);
            frames += 1;
        }
    }
    frames
}

fn framing(criterion: &mut Criterion) {
    let events: Vec<String> = (0..EVENTS).map(event).collect();
    let whole = events.concat();
    let each: Vec<Bytes> = events.into_iter().map(Bytes::from).collect();
    let chunks: Vec<Bytes> = whole
        .as_bytes()
        .chunks(16 << 10)
        .map(Bytes::copy_from_slice)
        .collect();

    let mut group = criterion.benchmark_group("sse");
    group.throughput(Throughput::Bytes(whole.len() as u64));
    for (name, chunks) in [("16 KiB chunks", chunks), ("one event a chunk", each)] {
        assert_eq!(read(&chunks), EVENTS);
        group.bench_function(name, |bencher| bencher.iter(|| read(&chunks)));
    }
}

criterion_group!(benches, framing);
criterion_main!(benches);
