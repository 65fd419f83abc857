//! A registry as private ones are: behind a password that a credential helper knows, and a certificate of an authority of its
//! own; the mirror in front of it runs where there are no certificates of authorities at all.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::containerd::Ctr;
use crate::fixture::FIXTURE;
use crate::http;
use crate::image::By;
use crate::mirror::Mirror;
use crate::process::{Process, free_port, run, tool};
use crate::pulls;
use crate::skopeo::Skopeo;

/// A docker-registry with htpasswd and TLS, over the images of all tests.
struct Private {
    port: u16,
    folder: TempDir,
    _process: Process,
}

const PASSWORD: &str = "hunter2-of-the-real-registry";

/// Runs a program where no certificate of any authority is to be found, as in an image from scratch.
const WITHOUT_AUTHORITIES: &str = r#"
for folder in /etc/ssl /etc/pki /usr/share/ca-certificates /usr/local/share/ca-certificates; do
    if [ -d "$folder" ]; then mount -t tmpfs none "$folder" || exit 1; fi
    if [ -d "$folder" ] && [ -n "$(ls -A "$folder")" ]; then exit 1; fi
done
exec "$@""#;

// === impl Private ===

impl Private {
    fn start() -> Private {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        fs::write(path("ca.pem"), made.cert.pem()).expect("the folder can be written");
        fs::write(path("key.pem"), made.signing_key.serialize_pem()).expect("the folder can be written");
        let users = run(tool("htpasswd").args(["-nbB", "bot", PASSWORD]));
        fs::write(path("htpasswd"), users).expect("the folder can be written");
        let port = free_port();
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: \"{}\"}}}}\n\
             http:\n  addr: \"127.0.0.1:{port}\"\n  tls: {{certificate: \"{below}/ca.pem\", key: \"{below}/key.pem\"}}\n\
             auth: {{htpasswd: {{realm: real, path: \"{below}/htpasswd\"}}}}\n",
            FIXTURE.storage.display(),
            below = folder.path().display()
        );
        fs::write(path("config.yml"), text).expect("the folder can be written");
        let config = path("config.yml");
        let arguments = ["serve".as_ref(), config.as_ref()];
        let mut process = Process::start("docker-registry", "docker-registry", &arguments, path("log"));
        process.wait_until_ready(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Private { port, folder, _process: process }
    }

    /// A credential helper as docker runs them, which knows the password of localhost only.
    fn helper(&self) -> PathBuf {
        let path = self.folder.path().join("docker-credential-real");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = get ] || exit 2\nread -r server\n\
             if [ \"$server\" = docker.io ] || [ \"$server\" = https://index.docker.io/v1/ ]; then\n  \
             echo '{{\"ServerURL\":\"x\",\"Username\":\"bot\",\"Secret\":\"{PASSWORD}\"}}'\nelse\n  \
             echo 'credentials not found in native keychain'; exit 1\nfi\n"
        );
        fs::write(&path, script).expect("the folder can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        path
    }

    fn mirror(&self, settings: &str) -> Mirror {
        let section =
            format!("[upstreams.\"docker.io\"]\nendpoints = [\"https://localhost:{}\"]\n{settings}\n", self.port);
        Mirror::start_where(&section, &["unshare", "--mount", "sh", "-c", WITHOUT_AUTHORITIES, "sh"])
    }

    fn ca_file(&self) -> String {
        format!("ca_file = \"{}\"", self.folder.path().join("ca.pem").display())
    }
}

#[test]
fn skopeo_and_ctr_pull_a_private_image_by_a_credential_helper_and_a_private_authority() {
    let registry = Private::start();
    let helper = registry.helper();
    let settings = format!(
        "{}\nshare_private = true\ncredentials = [{{ helper = \"{}\" }}]",
        registry.ca_file(),
        helper.display()
    );
    let mirror = registry.mirror(&settings);
    pulls::check(&Skopeo, &mirror, &FIXTURE.multi, By::Tag);
    pulls::check(&Ctr, &mirror, &FIXTURE.busybox, By::Tag);
    assert_no_secret(&mirror);
}

#[test]
fn a_docker_config_opens_it_as_well_and_what_it_opens_is_denied_to_strangers() {
    let registry = Private::start();
    let config = registry.folder.path().join("config.json");
    let file = format!(r#"{{"auths":{{"https://index.docker.io/v1/":{{"username":"bot","password":"{PASSWORD}"}}}}}}"#);
    fs::write(&config, file).expect("the folder can be written");
    let settings = format!("{}\n[credentials]\ndocker_config = [\"{}\"]", registry.ca_file(), config.display());
    let mirror = registry.mirror(&settings);
    let said = refusal(&mirror, 403);
    assert!(said.contains("share_private"), "{said}");
    assert_no_secret(&mirror);
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_told_apart_from_an_outage() {
    let registry = Private::start();
    let said = refusal(&registry.mirror(""), 502);
    assert!(said.contains("certificate that is not trusted") && said.contains("ca_file"), "{said}");
    let said = refusal(&registry.mirror(&registry.ca_file()), 404);
    assert!(said.contains("refused anonymous access"), "{said}");
}

fn refusal(mirror: &Mirror, status: u16) -> String {
    let target = format!("/v2/{}/manifests/1?ns=docker.io", FIXTURE.busybox.repository);
    let answer = http::request("GET", mirror.port, &target, "", b"").expect("the mirror answers");
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, status, "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
    said
}

/// Neither the log nor anything in the data folder holds the password.
fn assert_no_secret(mirror: &Mirror) {
    assert!(!mirror.output().contains(PASSWORD), "the log holds the password");
    let found = tool("grep").args(["-rlF", PASSWORD]).arg::<&Path>(&mirror.storage()).output().expect("grep runs");
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
}
