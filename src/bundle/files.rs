//! Files, folders and pipes outside the store: read and written on a thread of their own, put in place when they are whole.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tempfile::{NamedTempFile, TempDir};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::error::{BundleError, at};
use super::syncing::Syncing;
use crate::tasks::{Pool, PoolError};

/// So much is read in one go.
pub(super) const CHUNK_BYTES: usize = 512 << 10;

/// A file, a pipe or a stream that is read from its beginning to its end.
pub(super) struct Incoming(From);

enum From {
    /// What isn't wanted of it can be stepped over.
    File {
        file: Arc<File>,
        pool: Pool,
        offset: u64,
        size_bytes: u64,
    },
    Pipe {
        file: Arc<File>,
        pool: Pool,
    },
    Stream(Stream),
}

/// A file that several read.
pub(super) type SharedFile = Arc<File>;

/// Bytes that come one after the other.
pub(super) type Stream = Pin<Box<dyn AsyncRead + Send>>;

/// A file or a pipe that is written. What was written is brought to the disk meanwhile, so that little is left for the end.
#[derive(Debug)]
pub(super) struct Outgoing {
    file: Arc<File>,
    pool: Pool,
    syncing: Syncing<'static, io::Error>,
}

/// A file that gets its name once it is whole. Dropped before, it vanishes.
#[derive(Debug)]
pub(super) struct NewFile {
    staged: NamedTempFile,
    target: PathBuf,
}

/// The same for a folder.
#[derive(Debug)]
pub(super) struct NewFolder {
    staged: TempDir,
    target: PathBuf,
}

/// Threads for reading, hashing and writing at the same time.
pub(super) fn pool() -> Result<Pool, BundleError> {
    let failed = |error: PoolError| BundleError::Stream(io::Error::other(error));
    Pool::new("bundle", 3).map_err(failed)
}

/// What of a path can be stepped through: where it leads, and whether that is a folder.
pub(super) fn is_folder(path: &Path) -> Result<bool, BundleError> {
    fs::metadata(path).map(|facts| facts.is_dir()).map_err(at(path))
}

/// Whether something other than a regular file is there: a device, a pipe.
pub(super) fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|facts| !facts.is_file() && !facts.is_dir())
}

/// The regular files of a folder and of those below it, as far down as `depth`, by name. Links are refused: they lead elsewhere.
pub(super) fn list(folder: &Path, depth: usize, limit: usize) -> Result<Vec<(String, u64)>, BundleError> {
    let mut found = Vec::new();
    let mut pending = vec![(folder.to_owned(), String::new(), depth)];
    while let Some((folder, prefix, depth)) = pending.pop() {
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let entry = entry.map_err(at(&folder))?;
            let path = entry.path();
            let facts = fs::symlink_metadata(&path).map_err(at(&path))?;
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
            if facts.is_dir() && depth > 0 {
                pending.push((path, format!("{name}/"), depth - 1));
            } else if facts.is_file() {
                found.push((name, facts.len()));
            } else if facts.is_symlink() {
                let source = io::Error::other("it is a symbolic link, and a bundle's files must be its own");
                return Err(BundleError::File { path, source });
            }
            if found.len() > limit {
                return Err(BundleError::TooMany { what: "files", limit });
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Something in a folder.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) is_folder: bool,
}

/// What is in a folder, by name; nothing if there is no such folder.
pub(super) fn entries(folder: &Path) -> Result<Vec<Found>, BundleError> {
    let listed = match fs::read_dir(folder) {
        Err(error) if is_absent(&error) => return Ok(vec![]),
        listed => listed.map_err(at(folder))?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.map_err(at(folder))?;
        let is_folder = entry.file_type().map_err(at(folder))?.is_dir();
        let Ok(name) = entry.file_name().into_string() else { continue };
        found.push(Found { name, path: entry.path(), is_folder });
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// How long a regular file is; `None` if none is there.
pub(super) fn size_of(path: &Path) -> Result<Option<u64>, BundleError> {
    match fs::symlink_metadata(path) {
        Err(error) if is_absent(&error) => Ok(None),
        facts => Ok(facts.map(|facts| facts.is_file().then_some(facts.len())).map_err(at(path))?),
    }
}

/// The whole of a file that is not longer than that.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BundleError> {
    let file = File::open(path).map_err(at(path))?;
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(at(path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(at(path)(io::Error::other(format!("it is longer than the {bytes_max} bytes that are read"))));
    }
    Ok(bytes)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

// === impl Incoming ===

impl Incoming {
    pub(super) fn open(path: &Path, pool: &Pool) -> Result<Self, BundleError> {
        let file = File::open(path).map_err(at(path))?;
        let facts = file.metadata().map_err(at(path))?;
        let (file, pool) = (Arc::new(file), pool.clone());
        Ok(Self(if facts.is_file() {
            From::File { file, pool, offset: 0, size_bytes: facts.len() }
        } else {
            From::Pipe { file, pool }
        }))
    }

    pub(super) fn stdin(pool: &Pool) -> Result<Self, BundleError> {
        let file = io::stdin().as_fd().try_clone_to_owned().map_err(BundleError::Stream)?;
        Ok(Self(From::Pipe { file: Arc::new(file.into()), pool: pool.clone() }))
    }

    pub(super) fn stream(stream: Stream) -> Self {
        Self(From::Stream(stream))
    }

    /// The next bytes, at most so many; none at the end.
    pub(super) async fn read(&mut self, max: usize) -> io::Result<Bytes> {
        match &mut self.0 {
            From::File { file, pool, offset, .. } => {
                let (reader, at) = (file.clone(), *offset);
                let bytes = pool.run(move || fill(max, |buffer| reader.read_at(buffer, at))).await?;
                *offset += bytes.len() as u64;
                Ok(bytes)
            }
            From::Pipe { file, pool } => {
                let reader = file.clone();
                pool.run(move || fill(max, |buffer| (&*reader).read(buffer))).await
            }
            From::Stream(stream) => {
                let mut buffer = BytesMut::with_capacity(max);
                stream.read_buf(&mut buffer).await?;
                Ok(buffer.freeze())
            }
        }
    }

    /// The file that is read, where it is one.
    pub(super) fn file(&self) -> Option<SharedFile> {
        match &self.0 {
            From::File { file, .. } => Some(file.clone()),
            From::Pipe { .. } | From::Stream(_) => None,
        }
    }

    /// Steps over as many of the next bytes as there are, where that takes no reading. Returns how many.
    pub(super) fn step_over(&mut self, len: u64) -> u64 {
        let From::File { offset, size_bytes, .. } = &mut self.0 else { return 0 };
        let stepped = len.min(size_bytes.saturating_sub(*offset));
        *offset += stepped;
        stepped
    }
}

/// What one read gives.
fn fill(max: usize, read: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<Bytes> {
    let mut buffer = vec![0; max];
    loop {
        match read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer.into());
            }
        }
    }
}

// === impl Outgoing ===

impl Outgoing {
    pub(super) fn stdout(pool: &Pool) -> Result<Self, BundleError> {
        let file = io::stdout().as_fd().try_clone_to_owned().map_err(BundleError::Stream)?;
        Ok(Self::new(file.into(), pool))
    }

    /// What is there and no regular file: a device, a pipe.
    pub(super) fn special(path: &Path, pool: &Pool) -> Result<Self, BundleError> {
        let file = File::options().write(true).open(path).map_err(at(path))?;
        Ok(Self::new(file, pool))
    }

    pub(super) fn create(path: &Path, pool: &Pool) -> Result<Self, BundleError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        let file = File::create_new(path).map_err(at(path))?;
        Ok(Self::new(file, pool))
    }

    fn new(file: File, pool: &Pool) -> Self {
        Self { file: Arc::new(file), pool: pool.clone(), syncing: Syncing::new() }
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let (file, len) = (self.file.clone(), bytes.len() as u64);
        self.pool.run(move || (&*file).write_all(&bytes)).await?;
        self.syncing.wrote(len, sync(self.file.clone(), self.pool.clone())).await
    }

    /// Has what was written survive a power cut. Pipes have no such thing.
    pub(super) async fn sync(&mut self) -> io::Result<()> {
        self.syncing.ended().await?;
        sync(self.file.clone(), self.pool.clone()).await
    }
}

async fn sync(file: Arc<File>, pool: Pool) -> io::Result<()> {
    pool.run(move || if file.metadata()?.is_file() { file.sync_data() } else { Ok(()) }).await
}

// === impl NewFile ===

impl NewFile {
    /// A file beside `target`, without its name.
    pub(super) fn beside(target: &Path) -> Result<Self, BundleError> {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let (prefix, parent) = beside(target);
        let staged = tempfile::Builder::new().prefix(&prefix).suffix(".partial").permissions(mode).tempfile_in(&parent);
        Ok(Self { staged: staged.map_err(at(&parent))?, target: target.to_owned() })
    }

    pub(super) fn outgoing(&self, pool: &Pool) -> Result<Outgoing, BundleError> {
        let file = self.staged.as_file().try_clone().map_err(at(&self.target))?;
        Ok(Outgoing::new(file, pool))
    }

    /// Gives it its name, in place of what has it.
    pub(super) fn keep(self) -> Result<(), BundleError> {
        self.staged.persist(&self.target).map_err(|error| at(&self.target)(error.error))?;
        sync_parent(&self.target)
    }
}

// === impl NewFolder ===

impl NewFolder {
    /// A folder beside `target`, without its name. What has that name must be an empty folder.
    pub(super) fn beside(target: &Path) -> Result<Self, BundleError> {
        match fs::read_dir(target).map(|mut found| found.next().is_none()) {
            Ok(true) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) | Err(_) => return Err(BundleError::Exists(target.to_owned())),
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        let (prefix, parent) = beside(target);
        let staged = tempfile::Builder::new().prefix(&prefix).suffix(".partial").permissions(mode).tempdir_in(&parent);
        Ok(Self { staged: staged.map_err(at(&parent))?, target: target.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Gives it its name.
    pub(super) fn keep(self) -> Result<(), BundleError> {
        let target = &self.target;
        fs::rename(self.staged.path(), target).map_err(at(target))?;
        // It isn't there under its first name any more.
        let _ = self.staged.keep();
        sync_parent(target)
    }
}

/// How what is to become `target` is called meanwhile, and where it lies.
fn beside(target: &Path) -> (String, PathBuf) {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    (format!(".{name}."), parent(target))
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn sync_parent(path: &Path) -> Result<(), BundleError> {
    let parent = parent(path);
    File::open(&parent).and_then(|folder| folder.sync_all()).map_err(at(&parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_kept_vanishes_and_what_is_kept_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let (target, pool) = (folder.path().join("x.tar"), pool().unwrap());
        fs::write(&target, "old").unwrap();
        for keep in [false, true] {
            let new = NewFile::beside(&target).unwrap();
            let mut outgoing = new.outgoing(&pool).unwrap();
            outgoing.write(Bytes::from_static(b"new")).await.unwrap();
            outgoing.sync().await.unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"old");
            if keep {
                new.keep().unwrap();
            }
        }
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_takes_the_place_of_nothing_or_of_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        drop(NewFolder::beside(&target).unwrap());
        for _ in 0..2 {
            let new = NewFolder::beside(&target).unwrap();
            new.keep().unwrap();
        }
        fs::write(target.join("file"), "").unwrap();
        assert!(matches!(NewFolder::beside(&target), Err(BundleError::Exists(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(list(folder.path(), 2, 9).unwrap(), [("x/file".to_owned(), 0)]);
        assert!(list(folder.path(), 2, 0).is_err());
        std::os::unix::fs::symlink("/etc/passwd", target.join("link")).unwrap();
        assert!(list(folder.path(), 2, 9).unwrap_err().to_string().contains("symbolic link"));
    }
}
