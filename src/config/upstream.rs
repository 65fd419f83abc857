//! An upstream as configured: its name or pattern, where it is, what is believed of it and for how long.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use url::Url;

use super::credential::Credential;
use super::endpoint::Endpoint;
use super::globs::Globs;
use super::mistake::quoted;
use super::policy::{DeletedTags, NameGlobs, PlatformName};
use super::{Certificate, StaleIfError, Tags};
use crate::oci::{RegistryName, Tag};
use crate::secret::Secret;

/// A registry, or a family of registries, that is mirrored.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// What clients call it.
    pub name: UpstreamName,
    /// Where it is, tried in order. Empty for a pattern, whose registries are where their names say: use
    /// [`Upstream::endpoints_for`].
    pub endpoints: Vec<Endpoint>,
    /// Further names: registry names, or path prefixes of any depth (`mirror/hub`). Lower-case.
    pub aliases: Vec<String>,
    /// How long a tag is served without asking; zero asks always.
    pub tag_ttl: Duration,
    /// How long a tag is served after that while upstream fails.
    pub stale_if_error: StaleIfError,
    /// Tags that never move: held means fresh.
    pub immutable_tags: TagGlobs,
    /// Who we are there, by part of the registry. Never any for a pattern.
    pub credentials: Vec<Credential>,
    /// Whether what only our credentials open is served to everyone.
    pub share_private: bool,
    /// The only repositories that are served; `None` for all.
    pub allow: Option<NameGlobs>,
    /// Repositories that are not served.
    pub deny: NameGlobs,
    /// A file of digests that are not served.
    pub deny_digests_file: Option<PathBuf>,
    /// What becomes of tags that upstream has deleted.
    pub deleted_tags: DeletedTags,
    /// Platforms whose content is fetched with the manifest that lists it.
    pub prefetch: Vec<PlatformName>,
    /// The certificate that we show.
    pub client_cert: Option<Certificate>,
    /// The way out.
    pub proxy: Proxy,
    /// How many bytes of blobs may come from it in a second.
    pub max_bandwidth: Option<u64>,
    /// Certificates trusted beside the usual ones, as PEM.
    pub ca_file: Option<PathBuf>,
    /// Whether the certificate of an `https` endpoint is not looked at. Never for a pattern.
    pub insecure_skip_verify: bool,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a request may wait for response headers.
    pub header_timeout: Duration,
    /// How long a body may pause.
    pub read_timeout: Duration,
    /// How many requests are under way at most.
    pub max_connections: usize,
    /// Hosts (`blobs.corp`, `blobs.corp:8443`) and patterns (`*.storage.corp`) that it may redirect to although they are
    /// not public or not `https`. Lower-case.
    pub redirect_hosts: Vec<String>,
}

/// What an upstream is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum UpstreamName {
    /// One registry.
    Exact(RegistryName),
    /// Every registry whose name ends so: `*.pkg.dev`, where `*` is one label or more. Always by TLS on port 443.
    Pattern(String),
}

/// How an upstream, and where it points, is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxy {
    /// As `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// Without a proxy.
    Direct,
    /// Through this one, whose address may hold a password.
    Through(Secret),
}

/// Globs over tags.
#[derive(Debug, Clone, PartialEq)]
pub struct TagGlobs(Globs);

/// The upstream that serves a registry: the one of that name, else the one with the longest pattern that matches.
pub(super) fn serving<'a>(upstreams: &'a [Upstream], registry: &RegistryName) -> Option<&'a Upstream> {
    // A pattern is never longer than a name that it matches, and shorter patterns say less.
    upstreams
        .iter()
        .filter(|upstream| upstream.name.matches(registry))
        .max_by_key(|upstream| (upstream.name.exact().is_some(), upstream.name.as_str().len()))
}

// === impl Upstream ===

impl Upstream {
    /// An upstream of that name with every default: at `https://NAME`, and tags as for all.
    pub(super) fn new(name: UpstreamName, tags: &Tags) -> Self {
        let endpoints = name.exact().and_then(https).into_iter().collect();
        Self {
            name,
            endpoints,
            aliases: Vec::new(),
            tag_ttl: tags.ttl,
            stale_if_error: tags.stale_if_error,
            immutable_tags: TagGlobs::none(),
            credentials: Vec::new(),
            share_private: false,
            allow: None,
            deny: NameGlobs::none(),
            deny_digests_file: None,
            deleted_tags: DeletedTags::For(Duration::from_hours(30 * 24)),
            prefetch: Vec::new(),
            client_cert: None,
            proxy: Proxy::Environment,
            max_bandwidth: None,
            ca_file: None,
            insecure_skip_verify: false,
            connect_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_mins(1),
            read_timeout: Duration::from_secs(30),
            max_connections: 64,
            redirect_hosts: Vec::new(),
        }
    }

    /// Where to ask for a registry that this upstream serves: its endpoints, or for a pattern the registry itself, by
    /// TLS. Empty if the name makes no address, which no valid name does.
    pub fn endpoints_for(&self, registry: &RegistryName) -> Vec<Endpoint> {
        match self.name {
            UpstreamName::Exact(_) => self.endpoints.clone(),
            UpstreamName::Pattern(_) => https(registry).into_iter().collect(),
        }
    }
}

fn https(registry: &RegistryName) -> Option<Endpoint> {
    Url::parse(&format!("https://{registry}")).ok().map(Endpoint::at)
}

// === impl UpstreamName ===

impl UpstreamName {
    /// The name or pattern as text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Exact(name) => name.as_str(),
            Self::Pattern(pattern) => pattern,
        }
    }

    /// The name, if it is one and no pattern.
    pub fn exact(&self) -> Option<&RegistryName> {
        match self {
            Self::Exact(name) => Some(name),
            Self::Pattern(_) => None,
        }
    }

    /// Whether a registry is meant. A pattern never means one with a port: 443 is the only one it dials.
    pub fn matches(&self, registry: &RegistryName) -> bool {
        match self {
            Self::Exact(name) => name == registry,
            Self::Pattern(pattern) => {
                let suffix = pattern.strip_prefix('*').unwrap_or(pattern);
                // The suffix holds its dot and no port, and ends in a letter-led label, so neither a port nor an
                // address can match.
                registry.as_str().strip_suffix(suffix).is_some_and(|labels| !labels.is_empty())
            }
        }
    }
}

impl FromStr for UpstreamName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('*') {
            return text.parse().map(Self::Exact).map_err(|_| {
                format!(
                    "{} is not the name of a registry: a host in lower case, maybe with a port, such as \"registry.corp:5000\"",
                    quoted(text)
                )
            });
        }
        // A last label that begins with a letter makes a name of the domain system: `*.0.0.1` would match addresses.
        let domain = text.strip_prefix("*.").filter(|domain| {
            let last = domain.rsplit('.').next().unwrap_or_default();
            domain.parse::<RegistryName>().is_ok()
                && !domain.contains(':')
                && last.starts_with(|c: char| c.is_ascii_lowercase())
        });
        match domain {
            Some(_) => Ok(Self::Pattern(text.to_owned())),
            None => Err(format!(
                "{} is not a pattern: \"*.\" and a domain in lower case, without a port, such as \"*.corp\"",
                quoted(text)
            )),
        }
    }
}

impl fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl TagGlobs ===

impl TagGlobs {
    /// Globs that match nothing.
    pub fn none() -> Self {
        Self(Globs::none())
    }

    /// Reads globs: `*`, `?`, `[a-z]`, `{a,b}`. The error says which is none, and why.
    pub fn new(globs: Vec<String>) -> Result<Self, String> {
        Globs::new(globs).map(Self)
    }

    /// Whether one of them matches.
    pub fn matches(&self, tag: &Tag) -> bool {
        self.0.matches(tag.as_str())
    }

    /// The globs as written.
    pub fn as_slice(&self) -> &[String] {
        self.0.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(text: &str) -> RegistryName {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_matches_names_below_a_domain_and_nothing_else() {
        let pattern: UpstreamName = "*.pkg.dev".parse().unwrap();
        for name in ["us-docker.pkg.dev", "a.b.pkg.dev"] {
            assert!(pattern.matches(&registry(name)), "{name}");
        }
        for name in ["pkg.dev", "pkg.dev.evil.example", "evilpkg.dev", "us.pkg.dev:443", "us.pkg.dev:5000", "127.0.0.1"]
        {
            assert!(!pattern.matches(&registry(name)), "{name}");
        }
    }

    #[test]
    fn patterns_that_could_match_addresses_or_everything_are_refused() {
        for bad in
            ["*", "*.", "*corp", "a.*", "*.*.corp", "*.0.0.1", "*.1", "*.0x7f", "*.corp:5000", "*.Corp", "*.[::1]"]
        {
            assert!(bad.parse::<UpstreamName>().unwrap_err().contains("is not a pattern"), "{bad}");
        }
    }

    #[test]
    fn the_exact_name_goes_before_patterns_and_the_longer_pattern_before_the_shorter() {
        let names = ["*.corp", "*.b.corp", "a.b.corp"];
        let upstreams: Vec<_> =
            names.iter().map(|name| Upstream::new(name.parse().unwrap(), &Tags::default())).collect();
        let served = |name: &str| serving(&upstreams, &registry(name)).map(|upstream| upstream.name.as_str());
        assert_eq!(served("a.b.corp"), Some("a.b.corp"));
        assert_eq!(served("x.b.corp"), Some("*.b.corp"));
        assert_eq!(served("x.corp"), Some("*.corp"));
        assert_eq!(served("corp"), None);
    }

    #[test]
    fn a_pattern_is_dialled_at_the_name_by_tls() {
        let tags = Tags::default();
        let pattern = Upstream::new("*.corp".parse().unwrap(), &tags);
        assert_eq!(pattern.endpoints_for(&registry("a.corp")), [Endpoint::at("https://a.corp/".parse().unwrap())]);
        let exact = Upstream::new("b.corp:5000".parse().unwrap(), &tags);
        assert_eq!(
            exact.endpoints_for(&registry("b.corp:5000")),
            [Endpoint::at("https://b.corp:5000/".parse().unwrap())]
        );
    }

    #[test]
    fn globs_over_tags() {
        let globs = TagGlobs::new(vec!["v*.*.*".to_owned(), "20??-[01]?".to_owned()]).unwrap();
        for (tag, matches) in
            [("v1.2.3", true), ("v1.2", false), ("xv1.2.3", false), ("2026-08", true), ("latest", false)]
        {
            assert_eq!(globs.matches(&tag.parse().unwrap()), matches, "{tag}");
        }
        assert!(!TagGlobs::none().matches(&"latest".parse().unwrap()));
        assert_eq!(
            TagGlobs::new(vec!["v[1".to_owned()]).unwrap_err(),
            "\"v[1\" is not a glob: unclosed character class; missing ']'"
        );
    }
}
