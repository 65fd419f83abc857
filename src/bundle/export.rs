//! Export: held images become a bundle, each byte verified once more on its way out.

use bytes::Bytes;
use futures_util::future::join;
use futures_util::stream::{self, StreamExt as _};

use super::error::BundleError;
use super::files::{self, CHUNK_BYTES, NewFile, NewFolder, Outgoing};
use super::hashing::Hashing;
use super::plan::{Exported, Plan, PlannedContent};
use super::selection::Wanted;
use super::writing::{Archive, Destination, Folder, Sink, Target};
use super::{Progress, Seen};
use crate::oci::Digest;
use crate::store::Store;
use crate::tasks::Pool;

/// So many chunks of a blob are read ahead.
const READ_AHEAD: usize = 3;

/// Writes a bundle. The same content always makes the same bytes.
///
/// Where the bundle has a name it gets that at the very end. A stream that broke off in the middle ends within a file, and
/// never behind a wrong byte's blob.
pub async fn export(
    store: &Store,
    wanted: &Wanted,
    destination: Destination,
    seen: &Seen<'_>,
) -> Result<Exported, BundleError> {
    let plan = Plan::of(store, wanted).await?;
    plan.write(store, destination, seen).await?;
    Ok(plan.exported)
}

// === impl Plan ===

impl Plan {
    /// Writes the bundle, as [`export`] does.
    pub async fn write(&self, store: &Store, destination: Destination, seen: &Seen<'_>) -> Result<(), BundleError> {
        let pool = files::pool()?;
        match destination {
            Destination::File(path) if files::is_special(&path) => {
                let outgoing = Outgoing::special(&path, &pool)?;
                self.write_to(store, &pool, &mut Archive::new(Target::File(outgoing)), seen).await
            }
            Destination::File(path) => {
                let file = NewFile::beside(&path)?;
                let outgoing = file.outgoing(&pool)?;
                self.write_to(store, &pool, &mut Archive::new(Target::File(outgoing)), seen).await?;
                file.keep()
            }
            Destination::Folder(path) => {
                let folder = NewFolder::beside(&path)?;
                let mut sink = Folder::new(folder.path().to_owned(), pool.clone());
                self.write_to(store, &pool, &mut sink, seen).await?;
                folder.keep()
            }
            Destination::Stdout => {
                let outgoing = Outgoing::stdout(&pool)?;
                self.write_to(store, &pool, &mut Archive::new(Target::File(outgoing)), seen).await
            }
            Destination::Stream(stream) => {
                self.write_to(store, &pool, &mut Archive::new(Target::Stream(stream)), seen).await
            }
        }
    }

    async fn write_to(
        &self,
        store: &Store,
        pool: &Pool,
        sink: &mut impl Sink,
        seen: &Seen<'_>,
    ) -> Result<(), BundleError> {
        let mut progress = Progress { done_bytes: 0, total_bytes: Some(self.exported.bytes) };
        seen(&progress);
        for file in &self.files {
            sink.begin(&file.path, file.size_bytes).await?;
            match &file.content {
                PlannedContent::Document(content) => sink.write(Bytes::copy_from_slice(content)).await?,
                PlannedContent::Folder => {}
                PlannedContent::Blob(digest) => {
                    let mut wrote = |bytes| {
                        progress.done_bytes += bytes;
                        seen(&progress);
                    };
                    write_blob(store, *digest, file.size_bytes, pool, sink, &mut wrote).await?;
                }
            }
            sink.end().await?;
        }
        sink.finish().await
    }
}

/// Writes a blob. Its last bytes follow when its digest is known to be right.
async fn write_blob(
    store: &Store,
    digest: Digest,
    size_bytes: u64,
    pool: &Pool,
    sink: &mut impl Sink,
    wrote: &mut (dyn FnMut(u64) + Send),
) -> Result<(), BundleError> {
    let blob = store.open_for_one_look(&digest).await?.filter(|blob| blob.size_bytes() == size_bytes);
    let blob = blob.ok_or(BundleError::Gone(digest))?;
    let mut hashing = Hashing::new(digest, size_bytes, pool);
    let reads = (0..size_bytes).step_by(CHUNK_BYTES).map(|offset| {
        let left = usize::try_from(size_bytes - offset).unwrap_or(usize::MAX);
        blob.read_at(offset, left.min(CHUNK_BYTES))
    });
    let mut reads = stream::iter(reads).buffered(READ_AHEAD);
    let mut last = Bytes::new();
    while let Some(bytes) = reads.next().await {
        let bytes = bytes?;
        let whole = std::mem::replace(&mut last, bytes.clone());
        wrote(whole.len() as u64);
        let ((), written) = join(hashing.update(bytes), sink.write(whole)).await;
        written?;
    }
    hashing.finish().map_err(|mismatch| BundleError::Damaged { digest, mismatch })?;
    wrote(last.len() as u64);
    sink.write(last).await
}
