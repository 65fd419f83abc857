//! Bundles as a sequence of files: the entries of a tar archive, plain or compressed, or what lies in a folder.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use super::error::{BundleError, at};
use super::files::{self, CHUNK_BYTES, Incoming, SharedFile, Stream};
use super::layout::{DOCKER, INDEX};
use super::tar::{BLOCK, Entry, Headers, InvalidTar, Kind, Step, padding};
use crate::tasks::Pool;

/// A bundle that is read.
pub(super) struct Reader {
    from: From,
    /// What was read and not yet taken.
    buffer: Bytes,
    /// How much of the archive, unpacked, was taken.
    taken_bytes: u64,
    /// The file that is being read, and how much of it is still to come.
    current: Option<(String, u64)>,
    names: HashSet<String>,
    /// How many bytes lie between what is to come of the file and the next header.
    padding: usize,
}

enum From {
    /// An archive in a file or a pipe.
    Plain(Incoming),
    /// An archive that is unpacked on its way.
    Packed(Stream),
    Files {
        pool: Pool,
        files: VecDeque<File>,
        open: Option<Incoming>,
    },
}

/// A file that stands for one of a bundle.
#[derive(Debug)]
pub(super) struct File {
    /// What it is called there.
    pub(super) path: String,
    pub(super) content: Lies,
}

/// Where a file's content is.
#[derive(Debug)]
pub(super) enum Lies {
    /// There, and so long.
    At(PathBuf, u64),
    Here(Bytes),
}

/// So many entries are in a bundle at most.
const ENTRIES_MAX: usize = 300_000;

/// Behind the end of an archive lies at most so much: tar fills up to its own unit.
const TAIL_BYTES_MAX: usize = 1 << 20;

/// The folders of a layout lie so deep.
const FOLDER_DEPTH: usize = 2;

/// By these bytes compressed archives begin.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// See [`GZIP`].
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

// === impl Reader ===

impl Reader {
    /// A bundle in a file, a folder, or whatever the path leads to.
    pub(super) async fn open(path: &Path, pool: &Pool) -> Result<Self, BundleError> {
        if files::is_folder(path)? {
            if files::size_of(&path.join(INDEX))?.or(files::size_of(&path.join(DOCKER))?).is_none() {
                return Err(BundleError::NoBundle);
            }
            let found = files::list(path, FOLDER_DEPTH, ENTRIES_MAX)?;
            let file = |(name, size_bytes): (String, u64)| {
                let content = Lies::At(path.join(&name), size_bytes);
                File { path: name, content }
            };
            return Ok(Self::files(found.into_iter().map(file).collect(), pool));
        }
        Self::archive(Incoming::open(path, pool)?).await.map_err(at(path))
    }

    /// Files that stand for a bundle.
    pub(super) fn files(files: Vec<File>, pool: &Pool) -> Self {
        Self::new(From::Files { pool: pool.clone(), files: files.into(), open: None })
    }

    /// An archive in a file or a pipe.
    pub(super) async fn archive(mut incoming: Incoming) -> io::Result<Self> {
        let mut start = incoming.read(CHUNK_BYTES).await?;
        // A pipe gives as little as it likes.
        while start.len() < ZSTD.len() {
            let more = incoming.read(CHUNK_BYTES).await?;
            if more.is_empty() {
                break;
            }
            start = [start, more].concat().into();
        }
        if !start.starts_with(&GZIP) && !start.starts_with(&ZSTD) {
            return Ok(Self { buffer: start, ..Self::new(From::Plain(incoming)) });
        }
        let is_gzip = start.starts_with(&GZIP);
        let packed = stream::unfold((Some(start), incoming), |(start, mut incoming)| async move {
            let read = match start {
                Some(start) => Ok(start),
                None => incoming.read(CHUNK_BYTES).await,
            };
            match read {
                Ok(bytes) if bytes.is_empty() => None,
                read => Some((read, (None, incoming))),
            }
        });
        let packed = StreamReader::new(Box::pin(packed));
        let unpacked: Stream = if is_gzip {
            let mut decoder = GzipDecoder::new(packed);
            decoder.multiple_members(true);
            Box::pin(decoder)
        } else {
            let mut decoder = ZstdDecoder::new(packed);
            decoder.multiple_members(true);
            Box::pin(decoder)
        };
        Ok(Self::new(From::Packed(unpacked)))
    }

    fn new(from: From) -> Self {
        Self { from, buffer: Bytes::new(), taken_bytes: 0, current: None, names: HashSet::new(), padding: 0 }
    }

    /// The next file or link. What of the one before is not read yet is passed over.
    pub(super) async fn next(&mut self) -> Result<Option<Entry>, BundleError> {
        self.pass_over().await?;
        let entry = match &mut self.from {
            From::Files { pool, files, open } => match files.pop_front() {
                Some(File { path, content }) => {
                    let size_bytes = match content {
                        Lies::At(place, size_bytes) => {
                            *open = Some(Incoming::open(&place, pool)?);
                            size_bytes
                        }
                        Lies::Here(bytes) => {
                            (*open, self.buffer) = (None, bytes);
                            self.buffer.len() as u64
                        }
                    };
                    self.current = Some((path.clone(), size_bytes));
                    Some(Entry { path, size_bytes, kind: Kind::File })
                }
                None => None,
            },
            From::Plain(_) | From::Packed(_) => self.next_of_archive().await?,
        };
        if let Some(entry) = &entry {
            if !self.names.insert(entry.path.clone()) {
                return Err(BundleError::Twice(entry.path.clone()));
            }
            if self.names.len() > ENTRIES_MAX {
                return Err(BundleError::TooMany { what: "files", limit: ENTRIES_MAX });
            }
        }
        Ok(entry)
    }

    /// The file itself, where it lies in a folder.
    pub(super) fn file(&self) -> Option<SharedFile> {
        match &self.from {
            From::Files { open: Some(incoming), .. } => incoming.file(),
            From::Files { open: None, .. } | From::Plain(_) | From::Packed(_) => None,
        }
    }

    /// The next bytes of the file; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, BundleError> {
        let Some((path, left)) = self.current.take() else { return Ok(None) };
        if left == 0 {
            return Ok(None);
        }
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let bytes = self.take(len).await?;
        if bytes.is_empty() {
            return Err(BundleError::Cut(path));
        }
        self.current = Some((path, left - bytes.len() as u64));
        Ok(Some(bytes))
    }

    /// All that is still to come of the file, which is known to be short.
    pub(super) async fn rest(&mut self) -> Result<Bytes, BundleError> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    async fn next_of_archive(&mut self) -> Result<Option<Entry>, BundleError> {
        let mut headers = Headers::default();
        let mut folders = 0;
        loop {
            let mut block = [0; BLOCK];
            self.exact(&mut block, "the list of its files").await?;
            let at_bytes = self.taken_bytes - BLOCK as u64;
            let damaged = |source: InvalidTar| match source {
                InvalidTar::Damaged if at_bytes == 0 => BundleError::NoBundle,
                source => BundleError::Tar { place: format!("{at_bytes} bytes in"), source },
            };
            match headers.next(&block).map_err(damaged)? {
                Step::Extension(len) => {
                    let mut extension = vec![0; len.next_multiple_of(BLOCK)];
                    self.exact(&mut extension, "the list of its files").await?;
                    headers.extend(&extension[..len]).map_err(damaged)?;
                }
                Step::Entry(entry) if entry.kind == Kind::Folder => {
                    folders += 1;
                    if folders > ENTRIES_MAX {
                        return Err(BundleError::TooMany { what: "folders", limit: ENTRIES_MAX });
                    }
                }
                Step::Entry(entry) => {
                    self.padding = padding(entry.size_bytes);
                    self.current = Some((entry.path.clone(), entry.size_bytes));
                    return Ok(Some(entry));
                }
                Step::End => {
                    // Checksums of what is compressed come behind everything, and whoever writes into a pipe wants to be
                    // read to the end.
                    let mut tail = 0;
                    while tail < TAIL_BYTES_MAX {
                        match self.take(CHUNK_BYTES).await?.len() {
                            0 => break,
                            len => tail += len,
                        }
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Passes over what is left of the file, and over what fills up its last block.
    async fn pass_over(&mut self) -> Result<(), BundleError> {
        if let From::Files { .. } = &self.from {
            (self.buffer, self.current) = (Bytes::new(), None);
            return Ok(());
        }
        let (path, mut left) = self.current.take().unwrap_or_else(|| ("the list of its files".to_owned(), 0));
        let buffered = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.buffer.advance(buffered);
        self.taken_bytes += buffered as u64;
        left -= buffered as u64;
        if let From::Plain(incoming) = &mut self.from {
            let stepped_bytes = incoming.step_over(left);
            self.taken_bytes += stepped_bytes;
            left -= stepped_bytes;
        }
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            match self.take(len).await?.len() {
                0 => return Err(BundleError::Cut(path)),
                len => left -= len as u64,
            }
        }
        let mut padding = [0; BLOCK];
        let len = std::mem::take(&mut self.padding);
        self.exact(&mut padding[..len], &path).await
    }

    /// Exactly as many bytes as the buffer takes.
    async fn exact(&mut self, buffer: &mut [u8], what: &str) -> Result<(), BundleError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let bytes = self.take(buffer.len() - filled).await?;
            if bytes.is_empty() {
                return Err(BundleError::Cut(what.to_owned()));
            }
            buffer[filled..filled + bytes.len()].copy_from_slice(&bytes);
            filled += bytes.len();
        }
        Ok(())
    }

    /// The next bytes, at most so many; none at the end.
    async fn take(&mut self, max: usize) -> Result<Bytes, BundleError> {
        if self.buffer.is_empty() {
            self.buffer = match &mut self.from {
                From::Plain(incoming) | From::Files { open: Some(incoming), .. } => {
                    incoming.read(CHUNK_BYTES).await.map_err(BundleError::Stream)?
                }
                From::Files { open: None, .. } => Bytes::new(),
                From::Packed(stream) => {
                    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
                    let place = format!("{} bytes in", self.taken_bytes);
                    let read = stream.read_buf(&mut buffer).await;
                    read.map_err(|source| BundleError::Unpack { place, source })?;
                    buffer.freeze()
                }
            };
        }
        let bytes = self.buffer.split_to(max.min(self.buffer.len()));
        self.taken_bytes += bytes.len() as u64;
        Ok(bytes)
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("taken_bytes", &self.taken_bytes).finish_non_exhaustive()
    }
}
