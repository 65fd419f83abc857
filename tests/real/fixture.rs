//! The images that upstream holds, built and pushed once for all tests of a run.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::http;
use crate::image::{Image, sha256};
use crate::process::{run, tool};
use crate::upstream::Upstream;

/// The first test to ask builds it; if that fails, all fail.
pub(crate) static FIXTURE: LazyLock<Fixture> = LazyLock::new(Fixture::build);

const MEBIBYTE: u64 = 1 << 20;

/// A signature policy for tools that insist on one: the images are our own.
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

const BUSYBOX: &str = "FROM scratch\nCOPY busybox /bin/busybox\nENV PATH=/bin\nCMD [\"/bin/busybox\", \"true\"]\n";

/// Layers of very different sizes, as real images have.
const BIG: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY middle /data/middle\nCOPY amd64 /data/tiny\n\
    COPY large /data/large\nCOPY huge /data/huge\nCMD [\"/bin/busybox\", \"true\"]\n";

const MULTI: &str = "FROM scratch\nARG TARGETARCH\nCOPY busybox /bin/busybox\nCOPY ${TARGETARCH} /etc/architecture\n\
    CMD [\"/bin/busybox\", \"true\"]\n";

/// A registry's folder and what is in it.
pub(crate) struct Fixture {
    /// The root folder of a docker-registry.
    pub(crate) storage: PathBuf,
    /// A signature policy file that accepts everything.
    pub(crate) policy: PathBuf,
    /// One small layer, Docker's media types, can be run; an artifact refers to it.
    pub(crate) busybox: Image,
    /// Five layers, more than 200 MB.
    pub(crate) big: Image,
    /// An OCI index of linux/amd64 and linux/arm64.
    pub(crate) multi: Image,
    /// The digest of the artifact that refers to `busybox`.
    pub(crate) artifact: String,
}

// === impl Fixture ===

impl Fixture {
    fn build() -> Fixture {
        // Kept in the build folder until the next run: a static is never dropped.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real");
        if let Err(error) = fs::remove_dir_all(&folder) {
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}: {error}", folder.display());
        }
        let (storage, policy, context) = (folder.join("registry"), folder.join("policy.json"), folder.join("context"));
        fs::create_dir_all(&context).expect("the build folder can be written");
        fs::create_dir(&storage).expect("the build folder can be written");
        fs::write(&policy, POLICY).expect("the build folder can be written");
        fill_context(&context);

        let upstream = Upstream::start(&storage);
        let builder = Builder { folder: &folder, context: &context, registry: upstream.port };
        builder.push_image("busybox", BUSYBOX, "docker");
        builder.push_image("big", BIG, "oci");
        builder.push_index("multi", MULTI);
        for part in [&context, &folder.join("buildah")] {
            fs::remove_dir_all(part).expect("the build folder can be written");
        }

        let busybox = Image::read(upstream.port, "library/busybox", "1");
        let artifact = push_artifact(upstream.port, &busybox);
        let big = Image::read(upstream.port, "library/big", "1");
        assert!(big.blob_bytes() > 200 * 1_000_000, "the big image has {} bytes", big.blob_bytes());
        assert_eq!(big.platforms[0].blobs.len(), 6, "a configuration and five layers");
        let multi = Image::read(upstream.port, "library/multi", "1");
        assert_eq!(multi.platforms.len(), 2);
        assert_ne!(multi.platforms[0].blobs, multi.platforms[1].blobs);
        Fixture { storage, policy, busybox, big, multi, artifact }
    }
}

/// Builds images with buildah and pushes them under `library/`, tag 1.
struct Builder<'a> {
    folder: &'a Path,
    context: &'a Path,
    registry: u16,
}

// === impl Builder ===

impl Builder<'_> {
    fn push_image(&self, name: &str, recipe: &str, format: &str) {
        run(self.bud(recipe).args(["--format", format, "--tag", name]).arg(self.context));
        run(self
            .buildah("push")
            .args(["--tls-verify=false", "--format", format_of_push(format)])
            .args([name, &self.destination(name)]));
    }

    fn push_index(&self, name: &str, recipe: &str) {
        let platforms = "linux/amd64,linux/arm64";
        run(self.bud(recipe).args(["--platform", platforms, "--manifest", name]).arg(self.context));
        run(self.buildah("manifest").args(["push", "--all", "--tls-verify=false", name, &self.destination(name)]));
    }

    fn destination(&self, name: &str) -> String {
        format!("docker://127.0.0.1:{}/library/{name}:1", self.registry)
    }

    /// `buildah bud` with a layer for each line of the recipe.
    fn bud(&self, recipe: &str) -> Command {
        let file = self.folder.join("Dockerfile");
        fs::write(&file, recipe).expect("the build folder can be written");
        let mut command = self.buildah("bud");
        command.args(["--isolation", "chroot", "--layers", "--file"]).arg(file);
        command
    }

    fn buildah(&self, verb: &str) -> Command {
        let store = self.folder.join("buildah");
        let mut command = tool("buildah");
        command.args(["--storage-driver", "vfs", "--root"]).arg(store.join("root"));
        command.arg("--runroot").arg(store.join("run")).arg(verb);
        command
    }
}

/// `buildah push` has other words for the formats than `buildah bud`.
fn format_of_push(format: &str) -> &'static str {
    if format == "docker" { "v2s2" } else { "oci" }
}

/// The files that the recipes copy. What is random doesn't compress, so sizes are those of the layers.
fn fill_context(context: &Path) {
    fs::copy("/bin/busybox", context.join("busybox")).expect("busybox-static is installed: see .ci/run");
    fs::write(context.join("amd64"), "amd64\n").expect("the build folder can be written");
    fs::write(context.join("arm64"), "arm64\n").expect("the build folder can be written");
    for (name, bytes) in [("middle", 24 * MEBIBYTE), ("large", 64 * MEBIBYTE), ("huge", 112 * MEBIBYTE)] {
        let mut random = File::open("/dev/urandom").expect("there is randomness").take(bytes);
        let mut file = File::create(context.join(name)).expect("the build folder can be written");
        io::copy(&mut random, &mut file).expect("the build folder can be written");
    }
}

/// Pushes an artifact whose subject is `image`, and the fallback tag that lists it: docker-registry 2.8 knows no referrers.
fn push_artifact(port: u16, image: &Image) -> String {
    let empty = sha256(b"{}");
    let repository = image.repository;
    let started = http::request("POST", port, &format!("/v2/{repository}/blobs/uploads/"), "", b"").expect("an upload");
    let location = started.header("location").expect("an upload has a location");
    let target = &location[location.find("/v2/").expect("a location of the API")..];
    let put = |target: &str, headers: &str, body: &[u8]| {
        let answer = http::request("PUT", port, target, headers, body).expect("upstream answers");
        assert_eq!(answer.status, 201, "{target}: {}", String::from_utf8_lossy(&answer.body));
    };
    put(&format!("{target}&digest={empty}"), "Content-Type: application/octet-stream\r\n", b"{}");

    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let subject_type = text_of_media_type(image);
    let (subject, bytes) = (&image.digest, image.raw.len());
    let artifact = format!(
        r#"{{"schemaVersion": 2, "mediaType": "{manifest_type}", "artifactType": "application/vnd.example.bill",
"config": {{"mediaType": "application/vnd.oci.empty.v1+json", "digest": "{empty}", "size": 2}}, "layers": [],
"subject": {{"mediaType": "{subject_type}", "digest": "{subject}", "size": {bytes}}}}}"#
    );
    let digest = sha256(artifact.as_bytes());
    let headers = format!("Content-Type: {manifest_type}\r\n");
    put(&format!("/v2/{repository}/manifests/{digest}"), &headers, artifact.as_bytes());

    let index_type = "application/vnd.oci.image.index.v1+json";
    let list = format!(
        r#"{{"schemaVersion": 2, "mediaType": "{index_type}", "manifests": [{{"mediaType": "{manifest_type}",
"digest": "{digest}", "size": {}, "artifactType": "application/vnd.example.bill"}}]}}"#,
        artifact.len()
    );
    let tag = subject.replace(':', "-");
    let headers = format!("Content-Type: {index_type}\r\n");
    put(&format!("/v2/{repository}/manifests/{tag}"), &headers, list.as_bytes());
    digest
}

fn text_of_media_type(image: &Image) -> String {
    let json: serde_json::Value = serde_json::from_slice(&image.raw).expect("a manifest is JSON");
    crate::image::text(&json["mediaType"])
}
