//! A node looked at: whether its container runtimes will really ask the mirror, by the files that they read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{MirrorUrl, proxies, registries};
use crate::files;

/// Something that keeps a client from using the mirror, or makes it slow or unsafe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: a file.
    pub place: PathBuf,
    /// What is wrong there.
    pub what: String,
    /// What to change.
    pub advice: String,
}

/// What was found on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examined {
    /// The runtimes that are configured there.
    pub runtimes: Vec<&'static str>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// The mirrors that they are told of.
    pub mirrors: Vec<MirrorUrl>,
}

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where containerd looks for the registry section, by the version that its file says it has.
const SECTIONS: [(i64, &str); 3] = [(1, "cri"), (2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.images")];

/// Looks at the node whose root is at `root`. With `mirror`, that one is looked for; otherwise whatever is configured.
pub fn examine(root: &Path, mirror: Option<&MirrorUrl>) -> Examined {
    let mut found = Examined::default();
    if exists(root, "etc/containerd") {
        found.runtimes.push("containerd");
        containerd(root, mirror, &mut found);
    }
    if exists(root, "etc/docker") {
        found.runtimes.push("Docker");
        registries::docker(root, mirror, &mut found);
    }
    if exists(root, "etc/containers/registries.conf") || exists(root, "etc/containers/registries.conf.d") {
        found.runtimes.push("podman or CRI-O");
        registries::podman(root, mirror, &mut found);
    }
    found.mirrors.sort_by(|a, b| a.url.cmp(&b.url));
    found.mirrors.dedup();
    proxies::look(root, mirror, &mut found);
    found
}

fn containerd(root: &Path, mirror: Option<&MirrorUrl>, found: &mut Examined) {
    if let Some(folder) = hosts_folder(root, found) {
        hosts_files(&folder.path, mirror, found);
    }
}

/// Where containerd looks for hosts.toml files.
pub(super) struct HostsFolder {
    /// The first of them, if it is told of several.
    pub(super) path: PathBuf,
    /// Unless its configuration keeps it from reading them.
    pub(super) is_read: bool,
}

/// Finds the folder by containerd's configuration, and says what is wrong there; nothing if containerd can't read that at all.
pub(super) fn hosts_folder(root: &Path, found: &mut Examined) -> Option<HostsFolder> {
    let path = root.join("etc/containerd/config.toml");
    let config = match read_toml(&path) {
        Ok(Some(config)) => with_imports(root, config, found),
        Ok(None) => {
            let what = "there is no configuration, and not every version reads hosts.toml files without one";
            found.say(&path, what, "write one with config_path = \"/etc/containerd/certs.d\"; see docs/clients.md");
            Table::new()
        }
        Err(error) => {
            found.say(&path, error, "containerd does not start with it: mend it");
            return None;
        }
    };
    let version = config.get("version").and_then(Value::as_integer).unwrap_or(1);
    let section = SECTIONS.iter().find(|(of, _)| *of == version).map_or(SECTIONS[2].1, |(_, section)| section);
    for (of, other) in SECTIONS.into_iter().filter(|(of, _)| *of != version) {
        if registry(&config, other).is_some_and(|registry| !registry.is_empty()) {
            let what =
                format!("the file is of version {version}, and the registry section of version {of} in it is not read");
            found.say(&path, what, format!("move it to [plugins.\"{section}\".registry]"));
        }
    }
    let empty = Table::new();
    let registry = registry(&config, section).unwrap_or(&empty);
    let config_path = registry.get("config_path").and_then(Value::as_str).unwrap_or_default();
    let old: Vec<_> = ["mirrors", "configs"].into_iter().filter(|table| registry.contains_key(*table)).collect();
    let (has_old, has_none) =
        (!old.is_empty() && !config_path.is_empty(), config_path.is_empty() && !config.is_empty());
    if has_old {
        let what = format!(
            "registry.{} stands beside config_path, and containerd takes only one of them",
            old.join(" and registry.")
        );
        found.say(&path, what, "remove the older tables");
    } else if has_none {
        let what = "config_path is not set, so no hosts.toml is read";
        let advice = format!("set config_path = \"/etc/containerd/certs.d\" in [plugins.\"{section}\".registry]");
        found.say(&path, what, advice);
    }
    let transfer = config.get("plugins").and_then(|plugins| plugins.get("io.containerd.transfer.v1.local"));
    let transfer = transfer.and_then(|local| local.get("config_path")).and_then(Value::as_str);
    // The default of containerd 2.2, with which its CRI plugin finds no file, unless it pulls by itself. 1.x reads both, and some
    // clouds have it so.
    let images = config.get("plugins").and_then(|plugins| plugins.get(SECTIONS[2].1));
    let is_local = images.and_then(|images| images.get("use_local_image_pull")).and_then(Value::as_bool) == Some(true);
    let names_two = config_path.contains(':') && !is_local;
    for (which, names_two) in [
        ("config_path", names_two),
        ("the transfer service's config_path", transfer.is_some_and(|folders| folders.contains(':'))),
    ] {
        if names_two {
            let what = format!("{which} names two folders, which are read as one name by the transfer service");
            found.say(&path, what, "name one folder");
        }
    }
    let folder = config_path.split(':').next().filter(|folder| !folder.is_empty()).unwrap_or("/etc/containerd/certs.d");
    let is_read = !(has_old || has_none || names_two && version > 2);
    Some(HostsFolder { path: below(root, folder), is_read })
}

/// The registry section of a plugin.
fn registry<'a>(config: &'a Table, plugin: &str) -> Option<&'a Table> {
    config.get("plugins")?.get(plugin)?.get("registry")?.as_table()
}

/// A configuration with what it imports.
fn with_imports(root: &Path, mut config: Table, found: &mut Examined) -> Table {
    let imports = config.get("imports").and_then(Value::as_array).cloned().unwrap_or_default();
    for import in imports.iter().filter_map(Value::as_str) {
        let pattern = below(root, import);
        let (folder, ending) = (pattern.parent().unwrap_or(root), import.rsplit('*').next().unwrap_or_default());
        let paths = if import.contains('*') {
            let entries = files::entries(folder).unwrap_or_default();
            entries.into_iter().filter(|path| path.to_string_lossy().ends_with(ending)).collect()
        } else {
            vec![pattern]
        };
        for path in paths {
            match read_toml(&path) {
                Ok(Some(more)) => merge(&mut config, more),
                Ok(None) => {}
                Err(error) => found.say(&path, error, "containerd does not start with it: mend it"),
            }
        }
    }
    config
}

fn merge(into: &mut Table, from: Table) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Table(known)), Value::Table(more)) => merge(known, more),
            (_, value) => _ = into.insert(name, value),
        }
    }
}

/// The hosts.toml files of a folder.
fn hosts_files(folder: &Path, mirror: Option<&MirrorUrl>, found: &mut Examined) {
    let folders = files::entries(folder).unwrap_or_default();
    let paths = folders.iter().map(|registry| registry.join("hosts.toml"));
    let paths: Vec<_> = paths.filter(|path| path.exists()).collect();
    if paths.is_empty() {
        let what = "there is no hosts.toml in it, so the mirror is never asked";
        return found.say(folder, what, "cachalot hosts containerd --mirror URL --write DIR");
    }
    let mut names_mirror = false;
    for path in paths {
        match read_toml(&path) {
            Ok(hosts) => names_mirror |= hosts_file(&path, &hosts.unwrap_or_default(), mirror, found),
            Err(error) => found.say(&path, error, "containerd pulls nothing of this registry while it is so: mend it"),
        }
    }
    if let Some(mirror) = mirror.filter(|_| !names_mirror) {
        let what = format!("no hosts.toml in it names {}", mirror.url);
        found.say(folder, what, "cachalot hosts containerd --mirror URL --write DIR");
    }
}

/// One of them. Says whether it names the mirror.
fn hosts_file(path: &Path, hosts: &Table, mirror: Option<&MirrorUrl>, found: &mut Examined) -> bool {
    let is_for_all = path.parent().is_some_and(|folder| folder.ends_with("_default"));
    let server = hosts.get("server").and_then(Value::as_str);
    let empty = Table::new();
    let named = hosts.get("host").and_then(Value::as_table).unwrap_or(&empty);
    if let Some(server) = server.filter(|server| is_for_all && !named.contains_key(*server)) {
        let what = format!("server = {server:?} stands for every registry here, whose images are not there");
        found.say(path, what, "remove the line: then each registry is asked itself");
    }
    let mut names_mirror = false;
    for (url, host) in named {
        let Ok(this) = url.parse::<MirrorUrl>() else {
            if url.contains("://") {
                continue;
            }
            let what = format!("[host.{url:?}] has no scheme, so it is asked by https");
            found.say(path, what, "write http:// or https:// in front of it");
            names_mirror |= mirror.is_some_and(|mirror| mirror.host == *url);
            continue;
        };
        if mirror.is_some_and(|mirror| *mirror != this) {
            continue;
        }
        names_mirror = true;
        found.mirrors.push(this);
        let capabilities = host.get("capabilities").and_then(Value::as_array);
        let has = |name: &str| capabilities.is_none_or(|all| all.iter().any(|one| one.as_str() == Some(name)));
        for name in ["pull", "resolve"].into_iter().filter(|name| !has(name)) {
            let what = format!("the mirror lacks the capability {name:?}, so it is not asked for tags");
            found.say(path, what, "capabilities = [\"pull\", \"resolve\"]");
        }
        if host.get("override_path").and_then(Value::as_bool) == Some(true) {
            let what = "override_path is set, and the address has no path: the mirror is asked without /v2";
            found.say(path, what, "remove override_path");
        }
    }
    names_mirror
}

/// A file of a node.
pub(super) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

pub(super) fn exists(root: &Path, path: &str) -> bool {
    below(root, path).exists()
}

/// The text of a file, if there is one.
pub(super) fn read(path: &Path) -> Result<Option<String>, String> {
    if !path.exists() {
        return Ok(None);
    }
    files::read_text(path, FILE_BYTES_MAX).map(Some).map_err(|error| error.to_string())
}

pub(super) fn read_toml(path: &Path) -> Result<Option<Table>, String> {
    let Some(text) = read(path)? else { return Ok(None) };
    text.parse().map(Some).map_err(|error: toml::de::Error| format!("it is no TOML: {}", error.message()))
}

// === impl Examined ===

impl Examined {
    pub(super) fn say(&mut self, place: &Path, what: impl Into<String>, advice: impl Into<String>) {
        let problem = Problem { place: place.to_owned(), what: what.into(), advice: advice.into() };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// The problems by the file in which they are.
    pub fn by_place(&self) -> BTreeMap<&Path, Vec<&Problem>> {
        let mut by_place: BTreeMap<&Path, Vec<&Problem>> = BTreeMap::new();
        for problem in &self.problems {
            by_place.entry(&problem.place).or_default().push(problem);
        }
        by_place
    }
}
