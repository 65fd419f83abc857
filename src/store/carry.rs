//! What carrying images in and out of a store needs of it: reading blobs once, whether there is room, what came in vain.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::ioctl_ficlone;

use super::blob::Blob;
use super::count::{charge, record_charge};
use super::error::{NoRoom, StoreError};
use super::fs::Disk;
use super::partial::{DATA, Partial};
use super::seam::Op;
use super::{Removed, Store};
use crate::oci::Digest;

/// A held blob that is read once from its beginning to its end, without pushing out of the page cache what others need.
/// It isn't evicted meanwhile.
#[derive(Debug)]
pub struct OneLook {
    blob: Blob,
    file: Arc<File>,
}

/// Each file that is added takes its own inode, and some of them a record's and a folder's.
const INODES_PER_BLOB: u64 = 3;

// === impl Store ===

impl Store {
    /// Opens a held blob to be read once.
    pub async fn open_for_one_look(&self, digest: &Digest) -> Result<Option<OneLook>, StoreError> {
        let Some(blob) = self.open_blob(digest).await? else { return Ok(None) };
        let (io, path) = (blob.file.io.clone(), blob.file.path.clone());
        let opened = self.shared.io.reading.run(move || io.disk.open_for_one_look(&path)).await?;
        Ok(opened.map(|file| OneLook { blob, file: Arc::new(file) }))
    }

    /// Whether blobs of these sizes could be added, all of them together: what a promise keeps, or an offline mirror needs,
    /// makes no room for them. Nothing is reserved or evicted.
    pub async fn check_room(&self, sizes: &[u64]) -> Result<(), NoRoom> {
        let shared = &self.shared;
        let count = sizes.len() as u64;
        let record_bytes = record_charge(1).saturating_mul(count);
        let needed_bytes = sizes.iter().fold(record_bytes, |sum, size_bytes| sum.saturating_add(charge(*size_bytes)));
        let totals = shared.ledger.read().totals();
        let kept_bytes = if shared.offline || shared.is_in_grace() {
            totals.present + totals.records
        } else {
            let reader = shared.clone();
            let pinned = shared.io.reading.run(move || reader.pinned()).await;
            let bytes = shared.ledger.read().charges(&pinned);
            bytes + totals.records
        };
        let taken_bytes = kept_bytes.saturating_add(totals.reserved);
        let available_bytes = totals.capacity.saturating_sub(taken_bytes);
        if needed_bytes > totals.capacity {
            return Err(NoRoom::Never { needed_bytes, capacity_bytes: totals.capacity });
        }
        if needed_bytes > available_bytes {
            return Err(NoRoom::Kept { needed_bytes, available_bytes });
        }
        let (disk, path) = (shared.io.disk.clone(), shared.layout.base().to_owned());
        let space = shared.io.reading.run(move || disk.space(&path)).await;
        let space = space.map_err(|error| NoRoom::Unknown(Box::new(error)))?;
        let budget = *shared.budget.read();
        let inodes = count.saturating_mul(INODES_PER_BLOB);
        if let Some(free) = space.free_inodes.filter(|free| free.saturating_sub(inodes) < budget.min_free_inodes) {
            return Err(NoRoom::Disk { needed_bytes, what: "inodes", free, floor: budget.min_free_inodes });
        }
        // What may be evicted gives its bytes back to the file system.
        let evictable_bytes = (totals.present + totals.records).saturating_sub(kept_bytes);
        let free = space.free_bytes.saturating_sub(shared.ledger.unwritten()).saturating_add(evictable_bytes);
        if free.saturating_sub(needed_bytes) < budget.min_free_bytes {
            return Err(NoRoom::Disk { needed_bytes, what: "bytes", free, floor: budget.min_free_bytes });
        }
        Ok(())
    }

    /// Removes all blobs that no image leads to: what interrupted imports brought, or images whose records are gone. An import
    /// that is under way loses what it has brought, and says so.
    pub async fn remove_unused(&self) -> Removed {
        let held = self.shared.ledger.read().sizes();
        self.remove_unlisted(held.into_iter().map(|(digest, _)| digest).collect()).await
    }

    /// Removes those of these blobs that no image leads to.
    pub async fn remove_unlisted(&self, digests: Vec<Digest>) -> Removed {
        let listed = self.shared.listed_anywhere().await;
        self.shared.remove_blobs(digests.into_iter().filter(|digest| !listed.contains(digest)).collect()).await
    }
}

// === impl Partial ===

impl Partial {
    /// Takes over the content of a file, which from then on shares its blocks, where the file system can do that (a reflink).
    /// `false`: it can't, or the file is not just as long, and nothing is written.
    pub async fn share_blocks_of(&self, source: Arc<File>) -> Result<bool, StoreError> {
        let inner = self.inner();
        let Some(size_bytes) = inner.size_bytes else { return Ok(false) };
        let data = inner.folder.join(DATA);
        let writing = inner.shared.io.turn_patiently(&data, inner.writing.clone()).await?;
        let (shared, file, path) = (inner.shared.clone(), inner.file.clone(), data.clone());
        let share = move || {
            let _writing = writing;
            shared.io.disk.share_blocks(&source, file.file()?, &path, size_bytes)
        };
        let shares = inner.shared.io.run_patiently(&data, share).await?;
        if shares {
            inner.make_room(size_bytes, size_bytes).await?;
            inner.room.lock().reservation.wrote(size_bytes);
        }
        Ok(shares)
    }
}

// === impl Disk ===

impl Disk {
    /// Has `file` share the blocks of `source`, if that is possible and leaves it `size_bytes` long.
    fn share_blocks(&self, source: &File, file: &File, path: &Path, size_bytes: u64) -> Result<bool, StoreError> {
        self.run(Op::Write, path, || {
            // Whatever is in the way, such as another file system: then it's copied.
            if ioctl_ficlone(file, source).is_err() {
                return Ok(false);
            }
            if file.metadata()?.len() == size_bytes {
                return Ok(true);
            }
            file.set_len(0)?;
            file.set_len(size_bytes)?;
            Ok(false)
        })
    }
}

// === impl OneLook ===

impl OneLook {
    /// How long it is.
    pub fn size_bytes(&self) -> u64 {
        self.blob.size_bytes
    }

    /// Reads exactly `len` bytes from `offset` on.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let (io, path, file) = (self.blob.file.io.clone(), self.blob.file.path.clone(), self.file.clone());
        let read = move || {
            let mut buffer = vec![0; len];
            io.disk.read_for_one_look(&file, &path, offset, &mut buffer)?;
            Ok(Bytes::from(buffer))
        };
        self.blob.file.io.reading.run(read).await
    }
}
