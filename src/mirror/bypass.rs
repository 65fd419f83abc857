//! Blobs on their way past the store: how many there are, for they count among the misses as downloads do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Those under way. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Bypasses(Arc<AtomicUsize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Bypass(Bypasses);

// === impl Bypasses ===

impl Bypasses {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, unless there are `max` already.
    pub(super) fn enter(&self, max: usize) -> Option<Bypass> {
        let more = |count: usize| (count < max).then_some(count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Bypass(self.clone()))
    }
}

// === impl Bypass ===

impl Drop for Bypass {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_once_it_is_dropped() {
        let bypasses = Bypasses::default();
        let first = bypasses.enter(1);
        assert!(first.is_some() && bypasses.clone().enter(1).is_none());
        assert_eq!(bypasses.len(), 1);
        drop(first);
        assert!(bypasses.enter(1).is_some());
    }
}
