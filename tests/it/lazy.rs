//! Lazy pulling: a few bytes of a blob that is not held cost a few bytes upstream, whatever the blob's size.

use crate::support::client::{End, Request};
use crate::support::images::{Blob, Image, noise};
use crate::support::mirror::{Mirror, blob, manifest};
use crate::support::multipart::parts;
use crate::support::registry::{Fault, Kind, On, Registry};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What is fetched for a small range begins and ends at multiples of this.
const BLOCK: usize = 256 * KIB;

/// A registry with an image of one layer of `size`, and a mirror, which knows how large the layer is where `announced`.
async fn world(size: usize, announced: bool) -> (Registry, Mirror, Blob) {
    let registry = Registry::builder().redirect_blobs().start().await;
    let image = Image::new(1, &[size]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    if announced {
        mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    }
    (registry, mirror, image.layers[0].clone())
}

/// Body bytes that the CDN has sent.
fn sent(registry: &Registry) -> u64 {
    registry.body_bytes(&On::kind(Kind::Cdn).get())
}

/// Asks for one range, which must be answered exactly.
async fn check_range(mirror: &Mirror, wanted: &Blob, first: usize, len: usize) {
    let last = first + len - 1;
    let request = Request::get(blob("library/app", &wanted.digest)).range(format!("bytes={first}-{last}"));
    let answer = mirror.send(&request).await;
    let expected = format!("bytes {first}-{last}/{}", wanted.len());
    assert_eq!((answer.status(), answer.end), (206, End::Complete), "{:?}", answer.head);
    assert_eq!(answer.header("content-range"), Some(expected.as_str()));
    assert!(answer.body == wanted.bytes.slice(first..=last), "the bytes of {first}-{last} differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_ranges_of_a_cold_blob_fetch_their_blocks_and_start_no_download() {
    const COUNT: usize = 12;
    const LEN: usize = 50_000;
    for announced in [true, false] {
        let (registry, mirror, layer) = world(64 * MIB, announced).await;
        for number in 0..COUNT {
            check_range(&mirror, &layer, (number * 23_456_789) % (63 * MIB), LEN).await;
        }
        // No more than the blocks that hold what was asked for, which a range may touch two of.
        let lazily = sent(&registry);
        assert!(lazily <= (COUNT * 2 * BLOCK) as u64, "{lazily} bytes for {COUNT} ranges");
        assert!(lazily <= (10 * COUNT * LEN) as u64, "{lazily} bytes for {COUNT} ranges of {LEN}");
        mirror.idle().await;
        assert_eq!((sent(&registry), mirror.holds(&layer.digest)), (lazily, false), "no download was begun");
        let used = mirror.holdings();
        assert!(used.present_bytes + used.reserved_bytes < 16 * MIB as u64, "only what was fetched counts: {used:?}");
        // What was fetched is kept: the same ranges again cost nothing, and the whole costs what is missing.
        check_range(&mirror, &layer, 23_456_789 % (63 * MIB), LEN).await;
        assert_eq!(sent(&registry), lazily);
        mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
        assert_eq!(sent(&registry), layer.len() as u64, "each byte once");
        mirror.idle().await;
        assert!(mirror.holds(&layer.digest));
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_costs_a_block_and_says_that_it_is_unverified() {
    for announced in [true, false] {
        let (registry, mirror, layer) = world(40 * MIB, announced).await;
        for range in ["bytes=0-1", "bytes=0-0", "bytes=1-1"] {
            let answer = mirror.send(&Request::get(blob("library/app", &layer.digest)).range(range)).await;
            assert_eq!((answer.status(), answer.end), (206, End::Complete), "{range}: {:?}", answer.head);
            assert!(answer.header("content-range").unwrap().ends_with(&format!("/{}", layer.len())));
            assert!(answer.header("cache-status").unwrap().contains("detail=unverified"), "{:?}", answer.head);
        }
        mirror.idle().await;
        assert!(sent(&registry) <= BLOCK as u64, "{} bytes for three probes", sent(&registry));
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_of_many_large_blobs_push_nothing_out() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[10 * MIB, 8 * MIB]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::builder().upstream("docker.io", &registry).capacity("32MiB").start().await;
    mirror.pull("library/app", "v1", &image).await;
    mirror.idle().await;
    // Nobody reads these to their end, so nobody notices that none of them is what its digest says.
    let large = noise(2, 24 * MIB);
    for number in 0..30_u64 {
        let digest = crate::support::images::sha256(&number.to_le_bytes());
        registry.put_blob_as("library/app", &digest, large.clone());
        let answer = mirror.send(&Request::get(blob("library/app", &digest)).range("bytes=0-1")).await;
        assert_eq!((answer.status(), &answer.body), (206, &large.slice(..2)), "{:?}", answer.head);
    }
    mirror.idle().await;
    assert!(image.layers.iter().all(|layer| mirror.holds(&layer.digest)), "{:?}", mirror.holdings());
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_add_up_to_a_good_part_of_a_blob_have_the_rest_fetched() {
    let (registry, mirror, layer) = world(24 * MIB, true).await;
    for number in 0..8 {
        check_range(&mirror, &layer, 3 * number * MIB, MIB).await;
    }
    mirror.idle().await;
    assert!(mirror.holds(&layer.digest), "a third was wanted, so all of it will be");
    assert_eq!(sent(&registry), layer.len() as u64, "each byte once");
    registry.go_down().await;
    mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_small_ranges_in_one_request_cost_their_blocks() {
    let (registry, mirror, layer) = world(64 * MIB, true).await;
    let ranges: Vec<_> = (0..20).map(|number| (number * 3 * MIB + 1000, number * 3 * MIB + 50_999)).collect();
    let header: Vec<_> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    let request = Request::get(blob("library/app", &layer.digest)).range(format!("bytes={}", header.join(",")));
    for _ in ["cold", "lazily held"] {
        let answer = mirror.send(&request).await;
        let got = parts(&answer);
        assert_eq!(got.len(), ranges.len());
        for (part, (first, last)) in got.iter().zip(&ranges) {
            assert!(part.bytes == layer.bytes.slice(*first..=*last), "{first}-{last}");
        }
        mirror.idle().await;
        assert!(sent(&registry) <= (20 * BLOCK) as u64, "{} bytes for 20 ranges", sent(&registry));
    }
    assert!(!mirror.holds(&layer.digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_lazily_and_is_wrong_is_never_committed_nor_part_of_a_complete_response() {
    let (registry, mirror, layer) = world(40 * MIB, true).await;
    registry.fault(On::cdn(&layer.digest).get(), Fault::Corrupt(5 * MIB as u64));
    let path = blob("library/app", &layer.digest);
    let answer = mirror.send(&Request::get(&path).range(format!("bytes={}-{}", 5 * MIB, 5 * MIB + 99))).await;
    assert_eq!((answer.status(), answer.end), (206, End::Complete));
    assert!(answer.header("cache-status").unwrap().contains("detail=unverified"), "{:?}", answer.head);
    registry.heal();
    let mut whole = mirror.connect().await;
    whole.send(&Request::get(&path)).await;
    if whole.head().await.status == 200 {
        let (bytes, end) = whole.rest().await;
        assert!(end == End::Short || bytes == layer.bytes, "a wrong byte in a complete response");
    }
    mirror.idle().await;
    mirror.get_once_well(&path).await.assert_ok(&layer.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_ranges_wait_for_the_digest_where_the_operator_says_so() {
    let registry = Registry::start().await;
    let layer = Blob::noise(1, 20 * MIB);
    registry.put_blob("library/app", &layer);
    let builder = Mirror::builder().upstream("docker.io", &registry).set("fill", "unverified_ranges", "\"wait\"");
    let mirror = builder.start().await;
    check_range(&mirror, &layer, 7 * MIB, 50_000).await;
    mirror.idle().await;
    assert!(mirror.holds(&layer.digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_address_that_expires_between_small_ranges_is_asked_for_again() {
    let (registry, mirror, layer) = world(40 * MIB, true).await;
    check_range(&mirror, &layer, 1000, 50_000).await;
    let asked = registry.count(&On::blob(&layer.digest).get());
    check_range(&mirror, &layer, 9 * MIB, 50_000).await;
    assert_eq!(registry.count(&On::blob(&layer.digest).get()), asked, "the CDN's address is known");
    registry.expire_signatures();
    check_range(&mirror, &layer, 18 * MIB, 50_000).await;
    assert_eq!(registry.count(&On::blob(&layer.digest).get()), asked + 1, "asked for once more");
    mirror.finish().await;
}
