//! The seam to the file system: every call of the store goes through here, is counted when it fails, and can be made to fail.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, IoSlice, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::error::StoreError;
use super::health::Health;
use super::seam::{Change, Faults, Op};
use crate::metrics::Metrics;

/// The file system as the store sees it.
#[derive(Clone)]
pub(super) struct Disk {
    faults: Option<Arc<dyn Faults>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

/// One name in a folder.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: OsString,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Other,
}

/// What is known of a file without opening it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileFacts {
    pub(super) size_bytes: u64,
    /// What it takes on disk, which for a file with holes is less.
    pub(super) on_disk_bytes: u64,
    /// Microseconds since 1970.
    pub(super) modified: u64,
}

/// How full a file system is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) total_bytes: u64,
    /// What an ordinary user may still write.
    pub(super) free_bytes: u64,
    /// 0 where the file system makes inodes as it needs them.
    pub(super) total_inodes: u64,
    /// `None` where the file system makes inodes as it needs them.
    pub(super) free_inodes: Option<u64>,
}

/// At most so many buffers go into one `pwritev` (the smallest `IOV_MAX` among Linux systems).
const SLICES_MAX: usize = 1024;

// === impl Disk ===

impl Disk {
    pub(super) fn new(faults: Option<Arc<dyn Faults>>, metrics: Arc<Metrics>) -> Self {
        metrics.declare_operations(Op::ALL.map(Op::as_str));
        let health = Arc::new(Health::new(metrics.clone()));
        Self { faults, metrics, health }
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Runs an operation that changes something.
    fn change<T>(
        &self,
        op: Op,
        path: &Path,
        change: &Change<'_>,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StoreError> {
        self.run(op, path, || {
            if let Some(faults) = &self.faults {
                faults.changing(change);
            }
            operation()
        })
    }

    /// Runs one operation. A name that is not there is an answer for most callers, so `NotFound` is not counted.
    pub(super) fn run<T>(
        &self,
        op: Op,
        path: &Path,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let allowed = self.faults.as_ref().map_or(Ok(()), |faults| faults.before(op, path));
        allowed.and_then(|()| operation()).map_err(|source| {
            if source.kind() != io::ErrorKind::NotFound {
                self.metrics.store_failed(op.as_str());
            }
            // Where there should be a folder to write to, an absent one is trouble.
            let homeless = matches!(op, Op::Create | Op::Free) && source.kind() == io::ErrorKind::NotFound;
            let error = StoreError::io(op, path, source);
            if homeless {
                self.health.note(error.to_string());
            } else {
                self.health.failed(&error);
            }
            error
        })
    }

    /// Counts a record that could not be understood.
    pub(super) fn parse_failed(&self) {
        self.metrics.store_failed(Op::Parse.as_str());
    }

    /// Makes sure that a folder is there, also after a crash: each new folder's parent is synced.
    pub(super) fn ensure_folder(&self, path: &Path) -> Result<(), StoreError> {
        // A parent may be removed, because it is empty, just after it was made sure of.
        const TRIES: usize = 3;
        let mut created = self.create_folder(path);
        for _ in 0..TRIES {
            match (&created, path.parent()) {
                (Err(error), Some(parent)) if is_absent(error) => self.ensure_folder(parent)?,
                _ => break,
            }
            created = self.create_folder(path);
        }
        let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
            return created.map(drop);
        };
        if created? {
            // Whoever comes next must not take it for durable.
            self.sync_folder(parent).inspect_err(|_| drop(self.remove_folder(path)))?;
        }
        Ok(())
    }

    /// Creates one folder. `false`: it is already there.
    pub(super) fn create_folder(&self, path: &Path) -> Result<bool, StoreError> {
        self.change(Op::CreateFolder, path, &Change::CreateFolder { path }, || match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|()| true),
        })
    }

    /// What is in a folder; nothing if it isn't there.
    pub(super) fn list(&self, path: &Path) -> Result<Vec<Found>, StoreError> {
        let list = self.run(Op::ListFolder, path, || {
            fs::read_dir(path)?
                .map(|entry| {
                    let entry = entry?;
                    let kind = entry.file_type()?;
                    let kind = match (kind.is_file(), kind.is_dir()) {
                        (true, _) => Kind::File,
                        (_, true) => Kind::Folder,
                        _ => Kind::Other,
                    };
                    Ok(Found { name: entry.file_name(), kind })
                })
                .collect::<io::Result<Vec<_>>>()
        });
        absent(list).map(Option::unwrap_or_default)
    }

    pub(super) fn sync_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.change(Op::SyncFolder, path, &Change::SyncFolder { path }, || File::open(path)?.sync_all())
    }

    /// Removes an empty folder. `false`: it isn't empty, or isn't there.
    pub(super) fn remove_folder(&self, path: &Path) -> Result<bool, StoreError> {
        self.change(Op::RemoveFolder, path, &Change::RemoveFolder { path }, || match fs::remove_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                Ok(false)
            }
            Err(error) => Err(error),
        })
    }

    /// Removes all that is in a folder, at most `depth` levels of folders below it. The folder itself stays: a full disk may
    /// have no room for another.
    pub(super) fn empty(&self, path: &Path, depth: usize) -> Result<(), StoreError> {
        for found in self.list(path)? {
            let inner = path.join(&found.name);
            if found.kind != Kind::Folder {
                self.remove(&inner)?;
            } else if depth > 0 {
                self.empty(&inner, depth - 1)?;
                self.remove_folder(&inner)?;
            }
        }
        Ok(())
    }

    /// Creates a file that must not be there yet, for reading and writing.
    pub(super) fn create(&self, path: &Path) -> Result<File, StoreError> {
        self.change(Op::Create, path, &Change::Create { path }, || {
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path)
        })
    }

    /// Opens a file for reading; `None` if it isn't there.
    pub(super) fn open(&self, path: &Path) -> Result<Option<File>, StoreError> {
        absent(self.run(Op::Open, path, || File::open(path)))
    }

    /// Opens a file for reading where that doesn't wait for the disk, because the kernel knows the way to it by heart. `None`
    /// says nothing. What can be made to fail may also be made to wait, and isn't tried.
    #[cfg(target_os = "linux")]
    pub(super) fn open_at_once(&self, path: &Path) -> Option<File> {
        use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
        if self.faults.is_some() {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok().map(File::from)
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn open_at_once(&self, _: &Path) -> Option<File> {
        None
    }

    /// Fills `buffer` from `offset` on where that doesn't wait for the disk, because all of it is in memory. `false` says
    /// nothing.
    #[cfg(target_os = "linux")]
    pub(super) fn read_at_once(&self, file: &File, offset: u64, buffer: &mut [u8]) -> bool {
        let len = buffer.len();
        let slices = &mut [io::IoSliceMut::new(buffer)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        self.faults.is_none() && rustix::io::preadv2(file, slices, offset, flags) == Ok(len)
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn read_at_once(&self, _: &File, _: u64, _: &mut [u8]) -> bool {
        false
    }

    /// Opens a file for reading and writing.
    pub(super) fn open_for_writing(&self, path: &Path) -> Result<File, StoreError> {
        self.run(Op::Open, path, || OpenOptions::new().read(true).write(true).open(path))
    }

    /// Opens the lock file, creating it if need be. One on a disk that takes no writes can be locked as well.
    pub(super) fn open_lock(&self, path: &Path) -> Result<File, StoreError> {
        let open =
            |writes| OpenOptions::new().read(true).write(writes).create(writes).truncate(false).mode(0o644).open(path);
        self.run(Op::Open, path, || match open(true) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => open(false),
            opened => opened,
        })
    }

    /// Takes the lock on an open file if nobody has it.
    pub(super) fn try_lock(&self, file: &File, path: &Path) -> Result<bool, StoreError> {
        self.run(Op::Lock, path, || {
            match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(true),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
    }

    pub(super) fn resize(&self, file: &File, path: &Path, size_bytes: u64) -> Result<(), StoreError> {
        self.change(Op::Resize, path, &Change::Resize { path, size_bytes }, || file.set_len(size_bytes))
    }

    pub(super) fn size(&self, file: &File, path: &Path) -> Result<u64, StoreError> {
        self.run(Op::Size, path, || Ok(file.metadata()?.len()))
    }

    /// Size and time of a plain file; `None` if it isn't there or is something else.
    pub(super) fn facts(&self, path: &Path) -> Result<Option<FileFacts>, StoreError> {
        let facts = self.run(Op::Size, path, || {
            let found = fs::symlink_metadata(path)?;
            let micros = u64::try_from(found.mtime()).unwrap_or(0).saturating_mul(1_000_000)
                + u64::try_from(found.mtime_nsec()).unwrap_or(0) / 1000;
            let (size_bytes, on_disk_bytes) = (found.len(), found.blocks().saturating_mul(512));
            Ok(found.is_file().then_some(FileFacts { size_bytes, on_disk_bytes, modified: micros }))
        });
        absent(facts).map(Option::flatten)
    }

    /// Reads exactly `len` bytes.
    pub(super) fn read_at(&self, file: &File, path: &Path, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let mut buffer = vec![0; len];
        self.read_into(file, path, offset, &mut buffer).map(|()| buffer.into())
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read_into(&self, file: &File, path: &Path, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.run(Op::Read, path, || file.read_exact_at(buffer, offset))
    }

    /// Sends up to `len` bytes from `offset` on to a socket. A full socket is an answer, and not counted.
    pub(super) fn send(
        &self,
        file: &File,
        path: &Path,
        socket: BorrowedFd<'_>,
        offset: u64,
        len: usize,
    ) -> io::Result<usize> {
        if let Some(faults) = &self.faults {
            faults.before(Op::Read, path)?;
        }
        Ok(rustix::fs::sendfile(socket, file, Some(&mut { offset }), len)?)
    }

    /// Reads a whole file of at most `limit` bytes; `None` if it isn't there.
    pub(super) fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(mut file) = self.open(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        self.run(Op::Read, path, || {
            (&mut file).take(limit + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
        })?;
        Ok(Some(bytes))
    }

    /// Writes all of `chunks`, one after the other from `offset` on, in as few calls as possible.
    pub(super) fn write_at(&self, file: &File, path: &Path, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.change(Op::Write, path, &Change::Write { path, offset, chunks }, || {
            let mut at = offset;
            for group in chunks.chunks(SLICES_MAX) {
                let mut slices: Vec<IoSlice<'_>> = group.iter().map(|chunk| IoSlice::new(chunk)).collect();
                let mut rest = slices.as_mut_slice();
                // Empty slices in front would make an honest write look like a stuck one.
                IoSlice::advance_slices(&mut rest, 0);
                while !rest.is_empty() {
                    let written = match rustix::io::pwritev(file, rest, at) {
                        Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                        Ok(written) => written,
                        Err(rustix::io::Errno::INTR) => continue,
                        Err(error) => return Err(error.into()),
                    };
                    at += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
            }
            Ok(())
        })
    }

    pub(super) fn set_mode(&self, file: &File, path: &Path, mode: u32) -> Result<(), StoreError> {
        self.run(Op::SetMode, path, || file.set_permissions(Permissions::from_mode(mode)))
    }

    /// Sets when a file was last read, in microseconds since 1970, as its modification time.
    pub(super) fn set_time(&self, file: &File, path: &Path, stamp: u64) -> Result<(), StoreError> {
        self.run(Op::SetTime, path, || file.set_times(times(stamp)))
    }

    /// The same by path. `false`: there is no such file.
    pub(super) fn set_time_at(&self, path: &Path, stamp: u64) -> Result<bool, StoreError> {
        absent(self.run(Op::SetTime, path, || File::open(path)?.set_times(times(stamp)))).map(|set| set.is_some())
    }

    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.change(Op::Sync, path, &Change::Sync { path }, || file.sync_all())
    }

    /// Makes the content of a file durable, not its times.
    pub(super) fn sync_data(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.change(Op::Sync, path, &Change::Sync { path }, || file.sync_data())
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.change(Op::Rename, to, &Change::Rename { from, to }, || fs::rename(from, to))
    }

    /// Removes a file. `false`: it wasn't there.
    pub(super) fn remove(&self, path: &Path) -> Result<bool, StoreError> {
        absent(self.change(Op::Remove, path, &Change::Remove { path }, || fs::remove_file(path)))
            .map(|removed| removed.is_some())
    }

    /// How full the file system of an existing path is.
    pub(super) fn space(&self, path: &Path) -> Result<Space, StoreError> {
        self.run(Op::Free, path, || {
            let found = rustix::fs::statvfs(path)?;
            Ok(Space {
                total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
                free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
                total_inodes: found.f_files,
                free_inodes: (found.f_files > 0).then_some(found.f_favail),
            })
        })
    }

    /// Where an existing path leads, without symbolic links.
    pub(super) fn real_path(&self, path: &Path) -> Result<PathBuf, StoreError> {
        self.run(Op::Size, path, || fs::canonicalize(path))
    }

    /// The number of the device that a path is on; `None` if it isn't there.
    pub(super) fn device(&self, path: &Path) -> Result<Option<u64>, StoreError> {
        absent(self.run(Op::Size, path, || Ok(fs::metadata(path)?.dev())))
    }

    /// The name of a file system on which this store can't promise what it promises elsewhere.
    pub(super) fn doubtful_kind(&self, path: &Path) -> Result<Option<&'static str>, StoreError> {
        self.run(Op::Free, path, || {
            Ok(match rustix::fs::statfs(path)?.f_type {
                0x6969 => Some("NFS"),
                0x6573_5546 => Some("FUSE"),
                0x794c_7630 => Some("overlayfs"),
                0x0102_1994 => Some("tmpfs"),
                _ => None,
            })
        })
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("faults", &self.faults.is_some()).finish_non_exhaustive()
    }
}

fn times(stamp: u64) -> FileTimes {
    FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_micros(stamp))
}

fn is_absent(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// "It isn't there" as an answer instead of an error.
fn absent<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
