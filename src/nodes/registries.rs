//! What Docker and podman are told about registries, looked at: `daemon.json`, `registries.conf` and its drop-ins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::MirrorUrl;
use super::examine::{Examined, below, read, read_toml};
use crate::files;

/// What of an entry in `registries.conf` is looked at.
struct Entry {
    place: PathBuf,
    table: Table,
}

pub(super) fn docker(root: &Path, mirror: Option<&MirrorUrl>, found: &mut Examined) {
    let path = below(root, "etc/docker/daemon.json");
    let advice = "cachalot hosts docker --mirror URL";
    let text = match read(&path) {
        Ok(Some(text)) => text,
        Ok(None) => return found.say(&path, "it is not there, so Docker knows no mirror", advice),
        Err(error) => return found.say(&path, error, "Docker does not start with it: mend it"),
    };
    let daemon: serde_json::Value = match serde_json::from_str(&text) {
        Ok(daemon) => daemon,
        Err(error) => {
            return found.say(&path, format!("it is no JSON: {error}"), "Docker does not start with it: mend it");
        }
    };
    let texts = |name: &str| {
        let list = daemon[name].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let mirrors: Vec<MirrorUrl> = texts("registry-mirrors").iter().filter_map(|url| url.parse().ok()).collect();
    let mine: Vec<_> = mirrors.into_iter().filter(|one| mirror.is_none_or(|mirror| mirror == one)).collect();
    if mine.is_empty() {
        return found.say(&path, "registry-mirrors does not name the mirror", advice);
    }
    let insecure = texts("insecure-registries");
    for one in &mine {
        // To this machine Docker goes without TLS.
        if one.is_plain && !one.is_loopback() && !insecure.contains(&one.host) {
            let what = format!("{} is without TLS, and insecure-registries does not allow that", one.host);
            found.say(&path, what, format!("\"insecure-registries\": [\"{}\"]", one.host));
        }
    }
    found.mirrors.extend(mine);
}

pub(super) fn podman(root: &Path, mirror: Option<&MirrorUrl>, found: &mut Examined) {
    let mut paths = vec![below(root, "etc/containers/registries.conf")];
    let mut drop_ins = files::entries(&below(root, "etc/containers/registries.conf.d")).unwrap_or_default();
    drop_ins.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    drop_ins.sort();
    paths.extend(drop_ins);
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for path in paths {
        let table = match read_toml(&path) {
            Ok(Some(table)) => table,
            Ok(None) => continue,
            Err(error) => {
                found.say(&path, error, "nothing is pulled while it is so: mend it");
                continue;
            }
        };
        if table.get("registries").is_some_and(Value::is_table) {
            let what = "it is in the older format ([registries.…]), which knows no mirrors";
            found.say(&path, what, "write [[registry]] entries instead");
        }
        for entry in table.get("registry").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table) {
            let text = |name: &str| entry.get(name).and_then(Value::as_str);
            let Some(prefix) = text("prefix").or_else(|| text("location")) else { continue };
            let entry = Entry { place: path.clone(), table: entry.clone() };
            if let Some(earlier) = entries.insert(prefix.to_owned(), entry)
                && earlier.table.contains_key("mirror")
            {
                let what = format!("the entry for {prefix} is replaced as a whole by the one in {}", path.display());
                found.say(&earlier.place, what, "keep one of them");
            }
        }
    }
    let mut names_mirror = false;
    for (prefix, entry) in &entries {
        names_mirror |= entry_of(prefix, entry, mirror, found);
    }
    if !names_mirror {
        let what = "no [[registry]] has the mirror";
        found.say(
            &below(root, "etc/containers/registries.conf.d"),
            what,
            "cachalot hosts podman --mirror URL --write DIR",
        );
    }
}

/// Looks at an entry. Says whether it names the mirror.
fn entry_of(prefix: &str, entry: &Entry, mirror: Option<&MirrorUrl>, found: &mut Examined) -> bool {
    let Entry { place, table } = entry;
    let is_true = |table: &Table, name: &str| table.get(name).and_then(Value::as_bool) == Some(true);
    let mut names_mirror = false;
    for one in table.get("mirror").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table) {
        let Some(location) = one.get("location").and_then(Value::as_str) else { continue };
        let (host, path) = location.split_once('/').unwrap_or((location, ""));
        if mirror.is_some_and(|mirror| mirror.host != host) {
            continue;
        }
        names_mirror = true;
        let is_plain = is_true(one, "insecure");
        let scheme = if is_plain { "http" } else { "https" };
        found.mirrors.extend(format!("{scheme}://{host}").parse::<MirrorUrl>());
        if path.contains(':') {
            let what =
                format!("the mirror's location is {location:?}: no image has a colon there, so none can be pulled");
            found.say(place, what, format!("an alias of this upstream on the mirror, and location = \"{host}/ALIAS\""));
        } else if path != prefix && !path.starts_with(&format!("{prefix}/")) && !prefix.contains(':') {
            let what =
                format!("the mirror's location is {location:?}: these clients name no registry, so the path must");
            found.say(place, what, format!("location = \"{host}/{prefix}\""));
        }
        if !is_plain && mirror.is_some_and(|mirror| mirror.is_plain) {
            let what = format!("{host} is without TLS, and is asked with it");
            found.say(place, what, "insecure = true in its [[registry.mirror]]");
        }
        if one.get("pull-from-mirror").and_then(Value::as_str) == Some("digest-only")
            || is_true(table, "mirror-by-digest-only")
        {
            let what = format!("the mirror of {prefix} is asked for digests only, so that pulls by tag go round it");
            found.say(place, what, "remove mirror-by-digest-only or pull-from-mirror");
        }
        if is_true(table, "blocked") {
            found.say(place, format!("{prefix} is blocked, mirror and all"), "remove blocked = true");
        }
    }
    names_mirror
}
