//! The threads that do the store's reading and writing, and the count of what they still have to do.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::{OwnedMutexGuard, watch};

use super::fs::Disk;
use crate::tasks::Pool;

/// The disk, and where calls to it run.
#[derive(Debug)]
pub(super) struct Io {
    pub(super) disk: Disk,
    pub(super) pool: Pool,
    deferred: Arc<watch::Sender<usize>>,
    /// How many files are open for readers.
    pub(super) open_files: AtomicUsize,
}

/// Work that nobody may be waiting for, but that [`Io::settled`] counts until this is dropped.
#[derive(Debug)]
pub(super) struct Deferred(Arc<watch::Sender<usize>>);

/// Locks for keys of which there are too many for one each: equal keys share one.
#[derive(Debug)]
pub(super) struct Stripes {
    locks: Vec<Arc<tokio::sync::Mutex<()>>>,
    hasher: std::hash::RandomState,
}

/// How many keys can be locked at once: more than there are threads to do anything with them.
const STRIPES: usize = 256;

// === impl Io ===

impl Io {
    pub(super) fn new(disk: Disk, pool: Pool) -> Arc<Self> {
        Arc::new(Self { disk, pool, deferred: Arc::new(watch::Sender::new(0)), open_files: AtomicUsize::new(0) })
    }

    /// Counts something as still to be done.
    pub(super) fn defer(&self) -> Deferred {
        self.deferred.send_modify(|count| *count += 1);
        Deferred(self.deferred.clone())
    }

    /// Runs a job that changes what is on disk, and waits for it. Once begun it runs to its end even when the caller goes
    /// away, and [`Io::settled`] waits for it then.
    pub(super) async fn run_to_end<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let deferred = self.defer();
        let counted = move || {
            let _deferred = deferred;
            job()
        };
        self.pool.run(counted).await
    }

    /// Runs `job` some time, without anybody waiting for it: for destructors.
    pub(super) fn run_deferred(&self, job: impl FnOnce() + Send + 'static) {
        let deferred = self.defer();
        self.pool.run_detached(move || {
            // Dropped last, also when the job panics.
            let _deferred = deferred;
            job();
        });
    }

    /// Waits until nothing deferred is left, and no change is under way.
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_change_whose_caller_left_is_waited_for() {
        let disk = Disk::new(None, Arc::new(Metrics::new()));
        let io = Io::new(disk, Pool::new("test", 1).unwrap());
        let (open, gate) = mpsc::channel::<()>();
        io.pool.run_detached(move || gate.recv().unwrap());
        let changed = Arc::new(AtomicBool::new(false));
        let seen = changed.clone();
        assert!(io.run_to_end(move || seen.store(true, Ordering::SeqCst)).now_or_never().is_none());
        assert!(io.settled().now_or_never().is_none());
        open.send(()).unwrap();
        io.settled().await;
        assert!(changed.load(Ordering::SeqCst));
    }
}
