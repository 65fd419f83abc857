//! What tests may do at the seam to the file system: name its operations, make them fail, and follow every change.

use std::io;
use std::path::Path;

use bytes::Bytes;

/// A kind of file-system operation: the `op` label of `cachalot_store_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the operations")]
pub enum Op {
    CreateFolder,
    ListFolder,
    SyncFolder,
    RemoveFolder,
    Create,
    Open,
    Size,
    Resize,
    Read,
    Write,
    SetMode,
    SetTime,
    Sync,
    Rename,
    Remove,
    Free,
    Lock,
    /// Not an operation of the file system: a record did not parse.
    Parse,
}

/// Failures to order, for tests, and an ear for what happens to the disk.
pub trait Faults: Send + Sync {
    /// Called before each operation: `Ok` lets it happen, an error takes its place. May block, as slow disks do.
    fn before(&self, op: Op, path: &Path) -> io::Result<()>;

    /// Told of each change that was let happen, just before it does, with all that it takes to do it again elsewhere. May
    /// block, too. The operating system may still refuse: to create what is there, to remove or rename what is not.
    fn changing(&self, change: &Change<'_>) {
        let _ = change;
    }
}

/// A change to the file system. What it does is durable only once its file, or the folder that it is in, was synced.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names are those of the operations")]
pub enum Change<'a> {
    CreateFolder {
        path: &'a Path,
    },
    RemoveFolder {
        path: &'a Path,
    },
    Create {
        path: &'a Path,
    },
    Resize {
        path: &'a Path,
        size_bytes: u64,
    },
    Write {
        path: &'a Path,
        offset: u64,
        chunks: &'a [Bytes],
    },
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    Remove {
        path: &'a Path,
    },
    /// All that was written to a file becomes durable.
    Sync {
        path: &'a Path,
    },
    /// All that happened to the names in a folder becomes durable.
    SyncFolder {
        path: &'a Path,
    },
}

// === impl Op ===

impl Op {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::CreateFolder,
        Self::ListFolder,
        Self::SyncFolder,
        Self::RemoveFolder,
        Self::Create,
        Self::Open,
        Self::Size,
        Self::Resize,
        Self::Read,
        Self::Write,
        Self::SetMode,
        Self::SetTime,
        Self::Sync,
        Self::Rename,
        Self::Remove,
        Self::Free,
        Self::Lock,
        Self::Parse,
    ];

    /// The operation as a verb: in messages and as the metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreateFolder => "mkdir",
            Self::ListFolder => "list",
            Self::SyncFolder => "fsync_folder",
            Self::RemoveFolder => "rmdir",
            Self::Create => "create",
            Self::Open => "open",
            Self::Size => "stat",
            Self::Resize => "truncate",
            Self::Read => "read",
            Self::Write => "write",
            Self::SetMode => "chmod",
            Self::SetTime => "utime",
            Self::Sync => "fsync",
            Self::Rename => "rename",
            Self::Remove => "unlink",
            Self::Free => "statvfs",
            Self::Lock => "lock",
            Self::Parse => "parse",
        }
    }
}
