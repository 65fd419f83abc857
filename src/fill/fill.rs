//! One download in progress: its origins, its readers, and the task that brings the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::metrics::Metrics;
use crate::oci::range::ByteRange;
use crate::oci::{Digest, RegistryName};

use super::demand::Demand;
use super::error::FillError;
use super::origin::{Origin, OriginError, OriginErrorKind};
use super::phase::Head;
use super::progress::Progress;
use super::reader::FillReader;
use super::snapshot::FillSnapshot;
use super::transfer::{Ended, Transferred};

/// What a fill is known by: downloads are shared per digest *and* upstream, so that an upstream that lies about a
/// digest disturbs nobody else's clients (law 3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FillKey {
    /// The upstream.
    pub registry: RegistryName,
    /// The blob.
    pub digest: Digest,
}

/// One download in progress. It belongs to no request: it goes on when every reader has left (law 4).
#[derive(Debug)]
pub struct Fill {
    key: FillKey,
    expected_bytes: Option<u64>,
    progress: Progress,
    origins: Mutex<Origins>,
    readers_served: AtomicU64,
    readers_now: AtomicU64,
    started: Instant,
    metrics: Arc<Metrics>,
    /// Cancelled when it has left the table.
    left: CancellationToken,
}

/// What one client wants of a fill, until it's dropped.
#[derive(Debug)]
pub struct Want {
    fill: Arc<Fill>,
    number: u64,
}

/// Names one origin of one fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginId(usize);

impl OriginId {
    /// The origin that a fill was started with.
    pub(super) const LEADER: Self = Self(0);
}

#[derive(Debug)]
struct Origins {
    all: Vec<OriginEntry>,
    /// The first one that has not been tried.
    next: usize,
}

#[derive(Debug)]
struct OriginEntry {
    origin: Arc<dyn Origin>,
    failed: Option<OriginError>,
}

/// A bound on the origins that one fill remembers. A joiner beyond it only reads.
const ORIGINS_MAX: usize = 64;

// === impl Fill ===

impl Fill {
    pub(super) fn new(
        key: FillKey,
        expected_bytes: Option<u64>,
        origin: Arc<dyn Origin>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            key,
            expected_bytes,
            progress: Progress::new(),
            left: CancellationToken::new(),
            origins: Mutex::new(Origins { all: vec![OriginEntry { origin, failed: None }], next: 0 }),
            readers_served: AtomicU64::new(0),
            readers_now: AtomicU64::new(0),
            started: Instant::now(),
            metrics,
        }
    }

    /// What is being filled.
    pub fn key(&self) -> &FillKey {
        &self.key
    }

    /// How large a manifest says that it is: a hint for how to ask, and nothing more.
    pub(super) fn expected_bytes(&self) -> Option<u64> {
        self.expected_bytes
    }

    /// Takes in what a client wants. `None` if it has ended, or is about to: then [`left`](Self::left) tells when another one
    /// can be started.
    pub(super) fn want(self: &Arc<Self>, demand: &Demand) -> Option<Want> {
        let number = self.progress.want(demand)?;
        Some(Want { fill: Arc::clone(self), number })
    }

    /// Waits until the byte at `first` is there, or is known to lie beyond the blob's end. A small blob is verified by then.
    pub async fn head(&self, first: u64) -> Result<Head, FillError> {
        self.progress.head(first).await
    }

    /// Waits until it has left the table.
    pub async fn left(&self) {
        self.left.cancelled().await;
    }

    pub(super) fn note_left(&self) {
        self.left.cancel();
    }

    /// Waits until the size is known.
    pub async fn size(&self) -> Result<u64, FillError> {
        self.progress.size().await
    }

    /// What `origin` answered, if it failed: whoever brought it has no right to what another origin gave.
    pub fn failure_of(&self, origin: OriginId) -> Option<OriginError> {
        self.origins.lock().all.get(origin.0).and_then(|entry| entry.failed.clone())
    }

    /// A reader of `ranges` one after the other, or of the whole blob. See [`FillReader`].
    pub fn reader(self: &Arc<Self>, ranges: Option<&[ByteRange]>, wait_for_verified: bool) -> FillReader {
        FillReader::new(Arc::clone(self), ranges, wait_for_verified, None)
    }

    /// Adds a way to get the bytes, in case those before it fail. One that is there already is not added again: what
    /// failed for the first client of a repository would fail for each of the others. `None` when there are too many.
    pub(super) fn add_origin(&self, origin: Arc<dyn Origin>) -> Option<OriginId> {
        let mut origins = self.origins.lock();
        let label = origin.label();
        if let Some(known) = origins.all.iter().position(|entry| entry.origin.label() == label) {
            return Some(OriginId(known));
        }
        if origins.all.len() >= ORIGINS_MAX {
            return None;
        }
        origins.all.push(OriginEntry { origin, failed: None });
        Some(OriginId(origins.all.len() - 1))
    }

    pub(super) fn next_origin(&self) -> Option<(OriginId, Arc<dyn Origin>)> {
        let mut origins = self.origins.lock();
        let id = origins.next;
        let origin = Arc::clone(&origins.all.get(id)?.origin);
        origins.next += 1;
        Some((OriginId(id), origin))
    }

    pub(super) fn origin_failed(&self, origin: OriginId, error: &OriginError) {
        if let Some(entry) = self.origins.lock().all.get_mut(origin.0) {
            entry.failed = Some(error.clone());
        }
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    pub(super) fn reader_came(&self) {
        self.readers_served.fetch_add(1, Ordering::Relaxed);
        self.readers_now.fetch_add(1, Ordering::Relaxed);
        self.metrics.fill_readers.inc();
    }

    pub(super) fn reader_left(&self) {
        self.readers_now.fetch_sub(1, Ordering::Relaxed);
        self.metrics.fill_readers.dec();
    }

    /// Where it stands.
    pub(super) fn snapshot(&self) -> FillSnapshot {
        let origins = self.origins.lock();
        let tried = origins.next.saturating_sub(1).min(origins.all.len().saturating_sub(1));
        let origin = origins.all.get(tried).map(|entry| entry.origin.label()).unwrap_or_default();
        drop(origins);
        FillSnapshot {
            registry: self.key.registry.clone(),
            digest: self.key.digest,
            origin,
            progress: self.progress.stage(),
            expected_bytes: self.expected_bytes,
            readers: self.readers_now.load(Ordering::Relaxed),
            readers_served: self.readers_served.load(Ordering::Relaxed),
            elapsed: self.started.elapsed(),
        }
    }

    /// The one log line of a fill.
    pub(super) fn log_end(&self, result: Result<Ended, &FillError>) {
        let registry = self.key.registry.as_str();
        let digest = self.key.digest.to_string();
        let readers = self.readers_served.load(Ordering::Relaxed);
        let duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(Ended::Filled(Transferred { size_bytes, restored_bytes, effort })) => tracing::info!(
                registry,
                digest,
                size_bytes,
                restored_bytes,
                duration_ms,
                readers,
                connections = effort.connections,
                segments = effort.segments,
                resumes = effort.resumes,
                twice_bytes = effort.twice_bytes,
                "filled {digest} from {registry}"
            ),
            Ok(Ended::Rests { present_bytes }) => tracing::info!(
                registry,
                digest,
                present_bytes,
                duration_ms,
                readers,
                "{digest} from {registry} rests with what was wanted of it"
            ),
            // The client's 404, told in its own line.
            Err(error @ FillError::Origin(OriginError { kind: OriginErrorKind::NotFound, .. })) => {
                tracing::debug!(
                    registry,
                    digest,
                    duration_ms,
                    readers,
                    "fill of {digest} from {registry} failed: {error}"
                );
            }
            Err(error @ FillError::Stopped { .. }) => {
                tracing::info!(
                    registry,
                    digest,
                    duration_ms,
                    readers,
                    "fill of {digest} from {registry} ended: {error}"
                );
            }
            Err(error) => {
                if matches!(error, FillError::Mismatch { .. }) {
                    audit::decided("wrong content refused", &format!("{digest} from {registry}"), error);
                }
                tracing::warn!(
                    registry,
                    digest,
                    duration_ms,
                    readers,
                    "fill of {digest} from {registry} failed: {error}"
                );
            }
        }
    }
}

// === impl Want ===

impl Want {
    /// A reader of `ranges` one after the other, or of the whole blob, for which they stay wanted. See [`FillReader`].
    pub fn into_reader(self, ranges: Option<&[ByteRange]>, wait_for_verified: bool) -> FillReader {
        FillReader::new(Arc::clone(&self.fill), ranges, wait_for_verified, Some(self))
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        self.fill.progress.unwant(self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::fill::{OriginBody, Priority};

    #[derive(Debug)]
    struct Named(&'static str);

    impl Origin for Named {
        fn host(&self) -> String {
            String::new()
        }

        fn label(&self) -> String {
            self.0.to_owned()
        }

        fn fetch(&self, _: Option<ByteRange>, _: Priority) -> BoxFuture<'_, Result<OriginBody, OriginError>> {
            std::future::pending().boxed()
        }
    }

    #[test]
    fn a_hundred_clients_of_one_repository_are_one_origin() {
        let key = FillKey { registry: "docker.io".parse().unwrap(), digest: Digest::sha256(b"") };
        let fill = Fill::new(key, None, Arc::new(Named("a")), Arc::new(Metrics::new()));
        for _ in 0..100 {
            assert_eq!(fill.add_origin(Arc::new(Named("a"))), Some(OriginId::LEADER));
        }
        assert_eq!(fill.add_origin(Arc::new(Named("b"))), Some(OriginId(1)));
        let tried: Vec<_> = std::iter::from_fn(|| fill.next_origin()).map(|(_, origin)| origin.label()).collect();
        assert_eq!(tried, ["a", "b"]);
    }
}
