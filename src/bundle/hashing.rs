//! Hashing on a thread of its own, while the bytes that were read go on to where they are written.

use bytes::Bytes;

use crate::oci::{Digest, Mismatch, Verified, Verifier};
use crate::tasks::Pool;

/// A verifier that whoever reads and writes needn't wait for.
#[derive(Debug)]
pub(super) struct Hashing {
    /// Away while it takes in bytes.
    verifier: Option<Verifier>,
    fresh: Verifier,
    pool: Pool,
}

// === impl Hashing ===

impl Hashing {
    /// Begins with bytes that should have this digest, and be so many.
    pub(super) fn new(digest: Digest, size_bytes: u64, pool: &Pool) -> Self {
        let fresh = Verifier::new(digest, Some(size_bytes));
        Self { verifier: Some(fresh.clone()), fresh, pool: pool.clone() }
    }

    /// Takes in the next bytes.
    pub(super) async fn update(&mut self, bytes: Bytes) {
        // It is away only if an update was dropped half-way; then what it took in is not known, and nothing ever matches.
        let mut verifier = self.verifier.take().unwrap_or_else(|| self.fresh.clone());
        let hash = move || {
            verifier.update(&bytes);
            verifier
        };
        self.verifier = Some(self.pool.run(hash).await);
    }

    /// Whether that was what it should be.
    pub(super) fn finish(self) -> Result<Verified, Mismatch> {
        self.verifier.unwrap_or(self.fresh).finish()
    }
}
