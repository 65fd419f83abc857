//! The parts that a reload changes, and how a configuration becomes each of them.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, UnverifiedRanges};
use crate::fill::Fills;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::mirror::{Mirror, Settings};
use crate::server::accept::{PlaceLimits, Places};
use crate::server::api::{Api, Guard, Parts};
use crate::server::auth::{Checks, Known, Readers};
use crate::server::router::{Edge, EdgeCell};
use crate::server::tls::{NewCertificates, Tls, TlsError};
use crate::store::Store;
use crate::tasks::{self, Pool};
use crate::upstream::Instance;

use super::storage::budget;
use super::upstreams::{self, Clients};

/// What a reload changes. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) instance: Instance,
    pub(super) metrics: Arc<Metrics>,
    pub(super) store: Store,
    pub(super) fills: Fills,
    pub(super) edge: EdgeCell,
    pub(super) api: Api,
    pub(super) places: Places,
    pub(super) checks: Checks,
    pub(super) jobs: Jobs,
    pub(super) tls: Vec<Tls>,
    /// The addresses that were bound, in the order of the configuration.
    pub(super) listen: Vec<SocketAddr>,
    /// The one in force.
    pub(super) mirror: Arc<Mutex<Mirror>>,
}

/// Certificates that were read again and are not shown yet.
#[derive(Debug)]
pub(super) struct Certificates(Vec<NewCertificates>);

/// How many connections there may be.
pub(super) fn place_limits(config: &Config) -> PlaceLimits {
    let config::Server { max_connections, max_connections_per_address, .. } = config.server;
    PlaceLimits { connections_max: max_connections, per_address_max: max_connections_per_address }
}

/// What applies to all upstreams.
pub(super) fn settings(config: &Config, instance: &Instance) -> Settings {
    Settings {
        offline: config.offline,
        list_ttl: config.tags.list_ttl,
        negative_ttl: config.tags.negative_ttl,
        instance: instance.clone(),
        ranges_wait_for_verified: config.fill.unverified_ranges == UnverifiedRanges::Wait,
        misses_max: config.server.max_misses,
    }
}

/// Who may use the API.
pub(super) fn guard(config: &Config, checks: &Checks) -> Guard {
    Guard::new(Known::new(&config.admin.users), config.admin.admins.clone(), checks.clone())
}

// === impl Live ===

impl Live {
    /// Answers requests and the API by this configuration from now on.
    pub(super) fn answer_by(&self, config: &Config) {
        let mirror = self.mirror.lock().clone();
        let exempt = |access: &config::Access| {
            let configured = config.server.listen.iter().zip(&self.listen);
            configured.filter(|(written, _)| access.exempt.contains(written)).map(|(_, bound)| *bound).collect()
        };
        self.edge.set(Edge {
            mirror: mirror.clone(),
            client_header_timeout: config.server.client_header_timeout,
            readers: config.access.as_ref().map(|access| Readers::new(access, exempt(access))),
            checks: self.checks.clone(),
            trusted_proxies: config.server.trusted_proxies.clone(),
        });
        let (store, fills, offline) = (self.store.clone(), self.fills.clone(), config.offline);
        self.api.set_parts(Parts { mirror, store, fills, offline });
    }

    /// Keeps the configured lists of images warm, until the server drains. Offline there is nothing to fetch.
    pub(super) fn keep_warm(&self, config: &Config, pool: Pool, draining: &CancellationToken) {
        if config.offline {
            return;
        }
        let (warming, mirror) = (self.jobs.warming.clone(), Arc::clone(&self.mirror));
        warming.set(&config.warm);
        let keeping = warming.keep(move || mirror.lock().clone(), self.store.clone(), pool);
        drop(tasks::spawn("warm", draining.clone().run_until_cancelled_owned(keeping)));
    }

    /// Reads all certificates again. Shows none of them yet.
    pub(super) fn read_certificates(&self) -> Result<Certificates, TlsError> {
        self.tls.iter().map(Tls::read_again).collect::<Result<_, _>>().map(Certificates)
    }

    /// Puts all that has changed into force. Requests under way go on with what they began with.
    pub(super) async fn put_into_force(&self, old: &Config, new: &Config) {
        if (old.storage.capacity, old.storage.min_free) != (new.storage.capacity, new.storage.min_free)
            && let Err(error) = self.store.set_budget(budget(&new.storage)).await
        {
            tracing::error!("the capacity stays as it is: {error}");
        }
        self.places.set(place_limits(new));
        self.api.set_guard(guard(new, &self.checks));
        let before = self.mirror.lock().clone();
        let unchanged = |upstream: &config::Upstream| {
            // A file may have changed under its name.
            let shared = (&old.docker_config, &old.proxies, old.fill.max_bandwidth);
            let same = shared == (&new.docker_config, &new.proxies, new.fill.max_bandwidth);
            let same = same && upstream.ca_file.is_none() && old.upstreams.contains(upstream);
            same.then(|| before.client_called(upstream.name.as_str())).flatten()
        };
        let clients = Clients::new(new, &self.instance, &self.metrics);
        let upstreams = upstreams::upstreams(new, &clients, unchanged);
        *self.mirror.lock() = before.succeeded_by(settings(new, &self.instance), upstreams);
        // Not before: a new list may be of a new upstream.
        self.jobs.warming.set(&new.warm);
        self.answer_by(new);
    }
}

// === impl Certificates ===

impl Certificates {
    /// Shows them from now on. Whether any is another than before.
    pub(super) fn put_into_force(self) -> bool {
        // All of them, whatever the first one says.
        let changed: Vec<_> = self.0.into_iter().map(NewCertificates::put_into_force).collect();
        changed.contains(&true)
    }
}
