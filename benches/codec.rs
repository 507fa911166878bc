//! How long a run of 2.7 kB takes to be read and to be written: with tools, a function's schema, a
//! required action and usage, laid out with white space as services send it.
//!
//! Each poll and each event of a stream pays this once. `cargo bench --bench codec`.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use runs_gateway::{
    json::{decode, encode},
    v1::Run,
};

const RUN: &[u8] = include_bytes!("run.json");

fn codec(criterion: &mut Criterion) {
    let run: Run = decode(RUN).expect("the run is read");
    assert_eq!(run.extra_json, "", "the contract names all of the run");
    let mut group = criterion.benchmark_group("run");
    group.throughput(Throughput::Bytes(RUN.len() as u64));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| decode::<Run>(black_box(RUN)));
    });
    group.bench_function("encode", |bencher| bencher.iter(|| encode(black_box(&run))));
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    codec(&mut criterion);
    criterion.final_summary();
}
