//! The metrics: text that a Prometheus reads, every series there from the start, and every one of them moving.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cachalot::store::Op;
use prometheus_parse::{Scrape, Value};
use rustix::io::Errno;

use crate::support::client::Request;
use crate::support::images::{Blob, Image};
use crate::support::mirror::{FailingDisk, Mirror, blob, manifest};
use crate::support::registry::{Fault, On, Registry};
use crate::support::within;

/// All samples, as a parser that is not ours reads them: the family's name, and whether it is more than nothing.
async fn scrape(mirror: &Mirror) -> BTreeMap<String, bool> {
    let text = mirror.metrics().await;
    let helped: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    let typed: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(helped, typed, "each family has a help text and a type, once");
    assert_eq!(text.lines().last(), Some("# EOF"));
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    let mut moved = BTreeMap::new();
    let mut read = 0;
    for sample in &scrape.samples {
        let (lines, value) = match &sample.value {
            Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => (1, *value),
            // Every bucket is a line.
            Value::Histogram(buckets) => (buckets.len(), buckets.iter().map(|bucket| bucket.count).sum()),
            Value::Summary(_) => panic!("{} is a summary", sample.metric),
        };
        read += lines;
        let family = ["_total", "_sum", "_count", "_bucket"]
            .iter()
            .find_map(|suffix| sample.metric.strip_suffix(suffix))
            .filter(|family| typed.contains(family))
            .unwrap_or(&sample.metric);
        *moved.entry(family.to_owned()).or_default() |= value > 0.0;
    }
    assert_eq!(read, samples, "every line is read");
    for family in typed {
        // Quotas and ages exist once somebody has said one.
        let later =
            ["cachalot_upstream_ratelimit_remaining", "cachalot_stale_age_seconds", "cachalot_upstream_requests"];
        let later = later.contains(&family);
        assert!(moved.contains_key(family) || later, "{family} has no series");
    }
    moved
}

/// Adds what has moved by now.
async fn note(mirror: &Mirror, moved: &mut BTreeMap<String, bool>) {
    for (family, more_than_nothing) in scrape(mirror).await {
        *moved.entry(family).or_default() |= more_than_nothing;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_is_there_from_the_start_and_moves() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000, 3 << 20]);
    registry.put_image("library/app", "v1", &image);
    let disk = Arc::new(FailingDisk::default());
    let mirror = Mirror::builder()
        .upstream("docker.io", &registry)
        .tag_ttl("0s")
        .capacity("6MiB")
        .disk(&disk)
        .set("server", "max_connections_per_address", "4")
        .start()
        .await;
    let text = mirror.metrics().await;
    for series in [
        "cachalot_requests_total{upstream=\"docker.io\",kind=\"blob\",outcome=\"hit\"} 0",
        "cachalot_response_bytes_total{upstream=\"quay.io\",outcome=\"miss\"} 0",
        "cachalot_upstream_bytes_total{upstream=\"*.pkg.dev\"} 0",
        "cachalot_first_byte_seconds_bucket{le=\"0.001\"} 0",
        "cachalot_first_byte_seconds_bucket{le=\"600.0\"} 0",
        "cachalot_verify_failures_total{where=\"upstream\"} 0",
    ] {
        assert!(text.contains(series), "{series}");
    }
    let mut moved = BTreeMap::new();
    registry.fault(On::any(), Fault::With("ratelimit-remaining", "76;w=21600".to_owned()));
    mirror.pull("library/app", "v1", &image).await;
    registry.heal();
    // In the middle of a download, with a reader.
    let large = Blob::noise(2, 2 << 20);
    registry.put_blob("library/app", &large);
    let gate = registry.gate_body(On::blob(&large.digest).once(), 1 << 20);
    let mut reader = mirror.connect().await;
    reader.send(&Request::get(blob("library/app", &large.digest))).await;
    assert_eq!(reader.head().await.status, 200);
    gate.arrived().await;
    note(&mirror, &mut moved).await;
    gate.open();
    assert_eq!(reader.rest().await.0, large.bytes);
    // Something goes to make room.
    mirror.idle().await;
    let other = Image::new(3, &[3 << 20]);
    registry.put_image("library/other", "v1", &other);
    mirror.pull("library/other", "v1", &other).await;
    // Wrong content, a failing disk, a name that is none, one connection too many, a dead upstream.
    let wrong = Blob::noise(4, 5000);
    registry.put_blob("library/app", &wrong);
    registry.fault(On::blob(&wrong.digest), Fault::Corrupt(7));
    assert!(mirror.get(&blob("library/app", &wrong.digest)).await.status() >= 500);
    registry.heal();
    mirror.idle().await;
    // A disk that hangs while manifests are served, and one that takes none of them.
    let hanging = disk.hang();
    registry.put_image("library/third", "v1", &Image::new(6, &[10]));
    registry.put_image("library/fourth", "v1", &Image::new(7, &[10]));
    assert_eq!(mirror.get(&manifest("library/third", "v1")).await.status(), 200);
    note(&mirror, &mut moved).await;
    drop(hanging);
    disk.fail(Op::Create, Errno::IO);
    assert_eq!(mirror.get(&manifest("library/fourth", "v1")).await.status(), 200);
    within("what was served is given up", async {
        while mirror.metrics().await.contains("cachalot_store_unkept_total 0\n") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let unkept = Blob::noise(5, 5000);
    registry.put_blob("library/app", &unkept);
    mirror.get(&blob("library/app", &unkept.digest)).await;
    note(&mirror, &mut moved).await;
    disk.recover();
    mirror.idle().await;
    assert_eq!(mirror.get("/v2/a/b/manifests/1?ns=nowhere.example").await.status(), 404);
    let mut open = vec![reader];
    for _ in 0..3 {
        open.push(mirror.connect().await);
    }
    assert_eq!(mirror.get("/v2/").await.status(), 503);
    drop(open);
    registry.go_down().await;
    mirror.get(&manifest("library/other", "v1")).await;
    note(&mirror, &mut moved).await;
    // A promise to keep an image, and a scrub that is overdue, as they lie on the disk.
    let site = mirror.stop().await;
    let pin = r#"{"roots":["docker.io/library/other:v1"],"created":0}"#;
    std::fs::write(site.data().join("v1/pins/release.json"), pin).unwrap();
    std::fs::write(site.data().join("v1/scrub.json"), r#"{"begun":0,"next":null}"#).unwrap();
    let mirror = site.start().await;
    mirror.sweep().await;
    within("the scrub hashes something", async {
        while mirror.metrics().await.contains("cachalot_scrubbed_bytes_total 0\n") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    note(&mirror, &mut moved).await;
    // How a download went in detail is moved by the tests of downloads.
    let of_fills = |family: &str| family.starts_with("cachalot_fill_") && family != "cachalot_fill_readers";
    let still: Vec<_> =
        moved.iter().filter(|(family, moved)| !**moved && !of_fills(family)).map(|(family, _)| family).collect();
    assert!(still.is_empty(), "never moved: {still:?}");
    mirror.finish().await;
}
