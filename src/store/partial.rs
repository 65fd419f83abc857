//! Partials: blobs being written. They become blobs through `commit` and a proof, rest, or vanish.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::blob::OpenFile;
use super::count::{charge, sparse_charge};
use super::error::{NoRoom, StoreError};
use super::ledger::{Charge, Reservation, now};
use super::publish::{MODE_BLOB, Staged, publish};
use super::record::{RECORDS, Record};
use super::resting::{Entry, Key};
use super::seam::Op;
use super::{Shared, Store};
use crate::oci::{Digest, RegistryName, Verified};
use crate::tasks;

/// A blob being written, by any number of writers at different places; any number of readers share its file. Dropping it
/// removes it from disk, in the background; its room is given back when the last reader has closed the file.
#[derive(Debug)]
pub struct Partial {
    /// `None` only once it was committed or left at rest.
    inner: Option<Inner>,
}

/// How much room a partial takes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of a blob of this size, reserved at once.
    Whole(u64),
    /// Parts of a blob of this size: only what is written is reserved, until [`Partial::reserve_whole`].
    Sparse(u64),
    /// A blob whose size nobody has said: reserved in steps, as it grows.
    Growing,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) registry: RegistryName,
    pub(super) digest: Digest,
    /// The blob's size, where it is known.
    pub(super) size_bytes: Option<u64>,
    pub(super) folder: PathBuf,
    pub(super) file: Arc<OpenFile>,
    pub(super) room: Mutex<Room>,
    /// Held by the write that is under way. The kernel lets only one write to a file at a time: others would spin meanwhile.
    pub(super) writing: Arc<tokio::sync::Mutex<()>>,
    pub(super) record: Arc<Record>,
}

/// What a partial may take, and has taken.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) reservation: Reservation,
    extent: Extent,
    /// How many bytes of the file take blocks on disk, wanted or not.
    on_disk_bytes: u64,
    /// How many bytes were written, or found again; and where the last of them ends.
    written_bytes: u64,
    end: u64,
}

/// The file in a partial's folder.
pub(super) const DATA: &str = "data";

/// By how much the reservation grows when nobody knows how long the blob will get.
const GROWTH_BYTES: u64 = 16 << 20;

// === impl Extent ===

impl Extent {
    fn size_bytes(self) -> Option<u64> {
        match self {
            Self::Whole(size_bytes) | Self::Sparse(size_bytes) => Some(size_bytes),
            Self::Growing => None,
        }
    }
}

// === impl Store ===

impl Store {
    /// Starts writing a blob, once there is room for it as `extent` says. A file of known size is laid out at once, without
    /// taking blocks.
    pub async fn create_partial(
        &self,
        registry: &RegistryName,
        digest: Digest,
        extent: Extent,
    ) -> Result<Partial, StoreError> {
        let charged_bytes = match extent {
            Extent::Whole(size_bytes) => charge(size_bytes),
            Extent::Sparse(_) => sparse_charge(0),
            Extent::Growing => charge(0),
        };
        let reservation = self.shared.reserve_charged(charged_bytes).await?;
        let (shared, registry) = (self.shared.clone(), registry.clone());
        let place = self.shared.layout.partials();
        let create = move || {
            let folder = shared.claim_folder(&registry, &digest);
            match shared.create_data(&folder, extent.size_bytes()) {
                Ok(file) => {
                    let room = Room { reservation, extent, on_disk_bytes: 0, written_bytes: 0, end: 0 };
                    Ok(Partial::new(shared, (registry, digest), folder, file, room, Record::default()))
                }
                Err(error) => {
                    shared.remove_partial(&folder);
                    Err(error)
                }
            }
        };
        self.shared.io.run_patiently(&place, create).await
    }
}

// === impl Partial ===

impl Partial {
    pub(super) fn inner(&self) -> &Inner {
        #[expect(clippy::expect_used, reason = "only commit and rest take it, and they take the partial too")]
        self.inner.as_ref().expect("a partial that was neither committed nor left at rest")
    }

    pub(super) fn take(&mut self) -> Option<Inner> {
        self.inner.take()
    }

    /// A partial of `size_bytes` that rested.
    pub(super) fn reopened(shared: Arc<Shared>, key: Key, entry: Entry, file: Arc<OpenFile>, size_bytes: u64) -> Self {
        let Entry { folder, charge, on_disk_bytes, .. } = entry;
        let reservation = charge.into_reservation();
        let extent = Extent::Sparse(size_bytes);
        let room = Room { reservation, extent, on_disk_bytes, written_bytes: 0, end: 0 };
        Self::new(shared, key, folder, file, room, Record::found())
    }

    fn new(
        shared: Arc<Shared>,
        (registry, digest): Key,
        folder: PathBuf,
        file: Arc<OpenFile>,
        room: Room,
        record: Record,
    ) -> Self {
        let size_bytes = room.extent.size_bytes();
        let (room, writing, record) = (Mutex::new(room), Arc::default(), Arc::new(record));
        Self { inner: Some(Inner { shared, registry, digest, size_bytes, folder, file, room, writing, record }) }
    }

    /// The digest that its content should have.
    pub fn digest(&self) -> Digest {
        self.inner().digest
    }

    /// Its file, for readers. They see what was written before they looked.
    pub fn file(&self) -> Arc<OpenFile> {
        self.inner().file.clone()
    }

    /// Reserves room for all of a blob of which only parts were wanted so far.
    pub async fn reserve_whole(&self) -> Result<(), StoreError> {
        let inner = self.inner();
        let missing = {
            let room = inner.room.lock();
            let Extent::Sparse(size_bytes) = room.extent else { return Ok(()) };
            charge(size_bytes).saturating_sub(room.reservation.charged_bytes())
        };
        // Not under the lock: eviction takes its time, and others write meanwhile.
        let more = inner.shared.reserve_charged(missing).await?;
        let mut room = inner.room.lock();
        room.reservation.grow(more);
        if let Extent::Sparse(size_bytes) = room.extent {
            room.extent = Extent::Whole(size_bytes);
        }
        Ok(())
    }

    /// Writes `chunks` one after the other, from `offset` on. Room is reserved before, where it was not yet; where the size
    /// is known nothing is written beyond it. Nobody else may write the same bytes.
    ///
    /// A slow disk paces whoever writes. A write that it does not take at all is [`StoreError::Stalled`], and may yet happen.
    pub async fn write_at(&self, offset: u64, chunks: Vec<Bytes>) -> Result<(), StoreError> {
        let inner = self.inner();
        let len: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let end = offset.saturating_add(len);
        if inner.size_bytes.is_some_and(|size_bytes| end > size_bytes) {
            let source = std::io::Error::new(std::io::ErrorKind::FileTooLarge, "more bytes than the blob has");
            return Err(StoreError::io(Op::Write, &inner.folder.join(DATA), source));
        }
        let data = inner.folder.join(DATA);
        // Goes along with the job, which runs to its end even when nobody waits for it any longer.
        let writing = inner.shared.io.turn_patiently(&data, inner.writing.clone()).await?;
        inner.make_room(len, end).await?;
        let file = inner.file.clone();
        let write = move || {
            let _writing = writing;
            file.write_at(offset, &chunks)
        };
        inner.shared.io.run_patiently(&data, write).await?;
        inner.room.lock().reservation.wrote(len);
        Ok(())
    }

    /// Notes that bytes of an earlier run were found to be there.
    pub fn found(&self, offset: u64, len: u64) {
        let mut room = self.inner().room.lock();
        room.written_bytes += len;
        room.end = room.end.max(offset.saturating_add(len));
    }

    /// Makes it a blob. The proof must be for the digest asked for and for as many bytes as were written. Its open file
    /// becomes the blob's, so whoever reads it goes on reading. Where the blob is held already, the partial is dropped.
    ///
    /// Once begun it goes on to its end even when the caller goes away.
    pub async fn commit(self, verified: Verified) -> Result<(), StoreError> {
        let (shared, digest) = (self.inner().shared.clone(), self.inner().digest);
        // A blob of which only parts were wanted may have become whole by and by.
        self.reserve_whole().await?;
        let checkpoint = self.inner().record.turn().await;
        let guard = shared.blob_locks.lock(&digest).await;
        let commit = move || {
            let _guards = (guard, checkpoint);
            self.commit_locked(&verified)
        };
        shared.io.run_counted(commit).await
    }

    fn commit_locked(mut self, verified: &Verified) -> Result<(), StoreError> {
        let inner = self.inner();
        let size_bytes = verified.size_bytes();
        let data = inner.folder.join(DATA);
        let file = inner.file.file()?;
        inner.record.check_kept(&data)?;
        let (written_bytes, end) = {
            let room = inner.room.lock();
            (room.written_bytes, room.end)
        };
        if verified.digest() != inner.digest
            || size_bytes != end
            || size_bytes > written_bytes
            || size_bytes != inner.shared.io.disk.size(file, &data)?
        {
            return Err(StoreError::WrongProof {
                digest: inner.digest,
                written_bytes: end.min(written_bytes),
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
            inner.room.into_inner().reservation.commit(inner.digest, size_bytes, stamp, Some(&inner.file));
            inner.shared.remove_partial(&inner.folder);
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        let (io, record) = (inner.shared.io.clone(), inner.record.clone());
        let remove = move || {
            let (shared, folder) = (inner.shared.clone(), inner.folder.clone());
            if shared.remove_partial(&folder) {
                // If this was the last reader, the file closes here, and the room is free when it has.
                inner.file.keep_until_closed(inner.room.into_inner().reservation);
            } else {
                let (on_disk_bytes, reservation) = inner.room.into_inner().into_parts();
                shared.count_unremoved(&folder, reservation.into_charge_of(sparse_charge(on_disk_bytes)));
            }
        };
        // A checkpoint that is under way would leave a file behind.
        match (record.try_turn(), tokio::runtime::Handle::try_current()) {
            (None, Ok(_)) => {
                let deferred = io.defer();
                tasks::spawn("remove_partial", async move {
                    let _deferred = deferred;
                    let _turn = record.turn().await;
                    io.writing.run(remove).await;
                });
            }
            _ => io.run_deferred(remove),
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Makes sure that `len` more bytes, the last of which ends at `end`, are reserved, and counts them. Where the size is
    /// known, or a whole step can't be had, no more than is needed.
    pub(super) async fn make_room(&self, len: u64, end: u64) -> Result<(), StoreError> {
        let (needed, step) = self.room.lock().count(len, end);
        if needed == 0 {
            return Ok(());
        }
        let more = match self.shared.reserve_charged(step).await {
            Err(NoRoom::Never { .. } | NoRoom::NotNow { .. }) if needed < step => {
                self.shared.reserve_charged(needed).await?
            }
            other => other?,
        };
        self.room.lock().reservation.grow(more);
        Ok(())
    }
}

// === impl Room ===

impl Room {
    /// How many bytes take blocks on disk, and the reservation.
    pub(super) fn into_parts(self) -> (u64, Reservation) {
        (self.on_disk_bytes, self.reservation)
    }

    /// Counts `len` more bytes, the last of which ends at `end`. Returns how much more must be reserved for them, and how much
    /// had better be.
    fn count(&mut self, len: u64, end: u64) -> (u64, u64) {
        self.on_disk_bytes += len;
        self.written_bytes += len;
        self.end = self.end.max(end);
        let missing = |charged_bytes: u64| charged_bytes.saturating_sub(self.reservation.charged_bytes());
        match self.extent {
            Extent::Whole(size_bytes) => [charge(size_bytes); 2].map(missing).into(),
            Extent::Sparse(_) => [sparse_charge(self.on_disk_bytes); 2].map(missing).into(),
            Extent::Growing => (missing(charge(end)), missing(charge(end.next_multiple_of(GROWTH_BYTES)))),
        }
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

    /// Removes what is left of a partial; only then may its folder be used again. `false`: it could not be done, and the next
    /// sweep tries again.
    pub(super) fn remove_partial(&self, folder: &Path) -> bool {
        let disk = &self.io.disk;
        // The checkpoints go first: without them nothing else is believed.
        let files = RECORDS.into_iter().chain([DATA]).map(|name| disk.remove(&folder.join(name)).map(drop));
        let removed = files.collect::<Result<(), _>>().and_then(|()| disk.remove_folder(folder));
        match removed {
            Ok(_) => drop(self.partials.lock().remove(folder)),
            // It stays claimed, so that a successor gets a folder of its own.
            Err(error) => {
                tracing::warn!(%error, "could not remove a partial");
                self.unremoved.lock().insert(folder.to_owned(), None);
                return false;
            }
        }
        true
    }

    /// What could not be removed goes on counting (law 8).
    pub(super) fn count_unremoved(&self, folder: &Path, charge: Charge) {
        if let Some(counted) = self.unremoved.lock().get_mut(folder) {
            *counted = Some(charge);
        }
    }
}
