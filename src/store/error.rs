//! What can go wrong with the data directory, said in sentences.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::seam::Op;
use crate::oci::Digest;

/// A failure of the store. Cheap to clone, so that many waiters can share one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A file-system operation failed.
    #[error("the store could not {} {}: {source}{}", .op.as_str(), .path.display(), advice(source))]
    Io {
        /// What was tried.
        op: Op,
        /// On which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// Another process works in this data directory.
    #[error(
        "the data directory {} is in use by {holder}; stop that process, or give this one another storage.path",
        .path.display()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// Host, process and start time, as the holder wrote them.
        holder: String,
        /// Where its API is, if it has one.
        contact: Option<String>,
    },
    /// The data directory was written by a version of this program that this one does not know.
    #[error(
        "the data directory {} holds layout {found}, and this version reads v1; use a newer version, or another storage.path",
        .path.display()
    )]
    NewerLayout {
        /// The data directory.
        path: PathBuf,
        /// The name of the folder found there.
        found: String,
    },
    /// Content was to be committed with a proof that belongs to other content.
    #[error("a proof for {proven} ({proven_bytes} bytes) can't commit {digest} ({written_bytes} bytes written)")]
    WrongProof {
        /// What was to be committed.
        digest: Digest,
        /// How much of it was written.
        written_bytes: u64,
        /// The digest in the proof.
        proven: Digest,
        /// The size in the proof.
        proven_bytes: u64,
    },
    /// A blob was to be read into memory as a whole, and is too large for that.
    #[error("{digest} is {size_bytes} bytes long; at most {limit_bytes} are read into memory at once")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The disk did not take a write.
    #[error("the disk did not take a write to {} within {} s; it may be failing", .path.display(), .limit.as_secs())]
    Stalled {
        /// The file.
        path: PathBuf,
        /// How long it had.
        limit: std::time::Duration,
    },
    /// There is no room for what was to be written.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The threads that do the reading and writing could not be started.
    #[error("{0}; the limit on processes may be too low")]
    Threads(Arc<crate::tasks::PoolError>),
}

/// Why room can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoRoom {
    /// It is more than the whole capacity.
    #[error("{needed_bytes} bytes never fit into a capacity of {capacity_bytes}; raise storage.capacity")]
    Never {
        /// What was asked for, as it is counted.
        needed_bytes: u64,
        /// The configured capacity.
        capacity_bytes: u64,
    },
    /// Nothing that could be evicted would free enough at the moment.
    #[error("no room for {needed_bytes} bytes at the moment: {reason}")]
    NotNow {
        /// What was asked for, as it is counted.
        needed_bytes: u64,
        /// What stands in the way.
        reason: &'static str,
    },
    /// What is held and must stay leaves too little of the capacity.
    #[error(
        "{needed_bytes} bytes are needed, and {available_bytes} of storage.capacity are left beside what is pinned, or needed while offline; raise it, or unpin and remove something"
    )]
    Kept {
        /// What was asked for, as it is counted.
        needed_bytes: u64,
        /// What could be had of the capacity.
        available_bytes: u64,
    },
    /// The file system would have less than its floor left.
    #[error(
        "no room for {needed_bytes} bytes: the file system has {free} {what} free that are not spoken for, and {floor} must stay free (storage.min_free)"
    )]
    Disk {
        /// What was asked for, as it is counted.
        needed_bytes: u64,
        /// `bytes` or `inodes`.
        what: &'static str,
        /// How many are free.
        free: u64,
        /// How many must stay free.
        floor: u64,
    },
    /// The file system did not say how much is free.
    #[error("no room can be reserved: {0}")]
    Unknown(Box<StoreError>),
}

// === impl StoreError ===

impl StoreError {
    pub(super) fn io(op: Op, path: &Path, source: io::Error) -> Self {
        Self::Io { op, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether room ran out: of the capacity, of the file system or of a quota.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoRoom(_) => true,
            Self::Io { source, .. } => {
                matches!(Errno::from_io_error(source), Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG))
            }
            _ => false,
        }
    }

    /// Whether this passes by itself and says nothing about the file: out of descriptors or memory.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(Errno::from_io_error(source), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)))
    }
}

/// What to do about it, where that is known.
fn advice(source: &io::Error) -> &'static str {
    match Errno::from_io_error(source) {
        Some(Errno::NOSPC | Errno::DQUOT) => "; free space there, or lower storage.capacity",
        Some(Errno::MFILE | Errno::NFILE) => "; raise the limit on open files",
        Some(Errno::ACCESS | Errno::PERM) => "; give this user the right to write there",
        Some(Errno::NOENT) => "; storage.path lies where nothing can be made, or something removes files there",
        Some(Errno::NOTDIR) => "; storage.path, or what is above it, is not a directory",
        Some(Errno::ROFS) => "; the file system is mounted read-only",
        Some(Errno::IO) => "; the disk may be failing",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_failed_where_and_what_to_do() {
        let full = StoreError::io(Op::Rename, Path::new("/data/x"), io::Error::from(Errno::NOSPC));
        assert_eq!(
            full.to_string(),
            "the store could not rename /data/x: No space left on device (os error 28); free space there, or lower storage.capacity"
        );
        assert!(full.is_no_space());
        let handles = StoreError::io(Op::Open, Path::new("/data/x"), io::Error::from(Errno::MFILE));
        assert!(handles.is_passing() && !handles.is_no_space());
        assert!(handles.to_string().ends_with("; raise the limit on open files"));
    }
}
