//! The task that brings a blob's bytes: from an origin, through the verifier, into the store.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, future};
use tokio::time::{Instant, timeout_at};

use crate::metrics::{Metrics, WhereLabels};
use crate::oci::{Verified, Verifier};
use crate::store::{Partial, Store};
use crate::tasks::Pool;

use super::error::FillError;
use super::fill::Fill;
use super::origin::{OriginBody, OriginError, OriginErrorKind};

/// Blobs up to this size are held in memory and verified before their first byte goes out (law 2).
pub const SMALL_BYTES: u64 = 1024 * 1024;

/// How much is written and hashed at a time once bytes arrive quickly.
const BATCH_BYTES: usize = 1024 * 1024;

/// How long bytes wait for company before they are written and readers are woken.
const LINGER: Duration = Duration::from_millis(5);

/// What a transfer needs besides its fill.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    pub(super) store: Store,
    pub(super) hashing: Pool,
    pub(super) metrics: Arc<Metrics>,
}

/// Bytes that arrived together.
#[derive(Debug, Default)]
struct Batch {
    chunks: Vec<Bytes>,
    len: u64,
    last: bool,
}

// === impl Tools ===

impl Tools {
    /// Tries the fill's origins in turn until one gives the blob; the progress says how it went. Returns its size.
    pub(super) async fn run(&self, fill: &Fill) -> Result<u64, FillError> {
        let mut last_error = None;
        while let Some((id, origin)) = fill.next_origin() {
            let answered = match origin.fetch(0).await {
                Ok(body) if body.offset == 0 => Ok(body),
                Ok(_) => Err(OriginError {
                    kind: OriginErrorKind::Unusable,
                    message: format!("{} answered a request for a whole blob with a part of it", origin.label()).into(),
                }),
                Err(error) => Err(error),
            };
            match answered {
                Ok(body) => return self.receive(fill, &origin.label(), body).await,
                Err(error) => {
                    fill.origin_failed(id, &error);
                    last_error = Some(error);
                }
            }
        }
        // A fill starts with one origin, so there is an error when the last one has been tried.
        Err(last_error.map_or(
            FillError::Stopped { digest: fill.key().digest, reason: "it has nowhere to download from" },
            FillError::Origin,
        ))
    }

    async fn receive(&self, fill: &Fill, origin: &str, mut body: OriginBody) -> Result<u64, FillError> {
        let small = body.total_bytes.is_none_or(|total| total <= SMALL_BYTES);
        let mut head = Vec::new();
        if small {
            let whole = collect_small(&mut body, &mut head).await?;
            if whole {
                return self.finish_small(fill, origin, head, body.total_bytes).await;
            }
        }
        self.receive_large(fill, origin, body, head).await
    }

    /// Verifies a blob that is all in memory, gives it to the readers, and keeps it.
    async fn finish_small(
        &self,
        fill: &Fill,
        origin: &str,
        chunks: Vec<Bytes>,
        total_bytes: Option<u64>,
    ) -> Result<u64, FillError> {
        let digest = fill.key().digest;
        let bytes = concatenate(chunks);
        let hashed = bytes.clone();
        let verified = self
            .hashing
            .run(move || {
                let mut verifier = Verifier::new(digest, total_bytes);
                verifier.update(&hashed);
                verifier.finish()
            })
            .await
            .map_err(|mismatch| self.mismatch(origin, mismatch))?;
        let size_bytes = verified.size_bytes();
        fill.progress().verified_in_memory(bytes.clone());
        if let Err(error) = self.store.put_blob(verified, bytes).await {
            tracing::warn!(%digest, %error, "could not keep {digest}: {error}; it is served all the same");
        }
        Ok(size_bytes)
    }

    async fn receive_large(
        &self,
        fill: &Fill,
        origin: &str,
        mut body: OriginBody,
        head: Vec<Bytes>,
    ) -> Result<u64, FillError> {
        let digest = fill.key().digest;
        let total = body.total_bytes;
        let not_storable = |reason: String| FillError::NotStorable { digest, reason: reason.into() };
        let reservation =
            self.store.reserve(total.unwrap_or(SMALL_BYTES)).await.map_err(|error| not_storable(error.to_string()))?;
        let mut partial = self
            .store
            .create_partial(&fill.key().registry, digest, total, reservation)
            .await
            .map_err(|error| not_storable(error.to_string()))?;
        fill.progress().start(partial.file(), total);

        let mut verifier = Verifier::new(digest, total);
        let mut batch = if head.is_empty() { Batch::gather(&mut body, total, 0).await? } else { Batch::of(head) };
        let mut written = 0;
        loop {
            let chunks = batch.chunks.clone();
            let end = written + batch.len;
            let write = async {
                if !chunks.is_empty() {
                    partial.write_at(written, chunks).await.map_err(|error| not_storable(error.to_string()))?;
                }
                fill.progress().advance(end);
                Ok::<_, FillError>(())
            };
            let hash = self.hashing.run(move || {
                for chunk in &batch.chunks {
                    verifier.update(chunk);
                }
                verifier
            });
            let gather =
                async { if batch.last { Ok(None) } else { Batch::gather(&mut body, total, end).await.map(Some) } };
            let (wrote, hashed, next) = future::join3(write, hash, gather).await;
            wrote?;
            verifier = hashed;
            written = end;
            match next? {
                Some(next) => batch = next,
                None => break,
            }
        }
        let verified = verifier.finish().map_err(|mismatch| self.mismatch(origin, mismatch))?;
        let size_bytes = verified.size_bytes();
        fill.progress().verified_in_file(size_bytes);
        self.keep(partial, verified).await;
        Ok(size_bytes)
    }

    /// Commits a verified partial. A failure costs the next client a download, this one's readers nothing: they have
    /// the file open.
    async fn keep(&self, partial: Partial, verified: Verified) {
        let digest = verified.digest();
        if let Err(error) = partial.commit(verified).await {
            tracing::warn!(%digest, %error, "could not keep {digest}: {error}; it is served all the same");
        }
    }

    fn mismatch(&self, origin: &str, mismatch: crate::oci::Mismatch) -> FillError {
        self.metrics.verify_failures.get_or_create(&WhereLabels { r#where: "upstream" }).inc();
        FillError::Mismatch { origin: origin.to_owned(), mismatch }
    }
}

// === impl Batch ===

impl Batch {
    fn of(chunks: Vec<Bytes>) -> Self {
        let len = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        Self { chunks, len, last: false }
    }

    /// Waits for bytes, then takes what follows within [`LINGER`], up to [`BATCH_BYTES`]. The first bytes of a blob
    /// don't linger. Bytes beyond `total` are never taken.
    async fn gather(body: &mut OriginBody, total: Option<u64>, received: u64) -> Result<Self, FillError> {
        let mut batch = Self::default();
        let mut deadline = None;
        loop {
            let next = match deadline {
                None => Ok(body.body.next().await),
                Some(deadline) => timeout_at(deadline, body.body.next()).await,
            };
            match next {
                Err(_elapsed) => return Ok(batch),
                Ok(None) => {
                    batch.last = true;
                    return Ok(batch);
                }
                Ok(Some(Err(error))) => return Err(error.into()),
                Ok(Some(Ok(chunk))) => {
                    batch.len += chunk.len() as u64;
                    if total.is_some_and(|total| received + batch.len > total) {
                        return Err(too_long(total));
                    }
                    batch.chunks.push(chunk);
                }
            }
            if batch.len >= BATCH_BYTES as u64 {
                return Ok(batch);
            }
            if received == 0 {
                return Ok(batch);
            }
            deadline.get_or_insert_with(|| Instant::now() + LINGER);
        }
    }
}

/// Takes a body into memory as long as it stays small. Says whether that was all of it.
async fn collect_small(body: &mut OriginBody, chunks: &mut Vec<Bytes>) -> Result<bool, FillError> {
    let mut len = 0;
    while let Some(chunk) = body.body.next().await {
        let chunk = chunk?;
        len += chunk.len() as u64;
        chunks.push(chunk);
        if body.total_bytes.is_some_and(|total| len > total) {
            return Err(too_long(body.total_bytes));
        }
        if len > SMALL_BYTES {
            return Ok(false);
        }
    }
    Ok(true)
}

fn too_long(total: Option<u64>) -> FillError {
    FillError::Origin(OriginError {
        kind: OriginErrorKind::Unusable,
        message: format!("upstream sent more than the {} bytes that it announced", total.unwrap_or_default()).into(),
    })
}

fn concatenate(mut chunks: Vec<Bytes>) -> Bytes {
    if chunks.len() == 1 {
        return chunks.remove(0);
    }
    let mut whole = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    for chunk in chunks {
        whole.extend_from_slice(&chunk);
    }
    whole.freeze()
}
