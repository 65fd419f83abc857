//! The data folder is a small file system of its own, which others fill to the last byte, or which takes no writes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::fixture::FIXTURE;
use crate::image::By;
use crate::mirror::Mirror;
use crate::process::{run, wait_until};
use crate::pulls::check;
use crate::skopeo::Skopeo;
use crate::upstream::Upstream;

/// A file system in memory, gone when dropped.
struct SmallDisk(TempDir);

// === impl SmallDisk ===

impl SmallDisk {
    /// The store takes half of it by default.
    fn mount(size: &str) -> SmallDisk {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = format!("size={size}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "cachalot-test"]).arg(folder.path()));
        SmallDisk(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Another program's file, which takes all that is left.
    fn fill(&self) -> File {
        let mut ballast = File::create(self.path().join("ballast")).expect("a file");
        let chunk = vec![1; 1 << 16];
        let error = loop {
            if let Err(error) = ballast.write_all(&chunk) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        ballast
    }

    fn remount(&self, option: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(self.path()));
    }

    fn empty(&self) {
        fs::remove_file(self.path().join("ballast")).expect("the ballast can be removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, so that it goes even if somebody still looks into it.
        Command::new("umount").arg("--lazy").arg(self.path()).status().ok();
    }
}

#[test]
fn pulls_go_on_past_a_full_disk_and_are_kept_again_when_there_is_room() {
    // Without a floor it is the disk that says no; with one the store says so before.
    for (min_free, kept) in [("0%", true), ("1MiB", false)] {
        let disk = SmallDisk::mount("600m");
        let data = disk.path().join("data");
        let mut upstream = Upstream::start(&FIXTURE.storage);
        let mirror = Mirror::start_on(&upstream, &data, min_free);
        let (small, big) = (&FIXTURE.busybox, &FIXTURE.big);
        check(&Skopeo, &mirror, small, By::Tag);
        mirror.settle();
        let ballast = disk.fill();

        let before = upstream.blob_bytes_sent();
        for pulls in 1..=2 {
            check(&Skopeo, &mirror, big, By::Tag);
            // The floor evicts what is old before it passes anything through.
            let least = before + pulls * big.blob_bytes();
            wait_until("upstream has sent every blob", || upstream.blob_bytes_sent() >= least);
        }
        // Where the store itself says no, nothing has failed.
        if kept {
            // It is looked at every few seconds.
            wait_until("it is said", || mirror.standing().1.starts_with("degraded: "));
        }
        let (status, standing) = mirror.standing();
        assert_eq!((status, standing.starts_with("degraded: ")), (200, kept), "{standing}");
        if kept {
            let before = upstream.blob_bytes_sent();
            check(&Skopeo, &mirror, small, By::Digest);
            assert_eq!(upstream.blob_bytes_sent(), before, "what is held is still served");
        }

        drop(ballast);
        disk.empty();
        wait_until("the store works again", || mirror.standing().1 == "ok\n");
        for image in [small, big] {
            check(&Skopeo, &mirror, image, By::Tag);
        }
        mirror.settle();
        upstream.stop();
        for image in [small, big] {
            check(&Skopeo, &mirror, image, By::Tag);
        }
    }
}

#[test]
fn a_mirror_starts_on_a_disk_that_takes_no_writes_and_serves_what_it_holds() {
    let disk = SmallDisk::mount("600m");
    let data = disk.path().join("data");
    let mut upstream = Upstream::start(&FIXTURE.storage);
    let mut mirror = Mirror::start_on(&upstream, &data, "0%");
    let (small, multi) = (&FIXTURE.busybox, &FIXTURE.multi);
    check(&Skopeo, &mirror, small, By::Tag);
    mirror.settle();
    mirror.kill();
    disk.remount("ro");
    mirror.restart();
    let before = upstream.blob_bytes_sent();
    check(&Skopeo, &mirror, small, By::Tag);
    assert_eq!(upstream.blob_bytes_sent(), before, "what is held is served");
    check(&Skopeo, &mirror, multi, By::Tag);
    let (status, standing) = mirror.standing();
    assert_eq!((status, standing.starts_with("degraded: ")), (200, true), "{standing}");

    disk.remount("rw");
    wait_until("the store works again", || mirror.standing().1 == "ok\n");
    check(&Skopeo, &mirror, multi, By::Tag);
    mirror.settle();
    upstream.stop();
    for image in [small, multi] {
        check(&Skopeo, &mirror, image, By::Tag);
    }
}
