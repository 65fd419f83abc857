//! Bundles between two programs: exported from one store, carried, imported into another, and served there without any upstream.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::client::{Connection, Request, send};
use crate::support::images::{Image, Index, Manifest, sha256};
use crate::support::mirror::{blob, manifest};
use crate::support::program::{Program, Serving};
use crate::support::registry::Registry;
use crate::support::until;

const APP: &str = "docker.io/library/app:v1";
const TOOL: &str = "docker.io/library/tool:v2";

/// What upstream has: an index with a signature, and an image.
struct World {
    registry: Registry,
    index: Index,
    signature: Image,
    image: Image,
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

fn fails(output: &Output) -> String {
    assert!(!output.status.success(), "{}", text(output));
    text(output)
}

fn in_folder(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

/// An import that is killed when it has been given this much.
fn import_in_part(site: &Program, part: &[u8]) {
    let mut importing = site.start_command("import", &["-", "--pin", "site"]);
    importing.stdin.take().unwrap().write_all(part).unwrap();
    importing.kill().unwrap();
    importing.wait().unwrap();
}

async fn get(serving: &Serving, path: &str, right: &[u8]) {
    send(serving.addr, &Request::get(path)).await.assert_ok(right);
}

// === impl World ===

impl World {
    async fn new() -> Self {
        let registry = Registry::start().await;
        let index = Index::new(1, &[2000, 300_000]);
        let signature = Image::artifact(7, "application/x.signature", &index.manifest);
        let image = Image::docker(9, &[5_000_000, 40]);
        registry.put_index("library/app", "v1", &index);
        registry.put_untagged("library/app", &signature);
        registry.put_image("library/tool", "v2", &image);
        Self { registry, index, signature, image }
    }

    /// Everything, as a list of who has what.
    fn manifests(&self) -> Vec<(&'static str, &Manifest)> {
        let app = self.index.images.iter().chain([&self.signature]).map(|image| &image.manifest);
        let app = app.chain([&self.index.manifest]).map(|manifest| ("library/app", manifest));
        app.chain([("library/tool", &self.image.manifest)]).collect()
    }

    /// Pulls everything, and sees that it is right.
    async fn pull(&self, serving: &Serving) {
        get(serving, &manifest("library/app", "v1"), &self.index.manifest.bytes).await;
        get(serving, &manifest("library/tool", "v2"), &self.image.manifest.bytes).await;
        for (repository, held) in self.manifests() {
            get(serving, &manifest(repository, &held.digest), &held.bytes).await;
        }
        for image in self.index.images.iter().chain([&self.signature]) {
            self.pull_blobs(serving, "library/app", image).await;
        }
        self.pull_blobs(serving, "library/tool", &self.image).await;
    }

    async fn pull_blobs(&self, serving: &Serving, repository: &str, image: &Image) {
        for part in image.blobs() {
            get(serving, &blob(repository, &part.digest), &part.bytes).await;
        }
    }

    /// A program that holds everything and doesn't run.
    async fn filled(&self) -> Program {
        let program = Program::new(&self.registry, "64MiB");
        let serving = program.serve().await;
        self.pull(&serving).await;
        let records = program.data().join("v1/repositories/docker.io/library");
        let file = |digest: &str| {
            let hex = digest.strip_prefix("sha256:").unwrap();
            program.data().join("v1/blobs/sha256").join(&hex[..2]).join(hex)
        };
        let images = self.index.images.iter().chain([&self.signature, &self.image]);
        let mut files: Vec<PathBuf> = images.flat_map(Image::blobs).map(|part| file(&part.digest)).collect();
        for (repository, held) in self.manifests() {
            let name = format!("_manifests/{}.json", held.digest.replace(':', "-"));
            files.push(records.join(repository.trim_start_matches("library/")).join(name));
        }
        files.extend(["app/_tags/v1.json", "tool/_tags/v2.json"].map(|tag| records.join(tag)));
        until("all is held", || files.iter().all(|file| file.exists())).await;
        serving.kill();
        program
    }

    /// All of it as a bundle, `site.tar` in a folder, with the program that wrote it. Upstream is gone.
    async fn carried(&self) -> (Program, TempDir) {
        let (program, folder) = (self.filled().await, tempfile::tempdir().unwrap());
        self.registry.go_down().await;
        succeeds(&program.run("export", &[APP, TOOL, "-o", &in_folder(&folder, "site.tar")]));
        (program, folder)
    }

    /// A program that holds nothing and never asks anybody.
    fn site(&self) -> Program {
        let program = Program::new(&self.registry, "64MiB");
        program.rewrite("[server]", "offline = true\n[server]");
        program
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_carried_over_is_served_without_upstream() {
    let world = World::new().await;
    let program = world.filled().await;
    world.registry.go_down().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| in_folder(&folder, name);
    let said = succeeds(&program.run("export", &[APP, TOOL, "-o", &path("site.tar")]));
    assert!(said.contains("linux/amd64 linux/arm64") && said.contains("refers to them"), "{said}");
    succeeds(&program.run("export", &["tool:v2", "app:v1", "-o", &path("folder/")]));
    let streamed = program.run("export", &["tool:v2", "app:v1", "-o", "-"]);
    assert!(
        streamed.stdout == std::fs::read(path("site.tar")).unwrap(),
        "{}",
        String::from_utf8_lossy(&streamed.stderr)
    );
    let sums =
        Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(path("folder")).output();
    succeeds(&sums.unwrap());
    // Other tools read it as any archive.
    let packed = Command::new("tar").args(["-C", &path("folder"), "-czf", &path("packed.tar.gz"), "."]).output();
    succeeds(&packed.unwrap());
    let listed = Command::new("tar").args(["-tf", &path("site.tar")]).output().unwrap();
    assert!(
        succeeds(&listed).starts_with("oci-layout\nindex.json\nreferrers.json\nSHA256SUMS\nblobs/\nblobs/sha256/\n")
    );

    for source in ["site.tar", "folder", "packed.tar.gz"] {
        let site = world.site();
        let said = succeeds(&site.run("import", &[&path(source)]));
        assert!(said.contains(APP) && said.contains(TOOL), "{said}");
        let serving = site.serve().await;
        world.pull(&serving).await;
        let referrers = format!("/v2/library/app/referrers/{}?ns=docker.io", world.index.manifest.digest);
        let referrers = send(serving.addr, &Request::get(referrers)).await.json();
        assert_eq!(referrers["manifests"][0]["digest"], world.signature.manifest.digest.as_str());
        assert_eq!(referrers["manifests"][0]["artifactType"], "application/x.signature");
        serving.kill();
        let pin = source.split('.').next().unwrap();
        assert!(succeeds(&site.run("pin", &[])).contains(&format!("{pin}  {APP} {TOOL}")));
        assert!(succeeds(&site.run("verify", &[])).contains("0 are wrong"));
        succeeds(&site.run("export", &["--pin", pin, "-o", &path("again.tar")]));
        assert_eq!(std::fs::read(path("again.tar")).unwrap(), std::fs::read(path("site.tar")).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_in_bundles_while_it_serves() {
    let world = World::new().await;
    let (program, folder) = world.carried().await;
    let path = |name: &str| in_folder(&folder, name);
    succeeds(&program.run("export", &[APP, TOOL, "-o", &path("folder/")]));
    let bytes = std::fs::read(path("site.tar")).unwrap();
    for source in ["site.tar", "folder", "-"] {
        let site = world.site();
        let serving = site.serve().await;
        let cold = send(serving.addr, &Request::get(manifest("library/app", "v1"))).await;
        assert_eq!(cold.status(), 404);
        let mut arguments = vec!["--pin", "site", "--json"];
        let source = if source == "-" { source.to_owned() } else { path(source) };
        arguments.push(&source);
        let mut importing = site.start_command("import", &arguments);
        let mut input = importing.stdin.take().unwrap();
        if source == "-" {
            input.write_all(&bytes).unwrap();
        }
        drop(input);
        assert!(importing.wait().unwrap().success(), "{}", serving.logged());
        world.pull(&serving).await;
        assert!(succeeds(&site.run("pin", &[])).contains(&format!("site  {APP} {TOOL}")));
        let again = succeeds(&site.run("import", &["--no-pin", &path("site.tar")]));
        assert!(again.contains("0 blobs, 0 B, came in; 16 were held already"), "{again}");
        assert!(serving.logged().contains("bundle imported"), "{}", serving.logged());
        serving.kill();
        let serving = site.serve().await;
        world.pull(&serving).await;
        serving.kill();
        assert!(succeeds(&site.run("verify", &[])).contains("0 are wrong"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_writes_bundles_while_it_serves_and_they_are_the_same() {
    let world = World::new().await;
    let (program, folder) = world.carried().await;
    let path = |name: &str| in_folder(&folder, name);
    let bytes = std::fs::read(path("site.tar")).unwrap();
    let serving = program.serve().await;
    let said = succeeds(&program.run("export", &[APP, TOOL, "-o", &path("live.tar")]));
    assert!(said.contains("linux/amd64 linux/arm64") && said.contains("refers to them"), "{said}");
    assert!(std::fs::read(path("live.tar")).unwrap() == bytes);
    let server = format!("http://{}", serving.admin);
    let arguments = ["export", "--server", server.as_str(), "tool:v2", "app:v1", "-o", "-"];
    let streamed = Command::new(env!("CARGO_BIN_EXE_cachalot")).args(arguments).output().unwrap();
    assert!(streamed.stdout == bytes, "{}", String::from_utf8_lossy(&streamed.stderr));
    succeeds(&program.run("export", &[APP, TOOL, "-o", &path("live/")]));
    let sums = Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(path("live")).output();
    assert_eq!(succeeds(&sums.unwrap()).lines().count(), 19);
    let said = fails(&program.run("export", &[APP, "-o", &path("live/")]));
    assert!(said.contains("is there already"), "{said}");
    assert!(serving.logged().contains("bundle exported"), "{}", serving.logged());

    let missing = fails(&program.run("export", &["nobody:1", "-o", &path("live.tar")]));
    assert!(missing.contains("docker.io/library/nobody:1 is not held"), "{missing}");
    for (body, status) in [
        (r#"{"images": ["nobody:1"]}"#, 404),
        (r#"{"pin": "nobody"}"#, 404),
        (r#"{"images": []}"#, 400),
        (r#"{"images": ["app:v1"], "platform": ["linux/amd64"]}"#, 400),
        (r#"{"images": ["app:v1"], "platforms": ["plan9/mips"]}"#, 409),
    ] {
        for route in ["exports", "exports/plan"] {
            let request = Request::new("POST", format!("/api/v1/{route}")).body(body.as_bytes());
            assert_eq!(send(serving.admin, &request).await.status(), status, "{route} {body}");
        }
    }
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_a_server_can_not_write_to_its_end_is_none() {
    let world = World::new().await;
    let (program, folder) = world.carried().await;
    let path = |name: &str| in_folder(&folder, name);
    let serving = program.serve().await;
    let layer = &world.image.layers[0];
    let hex = layer.digest.strip_prefix("sha256:").unwrap();
    let mut wrong = layer.bytes.to_vec();
    wrong[4_000_000] ^= 1;
    std::fs::write(program.data().join("v1/blobs/sha256").join(&hex[..2]).join(hex), &wrong).unwrap();
    for output in ["new.tar", "new/"] {
        let said = fails(&program.run("export", &[TOOL, "-o", &path(output)]));
        assert!(said.contains("the stream broke") && said.contains("the server's log"), "{said}");
        assert!(!folder.path().join(output).exists());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the bundle that was there");
    assert!(serving.logged().contains(&format!("an export broke off: {} is damaged", layer.digest)));
    // A client that is gone in the middle costs nothing, and its turn is given back.
    for _ in 0..5 {
        let request = Request::new("POST", "/api/v1/exports").body(br#"{"images": ["app:v1"]}"#);
        let mut client = Connection::open(serving.admin).await;
        client.send(&request).await;
        let head = client.head().await;
        assert!([200, 409].contains(&head.status), "{head:?}");
    }
    let export = || program.run("export", &[APP, "-o", &path("app.tar")]).status.success();
    until("it is exported again", export).await;
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_not_take_a_bundle_says_why_and_goes_on() {
    let world = World::new().await;
    let (_program, folder) = world.carried().await;
    let path = |name: &str| in_folder(&folder, name);
    let bytes = std::fs::read(path("site.tar")).unwrap();
    let site = world.site();
    let serving = site.serve().await;
    let layer = &world.image.layers[0];
    let at = bytes.windows(64).position(|found| layer.bytes.starts_with(found)).unwrap();
    let mut wrong = bytes.clone();
    wrong[at + 3_000_000] ^= 1;
    std::fs::write(path("wrong.tar"), &wrong).unwrap();
    let said = fails(&site.run("import", &[&path("wrong.tar")]));
    assert!(said.contains("the bundle is damaged") && said.contains(&layer.digest[7..]), "{said}");
    // Much is still to come when the first bytes turn out to be of no use.
    let nothing = Request::new("POST", "/api/v1/imports").body(&vec![7; 20_000_000]);
    let refused = send(serving.admin, &nothing).await;
    assert_eq!((refused.status(), refused.json()["error"]["code"].as_str()), (422, Some("bundle")));
    // A client that is gone in the middle.
    import_in_part(&site, &bytes[..bytes.len() * 2 / 3]);
    for parameter in ["pin=.", "public=yes", "under=a:b", "other=1"] {
        let request = Request::new("POST", format!("/api/v1/imports?{parameter}")).body(&bytes[..512]);
        assert_eq!(send(serving.admin, &request).await.status(), 400, "{parameter}");
    }
    assert!(!succeeds(&site.run("images", &[])).contains("docker.io"));
    succeeds(&site.run("import", &[&path("site.tar")]));
    world.pull(&serving).await;
    serving.kill();

    let small = world.site();
    small.rewrite("64MiB", "4MiB");
    let serving = small.serve().await;
    let said = fails(&small.run("import", &[&path("site.tar")]));
    assert!(said.contains("the bundle needs more room than there is") && said.contains("capacity"), "{said}");
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_is_run_again() {
    let world = World::new().await;
    let (_program, folder) = world.carried().await;
    let bundle = in_folder(&folder, "site.tar");
    let bytes = std::fs::read(&bundle).unwrap();
    let site = world.site();
    // From here on there is a store to look into.
    fails(&site.run("import", &["absent.tar"]));
    for part in [2000, bytes.len() / 3, bytes.len() * 2 / 3, bytes.len() - 600] {
        import_in_part(&site, &bytes[..part]);
        assert!(!succeeds(&site.run("images", &[])).contains("docker.io"));
        assert!(succeeds(&site.run("verify", &[])).contains("0 are wrong"));
    }
    // What it brought is kept for the next attempt, or can be thrown away.
    let unused = succeeds(&site.run("rm", &["--unused"]));
    assert!(unused.contains("removed what no image uses") && !unused.contains("0 blobs"), "{unused}");
    assert!(succeeds(&site.run("verify", &[])).starts_with("0 blobs are right"));
    succeeds(&site.run("import", &[&bundle]));
    let serving = site.serve().await;
    assert!(succeeds(&site.run("rm", &["--unused"])).contains("0 B freed, 0 blobs"));
    world.pull(&serving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_killed_leaves_what_was_there_under_that_name() {
    let world = World::new().await;
    let program = world.filled().await;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("site.tar");
    std::fs::write(&bundle, "what was there").unwrap();
    let mut exporting = program.start_command("export", &[APP, TOOL, "-o", &bundle.display().to_string()]);
    let partial = || std::fs::read_dir(folder.path()).unwrap().count() > 1;
    until("it is written, or ends", || partial() || exporting.try_wait().unwrap().is_some()).await;
    exporting.kill().unwrap();
    exporting.wait().unwrap();
    let bytes = std::fs::read(&bundle).unwrap();
    if bytes != b"what was there" {
        // It was faster: then it's whole.
        succeeds(&world.site().run("import", &[&bundle.display().to_string()]));
    }
    let missing = fails(&program.run("export", &["nobody:1", "-o", &bundle.display().to_string()]));
    assert!(missing.contains("docker.io/library/nobody:1 is not held"), "{missing}");
    assert_eq!(std::fs::read(&bundle).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_is_wrong_changes_nothing() {
    let world = World::new().await;
    let program = world.filled().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| in_folder(&folder, name);
    succeeds(&program.run("export", &[TOOL, "-o", &path("tool/")]));
    let layer = &world.image.layers[0];
    assert_eq!(sha256(&layer.bytes), layer.digest);
    let file = folder.path().join("tool/blobs").join(layer.digest.replace(':', "/"));
    let mut wrong = layer.bytes.to_vec();
    wrong[4_000_000] ^= 1;
    std::fs::write(&file, &wrong).unwrap();
    let site = world.site();
    let said = fails(&site.run("import", &[&path("tool")]));
    assert!(said.contains("damaged") && said.contains(&layer.digest), "{said}");
    std::fs::remove_file(&file).unwrap();
    let said = fails(&site.run("import", &[&path("tool")]));
    assert!(said.contains("not complete") && said.contains(&layer.digest), "{said}");
    let said = fails(&site.run("import", &[&path("absent.tar")]));
    assert!(said.contains("absent.tar"), "{said}");
    assert!(!succeeds(&site.run("images", &[])).contains("docker.io"));
    assert!(succeeds(&site.run("verify", &[])).starts_with("0 blobs are right"));
    assert_eq!(succeeds(&site.run("pin", &[])), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_with_credentials_gives_out_what_was_imported_as_public_and_nothing_else() {
    let world = World::new().await;
    let (_program, folder) = world.carried().await;
    let bundle = in_folder(&folder, "site.tar");
    let credentials = "[upstreams.\"docker.io\"]\ncredentials = [{ username = \"bot\", password = \"word\" }]\n";
    let site = world.site();
    site.configure(credentials);
    succeeds(&site.run("import", &[&bundle]));
    let serving = site.serve().await;
    world.pull(&serving).await;
    serving.kill();

    let closed = world.site();
    closed.configure(credentials);
    assert!(succeeds(&closed.run("import", &[&bundle, "--private"])).contains("(private)"));
    let serving = closed.serve().await;
    for path in [manifest("library/app", "v1"), blob("library/tool", &world.image.layers[0].digest)] {
        assert_eq!(send(serving.addr, &Request::get(path)).await.status(), 403);
    }
    serving.kill();
    // What a bundle says of itself travels on.
    let private = folder.path().join("private.tar").display().to_string();
    succeeds(&closed.run("export", &[APP, "-o", &private]));
    assert!(succeeds(&world.site().run("import", &[&private])).contains("(private)"));
    assert!(!succeeds(&world.site().run("import", &[&private, "--public"])).contains("(private)"));
}
