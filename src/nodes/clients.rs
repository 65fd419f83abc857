//! Clients on one machine: dockerd, podman and its kin, BuildKit, kaniko.

use std::fmt::Write as _;

use serde_json::json;

use super::{ClientFile, MARK, MirrorUrl, Wanted, quoted};

/// `daemon.json`, which knows mirrors of Docker Hub only.
pub(super) fn docker(wanted: &Wanted) -> Vec<ClientFile> {
    let mirrors: Vec<_> = wanted.mirrors.iter().map(|mirror| &mirror.url).collect();
    let mut daemon = json!({ "registry-mirrors": mirrors });
    let plain = wanted.plain_hosts();
    if !plain.is_empty() {
        daemon["insecure-registries"] = json!(plain);
    }
    let text = serde_json::to_string_pretty(&daemon).unwrap_or_default() + "\n";
    vec![
        ClientFile::new("/etc/docker/daemon.json", Some("daemon.json"), text)
            .with("dockerd uses mirrors for Docker Hub alone, and names no registry: the mirror's default upstream must be docker.io.")
            .with("With Docker's containerd image store, the files of `cachalot hosts containerd` in /etc/docker/certs.d work for every registry.")
            .with_if(wanted.ca_file.is_some(), "The authority of the mirror's certificate belongs into /etc/docker/certs.d/HOST:PORT/ca.crt.")
            .with("dockerd reads it on SIGHUP: systemctl reload docker. It has no strict form: Docker Hub is always asked last."),
    ]
}

/// A drop-in for `registries.conf`, and where signatures are looked for.
pub(super) fn podman(wanted: &Wanted, is_crio: bool) -> Vec<ClientFile> {
    let mut text = format!("# {MARK}\n");
    for registry in wanted.named().iter().map(crate::oci::RegistryName::as_str) {
        // Strict: the registry's own place is a mirror too.
        let last = wanted.mirrors.last().filter(|_| wanted.strict);
        let location = last.map_or_else(|| registry.to_owned(), |mirror| format!("{}/{registry}", mirror.host));
        let _ = write!(text, "\n[[registry]]\nprefix = {}\nlocation = {}\n", quoted(registry), quoted(&location));
        if last.is_some_and(|mirror| mirror.is_plain) {
            text.push_str("insecure = true\n");
        }
        for mirror in &wanted.mirrors {
            let location = format!("{}/{registry}", mirror.host);
            let _ = write!(text, "\n[[registry.mirror]]\nlocation = {}\n", quoted(&location));
            if mirror.is_plain {
                text.push_str("insecure = true\n");
            }
        }
    }
    let place = "/etc/containers/registries.conf.d/50-cachalot.conf";
    let mut file = ClientFile::new(place, Some("50-cachalot.conf"), text)
        .with("These clients choose a mirror once for each image, at its manifest.")
        .with_if(
            wanted.ca_file.is_some(),
            "The authority of the mirror's certificate belongs into /etc/containers/certs.d/HOST:PORT/ca.crt.",
        );
    if is_crio {
        file = file.with("CRI-O reads it on SIGHUP: systemctl reload crio.");
    }
    let mut files = vec![file];
    if wanted.sigstore {
        let mut text = format!("# {MARK}\ndocker:\n");
        for MirrorUrl { host, .. } in &wanted.mirrors {
            let _ = writeln!(text, "  {}:\n    use-sigstore-attachments: true", quoted(host));
        }
        for registry in wanted.named() {
            let _ = writeln!(text, "  {}:\n    use-sigstore-attachments: true", quoted(registry.as_str()));
        }
        files.push(ClientFile::new("/etc/containers/registries.d/50-cachalot.yaml", None, text));
    }
    files
}

/// `buildkitd.toml`.
pub(super) fn buildkit(wanted: &Wanted) -> Vec<ClientFile> {
    let hosts: Vec<_> = wanted.mirrors.iter().map(|mirror| quoted(&mirror.host)).collect();
    let mut text = format!("# {MARK}\n");
    for registry in wanted.named() {
        let _ = write!(text, "\n[registry.{}]\n  mirrors = [{}]\n", quoted(registry.as_str()), hosts.join(", "));
    }
    for mirror in &wanted.mirrors {
        let host = quoted(&mirror.host);
        if mirror.is_plain {
            let _ = write!(text, "\n[registry.{host}]\n  http = true\n");
        } else if let Some(ca) = &wanted.ca_file {
            let _ = write!(text, "\n[registry.{host}]\n  ca = [{}]\n", quoted(ca));
        }
    }
    vec![
        ClientFile::new("/etc/buildkit/buildkitd.toml", Some("buildkitd.toml"), text)
            .with("buildkitd reads it when it starts. It always asks the real registry last."),
    ]
}

/// kaniko's flags, one a line.
pub(super) fn kaniko(wanted: &Wanted) -> Vec<ClientFile> {
    let mut flags = Vec::new();
    for registry in wanted.named().iter().map(crate::oci::RegistryName::as_str) {
        for mirror in &wanted.mirrors {
            // kaniko knows Docker Hub by this name.
            let name = if registry == "docker.io" { "index.docker.io" } else { registry };
            flags.push(format!("--registry-map={name}={}/{registry}", mirror.host));
        }
    }
    flags.extend(wanted.plain_hosts().iter().map(|host| format!("--insecure-registry={host}")));
    if let Some(ca) = &wanted.ca_file {
        let tls = wanted.mirrors.iter().filter(|mirror| !mirror.is_plain);
        flags.extend(tls.map(|mirror| format!("--registry-certificate={}={ca}", mirror.host)));
    }
    flags.extend(wanted.strict.then(|| "--skip-default-registry-fallback".to_owned()));
    vec![ClientFile::new("arguments of the executor", None, flags.join("\n") + "\n")]
}
