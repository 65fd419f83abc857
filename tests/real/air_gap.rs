//! The walk past the network: seeded outside from a real registry, carried as a bundle, served inside by a mirror that opens no
//! connection, and run there.

use std::fs;
use std::path::Path;

use crate::containerd::{Containerd, Ctr};
use crate::fixture::FIXTURE;
use crate::http;
use crate::image::By;
use crate::mirror::Mirror;
use crate::podman::Puller;
use crate::process::run;
use crate::pulls::{self, Client};
use crate::skopeo::Skopeo;
use crate::upstream::Upstream;

/// What a traced program did about sockets: those that it made for a network, and whom it connected to or sent to by address.
#[derive(Debug, Default)]
struct Sockets {
    made: Vec<String>,
    reached: Vec<String>,
}

// === impl Sockets ===

impl Sockets {
    /// Reads what strace wrote.
    fn read(trace: &Path) -> Sockets {
        let text = fs::read_to_string(trace).expect("strace (Debian's package) writes a file");
        let lines = |wanted: fn(&str) -> bool| text.lines().filter(|line| wanted(line)).map(str::to_owned).collect();
        Sockets {
            made: lines(|line| line.contains("socket(AF_INET")),
            reached: lines(|line| {
                line.contains("connect(") || line.contains("sin_port=") || line.contains("sin6_port=")
            }),
        }
    }
}

/// What starts a program so that it's traced: it stays a child of whoever starts it. Both runs of a mirror go into one file.
fn traced(trace: &Path) -> Vec<String> {
    let trace = trace.display();
    let words = format!("strace -D -f -A -qq -e trace=socket,connect,sendto,sendmsg,sendmmsg -o {trace}");
    words.split(' ').map(str::to_owned).collect()
}

#[test]
fn what_was_seeded_outside_is_carried_inside_and_run_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (bundle, outside, inside) =
        (folder.path().join("site.tar"), folder.path().join("outside"), folder.path().join("inside"));
    let images = [&FIXTURE.busybox, &FIXTURE.multi];
    let names = images.map(|image| format!("docker.io/{}", image.name(By::Tag)));

    let mut upstream = Upstream::start(&FIXTURE.storage);
    let mut seeding = Mirror::start(&upstream);
    seeding.kill();
    run(seeding.command_by("seed", &traced(&outside)).args(&names).args([
        "--platform",
        "linux/amd64,linux/arm64",
        "--pin",
        "site",
    ]));
    assert!(!Sockets::read(&outside).reached.is_empty(), "what connects is seen to");
    run(seeding.command("have").args(&names).args(["--platform", "linux/amd64,linux/arm64"]));
    run(seeding.command("export").args(["--pin", "site", "--output"]).arg(&bundle));
    upstream.stop();

    // The upstream is configured, and would be asked. Its name would have to be looked up.
    let mut before = vec!["CACHALOT_OFFLINE=true".to_owned()];
    before.extend(traced(&inside));
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let mut mirror =
        Mirror::start_where("[upstreams.\"docker.io\"]\nendpoints = [\"https://registry.invalid\"]\n", &before);
    mirror.kill();
    run(mirror.command("import").arg(&bundle));
    mirror.restart();
    for image in images {
        for by in [By::Tag, By::Digest] {
            for client in [&Ctr as &dyn Client, &Puller, &Skopeo] {
                pulls::check(client, &mirror, image, by);
            }
        }
        // The other platform travelled too, and so did what refers to the images.
        let get = |target: &str| http::request("GET", mirror.port, target, "", b"").expect("the mirror answers");
        for platform in &image.platforms {
            let at = |kind: &str, digest: &str| format!("/v2/docker.io/{}/{kind}/{digest}", image.repository);
            assert_eq!(get(&at("manifests", &platform.digest)).status, 200);
            for (digest, size_bytes) in &platform.blobs {
                assert_eq!(get(&at("blobs", digest)).body.len() as u64, *size_bytes, "{digest}");
            }
        }
        let absent = get(&format!("/v2/docker.io/{}/manifests/absent", image.repository));
        assert_eq!(absent.status, 404);
        assert!(String::from_utf8_lossy(&absent.body).contains("offline: not seeded"));
    }
    let referrers = format!("/v2/docker.io/{}/referrers/{}", FIXTURE.busybox.repository, FIXTURE.busybox.digest);
    let referrers = http::request("GET", mirror.port, &referrers, "", b"").expect("the mirror answers");
    assert!(String::from_utf8_lossy(&referrers.body).contains(&FIXTURE.artifact));
    assert_eq!(mirror.standing().0, 200);

    let containerd = Containerd::start(&mirror);
    let name = containerd.pull(&FIXTURE.multi, By::Tag);
    containerd.run_to_say(&name, "past the gap");

    mirror.kill();
    let sockets = Sockets::read(&inside);
    assert_eq!(sockets.reached, [] as [&str; 0], "offline reaches out to nobody");
    // It was started twice, with a listener for clients and one for operators each time.
    assert_eq!(sockets.made.len(), 4, "{:?}", sockets.made);
}
