//! Room: reserving it, and to make it dropping interrupted downloads, then evicting what was read longest ago.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::count::charge;
use super::error::NoRoom;
use super::index::Victim;
use super::ledger::{Answer, Reservation, now};
use super::order::{Order, order};
use super::{Shared, Store};
use crate::oci::Digest;
use crate::tasks;

/// Others may take what was freed before it can be reserved, so many times.
const ROUNDS: usize = 4;

/// Eviction frees at least this part of the capacity at once, so that not every reservation has to evict.
const LOW_MARK_SHARE: u64 = 50;

/// The room of so many removed files at most waits for their folders to be synced.
const REMOVED_BATCH: usize = 256;

// === impl Store ===

impl Store {
    /// Sets room aside for a blob of `bytes` bytes, evicting what was read longest ago if need be. Nothing is written
    /// without a reservation (law 8).
    pub async fn reserve(&self, bytes: u64) -> Result<Reservation, NoRoom> {
        self.shared.reserve_charged(charge(bytes)).await
    }
}

// === impl Shared ===

impl Shared {
    /// Sets `charged_bytes` aside, as they count.
    pub(super) async fn reserve_charged(self: &Arc<Self>, charged_bytes: u64) -> Result<Reservation, NoRoom> {
        let reserved = self.reserve_or_evict(charged_bytes).await;
        if let Err(refusal @ NoRoom::Disk { .. }) = &reserved {
            self.io.disk.health().note(refusal.to_string());
        }
        reserved
    }

    async fn reserve_or_evict(self: &Arc<Self>, charged_bytes: u64) -> Result<Reservation, NoRoom> {
        match self.ledger.reserve(charged_bytes) {
            Answer::Granted(reservation) => {
                if self.shortage(charged_bytes).await? == 0 {
                    return Ok(reservation);
                }
            }
            Answer::Short { .. } => {}
            Answer::Never { capacity_bytes } => {
                return Err(NoRoom::Never { needed_bytes: charged_bytes, capacity_bytes });
            }
        }
        // Eviction goes on to its end even when the caller goes away: half-done it would leave blobs that are neither
        // held nor gone.
        let (shared, deferred) = (self.clone(), self.io.defer());
        let making = async move {
            let _deferred = deferred;
            shared.make_room(charged_bytes).await
        };
        let interrupted = |_| NoRoom::NotNow { needed_bytes: charged_bytes, reason: "eviction was interrupted" };
        tasks::spawn("evict", making).await.map_err(interrupted)?
    }

    /// How many bytes the file system lacks to its floor, once everything reserved is written.
    pub(super) async fn shortage(&self, needed_bytes: u64) -> Result<u64, NoRoom> {
        let (disk, path) = (self.io.disk.clone(), self.layout.base().to_owned());
        let space = self.io.reading.run(move || disk.space(&path)).await;
        let space = space.map_err(|error| NoRoom::Unknown(Box::new(error)))?;
        let budget = *self.budget.read();
        if let Some(free) = space.free_inodes.filter(|free| *free <= budget.min_free_inodes) {
            return Err(NoRoom::Disk { needed_bytes, what: "inodes", free, floor: budget.min_free_inodes });
        }
        let free = space.free_bytes.saturating_sub(self.ledger.unwritten());
        let short = budget.min_free_bytes.saturating_sub(free);
        // Where others fill the disk, each new blob may take the place of old ones, but the cache doesn't vanish.
        if short > needed_bytes.max(self.low_mark()) {
            return Err(NoRoom::Disk { needed_bytes, what: "bytes", free, floor: budget.min_free_bytes });
        }
        Ok(short)
    }

    fn low_mark(&self) -> u64 {
        self.ledger.read().capacity() / LOW_MARK_SHARE
    }

    async fn make_room(self: &Arc<Self>, needed_bytes: u64) -> Result<Reservation, NoRoom> {
        // One at a time: two would both evict for what one of them needs.
        let _turn = self.evictor.lock().await;
        let not_now = |reason| NoRoom::NotNow { needed_bytes, reason };
        for _ in 0..ROUNDS {
            let (least, blocked) = match self.ledger.reserve(needed_bytes) {
                Answer::Granted(reservation) => match self.shortage(needed_bytes).await? {
                    0 => return Ok(reservation),
                    short => (short, "the file system is full down to its floor (storage.min_free)"),
                },
                Answer::Short { by } => (by, "all that is held is pinned or being read, and the rest is reserved"),
                Answer::Never { capacity_bytes } => return Err(NoRoom::Never { needed_bytes, capacity_bytes }),
            };
            if self.drop_resting(least).await > 0 {
                continue;
            }
            if self.offline {
                return Err(not_now("nothing is evicted while offline, as it could not be fetched again"));
            }
            if self.is_in_grace() {
                return Err(not_now("more is held than the capacity allows, and nothing is evicted yet"));
            }
            let enough = least + self.low_mark().saturating_sub(needed_bytes);
            if self.evict(least, enough).await == 0 {
                return Err(not_now(blocked));
            }
        }
        Err(not_now("what was freed went to others"))
    }

    /// Whether more was found at boot than the capacity allows, and nothing is to be evicted for that yet, or ever.
    pub(super) fn is_in_grace(&self) -> bool {
        let waits = self.offline || self.grace_until.lock().is_some_and(|until| Instant::now() < until);
        waits && self.ledger.read().excess() > 0
    }

    /// Evicts what a capacity that was lowered no longer allows.
    pub(super) async fn evict_excess(self: &Arc<Self>) {
        let _turn = self.evictor.lock().await;
        let excess = self.ledger.read().excess();
        let excess = excess.saturating_sub(self.drop_resting(excess).await);
        if excess > 0 && !self.is_in_grace() {
            // As much as can be had: better than nothing.
            self.evict(0, excess).await;
        }
    }

    /// The order of eviction as of now, without what is pinned. Stamps of children rise to those of their parents.
    pub(super) fn order_now(&self) -> Order {
        let parents = self.catalog.read().parents();
        let candidates = self.ledger.read().candidates();
        let mut order = order(candidates, &parents);
        self.ledger.read().raise(&order.raised);
        let pinned = self.pinned();
        order.candidates.retain(|candidate| !pinned.contains(&candidate.digest));
        order
    }

    /// Evicts at least `least` bytes, or nothing; up to about `enough`. Returns how many. The caller has its turn.
    async fn evict(self: &Arc<Self>, least: u64, enough: u64) -> u64 {
        // Without the records nobody knows which layers are the base of what.
        let _ = self.loaded.subscribe().wait_for(|loaded| *loaded).await;
        let shared = self.clone();
        let order = self.io.reading.run(move || shared.order_now()).await;
        let victims = self.ledger.change(|index| index.begin_evict(&order.candidates, least, enough));
        self.evict_all(victims).await.0
    }

    /// Removes victims. Returns how many bytes that freed, and how many blobs went. The caller has its turn.
    pub(super) async fn evict_all(self: &Arc<Self>, victims: Vec<Victim>) -> (u64, usize) {
        let (mut freed, mut count, mut removed) = (0, 0, Vec::new());
        for victim in victims {
            if let Some(room) = self.evict_one(victim).await {
                freed += victim.charged_bytes;
                count += 1;
                removed.push((victim.digest, room));
            }
            if removed.len() == REMOVED_BATCH {
                self.free(std::mem::take(&mut removed)).await;
            }
        }
        self.free(removed).await;
        (freed, count)
    }

    async fn evict_one(self: &Arc<Self>, victim: Victim) -> Option<Reservation> {
        let guard = self.blob_locks.lock(&victim.digest).await;
        let shared = self.clone();
        let evicted = self.io.writing.run(move || {
            let _guard = guard;
            shared.remove_victim(&victim)
        });
        let room = evicted.await?;
        self.drop_records(victim.digest).await;
        Some(room)
    }

    /// Gives the room of removed files back once they are gone for good: what comes back after a power cut, beside what took
    /// its place, would be more than the capacity allows.
    async fn free(self: &Arc<Self>, removed: Vec<(Digest, Reservation)>) {
        let shared = self.clone();
        let free = move || {
            let paths = removed.iter().map(|(digest, _)| shared.layout.blob(digest));
            let folders: BTreeSet<PathBuf> = paths.filter_map(|path| path.parent().map(Path::to_owned)).collect();
            for folder in folders {
                if let Err(error) = shared.io.disk.sync_folder(&folder) {
                    tracing::warn!(%error, "could not make sure that evicted blobs stay away after a power cut");
                }
            }
        };
        self.io.writing.run(free).await;
    }

    /// Removes a victim's file, then its entry. Its room stays reserved. The caller holds the digest's lock.
    fn remove_victim(self: &Arc<Self>, victim: &Victim) -> Option<Reservation> {
        let Victim { digest, serial, charged_bytes, stamp } = victim;
        if !self.ledger.read().is_evicting(digest, *serial) {
            return None;
        }
        if let Err(error) = self.io.disk.remove(&self.layout.blob(digest)) {
            tracing::warn!(%error, "could not evict a blob");
            self.ledger.change(|index| index.keep(digest));
            return None;
        }
        let room = self.ledger.unlinked(digest, *serial, *charged_bytes);
        let idle = Duration::from_micros(now().saturating_sub(*stamp));
        self.metrics.evicted_bytes.inc_by(*charged_bytes);
        self.metrics.evicted_idle_seconds.observe(idle.as_secs_f64());
        tracing::debug!(%digest, idle_seconds = idle.as_secs(), "evicted a blob");
        room
    }
}
