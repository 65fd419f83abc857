//! Versions: how whoever reads without a lock learns that somebody wrote in the meantime.

use std::hash::{BuildHasher as _, Hash, RandomState};

use parking_lot::Mutex;

/// A version for each key. Of very many keys some share one: then a change of one counts for the other as well.
#[derive(Debug)]
pub(super) struct Versions {
    cells: Vec<Mutex<Cell>>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Cell {
    /// How many are writing now.
    writing: usize,
    /// How often writing began.
    version: u64,
}

/// Somebody is writing, until this is dropped.
#[derive(Debug)]
pub(super) struct Writing<'a>(&'a Mutex<Cell>);

/// What a reader saw before it read; `None` if somebody was writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen(Option<u64>);

const CELLS: usize = 1024;

// === impl Versions ===

impl Versions {
    pub(super) fn new() -> Self {
        Self { cells: (0..CELLS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    fn cell<K: Hash>(&self, key: &K) -> &Mutex<Cell> {
        &self.cells[usize::try_from(self.hasher.hash_one(key) % CELLS as u64).unwrap_or_default()]
    }

    /// To be asked before reading.
    pub(super) fn seen<K: Hash>(&self, key: &K) -> Seen {
        let cell = self.cell(key).lock();
        Seen((cell.writing == 0).then_some(cell.version))
    }

    /// Writing begins.
    pub(super) fn write<K: Hash>(&self, key: &K) -> Writing<'_> {
        let cell = self.cell(key);
        let mut state = cell.lock();
        state.writing += 1;
        state.version += 1;
        drop(state);
        Writing(cell)
    }

    /// Runs `note`, before anybody can begin to write, if nobody has begun since `seen`.
    pub(super) fn if_unchanged<K: Hash>(&self, key: &K, seen: Seen, note: impl FnOnce()) {
        let cell = self.cell(key).lock();
        if seen.0 == Some(cell.version) {
            note();
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.lock().writing -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_beside_a_writer_is_not_noted() {
        let versions = Versions::new();
        let noted = |seen| {
            let mut noted = false;
            versions.if_unchanged(&1, seen, || noted = true);
            noted
        };
        let before = versions.seen(&1);
        assert!(noted(before));
        let writing = versions.write(&1);
        assert!(!noted(before), "read before, noted during the writing");
        let during = versions.seen(&1);
        assert!(!noted(during));
        drop(writing);
        assert!(!noted(before) && !noted(during));
        assert!(noted(versions.seen(&1)));
    }
}
