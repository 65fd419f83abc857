//! Large blobs in segments over several connections, and all that can go wrong with one of them.

use std::sync::Arc;

use cachalot::store::Op;
use rustix::io::Errno;

use crate::support::client::{Connection, End, Request};
use crate::support::images::{Blob, Image};
use crate::support::mirror::{Builder, FailingDisk, Mirror, blob, manifest};
use crate::support::registry::{Fault, Kind, On, Registry};
use crate::support::{all, until};

const MIB: usize = 1024 * 1024;

/// What one request fetches of a large blob.
const SEGMENT: usize = 8 * MIB;

/// Three segments and a piece.
const LARGE: usize = 3 * SEGMENT + 12_345;

fn builder(registry: &Registry) -> Builder {
    Mirror::builder().upstream("docker.io", registry).set("fill", "parallel_above", "\"16MiB\"")
}

/// Has the mirror know how large the image's layer is, which is the last thing before its blob is asked for.
async fn announce(mirror: &Mirror, image: &Image) {
    mirror.get(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
}

/// A registry with an image of one large layer, which it serves itself, and a mirror that knows how large it is.
async fn world(image: &Image, configure: impl FnOnce(Builder) -> Builder) -> (Registry, Mirror) {
    let registry = Registry::start().await;
    registry.put_image("library/app", "v1", image);
    let mirror = configure(builder(&registry)).start().await;
    announce(&mirror, image).await;
    (registry, mirror)
}

/// GETs of the layer.
fn gets(layer: &Blob) -> On {
    On::blob(&layer.digest).get()
}

/// How many bytes were asked for more than once.
fn asked_twice(registry: &Registry, on: &On, size: usize) -> u64 {
    let asked: u64 = registry
        .seen(on)
        .iter()
        .map(|seen| seen.range().map_or(size as u64, |(first, last)| last.unwrap_or(size as u64 - 1) + 1 - first))
        .sum();
    asked - size as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_answered_with_anything_else_costs_time_and_no_client_notices() {
    let wrong_range = |text: String| Fault::With("Content-Range", text);
    let (second, end) = (SEGMENT, 2 * SEGMENT - 1);
    let faults = [
        ("the whole blob", Fault::IgnoreRange),
        ("a wrong total", wrong_range(format!("bytes {second}-{end}/{}", LARGE + 1))),
        ("a wrong offset", wrong_range(format!("bytes {}-{}/{LARGE}", second + 1, end + 1))),
        ("no range", Fault::Without("Content-Range")),
        ("a page for people", Fault::Html),
        ("a compressed body", Fault::Gzip),
        ("a refusal", Fault::status(403)),
        ("not found", Fault::status(404)),
        ("a server error", Fault::status(503)),
        ("too many requests", Fault::too_many_requests(Some("1"))),
        ("nothing", Fault::HangUp),
        ("a body that breaks off", Fault::Cut(3 * MIB as u64 + 1)),
        ("a reset", Fault::Reset(3 * MIB as u64 + 1)),
        ("a body that is too long", Fault::Overlong(1)),
    ];
    let image = Image::new(1, &[LARGE]);
    let layer = &image.layers[0];
    for (what, fault) in faults {
        let (registry, mirror) = world(&image, |builder| builder).await;
        registry.fault(gets(layer).starting_at(SEGMENT as u64).once(), fault);
        let answer = mirror.get(&blob("library/app", &layer.digest)).await;
        assert_eq!((answer.status(), answer.end), (200, End::Complete), "{what}: {:?}", answer.head);
        answer.assert_ok(&layer.bytes);
        mirror.idle().await;
        assert!(mirror.holds(&layer.digest), "{what}");
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_expire_between_segments_are_asked_for_again() {
    let registry = Registry::builder().redirect_blobs().start().await;
    let image = Image::new(1, &[LARGE]);
    registry.put_image("library/app", "v1", &image);
    let mirror = builder(&registry).start().await;
    announce(&mirror, &image).await;
    let layer = &image.layers[0];
    let gate = registry.gate_body(On::cdn(&layer.digest).starting_at(0), SEGMENT as u64 / 2);
    let mut client = mirror.connect().await;
    client.send(&Request::get(blob("library/app", &layer.digest))).await;
    gate.arrived().await;
    // From now on the CDN answers 403 to every address that it has signed so far.
    registry.expire_signatures();
    gate.open();
    client.answer().await.assert_ok(&layer.bytes);
    mirror.idle().await;
    assert_eq!(registry.body_bytes(&On::cdn(&layer.digest).ranged(false)), 0, "ranges are still believed in");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_that_dies_or_stalls_costs_nothing_that_the_others_have_brought() {
    let image = Image::new(1, &[LARGE]);
    let layer = &image.layers[0];
    let after = 2 * MIB as u64 + 77;
    // A reset destroys what was sent and not read yet; it can't be more than that body had.
    for (fault, twice_max) in [("cut", 0), ("reset", after), ("stall", 0)] {
        let stalls = |builder: Builder| builder.upstream_set("docker.io", "read_timeout", "\"1s\"");
        let (registry, mirror) = world(&image, stalls).await;
        let once = gets(layer).starting_at(2 * SEGMENT as u64).once();
        let mut stalled = None;
        match fault {
            "cut" => registry.fault(once, Fault::Cut(after)),
            "reset" => registry.fault(once, Fault::Reset(after)),
            _ => stalled = Some(registry.gate_body(once, after)),
        }
        mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
        mirror.idle().await;
        let twice = registry.body_bytes(&gets(layer)) - layer.len() as u64;
        assert!(twice <= twice_max, "{fault}: {twice} bytes were sent twice");
        if let Some(gate) = stalled {
            gate.open();
        }
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_byte_in_any_segment_is_never_in_a_complete_response_and_never_committed() {
    let image = Image::new(1, &[LARGE]);
    let layer = &image.layers[0];
    for at in [SEGMENT - 1, SEGMENT, 2 * SEGMENT + 5, LARGE - 1] {
        let (registry, mirror) = world(&image, |builder| builder).await;
        registry.fault(gets(layer), Fault::Corrupt(at as u64));
        let path = blob("library/app", &layer.digest);
        let mut connection = mirror.connect().await;
        connection.send(&Request::get(&path)).await;
        if connection.head().await.status == 200 {
            let (_, end) = connection.rest().await;
            assert_eq!(end, End::Short, "byte {at}");
        }
        mirror.idle().await;
        assert!(!mirror.holds(&layer.digest), "byte {at}");
        registry.heal();
        // Once will do: wrong content is remembered for a while.
        if at == SEGMENT {
            mirror.get_once_well(&path).await.assert_ok(&layer.bytes);
        }
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_while_a_segment_is_written_is_no_trouble_of_who_reads_in_order() {
    let disk = Arc::new(FailingDisk::default());
    let image = Image::new(1, &[LARGE]);
    let (registry, mirror) = world(&image, |builder| builder.disk(&disk)).await;
    let layer = &image.layers[0];
    let gate = registry.gate_body(gets(layer).starting_at(SEGMENT as u64), 3 * MIB as u64);
    let path = blob("library/app", &layer.digest);
    let mut client = mirror.connect().await;
    client.send(&Request::get(&path)).await;
    assert_eq!(client.head().await.status, 200);
    gate.arrived().await;
    assert!(client.take(SEGMENT + MIB).await == layer.bytes[..SEGMENT + MIB]);
    disk.fail(Op::Write, Errno::NOSPC);
    gate.open();
    let (rest, end) = client.rest().await;
    assert_eq!(end, End::Complete, "the rest comes straight from upstream");
    assert!(layer.bytes[SEGMENT + MIB..] == rest);
    let got = SEGMENT + 2 * MIB;
    let resumed = mirror.send(&Request::get(&path).range(format!("bytes={got}-"))).await;
    assert_eq!((resumed.status(), resumed.end), (206, End::Complete));
    assert!(resumed.body == layer.bytes[got..]);
    assert!(!mirror.holds(&layer.digest));
    disk.recover();
    mirror.get(&path).await.assert_ok(&layer.bytes);
    mirror.idle().await;
    assert!(mirror.holds(&layer.digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_lies_about_a_digest_disturbs_nobody_elses_clients() {
    let (honest, liar) = (Registry::start().await, Registry::start().await);
    let image = Image::new(1, &[LARGE]);
    let layer = &image.layers[0];
    for registry in [&honest, &liar] {
        registry.put_image("library/app", "v1", &image);
    }
    let mut lie = layer.bytes.to_vec();
    lie[SEGMENT + 3] ^= 1;
    liar.put_blob_as("library/app", &layer.digest, lie.into());
    let mirror = builder(&honest).upstream("liar.example", &liar).start().await;
    for registry in ["docker.io", "liar.example"] {
        let path = format!("/v2/{registry}/library/app/manifests/v1");
        mirror.get(&path).await.assert_ok(&image.manifest.bytes);
    }
    // Both are under way at the same time, up to their middle.
    let gates = [&honest, &liar].map(|registry| registry.gate_body(gets(layer).starting_at(0), SEGMENT as u64 / 2));
    let mut clients = Vec::new();
    for registry in ["docker.io", "liar.example"] {
        for _ in 0..3 {
            let mut connection = mirror.connect().await;
            let path = format!("/v2/{registry}/library/app/blobs/{}", layer.digest);
            connection.send(&Request::get(path)).await;
            clients.push((registry, connection));
        }
    }
    for gate in &gates {
        gate.arrived().await;
    }
    for gate in &gates {
        gate.open();
    }
    for (registry, mut connection) in clients {
        let head = connection.head().await;
        let (bytes, end) = connection.rest().await;
        if registry == "docker.io" {
            assert_eq!((head.status, end), (200, End::Complete));
            assert!(bytes == layer.bytes);
        } else if end == End::Complete {
            // What the honest one has given meanwhile is right, whoever asks.
            assert!(head.status != 200 || bytes == layer.bytes, "a lie was believed");
        }
    }
    mirror.idle().await;
    assert!(mirror.holds(&layer.digest), "from the honest one");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerds_parallel_fetch_costs_one_fill_and_no_request_beyond_its_segments() {
    const CHUNKS: usize = 16;
    let registry = Registry::start().await;
    let image = Image::new(1, &[CHUNKS * SEGMENT]);
    registry.put_image("library/app", "v1", &image);
    let mirror = builder(&registry).capacity("512MiB").start().await;
    announce(&mirror, &image).await;
    let layer = image.layers[0].clone();
    let path = blob("library/app", &layer.digest);
    let addr = mirror.addr();
    // Open-ended ranges, each closed when its chunk is there; as many at once as containerd has workers.
    let fetch = |chunk: usize| {
        let (path, layer) = (path.clone(), layer.clone());
        async move {
            let first = chunk * SEGMENT;
            let mut connection = Connection::open(addr).await;
            connection.send(&Request::get(path).range(format!("bytes={first}-"))).await;
            let head = connection.head().await;
            let expected = format!("bytes {first}-{}/{}", layer.len() - 1, layer.len());
            assert_eq!((head.status, head.header("content-range")), (206, Some(expected.as_str())));
            assert!(connection.take(SEGMENT).await == layer.bytes.slice(first..first + SEGMENT), "chunk {chunk}");
        }
    };
    all((0..CHUNKS).map(fetch)).await;
    mirror.idle().await;
    let asked = registry.seen(&gets(&layer));
    assert_eq!(registry.body_bytes(&gets(&layer)), layer.len() as u64, "each byte once");
    assert_eq!(asked_twice(&registry, &gets(&layer), layer.len()), 0);
    assert!(asked.len() <= CHUNKS + 1, "{} requests for {CHUNKS} segments", asked.len());
    assert!(mirror.holds(&layer.digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_ranges_all_over_a_cold_blob_cost_its_bytes_once() {
    let image = Image::new(1, &[LARGE]);
    let (registry, mirror) = world(&image, |builder| builder).await;
    let layer = image.layers[0].clone();
    let path = blob("library/app", &layer.digest);
    let addr = mirror.addr();
    let reader = |number: usize| {
        let (path, layer) = (path.clone(), layer.clone());
        async move {
            let mut connection = Connection::open(addr).await;
            for round in 0..5 {
                // Anywhere, and of any length up to 3 MiB.
                let first = (number * 7_919_123 + round * 15_485_863) % (LARGE - 1);
                let last = (first + (number * 104_729 + round * 1_299_709) % (3 * MIB)).min(LARGE - 1);
                let answer = connection.exchange(&Request::get(&path).range(format!("bytes={first}-{last}"))).await;
                assert_eq!((answer.status(), answer.end), (206, End::Complete), "{:?}", answer.head);
                assert!(answer.body == layer.bytes.slice(first..=last), "{first}-{last}");
            }
        }
    };
    all((0..40).map(reader)).await;
    mirror.get(&path).await.assert_ok(&layer.bytes);
    mirror.idle().await;
    until("it is held", || mirror.holds(&layer.digest)).await;
    let sent = registry.body_bytes(&On::kind(Kind::Blob).get());
    assert!(sent <= LARGE as u64 * 105 / 100, "{sent} bytes for a blob of {LARGE}");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_anything_make_no_download_slow() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[LARGE]);
    registry.put_image("library/app", "v1", &image);
    let credentials = "[{ username = \"bot\", password = \"secret\" }]";
    let mirror = builder(&registry).upstream_set("quay.io", "credentials", credentials).start().await;
    announce(&mirror, &image).await;
    let layer = &image.layers[0];
    mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    // The manifest says how large it is, whoever must say that it may be read.
    assert_eq!(registry.seen(&gets(layer)).len(), 4, "three segments and a piece");
    mirror.finish().await;
}
