//! The composition root: the one place that builds and connects the concrete parts.

mod live;
mod reload;
mod storage;
mod upstreams;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::audit::Actor;
use crate::config::{self, Config};
use crate::fill::{self, Fills};
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::mirror::Mirror;
use crate::server::Router;
use crate::server::accept::{self, Drained, Limits, Places};
use crate::server::access_log::Recorder;
use crate::server::activity::Activity;
use crate::server::admin::{self, Readiness};
use crate::server::api::{Api, History, Reload as _, Reloaded};
use crate::server::auth::Checks;
use crate::server::listen::{self, ListenError};
use crate::server::router::{self, EdgeCell};
use crate::server::tls::{CertificateFiles, Tls, TlsError};
use crate::shutdown::Shutdown;
use crate::store::{Faults, Store, StoreError};
use crate::tasks::{self, Pool, PoolError};
use crate::upstream::Instance;

pub use upstreams::{Clients, names};

use live::Live;
use reload::Reloader;

pub use reload::ConfigSource;

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
    live: Live,
    reloader: Option<Arc<Reloader>>,
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

/// Threads for checking passwords: whoever sends wrong ones must not take every core.
const AUTH_THREADS: usize = 1;

/// Builds all parts from a configuration, connects them, and starts serving.
///
/// Listening comes first, so that mistakes in addresses show before anything is touched; until the store is open, clients
/// are told so. Nothing here needs the network beyond that (law 9).
pub async fn start(config: &Config) -> Result<Running, StartError> {
    start_with(config, None, None).await
}

/// The same with a configuration that can be read again from its source; for tests also on a disk that fails to order.
pub async fn start_with(
    config: &Config,
    source: Option<ConfigSource>,
    faults: Option<Arc<dyn Faults>>,
) -> Result<Running, StartError> {
    let (metrics, readiness, shutdown) = (Arc::new(Metrics::new()), Readiness::starting(), Shutdown::new(GRACE));
    // Health can be asked for until the very end.
    let admin_shutdown = Shutdown::new(Duration::from_secs(1));
    let (tls, admin_tls) = (tls(&config.server.tls)?, tls(&config.admin.tls)?);
    let listeners = listen::bind(&config.server.listen)?;
    let admin_listeners = listen::bind(&config.admin.listen)?;
    let (listen, admin) = (addresses(&listeners), addresses(&admin_listeners));
    let auth = Pool::new("auth", AUTH_THREADS)?;
    let (activity, history) = (Activity::default(), History::default());
    let (checks, jobs) = (Checks::new(auth.clone()), Jobs::new(&shutdown, &metrics));
    let guard = live::guard(config, &checks);
    let api = Api::new(guard, Arc::clone(&metrics), readiness.clone(), activity.clone(), history.clone(), jobs.clone());
    let router = admin::router(Arc::clone(&metrics), readiness.clone(), &api, &address_for_clients(config, &listen));
    let admin_tasks =
        serve(admin_listeners, admin_tls.as_ref(), &router, &Limits::default(), &metrics, &admin_shutdown);

    let limits = Limits { places: Places::new(live::place_limits(config)), ..Limits::default() };
    let edge = EdgeCell::default();
    let recorder = Recorder { metrics: Arc::clone(&metrics), activity: activity.clone() };
    let router = router::router(edge.clone(), recorder);
    let accepting = serve(listeners, tls.as_ref(), &router, &limits, &metrics, &shutdown);

    let store = open_store(config, &metrics, faults, &admin).await?;
    let fills = first_fills(config, &store, &metrics)?;
    let instance = Instance::random();
    let mirror = first_mirror(config, &instance, &store, &fills, &metrics);
    let live = Live {
        instance,
        metrics: Arc::clone(&metrics),
        store: store.clone(),
        fills: fills.clone(),
        edge,
        api,
        places: limits.places,
        jobs,
        checks,
        tls: tls.into_iter().chain(admin_tls).collect(),
        listen: listen.clone(),
        mirror: Arc::new(Mutex::new(mirror)),
    };
    live.answer_by(config);
    readiness.set_degraded("store", store.trouble());
    let draining = shutdown.draining_token();
    live.keep_warm(config, auth.clone(), &draining);
    let reloader = source.map(|source| Reloader::start(source, config.clone(), live.clone(), auth, draining.clone()));
    tasks::spawn("history", draining.run_until_cancelled_owned(history.keep(activity, Arc::clone(&metrics))));
    let (sweeping, scrubbing) = storage::look_after(&store, config, &readiness, &metrics, &shutdown);
    readiness.set_ready();
    Ok(Running {
        listen,
        admin,
        store,
        fills,
        metrics,
        shutdown,
        live,
        reloader,
        readiness,
        accepting,
        admin_tasks,
        admin_shutdown,
        sweeping,
        scrubbing,
    })
}

/// The address that clients pull from, if it is the same wherever one stands: else empty.
fn address_for_clients(config: &Config, listen: &[SocketAddr]) -> String {
    let scheme = if config.server.tls.is_empty() { "http" } else { "https" };
    match listen.first() {
        Some(address) if !address.ip().is_unspecified() => format!("{scheme}://{address}"),
        _ => String::new(),
    }
}

async fn open_store(
    config: &Config,
    metrics: &Arc<Metrics>,
    faults: Option<Arc<dyn Faults>>,
    admin: &[SocketAddr],
) -> Result<Store, StoreError> {
    let store = storage::open(config, metrics, faults, storage::LOCK_WAIT).await?;
    if let Some(address) = admin.first() {
        store.sign(&contact(config, *address)).await;
    }
    Ok(store)
}

/// Where commands on this machine find the API.
fn contact(config: &Config, address: SocketAddr) -> String {
    let scheme = if config.admin.tls.is_empty() { "http" } else { "https" };
    format!("{scheme}://{}", listen::reachable(address))
}

fn first_fills(config: &Config, store: &Store, metrics: &Arc<Metrics>) -> Result<Fills, PoolError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    Ok(Fills::new(store.clone(), Pool::new("hash", cores)?, Arc::clone(metrics), limits_of(config)))
}

fn first_mirror(config: &Config, instance: &Instance, store: &Store, fills: &Fills, metrics: &Arc<Metrics>) -> Mirror {
    let upstreams = upstreams::upstreams(config, &Clients::new(config, instance, metrics), |_| None);
    Mirror::new(live::settings(config, instance), upstreams, store.clone(), fills.clone(), Arc::clone(metrics))
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
        // Those that a reload has replaced stop with the one in force.
        let mirror = self.live.mirror.lock().clone();
        mirror.stop().await;
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

    /// Reads the configuration again for someone, as a changed file makes it do by itself. Says why nothing was done.
    pub async fn reload(&self, by: Actor) -> Result<Reloaded, String> {
        match &self.reloader {
            Some(reloader) => reloader.reload(by).await,
            None => Err("this server's configuration has no source".to_owned()),
        }
    }

    /// Obeys SIGHUP from now on: the configuration is read again. Fails when the handler can't be installed. Must be called
    /// inside the runtime.
    pub fn obey_hangups(&self) -> io::Result<()> {
        let Some(reloader) = self.reloader.clone() else { return Ok(()) };
        let mut hangups = signal(SignalKind::hangup())?;
        let draining = self.shutdown.draining_token();
        let obeying = async move {
            while hangups.recv().await.is_some() {
                // What came of it has been logged.
                let _ = reloader.reload(Actor::local("SIGHUP")).await;
            }
        };
        tasks::spawn("hangups", draining.run_until_cancelled_owned(obeying));
        Ok(())
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
    limits: &Limits,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
) -> Vec<JoinHandle<Drained>> {
    let one = |listener| {
        let (tls, router, limits) = (tls.cloned(), router.clone(), limits.clone());
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

fn limits_of(config: &Config) -> fill::Limits {
    let config::Fill { connections_per_blob, parallel_above_bytes, complete_from_percent, .. } = config.fill;
    let complete_from_percent = u64::from(complete_from_percent);
    fill::Limits { connections_per_blob, parallel_above_bytes, complete_from_percent, ..fill::Limits::default() }
}

/// What fetches into a store that is open alone: for commands. Both are to be stopped before the store is closed.
pub fn mirror_alone(config: &Config, store: &Store) -> Result<(Mirror, Fills), PoolError> {
    let metrics = Arc::new(Metrics::new());
    let fills = first_fills(config, store, &metrics)?;
    let mirror = first_mirror(config, &Instance::random(), store, &fills, &metrics);
    Ok((mirror, fills))
}

/// The store of a configuration whose server does not run: for commands. Nobody is waited for.
pub async fn open_alone(config: &Config) -> Result<Store, StoreError> {
    storage::open(config, &Arc::new(Metrics::new()), None, Duration::ZERO).await
}
