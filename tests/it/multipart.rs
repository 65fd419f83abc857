//! Several ranges in one request: as many parts, in the same order, whatever state the blob is in.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::support::client::{Answer, End, Request};
use crate::support::images::{Blob, Image};
use crate::support::mirror::{Mirror, blob, manifest};
use crate::support::multipart::parts;
use crate::support::registry::{Fault, On, Registry};

const MIB: usize = 1024 * 1024;

/// Ranges as a client asks for them: first and last byte, both included.
type Ranges = Vec<(usize, usize)>;

/// A header, and the status and the parts of its answer.
type Row = (&'static str, u16, &'static [(usize, usize)]);

/// Ascending ranges that don't overlap; some touch, some are far apart.
fn ranges(size: usize) -> impl Strategy<Value = Ranges> {
    let step = (prop_oneof![Just(0), 1..2000_usize, 1..size / 3], prop_oneof![1..20_usize, 1..size / 8]);
    prop::collection::vec(step, 2..40).prop_map(move |steps| {
        let mut at = 0;
        let mut ranges = Vec::new();
        for (gap, len) in steps {
            let first = at + gap;
            if first >= size {
                break;
            }
            at = (first + len).min(size);
            ranges.push((first, at - 1));
        }
        if ranges.len() < 2 { vec![(0, 0), (size - 1, size - 1)] } else { ranges }
    })
}

/// As many random sets of ranges, the same in every run.
fn random_sets(size: usize, count: usize) -> Vec<Ranges> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| ranges(size).new_tree(&mut runner).unwrap().current()).collect()
}

fn header(ranges: &Ranges) -> String {
    let ranges: Vec<_> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    format!("bytes={}", ranges.join(","))
}

fn ask(wanted: &Blob, ranges: &Ranges) -> Request {
    Request::get(blob("library/app", &wanted.digest)).range(header(ranges))
}

/// The parts are the ranges, each with its bytes.
#[track_caller]
fn check(answer: &Answer, wanted: &Blob, ranges: &Ranges) {
    let parts = parts(answer);
    assert_eq!(answer.header("docker-content-digest"), Some(&*wanted.digest));
    assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    let got: Ranges = parts.iter().map(|p| (usize::try_from(p.first).unwrap(), p.last.try_into().unwrap())).collect();
    assert_eq!(&got, ranges);
    for part in &parts {
        assert_eq!((part.total, part.content_type.as_str()), (wanted.len() as u64, "application/octet-stream"));
        let (first, last) = (usize::try_from(part.first).unwrap(), usize::try_from(part.last).unwrap());
        assert!(part.bytes == wanted.bytes.slice(first..=last), "the bytes of {first}-{last} differ");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_are_answered_alike_on_a_miss_and_on_a_hit() {
    let registry = Registry::builder().redirect_blobs().start().await;
    let mirror = Mirror::of(&registry).await;
    for (size, count) in [(2048, 30), (MIB + 1, 20), (3_000_000, 20)] {
        for (n, ranges) in random_sets(size, count).into_iter().enumerate() {
            let cold = Blob::noise((size + n) as u64, size);
            registry.put_blob("library/app", &cold);
            check(&mirror.send(&ask(&cold, &ranges)).await, &cold, &ranges);
            mirror.idle().await;
            let warm = mirror.send(&ask(&cold, &ranges)).await;
            check(&warm, &cold, &ranges);
            assert_eq!(warm.header("cache-status"), Some("cachalot; hit"));
        }
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_are_answered_alike_while_their_blob_arrives() {
    let size = 3_000_000;
    let registry = Registry::start().await;
    let filling = Blob::noise(1, size);
    registry.put_blob("library/app", &filling);
    let mirror = Mirror::of(&registry).await;
    let gate = registry.gate_body(On::blob(&filling.digest), size as u64 / 2);
    let mut leader = mirror.connect().await;
    leader.send(&Request::get(blob("library/app", &filling.digest))).await;
    gate.arrived().await;
    // What has arrived is answered at once, in several parts as well.
    let early = vec![(0, 9), (10, 99_999), (500_000, 1_200_000)];
    let answer = mirror.send(&ask(&filling, &early)).await;
    check(&answer, &filling, &early);
    assert!(answer.header("cache-status").unwrap().contains("detail=unverified"), "{:?}", answer.head);
    let mut waiting = Vec::new();
    for ranges in random_sets(size, 30) {
        let mut connection = mirror.connect().await;
        connection.send(&ask(&filling, &ranges)).await;
        waiting.push((ranges, connection));
    }
    gate.open();
    for (ranges, mut connection) in waiting {
        check(&connection.answer().await, &filling, &ranges);
    }
    leader.answer().await.assert_ok(&filling.bytes);
    assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_of_what_is_passed_through_are_answered_alike() {
    let size = 6 * MIB;
    let registry = Registry::start().await;
    let huge = Blob::noise(1, size);
    registry.put_blob("library/app", &huge);
    let mirror = Mirror::builder().upstream("docker.io", &registry).capacity("4MiB").start().await;
    for mut ranges in random_sets(size, 10) {
        // Without the end of the blob, they would be fetched one by one, and kept.
        if ranges.last().is_none_or(|last| last.1 < size - 10) {
            ranges.push((size - 10, size - 1));
        }
        let answer = mirror.send(&ask(&huge, &ranges)).await;
        check(&answer, &huge, &ranges);
        assert!(answer.header("cache-status").unwrap().starts_with("cachalot; fwd=bypass"), "{:?}", answer.head);
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_that_reach_the_end_are_never_complete_when_the_digest_is_wrong() {
    for policy in ["\"send\"", "\"wait\""] {
        let registry = Registry::start().await;
        let size = 3_000_000;
        let spoilt = Blob::noise(1, size);
        registry.put_blob("library/app", &spoilt);
        registry.fault(On::blob(&spoilt.digest).get(), Fault::Corrupt(1_500_000));
        let builder = Mirror::builder().upstream("docker.io", &registry).set("fill", "unverified_ranges", policy);
        let mirror = builder.start().await;
        let ranges = if policy == "\"send\"" {
            vec![(0, 9), (100_000, 199_999), (size - 10, size - 1)]
        } else {
            vec![(0, 9), (100_000, 199_999)]
        };
        let mut connection = mirror.connect().await;
        connection.send(&ask(&spoilt, &ranges)).await;
        if connection.head().await.status == 206 {
            let (_, end) = connection.rest().await;
            assert_eq!(end, End::Short, "{policy}");
        }
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_ranges_as_podman_asks_for_come_as_as_many_parts() {
    let registry = Registry::start().await;
    let held = Blob::noise(1, 2 * MIB);
    registry.put_blob("library/app", &held);
    let mirror = Mirror::of(&registry).await;
    let ranges = |count: usize| -> Ranges { (0..count).map(|n| (n * 2000, n * 2000 + 999)).collect() };
    for _ in ["cold", "warm"] {
        check(&mirror.send(&ask(&held, &ranges(1024))).await, &held, &ranges(1024));
        // More are refused; podman then asks for half as many.
        let answer = mirror.send(&ask(&held, &ranges(1025))).await;
        assert_eq!((answer.status(), answer.error_code().as_str()), (400, "UNSUPPORTED"));
        mirror.idle().await;
    }
    // The longest header that is read, and one that is longer. Both heads are taken.
    let padded = |len: usize| {
        let zeros = "0".repeat(len);
        Request::get(blob("library/app", &held.digest)).range(format!("bytes={zeros}-0,9-9"))
    };
    check(&mirror.send(&padded(65_000)).await, &held, &vec![(0, 0), (9, 9)]);
    assert_eq!(mirror.send(&padded(66_000)).await.status(), 400);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_of_ranges_are_answered_as_the_table_says() {
    let registry = Registry::start().await;
    let size = 5000;
    let held = Blob::noise(1, size);
    registry.put_blob("library/app", &held);
    let mirror = Mirror::of(&registry).await;
    let path = blob("library/app", &held.digest);
    let table: [Row; 17] = [
        ("bytes=0-1,100-199", 206, &[(0, 1), (100, 199)]),
        ("bytes=0-1, 100-199 ,, 4000-", 206, &[(0, 1), (100, 199), (4000, 4999)]),
        ("bytes=0-1,-10", 206, &[(0, 1), (4990, 4999)]),
        ("bytes=0-99,100-199", 206, &[(0, 99), (100, 199)]),
        ("bytes=0-1,4990-9999", 206, &[(0, 1), (4990, 4999)]),
        // What lies beyond the end is left out, but only where that shifts no other part.
        ("bytes=0-1,9000-9001", 206, &[(0, 1)]),
        ("bytes=9000-9001,0-1", 400, &[]),
        ("bytes=0-1,9-8,20-21", 400, &[]),
        ("bytes=0-1,-0,20-21", 400, &[]),
        ("bytes=9000-9001,9002-", 416, &[]),
        ("bytes=9-8,7-6", 416, &[]),
        ("bytes=-0,-0", 416, &[]),
        ("bytes=100-199,0-1", 400, &[]),
        ("bytes=0-100,100-199", 400, &[]),
        ("bytes=0-,0-", 400, &[]),
        ("bytes=0-1,x", 200, &[]),
        ("lines=0-1,4-5", 200, &[]),
    ];
    for _ in ["cold", "warm"] {
        for (range, status, expected) in table {
            let answer = mirror.send(&Request::get(&path).range(range)).await;
            assert_eq!(answer.status(), status, "{range}: {:?}", answer.head);
            match status {
                206 => check(&answer, &held, &expected.to_vec()),
                416 => assert_eq!(answer.header("content-range"), Some("bytes */5000"), "{range}"),
                400 => assert_eq!(answer.error_code(), "UNSUPPORTED", "{range}"),
                _ => answer.assert_ok(&held.bytes),
            }
        }
        mirror.idle().await;
    }
    let twice = Request::get(&path).range("bytes=0-1").range("bytes=4-5");
    assert_eq!(mirror.send(&twice).await.status(), 400);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_heads_and_manifests_heed_several_ranges_as_they_heed_one() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[5000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    let layer = &image.layers[0];
    let path = blob("library/app", &layer.digest);
    let several = |path: &str| Request::get(path).range("bytes=0-1,100-199");

    let ours = several(&path).header("If-Range", format!("\"{}\"", layer.digest));
    check(&mirror.send(&ours).await, layer, &vec![(0, 1), (100, 199)]);
    mirror.send(&several(&path).header("If-Range", "\"another\"")).await.assert_ok(&layer.bytes);
    let head = mirror.send(&Request::head(&path).range("bytes=0-1,100-199")).await;
    assert_eq!((head.status(), head.header("content-length")), (200, Some("5000")));
    assert_eq!(head.header("content-type"), Some("application/octet-stream"));

    let answer = mirror.send(&several(&manifest("library/app", "v1"))).await;
    let (bytes, media_type) = (&image.manifest.bytes, image.manifest.media_type.as_str());
    let got: Vec<_> = parts(&answer).into_iter().map(|part| (part.content_type, part.total, part.bytes)).collect();
    let expected = [bytes.slice(0..2), bytes.slice(100..200)];
    assert_eq!(got, expected.map(|part| (media_type.to_owned(), bytes.len() as u64, part)));

    // The connection goes on after such an answer.
    let mut connection = mirror.connect().await;
    check(&connection.exchange(&several(&path)).await, layer, &vec![(0, 1), (100, 199)]);
    check(&connection.exchange(&several(&path)).await, layer, &vec![(0, 1), (100, 199)]);
    connection.exchange(&Request::get(&path)).await.assert_ok(&layer.bytes);
    mirror.finish().await;
}
