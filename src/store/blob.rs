//! Blobs that are held: opening, reading, putting small ones, and healing what turns out to be wrong.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::StoreError;
use super::index::Attach;
use super::io::Io;
use super::ledger::{Reservation, now};
use super::publish::{MODE_BLOB, publish_bytes};
use super::{Shared, Store};
use crate::audit;
use crate::metrics::WhereLabels;
use crate::oci::{Digest, Verified};
use crate::tasks;

/// The largest blob that [`Store::read_blob`] reads.
pub const READ_BYTES_MAX: u64 = 8 << 20;

/// So many files are kept in quarantine for a person to look at; further ones are removed.
const QUARANTINED_MAX: usize = 16;

/// A held blob, open for reading. While any of its readers lives it isn't evicted.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What it is.
    pub digest: Digest,
    /// How long it is.
    pub size_bytes: u64,
    /// Its file.
    pub file: Arc<OpenFile>,
}

/// An open file of the store, shared by all its readers: a committed blob, or a partial that still grows.
pub struct OpenFile {
    /// `None` only while it is being dropped.
    file: Option<File>,
    pub(super) path: PathBuf,
    pub(super) io: Arc<Io>,
    /// It did not give what it should.
    pub(super) suspect: AtomicBool,
    /// Room that the file takes although it was unlinked; given back when it is closed.
    residue: Mutex<Option<Reservation>>,
}

/// Why a blob could not be loaded into memory.
#[derive(Debug)]
pub(super) enum NotLoaded {
    Gone,
    Failed(StoreError),
}

/// What came of opening a blob's file.
enum Opened {
    File(Arc<OpenFile>),
    /// Evicted in the meantime.
    Gone,
    /// The file isn't what the index says.
    Damaged(String),
}

// === impl OpenFile ===

impl OpenFile {
    pub(super) fn new(file: File, path: PathBuf, io: Arc<Io>) -> Arc<Self> {
        io.open_files.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { file: Some(file), path, io, suspect: AtomicBool::new(false), residue: Mutex::new(None) })
    }

    /// Reads exactly `len` bytes from `offset` on, on the I/O threads if the disk must be waited for. An error names the
    /// file, which is doubted from then on.
    pub async fn read_at(self: &Arc<Self>, offset: u64, len: usize) -> io::Result<Bytes> {
        // Copying what is in memory takes less time than handing the work to a thread does.
        if let Some(bytes) = self.read_at_once(offset, len) {
            return Ok(bytes);
        }
        let this = self.clone();
        let read = move || {
            let mut buffer = this.io.buffers.take(len);
            this.read_now(offset, buffer.room())?;
            Ok::<_, StoreError>(buffer.freeze())
        };
        let read = self.io.reading.run(read).await;
        if let Err(error) = &read {
            self.mark_suspect(&error.to_string());
        }
        read.map_err(|error| match &error {
            StoreError::Io { source, .. } => io::Error::new(source.kind(), error),
            _ => io::Error::other(error),
        })
    }

    fn read_at_once(&self, offset: u64, len: usize) -> Option<Bytes> {
        let mut buffer = self.io.buffers.take(len);
        let file = self.file().ok()?;
        self.io.disk.read_at_once(file, offset, buffer.room()).then(|| buffer.freeze())
    }

    /// How much of it should be read at a time: less while many clients are read for.
    pub fn read_bytes(&self) -> usize {
        self.io.buffers.read_bytes()
    }

    /// Fills `buffer` from `offset` on, on this very thread: for the threads of a pool.
    pub fn read_now(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.io.disk.read_into(self.file()?, &self.path, offset, buffer)
    }

    pub(super) fn write_at(&self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.io.disk.write_at(self.file()?, &self.path, offset, chunks)
    }

    pub(super) fn file(&self) -> Result<&File, StoreError> {
        let closed = || StoreError::io(super::seam::Op::Read, &self.path, io::ErrorKind::NotConnected.into());
        self.file.as_ref().ok_or_else(closed)
    }

    /// Keeps `room` set aside until the last reader closes the file, which has been unlinked.
    pub(super) fn keep_until_closed(&self, room: Reservation) {
        *self.residue.lock() = Some(room);
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let (file, residue) = (self.file.take(), self.residue.lock().take());
        self.io.open_files.fetch_sub(1, Ordering::Relaxed);
        if residue.is_some() {
            // Closing frees the blocks of an unlinked file, which takes a while for a large one.
            self.io.run_deferred(move || {
                drop(file);
                drop(residue);
            });
        }
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        #[expect(clippy::expect_used, reason = "the file is taken by the destructor only, when nobody can borrow it")]
        self.file.as_ref().expect("an open file has its descriptor").as_fd()
    }
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenFile").field(&self.path).finish()
    }
}

// === impl Store ===

impl Store {
    /// The size of a held blob. Neither counts as a read nor touches the disk.
    pub fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.shared.ledger.read().size_of(digest)
    }

    /// Opens a held blob for reading, which makes it the most recently read one. A file that is gone or has the wrong
    /// size is dropped from the index (healed) and counted, and the blob is absent.
    pub async fn open_blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let Some(hit) = self.shared.ledger.read().hit(digest) else { return Ok(None) };
        let (digest, size_bytes) = (*digest, hit.size_bytes);
        if let Some(file) = hit.handle.filter(|file| !file.is_suspect()) {
            return Ok(Some(Blob { digest, size_bytes, file }));
        }
        // A doubted file is hashed, by one of those who ask for it.
        let guard = if self.shared.io.sending.has_suspects() {
            Some(self.shared.blob_locks.lock(&digest).await)
        } else if let Some(file) = self.shared.open_at_once(&digest, hit.serial, size_bytes) {
            return Ok(Some(Blob { digest, size_bytes, file }));
        } else {
            None
        };
        let shared = self.shared.clone();
        let open = move || {
            let _guard = guard;
            shared.open_file(digest, hit.serial, size_bytes)
        };
        let opened = self.shared.io.reading.run(open).await?;
        match opened {
            Opened::File(file) => Ok(Some(Blob { digest, size_bytes, file })),
            Opened::Gone => Ok(None),
            Opened::Damaged(what) => {
                self.shared.heal(digest, hit.serial, what, false).await;
                Ok(None)
            }
        }
    }

    /// Reads a whole blob of at most [`READ_BYTES_MAX`] bytes: from memory, else from disk, and then its digest is checked.
    /// What fails the check goes to quarantine, is counted, and is absent. Counts as a read. A manifest that is still on its
    /// way to the disk is read as well.
    pub async fn read_blob(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        // Before the index is asked: whatever leaves the queue is in there by then.
        if let Some(coming) = self.shared.behind.content(digest) {
            return Ok(Some(coming));
        }
        let Some(hit) = self.shared.ledger.read().hit(digest) else { return Ok(None) };
        if hit.size_bytes > READ_BYTES_MAX {
            let (digest, size_bytes) = (*digest, hit.size_bytes);
            return Err(StoreError::TooLarge { digest, size_bytes, limit_bytes: READ_BYTES_MAX });
        }
        match self.shared.memory.try_get_with(*digest, self.load(*digest, hit.serial)).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(failure) => match &*failure {
                NotLoaded::Gone => Ok(None),
                NotLoaded::Failed(error) => Err(error.clone()),
            },
        }
    }

    /// Reads a whole blob of at most [`READ_BYTES_MAX`] bytes as [`Self::read_blob`] does, without its counting as a read.
    pub(super) async fn peek_blob(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        if let Some(bytes) = self.shared.memory.get(digest).await {
            return Ok(Some(bytes));
        }
        let Some((_, size_bytes)) = self.shared.ledger.read().entry(digest) else { return Ok(None) };
        let (shared, digest) = (self.shared.clone(), *digest);
        let read = move || {
            let path = shared.layout.blob(&digest);
            let Some(file) = shared.io.disk.open(&path)? else { return Ok(None) };
            let bytes = shared.io.disk.read_at(&file, &path, 0, usize::try_from(size_bytes).unwrap_or(usize::MAX))?;
            Ok(Verified::check(&digest, &bytes).is_ok().then_some(bytes))
        };
        if size_bytes > READ_BYTES_MAX { Ok(None) } else { self.shared.io.reading.run(read).await }
    }

    async fn load(&self, digest: Digest, serial: u64) -> Result<Bytes, NotLoaded> {
        let blob = self.open_blob(&digest).await.map_err(NotLoaded::Failed)?.ok_or(NotLoaded::Gone)?;
        let checked = self
            .shared
            .io
            .reading
            .run(move || {
                let len = usize::try_from(blob.size_bytes).unwrap_or(usize::MAX);
                let file = &blob.file;
                let read = file.io.disk.read_at(file.file()?, &file.path, 0, len);
                // The next one who asks has it checked, and fetched again if it still can't be read.
                let bytes = read.inspect_err(|error| file.mark_suspect(&error.to_string()))?;
                let verified = Verified::check(&digest, &bytes);
                Ok::<_, StoreError>(verified.map(|_| bytes))
            })
            .await
            .map_err(NotLoaded::Failed)?;
        match checked {
            Ok(bytes) => Ok(bytes),
            Err(mismatch) => {
                self.shared.heal(digest, serial, mismatch.to_string(), true).await;
                Err(NotLoaded::Gone)
            }
        }
    }

    /// Puts a blob that is all in memory, and was verified. What is already held is not written again.
    pub async fn put_blob(&self, verified: Verified, bytes: Bytes) -> Result<(), StoreError> {
        let (digest, size_bytes) = (verified.digest(), verified.size_bytes());
        if bytes.len() as u64 != size_bytes {
            let written_bytes = bytes.len() as u64;
            return Err(StoreError::WrongProof { digest, written_bytes, proven: digest, proven_bytes: size_bytes });
        }
        debug_assert!(Verified::check(&digest, &bytes).is_ok(), "a proof was used for other bytes: {digest}");
        if self.shared.ledger.read().hit(&digest).is_some() {
            return Ok(());
        }
        let reservation = self.reserve(size_bytes).await?;
        let guard = self.shared.blob_locks.lock(&digest).await;
        let (shared, content) = (self.shared.clone(), bytes.clone());
        let put = move || {
            let _guard = guard;
            if shared.keep_held(&digest) {
                return Ok::<_, StoreError>(());
            }
            let stamp = shared.ledger.read().stamp(now());
            let (staged, target) = (shared.staging_path(), shared.layout.blob(&digest));
            publish_bytes(&shared.io.disk, content, &staged, &target, MODE_BLOB, Some(stamp))?;
            reservation.commit(digest, size_bytes, stamp, None);
            Ok(())
        };
        self.shared.io.run_counted(put).await?;
        if size_bytes <= READ_BYTES_MAX {
            self.shared.memory.insert(digest, bytes).await;
        }
        Ok(())
    }
}

// === impl Shared ===

impl Shared {
    /// Whether a blob is held, before it is written once more: then it counts as read, and one on its way out stays. The
    /// caller holds the digest's lock.
    pub(super) fn keep_held(&self, digest: &Digest) -> bool {
        self.ledger.change(|index| index.keep(digest) && index.hit(digest).is_some())
    }

    /// Opens a blob's file where that takes no wait for the disk. `None` if it does, or if anything is not as it should be.
    fn open_at_once(&self, digest: &Digest, serial: u64, size_bytes: u64) -> Option<Arc<OpenFile>> {
        let path = self.layout.blob(digest);
        let file = self.io.disk.open_at_once(&path)?;
        if self.io.disk.size(&file, &path).ok()? != size_bytes {
            return None;
        }
        let file = OpenFile::new(file, path, self.io.clone());
        match self.ledger.change(|index| index.attach(digest, serial, &file)) {
            Attach::Attached => Some(file),
            Attach::Taken(other) => (!other.is_suspect()).then_some(other),
            Attach::Gone => None,
        }
    }

    fn open_file(self: &Arc<Self>, digest: Digest, serial: u64, size_bytes: u64) -> Result<Opened, StoreError> {
        // A thousand readers may have queued up behind the one that opened it.
        let held = self.ledger.read().handle(&digest, serial);
        if let Some(file) = held.filter(|file| !file.is_suspect()) {
            return Ok(Opened::File(file));
        }
        let path = self.layout.blob(&digest);
        let Some(file) = self.io.disk.open(&path)? else {
            return Ok(Opened::Damaged(format!("{} is gone", path.display())));
        };
        let found = self.io.disk.size(&file, &path)?;
        if found != size_bytes {
            let what = format!("{} is {found} bytes long instead of {size_bytes}", path.display());
            return Ok(Opened::Damaged(what));
        }
        if let Err(what) = self.io.sending.check(&self.io.disk, &file, &path, &digest) {
            return Ok(Opened::Damaged(what));
        }
        let file = OpenFile::new(file, path, self.io.clone());
        Ok(match self.ledger.change(|index| index.attach(&digest, serial, &file)) {
            Attach::Attached => Opened::File(file),
            Attach::Taken(other) => match other.acquit(&file) {
                Ok(()) => Opened::File(other),
                Err(what) => Opened::Damaged(what),
            },
            Attach::Gone => Opened::Gone,
        })
    }

    /// Drops a blob whose file turned out to be wrong, so that the next request fetches it again. Goes on to its end even
    /// when its caller goes away.
    pub(super) async fn heal(self: &Arc<Self>, digest: Digest, serial: u64, what: String, keep_file: bool) {
        let (shared, deferred) = (self.clone(), self.io.defer());
        let healing = async move {
            let _deferred = deferred;
            let guard = shared.blob_locks.lock(&digest).await;
            let this = shared.clone();
            let job = move || {
                let _guard = guard;
                this.drop_damaged(&digest, serial, &what, keep_file)
            };
            if shared.io.writing.run(job).await {
                shared.drop_records(digest).await;
            }
        };
        // An error is a panic, which the panic hook has reported.
        let _ = tasks::spawn("heal", healing).await;
    }

    /// Takes a damaged blob's file away and its entry with it. The caller holds the digest's lock.
    fn drop_damaged(&self, digest: &Digest, serial: u64, what: &str, keep_file: bool) -> bool {
        if !self.ledger.read().is_current(digest, serial) {
            return false;
        }
        self.metrics.verify_failures.get_or_create(&WhereLabels { r#where: "store" }).inc();
        tracing::warn!(%digest, what, "a held blob is damaged and was dropped; it will be fetched again");
        let path = self.layout.blob(digest);
        let disk = &self.io.disk;
        let quarantined = self.layout.quarantined(digest);
        // One that lies there already is counted already.
        let has_place = || {
            let list = disk.list(&self.layout.quarantine());
            list.is_ok_and(|list| list.len() < QUARANTINED_MAX) && matches!(disk.facts(&quarantined), Ok(None))
        };
        let kept = keep_file && has_place() && disk.rename(&path, &quarantined).is_ok();
        audit::decided(if kept { "quarantined" } else { "damaged content dropped" }, &digest.to_string(), &what);
        if kept {
            self.ledger.change(|index| index.quarantine(digest, serial));
            return true;
        }
        if let Err(error) = disk.remove(&path) {
            tracing::warn!(%error, "could not remove a damaged blob");
        }
        self.ledger.change(|index| index.forget(digest, serial))
    }
}
