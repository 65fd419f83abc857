//! The task that brings a blob's bytes: from an origin, through the verifier, into the store.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, WhereLabels};
use crate::oci::{Mismatch, Verifier};
use crate::store::{Extent, Partial, Store, StoreError};
use crate::tasks::Pool;

use super::effort::Effort;
use super::error::FillError;
use super::fill::{Fill, OriginId};
use super::incoming::{Batch, Incoming};
use super::opening::is_whole;
use super::origin::{Origin, OriginBody, OriginError, OriginErrorKind};
use super::progress::Ahead;
use super::ranges::Rangeless;
use super::sized::Sized;

/// Blobs up to this size are held in memory and verified before their first byte goes out (law 2).
pub const SMALL_BYTES: u64 = 1024 * 1024;

/// What one upstream request fetches of a large blob.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// How downloads use upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that share a large blob.
    pub connections_per_blob: usize,
    /// Blobs that are known to be this large are asked for in segments.
    pub parallel_above_bytes: u64,
    /// What one request fetches of such a blob.
    pub segment_bytes: u64,
    /// Further connections of all blobs together: beyond each blob's first one. As many again may bring parts that clients
    /// wait for.
    pub extra_connections_max: usize,
    /// The rest of a blob is fetched, gently, once this share of it was wanted; in any case from 64 MiB on.
    pub complete_from_percent: u64,
    /// How long a blob of which parts were wanted is kept open for further ones.
    pub linger: Duration,
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
    /// Places for connections that bring parts, of all fills together.
    pub(super) parts_connections: Semaphore,
    /// Upstreams that answered a range with something else lately.
    pub(super) rangeless: Rangeless,
    /// Cancelled when all fills are to end.
    pub(super) stop: CancellationToken,
    /// How many fills have nothing to do but to wait for further wishes.
    pub(super) lingering: AtomicUsize,
    /// How many wait for all fills to end: meanwhile none lingers for parts that may yet be wanted.
    pub(super) hurried: watch::Sender<usize>,
}

/// How a transfer came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The blob is there.
    Filled(Transferred),
    /// Only parts of it were wanted. They are kept.
    Rests {
        /// How much of the blob is there.
        present_bytes: u64,
    },
}

/// What a finished transfer has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transferred {
    pub(super) size_bytes: u64,
    /// How much of it was there from an earlier run.
    pub(super) restored_bytes: u64,
    pub(super) effort: Effort,
}

/// An origin that answered, or will be asked.
pub(super) type OpenOrigin = (OriginId, Arc<dyn Origin>);

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_blob: 4,
            parallel_above_bytes: 32 * 1024 * 1024,
            segment_bytes: SEGMENT_BYTES,
            extra_connections_max: 256,
            complete_from_percent: 25,
            linger: Duration::from_secs(30),
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
            parts_connections: Semaphore::new(limits.extra_connections_max),
            stop: CancellationToken::new(),
            lingering: AtomicUsize::new(0),
            hurried: watch::Sender::new(0),
            rangeless: Rangeless::default(),
        }
    }

    /// Brings what is wanted of a blob; the progress says how it goes.
    pub(super) async fn run(&self, fill: &Fill) -> Result<Ended, FillError> {
        // Not to be given up in the middle: what an earlier run left would go.
        if let Some(sized) = self.take_up(fill).await {
            return sized.run().await;
        }
        let begin = async {
            let (origin, body) = self.begin(fill).await?;
            self.receive(fill, origin, body).await
        };
        let received = tokio::select! {
            received = begin => received?,
            () = self.stop.cancelled() => return Err(stopped(fill)),
        };
        match received {
            Received::All(size_bytes) => {
                let effort = Effort { connections: 1, ..Effort::default() };
                Ok(Ended::Filled(Transferred { size_bytes, restored_bytes: 0, effort }))
            }
            Received::Sized(sized) => sized.run().await,
        }
    }

    async fn receive<'a>(
        &'a self,
        fill: &'a Fill,
        origin: OpenOrigin,
        body: OriginBody,
    ) -> Result<Received<'a>, FillError> {
        match body.total_bytes {
            Some(size_bytes) if size_bytes > SMALL_BYTES => {
                // Where only parts are wanted, and upstream sends no more, no more is reserved.
                let sparse = fill.progress().ahead() == Ahead::Nothing && !is_whole(&body);
                let extent = if sparse { Extent::Sparse(size_bytes) } else { Extent::Whole(size_bytes) };
                let partial = self.partial(fill, extent).await?;
                let sized = Sized { tools: self, fill, origin, partial, first: Some(body), leftovers: None };
                Ok(Received::Sized(Box::new(sized)))
            }
            total => {
                let label = origin.1.label();
                Ok(Received::All(self.receive_small(fill, &label, Incoming::new(body), total).await?))
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

    /// A blob whose size nobody has said: one stream, to its end.
    async fn receive_stream(
        &self,
        fill: &Fill,
        origin: &str,
        mut incoming: Incoming,
        head: Vec<Bytes>,
    ) -> Result<u64, FillError> {
        let partial = self.partial(fill, Extent::Growing).await?;
        fill.progress().start_stream(partial.file());
        let mut verifier = Verifier::new(fill.key().digest, None);
        let mut batch = Batch { len: head.iter().map(|chunk| chunk.len() as u64).sum(), chunks: head, last: false };
        let mut written = 0;
        loop {
            let (chunks, len, last) = (batch.chunks.clone(), batch.len, batch.last);
            let write = async {
                partial.write_at(written, chunks).await.map_err(|error| not_storable(fill, &error))?;
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

    async fn partial(&self, fill: &Fill, extent: Extent) -> Result<Partial, FillError> {
        let key = fill.key();
        let created = self.store.create_partial(&key.registry, key.digest, extent).await;
        created.map_err(|error| not_storable(fill, &error))
    }

    /// Gives all of a blob to its readers once its digest is right, and commits it. A failure to commit costs the next
    /// client a download, this one's readers nothing: they have the file open.
    pub(super) async fn finish(
        &self,
        fill: &Fill,
        origin: &str,
        partial: Partial,
        verifier: Verifier,
        in_pieces: bool,
    ) -> Result<(), FillError> {
        let verified = verifier.finish().map_err(|mismatch| self.mismatch(origin, mismatch, in_pieces))?;
        let digest = verified.digest();
        fill.progress().verified_in_file(verified.size_bytes());
        if let Err(error) = partial.commit(verified).await {
            tracing::warn!(%digest, "could not keep {digest}: {error}; it is served all the same");
        }
        Ok(())
    }

    fn mismatch(&self, origin: &str, mismatch: Mismatch, in_pieces: bool) -> FillError {
        self.metrics.verify_failures.get_or_create(&WhereLabels { r#where: "upstream" }).inc();
        FillError::Mismatch { origin: origin.to_owned(), mismatch, in_pieces }
    }
}

/// What a transfer received, or what goes on receiving.
enum Received<'a> {
    All(u64),
    Sized(Box<Sized<'a>>),
}

/// The end of a fill when the server stops.
pub(super) fn stopped(fill: &Fill) -> FillError {
    FillError::Stopped { digest: fill.key().digest, reason: "the server is shutting down" }
}

/// The end of a fill that the store can't keep.
pub(super) fn not_storable(fill: &Fill, error: &StoreError) -> FillError {
    FillError::not_storable(fill.key().digest, error)
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
