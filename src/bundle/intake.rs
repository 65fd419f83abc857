//! Intake: the files of a bundle on their way into the store, each hashed as it passes, with what they are called noted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join3;

use super::error::BundleError;
use super::files::CHUNK_BYTES;
use super::hashing::Hashing;
use super::layout::{self, DOCUMENT_BYTES_MAX, DOCUMENTS};
use super::reading::Reader;
use super::syncing::Syncing;
use super::tar::{Entry, Kind, follow};
use super::{Progress, Seen};
use crate::oci::{Algorithm, Digest, Mismatch, RegistryName, Verified, Verifier};
use crate::store::{Extent, OpenFile, Partial, Store, StoreError};
use crate::tasks::Pool;

/// What a bundle consists of.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) documents: BTreeMap<String, Bytes>,
    /// All content with a digest, and how long it is.
    pub(super) blobs: HashMap<Digest, u64>,
    /// What lies where, in a Docker archive.
    pub(super) paths: HashMap<String, Digest>,
    /// How what may be layers is packed.
    pub(super) packings: HashMap<Digest, Packing>,
    links: HashMap<String, String>,
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// Takes a bundle in.
#[derive(Debug)]
pub(super) struct Intake<'a> {
    store: &'a Store,
    pool: Pool,
    /// Under this name partials lie while they are written.
    registry: RegistryName,
    pub(super) found: Found,
    /// Blobs that were not held before.
    pub(super) brought: Vec<Digest>,
    pub(super) brought_bytes: u64,
    /// What is damaged is left out instead of ending it all; these are in sentences.
    pub(super) left_out: Option<Vec<String>>,
}

/// What a blob consists of. What shares its blocks with a file that somebody may write to is read as it is here.
struct Chunks<'a> {
    reader: &'a mut Reader,
    shared: Option<Arc<OpenFile>>,
    offset: u64,
    size_bytes: u64,
}

/// A blob on its way to the disk, if it is not there already.
struct Writing<'a> {
    partial: Option<&'a Partial>,
    offset: u64,
    syncing: Syncing<'a, StoreError>,
}

/// What is no larger is held in memory while it is hashed.
const SMALL_BYTES: u64 = 1 << 20;

/// So many links are followed from name to name.
const LINKS_MAX: usize = 4;

/// What a file of a bundle is.
enum File {
    Document,
    Blob(Digest),
    /// A layer of a Docker archive that is named by an id, or a configuration that is called just that.
    Unnamed,
    /// Of no use here.
    Other,
}

// === impl Found ===

impl Found {
    /// Looks at what a bundle consists of, and hashes only what isn't named by its digest.
    pub(super) async fn survey(reader: &mut Reader) -> Result<Self, BundleError> {
        let mut found = Self::default();
        while let Some(entry) = reader.next().await? {
            match found.note(&entry)? {
                File::Document => found.take_document(&entry, reader).await?,
                File::Blob(digest) => found.note_blob(&entry, digest),
                File::Unnamed => {
                    let mut verifier = Verifier::new(Digest::sha256(b""), None);
                    while let Some(chunk) = reader.chunk().await? {
                        verifier.update(&chunk);
                    }
                    found.note_blob(&entry, verifier.prefix_digest());
                }
                File::Other => {}
            }
        }
        Ok(found)
    }

    /// What lies at a path of a Docker archive.
    pub(super) fn at(&self, path: &str) -> Option<Digest> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            match (self.paths.get(&path), self.links.get(&path)) {
                (Some(digest), _) => return Some(*digest),
                (None, Some(target)) => path.clone_from(target),
                (None, None) => return None,
            }
        }
        None
    }

    fn note(&mut self, entry: &Entry) -> Result<File, BundleError> {
        let path = entry.path.as_str();
        if let Kind::Link(target) = &entry.kind {
            // Only names in the archive are ever looked up by it.
            if let Some(target) = follow(path, target) {
                self.links.insert(path.to_owned(), target);
            }
            return Ok(File::Other);
        }
        if DOCUMENTS.contains(&path) {
            return Ok(File::Document);
        }
        if path.starts_with("blobs/") {
            let unknown = || layout::problem(path, "its name is no digest that is known here".to_owned());
            return Ok(File::Blob(layout::blob_at(path).ok_or_else(unknown)?));
        }
        Ok(match layout::docker_blob_at(path) {
            Some(digest) => File::Blob(digest),
            None if path.ends_with("/layer.tar") || path == "config.json" => File::Unnamed,
            None => File::Other,
        })
    }

    fn note_blob(&mut self, entry: &Entry, digest: Digest) {
        self.blobs.insert(digest, entry.size_bytes);
        self.paths.insert(entry.path.clone(), digest);
    }

    async fn take_document(&mut self, entry: &Entry, reader: &mut Reader) -> Result<(), BundleError> {
        if entry.size_bytes > DOCUMENT_BYTES_MAX {
            let problem = format!("it has {} bytes, and at most {DOCUMENT_BYTES_MAX} are read", entry.size_bytes);
            return Err(layout::problem(&entry.path, problem));
        }
        self.documents.insert(entry.path.clone(), reader.rest().await?);
        Ok(())
    }
}

// === impl Intake ===

impl<'a> Intake<'a> {
    pub(super) fn new(store: &'a Store, registry: RegistryName, pool: Pool) -> Self {
        let (found, brought) = (Found::default(), Vec::new());
        Self { store, pool, registry, found, brought, brought_bytes: 0, left_out: None }
    }

    /// Takes in a whole bundle. `survey` is what an earlier look at it found, if there was one.
    pub(super) async fn take(
        &mut self,
        reader: &mut Reader,
        survey: Option<&Found>,
        seen: &Seen<'_>,
    ) -> Result<(), BundleError> {
        let total_bytes = survey.map(|survey| survey.blobs.values().sum());
        let mut progress = Progress { done_bytes: 0, total_bytes };
        seen(&progress);
        while let Some(entry) = reader.next().await? {
            match self.found.note(&entry)? {
                File::Document => self.found.take_document(&entry, reader).await?,
                File::Blob(digest) => {
                    let taken = self.take_blob(&entry, digest, reader, &mut progress, seen).await;
                    match (taken, &mut self.left_out) {
                        (Err(error @ (BundleError::Wrong { .. } | BundleError::Cut(_))), Some(left_out)) => {
                            left_out.push(error.to_string());
                        }
                        (taken, _) => taken?,
                    }
                }
                File::Unnamed => {
                    let known = survey.and_then(|survey| survey.paths.get(&entry.path));
                    match known {
                        Some(digest) => self.take_blob(&entry, *digest, reader, &mut progress, seen).await?,
                        None if entry.size_bytes <= SMALL_BYTES => {
                            let bytes = reader.rest().await?;
                            self.take_small(&entry, Digest::of(Algorithm::Sha256, &bytes), bytes).await?;
                        }
                        None => return Err(BundleError::NeedsFile(entry.path)),
                    }
                }
                File::Other => {}
            }
        }
        Ok(())
    }

    async fn take_blob(
        &mut self,
        entry: &Entry,
        digest: Digest,
        reader: &mut Reader,
        progress: &mut Progress,
        seen: &Seen<'_>,
    ) -> Result<(), BundleError> {
        if entry.size_bytes <= SMALL_BYTES {
            let bytes = reader.rest().await?;
            progress.done_bytes += bytes.len() as u64;
            seen(progress);
            return self.take_small(entry, digest, bytes).await;
        }
        let is_held = self.store.open_blob(&digest).await?.is_some_and(|blob| blob.size_bytes == entry.size_bytes);
        let partial = if is_held {
            None
        } else {
            Some(self.store.create_partial(&self.registry, digest, Extent::Whole(entry.size_bytes)).await?)
        };
        let mut shared = None;
        if let (Some(partial), Some(file)) = (&partial, reader.file())
            && partial.share_blocks_of(file).await?
        {
            shared = Some(partial.file());
        }
        let written = partial.as_ref().filter(|_| shared.is_none());
        let mut hashing = Hashing::new(digest, entry.size_bytes, &self.pool);
        let mut writing = Writing { partial: written, offset: 0, syncing: Syncing::new() };
        let mut chunks = Chunks { reader, shared, offset: 0, size_bytes: entry.size_bytes };
        let mut next = chunks.next().await?;
        self.found.packings.insert(digest, Packing::of(next.as_deref().unwrap_or_default()));
        while let Some(chunk) = next {
            progress.done_bytes += chunk.len() as u64;
            let (read, (), written) = join3(chunks.next(), hashing.update(chunk.clone()), writing.write(chunk)).await;
            written?;
            next = read?;
            seen(progress);
        }
        writing.end().await?;
        let verified = hashing.finish().map_err(wrong(entry))?;
        if let Some(partial) = partial {
            // From here on it may be there, whatever becomes of the rest.
            self.note_brought(digest, entry.size_bytes);
            partial.commit(verified).await?;
        }
        self.found.note_blob(entry, digest);
        Ok(())
    }

    async fn take_small(&mut self, entry: &Entry, digest: Digest, bytes: Bytes) -> Result<(), BundleError> {
        let verified = Verified::check(&digest, &bytes).map_err(wrong(entry))?;
        self.found.packings.insert(digest, Packing::of(&bytes));
        self.put(verified, bytes).await?;
        self.found.note_blob(entry, digest);
        Ok(())
    }

    /// Puts something small into the store.
    pub(super) async fn put(&mut self, verified: Verified, bytes: Bytes) -> Result<(), StoreError> {
        if self.store.size_of(&verified.digest()).is_none() {
            self.note_brought(verified.digest(), verified.size_bytes());
        }
        self.store.put_blob(verified, bytes).await
    }

    fn note_brought(&mut self, digest: Digest, size_bytes: u64) {
        self.brought.push(digest);
        self.brought_bytes += size_bytes;
    }
}

// === impl Chunks ===

impl Chunks<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, BundleError> {
        let Some(shared) = &self.shared else { return self.reader.chunk().await };
        let left = usize::try_from(self.size_bytes - self.offset).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(None);
        }
        let chunk = shared.read_at(self.offset, left.min(CHUNK_BYTES)).await.map_err(BundleError::Stream)?;
        self.offset += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

// === impl Writing ===

impl Writing<'_> {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let Some(partial) = self.partial else { return Ok(()) };
        let len = chunk.len() as u64;
        partial.write_at(self.offset, vec![chunk]).await?;
        self.offset += len;
        self.syncing.wrote(len, partial.flush()).await
    }

    async fn end(mut self) -> Result<(), StoreError> {
        self.syncing.ended().await
    }
}

fn wrong(entry: &Entry) -> impl FnOnce(Mismatch) -> BundleError {
    let path = entry.path.clone();
    move |mismatch| BundleError::Wrong { path, mismatch }
}

// === impl Packing ===

impl Packing {
    /// How something is packed that begins like this.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}
