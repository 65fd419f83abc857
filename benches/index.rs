//! Micro-benchmark of what every hit asks the store: whether a blob is held, of a thousand and of a million.
//!
//! The million are empty files in a folder for temporary files; making and removing them takes a minute or two.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cachalot::metrics::Metrics;
use cachalot::oci::{Algorithm, Digest};
use cachalot::store::{Budget, FileSystemFacts, Options, Store};
use criterion::{BenchmarkId, Criterion};

/// Places so many files where a store finds its blobs; returns some of their names.
fn hold(root: &Path, count: u32) -> std::io::Result<Vec<Digest>> {
    let mut some = Vec::new();
    for n in 0..count {
        let digest = Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        let text = digest.to_string();
        let hex = text.trim_start_matches("sha256:");
        let folder = root.join("v1/blobs/sha256").join(&hex[..2]);
        if n < 4096 {
            fs::create_dir_all(&folder)?;
        }
        fs::File::create(folder.join(hex))?;
        if n % 997 == 0 {
            some.push(digest);
        }
    }
    Ok(some)
}

fn look_ups(criterion: &mut Criterion) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut group = criterion.benchmark_group("index look-up");
    for count in [1_000, 1_000_000] {
        let folder = tempfile::tempdir()?;
        let digests = hold(folder.path(), count)?;
        let budget = |_: &FileSystemFacts| Budget { capacity_bytes: 1 << 40, min_free_bytes: 0, min_free_inodes: 0 };
        let options = Options {
            path: folder.path().to_owned(),
            budget: Arc::new(budget),
            lock_wait: Duration::ZERO,
            shrink_grace: Options::SHRINK_GRACE,
            offline: false,
            io_threads: 2,
            faults: None,
        };
        let store = runtime.block_on(Store::open(options, Arc::new(Metrics::new())))?;
        let mut next = digests.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| store.size_of(black_box(next.next().unwrap_or(&digests[0]))));
        });
        runtime.block_on(store.close());
    }
    group.finish();
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut criterion = Criterion::default().configure_from_args();
    look_ups(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
