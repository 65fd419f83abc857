//! Hashing on a thread of its own, while the bytes that were read go on to where they are written.

use bytes::Bytes;

use crate::oci::{Digest, Mismatch, Verified, Verifier};
use crate::tasks::Pool;

/// A verifier that whoever reads and writes needn't wait for.
#[derive(Debug)]
pub(super) struct Hashing {
    verifier: Verifier,
    pool: Pool,
}

// === impl Hashing ===

impl Hashing {
    /// Begins with bytes that should have this digest, and be so many.
    pub(super) fn new(digest: Digest, size_bytes: u64, pool: &Pool) -> Self {
        Self { verifier: Verifier::new(digest, Some(size_bytes)), pool: pool.clone() }
    }

    /// Takes in the next bytes.
    pub(super) async fn update(&mut self, bytes: Bytes) {
        // Dropped half-way, an update has not been, and what lacks its bytes never matches.
        let mut verifier = self.verifier.clone();
        let hash = move || {
            verifier.update(&bytes);
            verifier
        };
        self.verifier = self.pool.run(hash).await;
    }

    /// Whether that was what it should be.
    pub(super) fn finish(self) -> Result<Verified, Mismatch> {
        self.verifier.finish()
    }
}
