//! What is no image: a chart by helm, and an artifact with an empty configuration by oras, pushed to a registry and pulled through the mirror.

use std::fs;
use std::path::Path;

use crate::mirror::Mirror;
use crate::process::{run, tool};
use crate::upstream::Upstream;

/// An upstream of its own, over an empty folder: pushing is no mirror's business.
struct World {
    folder: tempfile::TempDir,
    upstream: Upstream,
    mirror: Mirror,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = folder.path().join("registry");
        fs::create_dir(&storage).expect("the folder can be written");
        let upstream = Upstream::start(&storage);
        let mirror = Mirror::start(&upstream);
        World { folder, upstream, mirror }
    }

    fn folder(&self, name: &str) -> std::path::PathBuf {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).expect("the folder can be written");
        folder
    }
}

fn same(a: &Path, b: &Path) {
    let read = |path: &Path| fs::read(path).expect("the file is there");
    assert!(!read(a).is_empty() && read(a) == read(b), "{} is what was pushed", b.display());
}

#[test]
fn helm_pulls_a_chart_cold_and_without_upstream() {
    let mut world = World::new();
    let home = world.folder("home");
    let helm = |arguments: &[&str], folder: &Path| {
        let mut command = tool("helm");
        command.env("HOME", &home).current_dir(folder).args(arguments);
        run(&mut command);
    };
    let (package, cold, warm) = (world.folder("package"), world.folder("cold"), world.folder("warm"));
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/cachalot");
    helm(&["package", &chart.display().to_string()], &package);
    let file = fs::read_dir(&package).expect("a folder").next().expect("a package").expect("an entry").path();
    let name = file.file_name().expect("it has a name").to_owned();
    let to = format!("oci://127.0.0.1:{}/charts", world.upstream.port);
    helm(&["push", "--plain-http", &file.display().to_string(), &to], &package);
    let from = format!("oci://127.0.0.1:{}/docker.io/charts/cachalot", world.mirror.port);
    helm(&["pull", "--plain-http", &from], &cold);
    same(&file, &cold.join(&name));
    world.mirror.settle();
    world.upstream.stop();
    helm(&["pull", "--plain-http", &from], &warm);
    same(&file, &warm.join(&name));
}

#[test]
fn oras_pulls_an_artifact_with_an_empty_configuration_cold_and_without_upstream() {
    let mut world = World::new();
    let home = world.folder("home");
    let oras = |arguments: &[&str], folder: &Path| {
        let mut command = tool("oras");
        command.env("HOME", &home).current_dir(folder).args(arguments);
        run(&mut command)
    };
    let (source, cold, warm) = (world.folder("source"), world.folder("cold"), world.folder("warm"));
    fs::write(source.join("bill.json"), "{\"bill\": true}\n").expect("the folder can be written");
    fs::write(source.join("model.bin"), vec![7; 3 << 20]).expect("the folder can be written");
    let to = format!("127.0.0.1:{}/library/model:1", world.upstream.port);
    let typed = ["--artifact-type", "application/vnd.example.model"];
    oras(
        &[
            "push",
            "--plain-http",
            typed[0],
            typed[1],
            &to,
            "bill.json:application/json",
            "model.bin:application/octet-stream",
        ],
        &source,
    );
    let from = format!("127.0.0.1:{}/docker.io/library/model:1", world.mirror.port);
    let manifest = oras(&["manifest", "fetch", "--plain-http", &from], &source);
    assert!(
        String::from_utf8_lossy(&manifest).contains("application/vnd.oci.empty.v1+json"),
        "it has no configuration"
    );
    oras(&["pull", "--plain-http", &from], &cold);
    world.mirror.settle();
    world.upstream.stop();
    oras(&["pull", "--plain-http", &from], &warm);
    for folder in [&cold, &warm] {
        for file in ["bill.json", "model.bin"] {
            same(&source.join(file), &folder.join(file));
        }
    }
}
