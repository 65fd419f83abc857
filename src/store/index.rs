//! The accounts of the store: what is held, what it counts, who may go. Pure: no I/O, no clock, no async runtime.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::count::{Totals, charge};
use super::order::Candidate;
use crate::oci::Digest;

/// What is held, and how its bytes count against the capacity. `H` is an open file: a blob with a live one is in use.
///
/// Invariant, after every operation:
///
/// - `present` and `evicting` are the sums of what the entries in that state are charged;
/// - `present + evicting + records + reserved <= max(capacity, ceiling)`, where `ceiling` is 0 unless more than the
///   capacity was *found* on disk (boot with a smaller capacity): then it is the total found, and it falls with the
///   total until the capacity holds again. Nothing but finding ever lifts the total above the capacity.
#[derive(Debug)]
pub(super) struct Index<H> {
    capacity: u64,
    entries: HashMap<Digest, Entry<H>>,
    present: u64,
    evicting: u64,
    /// Bytes of record files, of resting partials, and of what lies in quarantine.
    records: u64,
    reserved: u64,
    ceiling: u64,
    serial: u64,
    /// The next stamp: microseconds since 1970 or more, only ever rising.
    clock: AtomicU64,
    /// Whether any stamp changed since the sweep last asked.
    touched: AtomicBool,
}

#[derive(Debug)]
struct Entry<H> {
    size_bytes: u64,
    charged_bytes: u64,
    /// Tells this entry from an earlier one of the same digest.
    serial: u64,
    stamp: AtomicU64,
    /// The stamp that the file carries as its modification time.
    persisted: AtomicU64,
    state: State,
    handle: Weak<H>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Present,
    /// Chosen as a victim; counts until its file is gone.
    Evicting,
}

/// A blob that was just found held.
#[derive(Debug)]
pub(super) struct Hit<H> {
    pub(super) size_bytes: u64,
    pub(super) serial: u64,
    /// The open file that its readers share, if it has any.
    pub(super) handle: Option<Arc<H>>,
}

/// The answer to a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// The bytes are reserved.
    Granted,
    /// So many bytes would have to go first.
    Short { by: u64 },
    /// It exceeds the capacity.
    Never,
}

/// The answer to attaching an open file.
#[derive(Debug)]
pub(super) enum Attach<H> {
    /// It is now the shared one.
    Attached,
    /// Another one is; use that.
    Taken(Arc<H>),
    /// The entry is gone or going.
    Gone,
}

/// A blob on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) digest: Digest,
    pub(super) serial: u64,
    pub(super) charged_bytes: u64,
    pub(super) stamp: u64,
}

// === impl Index: reading, under a shared lock ===

impl<H> Index<H> {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            entries: HashMap::new(),
            present: 0,
            evicting: 0,
            records: 0,
            reserved: 0,
            ceiling: 0,
            serial: 0,
            clock: AtomicU64::new(1),
            touched: AtomicBool::new(false),
        }
    }

    /// Another capacity. What is held beyond it counts as found: it goes when it may.
    pub(super) fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.ceiling = if self.total() > capacity { self.total() } else { 0 };
    }

    fn present(&self, digest: &Digest) -> Option<&Entry<H>> {
        self.entries.get(digest).filter(|entry| entry.state == State::Present)
    }

    /// The size of a held blob. Changes nothing.
    pub(super) fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.present(digest).map(|entry| entry.size_bytes)
    }

    /// Looks a blob up and stamps it as just read.
    pub(super) fn hit(&self, digest: &Digest) -> Option<Hit<H>> {
        let entry = self.present(digest)?;
        entry.stamp.fetch_max(self.next_stamp(), Ordering::Relaxed);
        self.touched.store(true, Ordering::Relaxed);
        Some(Hit { size_bytes: entry.size_bytes, serial: entry.serial, handle: entry.handle.upgrade() })
    }

    /// The shared open file of an entry, if it has one.
    pub(super) fn handle(&self, digest: &Digest, serial: u64) -> Option<Arc<H>> {
        self.present(digest).filter(|entry| entry.serial == serial)?.handle.upgrade()
    }

    fn next_stamp(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Raises the clock to `now`, in microseconds since 1970. It never falls, however the wall clock jumps.
    pub(super) fn advance(&self, now: u64) {
        self.clock.fetch_max(now, Ordering::Relaxed);
    }

    /// Raises stamps, as the order of eviction found them.
    pub(super) fn raise(&self, raised: &[(Digest, u64)]) {
        for (digest, stamp) in raised {
            if let Some(entry) = self.present(digest) {
                entry.stamp.fetch_max(*stamp, Ordering::Relaxed);
            }
        }
    }

    /// Whether anything was read since this was last asked.
    pub(super) fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    /// The blobs whose files carry an older time than their stamp.
    pub(super) fn unpersisted(&self) -> Vec<(Digest, u64)> {
        let stale = |(digest, entry): (&Digest, &Entry<H>)| {
            let stamp = entry.stamp.load(Ordering::Relaxed);
            (entry.state == State::Present && stamp > entry.persisted.load(Ordering::Relaxed))
                .then_some((*digest, stamp))
        };
        self.entries.iter().filter_map(stale).collect()
    }

    /// Notes that a file carries `stamp`.
    pub(super) fn persisted(&self, digest: &Digest, stamp: u64) {
        if let Some(entry) = self.present(digest) {
            entry.persisted.fetch_max(stamp, Ordering::Relaxed);
        }
    }

    /// Everything that is present, for ordering.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let present = self.entries.iter().filter(|(_, entry)| entry.state == State::Present);
        present
            .map(|(digest, entry)| Candidate { digest: *digest, stamp: entry.stamp.load(Ordering::Relaxed) })
            .collect()
    }

    /// An entry's serial and size.
    pub(super) fn entry(&self, digest: &Digest) -> Option<(u64, u64)> {
        self.present(digest).map(|entry| (entry.serial, entry.size_bytes))
    }

    /// What those of a set that are present are charged.
    pub(super) fn charges(&self, digests: &HashSet<Digest>) -> u64 {
        digests.iter().filter_map(|digest| self.present(digest)).map(|entry| entry.charged_bytes).sum()
    }

    /// Everything held, with its size.
    pub(super) fn sizes(&self) -> Vec<(Digest, u64)> {
        self.entries.iter().map(|(digest, entry)| (*digest, entry.size_bytes)).collect()
    }

    /// All that counts.
    pub(super) fn total(&self) -> u64 {
        self.present + self.evicting + self.records + self.reserved
    }

    /// How much more is held than the capacity allows: not 0 only after more was found on disk.
    pub(super) fn excess(&self) -> u64 {
        self.total().saturating_sub(self.capacity)
    }

    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// All sums.
    pub(super) fn totals(&self) -> Totals {
        Totals {
            present: self.present,
            evicting: self.evicting,
            records: self.records,
            reserved: self.reserved,
            capacity: self.capacity,
            blobs: self.entries.len(),
        }
    }

    pub(super) fn blobs(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that are on disk and count: entries in either state, and records.
    pub(super) fn held(&self) -> u64 {
        self.present + self.evicting + self.records
    }
}

// === impl Index: changing, under the exclusive lock ===

impl<H> Index<H> {
    /// Takes in a blob found on disk at boot.
    pub(super) fn found(&mut self, digest: Digest, size_bytes: u64, stamp: u64) {
        self.advance(stamp.saturating_add(1));
        self.add(digest, size_bytes, stamp, Weak::new());
        self.ceiling = self.ceiling.max(self.total());
        self.settle();
    }

    /// Takes in bytes of records or quarantine found on disk at boot.
    pub(super) fn found_records(&mut self, bytes: u64) {
        self.records += bytes;
        self.ceiling = self.ceiling.max(self.total());
        self.settle();
    }

    fn add(&mut self, digest: Digest, size_bytes: u64, stamp: u64, handle: Weak<H>) {
        self.serial += 1;
        let entry = Entry {
            size_bytes,
            charged_bytes: charge(size_bytes),
            serial: self.serial,
            stamp: AtomicU64::new(stamp),
            persisted: AtomicU64::new(stamp),
            state: State::Present,
            handle,
        };
        self.present += entry.charged_bytes;
        if let Some(replaced) = self.entries.insert(digest, entry) {
            // Callers hold the digest's lock and have looked; should one slip through, the sums stay right.
            self.uncount(&replaced);
        }
    }

    fn uncount(&mut self, entry: &Entry<H>) {
        match entry.state {
            State::Present => self.present -= entry.charged_bytes,
            State::Evicting => self.evicting -= entry.charged_bytes,
        }
    }

    /// Asks for `bytes`, as they count.
    pub(super) fn reserve(&mut self, bytes: u64) -> Grant {
        if bytes > self.capacity {
            return Grant::Never;
        }
        let by = (self.total() + bytes).saturating_sub(self.capacity);
        if by > 0 {
            return Grant::Short { by };
        }
        self.reserved += bytes;
        self.settle();
        Grant::Granted
    }

    /// Gives reserved bytes back.
    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved -= bytes;
        self.settle();
    }

    /// Turns `charge(size_bytes)` of the `reserved` bytes into an entry, and gives the rest back. The stamp is the one
    /// that the file was given.
    pub(super) fn commit(&mut self, digest: Digest, size_bytes: u64, stamp: u64, reserved: u64, handle: Weak<H>) {
        debug_assert!(charge(size_bytes) <= reserved, "{digest} was committed beyond its reservation");
        self.reserved -= reserved;
        self.add(digest, size_bytes, stamp, handle);
        self.settle();
    }

    /// A stamp for a file that is about to be committed.
    pub(super) fn stamp(&self, now: u64) -> u64 {
        self.advance(now);
        self.next_stamp()
    }

    /// Turns `bytes` of the `reserved` bytes into record bytes, and gives the rest back.
    pub(super) fn commit_records(&mut self, bytes: u64, reserved: u64) {
        debug_assert!(bytes <= reserved, "records were written beyond their reservation");
        self.reserved -= reserved;
        self.records += bytes;
        self.settle();
    }

    /// Turns record bytes into reserved ones.
    pub(super) fn reserve_records(&mut self, bytes: u64) {
        self.records -= bytes;
        self.reserved += bytes;
        self.settle();
    }

    /// Record bytes that are gone.
    pub(super) fn release_records(&mut self, bytes: u64) {
        self.records -= bytes;
        self.settle();
    }

    /// Shares an open file among the readers of an entry.
    pub(super) fn attach(&mut self, digest: &Digest, serial: u64, handle: &Arc<H>) -> Attach<H> {
        let entry = self.entries.get_mut(digest).filter(|entry| entry.serial == serial);
        let Some(entry) = entry.filter(|entry| entry.state == State::Present) else { return Attach::Gone };
        if let Some(other) = entry.handle.upgrade() {
            return Attach::Taken(other);
        }
        entry.handle = Arc::downgrade(handle);
        Attach::Attached
    }

    /// Marks victims in the order given until `enough` bytes are on their way out. A blob that is in use, or was read
    /// since the order was made, stays. If even all others don't come to `least` bytes, nothing is marked.
    pub(super) fn begin_evict(&mut self, order: &[Candidate], least: u64, enough: u64) -> Vec<Victim> {
        let mut victims = Vec::new();
        let mut freed = 0;
        for candidate in order {
            if freed >= enough {
                break;
            }
            let Some(entry) = self.present(&candidate.digest) else { continue };
            let stamp = entry.stamp.load(Ordering::Relaxed);
            if entry.handle.strong_count() > 0 || stamp > candidate.stamp {
                continue;
            }
            freed += entry.charged_bytes;
            let (serial, charged_bytes) = (entry.serial, entry.charged_bytes);
            victims.push(Victim { digest: candidate.digest, serial, charged_bytes, stamp });
        }
        if freed < least {
            return Vec::new();
        }
        for victim in &victims {
            self.set_state(&victim.digest, victim.serial, State::Evicting);
        }
        victims
    }

    fn set_state(&mut self, digest: &Digest, serial: u64, state: State) -> bool {
        let entry = self.entries.get_mut(digest).filter(|entry| entry.serial == serial && entry.state != state);
        let Some(entry) = entry else { return false };
        entry.state = state;
        let bytes = entry.charged_bytes;
        match state {
            State::Present => (self.evicting, self.present) = (self.evicting - bytes, self.present + bytes),
            State::Evicting => (self.present, self.evicting) = (self.present - bytes, self.evicting + bytes),
        }
        self.settle();
        true
    }

    /// Whether an entry is still the one that was seen.
    pub(super) fn is_current(&self, digest: &Digest, serial: u64) -> bool {
        self.entries.get(digest).is_some_and(|entry| entry.serial == serial)
    }

    /// Whether a victim is still to go: a commit of the same content may have kept it.
    pub(super) fn is_evicting(&self, digest: &Digest, serial: u64) -> bool {
        let entry = self.entries.get(digest).filter(|entry| entry.serial == serial);
        entry.is_some_and(|entry| entry.state == State::Evicting)
    }

    /// Keeps a blob that is held or on its way out: whether there was one. Its caller holds the digest's lock, so no file
    /// is being removed.
    pub(super) fn keep(&mut self, digest: &Digest) -> bool {
        let Some(serial) = self.entries.get(digest).map(|entry| entry.serial) else { return false };
        self.set_state(digest, serial, State::Present);
        true
    }

    /// Forgets an entry whose file is gone. Returns whether it was that entry.
    pub(super) fn forget(&mut self, digest: &Digest, serial: u64) -> bool {
        if self.entries.get(digest).is_none_or(|entry| entry.serial != serial) {
            return false;
        }
        if let Some(entry) = self.entries.remove(digest) {
            self.uncount(&entry);
        }
        self.settle();
        true
    }

    /// Forgets an entry whose file was unlinked; its bytes are reserved from now on. Returns whether it was that entry.
    pub(super) fn unlinked(&mut self, digest: &Digest, serial: u64) -> bool {
        let Some(entry) = self.entries.get(digest).filter(|entry| entry.serial == serial) else { return false };
        let bytes = entry.charged_bytes;
        self.forget(digest, serial);
        self.reserved += bytes;
        true
    }

    /// Forgets an entry whose file went to quarantine; its bytes go on counting. Returns them, if it was that entry.
    pub(super) fn quarantine(&mut self, digest: &Digest, serial: u64) -> Option<u64> {
        let entry = self.entries.get(digest).filter(|entry| entry.serial == serial)?;
        let bytes = entry.charged_bytes;
        self.records += bytes;
        self.forget(digest, serial);
        Some(bytes)
    }

    /// Lowers the ceiling with the total, and checks the invariant where that is cheap.
    fn settle(&mut self) {
        self.ceiling = if self.total() > self.capacity { self.ceiling.min(self.total()) } else { 0 };
        debug_assert!(self.total() <= self.capacity.max(self.ceiling), "over budget: {:?}", self.totals());
        debug_assert!(self.entries.len() > 256 || self.sums_are_right(), "sums are wrong: {:?}", self.totals());
    }

    /// Whether the sums are those of the entries.
    pub(super) fn sums_are_right(&self) -> bool {
        let sum = |state| -> u64 {
            self.entries.values().filter(|entry| entry.state == state).map(|entry| entry.charged_bytes).sum()
        };
        sum(State::Present) == self.present && sum(State::Evicting) == self.evicting
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
