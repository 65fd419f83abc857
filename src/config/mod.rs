//! What the operator wrote becomes what the program may rely on, with all mistakes reported at once.
//!
//! Two shapes: `written` is what the file says, each value with its place; [`Config`] is what it means, with every
//! default filled in and every name looked up. `meaning` is the way from one to the other. Order: defaults, then the
//! file, then the environment, then flags. `schema` lists every key once: the reader walks it, unknown keys are found by
//! it, and the test of `config/cachalot.full.toml` too.

mod access;
mod builtin;
pub mod capacity;
mod certificate;
mod credential;
mod endpoint;
mod globs;
mod load;
mod meaning;
mod merge;
mod mistake;
pub mod policy;
mod reader;
mod schema;
mod show;
pub mod upstream;
mod users;
mod values;
mod warm;
mod written;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::oci::RegistryName;
use crate::secret::Secret;

pub use access::{Access, Reader, RepositoryGlobs, Rule};
pub use capacity::{Capacity, FileSystemFacts, Floor, MinFree};
pub use certificate::Certificate;
pub use credential::{Credential, Login};
pub use endpoint::Endpoint;
pub use load::{Env, Flags, ProcessEnv, load, load_text};
pub use merge::DENIED_BYTES_MAX;
pub use mistake::{ConfigErrors, EXIT_CONFIG, Mistake, Place, Position, Source};
pub use policy::{DeletedTags, NameGlobs, PlatformName};
pub use upstream::{Proxy, TagGlobs, Upstream, UpstreamName};
pub use users::{Token, TokenSecret, Users};
pub use values::log_level;
pub use warm::Warm;

/// The configuration as meant: complete, checked, with nothing left to look up.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Serve what is held and ask no upstream for anything.
    pub offline: bool,
    /// The registry that clients see.
    pub server: Server,
    /// Health, metrics and the API.
    pub admin: Admin,
    /// The data directory.
    pub storage: Storage,
    /// Downloads.
    pub fill: Fill,
    /// Tags: what upstreams take on where they say nothing of their own.
    pub tags: Tags,
    /// Every upstream: the built-in ones, as changed by the file, and the file's own. Names and aliases are unique.
    pub upstreams: Vec<Upstream>,
    /// Who may read; `None` where that was not written.
    pub access: Option<Access>,
    /// Lists of images that are kept warm.
    pub warm: Vec<Warm>,
    /// Docker's files of credentials, for all upstreams that are no patterns.
    pub docker_config: Vec<PathBuf>,
    /// The proxies that the environment names.
    pub proxies: Proxies,
    /// The log.
    pub log: Log,
}

/// The proxies that the environment names. Their addresses may hold passwords.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http` addresses.
    pub http: Option<Secret>,
    /// For `https` addresses.
    pub https: Option<Secret>,
    /// Hosts that are reached directly.
    pub no_proxy: String,
}

/// `[server]`: the registry that clients see.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Where it listens; at least one address.
    pub listen: Vec<SocketAddr>,
    /// The registry meant by clients that name none; `None` refuses them.
    pub default_upstream: Option<RegistryName>,
    /// Host headers (lower-case, a port only if the operator wrote one) that name a registry.
    pub hosts: BTreeMap<String, RegistryName>,
    /// How long a client waits for response headers before it gets a 504.
    pub client_header_timeout: Duration,
    /// How many client connections are open at most.
    pub max_connections: usize,
    /// How many of them from one address; `None` is no limit.
    pub max_connections_per_address: Option<usize>,
    /// How many downloads, and how many other questions to upstreams, are under way at most.
    pub max_misses: usize,
    /// Proxies that are believed when they say for whom they ask.
    pub trusted_proxies: Vec<IpNet>,
    /// What it shows clients; empty for plain HTTP.
    pub tls: Vec<Certificate>,
}

/// `[admin]`: where operators ask.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// Where it listens; empty turns it off.
    pub listen: Vec<SocketAddr>,
    /// What it shows operators; empty for plain HTTP.
    pub tls: Vec<Certificate>,
    /// Who may use the API; nobody known means that only loopback addresses may.
    pub users: Users,
    /// Those of them who may also change things.
    pub admins: Vec<String>,
}

/// `[storage]`: the data directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    /// The folder, made if it does not exist. Relative paths start from the working directory, as all in the file do.
    pub path: PathBuf,
    /// How much it may hold.
    pub capacity: Capacity,
    /// How much of the file system stays untouched.
    pub min_free: MinFree,
    /// How often all that is held is hashed again; zero is never.
    pub scrub_period: Duration,
    /// How many bytes a second that reads.
    pub scrub_bytes_per_second: u64,
    /// Between which hours of the day (UTC) it works: from the first, until the second. It wraps around midnight.
    pub scrub_hours: (u32, u32),
}

/// `[fill]`: downloads.
#[derive(Debug, Clone, PartialEq)]
pub struct Fill {
    /// How many connections share the download of a large blob.
    pub connections_per_blob: usize,
    /// From which size on a blob counts as large, in bytes.
    pub parallel_above_bytes: u64,
    /// What happens to a range that ends before the tail of a blob still being downloaded.
    pub unverified_ranges: UnverifiedRanges,
    /// From which share of a blob on, in percent, all of it is fetched although only parts were wanted.
    pub complete_from_percent: u8,
    /// How many bytes of blobs may come from all upstreams together in a second.
    pub max_bandwidth: Option<u64>,
}

/// What happens to a range that could be answered before its blob is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnverifiedRanges {
    /// It is sent, and says so in `Cache-Status`; lazy pulling needs it.
    Send,
    /// It waits for the digest of the whole blob.
    Wait,
}

/// `[tags]`: how long answers about names that can move are believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Tags {
    /// How long a tag is served without asking; zero asks always.
    pub ttl: Duration,
    /// How long a tag is served after that while upstream fails.
    pub stale_if_error: StaleIfError,
    /// How long a list of tags is served without asking.
    pub list_ttl: Duration,
    /// How long a "not found" is believed.
    pub negative_ttl: Duration,
}

/// How long something held is served while upstream fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleIfError {
    /// Without end.
    Forever,
    /// Not at all: an error is an error.
    Never,
    /// For so long after it was last fresh.
    For(Duration),
}

/// `[log]`
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// What is logged: levels for all or for single targets (`info,hyper=warn`), each known to be one.
    pub level: String,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

// === impl Config ===

impl Default for Config {
    /// What is meant where nothing is written.
    fn default() -> Self {
        let tags = Tags::default();
        Self {
            offline: false,
            server: Server::default(),
            admin: Admin::default(),
            storage: Storage::default(),
            fill: Fill::default(),
            upstreams: builtin::upstreams(&tags),
            tags,
            access: None,
            warm: Vec::new(),
            docker_config: Vec::new(),
            proxies: Proxies::default(),
            log: Log { format: LogFormat::Text, level: "info".to_owned() },
        }
    }
}

impl Config {
    /// The files that it was read from beside its own, and those that listeners show: what is to be watched.
    pub fn files(&self) -> Vec<PathBuf> {
        let certificates = self.server.tls.iter().chain(&self.admin.tls);
        let users = [Some(&self.admin.users), self.access.as_ref().map(|access| &access.users)].into_iter().flatten();
        // Files of credentials are read again by those who use them.
        let upstreams = self.upstreams.iter().filter_map(|upstream| upstream.ca_file.clone());
        certificates
            .flat_map(|certificate| [certificate.cert.clone(), certificate.key.clone()])
            .chain(users.flat_map(|users| [users.htpasswd.clone(), users.tokens_file.clone()]).flatten())
            .chain(upstreams)
            .collect()
    }

    /// The upstream that serves a registry: the one of that name, else the one with the longest pattern that matches.
    /// Aliases are not looked at.
    pub fn upstream(&self, registry: &RegistryName) -> Option<&Upstream> {
        upstream::serving(&self.upstreams, registry)
    }
}

// === impl Server ===

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 5050))],
            default_upstream: "docker.io".parse().ok(),
            hosts: BTreeMap::new(),
            client_header_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            max_connections_per_address: None,
            max_misses: 1000,
            trusted_proxies: Vec::new(),
            tls: Vec::new(),
        }
    }
}

impl Server {
    /// The registry that a `Host` header names: as it is, else without its port. Letters of either case.
    pub fn registry_of_host(&self, host: &str) -> Option<&RegistryName> {
        let host = host.to_ascii_lowercase();
        let without_port = || host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        self.hosts.get(&host).or_else(|| self.hosts.get(without_port()?.0))
    }
}

// === impl Admin ===

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 5051))],
            tls: Vec::new(),
            users: Users::default(),
            admins: Vec::new(),
        }
    }
}

// === impl Storage ===

impl Default for Storage {
    fn default() -> Self {
        Self {
            path: PathBuf::from("cachalot-data"),
            capacity: Capacity::Default,
            min_free: MinFree::Percent(5),
            scrub_period: Duration::from_hours(30 * 24),
            scrub_bytes_per_second: 16 << 20,
            scrub_hours: (0, 24),
        }
    }
}

// === impl Fill ===

impl Default for Fill {
    fn default() -> Self {
        Self {
            connections_per_blob: 4,
            parallel_above_bytes: 32 << 20,
            unverified_ranges: UnverifiedRanges::Send,
            complete_from_percent: 25,
            max_bandwidth: None,
        }
    }
}

// === impl Tags ===

impl Default for Tags {
    fn default() -> Self {
        Self {
            ttl: Duration::from_mins(1),
            stale_if_error: StaleIfError::Forever,
            list_ttl: Duration::from_mins(1),
            negative_ttl: Duration::from_secs(15),
        }
    }
}
