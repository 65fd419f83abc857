//! The task that brings a blob's bytes: from an origin, through the verifier, into the store.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future;
use tokio::sync::Semaphore;

use crate::metrics::{Metrics, WhereLabels};
use crate::oci::range::ByteRange;
use crate::oci::{Mismatch, RegistryName, Verifier};
use crate::store::{Partial, Store};
use crate::tasks::Pool;

use super::connections::Connections;
use super::error::FillError;
use super::fill::{Fill, OriginId};
use super::hashing;
use super::incoming::{Batch, Incoming};
use super::origin::{Origin, OriginBody, OriginError, OriginErrorKind};
use super::segments::Segments;

/// Blobs up to this size are held in memory and verified before their first byte goes out (law 2).
pub const SMALL_BYTES: u64 = 1024 * 1024;

/// What one upstream request fetches of a large blob.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// How long an upstream that answered a range with something else is asked for whole blobs only.
const WITHOUT_RANGES_FOR: Duration = Duration::from_mins(10);

/// How many such upstreams are remembered.
const WITHOUT_RANGES_MAX: u64 = 1000;

/// How downloads use upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that share a large blob.
    pub connections_per_blob: usize,
    /// Blobs that are known to be this large are asked for in segments.
    pub parallel_above_bytes: u64,
    /// What one request fetches of such a blob.
    pub segment_bytes: u64,
    /// Further connections of all blobs together: beyond each blob's first one.
    pub extra_connections_max: usize,
}

/// What a transfer needs besides its fill.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) store: Store,
    pub(super) hashing: Pool,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Limits,
    /// Places for further connections, of all fills together.
    pub(super) extra_connections: Semaphore,
    /// Upstreams that answered a range with something else lately.
    pub(super) without_ranges: moka::sync::Cache<RegistryName, ()>,
}

/// What a finished transfer has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transferred {
    pub(super) size_bytes: u64,
    /// How often a broken body was resumed.
    pub(super) resumes: u64,
}

type OpenOrigin = (OriginId, Arc<dyn Origin>);

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_blob: 4,
            parallel_above_bytes: 32 * 1024 * 1024,
            segment_bytes: SEGMENT_BYTES,
            extra_connections_max: 256,
        }
    }
}

// === impl Tools ===

impl Tools {
    pub(super) fn new(store: Store, hashing: Pool, metrics: Arc<Metrics>, limits: Limits) -> Self {
        Self {
            store,
            hashing,
            metrics,
            limits,
            extra_connections: Semaphore::new(limits.extra_connections_max),
            without_ranges: moka::sync::Cache::builder()
                .max_capacity(WITHOUT_RANGES_MAX)
                .time_to_live(WITHOUT_RANGES_FOR)
                .build(),
        }
    }

    /// Tries the fill's origins in turn until one begins to give the blob; the progress says how it went.
    pub(super) async fn run(&self, fill: &Fill) -> Result<Transferred, FillError> {
        let mut last_error = None;
        while let Some((id, origin)) = fill.next_origin() {
            match self.open(fill, &*origin).await {
                Ok(body) => return self.receive(fill, (id, origin), body).await,
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

    /// Asks for the first segment of a blob that is known to be large, for all of any other.
    async fn open(&self, fill: &Fill, origin: &dyn Origin) -> Result<OriginBody, OriginError> {
        let large = fill.expected_bytes().is_some_and(|size| size >= self.limits.parallel_above_bytes);
        let ranges = large && !self.without_ranges.contains_key(&fill.key().registry);
        if ranges {
            let first = ByteRange { first: 0, last: self.limits.segment_bytes - 1 };
            match origin.fetch(Some(first)).await {
                Ok(body) if body.offset == 0 && body.total_bytes.is_some() => return Ok(body),
                // Nothing that can be used; a plain request may bring the blob all the same.
                Err(error) if error.kind != OriginErrorKind::Unusable => return Err(error),
                Ok(_) | Err(_) => self.without_ranges.insert(fill.key().registry.clone(), ()),
            }
        }
        let body = origin.fetch(None).await?;
        if body.offset == 0 && (body.end.is_none() || body.end == body.total_bytes) {
            return Ok(body);
        }
        Err(OriginError {
            kind: OriginErrorKind::Unusable,
            message: format!("{} answered with a part of the blob that was not asked for", origin.label()).into(),
        })
    }

    async fn receive(&self, fill: &Fill, origin: OpenOrigin, body: OriginBody) -> Result<Transferred, FillError> {
        match body.total_bytes {
            Some(size_bytes) if size_bytes > SMALL_BYTES => self.receive_sized(fill, origin, body, size_bytes).await,
            total => {
                let size_bytes = self.receive_small(fill, &origin.1.label(), Incoming::new(body), total).await?;
                Ok(Transferred { size_bytes, resumes: 0 })
            }
        }
    }

    /// Takes a body into memory as long as it stays small.
    async fn receive_small(
        &self,
        fill: &Fill,
        origin: &str,
        mut incoming: Incoming,
        total: Option<u64>,
    ) -> Result<u64, FillError> {
        let (mut chunks, mut len) = (Vec::new(), 0);
        while let Some(chunk) = incoming.next().await? {
            len += chunk.len() as u64;
            chunks.push(chunk);
            if total.is_some_and(|total| len > total) {
                return Err(too_long(total));
            }
            if len > SMALL_BYTES {
                return self.receive_stream(fill, origin, incoming, chunks).await;
            }
        }
        self.finish_small(fill, origin, chunks, total).await
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
            .map_err(|mismatch| self.mismatch(origin, mismatch, false))?;
        let size_bytes = verified.size_bytes();
        fill.progress().verified_in_memory(bytes.clone());
        if let Err(error) = self.store.put_blob(verified, bytes).await {
            tracing::warn!(%digest, "could not keep {digest}: {error}; it is served all the same");
        }
        Ok(size_bytes)
    }

    /// A blob whose size is known and not small: in segments where upstream lets us.
    async fn receive_sized(
        &self,
        fill: &Fill,
        origin: OpenOrigin,
        body: OriginBody,
        size_bytes: u64,
    ) -> Result<Transferred, FillError> {
        let partial = self.partial(fill, Some(size_bytes)).await?;
        let file = partial.file();
        let window = 2 * self.limits.connections_per_blob as u64 * self.limits.segment_bytes;
        let segments = Segments::new(size_bytes, self.limits.segment_bytes, window);
        fill.progress().start_segments(Arc::clone(&file), segments);

        let verifier = Verifier::new(fill.key().digest, Some(size_bytes));
        let connections = Connections::new(self, fill, size_bytes, partial, origin);
        let hash = async {
            let hashed = hashing::follow(fill.progress(), &file, size_bytes, &self.hashing, verifier).await;
            hashed.map_err(|error| self.not_storable(fill, &error))
        };
        let (resumes, verifier) = future::try_join(connections.run(body), hash).await?;
        drop(file);
        let (in_pieces, label) = (connections.in_pieces(), connections.label());
        self.finish(fill, &label, connections.into_partial(), verifier, in_pieces).await?;
        Ok(Transferred { size_bytes, resumes })
    }

    /// A blob whose size nobody has said: one stream, to its end.
    async fn receive_stream(
        &self,
        fill: &Fill,
        origin: &str,
        mut incoming: Incoming,
        head: Vec<Bytes>,
    ) -> Result<u64, FillError> {
        let mut partial = self.partial(fill, None).await?;
        fill.progress().start_stream(partial.file());
        let mut verifier = Verifier::new(fill.key().digest, None);
        let mut batch = Batch { len: head.iter().map(|chunk| chunk.len() as u64).sum(), chunks: head, last: false };
        let mut written = 0;
        loop {
            let (chunks, len, last) = (batch.chunks.clone(), batch.len, batch.last);
            let write = async {
                partial.write_at(written, chunks).await.map_err(|error| self.not_storable(fill, &error))?;
                fill.progress().advance(written + len);
                Ok::<_, FillError>(())
            };
            let hash = self.hashing.run(move || {
                for chunk in &batch.chunks {
                    verifier.update(chunk);
                }
                verifier
            });
            let gather = async { if last { Ok(None) } else { incoming.batch(u64::MAX, false).await.map(Some) } };
            let (wrote, hashed, next) = future::join3(write, hash, gather).await;
            wrote?;
            verifier = hashed;
            written += len;
            match next? {
                Some(next) => batch = next,
                None => break,
            }
        }
        self.finish(fill, origin, partial, verifier, false).await?;
        Ok(written)
    }

    async fn partial(&self, fill: &Fill, size_bytes: Option<u64>) -> Result<Partial, FillError> {
        let key = fill.key();
        let reservation =
            self.store.reserve(size_bytes.unwrap_or(0)).await.map_err(|error| self.not_storable(fill, &error))?;
        let created = self.store.create_partial(&key.registry, key.digest, size_bytes, reservation).await;
        created.map_err(|error| self.not_storable(fill, &error))
    }

    /// Gives all of a blob to its readers once its digest is right, and commits it. A failure to commit costs the next
    /// client a download, this one's readers nothing: they have the file open.
    async fn finish(
        &self,
        fill: &Fill,
        origin: &str,
        partial: Partial,
        verifier: Verifier,
        in_pieces: bool,
    ) -> Result<(), FillError> {
        let verified = verifier.finish().map_err(|mismatch| {
            if in_pieces {
                self.without_ranges.insert(fill.key().registry.clone(), ());
            }
            self.mismatch(origin, mismatch, in_pieces)
        })?;
        let digest = verified.digest();
        fill.progress().verified_in_file(verified.size_bytes());
        if let Err(error) = partial.commit(verified).await {
            tracing::warn!(%digest, "could not keep {digest}: {error}; it is served all the same");
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "reads as what it is: a verdict of these tools")]
    fn not_storable(&self, fill: &Fill, error: &dyn std::error::Error) -> FillError {
        FillError::NotStorable { digest: fill.key().digest, reason: error.to_string().into() }
    }

    fn mismatch(&self, origin: &str, mismatch: Mismatch, in_pieces: bool) -> FillError {
        self.metrics.verify_failures.get_or_create(&WhereLabels { r#where: "upstream" }).inc();
        FillError::Mismatch { origin: origin.to_owned(), mismatch, in_pieces }
    }
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
