//! The budget holds, and what was not asked for the longest goes first.

use crate::support::client::{End, Request};
use crate::support::images::{Blob, Image};
use crate::support::mirror::{Mirror, blob};
use crate::support::registry::{Fault, On, Registry};

const MIB: usize = 1024 * 1024;

/// A registry with `count` blobs of 1.5 MiB, and a mirror with room for `mib` MiB.
async fn world(count: u64, mib: usize) -> (Registry, Mirror, Vec<Blob>) {
    let registry = Registry::start().await;
    let blobs: Vec<_> = (0..count).map(|n| Blob::noise(n, MIB * 3 / 2)).collect();
    for one in &blobs {
        registry.put_blob("library/app", one);
    }
    let mirror = Mirror::builder().upstream("docker.io", &registry).capacity(&format!("{mib}MiB")).start().await;
    (registry, mirror, blobs)
}

async fn pull(mirror: &Mirror, one: &Blob) {
    mirror.get(&blob("library/app", &one.digest)).await.assert_ok(&one.bytes);
    mirror.idle().await;
    let holdings = mirror.holdings();
    assert!(holdings.present_bytes + holdings.reserved_bytes <= holdings.capacity_bytes, "{holdings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_there_is_room_for_passes_through_within_the_budget() {
    let (registry, mirror, blobs) = world(30, 10).await;
    for one in &blobs {
        pull(&mirror, one).await;
    }
    assert!(mirror.holds(&blobs[29].digest), "the newest is held");
    assert!(!mirror.holds(&blobs[0].digest), "the oldest is not");
    // What went is fetched again.
    pull(&mirror, &blobs[0]).await;
    assert_eq!(registry.count(&On::blob(&blobs[0].digest).get()), 2);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_stays() {
    let (registry, mirror, blobs) = world(20, 10).await;
    pull(&mirror, &blobs[0]).await;
    for one in &blobs[1..] {
        pull(&mirror, one).await;
        mirror.get(&blob("library/app", &blobs[0].digest)).await.assert_ok(&blobs[0].bytes);
    }
    assert!(mirror.holds(&blobs[0].digest));
    assert_eq!(registry.count(&On::blob(&blobs[0].digest).get()), 1);
    assert!(!mirror.holds(&blobs[1].digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_survives_a_restart() {
    let (_registry, mirror, blobs) = world(12, 10).await;
    for one in &blobs[..5] {
        pull(&mirror, one).await;
    }
    assert!(mirror.holds(&blobs[0].digest), "there is room for five");
    pull(&mirror, &blobs[0]).await;
    let mirror = mirror.stop().await.start().await;
    for one in &blobs[5..8] {
        pull(&mirror, one).await;
    }
    assert!(mirror.holds(&blobs[0].digest), "read last before the restart");
    assert!(!mirror.holds(&blobs[1].digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_being_read_is_not_evicted_under_its_reader() {
    let (registry, mirror, blobs) = world(20, 10).await;
    let large = Blob::noise(100, 6 * MIB);
    registry.put_blob("library/app", &large);
    pull(&mirror, &large).await;
    let mut reader = crate::support::client::Connection::open_narrow(mirror.addr()).await;
    reader.send(&Request::get(blob("library/app", &large.digest))).await;
    assert_eq!(reader.head().await.status, 200);
    assert_eq!(reader.take(1000).await, large.bytes.slice(..1000));
    for one in &blobs {
        pull(&mirror, one).await;
    }
    let (rest, end) = reader.rest().await;
    assert!((rest, end) == (large.bytes.slice(1000..), End::Complete));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_larger_than_the_store_is_passed_through_whole() {
    let (registry, mirror, blobs) = world(1, 4).await;
    pull(&mirror, &blobs[0]).await;
    let huge = Blob::noise(100, 6 * MIB);
    registry.put_blob("library/app", &huge);
    let path = blob("library/app", &huge.digest);
    for range in [None, Some("bytes=5000000-")] {
        let mut request = Request::get(&path);
        if let Some(range) = range {
            request = request.range(range);
        }
        let answer = mirror.send(&request).await;
        let skipped = if range.is_some() { 5_000_000 } else { 0 };
        assert_eq!(answer.status(), if range.is_some() { 206 } else { 200 }, "{:?}", answer.head);
        assert!(answer.body == huge.bytes.slice(skipped..));
        assert_eq!(answer.header("cache-status"), Some("cachalot; fwd=bypass"));
    }
    assert!(!mirror.holds(&huge.digest));
    assert!(mirror.holds(&blobs[0].digest), "nothing is evicted for what can never fit");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_and_tags_go_with_their_manifests() {
    let registry = Registry::start().await;
    let mirror = Mirror::builder().upstream("docker.io", &registry).capacity("6MiB").start().await;
    let count = 40;
    for n in 0..count {
        let image = Image::new(n, &[400_000]);
        let tag = format!("v{n}");
        registry.put_image("library/app", &tag, &image);
        mirror.pull("library/app", &tag, &image).await;
        mirror.idle().await;
    }
    let tags = mirror.site().data().join("v1/repositories/docker.io/library/app/_tags");
    let kept = || std::fs::read_dir(&tags).unwrap().count();
    crate::support::until("tags of evicted manifests are gone", || kept() < 20).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_passed_through_is_verified_or_says_that_it_is_not() {
    for wait in [false, true] {
        let registry = Registry::start().await;
        let huge = Blob::noise(1, 6 * MIB);
        registry.put_blob("library/app", &huge);
        let policy = if wait { "\"wait\"" } else { "\"send\"" };
        let mirror = Mirror::builder()
            .upstream("docker.io", &registry)
            .capacity("4MiB")
            .set("fill", "unverified_ranges", policy)
            .start()
            .await;
        let request = Request::get(blob("library/app", &huge.digest)).range("bytes=500000-4999999");
        let answer = mirror.send(&request).await;
        assert_eq!(answer.status(), 206, "{:?}", answer.head);
        assert!(answer.body == huge.bytes.slice(500_000..5_000_000));
        let expected = if wait { "cachalot; fwd=bypass" } else { "cachalot; fwd=bypass; detail=unverified" };
        assert_eq!(answer.header("cache-status"), Some(expected));
        registry.fault(On::blob(&huge.digest).get(), Fault::Corrupt(5_000_001));
        let mut connection = mirror.connect().await;
        connection.send(&request).await;
        assert_eq!(connection.head().await.status, 206);
        let (bytes, end) = connection.rest().await;
        assert_eq!(end == End::Complete, !wait, "{end:?}");
        assert!(huge.bytes[500_000..5_000_000].starts_with(&bytes));
        mirror.finish().await;
    }
}
