//! Talking to registries: the only home of reqwest.
//!
//! An [`Upstream`] is one registry with its endpoints. A question to it goes through `request` (endpoints in order,
//! redirects), `authorize` (tokens and Basic) and `client` (one exchange with its deadlines); `manifests`, `blobs` and
//! `lists` know what the answers must look like. Nothing here is verified: that is for those who know the digest.

mod answer;
mod authorize;
mod blobs;
mod challenge;
mod client;
mod credentials;
mod docker_config;
mod endpoint;
mod error;
mod examine;
pub mod foreign;
mod health;
mod helper;
mod lanes;
mod link;
mod lists;
mod locations;
mod manifests;
mod pace;
mod proxy;
mod quota;
mod redirect;
mod request;
mod resolver;
mod roots;
mod token;
mod via;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use url::{Host, Url};

pub use blobs::{BlobHead, BlobRange, BlobStream};
pub use credentials::{Credential, CredentialSource};
pub use error::{Phase, UpstreamError, UpstreamErrorKind};
pub use examine::Finding;
pub use health::Breaker;
pub use lanes::Lane;
pub use lists::{Referrers, TagCursor, TagPage};
pub use manifests::{ManifestBody, ManifestHead};
pub use pace::Pace;
pub use proxy::{Environment, Proxy, ProxyAddress};
pub use roots::ClientCertificate;
pub use via::{Instance, WrongWay};

use crate::metrics::Metrics;
use crate::oci::{Repository, RepositoryName};
use client::{Client, Settings};
use credentials::Credentials;
use endpoint::Endpoint;
use lanes::Lanes;
use locations::Locations;
use request::{Answer, Ask};
use resolver::{Network, Resolver};
use token::Tokens;

/// An upstream as configured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name in messages and metrics: the registry's, or the pattern that it matched.
    pub name: String,
    /// Where it is, in the order of preference. All of them are the same registry. A path is kept in front of `/v2`.
    pub endpoints: Vec<EndpointOptions>,
    /// Where credentials for it or for parts of it come from.
    pub credentials: Vec<CredentialSource>,
    /// Certificates in PEM form that are believed beside the system's and the bundled roots.
    pub ca_file: Option<PathBuf>,
    /// Believe any certificate.
    pub insecure_skip_verify: bool,
    /// The certificate that we show.
    pub client_cert: Option<ClientCertificate>,
    /// The way out.
    pub proxy: Proxy,
    /// The endpoints, too, must have public addresses: for names that a client chose within a pattern.
    pub public_only: bool,
    /// How long a connection may take, TLS and name look-up included.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take; also how long to wait for a free connection.
    pub header_timeout: Duration,
    /// How long a body may pause.
    pub read_idle_timeout: Duration,
    /// Requests at once, each counted until its body has been read; at least 1. An eighth of them is never taken by bodies, and
    /// of the rest a third never by those that nobody waits for.
    pub max_connections: usize,
    /// Hosts, with a port for that one alone, or `*.suffix`, that redirects and token realms may point at though they are private.
    pub redirect_hosts: Vec<String>,
    /// What blobs' bodies keep to: a cap of its own, and that of all.
    pub paces: Vec<Pace>,
    /// What we call ourselves to other mirrors.
    pub instance: Instance,
}

/// One place where an upstream is to be had.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointOptions {
    /// Its address. A path is kept in front of `/v2`.
    pub url: Url,
    /// It is another Cachalot, which mirrors the upstream itself.
    pub mirror: bool,
    /// Where the upstream's repositories begin there: a project of Harbor or Artifactory, GitLab's dependency proxy.
    pub repository_prefix: Option<RepositoryName>,
    /// Who we are there. With one, the upstream's credentials are not shown to it.
    pub credential: Option<CredentialSource>,
}

/// A registry. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
    /// The mirrors that what is asked through this handle has come through.
    via: Option<Arc<str>>,
    /// Nobody waits for what is asked through this handle.
    background: bool,
}

/// Whose rights a question is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// With the credential that is configured for the repository, if there is one.
    Configured,
    /// As nobody: to learn whether the content is public.
    Anonymous,
}

struct Inner {
    name: String,
    endpoints: Vec<Endpoint>,
    credentials: Credentials,
    via: Instance,
    redirect_hosts: Vec<String>,
    public_only: bool,
    client: Client,
    resolver: Resolver,
    tokens: Arc<Tokens>,
    lanes: Lanes,
    locations: Locations,
}

/// TLS settings that believe the usual roots, and those in `ca_file`. Reads files.
pub fn tls_settings(ca_file: Option<&std::path::Path>) -> Result<rustls::ClientConfig, String> {
    roots::settings(ca_file, false, None).map_err(|error| error.to_string())
}

/// TLS settings that believe any certificate: to ask this machine's own server how it is.
pub fn tls_settings_for_anyone() -> Result<rustls::ClientConfig, String> {
    roots::settings(None, true, None).map_err(|error| error.to_string())
}

// === impl Upstream ===

impl Upstream {
    /// An upstream that is not talked to before it is asked something. Never fails, reads no file, looks up no name.
    pub fn new(options: Options, metrics: Arc<Metrics>) -> Self {
        Self::in_network(options, metrics, Network::default())
    }

    fn in_network(options: Options, metrics: Arc<Metrics>, network: Network) -> Self {
        let names = options.endpoints.iter().filter_map(|endpoint| match endpoint.url.host() {
            Some(Host::Domain(name)) => Some(name.to_owned()),
            Some(Host::Ipv4(_) | Host::Ipv6(_)) | None => None,
        });
        // An endpoint may point at its siblings, wherever they are.
        let siblings =
            options.endpoints.iter().filter_map(|endpoint| endpoint.url.host_str()).filter(|_| !options.public_only);
        let hosts = options.redirect_hosts.iter().map(String::as_str).chain(siblings);
        let redirect_hosts = hosts.map(str::to_ascii_lowercase).collect();
        let resolver = Resolver::new(network, names, options.public_only);
        let settings = Settings {
            ca_file: options.ca_file,
            skip_verify: options.insecure_skip_verify,
            client_cert: options.client_cert,
            proxy: options.proxy,
            paces: options.paces,
            connect_timeout: options.connect_timeout,
            header_timeout: options.header_timeout,
            read_idle_timeout: options.read_idle_timeout,
            max_connections: options.max_connections,
        };
        let inner = Inner {
            client: Client::new(options.name.clone(), settings, resolver.clone(), metrics),
            name: options.name,
            endpoints: options.endpoints.into_iter().map(Endpoint::new).collect(),
            credentials: Credentials::new(options.credentials),
            via: options.instance,
            redirect_hosts,
            public_only: options.public_only,
            resolver,
            tokens: Tokens::new(),
            lanes: Lanes::new(options.max_connections),
            locations: Locations::new(),
        };
        Self { inner: Arc::new(inner), via: None, background: false }
    }

    /// Its name in messages and metrics.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The same, for what another mirror asked that lies behind `via`.
    #[must_use]
    pub fn on_behalf_of(&self, via: Arc<str>) -> Self {
        Self { via: Some(via), ..self.clone() }
    }

    /// The same, for what nobody waits for: bodies come in the background lane, whatever is said of them.
    #[must_use]
    pub fn in_background(&self) -> Self {
        Self { background: true, ..self.clone() }
    }

    /// Whether any of its endpoints is another mirror.
    pub fn has_mirrors(&self) -> bool {
        self.inner.endpoints.iter().any(|endpoint| endpoint.mirror)
    }

    /// Host and port of the endpoint that is asked next.
    pub fn next_endpoint(&self) -> String {
        self.inner.endpoints_in_order().first().map_or_else(String::new, |endpoint| endpoint.label().to_owned())
    }

    /// Whether it may be asked through another mirror first, which then sends blobs best in one piece.
    pub fn is_behind_a_mirror(&self) -> bool {
        self.inner.endpoints.first().is_some_and(|endpoint| endpoint.mirror)
    }

    /// Whether there may be a credential for anything there.
    pub fn has_credentials(&self) -> bool {
        !self.inner.credentials.is_empty() || self.inner.endpoints.iter().any(|endpoint| endpoint.own.is_some())
    }

    /// Whether there may be a credential for this repository.
    pub fn has_credential(&self, repository: &Repository) -> bool {
        self.inner.credentials.cover(repository) || self.inner.endpoints.iter().any(|endpoint| endpoint.own.is_some())
    }

    /// How long it wants to be left alone with everything that can wait.
    pub fn pause(&self) -> Option<Duration> {
        self.inner.client.quota.pause(Instant::now())
    }

    /// What the circuit breakers of its endpoints do, by host and port, in the order of the configuration.
    pub fn breakers(&self) -> Vec<(String, Breaker)> {
        let now = Instant::now();
        let of = |endpoint: &Endpoint| (endpoint.label().to_owned(), endpoint.health.breaker(now));
        self.inner.endpoints.iter().map(of).collect()
    }

    /// Whether it said that few pulls are left to us.
    pub fn quota_is_low(&self) -> bool {
        self.inner.client.quota.is_low(Instant::now())
    }

    async fn ask(&self, ask: Ask<'_>) -> Result<Answer, UpstreamError> {
        let via = self.via.clone();
        self.inner.ask(&Ask { via, ..ask }).await
    }
}

// === impl EndpointOptions ===

impl EndpointOptions {
    /// A plain endpoint.
    pub fn at(url: Url) -> Self {
        Self { url, mirror: false, repository_prefix: None, credential: None }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("name", &self.inner.name)
            .field("endpoints", &self.inner.endpoints.iter().map(Endpoint::label).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

// === impl Inner ===

impl Inner {
    /// Whether it lives in a private network, so that it may point at addresses there.
    fn is_private(&self) -> bool {
        !self.public_only && (self.has_private_literal() || self.resolver.has_private_endpoint())
    }

    fn has_private_literal(&self) -> bool {
        let is_public = self.resolver.is_public();
        self.endpoints.iter().any(|endpoint| match endpoint.url.host() {
            Some(Host::Ipv4(address)) => !is_public(address.into()),
            Some(Host::Ipv6(address)) => !is_public(address.into()),
            Some(Host::Domain(_)) | None => false,
        })
    }
}
