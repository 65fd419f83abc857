//! The store on a folder of its own: what its tests share.

mod eviction;
mod faults;
mod keeping;
mod model;
mod opening;
mod power;
mod reading;
mod recording;
mod resting;
#[path = "../../../tests/support/simulated_disk.rs"]
pub(crate) mod simulated_disk;
mod stalls;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use tempfile::TempDir;

use super::*;
use crate::clock::Timestamp;
use crate::oci::manifest::Descriptor;
use crate::oci::{Repository, Tag, Verified};

/// A data directory, and how to open it. Opens leave nothing behind, or a test fails.
struct Rig {
    folder: TempDir,
    options: Options,
    budget: Budget,
    metrics: Arc<Metrics>,
}

/// Fails operations to order, and notes them all.
#[derive(Default)]
struct Script {
    seen: Mutex<Vec<Op>>,
    /// How many operations still pass; `usize::MAX` is forever.
    passes: AtomicUsize,
    /// Fails all operations from then on, instead of one.
    for_ever: bool,
    /// Fails only this operation.
    only: Option<Op>,
    errno: Option<Errno>,
}

const MIB: u64 = 1 << 20;

impl Script {
    fn failing(passes: usize, errno: Errno, for_ever: bool) -> Arc<Self> {
        Arc::new(Self { passes: AtomicUsize::new(passes), errno: Some(errno), for_ever, ..Self::default() })
    }

    fn failing_only(op: Op, errno: Errno) -> Arc<Self> {
        Arc::new(Self { only: Some(op), errno: Some(errno), for_ever: true, ..Self::default() })
    }

    /// Passes everything from now on. Returns whether anything failed.
    fn relent(&self) -> bool {
        let before = self.passes.swap(usize::MAX, Ordering::SeqCst);
        before == 0 || before >= usize::MAX / 2
    }
}

impl Faults for Script {
    fn before(&self, op: Op, _: &Path) -> std::io::Result<()> {
        self.seen.lock().push(op);
        if self.only.is_some_and(|only| only != op) {
            return Ok(());
        }
        let passes = self.passes.load(Ordering::SeqCst);
        match (passes, self.errno) {
            (usize::MAX, _) | (_, None) => Ok(()),
            (0, Some(errno)) => {
                if !self.for_ever {
                    self.passes.store(usize::MAX, Ordering::SeqCst);
                }
                Err(errno.into())
            }
            _ => {
                self.passes.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        }
    }
}

impl Rig {
    fn new(capacity_bytes: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let options = Options {
            path: folder.path().join("data"),
            budget: Arc::new(|_| Budget { capacity_bytes: 0, min_free_bytes: 0, min_free_inodes: 0 }),
            lock_wait: Duration::ZERO,
            shrink_grace: Options::SHRINK_GRACE,
            offline: false,
            io_threads: 3,
            faults: None,
        };
        let budget = Budget { capacity_bytes, min_free_bytes: 0, min_free_inodes: 0 };
        Self { folder, options, budget, metrics: Arc::default() }
    }

    /// In memory where the system has a place for that: for tests that open a store hundreds of times, as syncing a disk
    /// takes its time.
    fn in_memory(capacity_bytes: u64) -> Self {
        let mut rig = Self::new(capacity_bytes);
        if let Ok(folder) = TempDir::new_in("/dev/shm") {
            rig.options.path = folder.path().join("data");
            rig.folder = folder;
        }
        rig
    }

    fn with_faults(mut self, script: &Arc<Script>) -> Self {
        self.options.faults = Some(script.clone());
        self
    }

    async fn open(&self) -> Store {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<Store, StoreError> {
        let budget = self.budget;
        let options = Options { budget: Arc::new(move |_| budget), ..self.options.clone() };
        Store::open(options, self.metrics.clone()).await
    }

    fn path(&self, inner: &str) -> PathBuf {
        self.options.path.join(inner)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        Layout::new(&self.options.path).blob(digest)
    }

    /// The files below a folder of the data directory.
    fn files(&self, inner: &str) -> Vec<PathBuf> {
        fn walk(path: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { walk(&path, files) } else { files.push(path) }
            }
        }
        let mut files = Vec::new();
        walk(&self.path(inner), &mut files);
        files
    }

    /// What the folder takes on disk, as `du` counts.
    fn disk_usage(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        self.files("").iter().map(|path| std::fs::symlink_metadata(path).unwrap().blocks() * 512).sum()
    }
}

/// Content that is like no other, and its digest.
fn content(name: &str, len: u64) -> (Digest, Bytes) {
    let bytes: Bytes = name.bytes().cycle().take(usize::try_from(len).unwrap()).collect();
    (Digest::sha256(&bytes), bytes)
}

async fn put(store: &Store, name: &str, len: u64) -> Digest {
    let (digest, bytes) = content(name, len);
    store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await.unwrap();
    digest
}

fn repository(name: &str) -> Repository {
    Repository { registry: "docker.io".parse().unwrap(), name: name.parse().unwrap() }
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn tag_record(digest: Digest) -> TagRecord {
    TagRecord {
        digest,
        media_type: "application/x".to_owned(),
        fetched: Timestamp(1),
        checked: Timestamp(2),
        gone: None,
    }
}

fn manifest_record(fetched: u64, children: &[Digest]) -> ManifestRecord {
    let descriptor = |digest: &Digest| Descriptor {
        media_type: format!("application/x-{fetched}"),
        digest: *digest,
        size_bytes: fetched,
        urls: false,
        platform: None,
        artifact_type: None,
        annotations: std::collections::BTreeMap::default(),
    };
    ManifestRecord {
        media_type: "application/x".to_owned(),
        size_bytes: 1,
        fetched: Timestamp(fetched),
        subject: None,
        artifact_type: None,
        descriptors: children.iter().map(descriptor).collect(),
        public: true,
        confirmed: Vec::new(),
    }
}

/// Nothing is left behind, and the index equals the disk.
async fn assert_at_rest(store: &Store) {
    assert_eq!(store.audit().await.unwrap(), Vec::<String>::new());
    let snapshot = store.snapshot();
    assert_eq!((snapshot.reserved_bytes, snapshot.evicting_bytes, snapshot.open_files), (0, 0, 0), "{snapshot:?}");
}
