//! containerd's `hosts.toml`: a folder for each registry, or one for all that have none, read at every pull.

use std::fmt::Write as _;

use super::{ClientFile, MARK, Wanted, origin, quoted};
use crate::oci::RegistryName;

/// The folder for registries that have none of their own.
const ALL: &str = "_default";

/// One file for each registry.
pub(super) fn files(wanted: &Wanted) -> Vec<ClientFile> {
    let file = |registry: Option<&RegistryName>| {
        // Names with a port are spelled so, for Windows' sake.
        let folder = registry.map_or_else(|| ALL.to_owned(), |registry| folder(registry.as_str()));
        let path = format!("{folder}/hosts.toml");
        let place = format!("/etc/containerd/certs.d/{path}");
        // Headers are there for credentials.
        ClientFile {
            is_secret: !wanted.headers.is_empty(),
            ..ClientFile::new(place, Some(&path), text(wanted, registry))
        }
    };
    let mut files: Vec<_> = match &wanted.registries[..] {
        [] => vec![file(None)],
        registries => {
            let mirrored = registries.iter().filter(|registry| !wanted.except.contains(registry));
            mirrored.map(|registry| file(Some(registry))).collect()
        }
    };
    // A folder of its own keeps a registry from those that have none; what says nothing but where it is, leads there.
    for except in &wanted.except {
        let path = format!("{}/hosts.toml", folder(except.as_str()));
        let text = format!("# {MARK}\nserver = {}\n", quoted(&origin(except)));
        files.push(ClientFile::new(format!("/etc/containerd/certs.d/{path}"), Some(&path), text));
    }
    if let Some(first) = files.first_mut() {
        first.notes.push(
            "containerd reads the folder that config_path of its registry section names, and only one: \
             config_path = \"/etc/containerd/certs.d\". hosts.toml is read at every pull; nothing is restarted.",
        );
    }
    files
}

/// How the folder of a registry is called.
fn folder(registry: &str) -> String {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{host}_{port}_")
        }
        _ => registry.to_owned(),
    }
}

/// What it says for a registry, or for all.
pub(super) fn text(wanted: &Wanted, registry: Option<&RegistryName>) -> String {
    let mut text = format!("# {MARK}\n");
    let ca = |text: &mut String, indent: &str| {
        if let Some(ca) = &wanted.ca_file {
            let _ = writeln!(text, "{indent}ca = {}", quoted(ca));
        }
    };
    let headers = |text: &mut String, section: &str| {
        if !wanted.headers.is_empty() {
            let _ = writeln!(text, "[{section}]");
            for (name, value) in &wanted.headers {
                let _ = writeln!(text, "  {} = {}", quoted(name), quoted(value));
            }
        }
    };
    // The server is asked last of all; without one it is the registry itself.
    match (wanted.strict, wanted.mirrors.last(), registry) {
        (true, Some(last), _) => {
            let _ = writeln!(text, "server = {}", quoted(&last.url));
            ca(&mut text, "");
            headers(&mut text, "header");
        }
        (_, _, Some(registry)) => _ = writeln!(text, "server = {}", quoted(&origin(registry))),
        (_, _, None) => {}
    }
    for mirror in &wanted.mirrors {
        let host = format!("host.{}", quoted(&mirror.url));
        let _ = writeln!(text, "\n[{host}]\n  capabilities = [\"pull\", \"resolve\"]");
        // From containerd 2.1 on; before, it is not known and does no harm.
        let _ = writeln!(text, "  dial_timeout = {}", quoted(&wanted.dial_timeout()));
        ca(&mut text, "  ");
        headers(&mut text, &format!("{host}.header"));
    }
    text
}
