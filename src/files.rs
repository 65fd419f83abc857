//! Small bounded reads of files outside the data directory, the path in every error; also of files that change.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A file that could not be read. The message names the path, and never repeats what is in the file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct FileError {
    /// The file that was asked for.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: FileProblem,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// The operating system refused.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is a folder, a device, a pipe: nothing that has an end for certain.
    #[error("is not a regular file")]
    NotRegular,
    /// It is longer than the reader is willing to hold.
    #[error("is longer than the {bytes_max} bytes allowed here")]
    TooLong {
        /// The limit it broke.
        bytes_max: u64,
    },
    /// It holds bytes that are no text.
    #[error("is not UTF-8 text")]
    NotText,
}

/// What lies in a folder, by name.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let list =
        || std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    let mut entries = list().map_err(|error| FileError { path: folder.to_owned(), problem: error.into() })?;
    entries.sort_unstable();
    Ok(entries)
}

/// A file whose content means something, read again when it changes. Mounted secrets are replaced while we run.
pub struct Watched<T> {
    path: PathBuf,
    bytes_max: u64,
    parse: Box<Parse<T>>,
    state: Mutex<State<T>>,
}

type Parse<T> = dyn Fn(&[u8]) -> Result<T, String> + Send + Sync;

struct State<T> {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    /// The last content that could be read.
    value: Option<Arc<T>>,
    /// What was wrong when it was read last.
    problem: Option<String>,
}

/// What changes when a file does: its time, its size, or which file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

/// How long a file is taken for unchanged without looking.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The whole of a regular file of at most `bytes_max` bytes. Symbolic links are followed (mounted secrets are such).
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    read_bounded(path, bytes_max).map_err(|problem| FileError { path: path.to_owned(), problem })
}

/// The whole of a text file of at most `bytes_max` bytes, as [`read`].
pub fn read_text(path: &Path, bytes_max: u64) -> Result<String, FileError> {
    let bytes = read(path, bytes_max)?;
    String::from_utf8(bytes).map_err(|_| FileError { path: path.to_owned(), problem: FileProblem::NotText })
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileProblem> {
    // Asked before the open, because opening a named pipe waits for a writer that may never come.
    if !std::fs::metadata(path)?.is_file() {
        return Err(FileProblem::NotRegular);
    }
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file of exactly the limit differs from one that goes on.
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileProblem::TooLong { bytes_max });
    }
    Ok(bytes)
}

// === impl Watched ===

impl<T> Watched<T> {
    /// A file of at most `bytes_max` bytes, which `parse` reads. Nothing is read before it is asked for.
    pub fn new(
        path: PathBuf,
        bytes_max: u64,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Self {
        let state = State { looked: None, stamp: None, value: None, problem: None };
        Self { path, bytes_max, parse: Box::new(parse), state: Mutex::new(state) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says, as of a second ago at most. While it can't be read, what it said before; `None` if it never could be.
    pub fn get(&self) -> Option<Arc<T>> {
        self.look(LOOK_EVERY)
    }

    /// What it says at this moment.
    pub fn get_now(&self) -> Option<Arc<T>> {
        self.look(Duration::ZERO)
    }

    fn look(&self, age_max: Duration) -> Option<Arc<T>> {
        let mut state = self.state.lock();
        if state.looked.is_some_and(|looked| looked.elapsed() < age_max) {
            return state.value.clone();
        }
        state.looked = Some(Instant::now());
        let stamp = Stamp::of(&self.path);
        if stamp.is_some() && stamp == state.stamp {
            return state.value.clone();
        }
        let read = read(&self.path, self.bytes_max).map_err(|error| error.to_string());
        let parsed = read
            .and_then(|bytes| (self.parse)(&bytes).map_err(|problem| format!("{}: {problem}", self.path.display())));
        match parsed {
            Ok(value) => {
                if state.value.is_some() {
                    tracing::info!(path = %self.path.display(), "a file has changed and was read again");
                }
                (state.value, state.problem, state.stamp) = (Some(Arc::new(value)), None, stamp);
            }
            // Said once for each thing that is wrong with it. It may be in the middle of being replaced, so it's read again.
            Err(problem) if state.problem.as_ref() != Some(&problem) => {
                let then =
                    if state.value.is_some() { "what it said before still holds" } else { "it counts as absent" };
                tracing::warn!("{problem}; {then}");
                (state.problem, state.stamp) = (Some(problem), None);
            }
            Err(_) => state.stamp = None,
        }
        state.value.clone()
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("path", &self.path).finish_non_exhaustive()
    }
}

// === impl Stamp ===

impl Stamp {
    /// Of the file at `path`, if there is one. Symbolic links are followed.
    pub fn of(path: &Path) -> Option<Self> {
        let facts = std::fs::metadata(path).ok()?;
        Some(Self { changed: (facts.mtime(), facts.mtime_nsec()), size: facts.len(), inode: facts.ino() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit_and_not_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert_eq!(read_text(&path, 6).unwrap(), "12345");
        let error = read(&path, 4).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: is longer than the 4 bytes allowed here", path.display()));
    }

    #[test]
    fn every_error_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let message = read(&missing, 1).unwrap_err().to_string();
        assert_eq!(message, format!("{}: cannot be read: No such file or directory (os error 2)", missing.display()));
        let message = read(folder.path(), 1).unwrap_err().to_string();
        assert_eq!(message, format!("{}: is not a regular file", folder.path().display()));
        let binary = folder.path().join("binary");
        std::fs::write(&binary, [0xff, 0xfe]).unwrap();
        assert_eq!(read_text(&binary, 9).unwrap_err().to_string(), format!("{}: is not UTF-8 text", binary.display()));
    }

    #[test]
    fn a_watched_file_is_read_again_when_it_changes_and_keeps_what_it_said_while_it_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let parse = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().parse::<u32>().map_err(|e| e.to_string());
        let watched = Watched::new(path.clone(), 9, parse);
        assert_eq!(watched.get(), None);
        std::fs::write(&path, "1").unwrap();
        assert_eq!(watched.get(), None, "not looked at again so soon");
        assert_eq!(watched.get_now().as_deref(), Some(&1));
        std::fs::write(&path, "22").unwrap();
        assert_eq!(watched.get_now().as_deref(), Some(&22));
        for broken in ["x", "1234567890"] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!(watched.get_now().as_deref(), Some(&22));
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(watched.get_now().as_deref(), Some(&22));
        // As mounted secrets are: another file of the same size is put in its place.
        std::fs::write(folder.path().join("new"), "33").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(watched.get_now().as_deref(), Some(&33));
    }
}
