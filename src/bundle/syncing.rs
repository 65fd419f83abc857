//! Bringing what is written to the disk while more is written, so that little is left for the end.

use futures_util::future::{BoxFuture, FutureExt as _, poll_immediate};

/// What was written of one file, and what of it is on its way to the disk.
pub(super) struct Syncing<'a, E> {
    /// So much was written since a sync was last begun.
    unsynced_bytes: u64,
    /// The sync that goes on.
    pending: Option<BoxFuture<'a, Result<(), E>>>,
}

/// After so much is begun to bring what was written to the disk.
const SYNC_BYTES: u64 = 64 << 20;

// === impl Syncing ===

impl<'a, E> Syncing<'a, E> {
    /// Nothing was written.
    pub(super) fn new() -> Self {
        Self { unsynced_bytes: 0, pending: None }
    }

    /// Notes that so much was written. Once that is enough, `sync` is begun, when the one before has ended: a disk that is
    /// slower than what is written paces it here.
    pub(super) async fn wrote(
        &mut self,
        bytes: u64,
        sync: impl Future<Output = Result<(), E>> + Send + 'a,
    ) -> Result<(), E> {
        self.unsynced_bytes += bytes;
        if self.unsynced_bytes < SYNC_BYTES {
            return Ok(());
        }
        self.unsynced_bytes = 0;
        self.ended().await?;
        let mut begun = sync.boxed();
        // It goes on by itself on a thread once it was looked at.
        if let Some(synced) = poll_immediate(&mut begun).await {
            return synced;
        }
        self.pending = Some(begun);
        Ok(())
    }

    /// Waits until what is being brought to the disk is there. An error would not be told a second time.
    pub(super) async fn ended(&mut self) -> Result<(), E> {
        match self.pending.take() {
            Some(pending) => pending.await,
            None => Ok(()),
        }
    }
}

impl<E> std::fmt::Debug for Syncing<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Syncing").field("unsynced_bytes", &self.unsynced_bytes).finish_non_exhaustive()
    }
}
