//! What the connections of a fill did: how many there were, what they asked for, how often they began again.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What the connections of one fill did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effort {
    /// How often a broken body was resumed.
    pub(super) resumes: u64,
    /// How many ranges were asked for.
    pub(super) segments: u64,
    /// How many bytes came twice.
    pub(super) twice_bytes: u64,
    /// How many connections there were at once.
    pub(super) connections: usize,
    /// The bytes came in more than one response.
    pub(super) in_pieces: bool,
}

/// Counts it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    resumes: AtomicU64,
    segments: AtomicU64,
    open: AtomicUsize,
    open_max: AtomicUsize,
}

// === impl Tally ===

impl Tally {
    /// A broken body is resumed.
    pub(super) fn resumed(&self) {
        self.resumes.fetch_add(1, Ordering::Relaxed);
    }

    /// A range is asked for.
    pub(super) fn asked(&self) {
        self.segments.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection as open while something comes over it.
    pub(super) async fn open<T>(&self, bringing: impl Future<Output = T>) -> T {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.open_max.fetch_max(open, Ordering::Relaxed);
        let brought = bringing.await;
        self.open.fetch_sub(1, Ordering::Relaxed);
        brought
    }

    /// What it came to.
    pub(super) fn effort(&self, twice_bytes: u64, ranges: bool) -> Effort {
        let resumes = self.resumes.load(Ordering::Relaxed);
        Effort {
            resumes,
            segments: self.segments.load(Ordering::Relaxed),
            twice_bytes,
            connections: self.open_max.load(Ordering::Relaxed),
            in_pieces: ranges || resumes > 0,
        }
    }
}
