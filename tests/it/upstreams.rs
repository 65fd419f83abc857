//! What an operator says of an upstream, and what becomes of it: other mirrors, prefixes, proxies, what is allowed and
//! denied, outages and their cost.

use std::time::{Duration, Instant};

use crate::support::client::Request;
use crate::support::images::{Blob, Image, Index};
use crate::support::mirror::{Builder, Mirror, age_tags, blob, manifest};
use crate::support::registry::{Auth, Bearer, Fault, Kind, On, Registry};
use crate::support::{all, until};

const PASSWORD: &str = "hunter2-of-upstreams";

async fn world() -> (Registry, Image, Builder) {
    let registry = Registry::start().await;
    let image = Image::new(1, &[1000, 2000]);
    registry.put_image("library/app", "v1", &image);
    let builder = Mirror::builder().upstream("docker.io", &registry).tag_ttl("0s");
    (registry, image, builder)
}

fn endpoint(parts: &str) -> String {
    format!("[{{ {parts} }}]")
}

/// A free port on the loopback, for mirrors that must know each other before they start.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn chained(port: u16, next: u16) -> Builder {
    let next = endpoint(&format!("url = \"http://127.0.0.1:{next}\", mirror = true"));
    Mirror::builder()
        .set("server", "listen", &format!("\"127.0.0.1:{port}\""))
        .upstream_set("docker.io", "endpoints", &next)
        .tag_ttl("0s")
}

// === other mirrors and prefixes ===

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_of_a_mirror_serves_what_its_upstream_has() {
    let (registry, image, builder) = world().await;
    let far = builder.upstream_set("docker.io", "deleted_tags", "\"forget\"").start().await;
    let near = Mirror::builder()
        .upstream_set("docker.io", "endpoints", &endpoint(&format!("url = \"http://{}\", mirror = true", far.addr())))
        .tag_ttl("0s")
        .start()
        .await;
    near.pull("library/app", "v1", &image).await;
    near.get("/v2/library/app/tags/list?ns=docker.io").await.assert_ok(br#"{"name":"library/app","tags":["v1"]}"#);
    assert!(
        registry.seen(&On::any()).iter().all(|seen| seen.header("via").is_none()),
        "registries are told of no mirrors"
    );
    // What the far one says it lacks is nothing that upstream deleted.
    registry.delete_tag("library/app", "v1");
    registry.delete_manifest("library/app", &image.manifest.digest);
    let kept = near.get(&manifest("library/app", "v1")).await;
    kept.assert_ok(&image.manifest.bytes);
    assert_eq!(far.get(&manifest("library/app", "v1")).await.status(), 404);
    near.finish().await;
    far.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_for_a_large_blob_once_and_in_one_piece() {
    // Played by a registry, which can be asked what it was asked.
    let far = Registry::start().await;
    let image = Image::new(1, &[6_000_000, 6_000_001]);
    far.put_image("library/app", "v1", &image);
    let [whole, broken] = [0, 1].map(|n| &image.layers[n]);
    far.fault(On::blob(&broken.digest).get().once(), Fault::Cut(2_000_000));
    let near = |mirror: bool| {
        let endpoints = endpoint(&format!("url = \"{}\", mirror = {mirror}", far.url()));
        let builder = Mirror::builder().upstream_set("docker.io", "endpoints", &endpoints);
        builder.set("fill", "parallel_above", "\"2MiB\"").start()
    };
    let mirror = near(true).await;
    mirror.pull("library/app", "v1", &image).await;
    let asked = |blob: &Blob| {
        let seen = far.seen(&On::blob(&blob.digest).get());
        seen.iter().map(|seen| seen.header("range").map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(asked(whole), [None]);
    // What is missing after trouble is all that is asked for then, and one request after the other.
    let [None, rest @ ..] = &asked(broken)[..] else { panic!("{:?}", asked(broken)) };
    assert_eq!(rest.iter().flatten().count(), rest.len());
    assert!(far.body_bytes(&On::blob(&broken.digest)) < 9_000_000, "{rest:?}");
    mirror.finish().await;
    // A registry is asked for a segment first.
    far.forget_seen();
    let mirror = near(false).await;
    mirror.pull("library/app", "v1", &image).await;
    assert_eq!(asked(whole)[0].as_deref(), Some("bytes=0-8388607"));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mirrors_configured_at_each_other_say_so_at_once() {
    let (one, other) = (free_port(), free_port());
    let (first, second) = (chained(one, other).start().await, chained(other, one).start().await);
    let missing = Blob::new("nobody has this");
    for path in [
        manifest("library/app", "v1"),
        manifest("library/app", &missing.digest),
        blob("library/app", &missing.digest),
        "/v2/library/app/tags/list?ns=docker.io".to_owned(),
    ] {
        let started = Instant::now();
        let answer = first.get(&path).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{path} took {:?}", started.elapsed());
        assert_eq!(answer.status(), 404, "{path}: {}", answer.text());
        assert!(answer.error_message().contains("a loop of mirrors"), "{path}: {}", answer.text());
        assert_eq!(first.head(&path).await.status(), 404, "{path}");
    }
    // Both at once, each with a client of its own.
    let digest = Blob::new("nor this").digest;
    let asked = [first.addr(), second.addr()].map(|addr| {
        let path = blob("library/app", &digest);
        async move { crate::support::client::send(addr, &Request::get(path)).await.status() }
    });
    assert_eq!(all(asked).await, [404, 404]);
    first.finish().await;
    second.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_with_a_prefix_is_asked_for_its_own_names_and_nobody_else_hears_of_them() {
    let registry = Registry::builder().auth(Auth::Bearer(Bearer::default())).tags_per_page(1).start().await;
    let image = Image::new(1, &[1000]);
    registry.put_image("hub-proxy/library/app", "v1", &image);
    registry.put_image("hub-proxy/library/app", "v2", &image);
    let parts = format!("url = \"{}\", repository_prefix = \"hub-proxy\"", registry.url());
    let mirror = Mirror::builder().upstream_set("docker.io", "endpoints", &endpoint(&parts)).start().await;
    mirror.pull("library/app", "v1", &image).await;
    let tokens = registry.seen(&On::kind(Kind::Token));
    assert!(tokens[0].target.contains("hub-proxy%2Flibrary%2Fapp%3Apull"), "{}", tokens[0].target);
    let tags = mirror.get("/v2/library/app/tags/list?ns=docker.io&n=1").await;
    assert_eq!(tags.json(), serde_json::json!({ "name": "library/app", "tags": ["v1"] }));
    let link = tags.header("link").unwrap();
    let missing = mirror.get(&manifest("library/none", "v1")).await;
    assert_eq!(missing.status(), 404);
    assert!(!format!("{link}{}", missing.text()).contains("hub-proxy"), "{link} {}", missing.text());
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_s_credential_goes_to_no_mirror_and_to_no_endpoint_with_its_own() {
    let near = Registry::builder().auth(Auth::Basic).start().await;
    near.add_user("node", "word-of-the-node");
    let far = Registry::builder().auth(Auth::Basic).start().await;
    far.add_user("bot", PASSWORD);
    let image = Image::new(1, &[100]);
    far.put_image("library/app", "v1", &image);
    let endpoints = format!(
        "[{{ url = \"{}\", mirror = true, username = \"node\", password = \"word-of-the-node\" }}, \"{}\"]",
        near.url(),
        far.url()
    );
    let mirror = Mirror::builder()
        .upstream_set("docker.io", "endpoints", &endpoints)
        .upstream_set("docker.io", "credentials", &format!("[{{ username = \"bot\", password = \"{PASSWORD}\" }}]"))
        .upstream_set("docker.io", "share_private", "true")
        .start()
        .await;
    // The mirror lacks it, the registry has it.
    mirror.pull("library/app", "v1", &image).await;
    let sent = |registry: &Registry| {
        let seen = registry.seen(&On::any());
        let mut sent: Vec<_> = seen.iter().filter_map(|seen| seen.header("authorization").map(str::to_owned)).collect();
        sent.dedup();
        sent
    };
    assert_eq!(sent(&near).len(), 1);
    assert_ne!(sent(&near), sent(&far));
    mirror.finish().await;
}

// === what is allowed ===

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_denied_though_it_is_held() {
    let (registry, image, builder) = world().await;
    registry.put_image("evil/app", "v1", &image);
    let mirror = builder.start().await;
    mirror.pull("evil/app", "v1", &image).await;
    let mut site = mirror.stop().await;
    for (key, named) in [("deny = [\"evil/**\"]", "evil/**"), ("allow = [\"library/*\"]", "allow")] {
        let (plain, ruled) = ("[upstreams.\"docker.io\"]\n", format!("[upstreams.\"docker.io\"]\n{key}\n"));
        site.rewrite(plain, &ruled);
        let mirror = site.start().await;
        let asked = registry.count(&On::any());
        for path in [
            manifest("evil/app", "v1"),
            manifest("evil/app", &image.manifest.digest),
            blob("evil/app", &image.layers[0].digest),
            "/v2/evil/app/tags/list?ns=docker.io".to_owned(),
            format!("/v2/evil/app/referrers/{}?ns=docker.io", image.manifest.digest),
        ] {
            let answer = mirror.get(&path).await;
            assert_eq!((answer.status(), answer.error_code().as_str()), (403, "DENIED"), "{path}");
            assert!(answer.error_message().contains(named), "{}", answer.text());
        }
        assert_eq!(registry.count(&On::any()), asked, "nobody is asked");
        mirror.pull("library/app", "v1", &image).await;
        mirror.idle().await;
        site = mirror.stop().await;
        site.rewrite(&ruled, plain);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_digests_are_denied_when_held_and_with_what_belongs_to_them() {
    let (registry, image, builder) = world().await;
    let index = Index::new(5, &[300]);
    registry.put_index("library/multi", "v1", &index);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("denied");
    std::fs::write(&file, "# nothing yet\n").unwrap();
    let mirror =
        builder.upstream_set("docker.io", "deny_digests_file", &serde_json::json!(file).to_string()).start().await;
    mirror.pull("library/app", "v1", &image).await;
    mirror.get(&manifest("library/multi", "v1")).await.assert_ok(&index.manifest.bytes);
    let child = &index.images[0].manifest;
    mirror.get(&manifest("library/multi", &child.digest)).await.assert_ok(&child.bytes);

    let layer = &image.layers[1].digest;
    let text = format!("{layer} CVE-2026-7: a hole\n{} withdrawn\n", index.manifest.digest);
    std::fs::write(&file, text).unwrap();
    let denied = |path: String, reason: &'static str| {
        let mirror = &mirror;
        async move {
            let answer = mirror.get(&path).await;
            (answer.status() == 403 && answer.error_message().contains(reason)).then_some(())
        }
    };
    // It is looked at once a second.
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    crate::support::within("the change is noticed", async {
        while denied(blob("library/app", layer), "CVE-2026-7").await.is_none() {
            ticks.tick().await;
        }
    })
    .await;
    for (path, reason) in [
        (manifest("library/app", "v1"), "CVE-2026-7"),
        (manifest("library/app", &image.manifest.digest), "CVE-2026-7"),
        (manifest("library/multi", "v1"), "withdrawn"),
        (manifest("library/multi", &index.manifest.digest), "withdrawn"),
        (manifest("library/multi", &child.digest), "withdrawn"),
    ] {
        assert!(denied(path.clone(), reason).await.is_some(), "{path}");
    }
    mirror.get(&blob("library/app", &image.layers[0].digest)).await.assert_ok(&image.layers[0].bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_deleted_upstream_is_kept_or_forgotten_as_the_operator_says() {
    for (policy, status) in [("\"forget\"", 404), ("\"keep\"", 200), ("\"1h\"", 200)] {
        let (registry, image, builder) = world().await;
        let mirror = builder.upstream_set("docker.io", "deleted_tags", policy).start().await;
        mirror.pull("library/app", "v1", &image).await;
        registry.delete_tag("library/app", "v1");
        for _ in 0..2 {
            assert_eq!(mirror.get(&manifest("library/app", "v1")).await.status(), status, "{policy}");
        }
        mirror.get(&manifest("library/app", &image.manifest.digest)).await.assert_ok(&image.manifest.bytes);
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_index_lists_for_the_named_platforms_is_fetched_with_it() {
    let (registry, _, builder) = world().await;
    let index = Index::new(5, &[300, 90_000]);
    registry.put_index("library/multi", "v1", &index);
    let mirror = builder.upstream_set("docker.io", "prefetch", "[\"linux/arm64\"]").start().await;
    mirror.get(&manifest("library/multi", "v1")).await.assert_ok(&index.manifest.bytes);
    let of = |architecture: &str| {
        let wanted = index.images.iter().find(|image| {
            let config: serde_json::Value = serde_json::from_slice(&image.config.bytes).unwrap();
            config["architecture"] == architecture
        });
        wanted.unwrap().clone()
    };
    let (wanted, other) = (of("arm64"), of("amd64"));
    until("the content has come", || wanted.blobs().all(|part| mirror.holds(&part.digest))).await;
    mirror.idle().await;
    assert!(other.layers.iter().all(|part| !mirror.holds(&part.digest)));
    mirror.finish().await;
}

// === outages ===

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_heads_of_an_expired_tag_cost_upstream_one() {
    let (registry, image, builder) = world().await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    let site = mirror.stop().await;
    // Expired, and good for an hour once it's checked: who comes when the check is over already finds it fresh.
    site.rewrite("ttl = \"0s\"", "ttl = \"1h\"");
    age_tags(&site.data(), "docker.io/library/app", Duration::from_hours(2));
    let mirror = site.start().await;
    registry.forget_seen();
    let gate = registry.gate(On::manifest("v1").head());
    let mut connections = Vec::new();
    for _ in 0..1000 {
        let mut connection = mirror.connect().await;
        connection.send(&Request::head(manifest("library/app", "v1"))).await;
        connections.push(connection);
    }
    gate.arrived().await;
    gate.open();
    for mut connection in connections {
        assert_eq!(connection.answer().await.status(), 200);
    }
    assert_eq!(registry.count(&On::manifest("v1").head()), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_costs_one_wait_for_all_tags_of_a_registry_and_not_one_each() {
    let (registry, image, builder) = world().await;
    for n in 0..20 {
        registry.put_image("library/app", &format!("t{n}"), &image);
    }
    let mirror = builder.start().await;
    for n in 0..20 {
        mirror.get(&manifest("library/app", &format!("t{n}"))).await.assert_ok(&image.manifest.bytes);
    }
    let silence = registry.gate(On::any());
    registry.forget_seen();
    mirror.get(&manifest("library/app", "t0")).await.assert_ok(&image.manifest.bytes);
    let started = Instant::now();
    for n in 0..20 {
        let stale = mirror.get(&manifest("library/app", &format!("t{n}"))).await;
        stale.assert_ok(&image.manifest.bytes);
        assert!(stale.header("warning").is_some(), "{:?}", stale.head);
    }
    assert!(started.elapsed() < Duration::from_secs(15), "waited {:?}", started.elapsed());
    assert!(registry.count(&On::any()) <= 6, "left alone");
    silence.open();
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_of_a_black_hole_are_answered_stale_for_one_question() {
    let (registry, image, builder) = world().await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &image).await;
    registry.forget_seen();
    let silence = registry.gate(On::any());
    let mut took = Vec::new();
    for _ in 0..2 {
        let mut connections = Vec::new();
        for _ in 0..1000 {
            connections.push(mirror.connect().await);
        }
        let started = Instant::now();
        for connection in &mut connections {
            connection.send(&Request::head(manifest("library/app", "v1"))).await;
        }
        for connection in &mut connections {
            let answer = connection.answer().await;
            assert_eq!((answer.status(), answer.header("warning").is_some()), (200, true), "{:?}", answer.head);
        }
        took.push(started.elapsed());
    }
    println!("a thousand HEADs while upstream is silent, and a thousand more: {took:?}");
    assert_eq!(registry.count(&On::any()), 1);
    silence.open();
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_expire_in_the_middle_of_a_large_blob_are_no_client_s_trouble() {
    let registry = Registry::builder().redirect_blobs().start().await;
    let image = Image::new(1, &[200_000_000]);
    registry.put_image("library/app", "v1", &image);
    let layer = &image.layers[0];
    // Bodies break off now and then, so that what is missing must be asked for again.
    for n in [2, 4, 5] {
        registry.fault(On::cdn(&layer.digest).get().after(n).once(), Fault::Cut(1_000_000));
    }
    let mirror = Mirror::builder().capacity("1GiB").upstream("docker.io", &registry).start().await;
    assert_eq!(mirror.get(&manifest("library/app", "v1")).await.status(), 200);
    let path = blob("library/app", &layer.digest);
    let (pulled, ()) = tokio::join!(mirror.get(&path), async {
        for n in [2, 4, 6] {
            registry.asked(&On::cdn(&layer.digest), n).await;
            registry.expire_signatures();
        }
    });
    pulled.assert_ok(&layer.bytes);
    let (redirects, parts) = (registry.count(&On::blob(&layer.digest)), registry.count(&On::cdn(&layer.digest)));
    println!("{parts} requests to the CDN, {redirects} to the registry");
    assert!(redirects < parts, "{redirects} redirects for {parts} parts");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_is_left_alone_for_a_moment_and_its_return_is_noticed() {
    let (registry, image, builder) = world().await;
    let mirror = builder.start().await;
    registry.go_down().await;
    for _ in 0..20 {
        let answer = mirror.get(&manifest("library/app", "v1")).await;
        assert_eq!(answer.status(), 502, "{}", answer.text());
        assert!(answer.error_message().contains("can't be reached"), "{}", answer.text());
    }
    let metrics = mirror.metrics().await;
    let tries: u64 = metrics
        .lines()
        .filter(|line| line.starts_with("cachalot_upstream_requests_total{") && line.contains("status=\"connect\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(tries <= 8, "{tries} tries for 20 requests");
    registry.come_back().await;
    mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&image.manifest.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_refuses_everything_makes_no_held_tag_disappear() {
    for status in [401, 403] {
        let (registry, image, builder) = world().await;
        let mirror = builder.start().await;
        mirror.pull("library/app", "v1", &image).await;
        registry.fault(On::any(), Fault::status(status));
        for _ in 0..3 {
            mirror.pull("library/app", "v1", &image).await;
        }
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_has_expired_makes_no_held_tag_disappear() {
    let bearer = Bearer { anonymous: false, ..Bearer::default() };
    for auth in [Auth::Basic, Auth::Bearer(bearer)] {
        let registry = Registry::builder().auth(auth).start().await;
        registry.add_user("bot", "first-word");
        let image = Image::new(1, &[1000, 2_000_000]);
        registry.put_image("acme/app", "v1", &image);
        let mirror = Mirror::builder()
            .upstream("docker.io", &registry)
            .upstream_set("docker.io", "credentials", "[{ username = \"bot\", password = \"first-word\" }]")
            .upstream_set("docker.io", "share_private", "true")
            .upstream_set("docker.io", "deleted_tags", "\"forget\"")
            .tag_ttl("0s")
            .start()
            .await;
        mirror.pull("acme/app", "v1", &image).await;
        let list = mirror.get("/v2/acme/app/tags/list?ns=docker.io").await.body;
        mirror.idle().await;
        registry.add_user("bot", "second-word");
        registry.expire_tokens();
        let check = async |mirror: &Mirror| {
            mirror.pull("acme/app", "v1", &image).await;
            let stale = mirror.get(&manifest("acme/app", "v1")).await;
            stale.assert_ok(&image.manifest.bytes);
            // What is wrong is said to whoever looks.
            assert!(stale.header("warning").is_some_and(|text| text.contains("credential")), "{:?}", stale.head);
        };
        for _ in 0..3 {
            check(&mirror).await;
        }
        // Nor after a restart, when nothing is remembered.
        let mirror = mirror.stop().await.start().await;
        check(&mirror).await;
        mirror.get("/v2/acme/app/tags/list?ns=docker.io").await.assert_ok(&list);
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_keep_to_the_bandwidth_of_their_upstream_and_of_all() {
    // However slow this machine is, less time than this would be too little. Nothing is said of more.
    let least = |bytes: u32| Duration::from_secs_f64(f64::from(bytes) / f64::from(1 << 20) - 0.15);
    let registries = [Registry::start().await, Registry::start().await];
    let blobs = [1, 2].map(|seed| Blob::noise(seed, 900_000));
    for (registry, blob) in registries.iter().zip(&blobs) {
        registry.put_blob("library/app", blob);
    }
    let [one, other] = &registries;
    let builder = || Mirror::builder().upstream("docker.io", one).upstream("quay.io", other);
    let cap = "\"1MiB\"".to_owned();
    for (builder, shared) in [
        (builder().set("fill", "max_bandwidth", &cap), true),
        (builder().upstream_set("docker.io", "max_bandwidth", &cap), false),
    ] {
        let mirror = builder.start().await;
        let started = Instant::now();
        let [hub, quay] = [("docker.io", &blobs[0]), ("quay.io", &blobs[1])].map(|(name, blob)| {
            let path = format!("/v2/library/app/blobs/{}?ns={name}", blob.digest);
            let (addr, bytes) = (mirror.addr(), blob.bytes.clone());
            async move {
                crate::support::client::send(addr, &Request::get(path)).await.assert_ok(&bytes);
                started.elapsed()
            }
        });
        let (hub, quay) = tokio::join!(hub, quay);
        if shared {
            assert!(hub.max(quay) >= least(1_800_000), "{hub:?} {quay:?}");
        } else {
            assert!(hub >= least(900_000), "{hub:?}");
        }
        // What is held comes from nobody.
        let asked = one.count(&On::any());
        let path = blob("library/app", &blobs[0].digest);
        mirror.idle().await;
        mirror.get(&path).await.assert_ok(&blobs[0].bytes);
        assert_eq!(one.count(&On::any()), asked);
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_that_page_through_tags_cost_upstream_one_walk() {
    let (registry, image, builder) = world().await;
    for n in 0..20_000 {
        registry.put_manifest("library/app", Some(&format!("t{n:05}")), &image.manifest);
    }
    let mirror = builder.set("tags", "list_ttl", "\"10m\"").start().await;
    let addr = mirror.addr();
    let walks = (0..500).map(|n| async move {
        let last = if n % 2 == 0 { String::new() } else { format!("&last=t{:05}", n * 30) };
        let path = format!("/v2/library/app/tags/list?ns=docker.io&n=100{last}");
        let answer = crate::support::client::send(addr, &Request::get(path)).await;
        (answer.status(), answer.json()["tags"].as_array().map_or(0, Vec::len))
    });
    assert!(all(walks).await.into_iter().all(|answer| answer == (200, 100)));
    assert_eq!(registry.count(&On::kind(Kind::Tags)), 21, "20 001 tags, a thousand a page");
    mirror.finish().await;
}

// === private content ===

#[tokio::test(flavor = "multi_thread")]
async fn a_public_base_layer_is_served_to_another_image_while_upstream_is_gone_and_a_private_one_is_not() {
    let registry = Registry::builder().auth(Auth::Bearer(Bearer::default())).start().await;
    registry.add_user("bot", PASSWORD);
    let (first, private) = (Image::new(1, &[4000]), Image::new(2, &[5000]));
    registry.put_image("library/first", "v1", &first);
    registry.put_image("acme/secret", "v1", &private);
    registry.make_private("acme/secret", &["bot"]);
    // The same content by name of another repository, where nobody has pulled a layer yet.
    registry.put_image("library/second", "v1", &first);
    registry.put_manifest("library/mallory", Some("v1"), &private.manifest);
    let mirror = Mirror::builder()
        .upstream("docker.io", &registry)
        .upstream_set("docker.io", "credentials", &format!("[{{ username = \"bot\", password = \"{PASSWORD}\" }}]"))
        .start()
        .await;
    mirror.pull("library/first", "v1", &first).await;
    for repository in ["library/second", "library/mallory"] {
        assert_eq!(mirror.get(&manifest(repository, "v1")).await.status(), 200);
    }
    mirror.idle().await;
    let site = mirror.stop().await;
    // The operator's own pull of the private image, on the same disk.
    site.rewrite("[upstreams.\"docker.io\"]\n", "[upstreams.\"docker.io\"]\nshare_private = true\n");
    let mirror = site.start().await;
    mirror.pull("acme/secret", "v1", &private).await;
    mirror.idle().await;
    let site = mirror.stop().await;
    site.rewrite("share_private = true\n", "");
    let mirror = site.start().await;
    registry.go_down().await;
    let layer = &first.layers[0];
    // What the records say is read in the background after a start.
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    crate::support::within("the records are read", async {
        while mirror.get(&blob("library/second", &layer.digest)).await.status() != 200 {
            ticks.tick().await;
        }
    })
    .await;
    let stolen = mirror.get(&blob("library/mallory", &private.layers[0].digest)).await;
    assert_eq!((stolen.status(), stolen.error_code().as_str()), (403, "DENIED"), "{}", stolen.text());
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_replaced_is_read_again_without_a_restart() {
    let registry = Registry::builder().auth(Auth::Basic).start().await;
    registry.add_user("bot", "first-word");
    let images = [Image::new(1, &[100]), Image::new(2, &[100])];
    registry.put_image("team/app", "v1", &images[0]);
    registry.put_image("team/app", "v2", &images[1]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("word");
    std::fs::write(&file, "first-word\n").unwrap();
    let entry = format!("[{{ username = \"bot\", password_file = {} }}]", serde_json::json!(file));
    let mirror = Mirror::builder()
        .upstream("corp.example", &registry)
        .upstream_set("corp.example", "credentials", &entry)
        .upstream_set("corp.example", "share_private", "true")
        .start()
        .await;
    let path = |tag: &str| format!("/v2/team/app/manifests/{tag}?ns=corp.example");
    mirror.get(&path("v1")).await.assert_ok(&images[0].manifest.bytes);
    registry.add_user("bot", "second-word");
    std::fs::write(&file, "second-word\n").unwrap();
    mirror.get(&path("v2")).await.assert_ok(&images[1].manifest.bytes);
    mirror.finish().await;
}

// === the doctor ===

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_works_and_what_does_not() {
    let registry = Registry::builder().auth(Auth::Bearer(Bearer::default())).redirect_blobs().start().await;
    registry.add_user("bot", PASSWORD);
    let index = Index::new(5, &[300, 90_000]);
    registry.put_index("library/multi", "v1", &index);
    let text = format!(
        "[upstreams.\"docker.io\"]\nendpoints = [\"{}\"]\ncredentials = [{{ username = \"bot\", password = \"{PASSWORD}\" }}]",
        registry.url()
    );
    let config = cachalot::config::load_text(&text).unwrap();
    let walk = async |image: &str| {
        let mut out = Vec::new();
        let doctor = cachalot::cli::doctor::Doctor::new("docker.io", image, false);
        let well = doctor.run(&config, &mut out).await.unwrap();
        (well, String::from_utf8(out).unwrap())
    };
    let (well, told) = walk("library/multi:v1").await;
    assert!(well, "{told}");
    for step in [
        "door",
        "we are",
        "token",
        "tag",
        "manifest",
        "blob",
        "again",
        "all well",
        "65536 bytes of 90000 bytes by range",
    ] {
        assert!(told.contains(step), "{step} is missing: {told}");
    }
    // The second range went straight to where the first was sent.
    assert_eq!(registry.count(&On::kind(Kind::Blob)), 1, "{told}");
    let (well, told) = walk("library/none:v1").await;
    assert!(!well && told.contains("FAIL"), "{told}");
    // What we may read is not what our clients may.
    registry.put_image("acme/secret", "v1", &Image::new(6, &[200]));
    registry.make_private("acme/secret", &["bot"]);
    let (well, private) = walk("acme/secret:v1").await;
    assert!(!well && private.contains("clients get 403: set share_private = true"), "{private}");
    registry.go_down().await;
    let (well, more) = walk("library/multi:v1").await;
    assert!(!well && more.contains("can't be reached"), "{more}");
    assert!(!format!("{told}{more}").contains(PASSWORD) && !format!("{told}{more}").contains("X-Signature"));
}
