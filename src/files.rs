//! Small bounded reads of files outside the data directory, the path in every error.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

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
}
