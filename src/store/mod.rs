//! Bytes in the data directory, and the only code that touches it.
//!
//! What a blob goes through: a [`Reservation`] sets room aside; a [`Partial`] takes bytes into it, and may rest and be
//! reopened; a [`Verified`](crate::oci::Verified) turns the partial into a blob, published by one function and entered into the
//! index; readers share its [`OpenFile`]; the sweep notes when it was last read; eviction takes it away.
//!
//! Locks, in the order in which they may be taken: a manifest record's turn; the evictor's turn; a digest's or a repository's lock (never two); the
//! catalog; the index. The last two are held for look-ups only, never across I/O or an await. Work under a digest's or a
//! repository's lock runs as one job on the I/O threads, and takes the lock with it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::tasks;

mod audit;
mod backlog;
mod behind;
mod blob;
mod budget;
mod buffers;
mod carry;
mod catalog;
mod checkpoint;
mod count;
mod credentials;
mod error;
mod fs;
mod health;
mod images;
mod index;
mod io;
mod layout;
mod ledger;
mod lists;
mod lock;
mod missing;
mod one_look;
mod order;
mod partial;
mod parts;
mod piece;
mod pins;
mod publish;
mod reach;
mod record;
mod record_files;
mod records;
mod recover;
mod resting;
mod room;
mod scrub;
mod seam;
mod sending;
mod sweep;
mod versions;

use behind::Behind;
use catalog::Catalog;
use fs::Disk;
use io::{Io, Stripes};
use layout::Layout;
use ledger::{Charge, Ledger};
use lock::Lock;
use pins::Pins;
use records::RecordCaches;
use recover::Recovered;
use resting::Resting;
use versions::Versions;

pub use blob::{Blob, OpenFile, READ_BYTES_MAX};
pub use carry::OneLook;
pub use checkpoint::{CheckedPiece, Checkpoint, PIECE_BYTES_MAX, Prefix};
pub use error::{NoRoom, StoreError};
pub use images::{HeldImage, HeldLayer, RemoveError, Removed};
pub use layout::is_store;
pub use ledger::Reservation;
pub use lists::{ListName, ListRecord};
pub use missing::Holding;
pub use partial::{Extent, Partial};
pub use parts::ImagePart;
pub use piece::{Cut, Piece, Pieces};
pub use pins::{NamedPin, Pin, PinName};
pub use records::{Listed, ManifestRecord, TagRecord};
pub use scrub::{Checked, ScrubState};
pub use seam::{Change, Faults, Op};

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// The data directory. It is created if it isn't there.
    pub path: PathBuf,
    /// How much may be taken, decided once it is known what is there.
    pub budget: Arc<dyn Fn(&FileSystemFacts) -> Budget + Send + Sync>,
    /// How long to wait for another process to let go of the data directory.
    pub lock_wait: Duration,
    /// How long nothing is evicted after more was found than the capacity allows: time to notice a mistake.
    pub shrink_grace: Duration,
    /// Evict nothing at all: what goes can't be fetched again.
    pub offline: bool,
    /// How many threads read, and how many others write.
    pub io_threads: usize,
    /// Failures to order, for tests.
    pub faults: Option<Arc<dyn Faults>>,
}

/// What a store may take of its file system, and what it must leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How much may be held, as it counts.
    pub capacity_bytes: u64,
    /// How many bytes must stay free on the file system.
    pub min_free_bytes: u64,
    /// How many inodes must stay free on the file system.
    pub min_free_inodes: u64,
}

/// The store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What a store holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Bytes on disk, as they count: blobs, records, quarantine.
    pub present_bytes: u64,
    /// The part of them that records, interrupted downloads and quarantine take.
    pub record_bytes: u64,
    /// The part of them that is on its way out.
    pub evicting_bytes: u64,
    /// Bytes set aside for what is being written, and for unlinked files that are still open.
    pub reserved_bytes: u64,
    /// How much may be held.
    pub capacity_bytes: u64,
    /// How many blobs are held.
    pub blobs: usize,
    /// How many files are open for readers: blobs and partials.
    pub open_files: usize,
    /// How many partials are being written or removed.
    pub partials: usize,
    /// How many interrupted downloads are kept to be taken up again. Their bytes count as records.
    pub resting: usize,
    /// More was found at boot than the capacity allows, and nothing is evicted yet.
    pub over_capacity: bool,
}

/// The file system that a data directory is on, for deciding a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystemFacts {
    /// How large it is.
    pub total_bytes: u64,
    /// How many files it can hold; 0 where it has no such limit.
    pub total_inodes: u64,
    /// How much an ordinary user may still write.
    pub free_bytes: u64,
    /// How much blobs take there already.
    pub held_bytes: u64,
    /// The data directory is a mount of its own.
    pub own_mount: bool,
}

/// What all clones of a store share.
struct Shared {
    layout: Layout,
    io: Arc<Io>,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
    budget: RwLock<Budget>,
    grace_until: Mutex<Option<Instant>>,
    shrink_grace: Duration,
    offline: bool,
    /// Whoever creates, replaces or removes a blob's file holds its digest's lock.
    blob_locks: Stripes,
    /// Whoever changes a repository's record files holds its lock.
    record_locks: Stripes,
    /// Whoever reads a repository's record files without that lock looks here whether somebody writes.
    record_versions: Versions,
    /// Whoever writes a manifest's record, which keeps what the one before it knew, has its turn.
    manifest_turns: Stripes,
    catalog: RwLock<Catalog>,
    /// Whether the catalog is complete.
    loaded: watch::Sender<bool>,
    records: RecordCaches,
    behind: Behind,
    /// Small blobs that were read, verified.
    memory: moka::future::Cache<Digest, Bytes>,
    evictor: tokio::sync::Mutex<()>,
    pins: RwLock<Pins>,
    /// Whoever writes or removes a pin's file has its turn.
    pin_turn: Mutex<()>,
    /// Held while a pin is widened.
    widening: tokio::sync::Mutex<()>,
    /// What of the pinned content is held, as it counted when somebody last looked.
    pinned_bytes: AtomicU64,
    /// It was said that the pins leave hardly any room.
    pins_said: AtomicBool,
    had_credentials: AtomicBool,
    /// The folders of partials that are in use, at rest or being removed.
    partials: Mutex<HashSet<PathBuf>>,
    /// Those of them that the disk would not let go of.
    unremoved: Mutex<HashMap<PathBuf, Option<Charge>>>,
    resting: Resting,
    staged: AtomicU64,
    lock: Mutex<Option<Lock>>,
}

/// How much of small blobs is kept in memory.
const MEMORY_BYTES: u64 = 64 << 20;

/// Tells the catalog's waiters that it is complete, also when loading it failed: better a poor order than none.
struct Loading(Arc<Shared>);

// === impl Options ===

impl Options {
    /// The grace that `shrink_grace` has outside of tests.
    pub const SHRINK_GRACE: Duration = Duration::from_mins(10);
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What is kept in memory of small content.
fn memory() -> moka::future::Cache<Digest, Bytes> {
    moka::future::Cache::builder()
        .max_capacity(MEMORY_BYTES)
        .weigher(|_, bytes: &Bytes| u32::try_from(bytes.len() + 256).unwrap_or(u32::MAX))
        .build()
}

// === impl Store ===

impl Store {
    /// Takes the data directory into use: locks it, removes what was left half-done, and finds what it holds. Needs
    /// nothing but the disk (law 9). Records are read in the background.
    pub async fn open(options: Options, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let disk = Disk::new(options.faults, metrics.clone());
        let io = Io::new(disk, options.io_threads).map_err(|error| StoreError::Threads(Arc::new(error)))?;
        let layout = Layout::new(&options.path);
        let started = Instant::now();

        let (disk, paths) = (io.disk.clone(), layout.clone());
        io.writing.run(move || recover::prepare(&disk, &paths)).await?;
        let lock = Lock::acquire(&io, &layout, options.lock_wait).await?;
        let (disk, paths, budget) = (io.disk.clone(), layout.clone(), options.budget);
        let recovered = io.writing.run(move || recover::recover(&disk, &paths, &*budget)).await?;
        let Recovered { index, budget, partials } = recovered;
        let (probed, tmp) = (io.clone(), layout.tmp());
        io.writing.run(move || probed.sending.find_out(&probed.disk, &tmp)).await;

        let capacity_bytes = budget.capacity_bytes;
        let (blobs, held_bytes, excess) = (index.blobs(), index.held(), index.excess());
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(path = %options.path.display(), blobs, held_bytes, capacity_bytes, elapsed_ms, "opened the store");
        let grace_until = (excess > 0).then(|| Instant::now() + options.shrink_grace);
        if grace_until.is_some() {
            tracing::warn!(
                held_bytes,
                capacity_bytes,
                grace_seconds = options.shrink_grace.as_secs(),
                "more is held than storage.capacity allows; nothing is evicted for a while, and nothing new is stored"
            );
        }
        let shared = Arc::new(Shared {
            had_credentials: AtomicBool::new(credentials::noted(&io, &layout).await),
            layout,
            io,
            ledger: Ledger::new(index, metrics.clone()),
            budget: RwLock::new(budget),
            grace_until: Mutex::new(grace_until),
            shrink_grace: options.shrink_grace,
            offline: options.offline,
            blob_locks: Stripes::new(),
            record_locks: Stripes::new(),
            record_versions: Versions::new(),
            manifest_turns: Stripes::new(),
            catalog: RwLock::default(),
            loaded: watch::Sender::new(false),
            records: RecordCaches::new(),
            behind: Behind::new(metrics.clone()),
            metrics,
            memory: memory(),
            evictor: tokio::sync::Mutex::default(),
            pins: RwLock::default(),
            pin_turn: Mutex::default(),
            widening: tokio::sync::Mutex::default(),
            pinned_bytes: AtomicU64::new(0),
            pins_said: AtomicBool::new(false),
            partials: Mutex::default(),
            unremoved: Mutex::default(),
            resting: Resting::default(),
            staged: AtomicU64::new(0),
            lock: Mutex::new(Some(lock)),
        });
        shared.enter_resting(partials);
        shared.load_pins().await?;
        let (loading, deferred) = (Loading(shared.clone()), shared.io.defer());
        tasks::spawn("load_catalog", async move {
            let _deferred = deferred;
            let loading = loading;
            loading.0.clone().load_catalog().await;
        });
        Ok(Self { shared })
    }

    /// Waits until everything is done that nobody waits for: removing dropped partials, reading records after boot, writes
    /// whose callers have gone away.
    pub async fn settled(&self) {
        self.shared.io.settled().await;
    }

    /// Ends the use of the data directory: a last sweep, what is still to be removed, and the lock. Other clones may finish
    /// what they are reading, and must not write any more.
    pub async fn close(self) {
        self.sweep().await;
        self.settled().await;
        drop(self.shared.lock.lock().take());
    }

    /// What is held right now.
    pub fn snapshot(&self) -> Snapshot {
        let totals = self.shared.ledger.read().totals();
        Snapshot {
            present_bytes: totals.present + totals.evicting + totals.records,
            record_bytes: totals.records,
            evicting_bytes: totals.evicting,
            reserved_bytes: totals.reserved,
            capacity_bytes: totals.capacity,
            blobs: totals.blobs,
            open_files: self.shared.io.open_files.load(Ordering::Relaxed),
            partials: self.shared.partials.lock().len().saturating_sub(self.shared.resting.len()),
            resting: self.shared.resting.len(),
            over_capacity: self.shared.is_in_grace(),
        }
    }
}

// === impl Shared ===

impl Shared {
    /// A path for a file that is about to be published. No two are equal.
    fn staging_path(&self) -> PathBuf {
        self.layout.tmp().join(self.staged.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("root", &self.layout.root())
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

// === impl Loading ===

impl Drop for Loading {
    fn drop(&mut self) {
        self.0.loaded.send_replace(true);
    }
}

/// Open files for other modules' tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// An open file with this content, that no store knows of and that lies nowhere any more.
    pub(crate) fn open_file(content: &[u8]) -> Arc<OpenFile> {
        use std::io::Write as _;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let io = Io::new(Disk::new(None, Arc::new(Metrics::new())), 1).unwrap();
        io.sending.find_out(&io.disk, tempfile::tempdir().unwrap().path());
        OpenFile::new(file, PathBuf::from("test"), io)
    }
}

#[cfg(test)]
pub(crate) mod tests;
