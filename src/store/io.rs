//! The threads that do the store's reading and writing, and the count of what they still have to do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::buffers::Buffers;
use super::error::StoreError;
use super::fs::Disk;
use super::sending::Sending;
use crate::tasks::{Pool, PoolError};

/// The disk, and where calls to it run.
///
/// Whoever waits for an answer reads; whatever may take as long as the disk likes (writing, syncing, unlinking) runs on
/// threads of its own, so that a disk that takes no writes for half a minute delays no hit.
#[derive(Debug)]
pub(super) struct Io {
    pub(super) disk: Disk,
    /// Looks, and never waits for a write.
    pub(super) reading: Pool,
    /// Changes files.
    pub(super) writing: Pool,
    deferred: Arc<watch::Sender<usize>>,
    /// How many files are open for readers.
    pub(super) open_files: AtomicUsize,
    pub(super) sending: Sending,
    pub(super) buffers: Arc<Buffers>,
}

/// Work that nobody waits for, but that [`Io::settled`] counts until this is dropped.
#[derive(Debug)]
pub(super) struct Deferred(Arc<watch::Sender<usize>>);

/// Locks for keys of which there are too many for one each: equal keys share one.
#[derive(Debug)]
pub(super) struct Stripes {
    locks: Vec<Arc<tokio::sync::Mutex<()>>>,
    hasher: std::hash::RandomState,
}

/// How long the disk may take for one write once its turn has come, and how long that may take.
const WRITE_MAX: Duration = Duration::from_secs(5);
const TURN_MAX: Duration = Duration::from_secs(30);

/// How many keys can be locked at once: more than there are threads to do anything with them.
const STRIPES: usize = 256;

// === impl Io ===

impl Io {
    /// Starts `threads` threads for reading, and as many for writing.
    pub(super) fn new(disk: Disk, threads: usize) -> Result<Arc<Self>, PoolError> {
        let pool = |name| Pool::new(name, threads.max(1));
        Ok(Arc::new(Self {
            disk,
            reading: pool("store-read")?,
            writing: pool("store-write")?,
            deferred: Arc::new(watch::Sender::new(0)),
            open_files: AtomicUsize::new(0),
            sending: Sending::default(),
            buffers: Arc::default(),
        }))
    }

    /// Counts something as still to be done.
    pub(super) fn defer(&self) -> Deferred {
        self.deferred.send_modify(|count| *count += 1);
        Deferred(self.deferred.clone())
    }

    /// Runs `job`, which changes files, and counts it as still to be done even when its caller goes away.
    pub(super) async fn run_counted<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let deferred = self.defer();
        let counted = move || {
            let _deferred = deferred;
            job()
        };
        self.writing.run(counted).await
    }

    /// The same for a `job` that somebody waits for who can do without it: when the disk does not take it,
    /// [`StoreError::Stalled`] says so, and it may yet happen.
    pub(super) async fn run_patiently<T: Send + 'static>(
        &self,
        path: &Path,
        job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (begin, begun) = oneshot::channel();
        let job = move || {
            let _ = begin.send(());
            job()
        };
        // To wait for a turn is no stall, unless no turn ever comes.
        let patience = async {
            let _ = timeout(TURN_MAX, begun).await;
            sleep(WRITE_MAX).await;
        };
        tokio::select! {
            biased;
            done = self.run_counted(job) => done,
            () = patience => Err(StoreError::Stalled { path: path.to_owned(), limit: WRITE_MAX }),
        }
    }

    /// Waits for the turn to change the file at `path`, no longer than somebody does who can do without it.
    pub(super) async fn turn_patiently(
        &self,
        path: &Path,
        turn: Arc<tokio::sync::Mutex<()>>,
    ) -> Result<OwnedMutexGuard<()>, StoreError> {
        let stalled = |_| StoreError::Stalled { path: path.to_owned(), limit: TURN_MAX };
        timeout(TURN_MAX, turn.lock_owned()).await.map_err(stalled)
    }

    /// Runs `job` some time, without anybody waiting for it: for destructors.
    pub(super) fn run_deferred(&self, job: impl FnOnce() + Send + 'static) {
        let deferred = self.defer();
        self.writing.run_detached(move || {
            // Dropped last, also when the job panics.
            let _deferred = deferred;
            job();
        });
    }

    /// Waits until nothing deferred is left.
    pub(super) async fn settled(&self) {
        // The sender lives as long as `self`, so this can't fail.
        let _ = self.deferred.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

// === impl Stripes ===

impl Stripes {
    pub(super) fn new() -> Self {
        Self { locks: (0..STRIPES).map(|_| Arc::default()).collect(), hasher: std::hash::RandomState::new() }
    }

    /// The lock of a key. The guard moves into the job that does the work: a caller that goes away frees the lock
    /// only when the job is done. Nobody may wait for a second stripe while holding one.
    pub(super) async fn lock<K: std::hash::Hash>(&self, key: &K) -> OwnedMutexGuard<()> {
        use std::hash::BuildHasher as _;
        let at = usize::try_from(self.hasher.hash_one(key) % STRIPES as u64).unwrap_or_default();
        self.locks[at].clone().lock_owned().await
    }
}
