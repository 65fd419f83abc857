//! A long run of the real program under everything at once: rollouts, evictions, reloads, an upstream that comes and goes, and a
//! clock that jumps. What it takes of the machine must not grow.
//!
//! `SOAK_SECONDS=1200 cargo test --release --test it -- --ignored soak:: --nocapture`, a part of `.ci/long`; it wants Debian's
//! `faketime` for the jumps of the clock.

#![expect(clippy::cast_precision_loss, reason = "for a report")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::{Answer, Connection, End, Request, send};
use crate::support::images::Image;
use crate::support::mirror::{blob, disk_usage, manifest};
use crate::support::program::{Program, Serving};
use crate::support::registry::Registry;
use crate::support::within;

const IMAGES: usize = 40;
const WORKERS: usize = 8;
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// What the program takes of the machine at a moment.
#[derive(Clone, Copy)]
struct Sample {
    at: f64,
    values: [f64; 4],
}

/// What is sampled, in which unit, and by how much the end of a run may differ from its beginning.
const WATCHED: [(&str, f64); 4] =
    [("memory, MiB", 24.0), ("descriptors", 40.0), ("threads", 8.0), ("du minus index, MiB", 2.0)];

/// What the workers saw.
#[derive(Default)]
struct Tally {
    right: AtomicUsize,
    honest_errors: AtomicUsize,
    short: AtomicUsize,
}

#[expect(clippy::print_stderr, reason = "the report")]
fn say(what: &str) {
    eprintln!("{what}");
}

/// An answer is right, or an honest error, or a right beginning that ends short.
fn judge(answer: &Answer, bytes: &[u8], tally: &Tally) -> bool {
    match (answer.status(), answer.end) {
        (200, End::Complete) => {
            assert!(answer.body == bytes, "wrong bytes: {:?}", answer.head);
            tally.right.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        (200, _) => {
            assert!(bytes.starts_with(&answer.body), "a wrong beginning: {:?}", answer.head);
            tally.short.fetch_add(1, Ordering::Relaxed);
        }
        (500..=504, _) => {
            tally.honest_errors.fetch_add(1, Ordering::Relaxed);
        }
        (status, _) => panic!("{status}: {}", answer.text()),
    }
    false
}

/// Pulls images one after the other, as a node does in a rollout, until told to stop.
async fn pulls(
    addr: std::net::SocketAddr,
    seed: usize,
    images: Arc<Vec<Image>>,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
) {
    let mut turn = seed * 7919;
    while !stop.load(Ordering::Relaxed) {
        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Some are asked for by everyone at a time, others now and then.
        let number = if turn >> 60 & 1 == 0 { (turn >> 33) % 5 } else { (turn >> 33) % IMAGES };
        let (image, repository) = (&images[number], format!("library/app{number}"));
        let mut connection = Connection::open(addr).await;
        let head = connection.exchange(&Request::head(manifest(&repository, "v1"))).await;
        let by_digest = manifest(&repository, &image.manifest.digest);
        if head.status() == 200
            && judge(&connection.exchange(&Request::get(by_digest)).await, &image.manifest.bytes, &tally)
        {
            for part in image.blobs() {
                let answer = send(addr, &Request::get(blob(&repository, &part.digest))).await;
                judge(&answer, &part.bytes, &tally);
            }
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

async fn metric(serving: &Serving, name: &str) -> f64 {
    let text = send(serving.admin, &Request::get("/metrics")).await.text();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}")).to_owned();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn sample(serving: &Serving, data: &Path, since: Instant) -> Sample {
    const MIB: f64 = 1_048_576.0;
    let process = PathBuf::from(format!("/proc/{}", serving.id()));
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let field = |name: &str| -> f64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let descriptors = std::fs::read_dir(process.join("fd")).unwrap().count();
    let held = metric(serving, "cachalot_store_bytes ").await + metric(serving, "cachalot_store_reserved_bytes ").await;
    let beyond = (disk_usage(data) as f64 - held) / MIB;
    let values = [field("VmRSS:") / 1024.0, descriptors as f64, field("Threads:"), beyond];
    Sample { at: since.elapsed().as_secs_f64(), values }
}

/// By how much a value grows in an hour, by least squares.
fn slope(samples: &[Sample], which: usize) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (at, value) = (mean(&|sample| sample.at), mean(&|sample| sample.values[which]));
    let rise: f64 = samples.iter().map(|sample| (sample.at - at) * (sample.values[which] - value)).sum();
    let run: f64 = samples.iter().map(|sample| (sample.at - at).powi(2)).sum();
    rise / run * 3600.0
}

/// The `n`-th trouble, one after the other.
async fn trouble(n: usize, registry: &Registry, program: &Program, serving: &Serving, clock: &Path) {
    match n % 6 {
        0 => {
            registry.go_down().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            registry.come_back().await;
        }
        1 | 4 => {
            let (from, to) = if n % 12 < 6 { ("96MiB", "64MiB") } else { ("64MiB", "96MiB") };
            if n % 6 == 1 {
                program.rewrite(from, to);
            }
            serving.hang_up();
        }
        2 => std::fs::write(clock, "+3600\n").unwrap(),
        3 => std::fs::write(clock, "-3600\n").unwrap(),
        _ => std::fs::write(clock, "+0\n").unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as SOAK_SECONDS says: part of .ci/long"]
async fn nothing_grows_whatever_happens() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(1200, |text| text.parse().expect("SOAK_SECONDS is a number"));
    let registry = Registry::builder().redirect_blobs().start().await;
    let images: Vec<_> = (0..IMAGES as u64).map(|seed| Image::new(seed, &[20_000, 400_000, 3_000_000])).collect();
    for (number, image) in images.iter().enumerate() {
        registry.put_image(&format!("library/app{number}"), "v1", image);
    }
    let images = Arc::new(images);
    let program = Program::new(&registry, "96MiB");
    program.rewrite("ttl = \"0s\"", "ttl = \"5s\"");
    let clock = program.data().with_file_name("clock");
    std::fs::write(&clock, "+0\n").unwrap();
    let serving = program.serve_by_clock(&clock).await;
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let workers: Vec<_> = (0..WORKERS)
        .map(|seed| {
            let (images, stop, tally) = (Arc::clone(&images), Arc::clone(&stop), Arc::clone(&tally));
            cachalot::tasks::spawn("worker", pulls(serving.addr, seed, images, stop, tally))
        })
        .collect();
    let (start, data) = (Instant::now(), program.data());
    let mut samples = Vec::new();
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    for n in 0.. {
        ticks.tick().await;
        samples.push(sample(&serving, &data, start).await);
        if start.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        trouble(n, &registry, &program, &serving, &clock).await;
        registry.forget_seen();
    }
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        within("a worker ends", worker).await.expect("a worker failed");
    }
    let evicted = metric(&serving, "cachalot_evicted_bytes_total ").await;
    say(&format!(
        "{} s: {} right answers, {} honest errors, {} short bodies; {:.0} MiB evicted",
        start.elapsed().as_secs(),
        tally.right.load(Ordering::Relaxed),
        tally.honest_errors.load(Ordering::Relaxed),
        tally.short.load(Ordering::Relaxed),
        evicted / 1_048_576.0
    ));
    // The first quarter is for warming up.
    let settled = &samples[samples.len() / 4..];
    let mut grown = Vec::new();
    for (which, (name, allowed)) in WATCHED.iter().enumerate() {
        let grows = slope(settled, which);
        let span = (settled[settled.len() - 1].at - settled[0].at) / 3600.0;
        let values = settled.iter().map(|sample| sample.values[which]);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        say(&format!("{name}: {low:.1} to {high:.1}, {grows:+.2} an hour"));
        if grows * span > *allowed {
            grown.push(name);
        }
    }
    assert!(evicted > 0.0 && tally.right.load(Ordering::Relaxed) > 0);
    assert!(grown.is_empty(), "grew: {grown:?}");
    serving.kill();
}
