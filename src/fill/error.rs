//! Why a fill failed, shared by everyone who waits for it.

use std::sync::Arc;

use crate::oci::{Digest, Mismatch};

use crate::store::StoreError;

use super::origin::OriginError;

/// Why a blob can't be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unstorable {
    /// No room can be reserved for it.
    NoRoom,
    /// The disk takes no writes.
    Stalled,
    /// The disk failed.
    Failed,
}

/// Why a fill failed. Cheap to clone, because every reader gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    /// Every origin failed; this is the last one's reason.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The bytes that arrived are not the blob that was asked for.
    #[error("{origin} sent wrong content, which was thrown away: {mismatch}")]
    Mismatch {
        /// Who sent them.
        origin: String,
        /// What was wrong.
        mismatch: Mismatch,
        /// They came in several responses, which may have been of different content. One download in a single response
        /// comes before upstream is blamed.
        in_pieces: bool,
    },
    /// The store has no room for it, or can't be written to: the blob can be passed through, not kept.
    #[error("{digest} can't be kept: {reason}")]
    NotStorable {
        /// The blob.
        digest: Digest,
        /// What the store said.
        reason: Arc<str>,
        /// What kind of trouble that is.
        why: Unstorable,
    },
    /// The server is shutting down, or the fill's task died.
    #[error("the download of {digest} was stopped: {reason}")]
    Stopped {
        /// The blob.
        digest: Digest,
        /// Why.
        reason: &'static str,
    },
}

// === impl FillError ===

impl FillError {
    /// The store's refusal of a blob.
    pub(super) fn not_storable(digest: Digest, error: &StoreError) -> Self {
        let why = match error {
            StoreError::NoRoom(_) => Unstorable::NoRoom,
            StoreError::Stalled { .. } => Unstorable::Stalled,
            _ => Unstorable::Failed,
        };
        Self::NotStorable { digest, reason: error.to_string().into(), why }
    }
}
