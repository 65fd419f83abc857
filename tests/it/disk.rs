//! A disk that fails is never a client's trouble: what can't be kept is delivered all the same (law 6).

use std::sync::Arc;

use cachalot::store::Op;
use rustix::io::Errno;

use crate::support::client::{Answer, End, Request};
use crate::support::images::{Blob, Image};
use crate::support::mirror::{FailingDisk, Mirror, blob, manifest};
use crate::support::registry::{On, Registry};
use crate::support::until;

const MIB: usize = 1024 * 1024;

/// A registry with an image, and a mirror of it on a disk that fails to order.
async fn world() -> (Registry, Arc<FailingDisk>, Mirror) {
    let registry = Registry::start().await;
    let disk = Arc::new(FailingDisk::default());
    let mirror = Mirror::builder().upstream("docker.io", &registry).disk(&disk).start().await;
    (registry, disk, mirror)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_operation_fails_an_image_is_pulled_right_and_kept_once_the_disk_is_well() {
    let failures = [
        (Op::Create, Errno::NOSPC),
        (Op::CreateFolder, Errno::DQUOT),
        (Op::Resize, Errno::NOSPC),
        (Op::Write, Errno::NOSPC),
        (Op::Write, Errno::IO),
        (Op::Sync, Errno::IO),
        (Op::SyncFolder, Errno::IO),
        (Op::Rename, Errno::ROFS),
        (Op::SetMode, Errno::ROFS),
        (Op::Free, Errno::IO),
        (Op::Open, Errno::MFILE),
    ];
    for (op, errno) in failures {
        let (registry, disk, mirror) = world().await;
        let image = Image::new(7, &[10, 300 * 1024, 3 * MIB]);
        registry.put_image("library/app", "1", &image);
        disk.fail(op, errno);
        mirror.pull("library/app", "1", &image).await;
        mirror.pull("library/app", "1", &image).await;
        disk.recover();
        mirror.pull("library/app", "1", &image).await;
        mirror.idle().await;
        registry.go_down().await;
        mirror.pull("library/app", "1", &image).await;
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_operation_of_a_pull_may_fail_and_no_wrong_byte_is_ever_served() {
    let (registry, disk, mirror) = world().await;
    let mut seed = 0;
    for errno in [Errno::NOSPC, Errno::IO, Errno::MFILE] {
        for n in 0.. {
            seed += 1;
            let image = Image::new(seed, &[10, 40 * 1024, MIB + 50_000]);
            let tag = format!("v{seed}");
            registry.put_image("library/app", &tag, &image);
            disk.fail_once_after(n, errno);
            mirror.pull_through_trouble("library/app", &tag, &image, || false).await;
            mirror.idle().await;
            let spared = disk.recover();
            mirror.pull("library/app", &tag, &image).await;
            mirror.idle().await;
            mirror.pull("library/app", &tag, &image).await;
            if spared {
                assert!(n > 40, "a pull takes more operations than {n}");
                break;
            }
        }
    }
    mirror.sweep().await;
    // Nothing has leaked: neither partials nor reservations nor descriptors.
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_in_the_middle_of_a_blob_is_no_trouble_of_who_reads_it() {
    let (registry, disk, mirror) = world().await;
    let large = Blob::noise(1, 8 * MIB);
    registry.put_blob("library/app", &large);
    let gate = registry.gate_body(On::blob(&large.digest), 3 * MIB as u64);
    let path = blob("library/app", &large.digest);
    let mut client = mirror.connect().await;
    client.send(&Request::get(path.clone())).await;
    assert_eq!(client.head().await.status, 200);
    let begun = client.take(2 * MIB).await;
    assert_eq!(begun, large.bytes[..2 * MIB]);

    disk.fail(Op::Write, Errno::NOSPC);
    gate.open();
    let (rest, end) = client.rest().await;
    assert_eq!(end, End::Complete, "the rest comes straight from upstream");
    assert!(large.bytes[2 * MIB..] == rest);

    for range in ["bytes=3000000-", "bytes=3000000-3000099"] {
        let resumed: Answer = mirror.send(&Request::get(path.clone()).range(range)).await;
        assert_eq!((resumed.status(), resumed.header("cache-status").unwrap().contains("bypass")), (206, true));
        assert!(large.bytes[3_000_000..].starts_with(&resumed.body) && !resumed.body.is_empty(), "{range}");
    }
    assert!(!mirror.holds(&large.digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_counted_by_operation() {
    let (registry, disk, mirror) = world().await;
    let one = Blob::noise(1, 1000);
    registry.put_blob("library/app", &one);
    disk.fail(Op::Sync, Errno::IO);
    mirror.get(&blob("library/app", &one.digest)).await.assert_ok(&one.bytes);
    mirror.idle().await;
    let metrics = mirror.metrics().await;
    // The probe of a disk in trouble may have failed as well.
    let counted = metrics.lines().find_map(|line| line.strip_prefix("cachalot_store_errors_total{op=\"fsync\"} "));
    assert!(counted.is_some_and(|counted| counted.parse::<u64>().unwrap() >= 1), "{metrics}");
    let ready = mirror.admin("/readyz").await;
    let text = String::from_utf8_lossy(&ready.body);
    assert!(
        ready.status() == 200 && (text.starts_with("degraded: the store could not fsync") || text == "ok\n"),
        "{text}"
    );
    until("nothing is held of it", || !mirror.holds(&one.digest)).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_delays_no_hit_and_no_manifest_and_the_present_reader_gets_its_blob() {
    let registry = Registry::start().await;
    let disk = Arc::new(FailingDisk::default());
    let mirror = Mirror::builder().upstream("docker.io", &registry).disk(&disk).tag_ttl("0s").start().await;
    let (held, moved) = (Image::new(1, &[10, 300 * 1024, 2 * MIB]), Image::new(2, &[10, 1000]));
    registry.put_image("library/app", "1", &held);
    mirror.pull("library/app", "1", &held).await;
    let large = Blob::noise(3, 8 * MIB);
    registry.put_blob("library/app", &large);
    mirror.idle().await;
    let gate = registry.gate_body(On::blob(&large.digest), 3 * MIB as u64);
    let mut reader = mirror.connect().await;
    reader.send(&Request::get(blob("library/app", &large.digest))).await;
    assert_eq!(reader.head().await.status, 200);
    let begun = reader.take(2 * MIB).await;

    let hanging = disk.hang();
    gate.open();
    // More than there are threads to write with.
    for n in 0..20 {
        let app = format!("library/app{n}");
        registry.put_image(&app, "1", &moved);
        // Cold, then from memory; by tag and by digest.
        for reference in ["1", "1", &moved.manifest.digest] {
            mirror.get(&manifest(&app, reference)).await.assert_ok(&moved.manifest.bytes);
        }
        let listed = mirror.get(&format!("/v2/{app}/tags/list?ns=docker.io")).await;
        assert_eq!((listed.status(), listed.text().contains("\"1\"")), (200, true), "{}", listed.text());
    }
    // Hits, and a tag that moves.
    mirror.pull("library/app", "1", &held).await;
    registry.put_image("library/app", "1", &moved);
    mirror.get(&manifest("library/app", "1")).await.assert_ok(&moved.manifest.bytes);
    let (rest, end) = reader.rest().await;
    assert_eq!(end, End::Complete);
    assert!(begun == large.bytes[..2 * MIB] && rest == large.bytes[2 * MIB..]);
    // Whoever comes now gets it past the disk.
    mirror.get(&blob("library/app", &large.digest)).await.assert_ok(&large.bytes);

    drop(hanging);
    mirror.idle().await;
    // What was served meanwhile is kept.
    registry.go_down().await;
    for n in 0..20 {
        mirror.get(&manifest(&format!("library/app{n}"), "1")).await.assert_ok(&moved.manifest.bytes);
    }
    mirror.get(&manifest("library/app", "1")).await.assert_ok(&moved.manifest.bytes);
    mirror.finish().await;
}
