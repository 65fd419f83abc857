//! The checkpoints of one partial on disk: one at a time, the data before its record, and what a failed sync means.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::checkpoint::Checkpoint;
use super::error::StoreError;
use super::partial::{DATA, Partial, STATE, STATE_STAGED};
use super::publish::{MODE_RECORD, publish_bytes};
use super::seam::Op;

/// What is known of a partial's checkpoints.
#[derive(Debug, Default)]
pub(super) struct Record {
    turn: Arc<Mutex<()>>,
    /// The folders above are durable.
    rooted: AtomicBool,
    /// There is a checkpoint on disk.
    written: AtomicBool,
    /// A sync failed, so bytes may be missing on disk that reads still show. The kernel reports that once: a later sync that
    /// succeeds proves nothing.
    lost: AtomicBool,
}

// === impl Record ===

impl Record {
    /// That of a partial that was left with a checkpoint.
    pub(super) fn found() -> Self {
        Self { rooted: true.into(), written: true.into(), ..Self::default() }
    }

    /// Waits for the checkpoint that is under way. None is begun while the guard lives.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// The same if there is none.
    pub(super) fn try_turn(&self) -> Option<OwnedMutexGuard<()>> {
        self.turn.clone().try_lock_owned().ok()
    }

    /// Whether there is a checkpoint that can be believed.
    pub(super) fn is_of_use(&self) -> bool {
        self.written.load(Ordering::Acquire) && !self.lost.load(Ordering::Acquire)
    }

    /// An error if the disk has failed to keep what was written.
    pub(super) fn check_kept(&self, data: &Path) -> Result<(), StoreError> {
        if self.lost.load(Ordering::Acquire) {
            let source = std::io::Error::other("the disk failed to keep what was written before");
            return Err(StoreError::io(Op::Sync, data, source));
        }
        Ok(())
    }
}

// === impl Partial ===

impl Partial {
    /// Makes what was written durable, then notes `checkpoint`, which may speak only of what was written before this call.
    /// Goes on to its end even when the caller goes away.
    pub async fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let inner = self.inner();
        let text = serde_json::to_vec(checkpoint).unwrap_or_default();
        let turn = inner.record.turn().await;
        let (shared, folder) = (inner.shared.clone(), inner.folder.clone());
        let (file, record) = (inner.file.clone(), inner.record.clone());
        let write = move || {
            let _turn = turn;
            let (disk, data) = (&shared.io.disk, folder.join(DATA));
            disk.sync_data(file.file()?, &data).inspect_err(|_| record.lost.store(true, Ordering::Release))?;
            let (staged, target) = (folder.join(STATE_STAGED), folder.join(STATE));
            // One that was left behind by a failure would be in the way.
            disk.remove(&staged)?;
            publish_bytes(disk, text.into(), &staged, &target, MODE_RECORD, None)?;
            record.written.store(true, Ordering::Release);
            if !record.rooted.load(Ordering::Acquire)
                && let Some(registry) = folder.parent()
            {
                disk.sync_folder(registry)?;
                disk.sync_folder(&shared.layout.partials())?;
                record.rooted.store(true, Ordering::Release);
            }
            Ok(())
        };
        inner.shared.io.run_counted(write).await
    }

    /// Whether the disk has failed to keep what was written: then it never becomes a blob, and does not rest.
    pub fn is_lost(&self) -> bool {
        self.inner().record.check_kept(&self.inner().folder).is_err()
    }

    /// Whether it can rest: there is a checkpoint that can be believed.
    pub fn can_rest(&self) -> bool {
        self.inner().record.is_of_use()
    }
}
