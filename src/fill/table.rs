//! The fills in progress: who starts one, who joins, and how each leaves the table on every path.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::oci::{Digest, Verifier};
use crate::store::Store;
use crate::tasks::{self, Pool};

use super::demand::Demand;
use super::error::{FillError, Unstorable};
use super::fill::{Fill, FillKey, OriginId, Want};
use super::hashing::hash_start;
use super::origin::Origin;
use super::passthrough::{PassThrough, pass_on};
use super::reader::Interrupted;
use super::snapshot::{FillSnapshot, Stage};
use super::transfer::{Ended, Limits, Tools};

/// How long wrong content is remembered. In that time a client that resumes gets an error before headers, and so moves
/// on to its next host, instead of another short body.
const MISMATCH_MEMORY: Duration = Duration::from_secs(10);

/// How long the disk is left alone after it took no writes.
const STALL_MEMORY: Duration = Duration::from_secs(10);

/// How many mismatches are remembered at most.
const MISMATCHES_MAX: u64 = 10_000;

/// All fills in progress.
#[derive(Clone, Debug)]
pub struct Fills(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tools: Tools,
    table: Mutex<HashMap<FillKey, Arc<Fill>>>,
    mismatches: moka::sync::Cache<FillKey, FillError>,
    in_flight: watch::Sender<usize>,
    /// When the disk last took no writes.
    stalled: Mutex<Option<Instant>>,
    /// How many clients of a blob are served past a disk that takes no writes.
    passing: Mutex<HashMap<FillKey, usize>>,
}

/// What [`Fills::open`] found.
#[derive(Debug)]
pub enum Opened {
    /// The store has it.
    Held,
    /// It's being filled.
    Filling {
        /// The download.
        fill: Arc<Fill>,
        /// Our origin's place in it; `None` when it had enough of them.
        origin: Option<OriginId>,
        /// Somebody else had started it.
        joined: bool,
        /// What is there already was fetched by others: whoever reads it must have proven its right to it.
        shared: bool,
        /// Keeps what is wanted wanted.
        want: Want,
    },
    /// A fill is about to end. Once it [`left`](Fill::left), another can be started.
    Leaving(Arc<Fill>),
    /// A moment ago the disk took no writes: what is not held is passed through.
    Stalled,
    /// A moment ago upstream sent wrong content under this digest.
    Mismatched(FillError),
}

// === impl Fills ===

impl Fills {
    /// No fills yet. They write to `store`, hash on `hashing`, and use upstream within `limits`.
    pub fn new(store: Store, hashing: Pool, metrics: Arc<Metrics>, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            tools: Tools::new(store, hashing, metrics, limits),
            table: Mutex::new(HashMap::new()),
            stalled: Mutex::new(None),
            passing: Mutex::default(),
            mismatches: moka::sync::Cache::builder().max_capacity(MISMATCHES_MAX).time_to_live(MISMATCH_MEMORY).build(),
            in_flight: watch::Sender::new(0),
        }))
    }

    /// Whether something of a blob that is not held is there: it's being filled, or was.
    pub fn knows(&self, key: &FillKey) -> bool {
        self.0.table.lock().contains_key(key) || self.0.tools.store.has_resting(&key.registry, &key.digest)
    }

    /// Joins the fill of `key`, or starts one from `origin`, and has it bring what is demanded. The caller has proven its right
    /// where [`knows`](Self::knows) said so before, and does so now where `shared` says it. `expected_bytes` is what a manifest says of the blob's size: it decides how upstream is asked, and nothing
    /// more.
    ///
    /// A commit enters the store's index *before* its fill leaves the table, so looking into the index under the
    /// table's lock can't miss both.
    pub fn open(&self, key: FillKey, expected_bytes: Option<u64>, origin: Arc<dyn Origin>, demand: &Demand) -> Opened {
        if let Some(error) = self.0.mismatches.get(&key) {
            return Opened::Mismatched(error);
        }
        let mut table = self.0.table.lock();
        if let Some(fill) = table.get(&key) {
            let fill = Arc::clone(fill);
            drop(table);
            let Some(want) = fill.want(demand) else { return Opened::Leaving(fill) };
            let origin = fill.add_origin(origin);
            return Opened::Filling { fill, origin, joined: true, shared: true, want };
        }
        if self.0.tools.store.size_of(&key.digest).is_some() {
            return Opened::Held;
        }
        if self.0.stalled.lock().is_some_and(|since| since.elapsed() < STALL_MEMORY) {
            return Opened::Stalled;
        }
        let shared = self.0.tools.store.has_resting(&key.registry, &key.digest);
        let fill = Arc::new(Fill::new(key.clone(), expected_bytes, origin, Arc::clone(&self.0.tools.metrics)));
        // A new one takes in whatever is wanted.
        let Some(want) = fill.want(demand) else { return Opened::Leaving(fill) };
        table.insert(key, Arc::clone(&fill));
        let guard = TableEntry::new(Arc::clone(&self.0), Arc::clone(&fill));
        drop(table);
        tasks::spawn("fill", guard.run());
        Opened::Filling { fill, origin: Some(OriginId::LEADER), joined: false, shared, want }
    }

    /// A place among the clients of a blob that are served past a disk that takes no writes; `None` when there are as many as
    /// connections share a blob.
    pub fn pass(&self, key: &FillKey) -> Option<Passing> {
        let mut passing = self.0.passing.lock();
        let count = passing.entry(key.clone()).or_default();
        if *count >= self.0.tools.limits.connections_per_blob {
            return None;
        }
        *count += 1;
        Some(Passing { inner: Arc::clone(&self.0), key: key.clone() })
    }

    /// Goes on, past the store, with a blob that an interrupted reader has the start of. What it has is verified along with
    /// the rest.
    pub async fn pass_on(
        &self,
        origin: &dyn Origin,
        digest: Digest,
        interrupted: Interrupted,
    ) -> Result<PassThrough, String> {
        let Interrupted { file, next, size_bytes } = interrupted;
        let tools = &self.0.tools;
        let verifier = Verifier::new(digest, Some(size_bytes));
        let verifier = hash_start(&tools.hashing, &file, next, verifier).await.map_err(|error| error.to_string())?;
        let metrics = Arc::clone(&tools.metrics);
        pass_on(origin, digest, size_bytes, verifier, metrics).await.map_err(|error| error.to_string())
    }

    /// All fills as they stand, the oldest first.
    pub fn snapshot(&self) -> Vec<FillSnapshot> {
        let fills: Vec<_> = self.0.table.lock().values().cloned().collect();
        let mut all: Vec<_> = fills.iter().map(|fill| fill.snapshot()).collect();
        all.sort_by_key(|fill| std::cmp::Reverse(fill.elapsed));
        all
    }

    /// How many fills there are.
    pub fn len(&self) -> usize {
        self.0.table.lock().len()
    }

    /// How many of them still wait for something from upstream, and not only for the disk.
    pub fn fetching(&self) -> usize {
        let fills: Vec<_> = self.0.table.lock().values().cloned().collect();
        fills.iter().filter(|fill| !matches!(fill.snapshot().progress, Stage::Verified { .. } | Stage::Failed)).count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until a fill, if there is one, has left: what it brought is held then, if that could be.
    pub async fn left(&self, key: &FillKey) {
        let fill = self.0.table.lock().get(key).cloned();
        if let Some(fill) = fill {
            fill.left().await;
        }
    }

    /// Waits until there are none. Meanwhile none lingers for what may yet be wanted.
    pub async fn idle(&self) {
        let _hurry = Hurry::new(&self.0.tools);
        // The sender lives in `self`, so this can't fail.
        let _ = self.0.in_flight.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Ends all fills and waits until they have left. What was not complete is kept for the next run.
    pub async fn stop(&self) {
        self.0.tools.stop.cancel();
        self.idle().await;
    }
}

/// A fill's place in the table. Dropping it, on whatever path, takes the fill out and tells its readers.
struct TableEntry {
    fill: Arc<Fill>,
    inner: Arc<Inner>,
    /// Dropped last: whoever waits for fills to end may then rely on the table having let go of this one.
    _in_flight: InFlight,
}

/// One client of a blob that is served past the store. See [`Fills::pass`].
#[derive(Debug)]
pub struct Passing {
    inner: Arc<Inner>,
    key: FillKey,
}

/// Somebody waits for all fills to end.
struct Hurry<'a>(&'a Tools);

/// Counts a fill as long as its task lives.
struct InFlight(Arc<Inner>);

// === impl TableEntry ===

impl TableEntry {
    /// Called under the table's lock, so that a fill is counted before anyone can wait for it to end.
    fn new(inner: Arc<Inner>, fill: Arc<Fill>) -> Self {
        let in_flight = InFlight::new(&inner);
        Self { fill, inner, _in_flight: in_flight }
    }

    async fn run(self) {
        // Boxed, for it holds all that a transfer is made of.
        match Box::pin(self.inner.tools.run(&self.fill)).await {
            Ok(ended) => {
                if let Ended::Filled(transferred) = ended {
                    self.inner.tools.metrics.fill_restored_bytes.inc_by(transferred.restored_bytes);
                }
                self.fill.log_end(Ok(ended));
            }
            Err(error) => {
                self.fill.log_end(Err(&error));
                if matches!(error, FillError::Mismatch { in_pieces: false, .. }) {
                    self.inner.mismatches.insert(self.fill.key().clone(), error.clone());
                }
                if matches!(error, FillError::NotStorable { why: Unstorable::Stalled, .. }) {
                    *self.inner.stalled.lock() = Some(Instant::now());
                }
                self.fill.progress().fail(error);
            }
        }
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        self.inner.table.lock().remove(self.fill.key());
        self.fill.note_left();
        // Only if the task died: after a normal end the progress has its last word already.
        self.fill.progress().fail(FillError::Stopped {
            digest: self.fill.key().digest,
            reason: "its task ended unexpectedly; see the log",
        });
    }
}

// === impl Passing ===

impl Drop for Passing {
    fn drop(&mut self) {
        let mut passing = self.inner.passing.lock();
        if let Some(count) = passing.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                passing.remove(&self.key);
            }
        }
    }
}

// === impl Hurry ===

impl<'a> Hurry<'a> {
    fn new(tools: &'a Tools) -> Self {
        tools.hurried.send_modify(|waiting| *waiting += 1);
        Self(tools)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.send_modify(|waiting| *waiting -= 1);
    }
}

// === impl InFlight ===

impl InFlight {
    fn new(inner: &Arc<Inner>) -> Self {
        inner.in_flight.send_modify(|count| *count += 1);
        inner.tools.metrics.fills_in_flight.inc();
        Self(Arc::clone(inner))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.tools.metrics.fills_in_flight.dec();
        self.0.in_flight.send_modify(|count| *count -= 1);
    }
}
