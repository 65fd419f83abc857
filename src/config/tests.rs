//! What each mistake is told as, word for word; the layers; the shipped examples.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::mistake::Mistakes;
use super::*;

type Variables = BTreeMap<&'static str, &'static str>;

const MINIMAL: &str = include_str!("../../config/cachalot.minimal.toml");
const FULL: &str = include_str!("../../config/cachalot.full.toml");

impl Env for Variables {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).map(|value| (*value).to_owned())
    }
}

fn read(file: &str) -> Result<Config, ConfigErrors> {
    let mistakes = Mistakes::default();
    let written = load::read_text("c.toml".into(), file, &mistakes);
    let config = meaning::mean(written, &mistakes);
    mistakes.or(config)
}

fn good(file: &str) -> Config {
    read(file).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The mistakes of a file, one a line.
#[track_caller]
fn assert_mistakes(file: &str, expected: &[&str]) {
    let told: Vec<_> = read(file).expect_err("a mistake").mistakes().iter().map(ToString::to_string).collect();
    assert_eq!(told, expected, "in {file}");
}

fn layers(variables: &[(&'static str, &'static str)], flags: &Flags) -> Result<Config, ConfigErrors> {
    load(None, &variables.iter().copied().collect::<Variables>(), flags)
}

fn named<'a>(config: &'a Config, name: &str) -> &'a Upstream {
    config.upstreams.iter().find(|upstream| upstream.name.as_str() == name).unwrap()
}

// === meaning ===

#[test]
fn nothing_written_means_the_defaults() {
    assert_eq!(good(""), Config::default());
    assert_eq!(layers(&[], &Flags::default()), Ok(Config::default()));
    let config = Config::default();
    assert_eq!(config.server.listen, ["127.0.0.1:5050".parse().unwrap()]);
    assert_eq!(config.server.default_upstream, Some("docker.io".parse().unwrap()));
    assert_eq!(config.tags.ttl, Duration::from_mins(1));
    assert_eq!(config.upstream(&"us.pkg.dev".parse().unwrap()).unwrap().name.as_str(), "*.pkg.dev");
    assert_eq!(config.upstream(&"evil.example".parse().unwrap()), None);
}

#[test]
fn everything_that_can_be_written_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let file = FULL_EXAMPLE.replace("/secrets", folder.path().to_str().unwrap());
    std::fs::write(folder.path().join("team"), "from-a-file\n").unwrap();
    std::fs::write(folder.path().join("ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    write_certificates(folder.path());
    let config = good(&file);
    assert!(config.offline);
    assert_eq!(config.server.tls[1].key, folder.path().join("b.key"));
    assert_eq!(config.admin.tls, config.server.tls[..1]);
    assert_eq!(config.admin.users.names().collect::<Vec<_>>(), ["ann", "ci"]);
    assert_eq!(config.admin.admins, ["ann"]);
    let access = config.access.as_ref().unwrap();
    assert_eq!(access.exempt, ["[::1]:81".parse().unwrap()]);
    assert_eq!(access.rules[1].readers, [Reader::Anonymous, Reader::User("ci".to_owned())]);
    assert!(access.rules[0].repositories.matches("docker.io/library/nginx"));
    assert!(!access.rules[0].repositories.matches("docker.io/library/a/b"));
    assert_eq!(config.server.listen, ["0.0.0.0:80".parse().unwrap(), "[::1]:81".parse().unwrap()]);
    assert_eq!(config.server.default_upstream, Some("registry.corp:5000".parse().unwrap()));
    assert_eq!(config.server.registry_of_host("Hub.Mirror.Corp:8080").unwrap().as_str(), "docker.io");
    assert_eq!(config.server.registry_of_host("own.corp:99").unwrap().as_str(), "registry.corp:5000");
    assert_eq!(config.server.registry_of_host("own.corp"), None);
    assert_eq!(config.server.max_connections, 7);
    assert_eq!((config.server.max_connections_per_address, config.server.max_misses), (Some(8), 9));
    assert_eq!(config.server.trusted_proxies, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    assert_eq!(config.files().len(), 11);
    assert_eq!(config.admin.listen, []);
    assert_eq!(config.storage.path, Path::new("/data"));
    assert_eq!(config.storage.capacity, Capacity::Percent(80));
    assert_eq!(config.storage.min_free, MinFree::Bytes(1 << 30));
    assert_eq!(config.fill.unverified_ranges, UnverifiedRanges::Wait);
    assert_eq!(config.fill.complete_from_percent, 50);
    assert_eq!(config.tags.stale_if_error, StaleIfError::Never);
    assert_eq!(config.log, Log { format: LogFormat::Json, level: "debug".to_owned() });
    let upstream = named(&config, "registry.corp:5000");
    let [first, second, third] = &upstream.endpoints[..] else { panic!("{:?}", upstream.endpoints) };
    assert_eq!(*first, Endpoint::at("https://a.corp/".parse().unwrap()));
    assert_eq!((second.url.as_str(), second.mirror), ("http://b.corp:5000/", true));
    assert!(second.credential.is_some());
    assert_eq!(third.repository_prefix, Some("hub/proxy".parse().unwrap()));
    assert_eq!(upstream.aliases, ["corp", "mirror/corp"]);
    assert_eq!(upstream.tag_ttl, Duration::ZERO);
    assert_eq!(upstream.stale_if_error, StaleIfError::For(Duration::from_hours(12)));
    assert!(upstream.immutable_tags.matches(&"v1".parse().unwrap()));
    let login = |credential: &Credential| match &credential.login {
        Login::Password { password, .. } => password.expose().to_owned(),
        Login::Helper(name) => format!("helper {name}"),
    };
    let credentials: Vec<_> = upstream.credentials.iter().map(|c| (c.scope.as_str(), login(c))).collect();
    let expected = [
        ("registry.corp:5000", "p"),
        ("registry.corp:5000/team", "from-a-file"),
        ("registry.corp:5000/aws", "helper ecr-login"),
    ];
    assert_eq!(credentials, expected.map(|(scope, login)| (scope, login.to_owned())));
    assert_eq!(upstream.allow.as_ref().unwrap().as_slice(), ["team/**"]);
    assert!(upstream.deny.matching(&"team/secret".parse().unwrap()).is_some());
    assert_eq!(upstream.deleted_tags, DeletedTags::Keep);
    assert_eq!(upstream.prefetch.len(), 2);
    assert!(upstream.client_cert.is_some() && upstream.deny_digests_file.is_some());
    assert_eq!(upstream.proxy, Proxy::Through(Secret::new("http://proxy.corp:3128/")));
    assert_eq!((upstream.max_bandwidth, config.fill.max_bandwidth), (Some(10 << 20), Some(100 << 20)));
    assert_eq!(config.docker_config, [folder.path().join("config.json")]);
    assert!(upstream.share_private && upstream.insecure_skip_verify && upstream.ca_file.is_some());
    assert_eq!(upstream.connect_timeout, Duration::from_secs(1));
    assert_eq!(upstream.header_timeout, Duration::from_mins(2));
    assert_eq!(upstream.read_timeout, Duration::from_millis(500));
    assert_eq!(upstream.max_connections, 3);
    assert_eq!(upstream.redirect_hosts, ["blobs.corp:8443", "*.storage.corp"]);
}

fn write_certificates(folder: &Path) {
    for name in ["a.crt", "a.key", "b.crt", "b.key", "tls.crt", "tls.key", "admin.crt", "admin.key", "us.crt", "us.key"]
    {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let hash = "$2y$05$kmYUPTd1bN0vJm3sQ8dGfOq7s0m3Yq1m1uFQH5U7o1v1M0w8a9b2C";
    for name in ["admin", "readers"] {
        std::fs::write(folder.join(format!("{name}.htpasswd")), format!("# who\nann:{hash}\n")).unwrap();
        std::fs::write(folder.join(format!("{name}.tokens")), "ci: 0123456789abcdef\n\n").unwrap();
    }
    std::fs::write(folder.join("denied"), "").unwrap();
    std::fs::write(folder.join("config.json"), "{}").unwrap();
}

const FULL_EXAMPLE: &str = r#"
offline = true
server.listen = ["0.0.0.0:80", "[::1]:81"]
server.default_upstream = "mirror/corp"
server.hosts = { "HUB.mirror.corp" = "index.docker.io", "own.corp:99" = "corp" }
server.max_connections = 7
server.max_connections_per_address = 8
server.max_misses = 9
server.trusted_proxies = ["10.0.0.0/8", "::1"]
server.tls = [{ cert = "/secrets/a.crt", key = "/secrets/a.key" }, { cert = "/secrets/b.crt", key = "/secrets/b.key" }]
admin.listen = []
admin.htpasswd = "/secrets/admin.htpasswd"
admin.tokens_file = "/secrets/admin.tokens"
admin.admins = ["ann"]
access.htpasswd = "/secrets/readers.htpasswd"
access.tokens_file = "/secrets/readers.tokens"
access.exempt = "[::1]:81"
access.rules = [
  { users = ["*"], repositories = ["docker.io/library/*"] },
  { users = ["anonymous", "ci"], repositories = ["**"] },
]
admin.tls = { cert = "/secrets/a.crt", key = "/secrets/a.key" }
storage = { path = "/data", capacity = "80%", min_free = "1GiB" }
fill = { unverified_ranges = "wait", complete_from = "50%", max_bandwidth = "100MiB" }
credentials.docker_config = ["/secrets/config.json"]
tags.stale_if_error = "never"
log = { format = "json", level = "debug" }
[upstreams."registry.corp:5000"]
endpoints = [
  "https://a.corp",
  { url = "http://b.corp:5000/", mirror = true, username = "u", password = "p" },
  { url = "https://harbor.corp", repository_prefix = "hub/proxy" },
]
allow = ["team/**"]
deny = ["team/secret"]
deny_digests_file = "/secrets/denied"
deleted_tags = "keep"
prefetch = ["linux/amd64", "linux/arm/v7"]
client_cert = { cert = "/secrets/us.crt", key = "/secrets/us.key" }
proxy = "proxy.corp:3128"
max_bandwidth = "10MiB"
aliases = ["corp", "mirror/corp"]
tag_ttl = "0"
stale_if_error = "12h"
immutable_tags = ["v*"]
credentials = [
  { username = "u", password = "p" },
  { scope = "registry.corp:5000/team/", username = "t", password_file = "/secrets/team" },
  { scope = "registry.corp:5000/aws", helper = "ecr-login" },
]
share_private = true
ca_file = "/secrets/ca.pem"
insecure_skip_verify = true
connect_timeout = "1s"
header_timeout = "2m"
read_timeout = "500ms"
max_connections = 3
redirect_hosts = ["Blobs.corp:8443", "*.storage.corp"]
"#;

#[test]
fn a_table_of_a_built_in_name_changes_it_and_another_adds_to_them() {
    let config = good(
        "[tags]\nttl = \"5m\"\n[upstreams.\"docker.io\"]\naliases = [\"hub\", \"index.docker.io\"]\ntag_ttl = \"1h\"\n\
         [upstreams.\"quay.io\"]\nendpoints = [\"http://127.0.0.1:1\"]\n[upstreams.\"new.corp\"]\n[upstreams.\"*.corp\"]\n",
    );
    assert_eq!(config.upstreams.len(), Config::default().upstreams.len() + 2);
    let hub = named(&config, "docker.io");
    assert_eq!(hub.aliases, ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub"]);
    assert_eq!(
        (hub.tag_ttl, hub.endpoints[0].url.as_str()),
        (Duration::from_hours(1), "https://registry-1.docker.io/")
    );
    assert_eq!(named(&config, "quay.io").endpoints[0].url.as_str(), "http://127.0.0.1:1/");
    assert_eq!(named(&config, "quay.io").tag_ttl, Duration::from_mins(5));
    assert_eq!(named(&config, "new.corp").endpoints[0].url.as_str(), "https://new.corp/");
    assert_eq!(config.upstream(&"x.corp".parse().unwrap()).unwrap().name.as_str(), "*.corp");
    assert_eq!(config.upstream(&"new.corp".parse().unwrap()).unwrap().name.as_str(), "new.corp");
}

#[test]
fn what_is_shown_means_the_same_when_it_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("team"), "secret").unwrap();
    write_certificates(folder.path());
    std::fs::write(folder.path().join("ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let full = FULL_EXAMPLE.replace("/secrets", folder.path().to_str().unwrap());
    let full = full.replace("password = \"p\"", "password = \"<redacted>\"");
    for file in ["", MINIMAL, &full] {
        let config = good(file);
        assert_eq!(good(&config.to_toml()), config);
    }
}

// === layers ===

#[test]
fn flags_go_before_the_environment_before_the_file_before_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "[server]\nlisten = \"127.0.0.1:1\"\n[storage]\npath = \"f\"\ncapacity = \"1GiB\"\n")
        .unwrap();
    let env = Variables::from([
        ("CACHALOT_CONFIG", "/does/not/exist"),
        ("CACHALOT_LISTEN", "127.0.0.1:2, [::1]:2"),
        ("CACHALOT_ADMIN_LISTEN", "127.0.0.1:3"),
        ("CACHALOT_DATA", "e"),
        ("CACHALOT_CAPACITY", ""),
        ("CACHALOT_OFFLINE", "yes"),
        ("CACHALOT_LOG", "warn"),
    ]);
    let config = load(Some(&path), &env, &Flags::default()).unwrap();
    assert_eq!(config.server.listen, ["127.0.0.1:2".parse().unwrap(), "[::1]:2".parse().unwrap()]);
    assert_eq!(config.admin.listen, ["127.0.0.1:3".parse().unwrap()]);
    assert_eq!(config.storage.path, Path::new("e"));
    assert_eq!(config.storage.capacity, Capacity::Bytes(1 << 30), "a variable set to nothing counts as not set");
    assert!(config.offline);
    assert_eq!(config.log.level, "warn");
    let flags = Flags {
        listen: vec!["127.0.0.1:4".to_owned(), "127.0.0.1:5,127.0.0.1:6".to_owned()],
        admin_listen: vec!["[::1]:7".to_owned()],
        data: Some("d".into()),
        capacity: Some("10%".to_owned()),
        offline: true,
        log: Some("trace".to_owned()),
        log_format: Some("json".to_owned()),
    };
    let config = load(Some(&path), &Variables::new(), &flags).unwrap();
    assert_eq!(config.server.listen.len(), 3);
    assert_eq!(config.admin.listen, ["[::1]:7".parse().unwrap()]);
    assert_eq!(config.storage.path, Path::new("d"));
    assert_eq!(config.storage.capacity, Capacity::Percent(10));
    assert!(config.offline);
    assert_eq!(config.log, Log { format: LogFormat::Json, level: "trace".to_owned() });
}

#[test]
fn mistakes_of_every_layer_are_told_together_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "[storage]\nmin_free = \"5\"\n[server]\nport = 1\n").unwrap();
    let path = path.to_str().unwrap().to_owned();
    let env = [
        ("CACHALOT_CONFIG", &*Box::leak(path.clone().into_boxed_str())),
        ("CACHALOT_OFFLINE", "maybe"),
        ("CACHALOT_DATA", "\u{fffd}"),
    ];
    let flags =
        Flags { listen: vec!["localhost:5050".to_owned()], capacity: Some("0B".to_owned()), ..Flags::default() };
    let errors = layers(&env, &flags).unwrap_err();
    assert_eq!(
        errors.to_string().replace(&path, "c.toml"),
        "6 mistakes in the configuration:\n  \
         c.toml:2:12: storage.min_free: \"5\" is not a size: write a whole number and a unit, such as \"50GiB\" or \
         \"12345B\", or a share such as \"5%\"\n  \
         c.toml:4:1: server.port: unknown key\n  \
         CACHALOT_DATA: the value is not UTF-8 text\n  \
         CACHALOT_OFFLINE: \"maybe\" is neither true nor false\n  \
         --listen: \"localhost:5050\" is not an address and port such as \"127.0.0.1:5050\" or \"[::1]:5050\" (names are \
         not looked up)\n  \
         --capacity: a capacity of nothing: a mirror needs room for the images it serves"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake() {
    let errors = layers(&[("CACHALOT_CONFIG", "/does/not/exist.toml")], &Flags::default()).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "1 mistake in the configuration:\n  /does/not/exist.toml: cannot be read: No such file or directory (os error 2)"
    );
}

// === mistakes ===

#[test]
fn unknown_keys_are_told_with_what_may_have_been_meant() {
    assert_mistakes(
        "ofline = true\ncapacity = \"1GiB\"\nxyzzy = 1\n[server]\n  listne = \"127.0.0.1:1\"\n[sever]\n\
         [upstreams.\"docker.io\"]\nendpoint = \"x\"\ncredentials = [{ user = \"a\", pasword = \"hunter2\" }]\nttl = \"1m\"\n",
        &[
            "c.toml:1:1: ofline: unknown key; did you mean \"offline\"?",
            "c.toml:2:1: capacity: unknown key; did you mean \"capacity\" in [storage]?",
            "c.toml:3:1: xyzzy: unknown key",
            "c.toml:5:3: server.listne: unknown key; did you mean \"listen\"?",
            "c.toml:6:2: sever: unknown key; did you mean \"server\"?",
            "c.toml:8:1: upstreams.\"docker.io\".endpoint: unknown key; did you mean \"endpoints\"?",
            "c.toml:9:18: upstreams.\"docker.io\".credentials[0].user: unknown key; did you mean \"username\"?",
            "c.toml:9:30: upstreams.\"docker.io\".credentials[0].pasword: unknown key; did you mean \"password\"?",
            "c.toml:10:1: upstreams.\"docker.io\".ttl: unknown key; did you mean \"tag_ttl\"?",
        ],
    );
}

#[test]
fn wrong_types_are_told_with_what_was_expected() {
    assert_mistakes(
        "offline = \"yes\"\nfill = 3\n[server]\nlisten = [5050]\nhosts = []\nmax_connections = \"many\"\nclient_header_timeout = 10\n\
         [storage]\ncapacity = 50\npath = true\n[upstreams]\n\"a.corp\" = \"https://a.corp\"\n[upstreams.\"b.corp\"]\n\
         endpoints = \"https://b.corp\"\nshare_private = 1.5\ncredentials = [\"hunter2\"]\ntag_ttl = 2026-01-01\n",
        &[
            "c.toml:1:11: offline: expected true or false, found a text",
            "c.toml:2:8: fill: expected a table, found a number",
            "c.toml:4:11: server.listen[0]: expected a text, found a number",
            "c.toml:5:9: server.hosts: expected a table of Host headers and the upstreams they stand for, found a list",
            "c.toml:6:19: server.max_connections: expected a number, found a text",
            "c.toml:7:25: server.client_header_timeout: expected a duration such as \"500ms\", \"30s\", \"1m\" or \"12h\", \
             found a number",
            "c.toml:9:12: storage.capacity: expected a size such as \"50GiB\" or \"12345B\", or a share such as \"80%\", \
             found a number",
            "c.toml:10:8: storage.path: expected a path, found true or false",
            "c.toml:12:12: upstreams.\"a.corp\": expected a table, found a text",
            "c.toml:14:13: upstreams.\"b.corp\".endpoints: expected a list of addresses such as \
             [\"https://registry.corp\"], found a text",
            "c.toml:15:17: upstreams.\"b.corp\".share_private: expected true or false, found a fraction",
            "c.toml:16:16: upstreams.\"b.corp\".credentials[0]: expected a table, found a text",
            "c.toml:17:11: upstreams.\"b.corp\".tag_ttl: expected a duration such as \"500ms\", \"30s\", \"1m\" or \"12h\", \
             found a date",
        ],
    );
}

#[test]
fn values_that_mean_nothing_are_told_with_what_would() {
    assert_mistakes(
        "[server]\nclient_header_timeout = \"2h\"\nmax_connections = 0\n[storage]\npath = \"\"\ncapacity = \"101%\"\n\
         [fill]\nunverified_ranges = \"maybe\"\n[tags]\nttl = \"1 minute\"\nstale_if_error = \"always\"\nlist_ttl = \"999d\"\n\
         negative_ttl = \"2h\"\n[log]\nformat = \"xml\"\nlevel = \"verbose\"\n",
        &[
            "c.toml:2:25: server.client_header_timeout: \"2h\" is not between \"1ms\" and \"1h\"",
            "c.toml:3:19: server.max_connections: 0 is not between 1 and 1000000",
            "c.toml:5:8: storage.path: the path is empty",
            "c.toml:6:12: storage.capacity: \"101%\" is not a whole share between 1% and 100%",
            "c.toml:8:21: fill.unverified_ranges: \"maybe\" is neither \"send\" nor \"wait\"",
            "c.toml:10:7: tags.ttl: \"1 minute\" is not a duration: write a whole number and one of ms, s, m, h, d, w, such \
             as \"30s\"",
            "c.toml:11:18: tags.stale_if_error: \"always\" is not a duration: write a whole number and one of ms, s, m, h, \
             d, w, such as \"30s\"; or write \"forever\" or \"never\"",
            "c.toml:12:12: tags.list_ttl: \"999d\" is not between \"0s\" and \"365d\"",
            "c.toml:13:16: tags.negative_ttl: \"2h\" is not between \"0s\" and \"1h\"",
            "c.toml:15:10: log.format: \"xml\" is neither \"text\" nor \"json\"",
            "c.toml:16:9: log.level: \"verbose\" is not a level: off, error, warn, info, debug, trace",
        ],
    );
}

#[test]
fn addresses_to_listen_on() {
    assert_mistakes(
        "server.listen = [\":5050\", \"5051\", \"127.0.0.1\", \"::1\", \"localhost:1\", \"[::1]:2\"]",
        &[
            "c.toml:1:18: server.listen[0]: \":5050\" has no address: write \"127.0.0.1:5050\" for this host alone, \
             \"0.0.0.0:5050\" or \"[::]:5050\" for all",
            "c.toml:1:27: server.listen[1]: \"5051\" has no address: write \"127.0.0.1:5051\" for this host alone, \
             \"0.0.0.0:5051\" or \"[::]:5051\" for all",
            "c.toml:1:35: server.listen[2]: \"127.0.0.1\" has no port: write \"127.0.0.1:5050\"",
            "c.toml:1:48: server.listen[3]: \"::1\" has no port: write \"[::1]:5050\"",
            "c.toml:1:55: server.listen[4]: \"localhost:1\" is not an address and port such as \"127.0.0.1:5050\" or \
             \"[::1]:5050\" (names are not looked up)",
        ],
    );
    assert_mistakes("server.listen = []", &["c.toml:1:17: server.listen: no address: clients need at least one"]);
}

#[test]
fn no_two_listeners_have_the_same_address() {
    assert_mistakes(
        "server.listen = [\"[::]:1\", \"[::1]:1\"]\nadmin.listen = \"[::]:1\"",
        &[
            "c.toml:1:28: server.listen[1]: [::1]:1 and [::]:1 of server.listen[0] (c.toml:1:18) exclude each other; each \
             listener needs an address or port of its own",
            "c.toml:2:16: admin.listen: [::]:1 is taken by server.listen[0] (c.toml:1:18) already; each listener needs an \
             address or port of its own",
        ],
    );
    assert_mistakes(
        "server.listen = \"127.0.0.1:5051\"",
        &[
            "c.toml:1:17: server.listen: 127.0.0.1:5051 is taken by admin.listen by default already; each listener needs an \
           address or port of its own",
        ],
    );
    let flags = Flags { listen: vec!["0.0.0.0:5051".to_owned()], ..Flags::default() };
    assert_eq!(
        layers(&[], &flags).unwrap_err().mistakes()[0].to_string(),
        "--listen: 0.0.0.0:5051 and 127.0.0.1:5051 of admin.listen by default exclude each other; each listener needs an \
         address or port of its own"
    );
    good("server.listen = [\"127.0.0.1:0\", \"127.0.0.1:0\", \"[::1]:5051\"]");
}

#[test]
fn endpoints() {
    assert_mistakes(
        "[upstreams.\"a.corp\"]\nendpoints = [\"a.corp\", \"ftp://a.corp\", \"https://a.corp/v2/\", \"https://\", \
         \"https://bot:hunter2@a.corp\", \"bot:hunter2@a.corp\", \"https://b\", \"https://b/\"]\n[upstreams.\"c.corp\"]\nendpoints = []",
        &[
            "c.toml:2:14: upstreams.\"a.corp\".endpoints[0]: \"a.corp\" does not begin with http:// or https://, such as \
             \"https://registry.corp\"",
            "c.toml:2:24: upstreams.\"a.corp\".endpoints[1]: \"ftp://a.corp\" does not begin with http:// or https://, such \
             as \"https://registry.corp\"",
            "c.toml:2:40: upstreams.\"a.corp\".endpoints[2]: \"https://a.corp/v2/\" has more than a host and a port: write \
             \"https://a.corp\"",
            "c.toml:2:62: upstreams.\"a.corp\".endpoints[3]: \"https://\" is not an address such as \
             \"https://registry.corp\": empty host",
            "c.toml:2:74: upstreams.\"a.corp\".endpoints[4]: an endpoint carries no user name or password: write them in \
             credentials",
            "c.toml:2:104: upstreams.\"a.corp\".endpoints[5]: an endpoint carries no user name or password: write them in \
             credentials",
            "c.toml:2:139: upstreams.\"a.corp\".endpoints[7]: \"https://b/\" is listed twice",
            "c.toml:4:13: upstreams.\"c.corp\".endpoints: an upstream needs at least one endpoint",
        ],
    );
}

#[test]
fn names_of_upstreams() {
    assert_mistakes(
        "[upstreams.\"https://a.corp\"]\nendpoint = 1\n[upstreams.\"A.corp\"]\n[upstreams.\"*\"]\n[upstreams.\"k8s.gcr.io\"]\n\
         [upstreams.\"b.corp\"]\naliases = [\"ghcr.io\", \"index.docker.io\", \"b.corp\", \"d\", \"x\", \"x\", \"UP\", \"v2/x\"]\n\
         [upstreams.\"c.corp\"]\naliases = [\"x\", \"x/y\", \"b.corp\"]\n[upstreams.d]\n",
        &[
            "c.toml:1:12: upstreams.\"https://a.corp\": \"https://a.corp\" is not the name of a registry: a host in lower \
             case, maybe with a port, such as \"registry.corp:5000\"",
            "c.toml:2:1: upstreams.\"https://a.corp\".endpoint: unknown key; did you mean \"endpoints\"?",
            "c.toml:3:12: upstreams.\"A.corp\": \"A.corp\" is not the name of a registry: a host in lower case, maybe with \
             a port, such as \"registry.corp:5000\"",
            "c.toml:4:12: upstreams.\"*\": \"*\" is not a pattern: \"*.\" and a domain in lower case, without a port, such \
             as \"*.corp\"",
            "c.toml:5:12: upstreams.\"k8s.gcr.io\": this is another name of the built-in upstream \"registry.k8s.io\"; did \
             you mean [upstreams.\"registry.k8s.io\"]?",
            "c.toml:7:12: upstreams.\"b.corp\".aliases[0]: \"ghcr.io\" is taken by the built-in upstream \"ghcr.io\"",
            "c.toml:7:23: upstreams.\"b.corp\".aliases[1]: \"index.docker.io\" is taken by the built-in upstream \
             \"docker.io\"",
            "c.toml:7:42: upstreams.\"b.corp\".aliases[2]: \"b.corp\" is the upstream's own name",
            "c.toml:7:52: upstreams.\"b.corp\".aliases[3]: \"d\" is taken by upstreams.d (c.toml:10:12)",
            "c.toml:7:62: upstreams.\"b.corp\".aliases[5]: \"x\" is listed twice: see upstreams.\"b.corp\".aliases[4] \
             (c.toml:7:57)",
            "c.toml:7:67: upstreams.\"b.corp\".aliases[6]: \"UP\" is no alias: a registry's name such as \
             \"registry.corp:5000\", or a path such as \"mirror/hub\", in lower case",
            "c.toml:7:73: upstreams.\"b.corp\".aliases[7]: \"v2/x\" begins with \"v2\", as the paths of the API itself do",
            "c.toml:9:12: upstreams.\"c.corp\".aliases[0]: \"x\" is taken by upstreams.\"b.corp\".aliases[4] (c.toml:7:57)",
            "c.toml:9:24: upstreams.\"c.corp\".aliases[2]: \"b.corp\" is taken by upstreams.\"b.corp\" (c.toml:6:12)",
        ],
    );
}

#[test]
fn a_pattern_leads_nowhere_else_and_gives_nothing_away() {
    assert_mistakes(
        "[upstreams.\"*.corp\"]\nendpoints = [\"https://a\"]\naliases = [\"x\"]\ninsecure_skip_verify = true\n\
         credentials = [{ username = \"a\", password = \"hunter2\" }]\n",
        &[
            "c.toml:2:13: upstreams.\"*.corp\".endpoints: a pattern has no endpoints: each registry that it matches is \
             reached at its own name, by TLS",
            "c.toml:3:11: upstreams.\"*.corp\".aliases: a pattern has no aliases: they would not say which registry is meant",
            "c.toml:4:24: upstreams.\"*.corp\".insecure_skip_verify: a pattern always checks certificates: name the \
             registry that needs this",
            "c.toml:5:15: upstreams.\"*.corp\".credentials: a pattern has no credentials: strangers choose the name that \
             would get them",
        ],
    );
}

#[test]
fn names_that_no_upstream_has() {
    assert_mistakes(
        "[server]\ndefault_upstream = \"dokcer.io\"\n[server.hosts]\n\"a b\" = \"docker.io\"\n\"c.corp\" = \"nowhere.example\"\n\
         \"d.corp\" = \"docker.io\"\n\"D.corp\" = \"quay.io\"\n",
        &[
            "c.toml:2:20: server.default_upstream: there is no upstream \"dokcer.io\"; did you mean \"docker.io\"?",
            "c.toml:4:1: server.hosts.\"a b\": \"a b\" is not a Host header: a host, maybe with a port",
            "c.toml:5:12: server.hosts.\"c.corp\": there is no upstream \"nowhere.example\"",
            "c.toml:6:1: server.hosts.\"d.corp\": this host is listed twice: upper and lower case are the same",
        ],
    );
    assert_eq!(good("server.default_upstream = \"\"").server.default_upstream, None);
}

#[test]
fn certificates() {
    assert_mistakes(
        "[server]\ntls = { cert = \"/does/not/exist\" }\n[admin]\ntls = [{ cert = 1, key = \"/nor/this\" }, { crt = \"x\" }]",
        &[
            "c.toml:2:7: server.tls: this certificate lacks its key file",
            "c.toml:2:16: server.tls.cert: /does/not/exist: cannot be read: No such file or directory (os error 2)",
            "c.toml:4:17: admin.tls[0].cert: expected a path, found a number",
            "c.toml:4:43: admin.tls[1].crt: unknown key; did you mean \"cert\"?",
        ],
    );
}

#[test]
fn access() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (tokens, bad) = (path("tokens", "ci:0123456789abcdef"), path("bad", "\nann:hunter2\n"));
    let nobody = "c.toml:1:1: access: nobody could read anything: name an htpasswd file, a tokens_file, or rules for \"anonymous\"";
    assert_mistakes("[access]", &[nobody]);
    assert_mistakes(
        &format!(
            "[access]\nhtpasswd = {bad:?}\ntokens_file = {tokens:?}\nexempt = \"127.0.0.1:1\"\n\
             rules = [{{ users = [\"cj\", \"dora\"], repositories = [\"a[\", \"**\"] }}, {{ users = [\"ci\"] }}]\n\
             [admin]\nadmins = [\"eve\"]"
        ),
        &[
            &format!(
                "c.toml:2:12: access.htpasswd: {bad}:2: the hash of \"ann\" is not bcrypt: make it with `htpasswd -B`"
            ),
            "c.toml:4:10: access.exempt: 127.0.0.1:1 is not one of server.listen",
            "c.toml:5:21: access.rules[0].users[0]: nobody is called \"cj\"; did you mean \"ci\"?",
            "c.toml:5:27: access.rules[0].users[1]: nobody is called \"dora\"",
            "c.toml:5:52: access.rules[0].repositories[0]: \"a[\" is not a glob: unclosed character class; missing ']'",
            "c.toml:5:67: access.rules[1]: a rule needs users and repositories",
            "c.toml:7:11: admin.admins[0]: nobody is called \"eve\"",
        ],
    );
    let config = good(&format!("access.tokens_file = {tokens:?}"));
    assert_eq!(config.access.unwrap().rules, [Rule::all_for_the_known().unwrap()]);
}

#[test]
fn credentials() {
    assert_mistakes(
        "[upstreams.\"docker.io\"]\ncredentials = [\n\
         { scope = \"ghcr.io/a\", username = \"a\", password = \"hunter2\" },\n\
         { scope = \"docker.iox\", username = \"a\", password = \"hunter2\" },\n\
         { username = \"a:b\", password = \"hunter2\" },\n\
         { username = \"a\", password = \"\" },\n\
         { username = \"a\", password = \"hunter2\\n\" },\n\
         { username = \"a\", password = \"hunter2\", password_file = \"x\" },\n\
         { username = \"a\", password_file = \"/does/not/exist\" },\n\
         { username = \"a\", password = \"hunter2\" },\n\
         { scope = \"docker.io/\", username = \"b\", password = \"hunter2\" },\n{},\n]",
        &[
            "c.toml:3:11: upstreams.\"docker.io\".credentials[0].scope: \"ghcr.io/a\" is not \"docker.io\" or a part of it, \
             such as \"docker.io/team\"",
            "c.toml:4:11: upstreams.\"docker.io\".credentials[1].scope: \"docker.iox\" is not \"docker.io\" or a part of \
             it, such as \"docker.io/team\"",
            "c.toml:5:14: upstreams.\"docker.io\".credentials[2].username: a user name has no ':', which ends it in Basic \
             authentication",
            "c.toml:6:30: upstreams.\"docker.io\".credentials[3].password: the password is empty",
            "c.toml:7:30: upstreams.\"docker.io\".credentials[4].password: a password has no control characters such as \
             line breaks",
            "c.toml:8:57: upstreams.\"docker.io\".credentials[5].password_file: this credential has a password already: \
             keep one of the two",
            "c.toml:9:35: upstreams.\"docker.io\".credentials[6].password_file: /does/not/exist: cannot be read: No such \
             file or directory (os error 2)",
            "c.toml:11:1: upstreams.\"docker.io\".credentials[8]: there are two credentials for \"docker.io\"",
            "c.toml:12:1: upstreams.\"docker.io\".credentials[9]: this credential lacks a username",
            "c.toml:12:1: upstreams.\"docker.io\".credentials[9]: this credential lacks a password or password_file",
        ],
    );
}

#[test]
fn certificates_globs_and_hosts_of_an_upstream() {
    let file = "[upstreams.\"a.corp\"]\nca_file = \"Cargo.toml\"\nimmutable_tags = [\"v*\", \"[\", \"\"]\n\
                redirect_hosts = [\"https://b\", \"*\"]\nmax_connections = -1\nread_timeout = \"0s\"\n[upstreams.\"b.corp\"]\n\
                ca_file = \"/does/not/exist\"\n";
    assert_mistakes(
        file,
        &[
            "c.toml:2:11: upstreams.\"a.corp\".ca_file: Cargo.toml: holds no certificate in PEM form",
            "c.toml:3:25: upstreams.\"a.corp\".immutable_tags[1]: \"[\" is not a glob: unclosed character class; missing ']'",
            "c.toml:3:30: upstreams.\"a.corp\".immutable_tags[2]: \"\" is not a glob",
            "c.toml:4:19: upstreams.\"a.corp\".redirect_hosts[0]: \"https://b\" is neither a host such as \"blobs.corp\" \
             nor \"*.\" and a domain",
            "c.toml:4:32: upstreams.\"a.corp\".redirect_hosts[1]: \"*\" is neither a host such as \"blobs.corp\" nor \"*.\" \
             and a domain",
            "c.toml:5:19: upstreams.\"a.corp\".max_connections: -1 is not between 1 and 10000",
            "c.toml:6:16: upstreams.\"a.corp\".read_timeout: \"0s\" is not between \"1ms\" and \"1h\"",
            "c.toml:8:11: upstreams.\"b.corp\".ca_file: /does/not/exist: cannot be read: No such file or directory (os \
             error 2)",
        ],
    );
}

#[test]
fn what_is_not_toml_is_told_line_by_line_and_nothing_is_guessed() {
    assert_mistakes(
        "offline = \n[server\nlisten = \"127.0.0.1:1\"\n[storage]\npath = \"a\"\npath = \"b\"\n",
        &[
            "c.toml:1:11: not valid TOML: string values must be quoted, expected literal string",
            "c.toml:2:8: not valid TOML: unclosed table, expected `]`",
            "c.toml:6:1: not valid TOML: duplicate key",
        ],
    );
}

#[test]
fn no_mistake_repeats_a_password() {
    for line in [
        "credentials = [{ username = \"a\", password = \"hunter2\\n\" }]",
        "credentials = [{ username = \"a\", password = hunter2 }]",
        "credentials = [{ username = \"a\", password = \"hunter2 }]",
        "credentials = [{ username = \"a\", pass = \"hunter2\" }]",
        "credentials = [\"hunter2\"]",
        "credentials = \"hunter2\"",
        "endpoints = [\"https://a:hunter2@b\"]",
        "endpoints = [\"https://a:hunter2@b:x\"]",
        "endpoints = \"https://a:hunter2@b\"",
    ] {
        let errors = read(&format!("[upstreams.\"a.corp\"]\n{line}\n")).unwrap_err();
        assert!(!errors.to_string().contains("hunter2"), "{errors}");
        assert!(!format!("{errors:?}").contains("hunter2"), "{errors:?}");
    }
    let config = good("[upstreams.\"a.corp\"]\ncredentials = [{ username = \"a\", password = \"hunter2\" }]\n");
    assert!(!format!("{config:#?}{}", config.to_toml()).contains("hunter2"));
}

proptest::proptest! {
    #[test]
    fn no_slip_of_the_finger_makes_it_panic(at in 0..FULL.len(), length in 0..3_usize, typed in "[\\[\\]{}\"'=#.,é 0-9a-z\n-]{0,3}") {
        let mut text = FULL.to_owned();
        let boundary = |at: usize| (at..=FULL.len()).find(|at| FULL.is_char_boundary(*at)).unwrap_or(FULL.len());
        text.replace_range(boundary(at)..boundary((at + length).min(FULL.len())), &typed);
        if let Err(errors) = read(&text) {
            proptest::prop_assert!(!errors.mistakes().is_empty());
        }
    }
}

// === the shipped examples ===

/// The full example with its examples of settings taken out of their comments.
fn uncommented() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting.to_owned(),
        _ => line.to_owned(),
    };
    FULL.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

/// All keys under a table of the full example, as the schema names sections.
fn keys_of<'a>(table: &'a DeTable<'a>, section: &str, found: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let key = key.get_ref().to_string();
        let below = match section {
            "" => key.clone(),
            "upstreams" | "warm" => format!("{section}.NAME"),
            _ => format!("{section}.{key}"),
        };
        match value.get_ref() {
            DeValue::Table(table) => keys_of(table, &below, found),
            DeValue::Array(list) => {
                list.iter()
                    .filter_map(|item| item.get_ref().as_table())
                    .for_each(|table| keys_of(table, &below, found));
            }
            _ => {}
        }
        found.push((section.to_owned(), key));
    }
}

#[test]
fn the_minimal_example_is_read() {
    let config = good(MINIMAL);
    assert_eq!(config.storage.path, Path::new("/var/lib/cachalot"));
    assert_eq!(config.storage.capacity, Capacity::Percent(80));
}

#[test]
fn the_full_example_as_it_is_changes_nothing() {
    assert_eq!(good(FULL), Config::default());
}

#[test]
fn the_full_example_has_every_key() {
    let text = uncommented();
    let table = DeTable::parse(&text).unwrap();
    let mut found = Vec::new();
    keys_of(table.get_ref(), "", &mut found);
    for section in schema::ALL {
        for key in section.keys {
            let wanted = (section.path.to_owned(), key.name.to_owned());
            assert!(found.contains(&wanted), "config/cachalot.full.toml lacks {} of [{}]", key.name, section.path);
        }
    }
}

#[test]
fn the_full_example_is_right_with_all_its_examples_in_use() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("team"), "hunter2\n").unwrap();
    write_certificates(folder.path());
    std::fs::write(folder.path().join("corp-ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let config = good(&uncommented().replace("/secrets", folder.path().to_str().unwrap()));
    assert_eq!(config.storage.capacity, Capacity::Bytes(50 << 30));
    assert_eq!(named(&config, "registry.corp:5000").credentials.len(), 3);
    assert_eq!(named(&config, "*.example.com").tag_ttl, Duration::from_hours(1));
}

#[test]
fn the_full_example_writes_every_default_down() {
    // Each active line, changed to nothing, would be the default anyway; that none is missing is seen from the other side:
    // what the program shows of its defaults for these sections is all in the file.
    let shown = Config::default().to_toml();
    let sections = shown.split("\n[upstreams.").next().unwrap();
    for line in sections.lines().filter(|line| line.contains(" = ")) {
        assert!(FULL.lines().any(|written| written == line), "config/cachalot.full.toml lacks {line}");
    }
}
