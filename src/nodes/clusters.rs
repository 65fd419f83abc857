//! Clusters whose nodes are configured as a whole: k3s, OpenShift, Talos, clouds, and those on one's own machine.

use std::fmt::Write as _;

use super::{ClientFile, MARK, Wanted, containerd, quoted};

/// `registries.yaml` of k3s and RKE2.
pub(super) fn k3s(wanted: &Wanted) -> Vec<ClientFile> {
    vec![
        ClientFile::new(
            "/etc/rancher/k3s/registries.yaml, or /etc/rancher/rke2/registries.yaml",
            Some("registries.yaml"),
            registries(wanted),
        )
        .with("It is read when the service starts. Strict is a flag of that: --disable-default-registry-endpoint."),
    ]
}

/// The same file for k3d.
pub(super) fn k3d(wanted: &Wanted) -> Vec<ClientFile> {
    vec![
        ClientFile::new("registries.yaml", Some("registries.yaml"), registries(wanted))
            .with("k3d cluster create --registry-config registries.yaml"),
    ]
}

fn registries(wanted: &Wanted) -> String {
    let mut text = format!("# {MARK}\nmirrors:\n");
    for registry in wanted.or_all("*") {
        let _ = writeln!(text, "  {}:\n    endpoint:", quoted(&registry));
        for mirror in &wanted.mirrors {
            let _ = writeln!(text, "      - {}", quoted(&mirror.url));
        }
    }
    if let Some(ca) = &wanted.ca_file {
        text.push_str("configs:\n");
        for mirror in wanted.mirrors.iter().filter(|mirror| !mirror.is_plain) {
            let _ = writeln!(text, "  {}:\n    tls:\n      ca_file: {}", quoted(&mirror.host), quoted(ca));
        }
    }
    text
}

/// Sets of mirrors, by digest and by tag.
pub(super) fn openshift(wanted: &Wanted) -> Vec<ClientFile> {
    let policy = if wanted.strict { "NeverContactSource" } else { "AllowContactingSource" };
    let mut text = format!("# {MARK}\n");
    for (kind, field) in [("ImageDigestMirrorSet", "imageDigestMirrors"), ("ImageTagMirrorSet", "imageTagMirrors")] {
        let _ = write!(
            text,
            "---\napiVersion: config.openshift.io/v1\nkind: {kind}\nmetadata:\n  name: cachalot\nspec:\n  {field}:\n"
        );
        for registry in wanted.named().iter().map(crate::oci::RegistryName::as_str) {
            let _ = writeln!(
                text,
                "    - source: {}\n      mirrorSourcePolicy: {policy}\n      mirrors:",
                quoted(registry)
            );
            for mirror in &wanted.mirrors {
                let _ = writeln!(text, "        - {}", quoted(&format!("{}/{registry}", mirror.host)));
            }
        }
    }
    let file = ClientFile::new("oc apply -f -", None, text)
        .with("The machine configuration operator writes it to the nodes, one after the other, and may restart them.");
    vec![if wanted.plain_hosts().is_empty() {
        file
    } else {
        file.with("Without TLS, add the mirror to spec.registrySources.insecureRegistries of image.config.openshift.io/cluster.")
    }]
}

/// A patch of Talos' machine configuration.
pub(super) fn talos(wanted: &Wanted) -> Vec<ClientFile> {
    let mut text = format!("# {MARK}\nmachine:\n  registries:\n    mirrors:\n");
    for registry in wanted.or_all("*") {
        let _ = writeln!(text, "      {}:\n        endpoints:", quoted(&registry));
        for mirror in &wanted.mirrors {
            let _ = writeln!(text, "          - {}", quoted(&mirror.url));
        }
        let _ = writeln!(text, "        skipFallback: {}", wanted.strict);
    }
    vec![
        ClientFile::new("talosctl patch machineconfig --patch @cachalot.yaml", None, text)
            .with("Talos owns the nodes' files: nothing else may write them."),
    ]
}

/// Bottlerocket's settings, as user data.
pub(super) fn bottlerocket(wanted: &Wanted) -> Vec<ClientFile> {
    let endpoints: Vec<_> = wanted.mirrors.iter().map(|mirror| quoted(&mirror.url)).collect();
    let mut text = format!("# {MARK}\n");
    for registry in wanted.or_all("*") {
        let _ = write!(
            text,
            "\n[[settings.container-registry.mirrors]]\nregistry = {}\nendpoint = [{}]\n",
            quoted(&registry),
            endpoints.join(", ")
        );
    }
    vec![
        ClientFile::new("user data, or apiclient set", None, text)
            .with("Bottlerocket always asks the real registry last, and owns the nodes' files."),
    ]
}

/// User data of Amazon Linux nodes: a script that writes containerd's files before any pod is pulled.
pub(super) fn eks(wanted: &Wanted) -> Vec<ClientFile> {
    let mut text = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"cachalot\"\n\n--cachalot\n\
                    Content-Type: text/x-shellscript; charset=\"us-ascii\"\n\n#!/bin/bash\nset -euo pipefail\n"
        .to_owned();
    for file in containerd::files(wanted) {
        let folder = file.place.rsplit_once('/').map_or("", |(folder, _)| folder);
        let _ = write!(text, "mkdir -p '{folder}'\ncat >'{}' <<'CACHALOT'\n{}CACHALOT\n", file.place, file.text);
    }
    text.push_str("\n--cachalot--\n");
    vec![
        ClientFile::new("user data of the launch template", None, text)
            .with("The nodes' containerd reads /etc/containerd/certs.d by default."),
    ]
}

/// The containerd part of a GKE node pool.
pub(super) fn gke(wanted: &Wanted) -> Vec<ClientFile> {
    let mut text = format!("# {MARK}\nregistryHosts:\n");
    for registry in wanted.named() {
        let _ = writeln!(text, "  - server: {}\n    hosts:", quoted(registry.as_str()));
        for mirror in &wanted.mirrors {
            let seconds = wanted.dial_timeout.as_secs().max(1);
            let _ = writeln!(
                text,
                "      - host: {}\n        capabilities: [HOST_CAPABILITY_PULL, HOST_CAPABILITY_RESOLVE]\n        \
                 dialTimeout: \"{seconds}s\"",
                quoted(&mirror.url)
            );
        }
    }
    vec![
        ClientFile::new("gcloud container node-pools update … --containerd-config-from-file=FILE", None, text)
            .with("GKE makes the nodes anew, takes at most 25 registries, and always asks the real registry last."),
    ]
}

/// A kind cluster, with containerd's files from a folder beside its configuration.
pub(super) fn kind(wanted: &Wanted) -> Vec<ClientFile> {
    let text = format!(
        "# {MARK}\nkind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\ncontainerdConfigPatches:\n  - |-\n    \
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\n      config_path = \"/etc/containerd/certs.d\"\nnodes:\n  \
         - role: control-plane\n    extraMounts:\n      - hostPath: ./certs.d\n        \
         containerPath: /etc/containerd/certs.d\n        readOnly: true\n"
    );
    let mut files = vec![ClientFile::new("kind.yaml", None, text).with("kind create cluster --config kind.yaml")];
    files.extend(containerd::files(wanted).into_iter().map(|file| ClientFile {
        place: format!("certs.d/{}", file.path.as_deref().unwrap_or_default()),
        path: None,
        notes: Vec::new(),
        ..file
    }));
    files
}

/// minikube copies this folder onto its node.
pub(super) fn minikube(wanted: &Wanted) -> Vec<ClientFile> {
    let files = containerd::files(wanted).into_iter();
    files
        .map(|file| {
            let place = format!("~/.minikube/files{}", file.place);
            ClientFile::new(place, None, file.text).with("minikube start --container-runtime=containerd")
        })
        .collect()
}
