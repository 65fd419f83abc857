//! Micro-benchmarks of which bytes of a blob are there: what a download notes with each batch, and each reader asks.

use std::hint::black_box;

use criterion::{BatchSize, Criterion};

// The very code that fills run; nothing but they should know of it, so the library does not show it.
#[path = "../src/fill/extents.rs"]
#[expect(unused_imports, reason = "its tests run where it is at home")]
mod extents;

use extents::Extents;

const BLOCK_BYTES: u64 = 256 << 10;
const SEGMENT_BYTES: u64 = 16 << 20;
const BLOB_BYTES: u64 = 10 << 30;
const CONNECTIONS: u64 = 4;

/// The blocks of a blob in the order in which connections that are equally fast bring them.
fn arriving() -> Vec<u64> {
    let round = SEGMENT_BYTES * CONNECTIONS;
    let rounds = (0..BLOB_BYTES).step_by(usize::try_from(round).unwrap_or(usize::MAX));
    rounds
        .flat_map(|start| (0..SEGMENT_BYTES / BLOCK_BYTES).map(move |block| start + block * BLOCK_BYTES))
        .flat_map(|first| (0..CONNECTIONS).map(move |connection| first + connection * SEGMENT_BYTES))
        .collect()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let blocks = arriving();
    let mut group = criterion.benchmark_group("blocks");
    group.bench_function("a blob of 10 GiB arrives on 4 connections", |bencher| {
        bencher.iter_batched_ref(
            Extents::default,
            |there| {
                for block in &blocks {
                    there.insert(*block..block + BLOCK_BYTES);
                }
                there.total()
            },
            BatchSize::SmallInput,
        );
    });
    // Every second block of the blob: as scattered as it gets.
    let mut scattered = Extents::default();
    (0..BLOB_BYTES / BLOCK_BYTES).step_by(2).for_each(|n| scattered.insert(n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES));
    let mut at = (0..BLOB_BYTES).step_by(7_654_321).cycle();
    group.bench_function("where a reader may read to, of 20 480 extents", |bencher| {
        bencher.iter(|| scattered.end_of(black_box(at.next().unwrap_or_default())));
    });
    group.bench_function("what is missing next, of 20 480 extents", |bencher| {
        bencher.iter(|| scattered.gap(black_box(at.next().unwrap_or_default()), BLOB_BYTES));
    });
    group.bench_function("all of 20 480 extents, for a checkpoint", |bencher| {
        bencher.iter(|| scattered.runs_from(black_box(0)).len());
    });
    group.finish();
    criterion.final_summary();
}
