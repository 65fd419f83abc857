//! Decisions: which upstream, hit, join, miss, stale, revalidate or pass through; who may read what.

mod blobs;
mod bypass;
mod denials;
mod error;
mod flight;
mod freshness;
mod health;
mod held_referrers;
mod manifests;
mod origin;
mod other_way;
mod outages;
mod outcome;
mod prefetch;
mod referrers;
mod resolve;
mod retries;
mod rights;
mod seed;
mod tag_list;
mod tags;
mod upstreams;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use crate::fill::Fills;
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference, RegistryName, Repository, Tag};
use crate::store::{ListRecord, Store};
use crate::upstream::Instance;

use flight::{Flights, Tower};
use health::RefusedNames;
use outages::Outages;
use rights::{Look, Rights};

pub use crate::upstream::Breaker;
pub use blobs::BlobAnswer;
pub use denials::Denials;
pub use error::{MirrorError, MirrorErrorKind};
pub use health::UpstreamHealth;
pub use manifests::ManifestAnswer;
pub use outcome::Outcome;
pub use referrers::ReferrersAnswer;
pub use resolve::{Misnamed, Names, Resolved, Unresolved};
pub use seed::{Order as SeedOrder, Run as SeedRun, Tally as SeedTally};
pub use tag_list::TagsAnswer;
pub use upstreams::{ClientFactory, Mirrored, Policy, Source, Target, Upstreams};

/// What applies to all upstreams.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Upstreams are never asked.
    pub offline: bool,
    /// How long tag lists and referrers are served without asking upstream.
    pub list_ttl: Duration,
    /// How long upstream's "not found" is believed.
    pub negative_ttl: Duration,
    /// What we call ourselves to other mirrors.
    pub instance: Instance,
    /// Even a range in the middle of a blob that is being filled waits for the digest.
    pub ranges_wait_for_verified: bool,
    /// How many downloads, and how many other questions to upstreams, are under way at most.
    pub misses_max: usize,
}

/// The mirror: everything between a parsed request and an answer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mirror(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    upstreams: Upstreams,
    any_credentials: bool,
    store: Store,
    fills: Fills,
    metrics: Arc<Metrics>,
    rights: Rights,
    outages: Arc<Outages>,
    refused_names: Arc<RefusedNames>,
    /// What upstream said it does not have.
    missing: moka::sync::Cache<(Repository, Wanted), MirrorError>,
    /// Tags whose last check failed, for as long as upstream is left alone.
    failed_checks: moka::sync::Cache<(Repository, Tag), MirrorError>,
    /// The same for lists.
    failed_lists: moka::sync::Cache<ListKey, MirrorError>,
    /// Tags of which the audit log was told that they are served stale, for a while.
    told_stale: moka::sync::Cache<(Repository, Tag), ()>,
    /// Lists that are not kept on disk.
    lists: moka::sync::Cache<ListKey, Arc<ListRecord>>,
    /// Registries that did not answer a check in time, for as long as they are left alone.
    silent: moka::sync::Cache<RegistryName, MirrorError>,
    manifests: Flights<(Repository, Digest, Via), HeldManifest>,
    tags: Flights<(Repository, Tag, Via), tags::Checked>,
    /// Looks at what those without a credential may see; nothing in particular wanted is the list of tags.
    looks: Flights<(Repository, Option<Wanted>, Via), Look>,
    blob_heads: Flights<(Repository, Digest, Via), Option<u64>>,
    list_flights: Flights<(ListKey, Via), Arc<ListRecord>>,
    /// Manifests whose content is fetched ahead.
    prefetches: Flights<(Repository, Digest), ()>,
    tower: Tower,
}

/// The mirrors that those have come through who share a piece of work; see [`Target::via`].
type Via = Option<Arc<str>>;

/// What can be missing. Clients ask for the same digest as a blob and as a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    Manifest(Reference),
    Blob(Digest),
}

/// A list of a repository: its tags, or the referrers of one manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ListKey {
    repository: Repository,
    list: crate::store::ListName,
}

/// A manifest in memory.
#[derive(Clone, Debug)]
struct HeldManifest {
    bytes: Bytes,
    media_type: Arc<str>,
    digest: Digest,
}

/// How many "not found" answers are remembered.
const MISSING_MAX: u64 = 100_000;

/// How many failed checks are remembered.
const FAILED_CHECKS_MAX: u64 = 100_000;

/// How long a client waits for upstream's word on what is held.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long upstream is left alone after it failed to confirm what is held: a dead upstream costs one deadline per window, not
/// one per pull, and its return is noticed within seconds.
const FAILED_CHECK_WINDOW: Duration = Duration::from_secs(5);

/// How often the audit log is told of the same tag that it is served stale.
const TOLD_FOR: Duration = Duration::from_hours(24);

/// How many bytes of lists are kept in memory.
const LISTS_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Failures, for as long as upstream is left alone after them.
fn failures<K>() -> moka::sync::Cache<K, MirrorError>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
{
    moka::sync::Cache::builder().max_capacity(FAILED_CHECKS_MAX).time_to_live(FAILED_CHECK_WINDOW).build()
}

// === impl Mirror ===

impl Mirror {
    /// Connects the parts.
    pub fn new(settings: Settings, upstreams: Upstreams, store: Store, fills: Fills, metrics: Arc<Metrics>) -> Self {
        Self::build(settings, upstreams, (store, fills, metrics), Tower::default(), Arc::default(), Arc::default())
    }

    /// A mirror with other settings and upstreams over the same store, for requests that begin from now on. It goes on with
    /// what is known of upstreams' outages, and stopping it stops both.
    #[must_use]
    pub fn succeeded_by(&self, settings: Settings, upstreams: Upstreams) -> Self {
        let Inner { store, fills, metrics, tower, outages, refused_names, .. } = &*self.0;
        let parts = (store.clone(), fills.clone(), Arc::clone(metrics));
        Self::build(settings, upstreams, parts, tower.clone(), Arc::clone(outages), Arc::clone(refused_names))
    }

    /// The way to talk to the upstream of a configured name, if there is one for the whole of it.
    pub fn client_called(&self, label: &str) -> Option<Arc<crate::upstream::Upstream>> {
        self.0.upstreams.client_called(label)
    }

    fn build(
        settings: Settings,
        upstreams: Upstreams,
        (store, fills, metrics): (Store, Fills, Arc<Metrics>),
        tower: Tower,
        outages: Arc<Outages>,
        refused_names: Arc<RefusedNames>,
    ) -> Self {
        tower.set_limit(settings.misses_max);
        if upstreams.any_credentials() && !store.had_credentials() {
            let store = store.clone();
            drop(crate::tasks::spawn("note credentials", async move {
                if let Err(error) = store.note_credentials().await {
                    tracing::warn!("could not note that there are credentials: {error}");
                }
            }));
        }
        Self(Arc::new(Inner {
            any_credentials: upstreams.any_credentials() || store.had_credentials(),
            missing: moka::sync::Cache::builder().max_capacity(MISSING_MAX).time_to_live(settings.negative_ttl).build(),
            failed_checks: failures(),
            failed_lists: failures(),
            told_stale: moka::sync::Cache::builder().max_capacity(FAILED_CHECKS_MAX).time_to_live(TOLD_FOR).build(),
            silent: failures(),
            lists: moka::sync::Cache::builder()
                .max_capacity(LISTS_BYTES_MAX)
                .weigher(|_, list: &Arc<ListRecord>| u32::try_from(list.body.len() + 512).unwrap_or(u32::MAX))
                .build(),
            rights: Rights::new(),
            outages,
            refused_names,
            manifests: Flights::new(&tower),
            tags: Flights::new(&tower),
            looks: Flights::new(&tower),
            blob_heads: Flights::new(&tower),
            list_flights: Flights::new(&tower),
            prefetches: Flights::new(&tower),
            tower,
            settings,
            upstreams,
            store,
            fills,
            metrics,
        }))
    }

    /// Finds what a request means: an upstream and a repository there. Counts what is refused.
    pub fn resolve(
        &self,
        prefix: Option<&str>,
        name: &str,
        namespace: Option<&str>,
        host: Option<&str>,
    ) -> Result<Target, MirrorError> {
        let target = self.0.upstreams.resolve(prefix, name, namespace, host);
        if matches!(&target, Err(error) if error.kind == MirrorErrorKind::UnknownName) {
            self.0.metrics.refused_names.inc();
            self.0.refused_names.count(prefix.or(namespace).or_else(|| name.split('/').next()).unwrap_or_default());
        }
        target
    }

    /// What a request means that has these headers: one that has come through other mirrors is not passed on in a circle.
    pub fn admit(&self, target: Target, headers: &HeaderMap) -> Result<Target, MirrorError> {
        match self.0.settings.instance.admit(headers) {
            Ok(None) => Ok(target),
            Ok(Some(via)) => Ok(target.on_behalf_of(via)),
            Err(wrong) => {
                let message = format!("{} is not to be had this way: {wrong}", target.repository);
                Err(MirrorError::new(MirrorErrorKind::UnknownManifest, message))
            }
        }
    }

    /// The canonical name of the registry that a name or alias means, if it is configured.
    pub fn registry_called(&self, name: &str) -> Option<RegistryName> {
        self.0.upstreams.registry_called(name)
    }

    /// The names under which upstreams can be asked for.
    pub fn names(&self) -> &Names {
        self.0.upstreams.names()
    }

    /// Ends what goes on behind the answers, such as checks of tags, and waits until it has ended.
    pub async fn stop(&self) {
        self.0.tower.stop().await;
    }

    /// Passes on what a question to upstream came to, and notes whether upstream is well.
    fn heard<T>(&self, target: &Target, result: Result<T, MirrorError>) -> Result<T, MirrorError> {
        if self.0.outages.heard(&target.upstream.policy.label, &result) == Some(false) {
            self.0.silent.invalidate(&target.repository.registry);
        }
        result
    }

    /// What upstream said a moment ago of something that it does not have.
    fn known_missing(&self, target: &Target, wanted: Wanted) -> Option<MirrorError> {
        self.0.missing.get(&(target.repository.clone(), wanted))
    }

    /// Remembers upstream's "not found", and nothing else (law 7).
    fn remember_missing(&self, target: &Target, wanted: Wanted, error: &MirrorError) {
        if error.is_not_found() {
            self.0.missing.insert((target.repository.clone(), wanted), error.clone());
        }
    }
}
