//! Talking to registries: the only home of reqwest.
//!
//! An [`Upstream`] is one registry with its endpoints. A question to it goes through `request` (endpoints in order,
//! redirects), `authorize` (tokens and Basic) and `client` (one exchange with its deadlines); `manifests`, `blobs` and
//! `lists` know what the answers must look like. Nothing here is verified: that is for those who know the digest.

mod authorize;
mod blobs;
mod challenge;
mod client;
mod credentials;
mod endpoint;
mod error;
mod lanes;
mod link;
mod lists;
mod locations;
mod manifests;
mod redirect;
mod request;
mod resolver;
mod roots;
mod token;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::{Host, Url};

pub use blobs::{BlobHead, BlobRange, BlobStream};
pub use credentials::Credential;
pub use error::{Phase, UpstreamError, UpstreamErrorKind};
pub use lanes::Lane;
pub use lists::{Referrers, TagCursor, TagPage};
pub use manifests::{ManifestBody, ManifestHead};

use crate::metrics::Metrics;
use crate::oci::Repository;
use client::{Client, Settings};
use endpoint::Endpoint;
use lanes::Lanes;
use locations::Locations;
use resolver::{Network, Resolver};
use token::Tokens;

/// An upstream as configured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name in messages and metrics: the registry's, or the pattern that it matched.
    pub name: String,
    /// Where it is, in the order of preference. All of them are the same registry. A path is kept in front of `/v2`.
    pub endpoints: Vec<Url>,
    /// Credentials for it or for parts of it.
    pub credentials: Vec<Credential>,
    /// Certificates in PEM form that are believed beside the system's and the bundled roots.
    pub ca_file: Option<PathBuf>,
    /// Believe any certificate.
    pub insecure_skip_verify: bool,
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
}

/// A registry. Cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

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
    credentials: Vec<Credential>,
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
    roots::settings(ca_file, false).map_err(|error| error.to_string())
}

// === impl Upstream ===

impl Upstream {
    /// An upstream that is not talked to before it is asked something. Never fails, reads no file, looks up no name.
    pub fn new(options: Options, metrics: Arc<Metrics>) -> Self {
        Self::in_network(options, metrics, Network::default())
    }

    fn in_network(options: Options, metrics: Arc<Metrics>, network: Network) -> Self {
        let names = options.endpoints.iter().filter_map(|url| match url.host() {
            Some(Host::Domain(name)) => Some(name.to_owned()),
            Some(Host::Ipv4(_) | Host::Ipv6(_)) | None => None,
        });
        // An endpoint may point at its siblings, wherever they are.
        let siblings = options.endpoints.iter().filter_map(Url::host_str).filter(|_| !options.public_only);
        let hosts = options.redirect_hosts.iter().map(String::as_str).chain(siblings);
        let redirect_hosts = hosts.map(str::to_ascii_lowercase).collect();
        let resolver = Resolver::new(network, names, options.public_only);
        let settings = Settings {
            ca_file: options.ca_file,
            skip_verify: options.insecure_skip_verify,
            connect_timeout: options.connect_timeout,
            header_timeout: options.header_timeout,
            read_idle_timeout: options.read_idle_timeout,
            max_connections: options.max_connections,
        };
        Self(Arc::new(Inner {
            client: Client::new(options.name.clone(), settings, resolver.clone(), metrics),
            name: options.name,
            endpoints: options.endpoints.into_iter().map(Endpoint::new).collect(),
            credentials: options.credentials,
            redirect_hosts,
            public_only: options.public_only,
            resolver,
            tokens: Tokens::new(),
            lanes: Lanes::new(options.max_connections),
            locations: Locations::new(),
        }))
    }

    /// Its name in messages and metrics.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether a credential is configured for anything there.
    pub fn has_credentials(&self) -> bool {
        !self.0.credentials.is_empty()
    }

    /// Whether a credential is configured for this repository.
    pub fn has_credential(&self, repository: &Repository) -> bool {
        credentials::for_repository(&self.0.credentials, repository).is_some()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("name", &self.0.name)
            .field("endpoints", &self.0.endpoints.iter().map(Endpoint::label).collect::<Vec<_>>())
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
