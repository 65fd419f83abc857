//! The workloads, each in rounds in which every server has its turn.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::client::{self, Load};
use crate::content::{Content, Image};
use crate::report::{Better, Row};
use crate::servers::{self, Server};
use crate::tls;
use crate::upstream::Upstream;

/// How large and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    large_bytes: u64,
    cold_bytes: u64,
    pub(crate) rounds: usize,
    cold_rounds: usize,
    /// How often a client gets the large blob in a round.
    times: usize,
    /// How long many connections ask in a round.
    pub(crate) duration: Duration,
}

/// Everything that runs, and what it serves.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scale: Scale,
    pub(crate) upstream: Upstream,
    pub(crate) content: Content,
    pub(crate) cachalot: Server,
    pub(crate) nginx: Server,
    pub(crate) registry: Server,
    pub(crate) large: Image,
    medium: Image,
    pub(crate) small: Image,
    colds: u64,
    pub(crate) path: PathBuf,
    /// Dropped last.
    _folder: tempfile::TempDir,
}

/// How many connections ask for small things.
const CONNECTIONS: usize = 32;

/// How many clients make a herd.
const HERD: usize = 20;

/// Runs, and says what came of it.
pub(crate) type Workload = fn(&mut World) -> io::Result<Vec<Row>>;

/// All of them, by name.
pub(crate) const ALL: [(&str, Workload); 7] = [
    ("warm-blob", warm_blob),
    ("small-blobs", small_blobs),
    ("manifests", manifests),
    ("ranges", ranges),
    ("cold", cold),
    ("cold-range", cold_range),
    ("tls", by_tls),
];

// === impl Scale ===

impl Scale {
    pub(crate) const FULL: Self = Self {
        large_bytes: 1 << 30,
        cold_bytes: 256 << 20,
        rounds: 9,
        cold_rounds: 3,
        times: 1,
        duration: Duration::from_millis(800),
    };
    pub(crate) const SHORT: Self = Self {
        large_bytes: 64 << 20,
        cold_bytes: 16 << 20,
        rounds: 2,
        cold_rounds: 1,
        times: 1,
        duration: Duration::from_millis(200),
    };
}

// === impl World ===

impl World {
    pub(crate) fn new(scale: Scale) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("cachalot-compare-").tempdir()?;
        let path = folder.path().to_owned();
        let content = Content::new(&path.join("files"))?;
        let large = content.image("large", scale.large_bytes, 1)?;
        let medium = content.image("medium", 1 << 20, 2)?;
        let small = content.image("small", 64 << 10, 3)?;
        let upstream = Upstream::start(content.root.clone())?;
        let cachalot = servers::cachalot(&path.join("cachalot"), &upstream.url(), None)?;
        let nginx = servers::nginx(&path.join("nginx"), &content.root, None)?;
        let registry = servers::docker_registry(&path.join("registry"), &upstream.url())?;
        let world = Self {
            scale,
            upstream,
            content,
            cachalot,
            nginx,
            registry,
            large,
            medium,
            small,
            colds: 0,
            path,
            _folder: folder,
        };
        for server in world.all() {
            for image in [&world.large, &world.medium, &world.small] {
                warm(server, image)?;
            }
        }
        Ok(world)
    }

    pub(crate) fn all(&self) -> [&Server; 3] {
        [&self.cachalot, &self.nginx, &self.registry]
    }

    /// An image that no mirror holds.
    pub(crate) fn cold_image(&mut self, size_bytes: u64) -> io::Result<Image> {
        self.colds += 1;
        self.content.image(&format!("cold-{}", self.colds), size_bytes, 1000 + self.colds)
    }
}

/// Pulls an image twice: the second time shows that it is held.
pub(crate) fn warm(server: &Server, image: &Image) -> io::Result<()> {
    for _ in 0..2 {
        for path in [image.tag_path(), image.manifest_path(), image.blob_path()] {
            client::each(server.addr, &client::get(&path, None), 1, 1)?;
        }
    }
    Ok(())
}

/// Runs something, and measures what it costs the server.
fn with_cpu(server: &Server, run: impl FnOnce() -> io::Result<Load>) -> io::Result<(Load, f64)> {
    let before = server.cpu_seconds();
    let load = run()?;
    Ok((load, server.cpu_seconds() - before))
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn warm_blob(world: &mut World) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let request = client::get(&world.large.blob_path(), None);
    for clients in [1, 4] {
        let name = format!(
            "warm {} MiB blob, {clients} client{}",
            world.large.size_bytes >> 20,
            if clients == 1 { "" } else { "s" }
        );
        let mut speed = Row::new(name.clone(), "GB/s", Better::More);
        let mut cpu = Row::new(format!("{name}: server CPU"), "ms/GB", Better::Less);
        // The first round warms up.
        for round in 0..=world.scale.rounds {
            for server in world.all() {
                let (load, used) =
                    with_cpu(server, || client::each(server.addr, &request, clients, world.scale.times))?;
                if round > 0 {
                    speed.push(server.name, load.bytes_per_second() / 1e9);
                    cpu.push(server.name, used * 1e3 / gigabytes(load.bytes));
                }
            }
        }
        rows.extend([speed, cpu]);
    }
    Ok(rows)
}

/// Requests a second, and what one costs, of 32 connections that ask for the same again and again.
fn rates(world: &World, name: &str, mut request: impl FnMut() -> Vec<u8>) -> io::Result<Vec<Row>> {
    let mut speed = Row::new(format!("{name}, {CONNECTIONS} connections"), "requests/s", Better::More);
    let mut cpu = Row::new(format!("{name}: server CPU"), "µs/request", Better::Less);
    for round in 0..=world.scale.rounds {
        for server in world.all() {
            let run = || client::during(server.addr, &mut request, CONNECTIONS, world.scale.duration);
            let (load, used) = with_cpu(server, run)?;
            if round > 0 {
                speed.push(server.name, load.requests_per_second());
                cpu.push(server.name, used * 1e6 / load.requests as f64);
            }
        }
    }
    Ok(vec![speed, cpu])
}

fn small_blobs(world: &mut World) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, image) in [("warm 1 MiB blob", &world.medium), ("warm 64 KiB blob", &world.small)] {
        let request = client::get(&image.blob_path(), None);
        rows.extend(rates(world, name, || request.clone())?);
    }
    Ok(rows)
}

fn manifests(world: &mut World) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, path) in
        [("warm manifest by digest", world.small.manifest_path()), ("warm manifest by tag", world.small.tag_path())]
    {
        let request = client::get(&path, None);
        rows.extend(rates(world, name, || request.clone())?);
    }
    Ok(rows)
}

fn ranges(world: &mut World) -> io::Result<Vec<Row>> {
    const LEN: u64 = 64 << 10;
    let (path, size) = (world.large.blob_path(), world.large.size_bytes);
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let first = (state >> 20) % (size - LEN);
        client::get(&path, Some((first, first + LEN - 1)))
    };
    rates(world, "64 KiB ranges of a warm blob", next)
}

/// A blob that no mirror holds: one client, and a herd of them.
fn cold(world: &mut World) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for clients in [1, HERD] {
        let who = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients at once") };
        let name = format!("cold {} MiB blob, {who}", world.scale.cold_bytes >> 20);
        let mut time = Row::new(format!("{name}: time"), "s", Better::Less);
        let mut taken = Row::new(format!("{name}: bytes from upstream"), "× the blob", Better::Less);
        for _ in 0..world.scale.cold_rounds {
            let image = world.cold_image(world.scale.cold_bytes)?;
            for server in [&world.cachalot, &world.registry] {
                for path in [image.tag_path(), image.manifest_path()] {
                    client::each(server.addr, &client::get(&path, None), 1, 1)?;
                }
                world.upstream.settle();
                let load = client::each(server.addr, &client::get(&image.blob_path(), None), clients, 1)?;
                time.push(server.name, load.seconds);
                taken.push(server.name, world.upstream.settle() as f64 / image.size_bytes as f64);
                forget(&world.path, image.size_bytes)?;
            }
        }
        rows.extend([time, taken]);
    }
    Ok(rows)
}

/// Gives the memory back that files of this size take in the page cache. A virtual machine gets memory that it has not used
/// for a while page by page from its host, which takes longer than writing there: without this, a round would be slow
/// because of what the rounds before it left.
fn forget(folder: &Path, size_bytes: u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(kind) = entry.metadata() else { continue };
        if kind.is_dir() {
            forget(&entry.path(), size_bytes)?;
        } else if kind.len() == size_bytes
            && let Ok(file) = fs::File::open(entry.path())
        {
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}

fn cold_range(world: &mut World) -> io::Result<Vec<Row>> {
    let size = world.scale.cold_bytes;
    let mut taken =
        Row::new(format!("1 kB of a cold {} MiB blob: bytes from upstream", size >> 20), "× the blob", Better::Less);
    let image = world.cold_image(size)?;
    for server in [&world.cachalot, &world.registry] {
        for path in [image.tag_path(), image.manifest_path()] {
            client::each(server.addr, &client::get(&path, None), 1, 1)?;
        }
        world.upstream.settle();
        client::each(server.addr, &client::get(&image.blob_path(), Some((size / 2, size / 2 + 999))), 1, 1)?;
        taken.push(server.name, world.upstream.settle() as f64 / size as f64);
    }
    Ok(vec![taken])
}

fn by_tls(world: &mut World) -> io::Result<Vec<Row>> {
    let (files, config) = tls::certificate(&world.path)?;
    let cachalot = servers::cachalot(&world.path.join("cachalot-tls"), &world.upstream.url(), Some(&files))?;
    let nginx = servers::nginx(&world.path.join("nginx-tls"), &world.content.root, Some(&files))?;
    let config: Arc<_> = config;
    let name = format!("warm {} MiB blob by TLS, 1 client", world.large.size_bytes >> 20);
    let mut speed = Row::new(name.clone(), "GB/s", Better::More);
    let mut cpu = Row::new(format!("{name}: server CPU"), "ms/GB", Better::Less);
    let path = world.large.blob_path();
    for round in 0..=world.scale.rounds {
        for server in [&cachalot, &nginx] {
            let addr = server.tls_addr.unwrap_or(server.addr);
            if round == 0 {
                for path in [world.large.tag_path(), world.large.manifest_path()] {
                    tls::get(addr, &config, &path)?;
                }
            }
            let (load, used) = with_cpu(server, || tls::get(addr, &config, &path))?;
            if round > 0 {
                speed.push(server.name, load.bytes_per_second() / 1e9);
                cpu.push(server.name, used * 1e3 / gigabytes(load.bytes));
            }
        }
    }
    Ok(vec![speed, cpu])
}
