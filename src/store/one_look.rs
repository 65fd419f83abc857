//! Reading what is looked at once, without pushing out of the page cache what others need.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use super::error::StoreError;
use super::fs::Disk;
use super::seam::Op;

// === impl Disk ===

impl Disk {
    /// Opens a file that will be read once, without the system reading ahead of that; `None` if it isn't there.
    pub(super) fn open_for_one_look(&self, path: &Path) -> Result<Option<File>, StoreError> {
        let file = self.open(path)?;
        if let Some(file) = &file {
            // Read ahead, pages could not be told from those that were there before.
            let _ = fadvise(file, 0, None, Advice::Random);
        }
        Ok(file)
    }

    /// Fills `buffer` from `offset` on, and leaves in the page cache only what was there before.
    pub(super) fn read_for_one_look(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        self.run(Op::Read, path, || {
            let resident = {
                let flags = ReadWriteFlags::NOWAIT;
                preadv2(file, &mut [io::IoSliceMut::new(buffer)], offset, flags).unwrap_or(0)
            };
            let (rest, from) = (&mut buffer[resident..], offset + resident as u64);
            let read = file.read_exact_at(rest, from);
            if let Some(len) = NonZeroU64::new(rest.len() as u64) {
                let _ = fadvise(file, from, Some(len), Advice::DontNeed);
            }
            read
        })
    }
}
