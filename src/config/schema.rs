//! Every key of the configuration file, section by section, and what each expects: the table that the reader walks.

/// A key of a section.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// Its name in the file.
    pub(super) name: &'static str,
    /// What belongs there, as a message says it after "expected".
    pub(super) expects: &'static str,
}

/// A section of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schema {
    /// The section's path, with `NAME` for any upstream's name; empty for the top of the file.
    pub(super) path: &'static str,
    /// Its keys.
    pub(super) keys: &'static [Key],
}

impl Schema {
    /// Whether the section has a key of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name)
    }
}

const fn key(name: &'static str, expects: &'static str) -> Key {
    Key { name, expects }
}

const TABLE: &str = "a table";
const TEXT: &str = "a text";
const PATH: &str = "a path";
const YES_NO: &str = "true or false";
const DURATION: &str = "a duration such as \"500ms\", \"30s\", \"1m\" or \"12h\"";
const COUNT: &str = "a number";
const LISTEN: &str = "an address and port such as \"127.0.0.1:5050\" or \"[::1]:5050\", or a list of such";
const CAPACITY: &str = "a size such as \"50GiB\" or \"12345B\", or a share such as \"80%\"";
const TLS: &str = "a list of tables such as [{ cert = \"…\", key = \"…\" }], or one such table";
const STALE: &str = "\"forever\", \"never\" or a duration such as \"12h\"";

const BANDWIDTH: &str = "so much a second, such as \"100MiB\"";
const REPOSITORIES: &str = "a list of globs over repositories such as [\"library/*\", \"acme/**\"]";

/// The top of the file.
pub(super) const ROOT: Schema = Schema {
    path: "",
    keys: &[
        key("offline", YES_NO),
        key("server", TABLE),
        key("admin", TABLE),
        key("storage", TABLE),
        key("fill", TABLE),
        key("tags", TABLE),
        key("access", TABLE),
        key("log", TABLE),
        key("credentials", TABLE),
        key("warm", "a table of lists"),
        key("upstreams", "a table of upstreams"),
    ],
};

/// `[server]`
pub(super) const SERVER: Schema = Schema {
    path: "server",
    keys: &[
        key("listen", LISTEN),
        key("default_upstream", "the name of an upstream, or \"\" for none"),
        key("hosts", "a table of Host headers and the upstreams they stand for"),
        key("client_header_timeout", DURATION),
        key("max_connections", COUNT),
        key("max_connections_per_address", COUNT),
        key("max_misses", COUNT),
        key("trusted_proxies", "a list of networks such as [\"10.0.0.0/8\", \"fd00::/8\"]"),
        key("tls", TLS),
    ],
};

/// An entry of `tls`, also in `[admin]`.
pub(super) const CERTIFICATE: Schema = Schema { path: "server.tls", keys: &[key("cert", PATH), key("key", PATH)] };

/// `[admin]`
pub(super) const ADMIN: Schema = Schema {
    path: "admin",
    keys: &[
        key("listen", LISTEN),
        key("tls", TLS),
        key("htpasswd", PATH),
        key("tokens_file", PATH),
        key("admins", "a list of names such as [\"ann\"]"),
    ],
};

/// `[storage]`
pub(super) const STORAGE: Schema = Schema {
    path: "storage",
    keys: &[
        key("path", PATH),
        key("capacity", CAPACITY),
        key("min_free", CAPACITY),
        key("scrub_period", DURATION),
        key("scrub_rate", "a size such as \"16MiB\", read each second"),
        key("scrub_hours", "hours of the day in UTC such as \"22-6\""),
    ],
};

/// `[fill]`
pub(super) const FILL: Schema = Schema {
    path: "fill",
    keys: &[
        key("connections_per_blob", COUNT),
        key("parallel_above", "a size such as \"32MiB\""),
        key("unverified_ranges", "\"send\" or \"wait\""),
        key("complete_from", "a share such as \"25%\""),
        key("max_bandwidth", BANDWIDTH),
    ],
};

/// `[tags]`
pub(super) const TAGS: Schema = Schema {
    path: "tags",
    keys: &[
        key("ttl", DURATION),
        key("stale_if_error", STALE),
        key("list_ttl", DURATION),
        key("negative_ttl", DURATION),
    ],
};

/// `[access]`
pub(super) const ACCESS: Schema = Schema {
    path: "access",
    keys: &[
        key("htpasswd", PATH),
        key("tokens_file", PATH),
        key("rules", "a list of tables such as [{ users = [\"ci\"], repositories = [\"docker.io/library/**\"] }]"),
        key("exempt", LISTEN),
    ],
};

/// An entry of `rules`.
pub(super) const RULE: Schema = Schema {
    path: "access.rules",
    keys: &[
        key("users", "a list of names such as [\"ci\", \"*\"]"),
        key("repositories", "a list of globs such as [\"docker.io/library/**\"]"),
    ],
};

/// `[log]`
pub(super) const LOG: Schema = Schema {
    path: "log",
    keys: &[key("format", "\"text\" or \"json\""), key("level", "a level such as \"info\", or \"info,hyper=warn\"")],
};

/// `[credentials]`
pub(super) const CREDENTIALS: Schema =
    Schema { path: "credentials", keys: &[key("docker_config", "a list of paths such as [\"/secrets/config.json\"]")] };

/// `[warm.NAME]`
pub(super) const WARM: Schema = Schema {
    path: "warm.NAME",
    keys: &[
        key("images", "a list of images such as [\"nginx:1.27\"]"),
        key("file", PATH),
        key("interval", DURATION),
        key("platforms", "a list of platforms such as [\"linux/amd64\"]"),
        key("referrers", YES_NO),
    ],
};

/// `[upstreams."NAME"]`
pub(super) const UPSTREAM: Schema = Schema {
    path: "upstreams.NAME",
    keys: &[
        key("endpoints", "a list of addresses such as [\"https://registry.corp\"]"),
        key("allow", REPOSITORIES),
        key("deny", REPOSITORIES),
        key("deny_digests_file", PATH),
        key("deleted_tags", "\"keep\", \"forget\" or a duration such as \"30d\""),
        key("prefetch", "a list of platforms such as [\"linux/amd64\"]"),
        key("client_cert", "a table such as { cert = \"…\", key = \"…\" }"),
        key("proxy", "an address such as \"http://proxy.corp:3128\", \"environment\" or \"none\""),
        key("max_bandwidth", BANDWIDTH),
        key("aliases", "a list of names such as [\"hub\", \"mirror/hub\"]"),
        key("tag_ttl", DURATION),
        key("stale_if_error", STALE),
        key("immutable_tags", "a list of globs such as [\"v*.*.*\"]"),
        key("credentials", "a list of tables such as [{ username = \"…\", password_file = \"…\" }]"),
        key("share_private", YES_NO),
        key("ca_file", PATH),
        key("insecure_skip_verify", YES_NO),
        key("connect_timeout", DURATION),
        key("header_timeout", DURATION),
        key("read_timeout", DURATION),
        key("max_connections", COUNT),
        key("redirect_hosts", "a list of hosts such as [\"blobs.corp\", \"*.storage.corp\"]"),
    ],
};

/// An entry of `credentials`.
pub(super) const CREDENTIAL: Schema = Schema {
    path: "upstreams.NAME.credentials",
    keys: &[
        key("scope", TEXT),
        key("username", TEXT),
        key("password", TEXT),
        key("password_file", PATH),
        key("helper", TEXT),
    ],
};

/// An entry of `endpoints` that is a table.
pub(super) const ENDPOINT: Schema = Schema {
    path: "upstreams.NAME.endpoints",
    keys: &[
        key("url", TEXT),
        key("mirror", YES_NO),
        key("repository_prefix", TEXT),
        key("username", TEXT),
        key("password", TEXT),
        key("password_file", PATH),
        key("helper", TEXT),
    ],
};

/// All of them, to find the section that a misplaced key belongs to, and for the test of the full example.
pub(super) const ALL: [Schema; 15] = [
    ROOT,
    SERVER,
    CERTIFICATE,
    ADMIN,
    STORAGE,
    FILL,
    TAGS,
    ACCESS,
    RULE,
    LOG,
    WARM,
    UPSTREAM,
    CREDENTIAL,
    CREDENTIALS,
    ENDPOINT,
];
