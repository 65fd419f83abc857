//! Publishing, in one function: mode, time, fsync, rename, fsync of the folder. Nothing else puts a file in its place to stay.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;

use super::error::StoreError;
use super::fs::Disk;

/// Content that nobody may change.
pub(super) const MODE_BLOB: u32 = 0o444;
/// Content that is replaced as a whole.
pub(super) const MODE_RECORD: u32 = 0o644;

/// A complete file that is not in its place yet.
#[derive(Debug)]
pub(super) struct Staged<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    pub(super) mode: u32,
    /// The modification time it gets, in microseconds since 1970; `None` leaves it alone.
    pub(super) stamp: Option<u64>,
}

/// Makes a staged file durable, puts it at `target` and makes that durable too.
///
/// On failure nothing is left where the file was staged, and `target` is as it was, or gone if the file had already
/// come there. A failed fsync is never tried again: the kernel reports lost pages once, and a second fsync that succeeds
/// proves nothing.
pub(super) fn publish(disk: &Disk, staged: &Staged<'_>, target: &Path) -> Result<(), StoreError> {
    let folder = target.parent().unwrap_or(target);
    let prepared = prepare(disk, staged, folder).and_then(|()| disk.rename(staged.path, target));
    let (result, leftover) = match prepared {
        Ok(()) => (disk.sync_folder(folder), target),
        failed => (failed, staged.path),
    };
    if result.is_err()
        && let Err(error) = disk.remove(leftover)
    {
        tracing::warn!(%error, "could not remove a file that failed to be published");
    }
    result
}

fn prepare(disk: &Disk, staged: &Staged<'_>, folder: &Path) -> Result<(), StoreError> {
    disk.set_mode(staged.file, staged.path, staged.mode)?;
    if let Some(stamp) = staged.stamp {
        disk.set_time(staged.file, staged.path, stamp)?;
    }
    disk.sync(staged.file, staged.path)?;
    disk.ensure_folder(folder)
}

/// Writes `bytes` to a new file at `staged` and publishes it at `target`.
pub(super) fn publish_bytes(
    disk: &Disk,
    bytes: Bytes,
    staged: &Path,
    target: &Path,
    mode: u32,
    stamp: Option<u64>,
) -> Result<(), StoreError> {
    let file = disk.create(staged)?;
    if let Err(error) = disk.write_at(&file, staged, 0, &[bytes]) {
        let _ = disk.remove(staged);
        return Err(error);
    }
    publish(disk, &Staged { file: &file, path: staged, mode, stamp }, target)
}

/// Writes `bytes` to a new file at `staged` and puts it at `target`, whole or not at all, without making it durable: after a
/// power cut it may be gone, empty, or what was there before.
pub(super) fn replace_bytes(
    disk: &Disk,
    bytes: Bytes,
    staged: &Path,
    target: &Path,
    mode: u32,
) -> Result<(), StoreError> {
    let file = disk.create(staged)?;
    let replaced = disk
        .write_at(&file, staged, 0, &[bytes])
        .and_then(|()| disk.set_mode(&file, staged, mode))
        .and_then(|()| disk.rename(staged, target));
    if replaced.is_err() {
        let _ = disk.remove(staged);
    }
    replaced
}
