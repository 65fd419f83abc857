//! What the chart's DaemonSets do to a machine: written once a mirror answers, and taken back byte for byte.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::{fs, thread};

use crate::support::until;

/// Each file and folder below a root, with what it holds and its mode.
type Tree = BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>;

/// A machine's root, and what was on it.
struct Machine {
    root: tempfile::TempDir,
    before: Tree,
}

/// Something that answers as a registry does, until it is dropped.
struct Answering {
    url: String,
    end: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

const CONFIG: &str = "etc/containerd/config.toml";
const CERTS: &str = "etc/containerd/certs.d";

/// containerd's file as its versions write it, with the one line that each of them needs.
fn layouts() -> [(&'static str, String); 4] {
    let path = format!("config_path = \"/{CERTS}\"");
    let cri = "io.containerd.grpc.v1.cri";
    [
        ("1.6", format!("version = 2\n[plugins.\"{cri}\"]\n[plugins.\"{cri}\".registry]\n{path}\n")),
        (
            "1.7",
            format!(
                "disabled_plugins = []\nversion = 2\n[plugins.\"{cri}\".registry]\n{path}\n[plugins.\"{cri}\".registry.headers]\n"
            ),
        ),
        (
            "2.0",
            format!(
                "version = 3\n[plugins.'io.containerd.cri.v1.images']\n[plugins.'io.containerd.cri.v1.images'.registry]\n{path}\n"
            ),
        ),
        (
            "2.2",
            format!(
                "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n[plugins.'io.containerd.cri.v1.images'.registry]\n{path}\n\
                 [plugins.'io.containerd.transfer.v1.local']\n{path}\n"
            ),
        ),
    ]
}

fn tree(root: &Path) -> Tree {
    let (mut tree, mut folders) = (Tree::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let facts = fs::symlink_metadata(&path).unwrap();
            let bytes = (!facts.is_dir()).then(|| fs::read(&path).unwrap());
            tree.insert(path.strip_prefix(root).unwrap().to_owned(), (facts.permissions().mode(), bytes));
            if facts.is_dir() {
                folders.push(path);
            }
        }
    }
    tree
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cachalot"))
}

impl Machine {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let before = tree(root.path());
        Self { root, before }
    }

    fn node(&self, step: &str, args: &[&str]) -> Command {
        let mut command = program();
        command.args(["node", step, "--root"]).arg(self.root.path()).args(args);
        command
    }

    /// Runs a step that is to go well.
    fn well(&self, step: &str, args: &[&str]) -> String {
        let output = self.node(step, args).output().unwrap();
        assert!(output.status.success(), "{}", words(&output));
        words(&output)
    }

    fn refusal(&self, args: &[&str]) -> String {
        let output = self.node("configure", args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        assert_eq!(tree(self.root.path()), self.before, "nothing was written");
        words(&output)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.path().join(path)).unwrap()
    }
}

impl Answering {
    /// Answers each request with a status line and a body.
    fn with(listener: TcpListener, status: &'static str, body: impl Fn() -> String + Send + 'static) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let end = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let ends = end.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                let (mut question, mut piece) = (Vec::new(), [0; 4096]);
                while !question.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut piece).unwrap_or(0) {
                        0 => break,
                        got => question.extend_from_slice(&piece[..got]),
                    }
                }
                if !question.is_empty() {
                    let body = body();
                    let _ = write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                }
            }
        });
        Self { url, end }
    }

    fn mirror() -> Self {
        Self::with(TcpListener::bind("127.0.0.1:0").unwrap(), "200 OK", String::new)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.end.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

#[test]
fn machines_of_every_version_are_configured_changed_and_restored_byte_for_byte() {
    let (mirror, other) = (Answering::mirror(), Answering::mirror());
    let own = "# ours\nserver = \"https://registry-1.docker.io\"\n[host.\"https://hub.corp\"]\n";
    for (version, config) in layouts() {
        for present in [&[][..], &[(CERTS, "docker.io", own), (CERTS, "quay.io", "# theirs\n")][..]] {
            let files = present.iter().map(|(folder, name, text)| (format!("{folder}/{name}/hosts.toml"), *text));
            let files: Vec<(String, &str)> = files.chain([(CONFIG.to_owned(), &*config)]).collect();
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (&**path, *text)).collect();
            let machine = Machine::new(&files);
            let args = ["--registry", "docker.io", "--registry", "ghcr.io", "--mirror", &mirror.url];
            let said = machine.well("configure", &args);
            assert!(said.contains("from its next pull on"), "{version}: {said}");
            let text = machine.text("etc/containerd/certs.d/docker.io/hosts.toml");
            assert!(text.contains(&mirror.url) && text.contains("dial_timeout"), "{version}: {text}");
            assert_eq!(machine.text(CONFIG), config, "containerd's own file is its owner's");
            // Once more changes nothing; an upgrade changes what was written.
            let written = tree(machine.root.path());
            machine.well("configure", &args);
            assert_eq!(tree(machine.root.path()), written, "{version}");
            machine.well("configure", &["--mirror", &other.url, "--except", "registry.k8s.io"]);
            assert!(machine.text("etc/containerd/certs.d/_default/hosts.toml").contains(&other.url));
            let except = machine.text("etc/containerd/certs.d/registry.k8s.io/hosts.toml");
            assert!(except.contains("server = \"https://registry.k8s.io\"") && !except.contains("[host"), "{except}");
            assert!(!machine.root.path().join(CERTS).join("ghcr.io").exists());
            machine.well("restore", &[]);
            assert_eq!(tree(machine.root.path()), machine.before, "{version}");
            assert!(machine.well("restore", &[]).contains("nothing to do"));
        }
    }
}

#[test]
fn what_the_platform_or_its_owner_must_change_is_said_and_nothing_is_written() {
    let mirror = Answering::mirror();
    let one = |path: &'static str, text: &'static str| vec![(path, text)];
    let with = |path: &'static str, text: &'static str| vec![(path, text), (CONFIG, "version = 2\n")];
    for (files, said) in [
        (with("etc/os-release", "NAME=\"Talos\"\nID=talos\n"), "cachalot hosts talos"),
        (with("usr/lib/os-release", "ID=\"bottlerocket\"\n"), "cachalot hosts bottlerocket"),
        (with("etc/os-release", "ID=\"rhcos\"\n"), "cachalot hosts openshift"),
        (with("etc/rancher/node/password", "x"), "cachalot hosts k3s"),
        (one("etc/crio/crio.conf", ""), "cachalot hosts crio"),
        (one("etc/hostname", "x"), "there is no containerd"),
        (one(CONFIG, "version = 2\n[plugins]\n"), "config_path is not set"),
        (one(CONFIG, "version ="), "it is no TOML"),
    ] {
        let refusal = Machine::new(&files).refusal(&["--mirror", &mirror.url]);
        assert!(refusal.contains(said), "{said}: {refusal}");
    }
    let machine = Machine::new(&[(CONFIG, &layouts()[0].1)]);
    let refusal = machine.refusal(&["--mirror", "http://cachalot.cache.svc:5050"]);
    assert!(refusal.contains("name inside a cluster"), "{refusal}");
    assert!(machine.refusal(&[]).contains("--mirror"));
    // Two folders are not read by containerd 2.2, unless it pulls without its transfer service.
    let two = layouts()[2].1.replace("certs.d\"", "certs.d:/etc/docker/certs.d\"");
    let refusal = Machine::new(&[(CONFIG, &two)]).refusal(&["--mirror", &mirror.url]);
    assert!(refusal.contains("names two folders"), "{refusal}");
    let section = "[plugins.'io.containerd.cri.v1.images']\n";
    let local = two.replace(section, &format!("{section}use_local_image_pull = true\n"));
    assert_ne!(local, two);
    Machine::new(&[(CONFIG, &local)]).well("configure", &["--mirror", &mirror.url]);
    // What depends on the version is written, and said.
    let old = layouts()[1].1.replace("certs.d\"", "certs.d:/etc/docker/certs.d\"");
    let said = Machine::new(&[(CONFIG, &old)]).well("configure", &["--mirror", &mirror.url]);
    assert!(said.contains("careful") && said.contains("names two folders"), "{said}");
    let said = Machine::new(&[("etc/containerd/certs.d/keep", "")]).well("configure", &["--mirror", &mirror.url]);
    assert!(said.contains("careful") && said.contains("there is no configuration"), "{said}");
}

/// Ends a program that waits, however the test ends.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_before_a_mirror_answers_from_there() {
    // Nobody listens there yet, and nobody else gets the port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let machine = Machine::new(&[(CONFIG, &layouts()[1].1)]);
    let url = format!("http://{address}");
    let log = machine.root.path().with_extension("log");
    let mut command = machine.node("configure", &["--mirror", &url]);
    let mut waiting = Waiting(command.stdout(fs::File::create(&log).unwrap()).stdin(Stdio::null()).spawn().unwrap());
    until("it has asked in vain", || fs::read_to_string(&log).unwrap().contains("no mirror answers from here")).await;
    assert_eq!(tree(machine.root.path()), machine.before);
    let _mirror = Answering::with(TcpListener::bind(address).unwrap(), "401 Unauthorized", String::new);
    until("it has ended", || waiting.0.try_wait().unwrap().is_some()).await;
    assert!(waiting.0.wait().unwrap().success());
    assert!(machine.text("etc/containerd/certs.d/_default/hosts.toml").contains(&url));
    fs::remove_file(log).unwrap();
    // What answers must be a registry.
    let wrong = Answering::with(TcpListener::bind("127.0.0.1:0").unwrap(), "404 Not Found", String::new);
    let machine = Machine::new(&[(CONFIG, &layouts()[1].1)]);
    let refusal = machine.refusal(&["--mirror", &wrong.url, "--patience", "0"]);
    assert!(refusal.contains("404 Not Found"), "{refusal}");
}

#[test]
fn the_program_goes_into_images_that_have_none_and_waits_for_their_end() {
    let folder = tempfile::tempdir().unwrap();
    let output = program().args(["node", "copy"]).arg(folder.path().join("bin")).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    let copy = folder.path().join("bin/cachalot");
    let output = Command::new(&copy).arg("--version").output().unwrap();
    assert!(words(&output).starts_with(concat!("cachalot ", env!("CARGO_PKG_VERSION"), " (")), "{}", words(&output));
    let mut waiting = Waiting(Command::new(&copy).args(["node", "pause"]).spawn().unwrap());
    // Until it has asked for the signal, that would end it the hard way.
    let status = || fs::read_to_string(format!("/proc/{}/status", waiting.0.id())).unwrap();
    let caught = |status: String| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() & (1 << 14) != 0
    };
    while !caught(status()) {
        thread::yield_now();
    }
    Command::new("kill").arg(waiting.0.id().to_string()).status().unwrap();
    assert!(waiting.0.wait().unwrap().success());
}

#[test]
fn the_end_of_a_daemonset_is_awaited_on_every_node() {
    let account = tempfile::tempdir().unwrap();
    fs::write(account.path().join("namespace"), "cache").unwrap();
    fs::write(account.path().join("token"), "secret").unwrap();
    let awaited = |patience: &str, status: &'static str, answers: Vec<serde_json::Value>| {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let body = move || {
            let at = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst).min(answers.len() - 1);
            answers[at].to_string()
        };
        let api = Answering::with(TcpListener::bind("127.0.0.1:0").unwrap(), status, body);
        let mut command = program();
        command.args(["node", "await", "cachalot-restore", "--patience", patience, "--api", &api.url, "--account"]);
        command.arg(account.path()).output().unwrap()
    };
    let ready = |seen: u64, ready: u64| {
        serde_json::json!({ "metadata": { "generation": 2 }, "status": {
            "observedGeneration": seen, "desiredNumberScheduled": 3, "numberReady": ready } })
    };
    let output = awaited("60", "200 OK", vec![ready(1, 3), ready(2, 2), ready(2, 3)]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(words(&output).contains("is ready on all nodes"), "{}", words(&output));
    for (status, answers, said) in [
        ("200 OK", ready(2, 2), "cachalot-restore is ready on 2 of 3 nodes"),
        ("403 Forbidden", serde_json::json!({}), "403 Forbidden"),
    ] {
        let output = awaited("0", status, vec![answers]);
        assert_eq!(output.status.code(), Some(1));
        assert!(words(&output).contains(said), "{}", words(&output));
    }
}

#[test]
fn shells_are_told_how_to_complete_the_command_line() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = program().args(["completions", shell]).output().unwrap();
        let text = words(&output);
        assert!(output.status.success() && text.contains("check-config") && text.contains("cachalot"), "{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cachalot.bash");
    fs::write(&file, program().args(["completions", "bash"]).output().unwrap().stdout).unwrap();
    assert!(Command::new("bash").arg("-n").arg(file).status().unwrap().success());
}

#[test]
fn doctor_tells_whether_anybody_uses_the_mirror() {
    let mirror = Answering::mirror();
    let machine = Machine::new(&[(CONFIG, &layouts()[1].1)]);
    machine.well("configure", &["--mirror", &mirror.url]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (last, is_well, said) in [
        (now - 7, true, "a client asked the mirror"),
        (now - 50 * 3600, false, "no client has asked the mirror for 50 hours"),
        (0, false, "no client has asked the mirror since it started"),
    ] {
        let metrics = move || format!("# HELP x\ncachalot_client_last_request_timestamp_seconds {last}\n# EOF\n");
        let admin = Answering::with(TcpListener::bind("127.0.0.1:0").unwrap(), "200 OK", metrics);
        let mut doctor = program();
        doctor.args(["doctor", "--node", "--mirror", &mirror.url, "--admin", &admin.url, "--root"]);
        let output = doctor.arg(machine.root.path()).output().unwrap();
        assert!(words(&output).contains(said), "{}", words(&output));
        assert_eq!(output.status.success(), is_well, "{}", words(&output));
    }
}
