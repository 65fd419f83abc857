//! The range table in every state that a blob can be in: cold, arriving, held.

use crate::support::client::{Answer, End, Request};
use crate::support::images::Blob;
use crate::support::mirror::{Mirror, blob};
use crate::support::registry::{On, Registry};

/// What a `Range` header must be answered with.
#[derive(Clone, Copy, Debug)]
enum Part {
    Whole,
    Bytes(usize, usize),
    Unsatisfiable,
}

/// The range table of `protocol.md` §4.1 for a blob of `size` bytes.
fn ranges(size: usize) -> Vec<(String, Part)> {
    let (end, clamped) = (size - 1, size - 48);
    vec![
        ("bytes=500-1499".to_owned(), Part::Bytes(500, 1499)),
        ("bytes=500-".to_owned(), Part::Bytes(500, end)),
        ("bytes=-500".to_owned(), Part::Bytes(size - 500, end)),
        (format!("bytes={clamped}-{}", size + 5000), Part::Bytes(clamped, end)),
        ("bytes=500-0".to_owned(), Part::Unsatisfiable),
        (format!("bytes={}-{}", size + 3000, size + 8000), Part::Unsatisfiable),
        (format!("bytes={size}-"), Part::Unsatisfiable),
        ("bytes=-0".to_owned(), Part::Unsatisfiable),
        ("bytes=0-".to_owned(), Part::Bytes(0, end)),
        ("bytes=0-0".to_owned(), Part::Bytes(0, 0)),
        ("bytes=0-1".to_owned(), Part::Bytes(0, 1)),
        (format!("bytes=-{}", size + 1), Part::Bytes(0, end)),
        (format!("bytes={end}-{end}"), Part::Bytes(end, end)),
        ("lines=1-2".to_owned(), Part::Whole),
        ("bytes=one-two".to_owned(), Part::Whole),
        ("bytes=1-2-3".to_owned(), Part::Whole),
        ("bytes=".to_owned(), Part::Whole),
        ("bytes".to_owned(), Part::Whole),
    ]
}

#[track_caller]
fn check_part(blob: &Blob, range: &str, part: Part, answer: &Answer) {
    let size = blob.len();
    let context = format!("{range} of {size}: {:?}", answer.head);
    assert_eq!(answer.end, End::Complete, "{context}");
    let expected = match part {
        Part::Whole => (200, None, blob.bytes.clone()),
        Part::Bytes(first, last) => (206, Some(format!("bytes {first}-{last}/{size}")), blob.bytes.slice(first..=last)),
        Part::Unsatisfiable => {
            assert_eq!((answer.status(), answer.header("content-range")), (416, Some(&*format!("bytes */{size}"))));
            return;
        }
    };
    assert_eq!((answer.status(), answer.header("content-range")), (expected.0, expected.1.as_deref()), "{context}");
    assert_eq!(answer.header("content-length"), Some(&*expected.2.len().to_string()), "{context}");
    assert_eq!(answer.header("accept-ranges"), Some("bytes"), "{context}");
    assert_eq!(answer.header("docker-content-digest"), Some(&*blob.digest), "{context}");
    assert!(answer.body == expected.2, "the bytes differ, {context}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_answered_alike_on_a_miss_and_on_a_hit() {
    let registry = Registry::builder().redirect_blobs().start().await;
    let mirror = Mirror::of(&registry).await;
    for (n, size) in [(1, 2048), (2, 1024 * 1024 + 1), (3, 2_500_000)] {
        for (k, (range, part)) in (0u64..).zip(ranges(size)) {
            let cold = Blob::noise(n * 1000 + k, size);
            registry.put_blob("library/app", &cold);
            let request = Request::get(blob("library/app", &cold.digest)).range(&range);
            check_part(&cold, &range, part, &mirror.send(&request).await);
            mirror.idle().await;
            check_part(&cold, &range, part, &mirror.send(&request).await);
        }
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_answered_alike_while_its_blob_arrives() {
    for size in [2048, 2_500_000] {
        let registry = Registry::start().await;
        let filling = Blob::noise(1, size);
        registry.put_blob("library/app", &filling);
        let mirror = Mirror::of(&registry).await;
        let gate = registry.gate_body(On::blob(&filling.digest), size as u64 / 2);
        let path = blob("library/app", &filling.digest);
        let mut leader = mirror.connect().await;
        leader.send(&Request::get(&path)).await;
        gate.arrived().await;
        let mut waiting = Vec::new();
        for (range, part) in ranges(size) {
            let mut connection = mirror.connect().await;
            connection.send(&Request::get(&path).range(&range)).await;
            waiting.push((range, part, connection));
        }
        gate.open();
        for (range, part, mut connection) in waiting {
            check_part(&filling, &range, part, &connection.answer().await);
        }
        leader.answer().await.assert_ok(&filling.bytes);
        assert_eq!(registry.count(&On::blob(&filling.digest).get()), 1);
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_has_arrived_does_not_wait_for_the_rest_and_says_that_it_is_unverified() {
    let registry = Registry::start().await;
    let filling = Blob::noise(1, 3_000_000);
    registry.put_blob("library/app", &filling);
    let mirror = Mirror::of(&registry).await;
    let gate = registry.gate_body(On::blob(&filling.digest), 2_000_000);
    let path = blob("library/app", &filling.digest);
    let mut leader = mirror.connect().await;
    leader.send(&Request::get(&path)).await;
    gate.arrived().await;
    let range = mirror.send(&Request::get(&path).range("bytes=1000000-1000999")).await;
    check_part(&filling, "bytes=1000000-1000999", Part::Bytes(1_000_000, 1_000_999), &range);
    assert!(range.header("cache-status").unwrap().contains("detail=unverified"), "{:?}", range.head);
    gate.open();
    leader.answer().await.assert_ok(&filling.bytes);
    mirror.idle().await;
    let range = mirror.send(&Request::get(&path).range("bytes=1000000-1000999")).await;
    assert_eq!(range.header("cache-status"), Some("cachalot; hit"));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unverified_ranges_wait_for_the_digest_where_the_operator_says_so() {
    let registry = Registry::start().await;
    let filling = Blob::noise(1, 3_000_000);
    registry.put_blob("library/app", &filling);
    let builder = Mirror::builder().upstream("docker.io", &registry).set("fill", "unverified_ranges", "\"wait\"");
    let mirror = builder.start().await;
    let gate = registry.gate_body(On::blob(&filling.digest), 2_000_000);
    let path = blob("library/app", &filling.digest);
    let mut leader = mirror.connect().await;
    leader.send(&Request::get(&path)).await;
    gate.arrived().await;
    let mut range = mirror.connect().await;
    range.send(&Request::get(&path).range("bytes=1000000-1000999")).await;
    gate.open();
    let range = range.answer().await;
    check_part(&filling, "bytes=1000000-1000999", Part::Bytes(1_000_000, 1_000_999), &range);
    assert!(!range.header("cache-status").unwrap().contains("unverified"), "{:?}", range.head);
    leader.answer().await.assert_ok(&filling.bytes);
    mirror.finish().await;
}
