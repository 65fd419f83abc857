//! What upstreams do wrong, byte by byte: never committed, never a complete response, never a lie to the client.

use crate::support::client::{Answer, End, Request};
use crate::support::images::{Blob, DOCKER_MANIFEST, Image, OCI_INDEX, sha256};
use crate::support::mirror::{Mirror, blob, manifest};
use crate::support::registry::{Fault, Kind, On, Registry};
use crate::support::{all, until};

const MIB: usize = 1024 * 1024;

/// How much of the end of a large blob is held back until the whole is verified.
const TAIL: usize = 64 * 1024;

/// The length of the blob that is broken at every byte.
const SMALL: usize = 97;

/// A mirror and a registry that holds one image of one layer, which the mirror has not seen yet.
async fn world(layer: usize) -> (Registry, Mirror, Image) {
    let registry = Registry::start().await;
    let image = Image::new(1, &[layer]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::builder()
        .upstream("docker.io", &registry)
        .upstream_set("docker.io", "header_timeout", "\"30s\"")
        .upstream_set("docker.io", "read_timeout", "\"400ms\"")
        .set("server", "client_header_timeout", "\"2s\"")
        .start()
        .await;
    (registry, mirror, image)
}

/// Fails unless this is an honest server error that clients fall back from.
#[track_caller]
fn assert_upstream_trouble(answer: &Answer, statuses: &[u16]) {
    let context = format!("{:?} {}", answer.head, answer.text().chars().take(300).collect::<String>());
    assert!(statuses.contains(&answer.status()), "not {statuses:?}: {context}");
    assert_eq!(answer.end, End::Complete, "{context}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{context}");
    assert!(answer.error_message().contains("docker.io"), "the upstream is not named: {context}");
    assert!(answer.error_message().contains("docker.io/library/app"), "what was asked for is not named: {context}");
    assert_eq!(answer.header("www-authenticate"), None, "{context}");
}

/// Asks for a blob of its own for each fault, which befalls all answers about it, and checks that none is believed.
async fn small_blobs_suffer(faults: impl Iterator<Item = (Fault, &'static str)>) {
    let (registry, mirror, _) = world(10).await;
    let mut asked = Vec::new();
    for (n, (fault, what)) in (0u64..).zip(faults) {
        let victim = Blob::noise(n, SMALL);
        registry.put_blob("library/app", &victim);
        registry.fault(On::blob(&victim.digest), fault.clone());
        asked.push((victim, fault, what));
    }
    let addr = mirror.addr();
    for batch in asked.chunks(20) {
        let requests: Vec<_> =
            batch.iter().map(|(victim, ..)| Request::get(blob("library/app", &victim.digest))).collect();
        let answers =
            all(requests.into_iter().map(|request| async move { crate::support::client::send(addr, &request).await }));
        for (answer, (_, fault, what)) in answers.await.iter().zip(batch) {
            assert!([502, 503].contains(&answer.status()), "{what} {fault:?}: {:?}", answer.head);
            assert_upstream_trouble(answer, &[502, 503]);
        }
    }
    mirror.idle().await;
    for (victim, fault, what) in &asked {
        assert!(!mirror.holds(&victim.digest), "{what} {fault:?} was committed");
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_corrupted_at_any_byte_is_refused() {
    small_blobs_suffer((0..SMALL as u64).map(|at| (Fault::Corrupt(at), "corrupt"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_cut_at_any_byte_is_refused() {
    small_blobs_suffer((0..SMALL as u64).map(|at| (Fault::Cut(at), "cut"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_reset_at_any_byte_is_refused() {
    small_blobs_suffer((0..SMALL as u64).map(|at| (Fault::Reset(at), "reset"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_of_any_wrong_length_is_refused() {
    let longer = (1..=SMALL).map(|extra| (Fault::Overlong(extra), "over-long"));
    let said_shorter = (0..SMALL as u64).map(|said| (Fault::ContentLength(said), "said to be shorter"));
    let said_longer = (1..=9).map(|extra| (Fault::ContentLength(SMALL as u64 + extra), "said to be longer"));
    small_blobs_suffer(longer.chain(said_shorter).chain(said_longer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_without_a_length_is_checked_all_the_same() {
    for framing in [Fault::NoLength, Fault::Chunked] {
        let (registry, mirror, image) = world(SMALL).await;
        let layer = &image.layers[0];
        let path = blob("library/app", &layer.digest);
        registry.fault(On::blob(&layer.digest), framing.clone());
        registry.fault(On::blob(&layer.digest).once(), Fault::Cut(50));
        assert_upstream_trouble(&mirror.get(&path).await, &[502, 503]);
        let another = Blob::noise(77, SMALL);
        registry.put_blob("library/app", &another);
        registry.fault(On::blob(&another.digest), framing);
        mirror.get(&blob("library/app", &another.digest)).await.assert_ok(&another.bytes);
        assert!(!mirror.holds(&layer.digest));
        mirror.finish().await;
    }
}

/// Asks for a large blob under a fault. The answer is an error, or a body that ends short by FIN and holds nothing that
/// upstream did not send.
async fn large_blob_suffers(fault: Fault, sent: &dyn Fn(&Blob) -> Vec<u8>, manifest_first: bool) {
    let (registry, mirror, image) = world(3 * MIB).await;
    let layer = &image.layers[0];
    if manifest_first {
        mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    }
    registry.fault(On::blob(&layer.digest), fault.clone());
    let path = blob("library/app", &layer.digest);
    let answer = mirror.get(&path).await;
    if answer.status() == 200 {
        assert_eq!(answer.end, End::Short, "{fault:?} {:?}", answer.head);
        let sent = sent(layer);
        assert!(sent.starts_with(&answer.body), "{fault:?}: foreign bytes among {}", answer.body.len());
        let announced: usize = answer.header("content-length").unwrap().parse().unwrap();
        assert!(answer.body.len() <= announced - TAIL, "{fault:?}: {} of {announced}", answer.body.len());
    } else {
        assert_upstream_trouble(&answer, &[502, 503]);
    }
    mirror.idle().await;
    assert!(!mirror.holds(&layer.digest), "{fault:?} was committed");
    registry.heal();
    if matches!(fault, Fault::Cut(_)) {
        mirror.get_once_well(&path).await.assert_ok(&layer.bytes);
    } else {
        // Wrong content is remembered for a while, so that a client that resumes moves on to its next host.
        let resumed = mirror.send(&Request::get(&path).range("bytes=1000-")).await;
        assert_upstream_trouble(&resumed, &[502, 503]);
    }
    mirror.finish().await;
}

/// Positions in the large blob where something could be off by one.
const POSITIONS: [usize; 10] =
    [0, 1, TAIL - 1, TAIL, MIB - 1, MIB, 2 * MIB + 17, 3 * MIB - TAIL - 1, 3 * MIB - TAIL, 3 * MIB - 1];

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_corrupted_somewhere_never_ends_as_a_complete_response() {
    for at in POSITIONS {
        let corrupted = move |layer: &Blob| {
            let mut bytes = layer.bytes.to_vec();
            bytes[at] ^= 0xff;
            bytes
        };
        large_blob_suffers(Fault::Corrupt(at as u64), &corrupted, at % 2 == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_bytes_of_a_large_blob_wait_for_its_digest() {
    let (registry, mirror, image) = world(3 * MIB).await;
    let layer = &image.layers[0];
    let gate = registry.gate_body(On::blob(&layer.digest), layer.len() as u64 - 1);
    registry.fault(On::blob(&layer.digest), Fault::Corrupt(layer.len() as u64 - 1));
    let mut client = mirror.connect().await;
    client.send(&Request::get(blob("library/app", &layer.digest))).await;
    assert_eq!(client.head().await.status, 200);
    assert!(client.take(layer.len() - TAIL).await == layer.bytes.slice(..layer.len() - TAIL));
    gate.arrived().await;
    // All but one byte has left upstream. Whatever the mirror would pass on too early, it has time to now.
    for _ in 0..20 {
        mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    }
    gate.open();
    let (rest, end) = client.rest().await;
    assert_eq!((rest.len(), end), (0, End::Short));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_cut_or_reset_anywhere_is_resumed_and_the_client_sees_nothing_of_it() {
    for at in POSITIONS {
        for fault in [Fault::Cut(at as u64), Fault::Reset(at as u64)] {
            let (registry, mirror, image) = world(3 * MIB).await;
            let layer = &image.layers[0];
            registry.fault(On::blob(&layer.digest).once(), fault);
            mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
            mirror.idle().await;
            assert!(mirror.holds(&layer.digest));
            // What a reset takes with it on its way is not known here.
            let sent = registry.body_bytes(&On::blob(&layer.digest));
            assert!(sent <= 2 * layer.len() as u64, "{sent} after {at}");
            mirror.finish().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_that_never_gets_far_ends_short_with_a_right_prefix() {
    for at in [100_000, TAIL] {
        large_blob_suffers(Fault::Cut(at as u64), &|layer| layer.bytes.to_vec(), false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_a_manifest_says_is_large_comes_in_segments_and_each_byte_once() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[20 * MIB]);
    registry.put_image("library/app", "v1", &image);
    let builder = Mirror::builder().upstream("docker.io", &registry);
    let mirror = builder.set("fill", "parallel_above", "\"2MiB\"").start().await;
    mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    let layer = &image.layers[0];
    registry.fault(On::blob(&layer.digest).once(), Fault::Cut(3 * MIB as u64));
    mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    mirror.idle().await;
    assert_eq!(registry.body_bytes(&On::blob(&layer.digest)), layer.len() as u64, "each byte once, whatever broke");
    assert!(registry.count(&On::blob(&layer.digest)) > 3, "in several requests");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_that_is_too_long_never_ends_as_a_complete_response() {
    for extra in [1, TAIL - 1, TAIL, TAIL + 1, MIB] {
        for manifest_first in [true, false] {
            let sent = move |layer: &Blob| [layer.bytes.as_ref(), &vec![b'x'; extra]].concat();
            large_blob_suffers(Fault::Overlong(extra), &sent, manifest_first).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_of_unknown_length_is_streamed_and_ends_short_when_cut() {
    for framing in [Fault::NoLength, Fault::Chunked] {
        let (registry, mirror, _) = world(10).await;
        let (good, bad) = (Blob::noise(2, 3 * MIB), Blob::noise(3, 3 * MIB));
        for layer in [&good, &bad] {
            registry.put_blob("library/app", layer);
            registry.fault(On::blob(&layer.digest), framing.clone());
        }
        registry.fault(On::blob(&bad.digest), Fault::Cut(2 * MIB as u64));
        mirror.get(&blob("library/app", &good.digest)).await.assert_ok(&good.bytes);
        let cut = mirror.get(&blob("library/app", &bad.digest)).await;
        assert!(cut.end == End::Short || cut.status() >= 500, "{:?}", cut.head);
        assert!(cut.status() >= 500 || bad.bytes.starts_with(&cut.body));
        mirror.idle().await;
        assert!(mirror.holds(&good.digest) && !mirror.holds(&bad.digest));
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_who_follows_a_fill_that_fails_gets_a_short_body_and_a_right_prefix() {
    let (registry, mirror, image) = world(3 * MIB).await;
    let layer = &image.layers[0];
    let gate = registry.gate_body(On::blob(&layer.digest), 2 * MIB as u64);
    registry.fault(On::blob(&layer.digest), Fault::Cut(2 * MIB as u64 + 5));
    let mut readers = Vec::new();
    for _ in 0..10 {
        let mut connection = mirror.connect().await;
        connection.send(&Request::get(blob("library/app", &layer.digest))).await;
        assert_eq!(connection.head().await.status, 200);
        assert_eq!(connection.take(MIB).await, layer.bytes.slice(..MIB));
        readers.push(connection);
    }
    // What broke off can't be resumed.
    registry.delete_blob("library/app", &layer.digest);
    gate.open();
    for mut connection in readers {
        let (rest, end) = connection.rest().await;
        assert_eq!(end, End::Short);
        assert!(layer.bytes[MIB..].starts_with(&rest));
    }
    mirror.idle().await;
    assert!(!mirror.holds(&layer.digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_coming_is_resumed_and_its_client_waits() {
    let (registry, mirror, image) = world(3 * MIB).await;
    let layer = &image.layers[0];
    let gate = registry.gate_body(On::blob(&layer.digest).once(), 2 * MIB as u64);
    let path = blob("library/app", &layer.digest);
    mirror.get(&path).await.assert_ok(&layer.bytes);
    gate.open();
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_for_people_and_compressed_bodies_are_refused() {
    for fault in [Fault::Html, Fault::Gzip] {
        let (registry, mirror, image) = world(2000).await;
        mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
        let layer = &image.layers[0];
        registry.fault(On::blob(&layer.digest), fault.clone());
        let other = Image::new(2, &[]);
        registry.put_image("library/app", "v2", &other);
        registry.fault(On::manifest("v2"), fault.clone());
        registry.fault(On::manifest(&other.manifest.digest), fault);
        assert_upstream_trouble(&mirror.get(&blob("library/app", &layer.digest)).await, &[502, 503]);
        assert_upstream_trouble(&mirror.get(&manifest("library/app", "v2")).await, &[502, 503]);
        assert_upstream_trouble(&mirror.get(&manifest("library/app", &other.manifest.digest)).await, &[502, 503]);
        registry.heal();
        mirror.get_once_well(&manifest("library/app", "v2")).await.assert_ok(&other.manifest.bytes);
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    let (registry, mirror, image) = world(10).await;
    let digest = &image.manifest.digest;
    for fault in [Fault::Corrupt(20), Fault::Overlong(1), Fault::Cut(100), Fault::Body(b"{}"), Fault::Body(b"")] {
        registry.fault(On::manifest(digest).get(), fault.clone());
        assert_upstream_trouble(&mirror.get(&manifest("library/app", digest)).await, &[502, 503]);
        assert_upstream_trouble(&mirror.get(&manifest("library/app", "v1")).await, &[502, 503]);
        registry.heal();
    }
    mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_digest_or_proper_type_is_completed_from_its_bytes() {
    let (registry, mirror, _) = world(10).await;
    let docker = Image::docker(2, &[10]);
    registry.put_image("library/app", "v2", &docker);
    registry.fault(On::kind(Kind::Manifest), Fault::Without("Docker-Content-Digest"));
    registry.fault(On::kind(Kind::Manifest), Fault::With("Content-Type", "text/plain; charset=utf-8".to_owned()));
    for request in [Request::head(manifest("library/app", "v2")), Request::get(manifest("library/app", "v2"))] {
        let answer = mirror.send(&request).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_eq!(answer.header("docker-content-digest"), Some(docker.manifest.digest.as_str()));
        assert_eq!(answer.header("content-type"), Some(DOCKER_MANIFEST));
        assert_eq!(answer.header("content-length"), Some(docker.manifest.bytes.len().to_string().as_str()));
    }
    // A digest header that lies is worse than none.
    let third = Image::new(3, &[10]);
    registry.put_image("library/app", "v3", &third);
    registry.heal();
    registry.fault(On::kind(Kind::Manifest), Fault::With("Docker-Content-Digest", sha256(b"a lie")));
    let answer = mirror.get(&manifest("library/app", "v3")).await;
    if answer.status() == 200 {
        answer.assert_ok(&third.manifest.bytes);
        assert_eq!(answer.header("docker-content-digest"), Some(third.manifest.digest.as_str()));
    } else {
        assert!((500..=504).contains(&answer.status()) || answer.status() == 404, "{:?}", answer.head);
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_with_parameters_is_passed_on_without() {
    let (registry, mirror, image) = world(10).await;
    let with = format!("{}; charset=utf-8", image.manifest.media_type);
    registry.fault(On::kind(Kind::Manifest), Fault::With("Content-Type", with));
    let answer = mirror.get(&manifest("library/app", "v1")).await;
    assert_eq!(answer.header("content-type"), Some(image.manifest.media_type.as_str()));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_failure_of_upstream_becomes_a_404_or_is_remembered_as_one() {
    for status in [400, 408, 429, 500, 502, 503, 504, 522] {
        let (registry, mirror, image) = world(2000).await;
        registry.fault(On::any(), Fault::status(status));
        let layer = &image.layers[0];
        let digest = &image.manifest.digest;
        let paths = [
            manifest("library/app", "v1"),
            manifest("library/app", digest),
            blob("library/app", &layer.digest),
            "/v2/library/app/tags/list?ns=docker.io".to_owned(),
            format!("/v2/library/app/referrers/{digest}?ns=docker.io"),
        ];
        for path in &paths {
            // 400 is how some registries say that they have no referrers API; the fallback tag fails as well here.
            assert_upstream_trouble(&mirror.get(path).await, &[502, 503, 504]);
        }
        for path in &paths[..3] {
            let head = mirror.head(path).await;
            assert!([502, 503, 504].contains(&head.status()), "HEAD {path} for {status}: {:?}", head.head);
        }
        registry.heal();
        mirror.get_once_well(&paths[0]).await.assert_ok(&image.manifest.bytes);
        mirror.get_once_well(&paths[2]).await.assert_ok(&layer.bytes);
        for path in &paths[3..] {
            mirror.get_once_well(path).await;
        }
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_upstream_is_a_503_here_and_says_when_to_come_back() {
    for retry_after in [None, Some("1")] {
        let (registry, mirror, image) = world(2000).await;
        registry.fault(On::any(), Fault::too_many_requests(retry_after));
        for path in [manifest("library/app", "v1"), blob("library/app", &image.layers[0].digest)] {
            let answer = mirror.get(&path).await;
            assert_upstream_trouble(&answer, &[503]);
            assert_eq!(answer.error_code(), "TOOMANYREQUESTS");
            let seconds: u64 = answer.header("retry-after").expect("Retry-After").parse().unwrap();
            assert!((1..=60).contains(&seconds), "{seconds}");
        }
        registry.heal();
        mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_down_is_a_server_error_until_it_is_back() {
    let (registry, mirror, image) = world(2000).await;
    registry.go_down().await;
    let layer = &image.layers[0];
    for path in [manifest("library/app", "v1"), blob("library/app", &layer.digest)] {
        assert_upstream_trouble(&mirror.get(&path).await, &[502, 503, 504]);
    }
    registry.come_back().await;
    mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    mirror.get_once_well(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_upstream_hangs_up_is_a_server_error() {
    let (registry, mirror, image) = world(2000).await;
    registry.fault(On::any(), Fault::HangUp);
    assert_upstream_trouble(&mirror.get(&manifest("library/app", "v1")).await, &[502, 503, 504]);
    registry.heal();
    mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_head_is_a_504_for_the_client_and_the_retry_hits() {
    let (registry, mirror, image) = world(3 * MIB).await;
    let layer = &image.layers[0];
    let blob_gate = registry.gate_blob(&layer.digest);
    let path = blob("library/app", &layer.digest);
    let late = mirror.get(&path).await;
    assert_upstream_trouble(&late, &[504]);
    blob_gate.open();
    mirror.idle().await;
    let retried = mirror.get(&path).await;
    retried.assert_ok(&layer.bytes);
    assert_eq!(retried.header("cache-status"), Some("cachalot; hit"));
    assert_eq!(registry.count(&On::blob(&layer.digest).get()), 1, "the fill went on waiting");

    let tag_gate = registry.gate(On::kind(Kind::Manifest));
    assert_upstream_trouble(&mirror.get(&manifest("library/app", "v1")).await, &[504]);
    tag_gate.open();
    mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_never_answers_is_a_504_and_not_remembered() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::builder()
        .upstream("docker.io", &registry)
        .upstream_set("docker.io", "header_timeout", "\"250ms\"")
        .start()
        .await;
    let gate = registry.gate(On::any());
    let digest = &image.manifest.digest;
    let layer = &image.layers[0];
    for path in [
        manifest("library/app", "v1"),
        manifest("library/app", digest),
        blob("library/app", &layer.digest),
        "/v2/library/app/tags/list?ns=docker.io".to_owned(),
        format!("/v2/library/app/referrers/{digest}?ns=docker.io"),
    ] {
        assert_upstream_trouble(&mirror.get(&path).await, &[504]);
        assert_eq!(mirror.head(&path).await.status(), 504, "HEAD {path}");
    }
    registry.heal();
    gate.open();
    mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    mirror.get_once_well(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_does_not_have_is_remembered_for_a_while() {
    let (registry, mirror, _) = world(10).await;
    let nothing = Blob::noise(9, 10);
    for path in [manifest("library/app", "v9"), blob("library/app", &nothing.digest)] {
        assert_eq!(mirror.get(&path).await.status(), 404);
        let asked = registry.count(&On::any());
        for _ in 0..5 {
            assert_eq!(mirror.get(&path).await.status(), 404);
            assert_eq!(mirror.head(&path).await.status(), 404);
        }
        assert_eq!(registry.count(&On::any()), asked, "{path}");
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_did_not_have_is_found_when_it_has_come() {
    let registry = Registry::start().await;
    registry.put_image("library/app", "v1", &Image::new(1, &[]));
    let builder = Mirror::builder().upstream("docker.io", &registry).set("tags", "negative_ttl", "\"50ms\"");
    let mirror = builder.start().await;
    let image = Image::new(2, &[100]);
    assert_eq!(mirror.get(&manifest("library/app", "v2")).await.status(), 404);
    registry.put_image("library/app", "v2", &image);
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
    crate::support::within("the new tag is seen", async {
        while mirror.get(&manifest("library/app", "v2")).await.status() != 200 {
            ticks.tick().await;
        }
    })
    .await;
    mirror.pull("library/app", "v2", &image).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_refuses_heads_is_asked_otherwise() {
    for status in [401, 403, 405] {
        let (registry, mirror, image) = world(2000).await;
        registry.fault(On::kind(Kind::Blob).head(), Fault::status(status));
        let odd = Blob::noise(5, 3000);
        registry.put_blob("library/app", &odd);
        for size in [&odd, &image.layers[0]] {
            let head = mirror.head(&blob("library/app", &size.digest)).await;
            assert_eq!(head.status(), 200, "{status}: {:?}", head.head);
            assert_eq!(head.header("content-length"), Some(size.len().to_string().as_str()));
            assert_eq!(head.header("docker-content-digest"), Some(size.digest.as_str()));
        }
        assert!(registry.body_bytes(&On::kind(Kind::Blob)) <= 2000, "a HEAD does not download");
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_and_manifests_are_found_behind_redirects_that_expire() {
    let registry = Registry::builder().redirect_blobs().redirect_manifests().start().await;
    let image = Image::new(1, &[2000, 2 * MIB]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    mirror.get(&blob("library/app", &image.layers[0].digest)).await.assert_ok(&image.layers[0].bytes);
    registry.expire_signatures();
    mirror.pull("library/app", "v1", &image).await;
    // The addresses of the CDN and their signatures are nobody's business.
    registry.fault(On::kind(Kind::Cdn), Fault::ForeignStatus(403));
    let refused = Blob::noise(9, 500);
    registry.put_blob("library/app", &refused);
    let answer = mirror.get(&blob("library/app", &refused.digest)).await;
    assert!((500..=504).contains(&answer.status()) || answer.status() == 404, "{:?}", answer.head);
    assert!(!answer.text().contains("Signature"), "{}", answer.text());
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_without_challenge_is_a_404_that_names_the_status_and_is_not_remembered() {
    let (registry, mirror, image) = world(2000).await;
    for status in [401, 403] {
        registry.fault(On::any(), Fault::status(status));
        for path in [manifest("library/app", "v1"), blob("library/app", &image.layers[0].digest)] {
            let answer = mirror.get(&path).await;
            assert_eq!((answer.status(), answer.error_code().as_str()), (404, "NAME_UNKNOWN"), "{}", answer.text());
            assert!(answer.error_message().contains(&status.to_string()), "{}", answer.text());
        }
        registry.heal();
    }
    mirror.pull("library/app", "v1", &image).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_upstream_answers_with_the_whole_is_still_answered_exactly() {
    let (registry, mirror, image) = world(2 * MIB).await;
    registry.fault(On::any(), Fault::IgnoreRange);
    let layer = &image.layers[0];
    let request = Request::get(blob("library/app", &layer.digest)).range("bytes=1000000-1000099");
    let answer = mirror.send(&request).await;
    assert_eq!((answer.status(), answer.end), (206, End::Complete));
    assert_eq!(answer.body, layer.bytes.slice(1_000_000..1_000_100));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_file_that_vanishes_or_shrinks_is_healed_and_no_clients_trouble() {
    for size in [2000, 3 * MIB] {
        for shrunk_to in [None, Some(1000)] {
            let (_registry, mirror, image) = world(size).await;
            mirror.pull("library/app", "v1", &image).await;
            mirror.idle().await;
            // A restart, so that nothing is in memory or open.
            let mirror = mirror.stop().await.start().await;
            let layer = &image.layers[0];
            let file = mirror.site().blob_file(&layer.digest);
            std::fs::remove_file(&file).unwrap();
            if let Some(len) = shrunk_to {
                std::fs::write(&file, &layer.bytes[..len]).unwrap();
            }
            let path = blob("library/app", &layer.digest);
            let healed = mirror.get(&path).await;
            healed.assert_ok(&layer.bytes);
            assert_eq!(healed.header("cache-status"), Some("cachalot; fwd=miss; stored"));
            until("the blob is held again", || mirror.holds(&layer.digest)).await;
            mirror.get(&path).await.assert_ok(&layer.bytes);
            mirror.finish().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_stale_when_upstream_fails_and_never_an_invented_empty_list() {
    let (registry, mirror, image) = world(10).await;
    let signature = Image::artifact(2, "application/x-signature", &image.manifest);
    registry.put_untagged("library/app", &signature);
    mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    let path = format!("/v2/library/app/referrers/{}?ns=docker.io", image.manifest.digest);
    let listed = mirror.get(&path).await;
    assert_eq!(listed.json()["manifests"][0]["digest"], signature.manifest.digest.as_str());
    registry.fault(On::any(), Fault::status(503));
    let never = format!("/v2/library/app/referrers/{}?ns=docker.io", signature.manifest.digest);
    assert_upstream_trouble(&mirror.get(&never).await, &[502, 503, 504]);
    let site = mirror.stop().await;
    registry.go_down().await;
    let mirror = site.start().await;
    let stale = mirror.get(&path).await;
    assert_eq!((stale.status(), stale.header("content-type")), (200, Some(OCI_INDEX)), "{}", stale.text());
    assert_eq!(stale.json()["manifests"], listed.json()["manifests"]);
    assert_upstream_trouble(&mirror.get(&never).await, &[502, 503, 504]);
    mirror.finish().await;
}
