//! The mirror is killed with SIGKILL; what it left on disk still serves, and only what is right.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::fixture::FIXTURE;
use crate::image::By;
use crate::mirror::Mirror;
use crate::process::wait_until;
use crate::pulls::check;
use crate::skopeo::{Skopeo, copy, source};
use crate::upstream::Upstream;

#[test]
fn a_killed_mirror_serves_all_it_held_after_a_restart_without_upstream() {
    let mut upstream = Upstream::start(&FIXTURE.storage);
    let mut mirror = Mirror::start(&upstream);
    let images = [&FIXTURE.busybox, &FIXTURE.big, &FIXTURE.multi];
    for image in images {
        check(&Skopeo, &mirror, image, By::Tag);
    }
    mirror.settle();
    mirror.kill();
    upstream.stop();
    mirror.restart();
    for image in images {
        check(&Skopeo, &mirror, image, By::Tag);
        check(&Skopeo, &mirror, image, By::Digest);
    }
}

#[test]
fn a_mirror_killed_in_the_middle_of_a_pull_serves_only_right_bytes_afterwards() {
    let mut upstream = Upstream::start(&FIXTURE.storage);
    let mut mirror = Mirror::start(&upstream);
    let image = &FIXTURE.big;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut pull = copy(&source(&mirror, image, By::Tag), "dir", folder.path());
    // It will complain of the cut.
    let mut pull = pull.stderr(Stdio::null()).spawn().expect("setpriv (util-linux) can be started");
    wait_until("the mirror has written something", || bytes_below(&mirror.storage()) > 16 << 20);
    mirror.kill();
    pull.wait().expect("skopeo ends");

    mirror.restart();
    check(&Skopeo, &mirror, image, By::Tag);
    upstream.stop();
    check(&Skopeo, &mirror, image, By::Tag);
    check(&Skopeo, &mirror, image, By::Digest);
}

/// The bytes on disk below a folder, as `du` counts them; files may come and go meanwhile.
fn bytes_below(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
