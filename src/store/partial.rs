//! Partials: blobs being written. They become blobs through `commit` and a proof, or vanish.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::blob::OpenFile;
use super::count::charge;
use super::error::{NoRoom, StoreError};
use super::ledger::{Reservation, now};
use super::publish::{MODE_BLOB, Staged, publish};
use super::seam::Op;
use super::{Shared, Store};
use crate::oci::{Digest, RegistryName, Verified};

/// A blob being written, by one writer; any number of readers share its file. Dropping it removes it from disk, in the
/// background; its room is given back when the last reader has closed the file.
#[derive(Debug)]
pub struct Partial {
    /// `None` only once it was committed.
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    digest: Digest,
    /// The blob's size, where it is known.
    size_bytes: Option<u64>,
    folder: PathBuf,
    file: Arc<OpenFile>,
    reservation: Reservation,
    /// How many bytes were written, and where the last of them ends.
    written_bytes: u64,
    end: u64,
}

/// The file in a partial's folder.
const DATA: &str = "data";

/// By how much the reservation grows when nobody knows how long the blob will get.
const GROWTH_BYTES: u64 = 16 << 20;

// === impl Store ===

impl Store {
    /// Starts writing a blob into room that was reserved for it. A file of known size is laid out at once, without
    /// taking blocks.
    pub async fn create_partial(
        &self,
        registry: &RegistryName,
        digest: Digest,
        size_bytes: Option<u64>,
        reservation: Reservation,
    ) -> Result<Partial, StoreError> {
        let (shared, registry) = (self.shared.clone(), registry.clone());
        let create = move || {
            let folder = shared.claim_folder(&registry, &digest);
            match shared.create_data(&folder, size_bytes) {
                Ok(file) => {
                    let inner =
                        Inner { shared, digest, size_bytes, folder, file, reservation, written_bytes: 0, end: 0 };
                    Ok(Partial { inner: Some(inner) })
                }
                Err(error) => {
                    shared.remove_partial(&folder);
                    Err(error)
                }
            }
        };
        self.shared.io.run_counted(create).await
    }
}

// === impl Partial ===

impl Partial {
    fn inner(&self) -> &Inner {
        #[expect(clippy::expect_used, reason = "only commit takes it, and commit takes the partial too")]
        self.inner.as_ref().expect("a partial that was not committed")
    }

    /// The digest that its content should have.
    pub fn digest(&self) -> Digest {
        self.inner().digest
    }

    /// Its file, for readers. They see what was written before they looked.
    pub fn file(&self) -> Arc<OpenFile> {
        self.inner().file.clone()
    }

    /// Writes `chunks` one after the other, from `offset` on. Where the size is unknown the reservation grows; where it is
    /// known nothing is written beyond it.
    pub async fn write_at(&mut self, offset: u64, chunks: Vec<Bytes>) -> Result<(), StoreError> {
        #[expect(clippy::expect_used, reason = "only commit takes it, and commit takes the partial too")]
        let inner = self.inner.as_mut().expect("a partial that was not committed");
        let len: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let end = offset.saturating_add(len);
        if inner.size_bytes.is_some_and(|size_bytes| end > size_bytes) {
            let source = std::io::Error::new(std::io::ErrorKind::FileTooLarge, "more bytes than the blob has");
            return Err(StoreError::io(Op::Write, &inner.folder.join(DATA), source));
        }
        if !inner.reservation.covers(end) {
            inner.grow(end).await?;
        }
        let file = inner.file.clone();
        inner.shared.io.writing.run(move || file.write_at(offset, &chunks)).await?;
        inner.reservation.wrote(len);
        inner.written_bytes += len;
        inner.end = inner.end.max(end);
        Ok(())
    }

    /// Makes it a blob. The proof must be for the digest asked for and for as many bytes as were written. Its open file
    /// becomes the blob's, so whoever reads it goes on reading. Where the blob is held already, the partial is dropped.
    ///
    /// Once begun it goes on to its end even when the caller goes away.
    pub async fn commit(self, verified: Verified) -> Result<(), StoreError> {
        let (shared, digest) = (self.inner().shared.clone(), self.inner().digest);
        let guard = shared.blob_locks.lock(&digest).await;
        let commit = move || {
            let _guard = guard;
            self.commit_locked(&verified)
        };
        shared.io.run_counted(commit).await
    }

    fn commit_locked(mut self, verified: &Verified) -> Result<(), StoreError> {
        let inner = self.inner();
        let size_bytes = verified.size_bytes();
        let data = inner.folder.join(DATA);
        let file = inner.file.file()?;
        if verified.digest() != inner.digest
            || size_bytes != inner.end
            || size_bytes > inner.written_bytes
            || size_bytes != inner.shared.io.disk.size(file, &data)?
        {
            return Err(StoreError::WrongProof {
                digest: inner.digest,
                written_bytes: inner.end.min(inner.written_bytes),
                proven: verified.digest(),
                proven_bytes: size_bytes,
            });
        }
        if inner.shared.keep_held(&inner.digest) {
            return Ok(());
        }
        let stamp = inner.shared.ledger.read().stamp(now());
        let staged = Staged { file, path: &data, mode: MODE_BLOB, stamp: Some(stamp) };
        publish(&inner.shared.io.disk, &staged, &inner.shared.layout.blob(&inner.digest))?;
        if let Some(inner) = self.inner.take() {
            inner.reservation.commit(inner.digest, size_bytes, stamp, Some(&inner.file));
            inner.shared.remove_partial(&inner.folder);
        }
        Ok(())
    }
}

impl Inner {
    /// Grows the reservation to a blob that ends at `end` or later. Where the size is known, or a whole step can't be had,
    /// to no more than is needed.
    async fn grow(&mut self, end: u64) -> Result<(), StoreError> {
        let missing = |size_bytes| charge(size_bytes).saturating_sub(self.reservation.charged_bytes());
        let (needed, step) = match self.size_bytes {
            Some(size_bytes) => (missing(size_bytes), missing(size_bytes)),
            None => (missing(end), missing(end.next_multiple_of(GROWTH_BYTES))),
        };
        let more = match self.shared.reserve_charged(step).await {
            Err(NoRoom::Never { .. } | NoRoom::NotNow { .. }) if needed < step => {
                self.shared.reserve_charged(needed).await?
            }
            other => other?,
        };
        self.reservation.grow(more);
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        let io = inner.shared.io.clone();
        io.run_deferred(move || {
            inner.shared.remove_partial(&inner.folder);
            // If this was the last reader, the file closes here, and the room is free when it has.
            inner.file.keep_until_closed(inner.reservation);
        });
    }
}

// === impl Shared ===

impl Shared {
    /// A folder that no other partial uses: another one of the same blob may still be on its way out.
    fn claim_folder(&self, registry: &RegistryName, digest: &Digest) -> PathBuf {
        let mut claimed = self.partials.lock();
        let mut turn = 0;
        loop {
            let folder = self.layout.partial(registry, digest, turn);
            if claimed.insert(folder.clone()) {
                return folder;
            }
            turn += 1;
        }
    }

    fn create_data(&self, folder: &Path, size_bytes: Option<u64>) -> Result<Arc<OpenFile>, StoreError> {
        let disk = &self.io.disk;
        if let Some(parent) = folder.parent() {
            disk.create_folder(parent)?;
        }
        disk.create_folder(folder)?;
        let data = folder.join(DATA);
        let file = disk.create(&data)?;
        if let Some(size_bytes) = size_bytes {
            disk.resize(&file, &data, size_bytes)?;
        }
        Ok(OpenFile::new(file, data, self.io.clone()))
    }

    /// Removes what is left of a partial; only then may its folder be used again.
    pub(super) fn remove_partial(&self, folder: &Path) {
        let removed = self.io.disk.remove(&folder.join(DATA)).and_then(|_| self.io.disk.remove_folder(folder));
        match removed {
            Ok(_) => drop(self.partials.lock().remove(folder)),
            // It stays claimed, so that a successor gets a folder of its own; the next sweep tries again.
            Err(error) => {
                tracing::warn!(%error, "could not remove a partial");
                self.unremoved.lock().push(folder.to_owned());
            }
        }
    }
}
