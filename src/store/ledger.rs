//! The index behind its lock: gauges follow every change, and what is reserved or charged is given back when dropped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

use super::blob::OpenFile;
use super::count::charge;
use super::index::{Grant, Index};
use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::oci::Digest;

/// The accounts of one store.
pub(super) struct Ledger {
    index: RwLock<Index<OpenFile>>,
    /// How much of what is reserved is already on disk, so that the free-space floor doesn't count it twice.
    written: AtomicU64,
    metrics: Arc<Metrics>,
}

/// Room that was set aside for a blob. Dropping it gives the room back.
pub struct Reservation {
    ledger: Arc<Ledger>,
    charged_bytes: u64,
    written_bytes: u64,
}

/// Room that a record file or a resting partial takes. Dropping it gives the room back: do so after the file is gone.
pub(super) struct Charge {
    ledger: Arc<Ledger>,
    bytes: u64,
}

/// What a ledger says to a reservation.
pub(super) enum Answer {
    Granted(Reservation),
    Short { by: u64 },
    Never { capacity_bytes: u64 },
}

// === impl Ledger ===

impl Ledger {
    pub(super) fn new(index: Index<OpenFile>, metrics: Arc<Metrics>) -> Arc<Self> {
        let ledger = Self { index: RwLock::new(index), written: AtomicU64::new(0), metrics };
        ledger.change(|_| ());
        Arc::new(ledger)
    }

    /// Looks, without keeping other readers out.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Index<OpenFile>> {
        self.index.read()
    }

    /// Changes the index. Nothing slow may happen in `change`.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Index<OpenFile>) -> T) -> T {
        let mut index = self.index.write();
        let result = change(&mut index);
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.store_bytes.set(gauge(index.held()));
        self.metrics.store_reserved_bytes.set(gauge(index.reserved()));
        self.metrics.store_capacity_bytes.set(gauge(index.capacity()));
        self.metrics.store_blobs.set(gauge(index.blobs() as u64));
        result
    }

    /// Sets `charged_bytes` aside if they fit.
    pub(super) fn reserve(self: &Arc<Self>, charged_bytes: u64) -> Answer {
        match self.change(|index| index.reserve(charged_bytes)) {
            Grant::Granted => Answer::Granted(Reservation { ledger: self.clone(), charged_bytes, written_bytes: 0 }),
            Grant::Short { by } => Answer::Short { by },
            Grant::Never => Answer::Never { capacity_bytes: self.read().capacity() },
        }
    }

    /// Takes out an entry whose file was just unlinked; its room stays reserved until the result is dropped.
    pub(super) fn unlinked(self: &Arc<Self>, digest: &Digest, serial: u64, charged_bytes: u64) -> Option<Reservation> {
        if !self.change(|index| index.unlinked(digest, serial)) {
            return None;
        }
        // Its blocks are free, or will be: they are not still to be written.
        self.written.fetch_add(charged_bytes, Ordering::Relaxed);
        Some(Reservation { ledger: self.clone(), charged_bytes, written_bytes: charged_bytes })
    }

    /// How much of what is reserved will still be written.
    pub(super) fn unwritten(&self) -> u64 {
        self.read().reserved().saturating_sub(self.written.load(Ordering::Relaxed))
    }

    /// The charge for a record file that was found on disk.
    pub(super) fn found_record(self: &Arc<Self>, bytes: u64) -> Charge {
        self.change(|index| index.found_records(bytes));
        Charge { ledger: self.clone(), bytes }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.read().totals(), f)
    }
}

/// The clock that stamps follow, in microseconds since 1970.
pub(super) fn now() -> u64 {
    Timestamp::now().0.saturating_mul(1000)
}

// === impl Reservation ===

impl Reservation {
    /// Whether a blob of `size_bytes` fits into it.
    pub fn covers(&self, size_bytes: u64) -> bool {
        charge(size_bytes) <= self.charged_bytes
    }

    /// How many bytes it holds, as they count.
    pub fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Joins two reservations.
    pub(super) fn grow(&mut self, mut more: Self) {
        self.charged_bytes += std::mem::take(&mut more.charged_bytes);
        self.written_bytes += std::mem::take(&mut more.written_bytes);
    }

    /// Notes that `bytes` of it are now on disk.
    pub(super) fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.charged_bytes.saturating_sub(self.written_bytes));
        self.written_bytes += bytes;
        self.ledger.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Turns it into an entry of the index.
    pub(super) fn commit(mut self, digest: Digest, size_bytes: u64, stamp: u64, file: Option<&Arc<OpenFile>>) {
        let reserved = self.take();
        let handle = file.map(Arc::downgrade).unwrap_or_default();
        self.ledger.change(|index| index.commit(digest, size_bytes, stamp, reserved, handle));
    }

    /// Turns it into the charge for a record file.
    pub(super) fn into_charge(self) -> Charge {
        let bytes = self.charged_bytes;
        self.into_charge_of(bytes)
    }

    /// Turns at most `bytes` of it into a charge, and gives the rest back.
    pub(super) fn into_charge_of(mut self, bytes: u64) -> Charge {
        let reserved = self.take();
        let bytes = bytes.min(reserved);
        self.ledger.change(|index| index.commit_records(bytes, reserved));
        Charge { ledger: self.ledger.clone(), bytes }
    }

    /// Its bytes, which its destructor then no longer gives back.
    fn take(&mut self) -> u64 {
        self.ledger.written.fetch_sub(std::mem::take(&mut self.written_bytes), Ordering::Relaxed);
        std::mem::take(&mut self.charged_bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let bytes = self.take();
        if bytes > 0 {
            self.ledger.change(|index| index.release(bytes));
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("charged_bytes", &self.charged_bytes).finish_non_exhaustive()
    }
}

// === impl Charge ===

impl Charge {
    /// How many bytes it counts.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Turns it back into a reservation, all of which is on disk.
    pub(super) fn into_reservation(mut self) -> Reservation {
        let bytes = std::mem::take(&mut self.bytes);
        self.ledger.change(|index| index.reserve_records(bytes));
        let mut reservation = Reservation { ledger: self.ledger.clone(), charged_bytes: bytes, written_bytes: 0 };
        reservation.wrote(bytes);
        reservation
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.ledger.change(|index| index.release_records(self.bytes));
        }
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charge({})", self.bytes)
    }
}
