//! The checkpoints of one partial on disk: durable ones and quick notes, and what a failed sync means.

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::blob::OpenFile;
use super::checkpoint::Checkpoint;
use super::error::StoreError;
use super::fs::Disk;
use super::partial::{DATA, Partial};
use super::publish::{MODE_RECORD, publish_bytes, replace_bytes};
use super::seam::Op;

/// The last checkpoint whose data was made durable before it, and the next one before it is complete.
pub(super) const STATE: &str = "state.json";
const STATE_STAGED: &str = "state.tmp";

/// The last checkpoint that was noted without waiting for the disk. It outlives the process, whose end is what happens most,
/// but not the kernel: what was written reads as it was written only as long as that runs.
pub(super) const RECENT: &str = "recent.json";
const RECENT_STAGED: &str = "recent.tmp";

/// All of them, in the order in which they are removed: what is believed least goes first.
pub(super) const RECORDS: [&str; 4] = [RECENT, RECENT_STAGED, STATE, STATE_STAGED];

/// A checkpoint is this long at most: that of a blob of 80 GiB of which every other block is present.
const RECORD_BYTES_MAX: u64 = 8 << 20;

/// Which run of the kernel this is. Where nobody can tell, notes of any run are read: they are compared with the file anyway.
static BOOT: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default());

/// A checkpoint that was noted.
#[derive(Serialize, Deserialize)]
struct Note<'a> {
    /// Which run of the kernel it was.
    boot: Cow<'a, str>,
    checkpoint: Cow<'a, Checkpoint>,
}

/// What is known of a partial's checkpoints.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Held while a durable checkpoint is taken, and while a note is.
    syncing: Arc<Mutex<()>>,
    noting: Arc<Mutex<()>>,
    /// The folders above are durable.
    rooted: AtomicBool,
    /// There is a checkpoint on disk.
    written: AtomicBool,
    /// A sync failed, so bytes may be missing on disk that reads still show. The kernel reports that once: a later sync that
    /// succeeds proves nothing.
    lost: AtomicBool,
}

/// What the only one holds who may touch the checkpoints of a partial.
pub(super) type Turn = [OwnedMutexGuard<()>; 2];

// === impl Record ===

impl Record {
    /// That of a partial that was left with a checkpoint, durable or not.
    pub(super) fn found() -> Self {
        Self { written: true.into(), ..Self::default() }
    }

    /// Waits for checkpoints that are under way. None is begun while the guards live.
    pub(super) async fn turn(&self) -> Turn {
        [self.syncing.clone().lock_owned().await, self.noting.clone().lock_owned().await]
    }

    /// The same if there is none.
    pub(super) fn try_turn(&self) -> Option<Turn> {
        Some([self.syncing.clone().try_lock_owned().ok()?, self.noting.clone().try_lock_owned().ok()?])
    }

    /// Whether there is a checkpoint that can be believed.
    pub(super) fn is_of_use(&self) -> bool {
        self.written.load(Ordering::Acquire) && !self.lost.load(Ordering::Acquire)
    }

    /// The disk has failed to keep what was written. The note goes: a later process would find its bytes in the page cache and
    /// not on disk.
    fn lose(&self, disk: &Disk, folder: &Path) {
        self.lost.store(true, Ordering::Release);
        if let Err(error) = disk.remove(&folder.join(RECENT)) {
            tracing::warn!(%error, "could not remove a note of what the disk has lost");
        }
    }

    /// Brings what was written to the disk, unless that has failed before: it would not be told again.
    fn sync(&self, disk: &Disk, file: &OpenFile, folder: &Path) -> Result<(), StoreError> {
        let data = folder.join(DATA);
        self.check_kept(&data)?;
        disk.sync_data(file.file()?, &data).inspect_err(|_| self.lose(disk, folder))
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
        let turn = inner.record.syncing.clone().lock_owned().await;
        let (shared, folder) = (inner.shared.clone(), inner.folder.clone());
        let (file, record) = (inner.file.clone(), inner.record.clone());
        let write = move || {
            let _turn = turn;
            let disk = &shared.io.disk;
            record.sync(disk, &file, &folder)?;
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

    /// Brings what was written to the disk and notes nothing of it, so that less is left to do for who commits it.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let inner = self.inner();
        let turn = inner.record.syncing.clone().lock_owned().await;
        let (shared, folder) = (inner.shared.clone(), inner.folder.clone());
        let (file, record) = (inner.file.clone(), inner.record.clone());
        let sync = move || {
            let _turn = turn;
            record.sync(&shared.io.disk, &file, &folder)
        };
        inner.shared.io.run_counted(sync).await
    }

    /// Takes the last checkpoint before the partial rests: no note says anything beyond it.
    pub async fn last_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.checkpoint(checkpoint).await?;
        let inner = self.inner();
        let turn = inner.record.noting.clone().lock_owned().await;
        let (shared, note) = (inner.shared.clone(), inner.folder.join(RECENT));
        let remove = move || {
            let _turn = turn;
            shared.io.disk.remove(&note).map(drop)
        };
        inner.shared.io.run_counted(remove).await
    }

    /// Notes `checkpoint` for the case that the process ends, without waiting for the disk.
    pub async fn note(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let inner = self.inner();
        let note = Note { boot: Cow::Borrowed(&BOOT), checkpoint: Cow::Borrowed(checkpoint) };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        let turn = inner.record.noting.clone().lock_owned().await;
        let (shared, folder, record) = (inner.shared.clone(), inner.folder.clone(), inner.record.clone());
        let write = move || {
            let _turn = turn;
            let (disk, staged, target) = (&shared.io.disk, folder.join(RECENT_STAGED), folder.join(RECENT));
            record.check_kept(&target)?;
            disk.remove(&staged)?;
            replace_bytes(disk, text.into(), &staged, &target, MODE_RECORD)?;
            // A sync may have failed meanwhile.
            record.check_kept(&target).inspect_err(|_| record.lose(disk, &folder))
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

/// What the checkpoints in the folder of a partial say: the durable one, or a note of this run of the kernel that says more.
/// `None` if there is none that can be believed.
pub(super) fn read(disk: &Disk, folder: &Path) -> Result<Option<Checkpoint>, StoreError> {
    let durable = disk.read(&folder.join(STATE), RECORD_BYTES_MAX)?;
    let durable =
        durable.and_then(|text| serde_json::from_slice::<Checkpoint>(&text).ok()).filter(Checkpoint::is_sound);
    // A note is worth no failure.
    let noted = disk.read(&folder.join(RECENT), RECORD_BYTES_MAX).ok().flatten();
    let noted = noted.and_then(|text| serde_json::from_slice::<Note<'_>>(&text).ok());
    let noted =
        noted.filter(|note| note.boot == *BOOT).map(|note| note.checkpoint.into_owned()).filter(Checkpoint::is_sound);
    Ok(durable.into_iter().chain(noted).max_by_key(Checkpoint::present_bytes))
}
