//! The hash frontier: follows what has become contiguous, in bursts, on the pool for hashing.

use std::sync::Arc;

use crate::oci::Verifier;
use crate::store::{OpenFile, StoreError};
use crate::tasks::Pool;

use super::progress::Progress;

/// The most that one job hashes, so that a thousand fills take turns. A job never waits for bytes.
const BURST_BYTES: u64 = 8 * 1024 * 1024;

/// How much is read at a time; it comes from the page cache, where it was written a moment ago.
const READ_BYTES: usize = 256 * 1024;

/// Hashes the `size_bytes` of a file as they become contiguous.
pub(super) async fn follow(
    progress: &Progress,
    file: &Arc<OpenFile>,
    size_bytes: u64,
    pool: &Pool,
    mut verifier: Verifier,
) -> Result<Verifier, StoreError> {
    while verifier.size_bytes() < size_bytes {
        let change = progress.change();
        let (hashed, frontier) = (verifier.size_bytes(), progress.frontier());
        if frontier <= hashed {
            change.await;
            continue;
        }
        let (file, end) = (Arc::clone(file), frontier.min(hashed + BURST_BYTES));
        verifier = pool.run(move || burst(&file, end, verifier)).await?;
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
