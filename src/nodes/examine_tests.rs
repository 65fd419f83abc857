//! Nodes as they should be, and each with one thing that is wrong.

use std::fs;
use std::path::Path;

use super::*;

const MIRROR: &str = "http://10.0.0.7:5050";

/// A file of a node, and what stands in it.
type Files<'a> = Vec<(&'a str, String)>;

fn config(version: u8, registry: &str) -> String {
    let section = ["", "cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"][usize::from(version)];
    format!("version = {version}\n[plugins.\"{section}\".registry]\n{registry}\n")
}

fn hosts(client: Client) -> String {
    let wanted = Wanted {
        mirrors: vec![MIRROR.parse().unwrap()],
        registries: vec!["docker.io".parse().unwrap()],
        known: Vec::new(),
        except: Vec::new(),
        strict: false,
        ca_file: None,
        headers: Vec::new(),
        dial_timeout: Duration::from_millis(500),
        sigstore: false,
    };
    files_of(client, &wanted)[0].text.clone()
}

const CONFIG: &str = "etc/containerd/config.toml";
const HOSTS: &str = "etc/containerd/certs.d/docker.io/hosts.toml";
const DAEMON: &str = "etc/docker/daemon.json";
const PODMAN: &str = "etc/containers/registries.conf.d/50-cachalot.conf";
const PATH: &str = "config_path = \"/etc/containerd/certs.d\"";

/// A node on which nothing is wrong.
fn good() -> Files<'static> {
    vec![
        (CONFIG, config(2, PATH)),
        (HOSTS, hosts(Client::Containerd)),
        (DAEMON, hosts(Client::Docker)),
        (PODMAN, hosts(Client::Podman)),
        (
            "etc/systemd/system/containerd.service.d/proxy.conf",
            "[Service]\nEnvironment=\"HTTP_PROXY=http://proxy:3128\" \"NO_PROXY=localhost,10.0.0.0/8,.corp\"\n"
                .to_owned(),
        ),
    ]
}

fn look(files: &Files<'_>) -> Examined {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    examine(folder.path(), Some(&MIRROR.parse().unwrap()))
}

/// The good node with one file more, or another one in its place; without it if there is no text.
fn with(path: &'static str, text: impl Into<String>) -> Files<'static> {
    let mut files = good();
    files.retain(|(known, _)| *known != path);
    let text = text.into();
    if !text.is_empty() {
        files.push((path, text));
    }
    files
}

#[test]
fn nothing_is_said_of_a_node_that_is_as_it_should_be() {
    let found = look(&good());
    assert_eq!(found.problems, []);
    assert_eq!(found.runtimes, ["containerd", "Docker", "podman or CRI-O"]);
    assert_eq!(found.mirrors, [MIRROR.parse().unwrap()]);
    // As containerd 1.6 and 1.7 write it, and 2.0 and 2.2; and what is imported counts.
    let two = config(3, &format!("{PATH}\n[plugins.\"io.containerd.transfer.v1.local\"]\n{PATH}"));
    let imported = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n".to_owned();
    let mut files = with(CONFIG, imported);
    files.push(("etc/containerd/conf.d/mirror.toml", config(3, PATH)));
    let whole = "version = 2\noom_score = 0\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"registry.k8s.io/pause:3.9\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    for files in [with(CONFIG, two), files, with(CONFIG, whole)] {
        assert_eq!(look(&files).problems, []);
    }
    assert_eq!(look(&vec![("etc/hostname", "x".to_owned())]).runtimes, [""; 0]);
}

#[test]
fn each_thing_that_is_wrong_is_found_by_its_own_words() {
    let text = |part: &str, with: &str| hosts(Client::Containerd).replace(part, with);
    let podman = |part: &str, with: &str| hosts(Client::Podman).replace(part, with);
    let wrong: Vec<(Files<'_>, &str)> = vec![
        (with(CONFIG, ""), "there is no configuration"),
        (with(CONFIG, "version = "), "it is no TOML"),
        (with(CONFIG, config(2, "")), "config_path is not set"),
        (with(CONFIG, config(2, "config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"")), "names two folders"),
        (
            with(
                CONFIG,
                config(3, &format!("{PATH}\n[plugins.\"io.containerd.transfer.v1.local\"]\nconfig_path = \"/a:/b\"")),
            ),
            "the transfer service's config_path names two folders",
        ),
        (
            with(
                CONFIG,
                config(
                    2,
                    &format!(
                        "{PATH}\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"{MIRROR}\"]"
                    ),
                ),
            ),
            "registry.mirrors stands beside config_path",
        ),
        (
            with(CONFIG, config(2, PATH).replace("version = 2", "version = 3")),
            "the registry section of version 2 in it is not read",
        ),
        (with(HOSTS, ""), "there is no hosts.toml in it"),
        (with(HOSTS, "server = "), "it is no TOML"),
        (with(HOSTS, text("10.0.0.7", "10.0.0.8")), "no hosts.toml in it names http://10.0.0.7:5050"),
        (with(HOSTS, text("[\"pull\", \"resolve\"]", "[\"pull\"]")), "lacks the capability \"resolve\""),
        (with(HOSTS, text("[host.\"http://", "[host.\"")), "has no scheme"),
        (with(HOSTS, text("  dial_timeout", "  override_path = true\n  dial_timeout")), "override_path is set"),
        (with("etc/containerd/certs.d/_default/hosts.toml", hosts(Client::Containerd)), "stands for every registry"),
        (with(DAEMON, "{"), "it is no JSON"),
        (with(DAEMON, "{\"debug\": true}"), "registry-mirrors does not name the mirror"),
        (with(DAEMON, format!("{{\"registry-mirrors\": [\"{MIRROR}\"]}}")), "insecure-registries does not allow that"),
        (with(PODMAN, podman("5050/docker.io", "5050")), "these clients name no registry"),
        (with(PODMAN, podman("5050/docker.io", "5050/docker.io:443")), "no image has a colon there"),
        (with(PODMAN, podman("insecure = true", "")), "is without TLS, and is asked with it"),
        (with(PODMAN, podman("prefix =", "mirror-by-digest-only = true\nprefix =")), "for digests only"),
        (with(PODMAN, podman("prefix =", "blocked = true\nprefix =")), "docker.io is blocked"),
        (with(PODMAN, podman("10.0.0.7", "10.0.0.8")), "no [[registry]] has the mirror"),
        (
            with("etc/containers/registries.conf.d/99-own.conf", "[[registry]]\nlocation = \"docker.io\"\n"),
            "is replaced as a whole by",
        ),
        (
            with("etc/containers/registries.conf", "[registries.search]\nregistries = [\"docker.io\"]\n"),
            "in the older format",
        ),
        (
            with(
                "etc/systemd/system/containerd.service.d/proxy.conf",
                "[Service]\nEnvironment=HTTP_PROXY=http://proxy:3128\n",
            ),
            "NO_PROXY does not name 10.0.0.7:5050",
        ),
        (
            with(
                "etc/systemd/system/docker.service.d/proxy.conf",
                "[Service]\nEnvironment=\"HTTP_PROXY=http://p:1\"\nEnvironment=\"NO_PROXY=10.1.0.0/16\"\n",
            ),
            "docker reaches the mirror through a proxy",
        ),
    ];
    assert!(wrong.len() >= 10);
    for (files, words) in &wrong {
        let problems = look(files).problems;
        assert!(problems.iter().any(|problem| problem.what.contains(words)), "{words}: {problems:?}");
        assert!(problems.iter().all(|problem| !problem.advice.is_empty() && problem.place != Path::new("")));
        // What follows from it may be said too, and nothing else.
        assert!(problems.len() <= 2, "{words}: {problems:?}");
    }
}
