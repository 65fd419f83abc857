//! What crowds of clients and silent upstreams cost, measured against what was promised. Not for an unoptimised build or a busy
//! machine: `cargo test --release --test it -- --ignored crowds:: --nocapture --test-threads 1`, a part of `.ci/long`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::{Connection, Request, send};
use crate::support::images::{Blob, Image};
use crate::support::mirror::{FailingDisk, Mirror, blob, manifest};
use crate::support::program::Program;
use crate::support::registry::{On, Registry};
use crate::support::{all, until, within};
use crate::upstreams::{chained, free_port};

const CROWD: usize = 1000;
const TAGS: usize = 20_000;
const PAGERS: usize = 500;

/// How long each of many requests took.
struct Times(Vec<Duration>);

// === impl Times ===

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn at(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }

    fn max(&self) -> Duration {
        self.at(100)
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [median, late, max] = [50, 99, 100].map(|percent| self.at(percent));
        write!(f, "median {median:.1?}, p99 {late:.1?}, max {max:.1?}")
    }
}

#[expect(clippy::print_stderr, reason = "the report")]
fn say(what: &str) {
    eprintln!("{what}");
}

/// A mirror whose tags are never fresh, and an image that it holds.
async fn holding(registry: &Registry, layers: &[usize]) -> (Mirror, Image) {
    let image = Image::new(1, layers);
    registry.put_image("library/app", "v1", &image);
    let builder = Mirror::builder().upstream("docker.io", registry).tag_ttl("0s");
    let mirror = builder.set("tags", "list_ttl", "\"10m\"").start().await;
    mirror.pull("library/app", "v1", &image).await;
    (mirror, image)
}

/// The times in which a thousand clients that ask at once have their answers, which all are stale; and the time of all.
async fn ask_all_at_once(mirror: &Mirror) -> (Times, Duration) {
    let mut connections = Vec::new();
    for _ in 0..CROWD {
        connections.push(mirror.connect().await);
    }
    let start = Instant::now();
    let tasks = connections.into_iter().map(|mut connection: Connection| async move {
        let sent = Instant::now();
        let answer = connection.exchange(&Request::head(manifest("library/app", "v1"))).await;
        assert_eq!((answer.status(), answer.header("warning").is_some()), (200, true), "{:?}", answer.head);
        sent.elapsed()
    });
    let times = all(tasks).await;
    (Times::new(times), start.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: part of .ci/long"]
async fn a_black_hole_delays_a_thousand_clients_by_one_short_wait_and_the_next_thousand_not_at_all() {
    let registry = Registry::start().await;
    let (mirror, _) = holding(&registry, &[1000]).await;
    registry.forget_seen();
    let silence = registry.gate(On::any());
    let (first, first_all) = ask_all_at_once(&mirror).await;
    let (next, next_all) = ask_all_at_once(&mirror).await;
    say(&format!("a black hole, {CROWD} HEADs of one expired tag: all in {first_all:.1?} ({first})"));
    say(&format!("                           {CROWD} HEADs after that: all in {next_all:.1?} ({next})"));
    let asked = registry.seen(&On::any());
    assert_eq!(asked.iter().map(|seen| seen.method.as_str()).collect::<Vec<_>>(), ["HEAD"]);
    // Two seconds for the check, and what a thousand answers take.
    assert!(first.max() <= Duration::from_millis(2500) && first_all <= Duration::from_secs(3), "{first_all:?} {first}");
    assert!(next_all <= Duration::from_millis(100), "{next_all:?} {next}");
    silence.open();
    mirror.finish().await;
}

/// Has warm pulls measured on a thread of its own, so that they don't wait for what the crowd has to do at its end.
fn warm_pulls_apart(
    addr: std::net::SocketAddr,
    image: &Arc<Image>,
    goes_on: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<Times> {
    let (image, goes_on) = (Arc::clone(image), Arc::clone(goes_on));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(warm_pulls(addr, &image, &goes_on))
    })
}

/// Warm pulls one after the other, each over a connection of its own, while `goes_on`; at least 300.
async fn warm_pulls(addr: std::net::SocketAddr, image: &Image, goes_on: &AtomicBool) -> Times {
    let mut times = Vec::new();
    while goes_on.load(Ordering::Relaxed) || times.len() < 300 {
        let start = Instant::now();
        let mut connection = Connection::open(addr).await;
        connection.exchange(&Request::get(manifest("library/app", &image.manifest.digest))).await;
        for part in image.blobs() {
            let answer = connection.exchange(&Request::get(blob("library/app", &part.digest))).await;
            assert_eq!(answer.body.len(), part.len());
        }
        times.push(start.elapsed());
        // A pull now and then, not a flood of its own.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Times::new(times)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: part of .ci/long"]
async fn five_hundred_clients_that_page_through_twenty_thousand_tags_disturb_no_pull() {
    let registry = Registry::start().await;
    let image = Arc::new(Image::new(1, &[10_000, 500_000]));
    registry.put_image("library/app", "v1", &image);
    let program = Program::new(&registry, "64MiB");
    program.rewrite("ttl = \"0s\"", "ttl = \"0s\"\nlist_ttl = \"10m\"");
    let serving = program.serve().await;
    let addr = serving.addr;
    for part in image.blobs() {
        send(addr, &Request::get(blob("library/app", &part.digest))).await.assert_ok(&part.bytes);
    }
    for n in 0..TAGS {
        registry.put_manifest("library/many", Some(&format!("t{n:05}")), &image.manifest);
    }
    let (goes_on, pages) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let idle = warm_pulls_apart(addr, &image, &goes_on).join().unwrap();
    goes_on.store(true, Ordering::Relaxed);
    // Each reads the whole list, a hundred tags a page and ten pages a second.
    let walks = (0..PAGERS).map(|n| {
        let pages = Arc::clone(&pages);
        async move {
            let mut connection = Connection::open(addr).await;
            let mut next = "/v2/library/many/tags/list?ns=docker.io&n=100".to_owned();
            let mut seen = 0;
            let mut turns = tokio::time::interval_at(
                tokio::time::Instant::now() + Duration::from_micros(n as u64 * 200),
                Duration::from_millis(100),
            );
            loop {
                turns.tick().await;
                let page = connection.exchange(&Request::get(next)).await;
                pages.fetch_add(1, Ordering::Relaxed);
                seen += page.json()["tags"].as_array().unwrap().len();
                let Some(link) = page.header("link") else { return seen };
                next = link.trim_start_matches('<').split_once('>').unwrap().0.to_owned();
            }
        }
    });
    let start = Instant::now();
    let pulls = warm_pulls_apart(addr, &image, &goes_on);
    let seen = all(walks).await;
    goes_on.store(false, Ordering::Relaxed);
    let busy = tokio::task::spawn_blocking(|| pulls.join().unwrap()).await.unwrap();
    let (took, pages) = (start.elapsed(), pages.load(Ordering::Relaxed));
    say(&format!("warm pulls, nobody else there: {idle}"));
    say(&format!("warm pulls, {PAGERS} clients paging ({pages} pages in {took:.1?}): {busy}"));
    say(&format!("p99 {:.2} x", busy.at(99).as_secs_f64() / idle.at(99).as_secs_f64()));
    assert!(seen.iter().all(|seen| *seen == TAGS));
    let walks = registry.seen(&On::any().repository("library/many"));
    assert_eq!(walks.len(), TAGS / 1000, "one walk, a thousand tags a page");
    assert!(busy.at(99) <= 2 * idle.at(99), "{busy} against {idle}");
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: part of .ci/long"]
async fn two_mirrors_configured_at_each_other_say_so_within_a_second() {
    let (one, other) = (free_port(), free_port());
    let (first, second) = (chained(one, other).start().await, chained(other, one).start().await);
    for mirror in [&first, &second] {
        let missing = Blob::new(format!("nobody has this, {}", mirror.addr()));
        for path in [
            manifest("library/app", "v1"),
            manifest("library/app", &missing.digest),
            blob("library/app", &missing.digest),
            "/v2/library/app/tags/list?ns=docker.io".to_owned(),
        ] {
            let start = Instant::now();
            let answer = mirror.get(&path).await;
            let took = start.elapsed();
            say(&format!("a loop of mirrors: {} in {took:.1?}: {}", answer.status(), answer.error_message()));
            assert_eq!(answer.status(), 404, "{path}: {}", answer.text());
            assert!(answer.error_message().contains("a loop of mirrors"), "{path}: {}", answer.text());
            assert!(took < Duration::from_secs(1), "{path} took {took:?}");
        }
    }
    // Both at once, and many of each.
    let digest = Blob::new("nor this").digest;
    let start = Instant::now();
    let asked = (0..100).flat_map(|_| [first.addr(), second.addr()]).map(|addr| {
        let path = blob("library/app", &digest);
        async move { send(addr, &Request::get(path)).await.status() }
    });
    assert!(all(asked).await.iter().all(|status| *status == 404));
    let took = start.elapsed();
    say(&format!("a loop of mirrors, a hundred clients of each at once: all answered in {took:.1?}"));
    assert!(took < Duration::from_secs(1), "{took:?}");
    first.finish().await;
    second.finish().await;
}

/// With the clocks as they are by default.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: part of .ci/long"]
async fn forty_seconds_to_the_first_header_are_a_504_for_the_first_pull_and_none_for_the_next() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[3_000_000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    assert_eq!(mirror.get(&manifest("library/app", "v1")).await.status(), 200);
    let layer = &image.layers[0];
    let gate = registry.gate_blob(&layer.digest);
    let start = Instant::now();
    let opens = cachalot::tasks::spawn("scanner", async move {
        tokio::time::sleep(Duration::from_secs(40)).await;
        gate.open();
    });
    let path = blob("library/app", &layer.digest);
    let first = mirror.get(&path).await;
    say(&format!("40 s to the first header: {} after {:.1?}", first.status(), start.elapsed()));
    assert_eq!(first.status(), 504, "{}", first.text());
    assert!(start.elapsed() < Duration::from_secs(11), "{:?}", start.elapsed());
    within("upstream answers", opens).await.unwrap();
    let retry = mirror.get(&path).await;
    retry.assert_ok(&layer.bytes);
    let asked = registry.count(&On::blob(&layer.digest).get());
    say(&format!("                          200 after {:.1?}, {asked} GET upstream", start.elapsed()));
    assert_eq!(asked, 1);
    mirror.finish().await;
}

/// The resident memory of a process, in KiB.
fn resident_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: part of .ci/long"]
async fn a_disk_of_20_megabytes_a_second_paces_a_download_that_is_kept() {
    const RATE: u64 = 20_000_000;
    const SECONDS: f64 = 10.0;
    let registry = Registry::builder().bandwidth(100_000_000).start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let large = Blob::noise(2, 200_000_000);
    registry.put_blob("library/app", &large);
    let disk = Arc::new(FailingDisk::default());
    let mirror = Mirror::builder().upstream("docker.io", &registry).disk(&disk).tag_ttl("1h").start().await;
    mirror.pull("library/app", "v1", &image).await;
    mirror.idle().await;
    warm_manifests(mirror.addr()).await;
    let quiet = warm_manifests(mirror.addr()).await;
    let before = resident_kib(std::process::id());
    disk.take_a_second(RATE);
    let start = Instant::now();
    let mut reader = mirror.connect().await;
    reader.send(&Request::get(blob("library/app", &large.digest))).await;
    assert_eq!(reader.head().await.status, 200);
    let hits = warm_manifests(mirror.addr()).await;
    let more = resident_kib(std::process::id()).saturating_sub(before);
    let mut taken = 0;
    while taken < large.bytes.len() {
        let part = reader.take((1 << 20).min(large.bytes.len() - taken)).await;
        assert!(part == large.bytes[taken..taken + part.len()]);
        taken += part.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    mirror.idle().await;
    let share = SECONDS / seconds;
    say(&format!(
        "200 MB by a disk of 20 MB/s: {seconds:.1} s, {share:.2} of the disk's rate, {} MiB more",
        more >> 10
    ));
    say(&format!("warm manifests before: {quiet}, and meanwhile: {hits}"));
    assert!(share >= 0.9 && more <= 150 << 10, "{share} of the rate, {more} KiB");
    registry.go_down().await;
    mirror.get(&blob("library/app", &large.digest)).await.assert_ok(&large.bytes);
    mirror.finish().await;
}

/// How long warm manifests take, asked over eight connections.
async fn warm_manifests(addr: std::net::SocketAddr) -> Times {
    let tasks = (0..8).map(|_| async move {
        let mut connection = Connection::open(addr).await;
        let mut times = Vec::new();
        for _ in 0..1000 {
            let start = Instant::now();
            let answer = connection.exchange(&Request::get(manifest("library/app", "v1"))).await;
            assert_eq!(answer.status(), 200);
            times.push(start.elapsed());
        }
        times
    });
    Times::new(all(tasks).await.concat())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: part of .ci/long"]
async fn ten_thousand_idle_connections_and_two_hundred_that_drip_disturb_nobody() {
    const IDLE: usize = 10_000;
    const DRIPPING: usize = 200;
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let program = Program::new(&registry, "64MiB");
    program.rewrite("[server]\n", "[server]\nmax_connections = 12000\n");
    program.rewrite("ttl = \"0s\"", "ttl = \"1h\"");
    let serving = program.serve().await;
    let (addr, process) = (serving.addr, serving.id());
    warm_manifests(addr).await;
    let quiet = warm_manifests(addr).await;
    let before = resident_kib(process);
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut connection = Connection::open(addr).await;
        assert_eq!(connection.exchange(&Request::head(manifest("library/app", "v1"))).await.status(), 200);
        idle.push(connection);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let dripped = Arc::new(AtomicUsize::new(0));
    let dripping: Vec<_> = (0..DRIPPING)
        .map(|_| {
            let (stop, dripped) = (Arc::clone(&stop), Arc::clone(&dripped));
            cachalot::tasks::spawn("drip", async move {
                let mut connection = Connection::open(addr).await;
                connection.send_raw(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
                while !stop.load(Ordering::Relaxed) {
                    connection.send_raw(b"a").await;
                    dripped.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            })
        })
        .collect();
    until("all drip", || dripped.load(Ordering::Relaxed) >= DRIPPING).await;
    let crowded = warm_manifests(addr).await;
    let more = resident_kib(process).saturating_sub(before);
    stop.store(true, Ordering::Relaxed);
    for task in dripping {
        within("the dripping ends", task).await.unwrap();
    }
    say(&format!("warm manifests, nobody else there: {quiet}"));
    say(&format!("warm manifests, {IDLE} idle connections and {DRIPPING} slow ones: {crowded}"));
    say(&format!("p99 {:.2} x, {} MiB more", crowded.at(99).as_secs_f64() / quiet.at(99).as_secs_f64(), more >> 10));
    assert!(crowded.at(99) <= 3 * quiet.at(99), "{crowded} against {quiet}");
    assert!(more <= 250 << 10, "{more} KiB");
    drop(idle);
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: part of .ci/long"]
async fn ten_times_as_many_misses_as_may_be_are_told_so_at_once_and_hits_go_on() {
    const MISSES: usize = 50;
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let blobs: Vec<_> = (0..10 * MISSES as u64).map(|seed| Blob::noise(100 + seed, 2000)).collect();
    for part in &blobs {
        registry.put_blob("library/app", part);
    }
    let builder = Mirror::builder().upstream("docker.io", &registry).tag_ttl("1h");
    let builder = builder.upstream_set("docker.io", "max_connections", "100");
    let mirror = builder.set("server", "max_misses", &MISSES.to_string()).start().await;
    mirror.pull("library/app", "v1", &image).await;
    mirror.idle().await;
    let addr = mirror.addr();
    let quiet = warm_manifests(addr).await;
    let silence = registry.gate(On::kind(crate::support::registry::Kind::Blob));
    // As many as may be wait for upstream; all others, and who asks again and again, are sent away.
    let waiting: Vec<_> = blobs[..MISSES].iter().map(|part| blob("library/app", &part.digest)).collect();
    let waiting = waiting.into_iter().map(|path| async move { send(addr, &Request::get(path)).await.status() });
    let waiting = cachalot::tasks::spawn("misses", all(waiting.collect::<Vec<_>>()));
    registry.asked(&On::kind(crate::support::registry::Kind::Blob), MISSES).await;
    let refused = blobs[MISSES..].iter().map(|part| blob("library/app", &part.digest)).map(|path| async move {
        let start = Instant::now();
        let answer = send(addr, &Request::get(path)).await;
        assert_eq!(answer.status(), 503);
        assert!(answer.header("retry-after").is_some());
        start.elapsed()
    });
    let (refused, crowded) = tokio::join!(all(refused.collect::<Vec<_>>()), warm_manifests(addr));
    let refused = Times::new(refused);
    let start = Instant::now();
    silence.open();
    assert!(within("the misses", waiting).await.unwrap().iter().all(|status| *status == 200));
    mirror.get_once_well(&blob("library/app", &blobs[MISSES].digest)).await.assert_ok(&blobs[MISSES].bytes);
    let recovered = start.elapsed();
    say(&format!("{} misses where {MISSES} may be: refused after {refused}", 10 * MISSES));
    say(&format!("warm manifests before: {quiet}; meanwhile: {crowded}"));
    say(&format!("well again {recovered:.1?} after upstream answers"));
    assert!(refused.max() < Duration::from_secs(1), "{refused}");
    assert!(crowded.max() < Duration::from_secs(2), "{crowded}");
    assert!(recovered < Duration::from_secs(5), "{recovered:?}");
    mirror.finish().await;
}
