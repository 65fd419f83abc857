//! From what was written to what is meant: defaults filled in, names looked up, settings checked against each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::mistake::{Located, Mistakes, Place, most_like, quoted};
use super::upstream::{Upstream, serving};
use super::users::Users;
use super::written::{Setting, Written, WrittenProxies};
use super::{Admin, Config, Fill, Log, Proxies, Server, Storage, Tags, access, certificate, merge};
use crate::files;
use crate::oci::RegistryName;

/// The longest of docker's files that is read.
const DOCKER_CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What a configuration means. With mistakes reported, the result is whole but not to be used.
pub(super) fn mean(written: Written, mistakes: &Mistakes) -> Config {
    let default = Config::default();
    let tags = Tags {
        ttl: value_or(written.tag_ttl, default.tags.ttl),
        stale_if_error: value_or(written.stale_if_error, default.tags.stale_if_error),
        list_ttl: value_or(written.list_ttl, default.tags.list_ttl),
        negative_ttl: value_or(written.negative_ttl, default.tags.negative_ttl),
    };
    let upstreams = merge::upstreams(written.upstreams, &tags, mistakes);
    let connections = written.connections_per_blob;
    let connections_per_blob = connections.map_or(default.fill.connections_per_blob, |written| count(written.value));
    report_nowhere(written.listen.as_ref(), mistakes);
    let listen = located(written.listen, &default.server.listen, "server.listen");
    let admin_listen = located(written.admin_listen, &default.admin.listen, "admin.listen");
    report_conflicts(&listen, &admin_listen, mistakes);
    let listen: Vec<_> = listen.into_iter().map(|address| address.value).collect();
    let access = written.access.map(|access| access.mean(&listen, mistakes));
    let admin_users = Users::mean(written.admin_htpasswd, written.admin_tokens_file, mistakes);
    access::report_unknown(written.admins.as_ref().map_or(&[], |admins| &admins.value), &admin_users, mistakes);
    Config {
        offline: value_or(written.offline, default.offline),
        server: Server {
            listen,
            default_upstream: match written.default_upstream {
                None => default.server.default_upstream,
                Some(name) if name.value.is_empty() => None,
                Some(name) => find(&upstreams, &name, mistakes),
            },
            hosts: hosts(written.hosts, &upstreams, mistakes),
            client_header_timeout: value_or(written.client_header_timeout, default.server.client_header_timeout),
            max_connections: written.max_connections.as_ref().map_or(default.server.max_connections, counted),
            max_connections_per_address: limited(written.max_connections_per_address.as_ref()),
            max_misses: written.max_misses.as_ref().map_or(default.server.max_misses, counted),
            trusted_proxies: values_of(written.trusted_proxies),
            tls: certificate::mean(written.tls, mistakes),
        },
        admin: Admin {
            listen: admin_listen.into_iter().map(|address| address.value).collect(),
            tls: certificate::mean(written.admin_tls, mistakes),
            users: admin_users,
            admins: values_of(written.admins),
        },
        storage: Storage {
            path: value_or(written.path, default.storage.path),
            capacity: value_or(written.capacity, default.storage.capacity),
            min_free: value_or(written.min_free, default.storage.min_free),
            scrub_period: value_or(written.scrub_period, default.storage.scrub_period),
            scrub_bytes_per_second: value_or(written.scrub_rate, default.storage.scrub_bytes_per_second).max(1),
            scrub_hours: value_or(written.scrub_hours, default.storage.scrub_hours),
        },
        fill: Fill {
            connections_per_blob,
            parallel_above_bytes: value_or(written.parallel_above, default.fill.parallel_above_bytes),
            unverified_ranges: value_or(written.unverified_ranges, default.fill.unverified_ranges),
            complete_from_percent: value_or(written.complete_from, default.fill.complete_from_percent),
            max_bandwidth: written.max_bandwidth.map(|bandwidth| bandwidth.value),
        },
        tags,
        upstreams,
        access,
        warm: super::warm::mean(written.warm, mistakes),
        docker_config: docker_config(written.docker_config, mistakes),
        proxies: proxies(written.proxies),
        log: Log {
            format: value_or(written.log_format, default.log.format),
            level: value_or(written.log_level, default.log.level),
        },
    }
}

/// Reports an empty list of addresses.
fn report_nowhere(listen: Option<&Located<Vec<Located<SocketAddr>>>>, mistakes: &Mistakes) {
    if let Some(Located { value, place }) = listen
        && value.is_empty()
    {
        mistakes.report(place.clone(), "no address: clients need at least one");
    }
}

/// What was written, or what is meant where nothing was.
pub(super) fn value_or<T>(written: Setting<T>, default: T) -> T {
    written.map_or(default, |written| written.value)
}

fn proxies(written: WrittenProxies) -> Proxies {
    let WrittenProxies { http, https, no_proxy } = written;
    Proxies {
        http: http.map(|http| http.value),
        https: https.map(|https| https.value),
        no_proxy: value_or(no_proxy, String::new()),
    }
}

/// Docker's files, which can be read now. What is in them is the business of who uses them, but JSON it is.
fn docker_config(written: Setting<Vec<Located<PathBuf>>>, mistakes: &Mistakes) -> Vec<PathBuf> {
    let mean = |Located { value: path, place }: Located<PathBuf>| {
        match files::read(&path, DOCKER_CONFIG_BYTES_MAX) {
            Ok(bytes) if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok() => {}
            Ok(_) => mistakes.report(place, format!("{}: is not JSON", path.display())),
            Err(error) => mistakes.report(place, error.to_string()),
        }
        path
    };
    written.into_iter().flat_map(|list| list.value).map(mean).collect()
}

/// The members of a list; none where nothing was written.
fn values_of<T>(written: Setting<Vec<Located<T>>>) -> Vec<T> {
    written.map_or_else(Vec::new, |list| list.value.into_iter().map(|member| member.value).collect())
}

fn counted(written: &Located<u32>) -> usize {
    count(written.value)
}

/// A limit, where zero is none.
fn limited(written: Option<&Located<u32>>) -> Option<usize> {
    written.map(counted).filter(|limit| *limit > 0)
}

/// A number of things. (`u32` fits `usize` wherever this runs.)
pub(super) fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Addresses with their places, for the mistakes between them.
fn located(written: Setting<Vec<Located<SocketAddr>>>, default: &[SocketAddr], key: &str) -> Vec<Located<SocketAddr>> {
    let unwritten = |address: &SocketAddr| Located { value: *address, place: Place::unwritten(key) };
    written.map_or_else(|| default.iter().map(unwritten).collect(), |written| written.value)
}

/// Reports every two listeners that cannot both have what they ask for.
fn report_conflicts(listen: &[Located<SocketAddr>], admin: &[Located<SocketAddr>], mistakes: &Mistakes) {
    let all: Vec<_> = listen.iter().chain(admin).collect();
    for (index, later) in all.iter().enumerate() {
        let Some(earlier) = all.iter().take(index).find(|earlier| conflict(earlier.value, later.value)) else {
            continue;
        };
        // What nobody wrote is nobody's mistake, so the other one is.
        let (wrong, right) =
            if later.place == Place::unwritten(&later.place.key) { (earlier, later) } else { (later, earlier) };
        let taken = if wrong.value == right.value {
            format!("{} is taken by {} already", wrong.value, right.place.mention())
        } else {
            format!("{} and {} of {} exclude each other", wrong.value, right.value, right.place.mention())
        };
        mistakes.report(wrong.place.clone(), format!("{taken}; each listener needs an address or port of its own"));
    }
}

/// Whether one of two listeners would find the address taken by the other. Port 0 takes whatever is free.
fn conflict(one: SocketAddr, other: SocketAddr) -> bool {
    let same_address = one.ip() == other.ip();
    let one_is_all = one.is_ipv4() == other.is_ipv4() && (one.ip().is_unspecified() || other.ip().is_unspecified());
    one.port() != 0 && one.port() == other.port() && (same_address || one_is_all)
}

fn hosts(
    written: Vec<(Located<String>, Located<String>)>,
    upstreams: &[Upstream],
    mistakes: &Mistakes,
) -> BTreeMap<String, RegistryName> {
    let mut hosts = BTreeMap::new();
    for (host, upstream) in written {
        let name = host.value.to_ascii_lowercase();
        if name.parse::<RegistryName>().is_err() {
            let problem = format!("{} is not a Host header: a host, maybe with a port", quoted(&host.value));
            mistakes.report(host.place.clone(), problem);
        }
        let Some(registry) = find(upstreams, &upstream, mistakes) else { continue };
        if hosts.insert(name, registry).is_some() {
            mistakes.report(host.place, "this host is listed twice: upper and lower case are the same");
        }
    }
    hosts
}

/// The registry that a name or alias means.
fn find(upstreams: &[Upstream], name: &Located<String>, mistakes: &Mistakes) -> Option<RegistryName> {
    let by_name = || name.value.parse().ok().filter(|registry| serving(upstreams, registry).is_some());
    let by_alias = || upstreams.iter().find(|upstream| upstream.aliases.contains(&name.value))?.name.exact().cloned();
    // The alias first: it is exact, while a name may be known by a pattern only.
    let registry = by_alias().or_else(by_name);
    if registry.is_none() {
        let names = upstreams.iter().flat_map(|upstream| {
            upstream
                .name
                .exact()
                .map(RegistryName::as_str)
                .into_iter()
                .chain(upstream.aliases.iter().map(String::as_str))
        });
        let like = most_like(&name.value, names).map(|like| format!("{like:?}"));
        mistakes.suggest(name.place.clone(), format!("there is no upstream {}", quoted(&name.value)), like);
    }
    registry
}
