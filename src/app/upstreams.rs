//! From configured upstreams to clients that can be asked: who is reached where, as whom, by which way, and under which names.

use std::sync::Arc;

use crate::config::{self, Config, Upstream, UpstreamName};
use crate::metrics::Metrics;
use crate::mirror::{Denials, Names, Outcome, Policy, Source, Upstreams};
use crate::oci::RegistryName;
use crate::upstream::{
    self, ClientCertificate, Credential, CredentialSource, EndpointOptions, Environment, Instance, Options, Pace,
    Proxy, ProxyAddress,
};

/// What the clients of all upstreams share.
#[derive(Clone, Debug)]
pub struct Clients {
    metrics: Arc<Metrics>,
    instance: Instance,
    /// The cap that all of them keep to together.
    pace: Option<Pace>,
    docker_config: Vec<CredentialSource>,
    environment: Environment,
}

// === impl Clients ===

impl Clients {
    /// What a configuration says of all upstreams.
    pub fn new(config: &Config, instance: &Instance, metrics: &Arc<Metrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            instance: instance.clone(),
            pace: config.fill.max_bandwidth.map(Pace::new),
            docker_config: config.docker_config.iter().cloned().map(CredentialSource::DockerConfig).collect(),
            environment: Environment {
                http: config.proxies.http.clone().map(ProxyAddress::new),
                https: config.proxies.https.clone().map(ProxyAddress::new),
                no_proxy: config.proxies.no_proxy.clone(),
            },
        }
    }

    /// The client of a registry that an upstream serves. Those of one pattern share its `pace`.
    pub fn client(&self, upstream: &Upstream, registry: &RegistryName, pace: Option<&Pace>) -> upstream::Upstream {
        let is_pattern = upstream.name.exact().is_none();
        let mut credentials: Vec<CredentialSource> = upstream.credentials.iter().map(source).collect();
        if !is_pattern {
            credentials.extend(self.docker_config.iter().cloned());
        }
        let proxy = match &upstream.proxy {
            config::Proxy::Environment => Proxy::Environment(self.environment.clone()),
            config::Proxy::Direct => Proxy::Direct,
            config::Proxy::Through(address) => Proxy::Through(ProxyAddress::new(address.clone())),
        };
        let certificate = upstream.client_cert.as_ref();
        let options = Options {
            name: upstream.name.as_str().to_owned(),
            endpoints: upstream.endpoints_for(registry).into_iter().map(endpoint).collect(),
            credentials,
            ca_file: upstream.ca_file.clone(),
            insecure_skip_verify: upstream.insecure_skip_verify,
            client_cert: certificate.map(|c| ClientCertificate { cert: c.cert.clone(), key: c.key.clone() }),
            proxy,
            connect_timeout: upstream.connect_timeout,
            header_timeout: upstream.header_timeout,
            read_idle_timeout: upstream.read_timeout,
            max_connections: upstream.max_connections,
            public_only: is_pattern,
            redirect_hosts: upstream.redirect_hosts.clone(),
            paces: pace.into_iter().chain(&self.pace).cloned().collect(),
            instance: self.instance.clone(),
        };
        upstream::Upstream::new(options, Arc::clone(&self.metrics))
    }
}

fn endpoint(endpoint: config::Endpoint) -> EndpointOptions {
    let config::Endpoint { url, mirror, repository_prefix, credential } = endpoint;
    let credential = credential.map(|credential| match source(&credential) {
        // A program is asked about the registry that is there, which may be another than the upstream: a cache in ECR.
        CredentialSource::Helper { scope, program, .. } => {
            let server =
                url.host_str().map(|host| url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")));
            CredentialSource::Helper { scope, program, server }
        }
        credential => credential,
    });
    EndpointOptions { url, mirror, repository_prefix, credential }
}

fn source(credential: &config::Credential) -> CredentialSource {
    let scope = credential.scope.clone();
    match credential.login.clone() {
        config::Login::Password { username, password, password_file } => {
            CredentialSource::Password(Credential { scope, username, password, password_file })
        }
        config::Login::Helper(program) => CredentialSource::Helper { scope, program, server: None },
    }
}

/// The names under which upstreams can be asked for, numbered as in the configuration.
pub fn names(config: &Config) -> Names {
    let mut names = Names::default();
    for (number, upstream) in config.upstreams.iter().enumerate() {
        match &upstream.name {
            UpstreamName::Exact(registry) => names.add(number, registry, &upstream.aliases),
            UpstreamName::Pattern(pattern) => names.add_pattern(number, pattern.trim_start_matches('*')),
        }
    }
    for (host, registry) in &config.server.hosts {
        names.add_host(host, registry.as_str());
    }
    if let Some(default) = &config.server.default_upstream {
        names.set_default(default.as_str());
    }
    names
}

/// The upstreams, with a client for each (the one that `unchanged` has, or a new one) and a name table that leads to them.
pub(super) fn upstreams(
    config: &Config,
    clients: &Clients,
    unchanged: impl Fn(&Upstream) -> Option<Arc<upstream::Upstream>>,
) -> Upstreams {
    let mut entries = Vec::new();
    clients.metrics.declare_upstream("-", &Outcome::LABELS);
    for upstream in &config.upstreams {
        clients.metrics.declare_upstream(upstream.name.as_str(), &Outcome::LABELS);
        let pace = upstream.max_bandwidth.map(Pace::new);
        let source = match &upstream.name {
            UpstreamName::Exact(registry) => {
                let client = || Arc::new(clients.client(upstream, registry, pace.as_ref()));
                Source::One(unchanged(upstream).unwrap_or_else(client))
            }
            UpstreamName::Pattern(_) => {
                let (upstream, clients) = (upstream.clone(), clients.clone());
                Source::Pattern(Box::new(move |registry| Arc::new(clients.client(&upstream, registry, pace.as_ref()))))
            }
        };
        entries.push((policy(upstream), source));
    }
    Upstreams::new(names(config), entries)
}

fn policy(upstream: &Upstream) -> Policy {
    Policy {
        label: upstream.name.as_str().into(),
        endpoints: upstream.endpoints.iter().map(|endpoint| endpoint.url.to_string()).collect(),
        tag_ttl: upstream.tag_ttl,
        stale_if_error: upstream.stale_if_error,
        immutable_tags: upstream.immutable_tags.clone(),
        deleted_tags: upstream.deleted_tags,
        share_private: upstream.share_private,
        allow: upstream.allow.clone(),
        deny: upstream.deny.clone(),
        denials: upstream.deny_digests_file.clone().map(Denials::new),
        prefetch: upstream.prefetch.clone(),
    }
}
