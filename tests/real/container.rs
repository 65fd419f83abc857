//! The container image: built by its own recipe, run by containerd as nobody with a root that can't be written, and pulled through.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

use crate::containerd::Containerd;
use crate::fixture::FIXTURE;
use crate::http;
use crate::image::By;
use crate::process::{free_port, run, tool, wait_until};
use crate::upstream::Upstream;

/// The image as a folder, and as archives that containerd imports. Built once for all tests of a run.
static BUILT: LazyLock<Built> = LazyLock::new(Built::build);

/// Names the static program of a release build, which is what is in the image: building it once more would take minutes.
const STATIC: &str = "CACHALOT_STATIC";

/// What the recipe builds on. Here it is a stand-in of the same name with a `cargo` that has built already.
const BASE: &str = "docker.io/library/rust:1.95-slim-bookworm";

const BASE_RECIPE: &str =
    "FROM scratch\nCOPY root /\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nENV PATH=/bin\n";

const CARGO: &str = "#!/bin/busybox sh\nset -eu\n[ \"$RUSTFLAGS\" = \"-C target-feature=+crt-static\" ]\n\
    [ \"$*\" = \"build --release --locked --bin cachalot --target here --config profile.release.strip=true\" ]\n\
    [ \"$CACHALOT_COMMIT\" = 0123456789ab ]\n[ -f Cargo.lock ] && [ -f src/main.rs ]\n\
    mkdir -p target/here/release\ncp /static target/here/release/cachalot\n";

const RUSTC: &str = "#!/bin/busybox sh\necho rustc 1.95.0\necho host: here\n";

const NAME: &str = "localhost/cachalot:test";

/// The same with a user as OpenShift picks them.
const OPENSHIFT: &str = "localhost/cachalot:openshift";

const OPENSHIFT_RECIPE: &str = "FROM localhost/cachalot:test\nUSER 1000650000:0\n";

/// The largest that the image may be, unpacked.
const BYTES_MAX: u64 = 25 << 20;

struct Built {
    layout: PathBuf,
    folder: PathBuf,
}

/// A mirror in a container.
struct Contained {
    containerd: Containerd,
    folder: tempfile::TempDir,
    port: u16,
    admin: u16,
}

// === impl Built ===

impl Built {
    fn build() -> Built {
        let program = std::env::var_os(STATIC).map(PathBuf::from);
        let program = program.expect("CACHALOT_STATIC names a static release build of the program: see .ci/run");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("container");
        fs::remove_dir_all(&folder).ok();
        let root = folder.join("context/root");
        for part in ["bin", "etc/ssl/certs", "tmp"] {
            fs::create_dir_all(root.join(part)).expect("the build folder can be written");
        }
        let write = |path: &str, text: &str| {
            fs::write(root.join(path), text).expect("the build folder can be written");
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).expect("it is ours");
        };
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed: see .ci/run");
        run(tool("strip").arg("-o").arg(root.join("static")).arg(program));
        write("bin/cargo", CARGO);
        write("bin/rustc", RUSTC);
        write("etc/ssl/certs/ca-certificates.crt", "# no authority is needed here\n");
        let recipe = folder.join("Dockerfile");
        fs::write(&recipe, BASE_RECIPE).expect("the build folder can be written");
        let store = folder.join("buildah");
        let buildah = |arguments: &[&str]| {
            let mut command = tool("buildah");
            command.args(["--storage-driver", "vfs", "--root"]).arg(store.join("root"));
            command.arg("--runroot").arg(store.join("run")).args(arguments);
            command
        };
        run(buildah(&["bud", "--isolation", "chroot", "--tag", BASE, "--file"])
            .arg(&recipe)
            .arg(folder.join("context")));
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        // As Docker reads it: a health check is no part of OCI's own configuration.
        run(buildah(&["bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "--tag", NAME])
            .args(["--build-arg", "CACHALOT_COMMIT=0123456789ab", "--file"])
            .arg(repository.join("docker/Dockerfile"))
            .arg(repository));
        fs::write(&recipe, OPENSHIFT_RECIPE).expect("the build folder can be written");
        run(buildah(&["bud", "--isolation", "chroot", "--pull-never", "--tag", OPENSHIFT, "--file"])
            .arg(&recipe)
            .arg(folder.join("context")));
        let layout = folder.join("layout");
        run(buildah(&["push", NAME]).arg(format!("dir:{}", layout.display())));
        let built = Built { layout, folder };
        for name in [NAME, OPENSHIFT] {
            run(buildah(&["push", name]).arg(format!("docker-archive:{}:{name}", built.archive(name).display())));
        }
        fs::remove_dir_all(&store).expect("the build folder can be written");
        built
    }

    /// An image as containerd imports it.
    fn archive(&self, name: &str) -> PathBuf {
        self.folder.join(name.replace(['/', ':'], "_")).with_extension("tar")
    }

    /// A JSON file of the image.
    fn json(&self, name: &str) -> Value {
        let bytes = fs::read(self.layout.join(name)).expect("the image has it");
        serde_json::from_slice(&bytes).expect("it is JSON")
    }
}

// === impl Contained ===

impl Contained {
    /// Starts a container of an image.
    fn start(upstream: &Upstream, image: &str) -> Contained {
        let containerd = Containerd::start_at(1, None);
        run(containerd.ctr(&["images", "import", "--snapshotter", "native"]).arg(BUILT.archive(image)));
        let folder = tempfile::tempdir().expect("a temporary folder");
        // As a volume comes from Kubernetes: the group may write, whoever the user is.
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("the folder can be written");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o2770)).expect("it is ours");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let config = format!("[upstreams.\"docker.io\"]\nendpoints = [\"http://127.0.0.1:{}\"]\n", upstream.port);
        fs::write(folder.path().join("cachalot.toml"), config).expect("the folder can be written");
        let (port, admin) = (free_port(), free_port());
        let mut command = containerd.ctr(&["run", "--detach", "--net-host", "--read-only", "--snapshotter", "native"]);
        for variable in [
            format!("CACHALOT_LISTEN=127.0.0.1:{port}"),
            format!("CACHALOT_ADMIN_LISTEN=127.0.0.1:{admin}"),
            "CACHALOT_CONFIG=/etc/cachalot/cachalot.toml".to_owned(),
            "CACHALOT_CAPACITY=1GiB".to_owned(),
        ] {
            command.args(["--env", &variable]);
        }
        let mount = |source: &Path, target: &str, how: &str| {
            format!("type=bind,src={},dst={target},options=rbind:{how}", source.display())
        };
        command.args(["--mount", &mount(&data, "/data", "rw")]);
        command.args(["--mount", &mount(folder.path(), "/etc/cachalot", "ro")]);
        run(command.args([image, "mirror"]));
        let contained = Contained { containerd, folder, port, admin };
        wait_until("the mirror in the container answers", || http::is_registry(port));
        contained
    }

    /// A line of the first process' status.
    fn status(&self, name: &str) -> String {
        let tasks = String::from_utf8(run(&mut self.containerd.ctr(&["task", "ls"]))).expect("ctr prints text");
        let line = tasks.lines().find(|line| line.starts_with("mirror ")).expect("it runs");
        let id = line.split_whitespace().nth(1).expect("it has an id");
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the process is there");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("every process has it");
        line.split_whitespace().next().expect("it has a value").to_owned()
    }

    fn exec(&self, arguments: &[&str]) -> Command {
        let mut command = self.containerd.ctr(&["task", "exec", "--exec-id", "asked", "mirror"]);
        command.args(arguments);
        command
    }

    /// Whether it still runs.
    fn is_running(&self) -> bool {
        let tasks = String::from_utf8(run(&mut self.containerd.ctr(&["task", "ls"]))).expect("ctr prints text");
        tasks.lines().any(|line| line.starts_with("mirror ") && line.contains("RUNNING"))
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        // Fails when it has ended already.
        self.containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "mirror"]).output().ok();
        self.containerd.ctr(&["task", "rm", "--force", "mirror"]).output().ok();
    }
}

#[test]
fn the_image_is_small_runs_as_nobody_and_says_how_it_is() {
    let manifest = BUILT.json("manifest.json");
    let digest = crate::image::text(&manifest["config"]["digest"]);
    let config = BUILT.json(digest.trim_start_matches("sha256:"));
    let config = &config["config"];
    assert_eq!(config["User"], "65532:0");
    assert_eq!(config["Healthcheck"]["Test"], serde_json::json!(["CMD", "/usr/bin/cachalot", "healthcheck"]));
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/bin/cachalot"]));
    assert!(config["Labels"]["org.opencontainers.image.licenses"].is_string(), "{config}");
    let mut bytes = 0;
    for layer in manifest["layers"].as_array().expect("it has layers") {
        let digest = crate::image::text(&layer["digest"]);
        let file = BUILT.layout.join(digest.trim_start_matches("sha256:"));
        bytes += run(tool("tar").args(["--extract", "--to-stdout", "--file"]).arg(file)).len() as u64;
    }
    eprintln!("the image has {bytes} bytes");
    assert!((5 << 20..=BYTES_MAX).contains(&bytes), "{bytes}");
}

#[test]
fn containerd_runs_the_image_and_pulls_through_it() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let image = &FIXTURE.busybox;
    // The image's own user, and one that OpenShift might pick.
    for (name, user) in [(NAME, "65532"), (OPENSHIFT, "1000650000")] {
        let mirror = Contained::start(&upstream, name);
        let status = (mirror.status("Uid:"), mirror.status("Gid:"), mirror.status("CapEff:"));
        assert_eq!(status, (user.to_owned(), "0".to_owned(), "0".repeat(16)));
        // Its root can't be written, and yet it works.
        let written = mirror.exec(&["/usr/bin/cachalot", "node", "copy", "/usr/bin/x"]).output().expect("ctr runs");
        let said = String::from_utf8_lossy(&written.stderr).into_owned();
        assert!(!written.status.success() && said.contains("Read-only file system"), "{said}");
        let version = run(&mut mirror.exec(&["/usr/bin/cachalot", "--version"]));
        assert!(String::from_utf8_lossy(&version).starts_with("cachalot "));
        run(&mut mirror.exec(&["/usr/bin/cachalot", "healthcheck"]));
        let containerd = Containerd::start_at(mirror.port, None);
        let name = containerd.pull(image, By::Tag);
        containerd.run_to_say(&name, "through a container");
        let metrics = http::request("GET", mirror.admin, "/metrics", "", b"").expect("the admin listener answers");
        let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
        let misses = "cachalot_requests_total{upstream=\"docker.io\",kind=\"blob\",outcome=\"miss\"}";
        assert!(metrics.lines().any(|line| line.starts_with(misses) && !line.ends_with(" 0")), "{metrics}");
        assert!(mirror.folder.path().join("data/v1").exists(), "the volume is what it writes to");
        // Told to end, it ends by itself.
        run(&mut mirror.containerd.ctr(&["task", "kill", "--signal", "SIGTERM", "mirror"]));
        wait_until("the container has ended", || !mirror.is_running());
    }
}

/// As the chart's DaemonSet pulls images ahead: they need no shell and no program of their own.
#[test]
fn the_program_is_copied_out_of_the_image_and_runs_in_any_other() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let containerd = Containerd::start_at(upstream.port, None);
    run(containerd.ctr(&["images", "import", "--snapshotter", "native"]).arg(BUILT.archive(NAME)));
    let other = containerd.pull(&FIXTURE.busybox, By::Tag);
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
    let mount = format!("type=bind,src={},dst=/program,options=rbind", folder.path().display());
    let contained = |image: &str, id: &str, arguments: &[&str]| {
        let mut command = containerd.ctr(&["run", "--rm", "--read-only", "--snapshotter", "native", "--mount", &mount]);
        run(command.args([image, id]).args(arguments))
    };
    contained(NAME, "copy", &["/usr/bin/cachalot", "node", "copy", "/program"]);
    let said = contained(&other, "other", &["/program/cachalot", "--version"]);
    assert!(String::from_utf8_lossy(&said).starts_with("cachalot "), "{}", String::from_utf8_lossy(&said));
}
