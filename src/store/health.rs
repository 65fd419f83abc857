//! The disk's health: what is wrong with it, said once a minute and shown to operators, until a probe finds it well again.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::time::Instant;

use bytes::Bytes;

use super::error::{NoRoom, StoreError};
use super::layout::ALGORITHMS;
use super::{Shared, Store};
use crate::metrics::Metrics;

/// What is known of the disk. It is well until an operation fails in a way that speaks of the disk.
#[derive(Debug)]
pub(super) struct Health {
    metrics: Arc<Metrics>,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Debug)]
struct Trouble {
    what: String,
    /// How many operations failed since it was last said.
    failures: u64,
    said: Instant,
}

/// How often the same trouble is said.
const SAY_EVERY: Duration = Duration::from_mins(1);

// === impl Health ===

impl Health {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, trouble: Mutex::default() }
    }

    /// Notes an operation that failed.
    pub(super) fn failed(&self, error: &StoreError) {
        if let StoreError::Io { source, .. } = error
            && let Some(errno) = Errno::from_io_error(source)
            && !matches!(errno, Errno::NOENT | Errno::EXIST | Errno::INTR | Errno::INVAL)
        {
            self.note(error.to_string());
        }
    }

    /// Notes something that is wrong.
    pub(super) fn note(&self, what: String) {
        let mut trouble = self.trouble.lock();
        let said = trouble.as_ref().map(|trouble| trouble.said);
        let failures = trouble.as_ref().map_or(0, |trouble| trouble.failures) + 1;
        if said.is_some_and(|said| said.elapsed() < SAY_EVERY) {
            if let Some(trouble) = &mut *trouble {
                (trouble.what, trouble.failures) = (what, failures);
            }
            return;
        }
        tracing::warn!(failures, "the store is degraded, and what it can't keep is passed through: {what}");
        self.metrics.store_degraded.set(1);
        *trouble = Some(Trouble { what, failures: 0, said: Instant::now() });
    }

    /// What is wrong.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().as_ref().map(|trouble| trouble.what.clone())
    }

    fn recovered(&self) {
        if self.trouble.lock().take().is_some() {
            self.metrics.store_degraded.set(0);
            tracing::info!("the store works again");
        }
    }
}

// === impl Store ===

impl Store {
    /// What is wrong with the store at the moment, in a sentence for operators; clients are served all the same.
    pub fn trouble(&self) -> Option<String> {
        let over = "more is held than storage.capacity allows: nothing is evicted yet, and nothing new is stored";
        let reasons = [
            self.shared.is_in_grace().then(|| over.to_owned()),
            self.shared.pins_exceed(),
            self.shared.io.disk.health().trouble(),
        ];
        let reasons: Vec<_> = reasons.into_iter().flatten().collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Looks whether a disk that was in trouble works again, and makes folders anew that somebody removed. Does nothing
    /// while all is well. To be called every few seconds.
    pub async fn probe(&self) {
        if self.shared.io.disk.health().trouble().is_none() {
            return;
        }
        let shared = self.shared.clone();
        let well = self.shared.io.run_counted(move || shared.write_probe());
        let well = well.await.is_ok() && self.shared.has_floor().await;
        if well {
            self.shared.io.disk.health().recovered();
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Goes through all that publishing takes.
    fn write_probe(&self) -> Result<(), StoreError> {
        let (disk, layout) = (&self.io.disk, &self.layout);
        let folders = [layout.partials(), layout.tmp(), layout.repositories(), layout.quarantine(), layout.pins()];
        for folder in folders.into_iter().chain(ALGORITHMS.map(|algorithm| layout.algorithm(algorithm))) {
            disk.ensure_folder(&folder)?;
        }
        let path = self.staging_path();
        let file = disk.create(&path)?;
        let content = [Bytes::from_static(&[0; 4096])];
        let written = disk.write_at(&file, &path, 0, &content).and_then(|()| disk.sync(&file, &path));
        let removed = disk.remove(&path);
        written.and(removed).map(drop)
    }

    /// Whether the file system has more free than its floor, or can come to that by eviction.
    async fn has_floor(self: &Arc<Self>) -> bool {
        !matches!(self.shortage(0).await, Err(NoRoom::Disk { .. } | NoRoom::Unknown(_)))
    }
}
