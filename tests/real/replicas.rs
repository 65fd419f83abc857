//! Two mirrors, of which one is killed while twenty clients pull: nodes that know both go on with the other.

use std::fs;
use std::path::Path;
use std::thread;

use crate::containerd::Containerd;
use crate::fixture::FIXTURE;
use crate::image::sha256_of_file;
use crate::mirror::Mirror;
use crate::process::{run, tool, wait_until};
use crate::upstream::Upstream;

const CLIENTS: usize = 20;

#[test]
fn no_pull_of_twenty_fails_when_one_of_two_mirrors_is_killed() {
    let upstream = Upstream::start(&FIXTURE.storage);
    let (mut first, second) = (Mirror::start(&upstream), Mirror::start(&upstream));
    let image = &FIXTURE.big;
    // One containerd is enough: its namespaces share nothing.
    let containerd = Containerd::start(&first);
    let url = |mirror: &Mirror| format!("http://127.0.0.1:{}", mirror.port);
    let mut hosts = tool(env!("CARGO_BIN_EXE_cachalot"));
    hosts.args(["hosts", "containerd", "--registry", "docker.io", "--strict"]);
    hosts.args(["--mirror", &url(&first), "--mirror", &url(&second), "--write"]).arg(containerd.hosts());
    run(&mut hosts);
    let name = format!("docker.io/{}:{}", image.repository, image.tag);
    thread::scope(|scope| {
        let (containerd, name) = (&containerd, &*name);
        let pulls: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let mut command = containerd.ctr(&["--namespace", &format!("client-{client}"), "content", "fetch"]);
                    command.arg("--hosts-dir").arg(containerd.hosts()).arg(name).output().expect("ctr runs")
                })
            })
            .collect();
        // In the middle of it: so much has gone to clients already, and not a quarter of what they want.
        wait_until("many clients are served by the first", || first.sent_bytes() > 2 * image.blob_bytes());
        first.kill();
        for pull in pulls {
            let output = pull.join().expect("the client's thread ends");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    });
    assert!(second.sent_bytes() > 10 * image.blob_bytes(), "the second has served most: {}", second.sent_bytes());
    for client in 0..CLIENTS {
        let listed =
            run(&mut containerd.ctr(&["--namespace", &format!("client-{client}"), "content", "ls", "--quiet"]));
        let listed = String::from_utf8(listed).expect("ctr prints text");
        for digest in image.digests() {
            assert!(listed.contains(&digest), "client {client} lacks {digest}");
        }
    }
    let blobs = containerd.root().join("io.containerd.content.v1.content/blobs/sha256");
    for digest in image.digests() {
        let file: &Path = &blobs.join(digest.trim_start_matches("sha256:"));
        assert!(fs::metadata(file).is_ok() && sha256_of_file(file) == digest, "{digest}");
    }
}
