//! Pieces: what store and fill hand to the server, which alone turns them into frames.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::blob::OpenFile;

/// A part of a body.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes of an open file.
    File {
        /// The file.
        file: Arc<OpenFile>,
        /// Where the bytes start.
        offset: u64,
        /// How many there are.
        len: u64,
    },
    /// Bytes in memory.
    Memory(Bytes),
}

/// Why a body ends before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Cut {
    /// A sentence for the log.
    pub reason: Arc<str>,
}

/// A body. After a [`Cut`] nothing more comes.
pub type Pieces = BoxStream<'static, Result<Piece, Cut>>;

// === impl Piece ===

impl Piece {
    /// How many bytes it stands for.
    pub fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Whether it stands for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes its first `len` bytes, or all if it has no more, and leaves the rest.
    #[must_use]
    pub fn split_to(&mut self, len: u64) -> Self {
        match self {
            Self::File { file, offset, len: all } => {
                let len = len.min(*all);
                let first = Self::File { file: Arc::clone(file), offset: *offset, len };
                *offset += len;
                *all -= len;
                first
            }
            Self::Memory(bytes) => {
                Self::Memory(bytes.split_to(usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len())))
            }
        }
    }

    /// Its bytes, read into memory where they are not there yet.
    pub async fn read(self) -> std::io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes),
            Self::File { file, offset, len } => {
                let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
                file.read_at(offset, len).await
            }
        }
    }
}

// === impl Cut ===

impl Cut {
    /// A cut for this reason.
    pub fn new(reason: impl Into<Arc<str>>) -> Self {
        Self { reason: reason.into() }
    }
}
