//! A bundle on its way to a server that imports it: as it lies in its file, or as an archive that is made on the way.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::error::BundleError;
use super::files::{self, CHUNK_BYTES, Incoming};
use super::import::Source;
use super::intake::Found;
use super::migration;
use super::reading::Reader;
use super::recording::Lists;
use super::tar::{end, header, padding};
use crate::oci::{Digest, Repository};

/// A bundle that is sent.
pub struct Sending {
    /// What is in it, and how long each is; `None` where that shows only on the way.
    pub blobs: Option<Vec<(Digest, u64)>>,
    /// Its bytes, as an archive.
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
    /// How many there are, where that is known.
    pub size_bytes: Option<u64>,
    /// What is not complete is to be left out.
    pub partly: bool,
}

/// Files that become an archive.
struct Packing {
    reader: Reader,
    /// How much fills up the last block of the file that is being written.
    padding: usize,
    ended: bool,
}

/// Looks at a bundle, so that nobody takes it in in vain, and makes it ready to be sent. `under` is the repository that its
/// images are to belong to, whatever it calls them.
pub async fn send(source: Source, under: Option<&Repository>) -> Result<Sending, BundleError> {
    let pool = files::pool()?;
    let partly = source.is_storage();
    let (mut reader, bytes, size_bytes) = match source {
        Source::Path(path) if files::is_special(&path) => return Ok(Sending::stream(Incoming::open(&path, &pool)?)),
        Source::Stdin => return Ok(Sending::stream(Incoming::stdin(&pool)?)),
        Source::Stream(stream) => return Ok(Sending::stream(Incoming::stream(stream))),
        Source::Path(path) if !files::is_folder(&path)? => {
            let size_bytes = files::size_of(&path.canonicalize().map_err(super::error::at(&path))?)?;
            let reader = Reader::open(&path, &pool).await?;
            (reader, plain(Incoming::open(&path, &pool)?), size_bytes)
        }
        Source::Path(path) => (Reader::open(&path, &pool).await?, packed(Reader::open(&path, &pool).await?), None),
        Source::Registry(path, name) => {
            let files = || Ok::<_, BundleError>(Reader::files(migration::registry(&path, &name)?, &pool));
            (files()?, packed(files()?), None)
        }
        Source::Containerd(path) => {
            let files = || Ok::<_, BundleError>(Reader::files(migration::containerd(&path)?, &pool));
            (files()?, packed(files()?), None)
        }
    };
    let found = Found::survey(&mut reader).await?;
    Lists::read(&found.documents)?.check_names(under)?;
    Ok(Sending { blobs: Some(found.blobs.into_iter().collect()), bytes, size_bytes, partly })
}

/// A file as it is.
fn plain(incoming: Incoming) -> BoxStream<'static, io::Result<Bytes>> {
    let read = |mut incoming: Incoming| async move {
        let bytes = incoming.read(CHUNK_BYTES).await?;
        Ok((!bytes.is_empty()).then_some((bytes, incoming)))
    };
    stream::try_unfold(incoming, read).boxed()
}

/// Files as an archive.
fn packed(reader: Reader) -> BoxStream<'static, io::Result<Bytes>> {
    let packing = Packing { reader, padding: 0, ended: false };
    stream::try_unfold(packing, |mut packing| async move {
        let next = packing.next().await.map_err(io::Error::other)?;
        Ok(next.map(|bytes| (bytes, packing)))
    })
    .boxed()
}

// === impl Sending ===

impl Sending {
    /// What can be read only once.
    fn stream(incoming: Incoming) -> Self {
        Self { blobs: None, bytes: plain(incoming), size_bytes: None, partly: false }
    }
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sending").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

// === impl Packing ===

impl Packing {
    /// The next bytes of the archive.
    async fn next(&mut self) -> Result<Option<Bytes>, BundleError> {
        if self.ended {
            return Ok(None);
        }
        if let Some(bytes) = self.reader.chunk().await? {
            return Ok(Some(bytes));
        }
        let mut between = BytesMut::zeroed(std::mem::take(&mut self.padding));
        if let Some(entry) = self.reader.next().await? {
            between.extend_from_slice(&header(&entry.path, entry.size_bytes));
            self.padding = padding(entry.size_bytes);
        } else {
            between.extend_from_slice(&end());
            self.ended = true;
        }
        Ok(Some(between.freeze()))
    }
}
