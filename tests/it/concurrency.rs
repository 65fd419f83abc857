//! Many clients at once: one download, whoever leaves, and however slowly they read.

use std::time::Duration;

use crate::support::client::{Connection, End, Request};
use crate::support::images::{Blob, Image};
use crate::support::mirror::{Mirror, blob, manifest};
use crate::support::registry::{Fault, Gate, Kind, On, Registry};
use crate::support::{all, within};

const MIB: usize = 1024 * 1024;

/// A mirror of a registry that sends `before` bytes of a blob of `len` and waits.
async fn stalled(len: usize, before: usize) -> (Registry, Mirror, Blob, Gate) {
    let registry = Registry::start().await;
    let filling = Blob::noise(1, len);
    registry.put_blob("library/app", &filling);
    let gate = registry.gate_body(On::blob(&filling.digest), before as u64);
    let mirror = Mirror::of(&registry).await;
    (registry, mirror, filling, gate)
}

/// Asks for a blob and reads its first MiB.
async fn reader(mirror: &Mirror, filling: &Blob) -> Connection {
    let mut connection = mirror.connect().await;
    connection.send(&Request::get(blob("library/app", &filling.digest))).await;
    assert_eq!(connection.head().await.status, 200);
    assert_eq!(connection.take(MIB).await, filling.bytes.slice(..MIB));
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_of_one_cold_blob_cost_one_upstream_get() {
    let (registry, mirror, filling, gate) = stalled(3 * MIB, 2 * MIB).await;
    let path = blob("library/app", &filling.digest);
    let addr = mirror.addr();
    // All have read the first MiB while upstream stalls, so all follow one fill.
    let readers = all((0..100).map(|_| {
        let (path, filling) = (path.clone(), filling.clone());
        async move {
            let mut connection = Connection::open(addr).await;
            connection.send(&Request::get(path)).await;
            let head = connection.head().await;
            assert_eq!(connection.take(MIB).await, filling.bytes.slice(..MIB));
            (connection, head)
        }
    }))
    .await;
    gate.arrived().await;
    gate.open();
    let mut missed = 0;
    let rest = filling.bytes.slice(MIB..);
    for (mut connection, head) in readers {
        missed += usize::from(head.header("cache-status") == Some("cachalot; fwd=miss; stored"));
        assert_eq!(head.header("content-length"), Some((3 * MIB).to_string().as_str()));
        assert!(connection.rest().await == (rest.clone(), End::Complete));
    }
    assert_eq!(missed, 1, "one led, the others joined");
    assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
    assert_eq!(registry.body_bytes(&On::kind(Kind::Blob).get()), filling.len() as u64);
    mirror.idle().await;
    let warm = mirror.get(&path).await;
    warm.assert_ok(&filling.bytes);
    assert_eq!(warm.header("cache-status"), Some("cachalot; hit"));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_of_one_small_cold_blob_cost_one_upstream_get() {
    let registry = Registry::start().await;
    let small = Blob::noise(1, 5000);
    registry.put_blob("library/app", &small);
    let gate = registry.gate_blob(&small.digest);
    let mirror = Mirror::of(&registry).await;
    let mut connections = Vec::new();
    for _ in 0..100 {
        let mut connection = mirror.connect().await;
        connection.send(&Request::get(blob("library/app", &small.digest))).await;
        connections.push(connection);
    }
    gate.arrived().await;
    gate.open();
    for mut connection in connections {
        connection.answer().await.assert_ok(&small.bytes);
    }
    assert_eq!(registry.count(&On::blob(&small.digest).get()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_when_the_client_that_began_it_leaves() {
    let (registry, mirror, filling, gate) = stalled(3 * MIB, 2 * MIB).await;
    let leader = reader(&mirror, &filling).await;
    let mut follower = reader(&mirror, &filling).await;
    drop(leader);
    gate.open();
    assert!(follower.rest().await == (filling.bytes.slice(MIB..), End::Complete));
    assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_when_a_follower_leaves() {
    let (registry, mirror, filling, gate) = stalled(3 * MIB, 2 * MIB).await;
    let mut leader = reader(&mirror, &filling).await;
    let follower = reader(&mirror, &filling).await;
    drop(follower);
    gate.open();
    assert!(leader.rest().await == (filling.bytes.slice(MIB..), End::Complete));
    assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_when_everyone_leaves() {
    let (registry, mirror, filling, gate) = stalled(3 * MIB, 2 * MIB).await;
    let one = reader(&mirror, &filling).await;
    let other = reader(&mirror, &filling).await;
    drop((one, other));
    gate.open();
    mirror.idle().await;
    assert!(mirror.holds(&filling.digest));
    mirror.get(&blob("library/app", &filling.digest)).await.assert_ok(&filling.bytes);
    assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_a_piece_and_hang_up_do_not_disturb_a_fill() {
    // containerd's parallel fetch: open-ended ranges, each closed after its piece.
    let (registry, mirror, filling, gate) = stalled(4 * MIB, 2 * MIB).await;
    let mut leader = reader(&mirror, &filling).await;
    gate.arrived().await;
    gate.open();
    for k in 0..8 {
        let first = k * MIB / 2;
        let mut connection = mirror.connect().await;
        let path = blob("library/app", &filling.digest);
        connection.send(&Request::get(path).range(format!("bytes={first}-"))).await;
        let head = connection.head().await;
        let expected = format!("bytes {first}-{}/{}", filling.len() - 1, filling.len());
        assert_eq!((head.status, head.header("content-range")), (206, Some(expected.as_str())));
        assert!(connection.take(MIB / 2).await == filling.bytes.slice(first..first + MIB / 2));
    }
    assert!(leader.rest().await == (filling.bytes.slice(MIB..), End::Complete));
    assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_ten_kilobytes_a_second_slows_nobody_down() {
    let (registry, mirror, filling, gate) = stalled(16 * MIB, 2 * MIB).await;
    let mut slow = Connection::open_narrow(mirror.addr()).await;
    slow.send(&Request::get(blob("library/app", &filling.digest))).await;
    assert_eq!(slow.head().await.status, 200);
    let begun = slow.take_slowly(3000, 1000, Duration::from_millis(100)).await;
    assert_eq!(begun, filling.bytes.slice(..3000));
    let mut fast = reader(&mirror, &filling).await;
    gate.open();
    // The slow one reads on at 10 kB/s until the fast one has all.
    let (rest, crawled) = {
        let crawling = async {
            let mut read = 0;
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            loop {
                ticks.tick().await;
                assert_eq!(slow.take(1000).await, filling.bytes.slice(3000 + read..4000 + read));
                read += 1000;
                if mirror.holds(&filling.digest) {
                    return read;
                }
            }
        };
        tokio::join!(within("the fast client", fast.rest()), crawling)
    };
    assert!(rest == (filling.bytes.slice(MIB..), End::Complete));
    assert!(crawled < MIB, "the fill waited for the slow client");
    // Nor does anything befall the slow one, long after the fill has ended.
    assert!(slow.rest().await == (filling.bytes.slice(3000 + crawled..), End::Complete));
    assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_of_heads_for_a_cold_tag_asks_upstream_once() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[]);
    registry.put_image("library/app", "v1", &image);
    let gate = registry.gate(On::manifest("v1"));
    let mirror = Mirror::builder().upstream("docker.io", &registry).tag_ttl("1h").start().await;
    let mut connections = Vec::new();
    for _ in 0..100 {
        let mut connection = mirror.connect().await;
        connection.send(&Request::head(manifest("library/app", "v1"))).await;
        connections.push(connection);
    }
    gate.arrived().await;
    gate.open();
    for mut connection in connections {
        let head = connection.answer().await;
        assert_eq!(head.header("docker-content-digest"), Some(image.manifest.digest.as_str()), "{:?}", head.head);
    }
    assert_eq!(registry.count(&On::manifest("v1")), 1);
    assert!(registry.count(&On::kind(Kind::Manifest).get()) <= 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_for_a_held_tag_asks_once_and_waits_two_seconds_at_most_for_a_slow_answer() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::builder().upstream("docker.io", &registry).tag_ttl("0s").start().await;
    mirror.pull("library/app", "v1", &image).await;
    mirror.idle().await;
    registry.forget_seen();
    let gate = registry.gate(On::kind(Kind::Manifest));
    let begun = std::time::Instant::now();
    let addr = mirror.addr();
    let answers = all((0..50).map(|_| async move {
        crate::support::client::send(addr, &Request::head(manifest("library/app", "v1"))).await
    }))
    .await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    for answer in answers {
        assert_eq!(answer.header("docker-content-digest"), Some(image.manifest.digest.as_str()));
    }
    gate.arrived().await;
    assert_eq!(registry.count(&On::manifest("v1").head()), 1, "all shared the check that still waits");
    assert_eq!(registry.count(&On::kind(Kind::Manifest).get()), 0);
    gate.open();
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cold_pulls_of_an_image_cost_its_bytes_once() {
    let registry = Registry::builder().redirect_blobs().start().await;
    let image = Image::new(1, &[0, 900, 200_000, MIB, 3 * MIB]);
    registry.put_image("library/app", "v1", &image);
    let mirror = std::sync::Arc::new(Mirror::of(&registry).await);
    all((0..20).map(|_| {
        let (mirror, image) = (std::sync::Arc::clone(&mirror), image.clone());
        async move { mirror.pull("library/app", "v1", &image).await }
    }))
    .await;
    assert_eq!(registry.count(&On::kind(Kind::Manifest).get()), 1);
    for part in image.blobs() {
        assert_eq!(registry.count(&On::cdn(&part.digest).get()), 1, "{}", part.len());
        assert_eq!(registry.body_bytes(&On::cdn(&part.digest)), part.len() as u64);
    }
    std::sync::Arc::into_inner(mirror).expect("all have ended").finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_is_shared_between_repositories_by_those_that_have_the_blob() {
    let (registry, mirror, filling, gate) = stalled(3 * MIB, 2 * MIB).await;
    registry.put_blob("team/other", &filling);
    registry.put_image("team/third", "v1", &Image::new(9, &[]));
    let mut leader = reader(&mirror, &filling).await;
    let mut joiner = mirror.connect().await;
    joiner.send(&Request::get(blob("team/other", &filling.digest))).await;
    assert_eq!(joiner.head().await.status, 200);
    assert_eq!(joiner.take(MIB).await, filling.bytes.slice(..MIB));
    let stranger = mirror.get(&blob("team/third", &filling.digest)).await;
    assert_eq!((stranger.status(), stranger.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    let asked = registry.count(&On::blob(&filling.digest).repository("team/other").head());
    assert_eq!(asked, 1, "the joiner's right was proven first");
    gate.open();
    for connection in [&mut leader, &mut joiner] {
        assert!(connection.rest().await == (filling.bytes.slice(MIB..), End::Complete));
    }
    assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repositorys_not_found_is_not_ours() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[5000]);
    let layer = &image.layers[0].digest;
    registry.put_image("library/app", "v1", &image);
    // A manifest that names a blob which its repository does not hold.
    registry.put_manifest("mallory/open", Some("v1"), &image.manifest);
    let mirror = Mirror::of(&registry).await;
    for repository in ["library/app", "mallory/open"] {
        mirror.get(&manifest(repository, "v1")).await.assert_ok(&image.manifest.bytes);
    }
    let gate = registry.gate(On::blob(layer).repository("library/app").get());
    registry.fault(On::blob(layer).repository("library/app").get(), Fault::status(503));
    let mut ours = mirror.connect().await;
    ours.send(&Request::get(blob("library/app", layer))).await;
    gate.arrived().await;
    let mut theirs = mirror.connect().await;
    theirs.send(&Request::get(blob("mallory/open", layer))).await;
    // By the time of these answers they have joined; if not, the test shows nothing, but does not fail.
    for _ in 0..20 {
        assert_eq!(mirror.get("/v2/").await.status(), 200);
    }
    gate.open();
    let ours = ours.answer().await;
    assert_eq!(ours.status(), 502, "{}", ours.text());
    assert_eq!(theirs.answer().await.status(), 404);
    registry.heal();
    mirror.get_once_well(&blob("library/app", layer)).await.assert_ok(&image.layers[0].bytes);
    mirror.finish().await;
}
