//! The hash frontier: follows what has become contiguous, in bursts, on the pool for hashing.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::oci::Verifier;
use crate::store::{OpenFile, Prefix, StoreError};
use crate::tasks::Pool;

use super::progress::Progress;
use super::segments::Claim;

/// How far a blob in a file was hashed, and what the hash was on the way.
#[derive(Debug)]
pub(super) struct HashFrontier<'a> {
    progress: &'a Progress,
    pool: &'a Pool,
    file: Arc<OpenFile>,
    size_bytes: u64,
    prefixes: Mutex<Vec<Prefix>>,
}

/// The most that one job hashes, so that a thousand fills take turns. A job never waits for bytes.
const BURST_BYTES: u64 = 8 * 1024 * 1024;

/// How much is read at a time; it comes from the page cache, where it was written a moment ago.
const READ_BYTES: usize = 256 * 1024;

/// The digests of prefixes that are kept lie at least so far apart, but for the last one. After a restart, readers get
/// what was there one such step at a time.
const PREFIX_STEP_BYTES: u64 = 32 * 1024 * 1024;

// === impl HashFrontier ===

impl<'a> HashFrontier<'a> {
    pub(super) fn new(progress: &'a Progress, pool: &'a Pool, file: Arc<OpenFile>, size_bytes: u64) -> Self {
        Self { progress, pool, file, size_bytes, prefixes: Mutex::default() }
    }

    /// Digests of ever longer prefixes; the last one is as long as was hashed.
    pub(super) fn prefixes(&self) -> Vec<Prefix> {
        self.prefixes.lock().clone()
    }

    /// Hashes what an earlier run left of the start of the blob, and tells the progress how much of it is as it was then.
    /// `claim` keeps connections from fetching it meanwhile.
    pub(super) async fn restore(
        &self,
        mut verifier: Verifier,
        prefixes: &[Prefix],
        claim: &mut Claim,
    ) -> Result<Verifier, StoreError> {
        for prefix in prefixes {
            let known = verifier.size_bytes();
            let longer = hash_start(self.pool, &self.file, prefix.bytes, verifier.clone()).await?;
            if longer.prefix_digest() != prefix.digest {
                break;
            }
            self.note(&longer);
            self.progress.received(claim, prefix.bytes - known);
            verifier = longer;
        }
        Ok(verifier)
    }

    /// Hashes all of the blob as it becomes contiguous.
    pub(super) async fn follow(&self, mut verifier: Verifier) -> Result<Verifier, StoreError> {
        while verifier.size_bytes() < self.size_bytes {
            let change = self.progress.change();
            let (hashed, frontier) = (verifier.size_bytes(), self.progress.frontier());
            if frontier <= hashed {
                change.await;
                continue;
            }
            verifier = self.burst(verifier, frontier).await?;
            self.note(&verifier);
        }
        Ok(verifier)
    }

    /// Hashes on towards `end`, at most one burst.
    async fn burst(&self, verifier: Verifier, end: u64) -> Result<Verifier, StoreError> {
        let file = Arc::clone(&self.file);
        let end = end.min(verifier.size_bytes() + BURST_BYTES);
        self.pool.run(move || burst(&file, end, verifier)).await
    }

    fn note(&self, verifier: &Verifier) {
        let prefix = Prefix { bytes: verifier.size_bytes(), digest: verifier.prefix_digest() };
        let mut prefixes = self.prefixes.lock();
        // The last one moves on until it's a step away from the one before it.
        let before = prefixes.len().checked_sub(2).map_or(0, |at| prefixes[at].bytes);
        if prefixes.last().is_some_and(|last| last.bytes - before < PREFIX_STEP_BYTES) {
            prefixes.pop();
        }
        prefixes.push(prefix);
    }
}

/// A verifier that has taken in the first `end` bytes of a file.
pub(super) async fn hash_start(
    pool: &Pool,
    file: &Arc<OpenFile>,
    end: u64,
    mut verifier: Verifier,
) -> Result<Verifier, StoreError> {
    while verifier.size_bytes() < end {
        let (file, stop) = (Arc::clone(file), end.min(verifier.size_bytes() + BURST_BYTES));
        verifier = pool.run(move || burst(&file, stop, verifier)).await?;
    }
    Ok(verifier)
}

fn burst(file: &OpenFile, end: u64, mut verifier: Verifier) -> Result<Verifier, StoreError> {
    let mut buffer = vec![0; READ_BYTES];
    while verifier.size_bytes() < end {
        let at = verifier.size_bytes();
        let len = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
        file.read_now(at, &mut buffer[..len])?;
        verifier.update(&buffer[..len]);
    }
    Ok(verifier)
}
