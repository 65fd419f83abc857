//! The configuration as written: each value read by itself, with its place, nothing filled in and nothing looked up.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::access::WrittenAccess;
use super::certificate::{self, WrittenCertificate};
use super::credential::WrittenCredential;
use super::endpoint::{self, WrittenEndpoint};
use super::globs;
use super::mistake::{Located, quoted};
use super::policy::{DeletedTags, PlatformName};
use super::reader::{Entry, Section};
use super::upstream::UpstreamName;
use super::warm::{self, WrittenWarm};
use super::{Capacity, LogFormat, MinFree, Proxy, StaleIfError, UnverifiedRanges, schema, values};
use crate::oci::{RegistryName, RepositoryName};
use crate::secret::Secret;

/// A setting that may have been written.
pub(super) type Setting<T> = Option<Located<T>>;

/// A whole file. The environment and flags overwrite what they set.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) offline: Setting<bool>,
    pub(super) listen: Setting<Vec<Located<SocketAddr>>>,
    pub(super) default_upstream: Setting<String>,
    pub(super) hosts: Vec<(Located<String>, Located<String>)>,
    pub(super) client_header_timeout: Setting<Duration>,
    pub(super) max_connections: Setting<u32>,
    pub(super) max_connections_per_address: Setting<u32>,
    pub(super) max_misses: Setting<u32>,
    pub(super) trusted_proxies: Setting<Vec<Located<IpNet>>>,
    pub(super) tls: Setting<Vec<WrittenCertificate>>,
    pub(super) admin_tls: Setting<Vec<WrittenCertificate>>,
    pub(super) admin_htpasswd: Setting<PathBuf>,
    pub(super) admin_tokens_file: Setting<PathBuf>,
    pub(super) admins: Setting<Vec<Located<String>>>,
    pub(super) access: Option<WrittenAccess>,
    pub(super) admin_listen: Setting<Vec<Located<SocketAddr>>>,
    pub(super) path: Setting<PathBuf>,
    pub(super) capacity: Setting<Capacity>,
    pub(super) min_free: Setting<MinFree>,
    pub(super) scrub_period: Setting<Duration>,
    pub(super) scrub_rate: Setting<u64>,
    pub(super) scrub_hours: Setting<(u32, u32)>,
    pub(super) connections_per_blob: Setting<u32>,
    pub(super) parallel_above: Setting<u64>,
    pub(super) unverified_ranges: Setting<UnverifiedRanges>,
    pub(super) complete_from: Setting<u8>,
    pub(super) max_bandwidth: Setting<u64>,
    pub(super) docker_config: Setting<Vec<Located<PathBuf>>>,
    pub(super) proxies: WrittenProxies,
    pub(super) tag_ttl: Setting<Duration>,
    pub(super) stale_if_error: Setting<StaleIfError>,
    pub(super) list_ttl: Setting<Duration>,
    pub(super) negative_ttl: Setting<Duration>,
    pub(super) log_format: Setting<LogFormat>,
    pub(super) log_level: Setting<String>,
    pub(super) warm: Vec<WrittenWarm>,
    pub(super) upstreams: Vec<WrittenUpstream>,
}

/// The proxies that the environment names.
#[derive(Debug, Default)]
pub(super) struct WrittenProxies {
    pub(super) http: Setting<Secret>,
    pub(super) https: Setting<Secret>,
    pub(super) no_proxy: Setting<String>,
}

/// An `[upstreams."NAME"]`.
#[derive(Debug)]
pub(super) struct WrittenUpstream {
    pub(super) name: Located<UpstreamName>,
    pub(super) endpoints: Setting<Vec<WrittenEndpoint>>,
    pub(super) aliases: Setting<Vec<Located<String>>>,
    pub(super) tag_ttl: Setting<Duration>,
    pub(super) stale_if_error: Setting<StaleIfError>,
    pub(super) immutable_tags: Setting<Vec<Located<String>>>,
    pub(super) credentials: Setting<Vec<WrittenCredential>>,
    pub(super) share_private: Setting<bool>,
    pub(super) policy: WrittenPolicy,
    pub(super) ca_file: Setting<PathBuf>,
    pub(super) insecure_skip_verify: Setting<bool>,
    pub(super) connect_timeout: Setting<Duration>,
    pub(super) header_timeout: Setting<Duration>,
    pub(super) read_timeout: Setting<Duration>,
    pub(super) max_connections: Setting<u32>,
    pub(super) redirect_hosts: Setting<Vec<Located<String>>>,
}

/// What an upstream's content is allowed to be, and the way to it.
#[derive(Debug)]
pub(super) struct WrittenPolicy {
    pub(super) allow: Setting<Vec<Located<String>>>,
    pub(super) deny: Setting<Vec<Located<String>>>,
    pub(super) deny_digests_file: Setting<PathBuf>,
    pub(super) deleted_tags: Setting<DeletedTags>,
    pub(super) prefetch: Setting<Vec<Located<PlatformName>>>,
    pub(super) client_cert: Setting<Vec<WrittenCertificate>>,
    pub(super) proxy: Setting<Proxy>,
    pub(super) max_bandwidth: Setting<u64>,
}

/// How long something may be believed. Longer is a slip: what never moves belongs in `immutable_tags`.
const TTL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(365 * 24);
/// How long a "not found" may be believed: people push what was missing, and then pull it.
const NEGATIVE_TTL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
/// How long something stale may be served; without end is spelled "forever".
const STALE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(3_650 * 24);
/// How long a step of the conversation may take.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);

// === impl Written ===

impl Written {
    /// Reads a file from its top.
    pub(super) fn read(mut root: Section<'_>) -> Self {
        let mut written = Self { offline: root.take("offline").and_then(Entry::boolean), ..Self::default() };
        if let Some(section) = root.take("server").and_then(|entry| entry.section(schema::SERVER)) {
            written.read_server(section);
        }
        if let Some(mut admin) = root.take("admin").and_then(|entry| entry.section(schema::ADMIN)) {
            written.admin_listen = admin.take("listen").and_then(addresses);
            written.admin_tls = admin.take("tls").and_then(certificate::read);
            written.admin_htpasswd = admin.take("htpasswd").and_then(path);
            written.admin_tokens_file = admin.take("tokens_file").and_then(path);
            written.admins = admin.take("admins").and_then(|entry| many(entry, |text| Ok(text.to_owned())));
            admin.finish();
        }
        written.access = root.take("access").and_then(WrittenAccess::read);
        if let Some(mut storage) = root.take("storage").and_then(|entry| entry.section(schema::STORAGE)) {
            written.path = storage.take("path").and_then(path);
            written.capacity = storage.take("capacity").and_then(|entry| entry.parse(str::parse));
            written.min_free = storage.take("min_free").and_then(|entry| entry.parse(str::parse));
            written.scrub_period = storage.take("scrub_period").and_then(|entry| duration(entry, &TTL));
            written.scrub_rate = storage.take("scrub_rate").and_then(|entry| entry.parse(values::bytes));
            written.scrub_hours = storage.take("scrub_hours").and_then(|entry| entry.parse(values::hours));
            storage.finish();
        }
        if let Some(mut fill) = root.take("fill").and_then(|entry| entry.section(schema::FILL)) {
            written.connections_per_blob = fill.take("connections_per_blob").and_then(|entry| entry.number(1..=32));
            written.parallel_above = fill.take("parallel_above").and_then(|entry| entry.parse(values::bytes));
            written.unverified_ranges = fill.take("unverified_ranges").and_then(|entry| entry.parse(unverified_ranges));
            written.complete_from = fill.take("complete_from").and_then(|entry| entry.parse(complete_from));
            written.max_bandwidth = fill.take("max_bandwidth").and_then(|entry| entry.parse(values::bandwidth));
            fill.finish();
        }
        if let Some(mut section) = root.take("credentials").and_then(|entry| entry.section(schema::CREDENTIALS)) {
            written.docker_config = section.take("docker_config").and_then(|entry| many(entry, path_text));
            section.finish();
        }
        if let Some(section) = root.take("tags").and_then(|entry| entry.section(schema::TAGS)) {
            written.read_tags(section);
        }
        if let Some(mut log) = root.take("log").and_then(|entry| entry.section(schema::LOG)) {
            written.log_format = log.take("format").and_then(|entry| entry.parse(log_format));
            written.log_level = log.take("level").and_then(|entry| entry.parse(values::log_level));
            log.finish();
        }
        written.warm = warm::read(root.take("warm").and_then(|entry| entry.entries("a table")));
        let upstreams = root.take("upstreams").and_then(|entry| entry.entries("a table"));
        let upstreams = upstreams.into_iter().flatten();
        written.upstreams = upstreams.filter_map(|(name, entry)| WrittenUpstream::read(&name, entry)).collect();
        root.finish();
        written
    }

    fn read_server(&mut self, mut server: Section<'_>) {
        self.listen = server.take("listen").and_then(addresses);
        self.default_upstream =
            server.take("default_upstream").and_then(Entry::text).map(|text| text.map(str::to_owned));
        let hosts = server.take("hosts").and_then(|entry| entry.entries("the name of an upstream"));
        let host = |(host, upstream): (Located<&str>, Entry<'_>)| {
            Some((host.map(str::to_owned), upstream.text()?.map(str::to_owned)))
        };
        self.hosts = hosts.into_iter().flatten().filter_map(host).collect();
        self.client_header_timeout = server.take("client_header_timeout").and_then(|entry| duration(entry, &TIMEOUT));
        self.max_connections = server.take("max_connections").and_then(|entry| entry.number(1..=1_000_000));
        let per_address = server.take("max_connections_per_address");
        self.max_connections_per_address = per_address.and_then(|entry| entry.number(0..=1_000_000));
        self.max_misses = server.take("max_misses").and_then(|entry| entry.number(1..=1_000_000));
        self.trusted_proxies = server.take("trusted_proxies").and_then(|entry| many(entry, values::network));
        self.tls = server.take("tls").and_then(certificate::read);
        server.finish();
    }

    fn read_tags(&mut self, mut tags: Section<'_>) {
        self.tag_ttl = tags.take("ttl").and_then(|entry| duration(entry, &TTL));
        self.stale_if_error = tags.take("stale_if_error").and_then(|entry| entry.parse(stale_if_error));
        self.list_ttl = tags.take("list_ttl").and_then(|entry| duration(entry, &TTL));
        self.negative_ttl = tags.take("negative_ttl").and_then(|entry| duration(entry, &NEGATIVE_TTL));
        tags.finish();
    }
}

// === impl WrittenUpstream ===

impl WrittenUpstream {
    /// Reads all of it even where the name is wrong, so that no mistake waits for another.
    fn read(name: &Located<&str>, entry: Entry<'_>) -> Option<Self> {
        let name = entry.check(name, str::parse);
        let mut section = entry.section(schema::UPSTREAM)?;
        let mut take = |key| section.take(key);
        let endpoints = take("endpoints").and_then(endpoint::read);
        let aliases = take("aliases").and_then(|entry| many(entry, alias));
        let tag_ttl = take("tag_ttl").and_then(|entry| duration(entry, &TTL));
        let stale_if_error = take("stale_if_error").and_then(|entry| entry.parse(stale_if_error));
        let immutable_tags = take("immutable_tags").and_then(|entry| many(entry, globs::checked));
        let credentials = take("credentials").and_then(Entry::list);
        let share_private = take("share_private").and_then(Entry::boolean);
        let ca_file = take("ca_file").and_then(path);
        let insecure_skip_verify = take("insecure_skip_verify").and_then(Entry::boolean);
        let connect_timeout = take("connect_timeout").and_then(|entry| duration(entry, &TIMEOUT));
        let header_timeout = take("header_timeout").and_then(|entry| duration(entry, &TIMEOUT));
        let read_timeout = take("read_timeout").and_then(|entry| duration(entry, &TIMEOUT));
        let max_connections = take("max_connections").and_then(|entry| entry.number(1..=10_000));
        let redirect_hosts = take("redirect_hosts").and_then(|entry| many(entry, redirect_host));
        let policy = WrittenPolicy::read(&mut take);
        section.finish();
        let credentials =
            credentials.map(|list| list.map(|list| list.into_iter().filter_map(WrittenCredential::read).collect()));
        Some(Self {
            name: name?,
            endpoints,
            aliases,
            tag_ttl,
            stale_if_error,
            immutable_tags,
            credentials,
            share_private,
            policy,
            ca_file,
            insecure_skip_verify,
            connect_timeout,
            header_timeout,
            read_timeout,
            max_connections,
            redirect_hosts,
        })
    }
}

// === impl WrittenPolicy ===

impl WrittenPolicy {
    fn read<'a>(take: &mut impl FnMut(&'static str) -> Option<Entry<'a>>) -> Self {
        let patterns = |entry: Entry<'_>| many(entry, globs::checked);
        Self {
            allow: take("allow").and_then(patterns),
            deny: take("deny").and_then(patterns),
            deny_digests_file: take("deny_digests_file").and_then(path),
            deleted_tags: take("deleted_tags").and_then(|entry| entry.parse(deleted_tags)),
            prefetch: take("prefetch").and_then(|entry| many(entry, str::parse)),
            client_cert: take("client_cert").and_then(certificate::read),
            proxy: take("proxy").and_then(|entry| entry.parse(proxy)),
            max_bandwidth: take("max_bandwidth").and_then(|entry| entry.parse(values::bandwidth)),
        }
    }
}

// === values of several sections ===

pub(super) fn addresses(entry: Entry<'_>) -> Setting<Vec<Located<SocketAddr>>> {
    members(entry.one_or_many()?, values::socket_address)
}

pub(super) fn many<T>(entry: Entry<'_>, parse: impl Fn(&str) -> Result<T, String>) -> Setting<Vec<Located<T>>> {
    members(entry.list()?, parse)
}

/// The members that are right. A list of which none is counts as not written, lest its emptiness be a second mistake.
fn members<T>(list: Located<Vec<Entry<'_>>>, parse: impl Fn(&str) -> Result<T, String>) -> Setting<Vec<Located<T>>> {
    let written = list.value.len();
    let list = list.map(|members| members.into_iter().filter_map(|member| member.parse(&parse)).collect::<Vec<_>>());
    (written == 0 || !list.value.is_empty()).then_some(list)
}

pub(super) fn duration(entry: Entry<'_>, limits: &RangeInclusive<Duration>) -> Setting<Duration> {
    entry.parse(|text| values::duration(text, limits))
}

pub(super) fn path(entry: Entry<'_>) -> Setting<PathBuf> {
    entry.parse(path_text)
}

fn path_text(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("the path is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn deleted_tags(text: &str) -> Result<DeletedTags, String> {
    match text {
        "keep" => Ok(DeletedTags::Keep),
        "forget" => Ok(DeletedTags::Forget),
        _ => values::duration(text, &STALE)
            .map(DeletedTags::For)
            .map_err(|problem| format!("{problem}; or write \"keep\" or \"forget\"")),
    }
}

fn proxy(text: &str) -> Result<Proxy, String> {
    match text {
        "none" => Ok(Proxy::Direct),
        "environment" => Ok(Proxy::Environment),
        _ => values::proxy(text).map(Proxy::Through),
    }
}

fn stale_if_error(text: &str) -> Result<StaleIfError, String> {
    match text {
        "forever" => Ok(StaleIfError::Forever),
        "never" => Ok(StaleIfError::Never),
        _ => values::duration(text, &STALE)
            .map(StaleIfError::For)
            .map_err(|problem| format!("{problem}; or write \"forever\" or \"never\"")),
    }
}

fn unverified_ranges(text: &str) -> Result<UnverifiedRanges, String> {
    match text {
        "send" => Ok(UnverifiedRanges::Send),
        "wait" => Ok(UnverifiedRanges::Wait),
        _ => Err(format!("{} is neither \"send\" nor \"wait\"", quoted(text))),
    }
}

fn complete_from(text: &str) -> Result<u8, String> {
    values::percent(text, &(1..=100)).unwrap_or_else(|| Err(format!("{} is not a share such as \"25%\"", quoted(text))))
}

/// The log's format, also for its flag.
pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{} is neither \"text\" nor \"json\"", quoted(text))),
    }
}

/// A further name of an upstream: what can come in `ns` or a Host header, or what can stand in a path.
fn alias(text: &str) -> Result<String, String> {
    let path = text.parse::<RepositoryName>().is_ok();
    // `/v2/` is where the API begins; a prefix of that name would make two readings of one path.
    if text.split('/').next() == Some("v2") {
        return Err(format!("{} begins with \"v2\", as the paths of the API itself do", quoted(text)));
    }
    if path || text.parse::<RegistryName>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is no alias: a registry's name such as \"registry.corp:5000\", or a path such as \"mirror/hub\", in lower case",
        quoted(text)
    ))
}

fn redirect_host(text: &str) -> Result<String, String> {
    let host = text.to_ascii_lowercase();
    match host.parse::<UpstreamName>() {
        Ok(_) => Ok(host),
        Err(_) => Err(format!("{} is neither a host such as \"blobs.corp\" nor \"*.\" and a domain", quoted(text))),
    }
}
