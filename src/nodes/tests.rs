//! What each client is told, read as it reads it; and files put in place and taken back.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn wanted(registries: &[&str]) -> Wanted {
    Wanted {
        mirrors: vec!["http://10.0.0.7:5050".parse().unwrap()],
        registries: registries.iter().map(|registry| registry.parse().unwrap()).collect(),
        known: ["docker.io", "quay.io"].map(|registry| registry.parse().unwrap()).to_vec(),
        except: Vec::new(),
        strict: false,
        ca_file: None,
        headers: Vec::new(),
        dial_timeout: Duration::from_millis(500),
        sigstore: false,
    }
}

/// With all there is to say.
fn strict() -> Wanted {
    Wanted {
        mirrors: ["https://a.example:5050", "https://[fd00::7]:5050"].map(|url| url.parse().unwrap()).to_vec(),
        strict: true,
        ca_file: Some("/etc/ssl/mirror \"x\".pem".to_owned()),
        headers: vec![("Authorization".to_owned(), "Bearer a\"b".to_owned())],
        sigstore: true,
        ..wanted(&["docker.io", "corp.example:5000"])
    }
}

fn one(client: Client, wanted: &Wanted) -> ClientFile {
    let mut files = files_of(client, wanted);
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn toml_of(text: &str) -> Value {
    let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error} in {text}"));
    serde_json::to_value(table).unwrap()
}

fn yaml_of(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn addresses_of_mirrors_have_a_scheme_and_a_host_and_nothing_else() {
    let mirror: MirrorUrl = "http://10.0.0.7:5050/".parse().unwrap();
    assert_eq!(
        (mirror.url.as_str(), mirror.host.as_str(), mirror.is_plain),
        ("http://10.0.0.7:5050", "10.0.0.7:5050", true)
    );
    for bad in ["10.0.0.7:5050", "ftp://a", "http://a/b", "http://user:word@a", "http://a?x", "", "http://"] {
        assert!(bad.parse::<MirrorUrl>().is_err(), "{bad}");
    }
    let inside = |url: &str| url.parse::<MirrorUrl>().unwrap().is_cluster_name();
    assert!(inside("http://cachalot:5050") && inside("http://cachalot.mirror.svc:5050"));
    assert!(
        !inside("http://10.0.0.7:5050") && !inside("https://[fd00::7]:5050") && !inside("https://mirror.corp.example")
    );
}

#[test]
fn containerd_asks_the_mirror_and_then_the_registry_or_nobody() {
    let all = one(Client::Containerd, &wanted(&[]));
    assert_eq!(all.place, "/etc/containerd/certs.d/_default/hosts.toml");
    let host = json!({ "capabilities": ["pull", "resolve"], "dial_timeout": "500ms" });
    assert_eq!(toml_of(&all.text), json!({ "host": { "http://10.0.0.7:5050": host } }));
    let hub = one(Client::Containerd, &wanted(&["docker.io"]));
    assert_eq!(toml_of(&hub.text)["server"], "https://registry-1.docker.io");

    let files = files_of(Client::Containerd, &strict());
    assert_eq!(files[1].path.as_deref(), Some("corp.example_5000_/hosts.toml"));
    let text = toml_of(&files[1].text);
    let header = json!({ "Authorization": "Bearer a\"b" });
    assert_eq!((&text["server"], &text["header"]), (&json!("https://[fd00::7]:5050"), &header));
    for mirror in ["https://a.example:5050", "https://[fd00::7]:5050"] {
        assert_eq!(text["host"][mirror]["ca"], "/etc/ssl/mirror \"x\".pem", "{text}");
        assert_eq!(text["host"][mirror]["header"], header);
    }
    let order = |text: &str, part: &str| text.find(part).unwrap();
    assert!(order(&files[0].text, "host.\"https://a.example") < order(&files[0].text, "host.\"https://[fd00"));
}

#[test]
fn docker_and_podman_are_told_where_the_mirror_is() {
    let docker: Value = serde_json::from_str(&one(Client::Docker, &wanted(&[])).text).unwrap();
    assert_eq!(
        docker,
        json!({ "registry-mirrors": ["http://10.0.0.7:5050"], "insecure-registries": ["10.0.0.7:5050"] })
    );

    let podman = toml_of(&one(Client::Podman, &wanted(&["quay.io"])).text);
    let mirror = json!([{ "location": "10.0.0.7:5050/quay.io", "insecure": true }]);
    assert_eq!(podman["registry"], json!([{ "prefix": "quay.io", "location": "quay.io", "mirror": mirror }]));
    let files = files_of(Client::Crio, &strict());
    let crio = toml_of(&files[0].text);
    assert_eq!(crio["registry"][1]["location"], "[fd00::7]:5050/corp.example:5000");
    assert_eq!(crio["registry"][1]["mirror"].as_array().unwrap().len(), 2);
    assert_eq!(yaml_of(&files[1].text)[0]["docker"]["a.example:5050"]["use-sigstore-attachments"], true);
}

#[test]
fn builders_are_told_where_the_mirror_is() {
    let buildkit = toml_of(&one(Client::Buildkit, &wanted(&[])).text);
    assert_eq!(buildkit["registry"]["quay.io"]["mirrors"], json!(["10.0.0.7:5050"]));
    assert_eq!(buildkit["registry"]["10.0.0.7:5050"]["http"], true);
    let kaniko = one(Client::Kaniko, &wanted(&["docker.io"])).text;
    assert_eq!(kaniko, "--registry-map=index.docker.io=10.0.0.7:5050/docker.io\n--insecure-registry=10.0.0.7:5050\n");
    assert!(one(Client::Kaniko, &strict()).text.contains("--skip-default-registry-fallback\n"));
}

#[test]
fn clusters_are_told_where_the_mirror_is() {
    let k3s = &yaml_of(&one(Client::K3s, &wanted(&[])).text)[0];
    assert_eq!(k3s, &json!({ "mirrors": { "*": { "endpoint": ["http://10.0.0.7:5050"] } } }));
    let k3d = &yaml_of(&one(Client::K3d, &strict()).text)[0];
    assert_eq!(k3d["configs"]["a.example:5050"]["tls"]["ca_file"], "/etc/ssl/mirror \"x\".pem");

    let openshift = yaml_of(&one(Client::Openshift, &strict()).text);
    let kinds: Vec<_> = openshift.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ImageDigestMirrorSet", "ImageTagMirrorSet"]);
    let set = &openshift[1]["spec"]["imageTagMirrors"][0];
    let mirrors = json!(["a.example:5050/docker.io", "[fd00::7]:5050/docker.io"]);
    assert_eq!((&set["mirrorSourcePolicy"], &set["mirrors"]), (&json!("NeverContactSource"), &mirrors));

    let talos = &yaml_of(&one(Client::Talos, &wanted(&[])).text)[0]["machine"]["registries"]["mirrors"]["*"];
    assert_eq!(talos, &json!({ "endpoints": ["http://10.0.0.7:5050"], "skipFallback": false }));
    let bottlerocket = toml_of(&one(Client::Bottlerocket, &wanted(&[])).text);
    let mirrors = &bottlerocket["settings"]["container-registry"]["mirrors"];
    assert_eq!(mirrors, &json!([{ "registry": "*", "endpoint": ["http://10.0.0.7:5050"] }]));
    let gke = &yaml_of(&one(Client::Gke, &wanted(&["quay.io"])).text)[0]["registryHosts"][0];
    assert_eq!((&gke["server"], &gke["hosts"][0]["dialTimeout"]), (&json!("quay.io"), &json!("1s")));

    let kind = files_of(Client::Kind, &wanted(&[]));
    assert_eq!(yaml_of(&kind[0].text)[0]["nodes"][0]["extraMounts"][0]["containerPath"], "/etc/containerd/certs.d");
    assert_eq!(kind[1].place, "certs.d/_default/hosts.toml");
    let minikube = one(Client::Minikube, &wanted(&[]));
    assert_eq!(minikube.place, "~/.minikube/files/etc/containerd/certs.d/_default/hosts.toml");
    let eks = one(Client::Eks, &wanted(&[])).text;
    let script = eks.split("us-ascii\"\n\n").nth(1).unwrap().split("\n--cachalot--").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = script.replace("/etc/containerd", folder.path().to_str().unwrap());
    assert!(std::process::Command::new("bash").args(["-c", &script]).status().unwrap().success());
    let written = fs::read_to_string(folder.path().join("certs.d/_default/hosts.toml")).unwrap();
    assert_eq!(written, one(Client::Containerd, &wanted(&[])).text);
}

/// Everything in a folder: path, mode, content or where it leads.
fn look(folder: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let facts = fs::symlink_metadata(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if facts.is_dir() {
            found.push((format!("{name}/"), facts.permissions().mode(), Vec::new()));
            found.extend(look(&path).into_iter().map(|(below, mode, bytes)| (format!("{name}/{below}"), mode, bytes)));
        } else {
            let bytes = if facts.is_symlink() { Vec::new() } else { fs::read(&path).unwrap() };
            found.push((name, facts.permissions().mode(), bytes));
        }
    }
    found.sort();
    found
}

/// A folder as somebody has it: a file of theirs where one of ours goes, others beside it, and an empty folder.
fn used() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for (file, mode) in
        [("docker.io/hosts.toml", 0o600), ("docker.io/ca.crt", 0o444), ("other.example/hosts.toml", 0o640)]
    {
        fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
        fs::write(path.join(file), format!("theirs: {file}\n")).unwrap();
        fs::set_permissions(path.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(path.join("quay.io")).unwrap();
    folder
}

#[test]
fn what_was_there_before_comes_back_byte_for_byte() {
    let folder = used();
    let before = look(folder.path());
    let sets = [
        vec!["docker.io", "quay.io", "ghcr.io"],
        vec!["docker.io", "quay.io", "ghcr.io"],
        vec!["quay.io"],
        vec![],
        vec!["docker.io"],
    ];
    for registries in &sets {
        let files = files_of(Client::Containerd, &wanted(registries));
        place(folder.path(), &files).unwrap();
        for file in &files {
            let path = folder.path().join(file.path.as_deref().unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), file.text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        }
        assert_eq!(place(folder.path(), &files).unwrap(), [""; 0], "nothing is left to do");
    }
    take_back(folder.path()).unwrap();
    assert_eq!(look(folder.path()), before);
    assert_eq!(take_back(folder.path()).unwrap(), [""; 0]);
}

#[test]
fn what_somebody_changed_since_then_is_left_alone() {
    let folder = used();
    place(folder.path(), &files_of(Client::Containerd, &wanted(&["docker.io", "ghcr.io"]))).unwrap();
    fs::write(folder.path().join("ghcr.io/hosts.toml"), "theirs, since then").unwrap();
    fs::write(folder.path().join("ghcr.io/client.pem"), "theirs").unwrap();
    let done = take_back(folder.path()).unwrap().join("\n");
    assert!(done.contains("left") && done.contains("ghcr.io"), "{done}");
    assert_eq!(fs::read(folder.path().join("ghcr.io/hosts.toml")).unwrap(), b"theirs, since then");
    assert_eq!(fs::read(folder.path().join("docker.io/hosts.toml")).unwrap(), b"theirs: docker.io/hosts.toml\n");
    // Files without a place for a mark are known by what was written.
    let daemon = tempfile::tempdir().unwrap();
    fs::write(daemon.path().join("daemon.json"), "{}").unwrap();
    place(daemon.path(), &files_of(Client::Docker, &wanted(&[]))).unwrap();
    take_back(daemon.path()).unwrap();
    assert_eq!(look(daemon.path()).len(), 1);
    assert_eq!(fs::read(daemon.path().join("daemon.json")).unwrap(), b"{}");
}

#[test]
fn a_credential_is_for_its_owner_alone() {
    let folder = used();
    let open = wanted(&["docker.io"]);
    let closed = Wanted { headers: vec![("Authorization".to_owned(), "Basic eDp5".to_owned())], ..open.clone() };
    let mode = || fs::metadata(folder.path().join("docker.io/hosts.toml")).unwrap().permissions().mode() & 0o777;
    for (wanted, expected) in [(&open, 0o644), (&closed, 0o600), (&open, 0o644)] {
        place(folder.path(), &files_of(Client::Containerd, wanted)).unwrap();
        assert_eq!(mode(), expected);
    }
    // One that an earlier version left open is closed, though nothing in it changes.
    let files = files_of(Client::Containerd, &closed);
    place(folder.path(), &files).unwrap();
    fs::set_permissions(folder.path().join("docker.io/hosts.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(place(folder.path(), &files).unwrap().len(), 1);
    assert_eq!(mode(), 0o600);
    assert_eq!(place(folder.path(), &files).unwrap(), [""; 0]);
}

#[test]
fn who_replaces_a_file_is_told_where_it_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("daemon.json"), "{}").unwrap();
    let done = place(folder.path(), &files_of(Client::Docker, &wanted(&[]))).unwrap();
    assert!(done[1].contains("daemon.json.before-cachalot; it is not read there"), "{done:?}");
}

#[test]
fn a_registry_with_a_port_has_no_place_in_a_path() {
    let with_port: RegistryName = "registry.corp:5000".parse().unwrap();
    let refused: Vec<_> = Client::ALL.into_iter().filter(|client| !client.can_name(&with_port)).collect();
    assert_eq!(refused, [Client::Podman, Client::Crio, Client::Openshift, Client::Kaniko]);
    assert!(Client::ALL.into_iter().all(|client| client.can_name(&"registry.corp".parse().unwrap())));
}

#[test]
fn links_that_lead_elsewhere_are_not_followed() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    symlink(elsewhere.path(), folder.path().join("docker.io")).unwrap();
    let refused = place(folder.path(), &files_of(Client::Containerd, &wanted(&["docker.io"]))).unwrap_err();
    assert!(matches!(refused, PlacingError::Link(_)), "{refused}");
    assert_eq!(look(elsewhere.path()).len(), 0);
    assert!(matches!(place(folder.path(), &files_of(Client::Talos, &wanted(&[]))), Err(PlacingError::NoFiles)));
}
