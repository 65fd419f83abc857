//! The composition root: the one place that builds and connects the concrete parts.

mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::config::{self, Config, FileSystemFacts, UnverifiedRanges};
use crate::fill::{self, Fills};
use crate::jobs::scrub;
use crate::metrics::Metrics;
use crate::mirror::{Mirror, Settings};
use crate::server::Router;
use crate::server::accept::{self, Drained, Limits};
use crate::server::access_log::Recorder;
use crate::server::activity::Activity;
use crate::server::admin::{self, Readiness};
use crate::server::api::{Api, Guard, History, Parts};
use crate::server::auth::{Checks, Known, Readers};
use crate::server::listen::{self, ListenError};
use crate::server::router::{self, Edge, EdgeCell};
use crate::server::tls::{CertificateFiles, Tls, TlsError};
use crate::shutdown::Shutdown;
use crate::store::{self, Faults, Store, StoreError};
use crate::tasks::{self, Pool, PoolError};
use crate::upstream::Instance;

pub use upstreams::Clients;

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    /// Where clients pull.
    pub listen: Vec<SocketAddr>,
    /// Where health and metrics are.
    pub admin: Vec<SocketAddr>,
    /// The store, for those who look into it.
    pub store: Store,
    /// The downloads in progress.
    pub fills: Fills,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Makes it stop.
    pub shutdown: Shutdown,
    mirror: Mirror,
    readiness: Readiness,
    /// One task a listener; each gives the number of connections that it had to cut.
    accepting: Vec<JoinHandle<Drained>>,
    admin_tasks: Vec<JoinHandle<Drained>>,
    admin_shutdown: Shutdown,
    sweeping: JoinHandle<()>,
    scrubbing: JoinHandle<()>,
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The data directory can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Threads could not be started.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// How long open requests have to finish after the order to stop.
const GRACE: Duration = Duration::from_secs(25);

/// How long a server waits for another that still holds its data directory: rolling updates overlap.
const LOCK_WAIT: Duration = Duration::from_mins(1);

/// How often last reads are written down: what a crash can cost of the order of eviction.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// How often a disk in trouble is looked at.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Threads for the file system: enough to keep a disk busy, few enough that none wait for a core.
const IO_THREADS: usize = 8;

/// Threads for checking passwords: whoever sends wrong ones must not take every core.
const AUTH_THREADS: usize = 1;

/// Builds all parts from a configuration, connects them, and starts serving.
///
/// Listening comes first, so that mistakes in addresses show before anything is touched; until the store is open, clients
/// are told so. Nothing here needs the network beyond that (law 9).
pub async fn start(config: &Config) -> Result<Running, StartError> {
    start_with(config, None).await
}

/// The same on a disk that fails to order: for tests.
pub async fn start_with(config: &Config, faults: Option<Arc<dyn Faults>>) -> Result<Running, StartError> {
    let metrics = Arc::new(Metrics::new());
    let readiness = Readiness::starting();
    let shutdown = Shutdown::new(GRACE);
    // Health can be asked for until the very end.
    let admin_shutdown = Shutdown::new(Duration::from_secs(1));
    let (tls, admin_tls) = (tls(&config.server.tls)?, tls(&config.admin.tls)?);
    let listeners = listen::bind(&config.server.listen)?;
    let admin_listeners = listen::bind(&config.admin.listen)?;
    let (listen, admin) = (addresses(&listeners), addresses(&admin_listeners));
    let limits = Limits { connections_max: config.server.max_connections, ..Limits::default() };
    let checks = Checks::new(Pool::new("auth", AUTH_THREADS)?);
    let (activity, history) = (Activity::default(), History::default());
    let guard = Guard::new(Known::new(&config.admin.users), config.admin.admins.clone(), checks.clone());
    let api = Api::new(guard, Arc::clone(&metrics), readiness.clone(), activity.clone(), history.clone());
    let admin_router = admin::router(Arc::clone(&metrics), readiness.clone(), &api);
    let admin_tasks = serve(admin_listeners, admin_tls.as_ref(), &admin_router, limits, &metrics, &admin_shutdown);

    let edge = EdgeCell::default();
    let recorder = Recorder { metrics: Arc::clone(&metrics), activity: activity.clone() };
    let router = router::router(edge.clone(), recorder);
    let accepting = serve(listeners, tls.as_ref(), &router, limits, &metrics, &shutdown);

    let store = open_store(config, &metrics, faults, LOCK_WAIT).await?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let fills = Fills::new(store.clone(), Pool::new("hash", cores)?, Arc::clone(&metrics), limits_of(config));
    let settings = Settings {
        offline: config.offline,
        list_ttl: config.tags.list_ttl,
        negative_ttl: config.tags.negative_ttl,
        instance: Instance::random(),
        ranges_wait_for_verified: config.fill.unverified_ranges == UnverifiedRanges::Wait,
    };
    let upstreams = upstreams::upstreams(config, &Clients::new(config, &settings.instance, &metrics));
    let mirror = Mirror::new(settings, upstreams, store.clone(), fills.clone(), Arc::clone(&metrics));
    let client_header_timeout = config.server.client_header_timeout;
    let readers = config.access.as_ref().map(|access| Readers::new(access, exempt(access, config, &listen)));
    edge.set(Edge { mirror: mirror.clone(), client_header_timeout, readers, checks });
    let offline = config.offline;
    api.set_parts(Parts { mirror: mirror.clone(), store: store.clone(), fills: fills.clone(), offline });
    readiness.set_degraded("store", store.trouble());
    let draining = shutdown.draining_token();
    tasks::spawn("history", draining.run_until_cancelled_owned(history.keep(activity, Arc::clone(&metrics))));
    let sweeping = tasks::spawn("sweep", sweep(store.clone(), readiness.clone(), shutdown.clone()));
    let schedule = scrub::Schedule {
        period: config.storage.scrub_period,
        bytes_per_second: config.storage.scrub_bytes_per_second,
        hours: config.storage.scrub_hours,
    };
    let scrubbing = scrub::start(store.clone(), schedule, Arc::clone(&metrics), shutdown.clone());
    readiness.set_ready();
    Ok(Running {
        listen,
        admin,
        store,
        fills,
        metrics,
        shutdown,
        mirror,
        readiness,
        accepting,
        admin_tasks,
        admin_shutdown,
        sweeping,
        scrubbing,
    })
}

// === impl Running ===

impl Running {
    /// Serves until told to stop, then drains: open requests finish within the grace period, fills end, the store is
    /// closed. Returns how many connections had to be cut.
    pub async fn wait(self) -> usize {
        self.shutdown.draining().await;
        self.readiness.set_draining();
        let mut cut = 0;
        for task in self.accepting {
            cut += task.await.map_or(0, |drained| drained.connections_cut);
        }
        // What is left by now has no client. Nothing may write once the store is closed.
        self.mirror.stop().await;
        self.fills.stop().await;
        let _ = self.sweeping.await;
        let _ = self.scrubbing.await;
        self.admin_shutdown.begin();
        for task in self.admin_tasks {
            let _ = task.await;
        }
        self.store.close().await;
        cut
    }

    /// Stops and waits until everything has.
    pub async fn stop(self) -> usize {
        self.shutdown.begin();
        self.wait().await
    }
}

fn addresses(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
}

fn serve(
    listeners: Vec<TcpListener>,
    tls: Option<&Tls>,
    router: &Router,
    limits: Limits,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
) -> Vec<JoinHandle<Drained>> {
    let one = |listener| {
        let (tls, router) = (tls.cloned(), router.clone());
        let (metrics, shutdown) = (Arc::clone(metrics), shutdown.clone());
        async move { accept::serve(listener, tls.as_ref(), router, limits, metrics, shutdown).await }
    };
    listeners.into_iter().map(one).map(|serving| tasks::spawn("accept", serving)).collect()
}

/// What listeners show; `None` for plain HTTP.
fn tls(certificates: &[config::Certificate]) -> Result<Option<Tls>, TlsError> {
    let files = |config::Certificate { cert, key }: &config::Certificate| CertificateFiles {
        cert: cert.clone(),
        key: key.clone(),
    };
    (!certificates.is_empty()).then(|| Tls::read(certificates.iter().map(files).collect())).transpose()
}

/// The addresses that are exempt from `access`, with the ports that they got.
fn exempt(access: &config::Access, config: &Config, listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let configured = config.server.listen.iter().zip(listen);
    configured.filter(|(written, _)| access.exempt.contains(written)).map(|(_, bound)| *bound).collect()
}

fn limits_of(config: &Config) -> fill::Limits {
    let config::Fill { connections_per_blob, parallel_above_bytes, complete_from_percent, .. } = config.fill;
    let complete_from_percent = u64::from(complete_from_percent);
    fill::Limits { connections_per_blob, parallel_above_bytes, complete_from_percent, ..fill::Limits::default() }
}

async fn open_store(
    config: &Config,
    metrics: &Arc<Metrics>,
    faults: Option<Arc<dyn Faults>>,
    lock_wait: Duration,
) -> Result<Store, StoreError> {
    let storage = config.storage.clone();
    let budget = move |facts: &store::FileSystemFacts| {
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
    };
    let options = store::Options {
        path: config.storage.path.clone(),
        budget: Arc::new(budget),
        lock_wait,
        io_threads: IO_THREADS,
        shrink_grace: store::Options::SHRINK_GRACE,
        offline: config.offline,
        faults,
    };
    Store::open(options, Arc::clone(metrics)).await
}

/// The store of a configuration whose server does not run: for commands. Nobody is waited for.
pub async fn open_alone(config: &Config) -> Result<Store, StoreError> {
    open_store(config, &Arc::new(Metrics::new()), None, Duration::ZERO).await
}

/// Keeps the store in order, and operators informed of its trouble.
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
