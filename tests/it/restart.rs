//! Boot needs only the disk: what was held is served, what was unfinished is gone.

use crate::support::client::Request;
use crate::support::images::{Blob, Image, Index, noise, sha256};
use crate::support::mirror::{Mirror, blob, manifest};
use crate::support::registry::{On, Registry};

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn held_images_are_served_after_a_restart_with_upstream_gone() {
    let registry = Registry::start().await;
    let index = Index::new(1, &[2000, 3 * MIB]);
    registry.put_index("library/app", "v1", &index);
    let mirror = Mirror::builder().upstream("docker.io", &registry).tag_ttl("0s").start().await;
    mirror.get(&manifest("library/app", "v1")).await.assert_ok(&index.manifest.bytes);
    for image in &index.images {
        mirror.pull("library/app", &image.manifest.digest, image).await;
    }
    mirror.idle().await;
    let before = mirror.holdings();
    let site = mirror.stop().await;
    registry.go_down().await;
    let mirror = site.start().await;
    let after = mirror.holdings();
    assert_eq!((before.blobs, before.blob_bytes()), (after.blobs, after.blob_bytes()));
    let stale = mirror.get(&manifest("library/app", "v1")).await;
    stale.assert_ok(&index.manifest.bytes);
    assert!(stale.header("warning").is_some());
    for image in &index.images {
        mirror.pull("library/app", &image.manifest.digest, image).await;
    }
    let tags = mirror.get("/v2/library/app/tags/list?ns=docker.io").await;
    assert!([200, 502, 503, 504].contains(&tags.status()), "{:?}", tags.head);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_under_way_outlives_a_stop_and_only_the_rest_is_fetched() {
    let registry = Registry::start().await;
    let filling = Blob::noise(1, 4 * MIB);
    registry.put_blob("library/app", &filling);
    let gate = registry.gate_body(On::blob(&filling.digest).once(), 3 * MIB as u64);
    let mirror = Mirror::of(&registry).await;
    let mut client = mirror.connect().await;
    client.send(&Request::get(blob("library/app", &filling.digest))).await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.take(2 * MIB).await, filling.bytes.slice(..2 * MIB));
    gate.arrived().await;
    drop(client);
    let site = mirror.stop().await;
    let mirror = site.start().await;
    assert!(!mirror.holds(&filling.digest));
    assert_eq!((mirror.holdings().blobs, mirror.holdings().partials, mirror.holdings().resting), (0, 0, 1));
    let before = registry.body_bytes(&On::blob(&filling.digest));
    mirror.get(&blob("library/app", &filling.digest)).await.assert_ok(&filling.bytes);
    let again = registry.body_bytes(&On::blob(&filling.digest)) - before;
    assert!(again <= 2 * MIB as u64, "{again} bytes were fetched again");
    gate.open();
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_behind_is_swept_away_at_the_next_start() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    mirror.pull("library/app", "v1", &image).await;
    let site = mirror.stop().await;
    // What a kill can leave: a partial, a temporary file, an empty shard; and what it can't, but people do.
    let lost = sha256(b"lost").replace(':', "-");
    let partial = site.data().join("v1/partial/docker.io").join(lost);
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join("data"), noise(5, 100_000)).unwrap();
    std::fs::write(partial.join("state.json"), b"{\"torn").unwrap();
    std::fs::create_dir_all(site.data().join("v1/tmp")).unwrap();
    std::fs::write(site.data().join("v1/tmp/half"), b"half a blob").unwrap();
    std::fs::create_dir_all(site.data().join("v1/blobs/sha256/zz")).unwrap();
    std::fs::write(site.data().join("README"), b"an operator's note").unwrap();
    let tags = site.data().join("v1/repositories/docker.io/library/app/_tags");
    std::fs::write(tags.join("torn.json"), b"{\"digest\": \"sha2").unwrap();
    let mirror = site.start().await;
    mirror.pull("library/app", "v1", &image).await;
    assert_eq!(mirror.get(&manifest("library/app", "torn")).await.status(), 404);
    assert!(mirror.site().data().join("README").exists(), "what is not ours stays");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_capacity_allows_is_kept_for_a_while_and_readiness_says_so() {
    let registry = Registry::start().await;
    let held = Blob::noise(1, 3 * MIB);
    registry.put_blob("library/app", &held);
    let mirror = Mirror::builder().upstream("docker.io", &registry).capacity("8MiB").start().await;
    mirror.get(&blob("library/app", &held.digest)).await.assert_ok(&held.bytes);
    mirror.idle().await;
    assert_eq!(mirror.admin("/readyz").await.body, "ok\n");
    let site = mirror.stop().await;
    site.rewrite("capacity = \"8MiB\"", "capacity = \"1MiB\"");
    let mirror = site.start().await;
    let ready = mirror.admin("/readyz").await;
    let text = String::from_utf8_lossy(&ready.body);
    assert!(ready.status() == 200 && text.starts_with("degraded: more is held than storage.capacity"), "{text}");
    mirror.get(&blob("library/app", &held.digest)).await.assert_ok(&held.bytes);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_starts_with_nothing_but_a_configuration_that_leads_nowhere() {
    let registry = Registry::start().await;
    registry.go_down().await;
    let mirror = Mirror::builder()
        .upstream("docker.io", &registry)
        .upstream_set("nowhere.example", "endpoints", "[\"https://does-not-resolve.invalid\"]")
        .start()
        .await;
    assert_eq!(mirror.get("/v2/").await.status(), 200);
    assert_eq!(mirror.admin("/readyz").await.status(), 200);
    let answer = mirror.get(&manifest("library/app", "v1")).await;
    assert!([502, 503, 504].contains(&answer.status()), "{:?}", answer.head);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarting_again_and_again_loses_and_gains_nothing() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[0, 1, 4096, MIB, 2 * MIB]);
    registry.put_image("library/app", "v1", &image);
    let mut mirror = Mirror::builder().upstream("docker.io", &registry).tag_ttl("1h").start().await;
    mirror.pull("library/app", "v1", &image).await;
    mirror.idle().await;
    let holdings = mirror.holdings();
    let asked = registry.count(&On::any());
    for _ in 0..3 {
        mirror = mirror.stop().await.start().await;
        mirror.pull("library/app", "v1", &image).await;
        let now = mirror.holdings();
        assert_eq!((now.blobs, now.blob_bytes()), (holdings.blobs, holdings.blob_bytes()));
    }
    assert_eq!(registry.count(&On::any()), asked);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_known_to_be_missing_is_missing_for_head_too() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[1000]);
    registry.put_image("library/app", "v1", &image);
    let builder = Mirror::builder().upstream("docker.io", &registry);
    let mirror = builder.start().await;
    // The manifest says how long the blob is, but nobody pulled it.
    mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    let path = blob("library/app", &image.layers[0].digest);
    assert_eq!(mirror.head(&path).await.status(), 200);
    registry.delete_blob("library/app", &image.layers[0].digest);
    assert_eq!(mirror.get(&path).await.status(), 404);
    assert_eq!(mirror.head(&path).await.status(), 404, "what is known to be missing");
    mirror.finish().await;
}
