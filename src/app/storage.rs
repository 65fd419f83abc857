//! The store as the configuration means it: its budget, and the rounds that it needs.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::config::{self, Config, FileSystemFacts};
use crate::jobs::scrub;
use crate::metrics::Metrics;
use crate::server::admin::Readiness;
use crate::shutdown::Shutdown;
use crate::store::{self, Faults, Store, StoreError};
use crate::tasks;

/// How long a server waits for another that still holds its data directory: rolling updates overlap.
pub(super) const LOCK_WAIT: Duration = Duration::from_mins(1);

/// How often a disk in trouble is looked at.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How often last reads are written down: what a crash can cost of the order of eviction.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Threads for the file system: enough to keep a disk busy, few enough that none wait for a core.
const IO_THREADS: usize = 8;

/// What the store may take, once it is known what its file system is like.
pub(super) fn budget(storage: &config::Storage) -> Arc<dyn Fn(&store::FileSystemFacts) -> store::Budget + Send + Sync> {
    let storage = storage.clone();
    Arc::new(move |facts: &store::FileSystemFacts| {
        let &store::FileSystemFacts { total_bytes, total_inodes, free_bytes, held_bytes, own_mount } = facts;
        let file_system = FileSystemFacts { total_bytes, free_bytes, held_bytes, own_mount };
        let floor = storage.min_free.resolve(total_bytes, total_inodes);
        let capacity_bytes = config::capacity::resolve(storage.capacity, file_system);
        if let Some(possible_bytes) = config::capacity::shortfall(capacity_bytes, file_system) {
            tracing::warn!(
                capacity_bytes,
                possible_bytes,
                "storage.capacity is {} MiB, but its file system can't give the store more than {} MiB; \
                 what finds no room is passed through",
                capacity_bytes >> 20,
                possible_bytes >> 20
            );
        }
        store::Budget { capacity_bytes, min_free_bytes: floor.bytes, min_free_inodes: floor.inodes }
    })
}

/// Opens the store that the configuration means.
pub(super) async fn open(
    config: &Config,
    metrics: &Arc<Metrics>,
    faults: Option<Arc<dyn Faults>>,
    lock_wait: Duration,
) -> Result<Store, StoreError> {
    let options = store::Options {
        path: config.storage.path.clone(),
        budget: budget(&config.storage),
        lock_wait,
        io_threads: IO_THREADS,
        shrink_grace: store::Options::SHRINK_GRACE,
        offline: config.offline,
        faults,
    };
    Store::open(options, Arc::clone(metrics)).await
}

/// Starts the rounds that the store needs: the sweep, and the scrub. Both end with the drain.
pub(super) fn look_after(
    store: &Store,
    config: &Config,
    readiness: &Readiness,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
) -> (JoinHandle<()>, JoinHandle<()>) {
    let sweeping = tasks::spawn("sweep", sweep(store.clone(), readiness.clone(), shutdown.clone()));
    let schedule = scrub::Schedule {
        period: config.storage.scrub_period,
        bytes_per_second: config.storage.scrub_bytes_per_second,
        hours: config.storage.scrub_hours,
    };
    (sweeping, scrub::start(store.clone(), schedule, Arc::clone(metrics), shutdown.clone()))
}

/// Keeps the store in order, and operators informed of its trouble, until the server drains.
async fn sweep(store: Store, readiness: Readiness, shutdown: Shutdown) {
    let (mut sweeps, mut probes) = (tokio::time::interval(SWEEP_EVERY), tokio::time::interval(PROBE_EVERY));
    loop {
        tokio::select! {
            _ = sweeps.tick() => store.sweep().await,
            _ = probes.tick() => store.probe().await,
            () = shutdown.draining() => return,
        }
        readiness.set_degraded("store", store.trouble());
    }
}
