//! Open files on their way to sockets: sent from the page cache, brought into it first, and doubted when either fails.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::blob::OpenFile;
use super::error::StoreError;
use super::fs::Disk;
use crate::oci::Digest;
use crate::oci::verify::Verifier;

/// What is known of a data directory's files and sockets.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// Files can be sent from the page cache, and the file system says what is in it.
    possible: AtomicBool,
    /// Files that did not give what they should, by what stays the same when they are renamed or opened again.
    suspects: Mutex<HashSet<Inode>>,
    /// Whether there are any: asked on every hit.
    any_suspects: AtomicBool,
}

/// A file, whatever its name.
type Inode = (u64, u64);

/// At most so many files are doubted at a time; beyond that the disk is dead anyway.
const SUSPECTS_MAX: usize = 4096;

/// How far apart the pages are that are looked at to tell whether a part of a file is in memory. The kernel reads and drops
/// its pages in runs; where it is wrong all the same, one read ahead of it is what is waited for.
#[cfg(target_os = "linux")]
const PROBE_BYTES: u64 = 256 << 10;

/// How much is asked of the disk ahead of a reader that has found its file not in memory.
const READ_AHEAD_BYTES: u64 = 8 << 20;

/// How much is read at a time on the way into the page cache, or to be hashed.
const READ_BYTES: usize = 256 << 10;

// === impl OpenFile ===

impl OpenFile {
    /// Whether the file can be sent without being read.
    pub fn is_sendable(&self) -> bool {
        self.io.sending.possible.load(Ordering::Relaxed)
    }

    /// Sends `len` bytes from `offset` on, or fewer, to a socket; 0 if the file ends before them. Waits for the disk where
    /// they are not in memory.
    pub fn send_to(&self, socket: impl AsFd, offset: u64, len: usize) -> io::Result<usize> {
        let file = self.file().map_err(io::Error::other)?;
        self.io.disk.send(file, &self.path, socket.as_fd(), offset, len)
    }

    /// Whether `len` bytes from `offset` on are in memory, so that sending them doesn't wait for the disk. Asks the kernel,
    /// and doesn't wait itself.
    pub fn is_resident(&self, offset: u64, len: usize) -> bool {
        self.file().is_ok_and(|file| is_resident(file, offset, len as u64))
    }

    /// Brings these bytes into memory, on the I/O threads, and has the disk read on ahead. What can't be read shows when
    /// it's sent.
    pub async fn make_resident(self: &Arc<Self>, offset: u64, len: usize) {
        let this = self.clone();
        let read = move || {
            let file = this.file()?;
            read_ahead(file, offset);
            let mut buffer = vec![0; READ_BYTES.min(len)];
            let mut done = 0;
            while done < len {
                let part = &mut buffer[..READ_BYTES.min(len - done)];
                this.io.disk.read_into(file, &this.path, offset + done as u64, part)?;
                done += part.len();
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = self.io.reading.run(read).await {
            tracing::debug!("could not read ahead of a client: {error}");
        }
    }

    /// Notes that the file does not give what it should. Whoever opens it next checks all of it first.
    pub fn mark_suspect(&self, what: &str) {
        if self.suspect.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(path = %self.path.display(), what, "a file does not give what it should; it is checked before it is used again");
        if let Ok(inode) = self.inode() {
            self.io.sending.suspect(inode);
        }
    }

    /// Notes that sending the file failed: either it can't be read, or no file can be sent here, and then bytes will be.
    pub fn sending_failed(&self, error: &io::Error) {
        use rustix::io::Errno;
        let unsupported = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];
        if Errno::from_io_error(error).is_some_and(|errno| unsupported.contains(&errno)) {
            tracing::warn!(path = %self.path.display(), "files can't be sent from here ({error}); they are copied from now on");
            self.io.sending.possible.store(false, Ordering::Relaxed);
        } else {
            self.mark_suspect(&error.to_string());
        }
    }

    /// Writes the file out and has the kernel drop it from memory.
    #[cfg(test)]
    pub(crate) fn forget_pages(&self) {
        let file = self.file().unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    /// Whether the file was found not to give what it should.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Ends the doubts about a file whose content was just checked through `checked`. `Err`: it isn't the same file.
    pub(super) fn acquit(&self, checked: &Self) -> Result<(), String> {
        if !self.is_suspect() {
            return Ok(());
        }
        let same = self.inode().and_then(|one| checked.inode().map(|other| one == other));
        if !same.map_err(|error| error.to_string())? {
            return Err(format!("{} was replaced by another file", checked.path.display()));
        }
        self.suspect.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn inode(&self) -> Result<Inode, StoreError> {
        inode(self.file()?, &self.path)
    }
}

fn inode(file: &File, path: &Path) -> Result<Inode, StoreError> {
    let facts = file.metadata().map_err(|source| StoreError::io(super::seam::Op::Size, path, source))?;
    Ok((facts.dev(), facts.ino()))
}

// === impl Sending ===

impl Sending {
    /// Finds out what can be done with the files of a folder. Needs a file to try it on, which is removed again.
    pub(super) fn find_out(&self, disk: &Disk, folder: &Path) {
        let path = folder.join("probe");
        let tried = try_sending(disk, &path);
        let _ = disk.remove(&path);
        match tried {
            Ok(()) => self.possible.store(true, Ordering::Relaxed),
            Err(error) => tracing::info!("files are copied on their way to clients: {error}"),
        }
    }

    fn suspect(&self, inode: Inode) {
        let mut suspects = self.suspects.lock();
        if suspects.len() < SUSPECTS_MAX {
            suspects.insert(inode);
            self.any_suspects.store(true, Ordering::Relaxed);
        }
    }

    /// Whether any file is doubted.
    pub(super) fn has_suspects(&self) -> bool {
        self.any_suspects.load(Ordering::Relaxed)
    }

    /// Checks all of a doubted file; one that is not doubted passes. `Err` says what is wrong with it. Takes as long as
    /// reading it does.
    pub(super) fn check(&self, disk: &Disk, file: &File, path: &Path, digest: &Digest) -> Result<(), String> {
        let inode = inode(file, path).map_err(|error| error.to_string())?;
        if !self.suspects.lock().contains(&inode) {
            return Ok(());
        }
        let checked = hash(disk, file, path, digest);
        // Right or wrong, it is known now.
        let mut suspects = self.suspects.lock();
        suspects.remove(&inode);
        self.any_suspects.store(!suspects.is_empty(), Ordering::Relaxed);
        checked
    }
}

fn hash(disk: &Disk, file: &File, path: &Path, digest: &Digest) -> Result<(), String> {
    let size_bytes = disk.size(file, path).map_err(|error| error.to_string())?;
    let mut verifier = Verifier::new(*digest, Some(size_bytes));
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    while done < size_bytes {
        let len = usize::try_from(size_bytes - done).unwrap_or(usize::MAX).min(READ_BYTES);
        disk.read_into(file, path, done, &mut buffer[..len]).map_err(|error| error.to_string())?;
        verifier.update(&buffer[..len]);
        done += len as u64;
    }
    verifier.finish().map(drop).map_err(|mismatch| mismatch.to_string())
}

// === what the kernel knows ===

/// Whether reading would not wait. `RWF_NOWAIT` is asked and not `mincore`, which lies to those who don't own a file.
#[cfg(target_os = "linux")]
fn is_resident(file: &File, offset: u64, len: u64) -> bool {
    let last = offset + len.saturating_sub(1);
    let mut at = offset;
    loop {
        if !matches!(read_without_waiting(file, at), Ok(1)) {
            return false;
        }
        if at == last {
            return true;
        }
        at = (at + PROBE_BYTES).min(last);
    }
}

#[cfg(target_os = "linux")]
fn read_without_waiting(file: &File, offset: u64) -> rustix::io::Result<usize> {
    let mut byte = [0];
    let slices = &mut [io::IoSliceMut::new(&mut byte)];
    rustix::io::preadv2(file, slices, offset, rustix::io::ReadWriteFlags::NOWAIT)
}

#[cfg(target_os = "linux")]
fn read_ahead(file: &File, offset: u64) {
    // Only a hint.
    let len = std::num::NonZeroU64::new(READ_AHEAD_BYTES);
    let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::WillNeed);
}

/// Sends a file to a socket, and sees whether the kernel tells when it is in memory and when it isn't.
#[cfg(target_os = "linux")]
fn try_sending(disk: &Disk, path: &Path) -> Result<(), String> {
    use std::os::unix::net::UnixStream;
    const LEN: usize = 64 << 10;
    /// Pages may be in some processor's hands for a moment, and stay; and a quick disk may have read them again by the time that
    /// they are looked for. One look that finds them gone is enough.
    const TRIES: usize = 100;
    const PAUSE: Duration = Duration::from_millis(1);
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let file = disk.create(path).map_err(|error| error.to_string())?;
    disk.write_at(&file, path, 0, &[vec![7; LEN].into()]).map_err(|error| error.to_string())?;
    disk.sync(&file, path).map_err(|error| error.to_string())?;

    let (socket, peer) = UnixStream::pair().map_err(failed("no sockets"))?;
    let sent =
        rustix::fs::sendfile(&socket, &file, Some(&mut 0), 4096).map_err(|errno| format!("sendfile: {errno}"))?;
    if sent == 0 {
        return Err("sendfile sends nothing".to_owned());
    }
    // What waits in a socket can't be dropped from memory.
    drop((socket, peer));
    read_without_waiting(&file, 0).map_err(|errno| format!("can't tell what is in memory: {errno}"))?;
    // Files there are always in memory.
    if disk.doubtful_kind(path).is_ok_and(|kind| kind == Some("tmpfs")) {
        return Ok(());
    }
    let noticed = (0..TRIES).any(|tried| {
        if tried > 0 {
            std::thread::sleep(PAUSE);
        }
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        read_without_waiting(&file, LEN as u64 / 2) == Err(rustix::io::Errno::AGAIN)
    });
    if noticed { Ok(()) } else { Err("can't tell what is not in memory".to_owned()) }
}

#[cfg(not(target_os = "linux"))]
fn is_resident(_: &File, _: u64, _: u64) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn read_ahead(_: &File, _: u64) {}

#[cfg(not(target_os = "linux"))]
fn try_sending(_: &Disk, _: &Path) -> Result<(), String> {
    Err("this system has no sendfile that fits".to_owned())
}
