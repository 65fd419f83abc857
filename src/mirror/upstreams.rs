//! The configured upstreams: their clients, their policies, and the names that lead to them.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{DeletedTags, NameGlobs, PlatformName, StaleIfError, TagGlobs};
use crate::oci::{RegistryName, Repository, RepositoryName};
use crate::upstream::Upstream;

use super::denials::Denials;
use super::error::{MirrorError, MirrorErrorKind};
use super::resolve::{Names, Resolved, repository_name};

/// How an upstream's content is treated.
#[derive(Debug)]
pub struct Policy {
    /// The configured name or pattern, for logs and metrics.
    pub label: Arc<str>,
    /// Where it is, for people; empty for a pattern.
    pub endpoints: Vec<String>,
    /// How long a tag is served without asking upstream.
    pub tag_ttl: Duration,
    /// How long it's served after that while upstream fails.
    pub stale_if_error: StaleIfError,
    /// Tags that never move.
    pub immutable_tags: TagGlobs,
    /// What becomes of tags that upstream has deleted.
    pub deleted_tags: DeletedTags,
    /// Whether what only our credential opens is served to those who have none.
    pub share_private: bool,
    /// The only repositories that are served; `None` for all.
    pub allow: Option<NameGlobs>,
    /// Repositories that are not served.
    pub deny: NameGlobs,
    /// Digests that are not served.
    pub denials: Option<Denials>,
    /// Platforms whose content is fetched with the manifest that lists it.
    pub prefetch: Vec<PlatformName>,
}

/// One upstream, ready to be asked.
#[derive(Clone, Debug)]
pub struct Mirrored {
    /// What to do with its content.
    pub policy: Arc<Policy>,
    /// The way to talk to it.
    pub client: Arc<Upstream>,
}

/// Where a request leads: an upstream, and the repository there.
#[derive(Clone, Debug)]
pub struct Target {
    /// The upstream.
    pub upstream: Mirrored,
    /// The repository, by its canonical name.
    pub repository: Repository,
    /// The client is one of those whom the operator lists as readers of the repository: what only the mirror's own
    /// credential opens is theirs to read too.
    pub listed: bool,
    /// The mirrors that the request has come through, where it may be passed on to mirrors. What one chain of them waits
    /// for is nothing that another may wait for: they may be waiting for each other.
    pub via: Option<Arc<str>>,
}

/// Makes the client of a name that matches a pattern.
pub type ClientFactory = Box<dyn Fn(&RegistryName) -> Arc<Upstream> + Send + Sync>;

/// All upstreams.
#[derive(Debug)]
pub struct Upstreams {
    names: Names,
    entries: Vec<Entry>,
    by_pattern: moka::sync::Cache<RegistryName, Arc<Upstream>>,
}

/// How an upstream gets its client.
pub enum Source {
    /// There is one client.
    One(Arc<Upstream>),
    /// Each name that matches the pattern has its own.
    Pattern(ClientFactory),
}

#[derive(Debug)]
struct Entry {
    policy: Arc<Policy>,
    source: Source,
}

/// How many registries matched by patterns have a client at a time.
const PATTERN_CLIENTS_MAX: u64 = 256;

// === impl Upstreams ===

impl Upstreams {
    /// Upstreams in the order in which `names` numbers them.
    pub fn new(names: Names, entries: Vec<(Policy, Source)>) -> Self {
        Self {
            names,
            entries: entries.into_iter().map(|(policy, source)| Entry { policy: Arc::new(policy), source }).collect(),
            by_pattern: moka::sync::Cache::new(PATTERN_CLIENTS_MAX),
        }
    }

    /// The configured names and patterns, each with where it is.
    pub(super) fn labels(&self) -> impl Iterator<Item = (Arc<str>, Vec<String>)> {
        self.entries.iter().map(|entry| (Arc::clone(&entry.policy.label), entry.policy.endpoints.clone()))
    }

    /// The client of a configured name, if there is one for the whole of it.
    pub(super) fn client_called(&self, label: &str) -> Option<Arc<Upstream>> {
        let entry = self.entries.iter().find(|entry| *entry.policy.label == *label)?;
        match &entry.source {
            Source::One(client) => Some(Arc::clone(client)),
            Source::Pattern(_) => None,
        }
    }

    /// Whether any upstream is opened with a credential.
    pub fn any_credentials(&self) -> bool {
        self.entries.iter().any(|entry| matches!(&entry.source, Source::One(client) if client.has_credentials()))
    }

    /// The canonical name of the registry that a name or alias means, if it is configured.
    pub fn registry_called(&self, name: &str) -> Option<RegistryName> {
        self.names.registry_called(name)
    }

    /// The names that lead to them.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Finds what a request means; see [`Names::resolve`].
    pub fn resolve(
        &self,
        prefix: Option<&str>,
        name: &str,
        namespace: Option<&str>,
        host: Option<&str>,
    ) -> Result<Target, MirrorError> {
        let resolved = self.names.resolve(prefix, name, namespace, host)?;
        let name = repository_name(&resolved).map_err(|error| {
            MirrorError::new(MirrorErrorKind::InvalidName, format!("{error} (in {})", resolved.registry))
        })?;
        let Resolved { upstream, registry, .. } = resolved;
        let entry = self.entries.get(upstream).ok_or_else(|| MirrorError::died("configuration"))?;
        let client = match &entry.source {
            Source::One(client) => Arc::clone(client),
            Source::Pattern(factory) => self.by_pattern.get_with_by_ref(&registry, || factory(&registry)),
        };
        entry.policy.admit(&registry, &name)?;
        let upstream = Mirrored { policy: Arc::clone(&entry.policy), client };
        Ok(Target { upstream, repository: Repository { registry, name }, listed: false, via: None })
    }
}

// === impl Policy ===

impl Policy {
    /// Refuses a repository that an operator does not want served, whatever is held of it.
    fn admit(&self, registry: &RegistryName, name: &RepositoryName) -> Result<(), MirrorError> {
        let refuse = |why: String| {
            let message =
                format!("{registry}/{name} is not served by this mirror: {why} of [upstreams.\"{}\"]", self.label);
            Err(MirrorError::new(MirrorErrorKind::Denied, message))
        };
        if let Some(glob) = self.deny.matching(name) {
            return refuse(format!("it matches {glob:?} in deny"));
        }
        match &self.allow {
            Some(allow) if allow.matching(name).is_none() => refuse("it matches nothing in allow".to_owned()),
            Some(_) | None => Ok(()),
        }
    }
}

// === impl Target ===

impl Target {
    /// The same, for a request that has come through other mirrors.
    pub(super) fn on_behalf_of(mut self, via: Arc<str>) -> Self {
        if self.upstream.client.has_mirrors() {
            self.upstream.client = Arc::new(self.upstream.client.on_behalf_of(Arc::clone(&via)));
            self.via = Some(via);
        }
        self
    }

    /// The same, for what nobody waits for.
    pub(super) fn in_background(&self) -> Self {
        let client = Arc::new(self.upstream.client.in_background());
        Self { upstream: Mirrored { client, ..self.upstream.clone() }, ..self.clone() }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(client) => f.debug_tuple("One").field(client).finish(),
            Self::Pattern(_) => f.write_str("Pattern"),
        }
    }
}
