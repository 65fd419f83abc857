//! The configuration as meant, written as a file that means the same, except that secrets are not shown.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::path::Path;

use super::values::{bytes_text, duration_text};
use super::{
    Access, Capacity, Certificate, Config, Credential, DeletedTags, Endpoint, Log, LogFormat, Login, Proxies, Proxy,
    Reader, Rule, StaleIfError, Tags, UnverifiedRanges, Upstream, Users, Warm,
};
use crate::secret::{REDACTED, Secret};

/// A configuration on its way to paper. Upstreams show where they are and how long tags last, else only what is unusual.
struct Shown<'a>(&'a Config);

impl Config {
    /// The whole configuration as TOML, as the program would read it again. Passwords are shown as `<redacted>`.
    pub fn to_toml(&self) -> String {
        Shown(self).to_string()
    }
}

// === impl Shown ===

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config {
            offline,
            server,
            admin,
            storage,
            fill,
            tags,
            upstreams,
            docker_config,
            proxies,
            access,
            log,
            warm,
        } = self.0;
        writeln!(f, "offline = {offline}")?;
        writeln!(f, "\n[server]\nlisten = {}", addresses(&server.listen))?;
        let default_upstream = server.default_upstream.as_ref().map_or("", |name| name.as_str());
        writeln!(f, "default_upstream = {}", text(default_upstream))?;
        writeln!(f, "client_header_timeout = {}", text(&duration_text(server.client_header_timeout)))?;
        writeln!(f, "max_connections = {}", server.max_connections)?;
        writeln!(f, "max_connections_per_address = {}", server.max_connections_per_address.unwrap_or_default())?;
        writeln!(f, "max_misses = {}", server.max_misses)?;
        writeln!(f, "trusted_proxies = {}", list(&server.trusted_proxies))?;
        show_tls(f, &server.tls)?;
        if !server.hosts.is_empty() {
            writeln!(f, "\n[server.hosts]")?;
            server.hosts.iter().try_for_each(|(host, name)| writeln!(f, "{} = {}", text(host), text(name.as_str())))?;
        }
        writeln!(f, "\n[admin]\nlisten = {}", addresses(&admin.listen))?;
        show_tls(f, &admin.tls)?;
        show_users(f, &admin.users)?;
        if !admin.admins.is_empty() {
            writeln!(f, "admins = {}", list(&admin.admins))?;
        }
        writeln!(f, "\n[storage]\npath = {}", path(&storage.path))?;
        match storage.capacity {
            Capacity::Default => writeln!(f, "# capacity: found out at start, from the file system")?,
            capacity => writeln!(f, "capacity = {}", text(&capacity.to_string()))?,
        }
        writeln!(f, "min_free = {}", text(&storage.min_free.to_string()))?;
        writeln!(f, "scrub_period = {}", text(&duration_text(storage.scrub_period)))?;
        writeln!(f, "scrub_rate = {}", text(&bytes_text(storage.scrub_bytes_per_second)))?;
        let (from, until) = storage.scrub_hours;
        writeln!(f, "scrub_hours = {}", text(&format!("{from}-{until}")))?;
        let unverified_ranges = match fill.unverified_ranges {
            UnverifiedRanges::Send => "send",
            UnverifiedRanges::Wait => "wait",
        };
        writeln!(f, "\n[fill]\nconnections_per_blob = {}", fill.connections_per_blob)?;
        writeln!(f, "parallel_above = {}", text(&bytes_text(fill.parallel_above_bytes)))?;
        writeln!(f, "unverified_ranges = {}", text(unverified_ranges))?;
        writeln!(f, "complete_from = \"{}%\"", fill.complete_from_percent)?;
        show_bandwidth(f, fill.max_bandwidth)?;
        writeln!(f, "\n[tags]\nttl = {}", text(&duration_text(tags.ttl)))?;
        writeln!(f, "stale_if_error = {}", text(&stale(tags.stale_if_error)))?;
        writeln!(f, "list_ttl = {}", text(&duration_text(tags.list_ttl)))?;
        writeln!(f, "negative_ttl = {}", text(&duration_text(tags.negative_ttl)))?;
        access.iter().try_for_each(|access| show_access(f, access))?;
        warm.iter().try_for_each(|warm| show_warm(f, warm))?;
        if !docker_config.is_empty() {
            writeln!(f, "\n[credentials]\ndocker_config = {}", list(docker_config.iter().map(|path| path.display())))?;
        }
        show_proxies(f, proxies)?;
        show_log(f, log)?;
        upstreams.iter().try_for_each(|upstream| show_upstream(f, upstream, tags))
    }
}

fn show_tls(f: &mut fmt::Formatter<'_>, certificates: &[Certificate]) -> fmt::Result {
    let one = |Certificate { cert, key }: &Certificate| format!("{{ cert = {}, key = {} }}", path(cert), path(key));
    match certificates.iter().map(one).collect::<Vec<_>>() {
        none if none.is_empty() => Ok(()),
        some => writeln!(f, "tls = [{}]", some.join(", ")),
    }
}

fn show_users(f: &mut fmt::Formatter<'_>, users: &Users) -> fmt::Result {
    for (key, file) in [("htpasswd", &users.htpasswd), ("tokens_file", &users.tokens_file)] {
        if let Some(file) = file {
            writeln!(f, "{key} = {}", path(file))?;
        }
    }
    Ok(())
}

fn show_access(f: &mut fmt::Formatter<'_>, access: &Access) -> fmt::Result {
    writeln!(f, "\n[access]")?;
    show_users(f, &access.users)?;
    if !access.exempt.is_empty() {
        writeln!(f, "exempt = {}", addresses(&access.exempt))?;
    }
    let rule = |rule: &Rule| {
        let readers = list(rule.readers.iter().map(Reader::as_str));
        format!("{{ users = {readers}, repositories = {} }}", list(rule.repositories.as_slice()))
    };
    writeln!(f, "rules = [{}]", access.rules.iter().map(rule).collect::<Vec<_>>().join(", "))
}

fn show_log(f: &mut fmt::Formatter<'_>, log: &Log) -> fmt::Result {
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    writeln!(f, "\n[log]\nformat = {}\nlevel = {}", text(format), text(&log.level))
}

fn show_warm(f: &mut fmt::Formatter<'_>, warm: &Warm) -> fmt::Result {
    writeln!(f, "\n[warm.{}]\nimages = {}", text(warm.name.as_str()), list(&warm.images))?;
    if let Some(file) = &warm.file {
        writeln!(f, "file = {}", path(file))?;
    }
    writeln!(f, "interval = {}", text(&duration_text(warm.interval)))?;
    writeln!(f, "platforms = {}", list(&warm.platforms))?;
    writeln!(f, "referrers = {}", warm.referrers)
}

fn show_upstream(f: &mut fmt::Formatter<'_>, upstream: &Upstream, tags: &Tags) -> fmt::Result {
    let default = Upstream::new(upstream.name.clone(), tags);
    writeln!(f, "\n[upstreams.{}]", text(upstream.name.as_str()))?;
    if upstream.name.exact().is_some() {
        writeln!(f, "endpoints = {}", endpoints(&upstream.endpoints))?;
        writeln!(f, "aliases = {}", list(&upstream.aliases))?;
    }
    writeln!(f, "tag_ttl = {}", text(&duration_text(upstream.tag_ttl)))?;
    writeln!(f, "stale_if_error = {}", text(&stale(upstream.stale_if_error)))?;
    if upstream.immutable_tags != default.immutable_tags {
        writeln!(f, "immutable_tags = {}", list(upstream.immutable_tags.as_slice()))?;
    }
    if !upstream.credentials.is_empty() {
        let credentials: Vec<String> = upstream.credentials.iter().map(credential).collect();
        writeln!(f, "credentials = [{}]", credentials.join(", "))?;
    }
    show_policy(f, upstream, &default)?;
    if upstream.share_private {
        writeln!(f, "share_private = true")?;
    }
    if let Some(file) = &upstream.ca_file {
        writeln!(f, "ca_file = {}", path(file))?;
    }
    if upstream.insecure_skip_verify {
        writeln!(f, "insecure_skip_verify = true")?;
    }
    for (name, timeout, default) in [
        ("connect_timeout", upstream.connect_timeout, default.connect_timeout),
        ("header_timeout", upstream.header_timeout, default.header_timeout),
        ("read_timeout", upstream.read_timeout, default.read_timeout),
    ] {
        if timeout != default {
            writeln!(f, "{name} = {}", text(&duration_text(timeout)))?;
        }
    }
    if upstream.max_connections != default.max_connections {
        writeln!(f, "max_connections = {}", upstream.max_connections)?;
    }
    if !upstream.redirect_hosts.is_empty() {
        writeln!(f, "redirect_hosts = {}", list(&upstream.redirect_hosts))?;
    }
    Ok(())
}

fn show_policy(f: &mut fmt::Formatter<'_>, upstream: &Upstream, default: &Upstream) -> fmt::Result {
    if let Some(allow) = &upstream.allow {
        writeln!(f, "allow = {}", list(allow.as_slice()))?;
    }
    if upstream.deny != default.deny {
        writeln!(f, "deny = {}", list(upstream.deny.as_slice()))?;
    }
    if let Some(file) = &upstream.deny_digests_file {
        writeln!(f, "deny_digests_file = {}", path(file))?;
    }
    if upstream.deleted_tags != default.deleted_tags {
        let kept = match upstream.deleted_tags {
            DeletedTags::Keep => "keep".to_owned(),
            DeletedTags::Forget => "forget".to_owned(),
            DeletedTags::For(duration) => duration_text(duration),
        };
        writeln!(f, "deleted_tags = {}", text(&kept))?;
    }
    if !upstream.prefetch.is_empty() {
        writeln!(f, "prefetch = {}", list(&upstream.prefetch))?;
    }
    if let Some(Certificate { cert, key }) = &upstream.client_cert {
        writeln!(f, "client_cert = {{ cert = {}, key = {} }}", path(cert), path(key))?;
    }
    match &upstream.proxy {
        Proxy::Environment => {}
        Proxy::Direct => writeln!(f, "proxy = \"none\"")?,
        Proxy::Through(address) => writeln!(f, "proxy = {}", text(&without_user(address)))?,
    }
    show_bandwidth(f, upstream.max_bandwidth)
}

fn show_bandwidth(f: &mut fmt::Formatter<'_>, bandwidth: Option<u64>) -> fmt::Result {
    bandwidth.map_or(Ok(()), |bytes| writeln!(f, "max_bandwidth = {}", text(&bytes_text(bytes))))
}

fn show_proxies(f: &mut fmt::Formatter<'_>, proxies: &Proxies) -> fmt::Result {
    for (address, scheme) in [(&proxies.http, "http"), (&proxies.https, "https")] {
        if let Some(address) = address {
            writeln!(f, "# {scheme} by the environment through {}", without_user(address))?;
        }
    }
    Ok(())
}

/// A proxy's address, without the user name and password that it may hold.
fn without_user(address: &Secret) -> String {
    let Ok(mut url) = url::Url::parse(address.expose()) else { return REDACTED.to_owned() };
    // These can't fail: a proxy has a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.origin().ascii_serialization()
}

fn endpoints(endpoints: &[Endpoint]) -> String {
    let endpoint = |endpoint: &Endpoint| {
        let url = text(&endpoint.url.origin().ascii_serialization());
        if *endpoint == Endpoint::at(endpoint.url.clone()) {
            return url;
        }
        let mut parts = vec![format!("url = {url}")];
        parts.extend(endpoint.mirror.then(|| "mirror = true".to_owned()));
        let prefix = endpoint.repository_prefix.as_ref();
        parts.extend(prefix.map(|prefix| format!("repository_prefix = {}", text(prefix.as_str()))));
        parts.extend(endpoint.credential.as_ref().map(login));
        format!("{{ {} }}", parts.join(", "))
    };
    let shown: Vec<String> = endpoints.iter().map(endpoint).collect();
    format!("[{}]", shown.join(", "))
}

fn credential(credential: &Credential) -> String {
    format!("{{ scope = {}, {} }}", text(&credential.scope), login(credential))
}

fn login(credential: &Credential) -> String {
    match &credential.login {
        Login::Helper(helper) => format!("helper = {}", text(helper)),
        Login::Password { username, password_file: Some(file), .. } => {
            format!("username = {}, password_file = {}", text(username), path(file))
        }
        Login::Password { username, password_file: None, .. } => {
            format!("username = {}, password = {}", text(username), text(REDACTED))
        }
    }
}

/// A text as TOML quotes it.
fn text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn path(path: &Path) -> String {
    text(&path.display().to_string())
}

fn list<T: Display>(members: impl IntoIterator<Item = T>) -> String {
    let members: Vec<String> = members.into_iter().map(|member| text(&member.to_string())).collect();
    format!("[{}]", members.join(", "))
}

fn addresses(addresses: &[SocketAddr]) -> String {
    match addresses {
        [address] => text(&address.to_string()),
        several => list(several),
    }
}

fn stale(stale: StaleIfError) -> String {
    match stale {
        StaleIfError::Forever => "forever".to_owned(),
        StaleIfError::Never => "never".to_owned(),
        StaleIfError::For(duration) => duration_text(duration),
    }
}
