//! The mirror under test: the real server on a folder of its own, with scripted registries as its upstreams.
//!
//! Every test ends with [`Mirror::finish`], which checks that nothing is left behind: no fill, reservation, partial or
//! temporary file; the index is the disk; what lies there is what its name says; and no registry was asked something
//! that no mirror should ask.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cachalot::store::{Change, Faults, Op};
use parking_lot::lock_api::ArcRwLockWriteGuard;
use parking_lot::{RawRwLock, RwLock};
use rustix::io::Errno;
use tempfile::TempDir;

use super::client::{self, Answer, Connection, End, Request};
use super::images::{Image, sha256, sha512};
use super::registry::Registry;
use super::simulated_disk::{Loss, SimulatedDisk};
use super::wiring::{Holdings, Server};
use super::{until, within};

/// A running mirror.
#[derive(Debug)]
pub(crate) struct Mirror {
    /// `None` only while it is being dropped or stopped.
    server: Option<Server>,
    site: Option<Site>,
    addr: SocketAddr,
    admin: SocketAddr,
}

/// What stays when a mirror stops: its configuration and its folder.
#[derive(Debug)]
pub(crate) struct Site {
    folder: TempDir,
    registries: Vec<Registry>,
    disk: Disk,
    watch: bool,
}

/// What is between the store and its real files.
#[derive(Clone, Debug, Default)]
enum Disk {
    #[default]
    Real,
    Failing(Arc<FailingDisk>),
    Simulated(Arc<SimulatedDisk>),
}

/// A disk on which operations of one kind fail while a test says so, or just one operation.
#[derive(Debug, Default)]
pub(crate) struct FailingDisk {
    failing: Mutex<Option<(Op, Errno)>>,
    /// How many operations still come before the one that fails.
    countdown: Mutex<Option<(usize, Errno)>>,
    /// What changes files waits for this lock, which a test holds while the disk hangs.
    hanging: Arc<RwLock<()>>,
    /// How many bytes it takes a second, and when it has taken those that it was given so far.
    slow: Mutex<Option<(u64, Instant)>>,
}

/// The configuration of a mirror, section by section.
#[derive(Debug)]
pub(crate) struct Builder {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    registries: Vec<Registry>,
    disk: Disk,
    watch: bool,
}

/// The path of a manifest of `docker.io`, as containerd asks for it.
pub(crate) fn manifest(repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/manifests/{reference}?ns=docker.io")
}

/// The path of a blob of `docker.io`, as containerd asks for it.
pub(crate) fn blob(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}?ns=docker.io")
}

// === impl Builder ===

impl Builder {
    /// Sets a key of a section to a value in TOML.
    pub(crate) fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Mirrors `name` from a scripted registry.
    pub(crate) fn upstream(mut self, name: &str, registry: &Registry) -> Self {
        self.registries.push(registry.clone());
        self.upstream_set(name, "endpoints", &format!("[\"{}\"]", registry.url()))
    }

    /// Sets a key of an upstream to a value in TOML.
    pub(crate) fn upstream_set(self, name: &str, key: &str, value: &str) -> Self {
        self.set(&format!("upstreams.\"{name}\""), key, value)
    }

    /// How long tags are fresh.
    pub(crate) fn tag_ttl(self, ttl: &str) -> Self {
        self.set("tags", "ttl", &format!("\"{ttl}\""))
    }

    pub(crate) fn capacity(self, capacity: &str) -> Self {
        self.set("storage", "capacity", &format!("\"{capacity}\""))
    }

    /// Keeps its data on a disk that fails to order.
    pub(crate) fn disk(mut self, disk: &Arc<FailingDisk>) -> Self {
        self.disk = Disk::Failing(Arc::clone(disk));
        self
    }

    /// Keeps its data on a disk that forgets at a power cut what was not synced.
    pub(crate) fn simulated_disk(mut self, disk: &Arc<SimulatedDisk>) -> Self {
        self.disk = Disk::Simulated(Arc::clone(disk));
        self
    }

    /// Notices by itself when its files change.
    pub(crate) fn watch(mut self) -> Self {
        self.watch = true;
        self
    }

    /// Listens on `[::1]`.
    pub(crate) fn v6(self) -> Self {
        self.set("server", "listen", "\"[::1]:0\"").set("admin", "listen", "\"[::1]:0\"")
    }

    pub(crate) async fn start(self) -> Mirror {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let written = self.set("storage", "path", &serde_json::json!(data).to_string());
        let mut text = String::new();
        for (section, keys) in &written.sections {
            writeln!(text, "[{section}]").unwrap();
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        std::fs::write(folder.path().join("cachalot.toml"), text).unwrap();
        Site { folder, registries: written.registries, disk: written.disk, watch: written.watch }.start().await
    }
}

// === impl Site ===

impl Site {
    /// Starts a mirror here, maybe again.
    pub(crate) async fn start(self) -> Mirror {
        super::secrets::listen();
        let config = self.config();
        let faults: Option<Arc<dyn Faults>> = match self.disk.clone() {
            Disk::Real => None,
            Disk::Failing(disk) => Some(disk),
            Disk::Simulated(disk) => {
                disk.mount(&self.data());
                Some(disk)
            }
        };
        let started = within("the mirror starts", Server::start(&config, faults, self.watch)).await;
        let server = started.unwrap_or_else(|error| panic!("the mirror does not start: {error}"));
        let addr = server.listen();
        let admin = server.admin();
        Mirror { server: Some(server), site: Some(self), addr, admin }
    }

    /// Leaves in the data directory what a power cut leaves of it. Only for a mirror on a simulated disk, and only once it
    /// has stopped.
    pub(crate) fn lose_power(&self, loss: Loss) {
        let Disk::Simulated(disk) = &self.disk else { panic!("only a simulated disk can forget") };
        disk.restore(&self.data(), loss);
    }

    /// Replaces a text of the configuration file.
    pub(crate) fn rewrite(&self, from: &str, to: &str) {
        let path = self.folder.path().join("cachalot.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("cachalot.toml")
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where a blob lies that is held.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').unwrap();
        self.data().join("v1/blobs").join(algorithm).join(&hex[..2]).join(hex)
    }

    /// The blobs that lie on disk, with their sizes.
    fn blobs_on_disk(&self) -> Vec<(String, u64)> {
        let root = self.data().join("v1/blobs");
        let mut blobs = Vec::new();
        for file in files(&root) {
            let place = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let parts: Vec<_> = place.split('/').collect();
            let [algorithm, shard, hex] = parts[..] else { panic!("{place} has no business among the blobs") };
            assert!(hex.starts_with(shard), "{place} lies in the wrong folder");
            blobs.push((format!("{algorithm}:{hex}"), std::fs::metadata(&file).map_or(0, |facts| facts.len())));
        }
        blobs.sort();
        blobs
    }

    /// Fails when a file lies where only unfinished things lie, or is not what its name says.
    fn check_disk(&self, holdings: Holdings) {
        for folder in ["v1/tmp", "v1/quarantine"] {
            let left = files(&self.data().join(folder));
            assert!(left.is_empty(), "left behind in {folder}: {left:?}");
        }
        // An interrupted download rests with its checkpoint, perhaps with a note as well, and nothing else does.
        let mut left: Vec<_> = files(&self.data().join("v1/partial"));
        left.retain(|file| !(file.ends_with("recent.json") && file.with_file_name("data").exists()));
        left.sort();
        let resting: Vec<_> = left.iter().filter(|file| file.ends_with("data")).collect();
        let expected: Vec<_> =
            resting.iter().flat_map(|data| [(*data).clone(), data.with_file_name("state.json")]).collect();
        assert_eq!(left, expected, "left behind");
        assert_eq!(resting.len(), holdings.resting, "what rests is known: {left:?}");
        for (digest, _) in self.blobs_on_disk() {
            let bytes = std::fs::read(self.blob_file(&digest)).unwrap();
            let actual = if digest.starts_with("sha512:") { sha512(&bytes) } else { sha256(&bytes) };
            assert_eq!(actual, digest, "a committed blob is not what its name says");
        }
    }

    fn check_registries(&self) {
        for registry in &self.registries {
            assert_eq!(registry.violations(), [""; 0], "what no mirror should ask");
        }
    }
}

// === impl FailingDisk ===

impl FailingDisk {
    /// From now on, operations of this kind fail.
    pub(crate) fn fail(&self, op: Op, errno: Errno) {
        *self.failing.lock().unwrap() = Some((op, errno));
    }

    /// Fails one operation, after `n` more.
    pub(crate) fn fail_once_after(&self, n: usize, errno: Errno) {
        *self.countdown.lock().unwrap() = Some((n, errno));
    }

    /// From now on, whatever changes files hangs, until the guard is dropped.
    pub(crate) fn hang(&self) -> ArcRwLockWriteGuard<RawRwLock, ()> {
        self.hanging.write_arc()
    }

    /// From now on it takes so many bytes a second, and whoever writes more waits.
    pub(crate) fn take_a_second(&self, bytes: u64) {
        *self.slow.lock().unwrap() = Some((bytes, Instant::now()));
    }

    /// Waits as long as these bytes take.
    fn take_slowly(&self, bytes: usize) {
        let taken = {
            let mut slow = self.slow.lock().unwrap();
            let Some((rate, free)) = &mut *slow else { return };
            *free = (*free).max(Instant::now()) + Duration::from_nanos(bytes as u64 * 1_000_000_000 / *rate);
            *free
        };
        while let Some(left) = taken.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
    }

    /// From now on, nothing fails. Says whether the one operation that was to fail has not come.
    pub(crate) fn recover(&self) -> bool {
        *self.failing.lock().unwrap() = None;
        self.countdown.lock().unwrap().take().is_some()
    }
}

impl Faults for FailingDisk {
    fn before(&self, op: Op, _: &Path) -> std::io::Result<()> {
        if let Some((failing, errno)) = *self.failing.lock().unwrap()
            && failing == op
        {
            return Err(errno.into());
        }
        let mut countdown = self.countdown.lock().unwrap();
        match &mut *countdown {
            Some((0, errno)) => {
                let errno = *errno;
                *countdown = None;
                Err(errno.into())
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn changing(&self, change: &Change<'_>) {
        drop(self.hanging.read());
        if let Change::Write { chunks, .. } = change {
            self.take_slowly(chunks.iter().map(bytes::Bytes::len).sum());
        }
    }
}

// === impl Mirror ===

impl Mirror {
    /// A mirror with room for all that tests hold, on an address of its own.
    pub(crate) fn builder() -> Builder {
        Builder { sections: BTreeMap::new(), registries: Vec::new(), disk: Disk::Real, watch: false }
            .set("server", "listen", "\"127.0.0.1:0\"")
            .set("admin", "listen", "\"127.0.0.1:0\"")
            .set("storage", "min_free", "\"1MiB\"")
            .capacity("256MiB")
    }

    /// A mirror of `docker.io`.
    pub(crate) async fn of(registry: &Registry) -> Self {
        Self::builder().upstream("docker.io", registry).start().await
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where clients connect, address by address.
    pub(crate) fn addrs(&self) -> Vec<SocketAddr> {
        self.server().addresses()
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(self.addr).await
    }

    pub(crate) async fn send(&self, request: &Request) -> Answer {
        client::send(self.addr, request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(&Request::get(path)).await
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.send(&Request::head(path)).await
    }

    /// Asks until the answer is a 200, which must not take long, and returns it. Meanwhile nothing but honest server
    /// errors may come.
    pub(crate) async fn get_once_well(&self, path: &str) -> Answer {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        within("upstream is well again, and so is the mirror", async {
            loop {
                ticks.tick().await;
                let answer = self.get(path).await;
                match answer.status() {
                    200 => return answer,
                    500 | 502..=504 => {}
                    status => panic!("{status} for {path}: {}", answer.text()),
                }
            }
        })
        .await
    }

    /// Pulls an image as containerd does: HEAD by tag, then all by digest. Fails unless every byte is right.
    pub(crate) async fn pull(&self, repository: &str, reference: &str, image: &Image) {
        let mut connection = self.connect().await;
        let head = connection.exchange(&Request::head(manifest(repository, reference))).await;
        assert_eq!(head.status(), 200, "{:?}", head.head);
        assert_eq!(head.header("docker-content-digest"), Some(image.manifest.digest.as_str()));
        assert_eq!(head.header("content-type"), Some(image.manifest.media_type.as_str()));
        assert_eq!(head.header("content-length"), Some(image.manifest.bytes.len().to_string().as_str()));
        let path = manifest(repository, &image.manifest.digest);
        connection.exchange(&Request::get(path)).await.assert_ok(&image.manifest.bytes);
        for part in image.blobs() {
            connection.exchange(&Request::get(blob(repository, &part.digest))).await.assert_ok(&part.bytes);
        }
    }

    /// Pulls an image while the disk may fail: each body is right, or ends short after a right beginning and is then asked
    /// for again. Cache trouble is never a client's trouble (law 6), so nothing but bodies may fail. Nobody asks any more
    /// once it is `over`.
    pub(crate) async fn pull_through_trouble(
        &self,
        repository: &str,
        reference: &str,
        image: &Image,
        over: impl Fn() -> bool,
    ) {
        let manifests = [reference, &image.manifest.digest].map(|by| (manifest(repository, by), &image.manifest.bytes));
        let blobs = image.blobs().map(|part| (blob(repository, &part.digest), &part.bytes));
        for (path, bytes) in manifests.into_iter().chain(blobs) {
            // Who asks again at once may still join the fill that is failing.
            let mut tries = 5;
            while !over() {
                let answer = self.get(&path).await;
                assert_eq!(answer.status(), 200, "{path}: {:?} {}", answer.head, answer.text());
                if answer.end == End::Complete {
                    assert!(answer.body == *bytes, "{path}: wrong bytes");
                    break;
                }
                assert!(answer.end == End::Short && bytes.starts_with(&answer.body), "{path}: {:?}", answer.end);
                tries -= 1;
                assert!(tries > 0, "{path} ends short again and again");
            }
        }
    }

    /// One pass of the store's sweep.
    pub(crate) async fn sweep(&self) {
        self.server().sweep().await;
    }

    /// The metrics page.
    pub(crate) async fn metrics(&self) -> String {
        let answer = client::send(self.admin, &Request::get("/metrics")).await;
        assert_eq!(answer.status(), 200);
        answer.text()
    }

    /// Sends something to the admin listener.
    pub(crate) async fn send_admin(&self, request: &Request) -> Answer {
        client::send(self.admin, request).await
    }

    /// Where operators connect.
    pub(crate) fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// A page of the admin listener.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        client::send(self.admin, &Request::get(path)).await
    }

    pub(crate) fn holdings(&self) -> Holdings {
        self.server().holdings()
    }

    /// Whether the index knows the blob.
    pub(crate) fn holds(&self, digest: &str) -> bool {
        self.server().size_of(digest).is_some()
    }

    pub(crate) fn site(&self) -> &Site {
        self.site.as_ref().expect("a mirror has a site until it stops")
    }

    /// Waits until no fill is in progress.
    pub(crate) async fn idle(&self) {
        within("the fills end", self.server().idle()).await;
    }

    /// Stops as on SIGTERM, whatever is in progress. What is unfinished must not outlive the next start.
    pub(crate) async fn stop(mut self) -> Site {
        let server = self.server.take().expect("a mirror has a server until it stops");
        within("the mirror stops", server.stop()).await;
        self.site.take().expect("a mirror has a site until it stops")
    }

    /// Waits for what is in progress, stops, and checks that nothing is left behind.
    pub(crate) async fn finish(self) {
        self.idle().await;
        until("nobody has a blob open", || self.holdings().open == 0).await;
        // What is unlinked but was open counts as reserved until its last reader has let go of it.
        until("nothing is reserved", || self.holdings().reserved_bytes == 0).await;
        let holdings = self.holdings();
        assert_eq!((self.server().fills(), holdings.partials), (0, 0), "{holdings:?}");
        assert!(holdings.present_bytes <= holdings.capacity_bytes, "over budget: {holdings:?}");
        until("nothing in the data directory is open", || self.open_descriptors().is_empty()).await;
        until("the index is the disk", || self.index_is_disk()).await;
        let used = disk_usage(&self.site().data());
        assert!(used <= holdings.capacity_bytes + holdings.capacity_bytes / 100, "du says {used}: {holdings:?}");
        let site = self.stop().await;
        site.check_disk(holdings);
        site.check_registries();
        super::secrets::check();
    }

    /// Every blob on disk is in the index with its size, and there are no more. Victims are unlinked a little later
    /// than they leave the index, so this may take a moment.
    fn index_is_disk(&self) -> bool {
        let blobs = self.site().blobs_on_disk();
        blobs.len() == self.holdings().blobs
            && blobs.iter().all(|(digest, size)| self.server().size_of(digest) == Some(*size))
    }

    /// The files in the data directory that this process has open, its lock aside.
    fn open_descriptors(&self) -> Vec<PathBuf> {
        let data = self.site().data();
        let targets = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = targets.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.filter(|target| target.starts_with(&data) && *target != data.join("lock")).collect()
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("a mirror has a server until it stops")
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        assert!(self.server.is_none() || std::thread::panicking(), "a test must end with finish() or stop()");
    }
}

/// All files under a folder, which need not be there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // Folders of victims vanish while we look.
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    found
}

/// Sets back the times of all tags of a repository, as if they had been fetched and checked so much earlier.
pub(crate) fn age_tags(data: &Path, repository: &str, by: Duration) {
    let by_ms = u64::try_from(by.as_millis()).unwrap();
    let folder = data.join("v1/repositories").join(repository).join("_tags");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for name in ["fetched", "checked"] {
            let millis = record[name].as_u64().unwrap_or_else(|| panic!("{name} is no number: {record}"));
            record[name] = (millis - by_ms).into();
        }
        std::fs::write(path, record.to_string()).unwrap();
    }
}

/// What `du` counts of the files under a folder.
pub(crate) fn disk_usage(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files(folder).iter().filter_map(|file| std::fs::metadata(file).ok()).map(|facts| facts.blocks() * 512).sum()
}
