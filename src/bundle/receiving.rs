//! A bundle on its way from a server that exports it, to where it is wanted.

use std::io;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use tokio_util::io::StreamReader;

use super::error::BundleError;
use super::files::{self, Incoming, NewFile, NewFolder, Outgoing};
use super::reading::Reader;
use super::tar::Kind;
use super::writing::{Destination, Folder, Sink, Target};
use super::{Progress, Seen};

/// Writes the archive that `bytes` are. Where it has a name it gets that at the very end; of one that breaks off nothing stays.
/// `total_bytes` is how long it is.
pub async fn receive(
    bytes: BoxStream<'static, io::Result<Bytes>>,
    total_bytes: Option<u64>,
    destination: Destination,
    seen: &Seen<'_>,
) -> Result<(), BundleError> {
    let pool = files::pool()?;
    let progress = Progress { done_bytes: 0, total_bytes };
    match destination {
        Destination::File(path) if files::is_special(&path) => {
            copy(bytes, Target::File(Outgoing::special(&path, &pool)?), progress, seen).await
        }
        Destination::File(path) => {
            let file = NewFile::beside(&path)?;
            copy(bytes, Target::File(file.outgoing(&pool)?), progress, seen).await?;
            file.keep()
        }
        Destination::Folder(path) => {
            let folder = NewFolder::beside(&path)?;
            let incoming = Incoming::stream(Box::pin(StreamReader::new(bytes)));
            let mut reader = Reader::archive(incoming).await.map_err(BundleError::Stream)?;
            unpack(&mut reader, &mut Folder::new(folder.path().to_owned(), pool), progress, seen).await?;
            folder.keep()
        }
        Destination::Stdout => copy(bytes, Target::File(Outgoing::stdout(&pool)?), progress, seen).await,
        Destination::Stream(stream) => copy(bytes, Target::Stream(stream), progress, seen).await,
    }
}

/// Writes an archive as it comes.
async fn copy(
    mut bytes: BoxStream<'static, io::Result<Bytes>>,
    mut target: Target,
    mut progress: Progress,
    seen: &Seen<'_>,
) -> Result<(), BundleError> {
    seen(&progress);
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk.map_err(BundleError::Stream)?;
        progress.done_bytes += chunk.len() as u64;
        target.write(chunk).await.map_err(BundleError::Stream)?;
        seen(&progress);
    }
    target.end().await.map_err(BundleError::Stream)
}

/// Writes the files of an archive.
async fn unpack(
    reader: &mut Reader,
    folder: &mut Folder,
    mut progress: Progress,
    seen: &Seen<'_>,
) -> Result<(), BundleError> {
    seen(&progress);
    while let Some(entry) = reader.next().await? {
        // A bundle that we wrote has nothing else.
        if entry.kind != Kind::File {
            continue;
        }
        folder.begin(&entry.path, entry.size_bytes).await?;
        while let Some(chunk) = reader.chunk().await? {
            progress.done_bytes += chunk.len() as u64;
            folder.write(chunk).await?;
            seen(&progress);
        }
        folder.end().await?;
    }
    folder.finish().await
}
