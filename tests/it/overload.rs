//! More than can be done: what is held is served, the rest is told at once to come back, and soon all is well again.

use std::sync::Arc;

use crate::support::client::Request;
use crate::support::images::{Blob, Image};
use crate::support::mirror::{FailingDisk, Mirror, blob, manifest};
use crate::support::registry::{On, Registry};

#[tokio::test(flavor = "multi_thread")]
async fn misses_are_shed_at_once_while_hits_go_on() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let slow: Vec<_> = (10..12).map(|seed| Blob::noise(seed, 2 << 20)).collect();
    let late = Blob::noise(20, 5000);
    for part in slow.iter().chain([&late]) {
        registry.put_blob("library/app", part);
    }
    let builder = Mirror::builder().upstream("docker.io", &registry);
    let mirror = builder.set("server", "max_misses", "2").start().await;
    mirror.pull("library/app", "v1", &image).await;
    mirror.idle().await;
    let gates: Vec<_> = slow.iter().map(|part| registry.gate_body(On::blob(&part.digest).once(), 1 << 20)).collect();
    let mut waiting = Vec::new();
    for part in &slow {
        let mut connection = mirror.connect().await;
        connection.send(&Request::get(blob("library/app", &part.digest))).await;
        assert_eq!(connection.head().await.status, 200);
        waiting.push(connection);
    }
    for gate in &gates {
        gate.arrived().await;
    }
    // Ten times as much as may be under way.
    for _ in 0..20 {
        let refused = mirror.get(&blob("library/app", &late.digest)).await;
        assert_eq!((refused.status(), refused.error_code()), (503, "TOOMANYREQUESTS".to_owned()));
        assert!(refused.header("retry-after").is_some());
        mirror.pull("library/app", "v1", &image).await;
    }
    assert_eq!(registry.count(&On::blob(&late.digest)), 0);
    // Whoever wants what is under way already may join.
    let mut joined = mirror.connect().await;
    joined.send(&Request::get(blob("library/app", &slow[0].digest))).await;
    assert_eq!(joined.head().await.status, 200);
    for gate in &gates {
        gate.open();
    }
    for (mut connection, part) in waiting.into_iter().zip(&slow) {
        assert_eq!(connection.rest().await.0, part.bytes);
    }
    assert_eq!(joined.rest().await.0, slow[0].bytes);
    mirror.idle().await;
    mirror.get(&blob("library/app", &late.digest)).await.assert_ok(&late.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_slow_disk_sheds_nobody() {
    let registry = Registry::start().await;
    let parts: Vec<_> = (0..6).map(|seed| Blob::noise(seed, 5000)).collect();
    for part in &parts {
        registry.put_blob("library/app", part);
    }
    let disk = Arc::new(FailingDisk::default());
    let builder = Mirror::builder().upstream("docker.io", &registry).disk(&disk);
    let mirror = builder.set("server", "max_misses", "2").start().await;
    mirror.idle().await;
    let hanging = disk.hang();
    // The first two have come, and are not kept yet.
    for part in &parts {
        mirror.get(&blob("library/app", &part.digest)).await.assert_ok(&part.bytes);
    }
    drop(hanging);
    mirror.idle().await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_past_a_store_without_room_counts_among_the_misses() {
    let registry = Registry::start().await;
    // Larger than the store, so it is passed through.
    let large = Blob::noise(1, 6 << 20);
    let small = Blob::noise(2, 5000);
    for part in [&large, &small] {
        registry.put_blob("library/app", part);
    }
    let builder = Mirror::builder().upstream("docker.io", &registry).capacity("4MiB");
    let mirror = builder.set("server", "max_misses", "1").start().await;
    let gate = registry.gate_body(On::blob(&large.digest).after(1), 5 << 20);
    let mut passing = mirror.connect().await;
    passing.send(&Request::get(blob("library/app", &large.digest))).await;
    assert_eq!(passing.head().await.status, 200);
    gate.arrived().await;
    mirror.idle().await;
    for part in [&large, &small] {
        let refused = mirror.get(&blob("library/app", &part.digest)).await;
        assert_eq!((refused.status(), refused.error_code()), (503, "TOOMANYREQUESTS".to_owned()));
    }
    gate.open();
    assert_eq!(passing.rest().await.0, large.bytes);
    mirror.get_once_well(&blob("library/app", &small.digest)).await.assert_ok(&small.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_may_be_limited_and_proxies_are_believed_where_they_are_trusted() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::builder()
        .upstream("docker.io", &registry)
        .set("server", "max_connections_per_address", "2")
        .set("server", "trusted_proxies", "[\"127.0.0.0/8\"]")
        .start()
        .await;
    let (mut one, mut two) = (mirror.connect().await, mirror.connect().await);
    for connection in [&mut one, &mut two] {
        assert_eq!(connection.exchange(&Request::get("/v2/")).await.status(), 200);
    }
    let refused = mirror.get("/v2/").await;
    assert_eq!(refused.status(), 503);
    let told = Request::get(manifest("library/app", "v1")).header("X-Forwarded-For", "203.0.113.9, 198.51.100.7");
    one.exchange(&told).await.assert_ok(&image.manifest.bytes);
    let requests = mirror.admin("/api/v1/requests?limit=1").await.json();
    assert_eq!(requests["items"][0]["client"], "198.51.100.7");
    drop((one, two));
    mirror.finish().await;
}
