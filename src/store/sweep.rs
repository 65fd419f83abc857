//! The sweep: what was read since the last one gets its time on disk, so that the order of last reads survives a restart.

use std::sync::Arc;

use super::ledger::now;
use super::{Shared, Store};
use crate::tasks;

/// So many files get their time in one go, before other work on the I/O threads has its turn.
const BATCH: usize = 256;

// === impl Store ===

impl Store {
    /// One pass: raises the stamps of children to those of their newest parents, sets the times of the files of what was
    /// read since the last pass, removes partials that could not be removed before, probes a disk in trouble, and lets go of interrupted downloads
    /// that are old and of what a lowered capacity no longer allows. To be called about every 30 s, and at shutdown.
    pub async fn sweep(&self) {
        let (shared, deferred) = (self.shared.clone(), self.shared.io.defer());
        let sweeping = async move {
            let _deferred = deferred;
            shared.persist_stamps().await;
            shared.remove_leftovers().await;
            shared.drop_old_resting().await;
            Store { shared: shared.clone() }.probe().await;
            shared.look_at_pins().await;
            if shared.ledger.read().excess() > 0 {
                shared.evict_excess().await;
            }
        };
        // An error is a panic, which the panic hook has reported.
        let _ = tasks::spawn("sweep", sweeping).await;
    }
}

// === impl Shared ===

impl Shared {
    async fn persist_stamps(self: &Arc<Self>) {
        self.ledger.read().advance(now());
        if !self.ledger.read().take_touched() {
            return;
        }
        let shared = self.clone();
        let stale = self.io.reading.run(move || {
            shared.order_now();
            shared.ledger.read().unpersisted()
        });
        for batch in stale.await.chunks(BATCH) {
            let (shared, batch) = (self.clone(), batch.to_vec());
            self.io
                .writing
                .run(move || batch.iter().for_each(|(digest, stamp)| shared.persist_stamp(digest, *stamp)))
                .await;
        }
    }

    async fn remove_leftovers(self: &Arc<Self>) {
        let leftovers = std::mem::take(&mut *self.unremoved.lock());
        if !leftovers.is_empty() {
            let shared = self.clone();
            let remove = move || {
                for (folder, counted) in leftovers {
                    if !shared.remove_partial(&folder)
                        && let Some(charge) = counted
                    {
                        shared.count_unremoved(&folder, charge);
                    }
                }
            };
            self.io.writing.run(remove).await;
        }
    }

    fn persist_stamp(&self, digest: &crate::oci::Digest, stamp: u64) {
        match self.io.disk.set_time_at(&self.layout.blob(digest), stamp) {
            // A file that is gone was evicted just now, or will be noticed by whoever opens it.
            Ok(_) => self.ledger.read().persisted(digest, stamp),
            Err(error) => tracing::warn!(%error, "could not note when a blob was last read"),
        }
    }
}
