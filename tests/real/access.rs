//! Readers who must say who they are: skopeo, podman and containerd with passwords and tokens, and rules that keep users out.

use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::containerd::Containerd;
use crate::fixture::FIXTURE;
use crate::http;
use crate::image::{By, Image};
use crate::mirror::Mirror;
use crate::process::{run, tool};
use crate::skopeo::skopeo;
use crate::upstream::Upstream;

/// A mirror that admits ann and ci to everything, and bob to busybox alone.
struct Guarded {
    mirror: Mirror,
    _files: TempDir,
    _upstream: Upstream,
}

const TOKEN: &str = "0123456789abcdef-of-ci";

/// Who may have all, by name and password; a token's holder says it as a password, too.
const ADMITTED: [(&str, &str); 2] = [("ann", "ann-password"), ("ci", TOKEN)];
const BOB: (&str, &str) = ("bob", "bob-password");
const REFUSED: [(&str, &str); 3] = [("ann", "bob-password"), ("ci", "0123456789abcdef-of-cj"), ("eve", "eve-password")];

// === impl Guarded ===

impl Guarded {
    fn start() -> Guarded {
        let files = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| files.path().join(name);
        let users = [ADMITTED[0], BOB].map(|(name, password)| run(tool("htpasswd").args(["-nbB", name, password])));
        fs::write(path("htpasswd"), users.concat()).expect("the folder can be written");
        fs::write(path("tokens"), format!("ci:{TOKEN}\n")).expect("the folder can be written");
        let upstream = Upstream::start(&FIXTURE.storage);
        let section = format!(
            "[upstreams.\"docker.io\"]\nendpoints = [\"http://127.0.0.1:{}\"]\n\
             [access]\nhtpasswd = \"{}\"\ntokens_file = \"{}\"\n\
             rules = [{{ users = [\"ann\", \"ci\"], repositories = [\"**\"] }},\n\
             {{ users = [\"bob\"], repositories = [\"docker.io/{}\"] }}]\n",
            upstream.port,
            path("htpasswd").display(),
            path("tokens").display(),
            FIXTURE.busybox.repository
        );
        Guarded { mirror: Mirror::start_where(&section, &[]), _files: files, _upstream: upstream }
    }

    fn status(&self, target: &str, authorization: &str) -> u16 {
        let header = format!("Authorization: {authorization}\r\n");
        http::request("GET", self.mirror.port, target, &header, b"").expect("the mirror answers").status
    }
}

/// Whether a command did what it was asked to.
fn succeeds(mut command: Command) -> bool {
    let output = command.output().expect("setpriv (util-linux) can be started");
    assert_ne!(output.status.code(), Some(127), "{command:?} is not installed: see .ci/run");
    output.status.success()
}

fn basic((name, password): (&str, &str)) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// What everyone must be able to do, and must not: `pull` says whether it went well.
fn check(pull: impl Fn(&Guarded, &Image, (&str, &str)) -> bool) {
    let guarded = Guarded::start();
    let (open, closed) = (&FIXTURE.busybox, &FIXTURE.multi);
    for image in [open, closed] {
        for wrong in REFUSED {
            assert!(!pull(&guarded, image, wrong), "{wrong:?} got {}", image.repository);
        }
    }
    for right in ADMITTED {
        for image in [open, closed] {
            assert!(pull(&guarded, image, right), "{right:?} did not get {}", image.repository);
        }
    }
    // All of it is held now, and that makes no difference.
    assert!(pull(&guarded, open, BOB));
    assert!(!pull(&guarded, closed, BOB));
    for (digest, _) in closed.platforms.iter().flat_map(|platform| &platform.blobs) {
        for repository in [closed.repository, open.repository] {
            let target = format!("/v2/{repository}/blobs/{digest}?ns=docker.io");
            let shared = open.digests().contains(digest);
            let expected = if repository == closed.repository { 403 } else { 404 };
            let status = guarded.status(&target, &basic(BOB));
            assert!(status == expected || (shared && repository == open.repository), "{status} for {target}");
        }
    }
}

#[test]
fn skopeo_says_who_it_is_by_password_and_by_token() {
    check(|guarded, image, (name, password)| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = skopeo();
        command.args(["copy", "--quiet", "--retry-times", "0", "--src-tls-verify=false"]);
        command.arg(format!("--src-creds={name}:{password}"));
        command.arg(format!("docker://{}", guarded.mirror.path_name(image, By::Tag)));
        command.arg(format!("dir:{}", folder.path().display()));
        succeeds(command)
    });
}

#[test]
fn podman_logs_in_and_pulls_and_a_wrong_password_fails_at_the_login() {
    check(|guarded, image, (name, password)| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |part: &str| folder.path().join(part);
        let podman = |arguments: &[&str]| {
            let mut command = tool("podman");
            command.env("REGISTRY_AUTH_FILE", path("auth.json"));
            command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
            for (option, part) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
                command.arg(option).arg(path(part));
            }
            command.args(arguments);
            command
        };
        let registry = format!("127.0.0.1:{}", guarded.mirror.port);
        let login = ["login", "--tls-verify=false", "--username", name, "--password", password, &registry];
        if !succeeds(podman(&login)) {
            return false;
        }
        assert!(!REFUSED.contains(&(name, password)), "{name} was let in by a wrong password");
        let source = guarded.mirror.path_name(image, By::Tag);
        let mut pull = podman(&["pull", "--quiet", "--tls-verify=false", "--signature-policy"]);
        pull.arg(&FIXTURE.policy).arg(source);
        succeeds(pull)
    });
}

#[test]
fn containerd_says_who_it_is_by_a_header_of_its_hosts_file() {
    check(|guarded, image, who| {
        let containerd = Containerd::start_as(&guarded.mirror, Some(&basic(who)));
        succeeds(containerd.pulling(image, By::Tag).1)
    });
    let guarded = Guarded::start();
    let containerd = Containerd::start_as(&guarded.mirror, Some(&format!("Bearer {TOKEN}")));
    assert!(succeeds(containerd.pulling(&FIXTURE.multi, By::Tag).1));
    let containerd = Containerd::start_as(&guarded.mirror, None);
    assert!(!succeeds(containerd.pulling(&FIXTURE.multi, By::Tag).1));
}
