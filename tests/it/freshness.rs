//! Tags: how long they are believed, how they move, and what is served while upstream fails.

use std::time::Duration;

use crate::support::client::Answer;
use crate::support::images::Image;
use crate::support::mirror::{Builder, Mirror, age_tags, manifest};
use crate::support::registry::{Fault, Kind, On, Registry};
use crate::support::within;

/// A registry with `library/app:v1`, and how its mirror is to be configured.
async fn world(ttl: &str) -> (Registry, Image, Builder) {
    let registry = Registry::start().await;
    let image = Image::new(1, &[1000]);
    registry.put_image("library/app", "v1", &image);
    let builder = Mirror::builder().upstream("docker.io", &registry).tag_ttl(ttl);
    (registry, image, builder)
}

/// Fails unless the image is served by its tag with a warning, and says that it is stale.
#[track_caller]
fn assert_stale(answer: &Answer, image: &Image) {
    answer.assert_ok(&image.manifest.bytes);
    assert_eq!(answer.header("docker-content-digest"), Some(image.manifest.digest.as_str()));
    let warning = answer.header("warning").unwrap_or_else(|| panic!("no warning: {:?}", answer.head));
    assert!(warning.starts_with("299 - \"") && warning.ends_with('"'), "{warning}");
    let status = answer.header("cache-status").unwrap();
    assert!(status.starts_with("cachalot; hit; ttl=-"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_tag_asks_nobody() {
    let (registry, image, builder) = world("1h").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    assert_eq!(registry.count(&On::kind(Kind::Manifest).get()), 1);
    let asked = registry.count(&On::any());
    for _ in 0..5 {
        mirror.pull("library/app", "v1", &image).await;
    }
    assert_eq!(registry.count(&On::any()), asked);
    let warm = mirror.get(&manifest("library/app", "v1")).await;
    assert_eq!(warm.header("cache-status"), Some("cachalot; hit"));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_tag_costs_a_head_and_a_get_by_digest_only_when_it_moved() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    registry.forget_seen();
    for n in 1..=3 {
        mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
        assert_eq!(registry.count(&On::manifest("v1").head()), n);
        assert_eq!(registry.count(&On::kind(Kind::Manifest).get()), 0);
    }
    let moved = Image::new(2, &[500]);
    registry.put_image("library/app", "v1", &moved);
    registry.forget_seen();
    mirror.pull("library/app", "v1", &moved).await;
    assert_eq!(registry.count(&On::kind(Kind::Manifest).get()), 1);
    assert_eq!(registry.count(&On::manifest(&moved.manifest.digest).get()), 1);
    // What was pulled before is still there by its digest.
    mirror.get(&manifest("library/app", &image.manifest.digest)).await.assert_ok(&image.manifest.bytes);
    assert_eq!(registry.count(&On::manifest(&image.manifest.digest)), 0);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_never_moves_is_asked_for_once() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.upstream_set("docker.io", "immutable_tags", "[\"v*\"]").start().await;
    mirror.pull("library/app", "v1", &image).await;
    let asked = registry.count(&On::any());
    mirror.pull("library/app", "v1", &image).await;
    assert_eq!(registry.count(&On::any()), asked);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_is_asked_for_once() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    let path = manifest("library/app", &image.manifest.digest);
    mirror.get(&path).await.assert_ok(&image.manifest.bytes);
    let asked = registry.count(&On::any());
    for _ in 0..3 {
        mirror.get(&path).await.assert_ok(&image.manifest.bytes);
        assert_eq!(mirror.head(&path).await.status(), 200);
    }
    assert_eq!(registry.count(&On::any()), asked);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_by_digest_outlives_its_deletion_upstream() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    registry.delete_tag("library/app", "v1");
    registry.delete_manifest("library/app", &image.manifest.digest);
    image.blobs().for_each(|part| registry.delete_blob("library/app", &part.digest));
    mirror.pull("library/app", &image.manifest.digest, &image).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_tag_is_served_stale_with_a_warning_whatever_ails_upstream() {
    for fault in [
        Fault::status(500),
        Fault::status(503),
        Fault::too_many_requests(Some("1")),
        Fault::HangUp,
        Fault::Html,
        Fault::ForeignStatus(404),
        Fault::ForeignStatus(403),
    ] {
        let (registry, image, builder) = world("0s").await;
        let mirror = builder.start().await;
        mirror.pull("library/app", "v1", &image).await;
        registry.fault(On::any(), fault.clone());
        for _ in 0..2 {
            assert_stale(&mirror.get(&manifest("library/app", "v1")).await, &image);
            let head = mirror.head(&manifest("library/app", "v1")).await;
            assert_eq!(head.header("docker-content-digest"), Some(image.manifest.digest.as_str()), "{fault:?}");
            assert!(head.header("warning").is_some(), "{fault:?}: {:?}", head.head);
        }
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_image_is_pulled_whole_with_upstream_gone() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    registry.go_down().await;
    mirror.pull("library/app", "v1", &image).await;
    assert_stale(&mirror.get(&manifest("library/app", "v1")).await, &image);
    let metrics = mirror.metrics().await;
    let counted = metrics.lines().find(|line| line.starts_with("cachalot_stale_served_total{upstream=\"docker.io\"}"));
    let counted = counted.unwrap_or_default();
    assert!(counted.contains("docker.io") && !counted.ends_with(" 0"), "{counted:?}");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_upstream_costs_one_check_per_lifetime() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    let site = mirror.stop().await;
    // From here on a tag is fresh for an hour, but the record says when it was last checked: an hour before.
    site.rewrite("ttl = \"0s\"", "ttl = \"1h\"");
    age_tags(&site.data(), "docker.io/library/app", Duration::from_hours(2));
    registry.fault(On::any(), Fault::status(503));
    registry.forget_seen();
    let mirror = site.start().await;
    assert_stale(&mirror.get(&manifest("library/app", "v1")).await, &image);
    assert_eq!(registry.count(&On::manifest("v1").head()), 1);
    for _ in 0..5 {
        mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    }
    assert_eq!(registry.count(&On::kind(Kind::Manifest)), 1, "a failed check advances the clock");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_tags_are_not_served_where_the_operator_says_never() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.set("tags", "stale_if_error", "\"never\"").start().await;
    mirror.pull("library/app", "v1", &image).await;
    registry.fault(On::any(), Fault::status(503));
    let answer = mirror.get(&manifest("library/app", "v1")).await;
    assert!([502, 503, 504].contains(&answer.status()), "{:?}", answer.head);
    // A digest can't be stale.
    let by_digest = mirror.get(&manifest("library/app", &image.manifest.digest)).await;
    by_digest.assert_ok(&image.manifest.bytes);
    assert_eq!(by_digest.header("warning"), None);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_deleted_upstream_is_served_on_with_a_warning() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    registry.delete_tag("library/app", "v1");
    for _ in 0..2 {
        let answer = mirror.get(&manifest("library/app", "v1")).await;
        answer.assert_ok(&image.manifest.bytes);
        assert!(answer.header("warning").is_some_and(|text| text.starts_with("299 - ")), "{:?}", answer.head);
    }
    let moved = Image::new(2, &[]);
    registry.put_image("library/app", "v1", &moved);
    mirror.pull("library/app", "v1", &moved).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_tag_whose_manifest_is_gone_is_an_error_and_not_a_promise() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    let site = mirror.stop().await;
    std::fs::remove_file(site.blob_file(&image.manifest.digest)).unwrap();
    registry.go_down().await;
    let mirror = site.start().await;
    for answer in [mirror.head(&manifest("library/app", "v1")).await, mirror.get(&manifest("library/app", "v1")).await]
    {
        assert!([502, 503, 504].contains(&answer.status()), "{:?}", answer.head);
    }
    registry.come_back().await;
    mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_to_something_broken_stays_where_it_was() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    let moved = Image::new(2, &[]);
    registry.put_image("library/app", "v1", &moved);
    registry.fault(On::manifest(&moved.manifest.digest).get(), Fault::Corrupt(3));
    assert_stale(&mirror.get(&manifest("library/app", "v1")).await, &image);
    registry.heal();
    // After a failed check upstream is left alone for a moment.
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    within("the tag moves", async {
        while mirror.get(&manifest("library/app", "v1")).await.body != moved.manifest.bytes {
            ticks.tick().await;
        }
    })
    .await;
    mirror.pull("library/app", "v1", &moved).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_list_is_shared_and_served_stale() {
    let (registry, _, builder) = world("0s").await;
    let mirror = builder.set("tags", "list_ttl", "\"0s\"").start().await;
    let path = "/v2/library/app/tags/list?ns=docker.io";
    assert_eq!(mirror.get(path).await.json()["tags"], serde_json::json!(["v1"]));
    registry.fault(On::any(), Fault::status(503));
    let stale = mirror.get(path).await;
    assert_eq!((stale.status(), &stale.json()["tags"]), (200, &serde_json::json!(["v1"])));
    assert!(stale.header("warning").is_some(), "{:?}", stale.head);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upstream_costs_one_wait_in_a_while_and_not_one_a_pull() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    let silence = registry.gate(On::any());
    assert_stale(&mirror.get(&manifest("library/app", "v1")).await, &image);
    let started = std::time::Instant::now();
    assert_stale(&mirror.get(&manifest("library/app", "v1")).await, &image);
    assert!(started.elapsed() < Duration::from_secs(1), "waited once more");
    silence.open();
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_upstream_is_slow_to_tell_is_recorded_all_the_same() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    registry.delete_tag("library/app", "v1");
    let gate = registry.gate(On::manifest("v1"));
    assert_stale(&mirror.get(&manifest("library/app", "v1")).await, &image);
    gate.open();
    let record = mirror.site().data().join("v1/repositories/docker.io/library/app/_tags/v1.json");
    crate::support::until("the deletion is recorded", || {
        std::fs::read_to_string(&record).is_ok_and(|text| text.contains("gone"))
    })
    .await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_lists_are_served_stale_while_upstream_is_silent() {
    let (registry, image, builder) = world("0s").await;
    let mirror = builder.set("tags", "list_ttl", "\"0s\"").start().await;
    mirror.pull("library/app", "v1", &image).await;
    let tags = "/v2/library/app/tags/list?ns=docker.io".to_owned();
    let referrers = format!("/v2/library/app/referrers/{}?ns=docker.io", image.manifest.digest);
    for path in [&tags, &referrers] {
        assert_eq!(mirror.get(path).await.status(), 200);
    }
    let silence = registry.gate(On::any());
    for path in [&tags, &referrers] {
        let stale = mirror.get(path).await;
        assert_eq!(stale.status(), 200, "{path}: {}", stale.text());
        assert!(stale.header("warning").is_some(), "{:?}", stale.head);
        let started = std::time::Instant::now();
        assert_eq!(mirror.get(path).await.status(), 200);
        assert!(started.elapsed() < Duration::from_secs(1), "waited once more");
    }
    silence.open();
    mirror.finish().await;
}
