//! What is claimed of Cachalot alone: how it holds up with many readers, large stores, cold pages, and a mixed load.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{self, Client};
use crate::content::Image;
use crate::report::{Better, Row, spread};
use crate::servers::{self, Server};
use crate::workloads::{World, warm};

/// Run only when named.
pub(crate) const ALL: [(&str, crate::workloads::Workload); 5] =
    [("joiners", joiners), ("readers", readers), ("index", index), ("cold-pages", cold_pages), ("life", life)];

/// How fast upstream is where it is slow.
const SLOW: u64 = 20_000_000;

fn row(what: impl Into<String>, unit: &'static str, value: f64) -> Row {
    let mut row = Row::new(what, unit, Better::Less);
    row.push("cachalot", value);
    row
}

fn resolve(server: &Server, image: &Image) -> io::Result<()> {
    for path in [image.tag_path(), image.manifest_path()] {
        client::each(server.addr, &client::get(&path, None), 1, 1)?;
    }
    Ok(())
}

/// Clients that join a download which comes at 20 MB/s.
fn joiners(world: &mut World) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for clients in [1usize, 10, 100] {
        let image = world.cold_image(160_000_000)?;
        resolve(&world.cachalot, &image)?;
        world.upstream.limit(SLOW);
        let request = client::get(&image.blob_path(), None);
        let mut first = Client::connect(world.cachalot.addr)?;
        first.send(&request)?;
        first.receive_some(1)?;
        // The download is under way; now they join.
        let (joined, cpu) = (Instant::now(), world.cachalot.cpu_seconds());
        world.upstream.taken();
        let addr = world.cachalot.addr;
        let ends: io::Result<Vec<f64>> = thread::scope(|scope| {
            let join = || client::each(addr, &request, 1, 1).map(|_| joined.elapsed().as_secs_f64());
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(join)).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("a client failed"))?).collect()
        });
        let ends = ends?;
        let (used, seconds) = (world.cachalot.cpu_seconds() - cpu, joined.elapsed().as_secs_f64());
        let arriving = world.upstream.taken().0 as f64 / SLOW as f64;
        world.upstream.limit(0);
        let name = format!("{clients} readers join a download at 20 MB/s");
        rows.push(row(format!("{name}: rate of the slowest ÷ rate of arrival"), "", arriving / spread(ends)[2]));
        rows.push(row(format!("{name}: server CPU"), "% of a core", used / seconds * 100.0));
        // The same bytes again, held: what is left is what following costs.
        let before = world.cachalot.cpu_seconds();
        client::each(addr, &request, clients.min(4), clients.div_ceil(4))?;
        let sending = world.cachalot.cpu_seconds() - before;
        rows.push(row(format!("{name}: the same bytes as hits"), "% of a core", sending / seconds * 100.0));
    }
    Ok(rows)
}

/// A thousand clients of one blob, driven by one thread: what they cost, and whether some wait longer than others.
fn readers(world: &mut World) -> io::Result<Vec<Row>> {
    const COUNT: usize = 1000;
    let enough = 8 << 20;
    let addr = world.cachalot.addr;
    let before = world.cachalot.resident_bytes();
    let request = client::get(&world.large.blob_path(), None);
    let ends = client::streams(addr, &request, COUNT, enough, || world.cachalot.resident_bytes())?;
    let grown = ends.grown_from(before);
    let [_, median, last] = spread(ends.times);
    let name = format!("{COUNT} readers of one warm blob");
    Ok(vec![
        row(format!("{name}: memory grown by"), "MiB", (grown >> 20) as f64),
        row(format!("{name}: 8 MiB, slowest ÷ median"), "", last / median),
    ])
}

/// Processor time of a hit with many blobs in the index.
fn index(world: &mut World) -> io::Result<Vec<Row>> {
    let image = world.small.clone();
    let request = client::get(&image.blob_path(), None);
    let mut row = Row::new("warm 64 KiB blob with 1 000 blobs held: server CPU", "µs/request", Better::Less);
    let mut many = Row::new("the same with 1 000 000 blobs held", "µs/request", Better::Less);
    let start = |world: &World, name: &str, blobs: u32| {
        let folder = world.path.join(name);
        hold(&folder.join("data"), blobs, 0)?;
        let server = servers::cachalot(&folder, &world.upstream.url(), None)?;
        // Until the store is open it answers 503.
        let opening = Instant::now();
        while warm(&server, &image).is_err() && opening.elapsed() < Duration::from_mins(2) {
            thread::sleep(Duration::from_millis(100));
        }
        Ok::<_, io::Error>(server)
    };
    let (few, lots) = (start(world, "few", 1_000)?, start(world, "many", 1_000_000)?);
    for _ in 0..world.scale.rounds {
        for (server, row) in [(&few, &mut row), (&lots, &mut many)] {
            let before = server.cpu_seconds();
            let load = client::during(server.addr, || request.clone(), 32, world.scale.duration)?;
            row.push("cachalot", (server.cpu_seconds() - before) * 1e6 / load.requests as f64);
        }
    }
    Ok(vec![row, many])
}

/// Puts files among the blobs of a data directory that nobody uses yet; read long ago.
fn hold(data: &Path, count: u32, size: usize) -> io::Result<()> {
    let blobs = data.join("v1/blobs/sha256");
    for shard in 0..=255u8 {
        fs::create_dir_all(blobs.join(format!("{shard:02x}")))?;
    }
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for n in 0..count {
        let content = vec![0; size];
        let hex = format!("{:02x}{n:062x}", n % 256);
        let file = fs::File::create(blobs.join(&hex[..2]).join(&hex))?;
        if size > 0 {
            io::Write::write_all(&mut &file, &content)?;
        }
        file.set_times(fs::FileTimes::new().set_modified(long_ago))?;
    }
    Ok(())
}

fn blob_file(folder: &Path, image: &Image) -> PathBuf {
    let hex = image.layer.to_string().trim_start_matches("sha256:").to_owned();
    folder.join("data/v1/blobs/sha256").join(&hex[..2]).join(hex)
}

/// Manifest hits while a blob that is not in memory is read from the disk.
fn cold_pages(world: &mut World) -> io::Result<Vec<Row>> {
    let manifest = client::get(&world.small.manifest_path(), None);
    let addr = world.cachalot.addr;
    let mut rows = Vec::new();
    for round in 0..3 {
        let idle = percentile(client::paced(addr, &manifest, 1, 500.0, Duration::from_secs(3))?, 0.99);
        let file = fs::File::open(blob_file(&world.path.join("cachalot"), &world.large))?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let done = AtomicBool::new(false);
        let busy = thread::scope(|scope| {
            let streaming = scope.spawn(|| {
                let mut reader = Client::connect(addr)?;
                reader.send(&client::get(&world.large.blob_path(), None))?;
                limited(&mut reader, 100_000_000.0, &done)
            });
            let busy = client::paced(addr, &manifest, 1, 500.0, Duration::from_secs(8));
            done.store(true, Ordering::Relaxed);
            let streamed = streaming.join().map_err(|_| io::Error::other("the reader failed"))??;
            rows.push(row(format!("cold blob, round {round}: streamed"), "MB/s", streamed / 1e6));
            busy
        })?;
        let busy = percentile(busy, 0.99);
        rows.push(row(format!("manifest p99, idle, round {round}"), "ms", idle * 1e3));
        rows.push(row(format!("manifest p99 while a cold blob is streamed, round {round}"), "ms", busy * 1e3));
    }
    Ok(rows)
}

/// Reads at a limited rate until told to stop or all is read; returns the rate.
fn limited(reader: &mut Client, bytes_per_second: f64, done: &AtomicBool) -> io::Result<f64> {
    let start = Instant::now();
    let mut bytes = 0.0;
    while !done.load(Ordering::Relaxed) {
        let received = reader.receive_some(256 << 10)?;
        if received == 0 {
            break;
        }
        bytes += received as f64;
        thread::sleep(Duration::from_secs_f64(bytes / bytes_per_second).saturating_sub(start.elapsed()));
    }
    Ok(bytes / start.elapsed().as_secs_f64())
}

fn percentile(mut latencies: Vec<f64>, share: f64) -> f64 {
    latencies.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into the very list")]
    let at = ((latencies.len() as f64 - 1.0) * share) as usize;
    latencies.get(at).copied().unwrap_or(f64::NAN)
}

/// 2 000 manifests a second, while a download comes at 100 MB/s, 20 readers stream at 20 MB/s each, and 10 000 small blobs
/// have to go.
fn life(world: &mut World) -> io::Result<Vec<Row>> {
    const SMALL: u32 = 10_000;
    let fill = world.cold_image(1 << 30)?;
    let folder = world.path.join("life");
    hold(&folder.join("data"), SMALL, 5000)?;
    // Room for both large blobs, and not for the small ones as well.
    let capacity = world.large.size_bytes + fill.size_bytes + (24 << 20);
    let server = servers::cachalot_with(&folder, &world.upstream.url(), None, &format!("{capacity}B"))?;
    let opening = Instant::now();
    while warm(&server, &world.large).and_then(|()| warm(&server, &world.small)).is_err()
        && opening.elapsed() < Duration::from_mins(1)
    {
        thread::sleep(Duration::from_millis(100));
    }
    resolve(&server, &fill)?;
    let held = || {
        fs::read_dir(folder.join("data/v1/blobs/sha256")).map(|shards| {
            shards.flatten().filter_map(|shard| fs::read_dir(shard.path()).ok()).map(Iterator::count).sum::<usize>()
        })
    };
    let before = held()?;
    world.upstream.limit(100_000_000);
    let done = AtomicBool::new(false);
    let addr = server.addr;
    let (latencies, streamed, filled) = thread::scope(|scope| {
        let filling = scope.spawn(|| {
            let start = Instant::now();
            let load = client::each(addr, &client::get(&fill.blob_path(), None), 1, 1)?;
            Ok::<_, io::Error>(load.bytes as f64 / start.elapsed().as_secs_f64())
        });
        let stream = || {
            let mut reader = Client::connect(addr)?;
            reader.send(&client::get(&world.large.blob_path(), None))?;
            limited(&mut reader, 20_000_000.0, &done)
        };
        let streams: Vec<_> = (0..20).map(|_| scope.spawn(stream)).collect();
        let manifest = client::get(&world.small.manifest_path(), None);
        let latencies = client::paced(addr, &manifest, 8, 250.0, Duration::from_secs(9));
        done.store(true, Ordering::Relaxed);
        let failed = |_| io::Error::other("a client failed");
        let rates: io::Result<Vec<f64>> = streams.into_iter().map(|thread| thread.join().map_err(failed)?).collect();
        let filled = filling.join().map_err(failed)?;
        Ok::<_, io::Error>((latencies?, rates?, filled?))
    })?;
    world.upstream.limit(0);
    Ok(vec![
        row("life: manifests asked for", "requests/s", latencies.len() as f64 / 9.0),
        row("life: manifest p50", "ms", percentile(latencies.clone(), 0.5) * 1e3),
        row("life: manifest p99", "ms", percentile(latencies, 0.99) * 1e3),
        row("life: slowest of 20 readers", "MB/s", spread(streamed)[0] / 1e6),
        row("life: download", "MB/s", filled / 1e6),
        row("life: blobs that went", "", before.saturating_sub(held()?) as f64),
    ])
}
