//! Bundles as a sequence of files, written: into a tar archive, or into a folder.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::error::{BundleError, at};
use super::files::{CHUNK_BYTES, Outgoing};
use super::tar::{end, header, padding};
use crate::tasks::Pool;

/// Where files are written, one after the other.
pub(super) trait Sink {
    /// Begins a file, whose bytes are given to [`Sink::write`] next.
    fn begin(&mut self, path: &str, size_bytes: u64) -> impl Future<Output = Result<(), BundleError>> + Send;

    /// Takes the next bytes of the file.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), BundleError>> + Send;

    /// Ends the file.
    fn end(&mut self) -> impl Future<Output = Result<(), BundleError>> + Send;

    /// Ends the bundle.
    fn finish(&mut self) -> impl Future<Output = Result<(), BundleError>> + Send;
}

/// Where a bundle is written to.
pub enum Destination {
    /// A tar archive, which gets its name when it is whole.
    File(PathBuf),
    /// A folder, which gets its name when it is whole.
    Folder(PathBuf),
    /// A tar archive on the standard output.
    Stdout,
    /// A tar archive into whatever takes it.
    Stream(Pin<Box<dyn AsyncWrite + Send>>),
}

/// Where an archive goes.
pub(super) enum Target {
    File(Outgoing),
    Stream(Pin<Box<dyn AsyncWrite + Send>>),
}

/// A tar archive.
pub(super) struct Archive {
    target: Target,
    buffer: BytesMut,
    padding: usize,
}

/// A folder.
pub(super) struct Folder {
    root: PathBuf,
    pool: Pool,
    open: Option<(PathBuf, Outgoing)>,
}

// === impl Destination ===

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Folder(path) => f.debug_tuple("Folder").field(path).finish(),
            Self::Stdout => f.write_str("Stdout"),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

// === impl Target ===

impl Target {
    pub(super) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::File(outgoing) => outgoing.write(bytes).await,
            Self::Stream(stream) => stream.write_all(&bytes).await,
        }
    }

    /// Has what was written be there for good.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        match self {
            Self::File(outgoing) => outgoing.sync().await,
            Self::Stream(stream) => stream.shutdown().await,
        }
    }
}

// === impl Archive ===

impl Archive {
    pub(super) fn new(target: Target) -> Self {
        Self { target, buffer: BytesMut::new(), padding: 0 }
    }

    async fn flush(&mut self) -> Result<(), BundleError> {
        let bytes = self.buffer.split().freeze();
        self.send(bytes).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), BundleError> {
        self.target.write(bytes).await.map_err(BundleError::Stream)
    }
}

impl Sink for Archive {
    async fn begin(&mut self, path: &str, size_bytes: u64) -> Result<(), BundleError> {
        self.buffer.extend_from_slice(&header(path, size_bytes));
        self.padding = padding(size_bytes);
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), BundleError> {
        // What is small goes together, what is large goes as it is.
        if bytes.len() < CHUNK_BYTES / 8 {
            self.buffer.extend_from_slice(&bytes);
            return if self.buffer.len() < CHUNK_BYTES { Ok(()) } else { self.flush().await };
        }
        self.flush().await?;
        self.send(bytes).await
    }

    async fn end(&mut self) -> Result<(), BundleError> {
        let len = self.buffer.len() + std::mem::take(&mut self.padding);
        self.buffer.resize(len, 0);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), BundleError> {
        self.buffer.extend_from_slice(&end());
        self.flush().await?;
        self.target.end().await.map_err(BundleError::Stream)
    }
}

// === impl Folder ===

impl Folder {
    pub(super) fn new(root: PathBuf, pool: Pool) -> Self {
        Self { root, pool, open: None }
    }
}

impl Sink for Folder {
    async fn begin(&mut self, path: &str, _size_bytes: u64) -> Result<(), BundleError> {
        // Folders are made for the files in them.
        if !path.ends_with('/') {
            let path = self.root.join(path);
            let outgoing = Outgoing::create(&path, &self.pool)?;
            self.open = Some((path, outgoing));
        }
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), BundleError> {
        let Some((path, outgoing)) = &mut self.open else { return Ok(()) };
        outgoing.write(bytes).await.map_err(at(path))
    }

    async fn end(&mut self) -> Result<(), BundleError> {
        let Some((path, mut outgoing)) = self.open.take() else { return Ok(()) };
        outgoing.sync().await.map_err(at(&path))
    }

    async fn finish(&mut self) -> Result<(), BundleError> {
        Ok(())
    }
}
