//! Credentials: where they go, where they never go, and whose images they open.

use crate::support::images::{Blob, Image};
use crate::support::mirror::{Builder, Mirror, Site, blob, manifest};
use crate::support::registry::{Auth, Bearer, Denial, Fault, Kind, On, Registry};

const USER: &str = "bot";
const PASSWORD: &str = "hunter2-is-secret";

/// A registry with a public and a private image, and how its mirror is to be configured.
async fn world(auth: Auth, credential: bool) -> (Registry, Image, Image, Builder) {
    let registry = Registry::builder().auth(auth).redirect_blobs().start().await;
    registry.add_user(USER, PASSWORD);
    let (public, private) = (Image::new(1, &[2000]), Image::new(2, &[3000]));
    registry.put_image("library/app", "v1", &public);
    registry.put_image("acme/secret", "v1", &private);
    registry.make_private("acme/secret", &[USER]);
    let mut builder = Mirror::builder().upstream("docker.io", &registry).tag_ttl("0s");
    if credential {
        let entry = format!("[{{ username = \"{USER}\", password = \"{PASSWORD}\" }}]");
        builder = builder.upstream_set("docker.io", "credentials", &entry);
    }
    (registry, public, private, builder)
}

fn bearer() -> Auth {
    Auth::Bearer(Bearer::default())
}

/// Fails when a secret went where it should not, or was told to a client.
fn check_secrets(registry: &Registry) {
    for seen in registry.seen(&On::any()) {
        let authorization = seen.header("authorization").unwrap_or_default();
        match seen.kind {
            Kind::Cdn => assert_eq!(authorization, "", "{}", seen.target),
            Kind::Token => assert!(authorization.is_empty() || authorization.starts_with("Basic ")),
            _ => {}
        }
        assert!(!seen.target.contains(PASSWORD) && !seen.target.contains("hunter2"), "{}", seen.target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_without_credentials_and_used_again() {
    for bearer in [
        Bearer::default(),
        Bearer { field: "access_token", expires_in: None, ..Bearer::default() },
        Bearer { service: None, ..Bearer::default() },
        Bearer { scope: Some("repository:user/image:pull".to_owned()), ..Bearer::default() },
    ] {
        let (registry, public, _, builder) = world(Auth::Bearer(bearer.clone()), false).await;
        let mirror = builder.start().await;
        mirror.pull("library/app", "v1", &public).await;
        mirror.pull("library/app", "v1", &public).await;
        assert_eq!(registry.count(&On::kind(Kind::Token)), 1, "{bearer:?}");
        let token = &registry.seen(&On::kind(Kind::Token))[0];
        assert!(token.target.contains("repository%3Alibrary%2Fapp%3Apull") || token.target.contains("library/app"));
        assert_eq!(token.header("authorization"), None);
        check_secrets(&registry);
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_fetches_one_token() {
    let (registry, public, _, builder) = world(bearer(), false).await;
    let mirror = builder.start().await;
    let gate = registry.gate(On::kind(Kind::Token));
    let mut connections = Vec::new();
    for part in public.blobs() {
        for _ in 0..10 {
            let mut connection = mirror.connect().await;
            let path = blob("library/app", &part.digest);
            connection.send(&crate::support::client::Request::get(path)).await;
            connections.push((connection, part.clone()));
        }
    }
    gate.arrived().await;
    gate.open();
    for (mut connection, part) in connections {
        connection.answer().await.assert_ok(&part.bytes);
    }
    assert_eq!(registry.count(&On::kind(Kind::Token)), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expired_early_is_thrown_away_and_a_fresh_challenge_followed() {
    // nvcr.io answers a stale token with another realm, which refuses anonymous callers.
    let stale_realm = Some("http://127.0.0.1:1/elsewhere".to_owned());
    let (registry, public, _, builder) = world(Auth::Bearer(Bearer { stale_realm, ..Bearer::default() }), false).await;
    let mirror = builder.start().await;
    mirror.get(&manifest("library/app", "v1")).await.assert_ok(&public.manifest.bytes);
    registry.expire_tokens();
    mirror.pull("library/app", "v1", &public).await;
    assert_eq!(registry.count(&On::kind(Kind::Token)), 2);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_credentials_open_a_registry_and_never_reach_its_cdn() {
    let (registry, public, private, builder) = world(Auth::Basic, true).await;
    let mirror = builder.upstream_set("docker.io", "share_private", "true").start().await;
    mirror.pull("library/app", "v1", &public).await;
    mirror.pull("acme/secret", "v1", &private).await;
    assert!(registry.count(&On::kind(Kind::Cdn)) > 0);
    check_secrets(&registry);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_denied_to_strangers_until_the_operator_shares_it() {
    let (registry, public, private, builder) = world(bearer(), true).await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &public).await;
    let paths = [
        manifest("acme/secret", "v1"),
        manifest("acme/secret", &private.manifest.digest),
        blob("acme/secret", &private.layers[0].digest),
        "/v2/acme/secret/tags/list?ns=docker.io".to_owned(),
        format!("/v2/acme/secret/referrers/{}?ns=docker.io", private.manifest.digest),
    ];
    for path in &paths {
        let answer = mirror.get(path).await;
        assert_eq!((answer.status(), answer.error_code().as_str()), (403, "DENIED"), "{path}");
        assert!(answer.error_message().contains("share_private"), "{}", answer.text());
    }
    for path in &paths[..3] {
        assert_eq!(mirror.head(path).await.status(), 403, "{path}");
    }
    check_secrets(&registry);
    mirror.finish().await;

    let (registry, _, private, builder) = world(bearer(), true).await;
    let mirror = builder.upstream_set("docker.io", "share_private", "true").start().await;
    mirror.pull("acme/secret", "v1", &private).await;
    for path in &paths {
        assert_eq!(mirror.get(path).await.status(), 200, "{path}");
    }
    check_secrets(&registry);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_credential_opened_is_not_served_through_another_repository() {
    let (registry, public, private, builder) = world(bearer(), true).await;
    let mirror = builder.upstream_set("docker.io", "share_private", "true").start().await;
    mirror.pull("library/app", "v1", &public).await;
    mirror.pull("acme/secret", "v1", &private).await;
    mirror.idle().await;
    let layer = &private.layers[0];
    assert!(mirror.holds(&layer.digest));
    let answer = mirror.get(&blob("library/app", &layer.digest)).await;
    assert_eq!((answer.status(), answer.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    let answer = mirror.get(&manifest("library/app", &private.manifest.digest)).await;
    assert_eq!((answer.status(), answer.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
    // Nor when upstream can't be asked.
    registry.go_down().await;
    let answer = mirror.get(&blob("library/app", &layer.digest)).await;
    assert!([403, 404].contains(&answer.status()) || answer.status() >= 502, "{:?}", answer.head);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_names_a_strangers_blob_does_not_open_it() {
    let (registry, _, private, builder) = world(bearer(), true).await;
    let mirror = builder.upstream_set("docker.io", "share_private", "true").start().await;
    mirror.pull("acme/secret", "v1", &private).await;
    mirror.idle().await;
    // Anybody can push a manifest that lists a digest that its registry does not hold.
    registry.put_manifest("mallory/open", Some("v1"), &private.manifest);
    mirror.get(&manifest("mallory/open", "v1")).await.assert_ok(&private.manifest.bytes);
    let stolen = mirror.get(&blob("mallory/open", &private.layers[0].digest)).await;
    assert_eq!((stolen.status(), stolen.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_nobody_opens_looks_like_one_that_is_not_there() {
    for denial in [Denial::Resource401, Denial::Resource403, Denial::Token(401), Denial::Token(403)] {
        let (registry, _, _, builder) = world(Auth::Bearer(Bearer { denial, ..Bearer::default() }), false).await;
        let mirror = builder.start().await;
        let answer = mirror.get(&manifest("acme/secret", "v1")).await;
        assert_eq!((answer.status(), answer.error_code().as_str()), (404, "NAME_UNKNOWN"), "{denial:?}");
        assert_eq!(answer.header("www-authenticate"), None);
        check_secrets(&registry);
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_is_refused_does_not_break_public_pulls() {
    // ghcr.io refuses public pulls with an invalid token.
    let (registry, public, _, builder) = world(bearer(), false).await;
    let entry = "[{ username = \"bot\", password = \"wrong\" }]";
    let mirror = builder.upstream_set("docker.io", "credentials", entry).start().await;
    mirror.pull("library/app", "v1", &public).await;
    check_secrets(&registry);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_by_the_longest_scope_and_to_their_own_registry_only() {
    let (registry, public, private, builder) = world(bearer(), false).await;
    let other = Registry::builder().auth(bearer()).start().await;
    let elsewhere = Image::new(9, &[100]);
    other.put_image("acme/secret", "v1", &elsewhere);
    let entry = format!("[{{ scope = \"docker.io/acme\", username = \"{USER}\", password = \"{PASSWORD}\" }}]");
    let mirror = builder
        .upstream_set("docker.io", "credentials", &entry)
        .upstream_set("docker.io", "share_private", "true")
        .upstream("quay.io", &other)
        .start()
        .await;
    mirror.pull("library/app", "v1", &public).await;
    assert!(registry.seen(&On::kind(Kind::Token)).iter().all(|seen| seen.header("authorization").is_none()));
    mirror.pull("acme/secret", "v1", &private).await;
    assert!(registry.seen(&On::kind(Kind::Token)).iter().any(|seen| seen.header("authorization").is_some()));
    mirror.get("/v2/acme/secret/manifests/v1?ns=quay.io").await.assert_ok(&elsewhere.manifest.bytes);
    assert!(other.seen(&On::kind(Kind::Token)).iter().all(|seen| seen.header("authorization").is_none()));
    check_secrets(&registry);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_send_as_credentials_goes_nowhere() {
    let (registry, public, _, builder) = world(bearer(), false).await;
    let mirror = builder.start().await;
    for value in ["Bearer a-clients-own", "Basic Y2xpZW50Om93bg=="] {
        for path in [manifest("library/app", "v1"), blob("library/app", &public.layers[0].digest)] {
            let request = crate::support::client::Request::get(path)
                .header("Authorization", value)
                .header("Cookie", "session=a-clients-own");
            assert_eq!(mirror.send(&request).await.status(), 200);
        }
    }
    for seen in registry.seen(&On::any()) {
        let sent = format!("{:?}", seen.headers);
        assert!(!sent.contains("a-clients-own") && !sent.contains("Y2xpZW50"), "{sent}");
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_appear_in_no_metric_and_no_error() {
    let (registry, _, _, builder) = world(bearer(), true).await;
    let mirror = builder.start().await;
    let mut told = mirror.metrics().await;
    told += &mirror.get(&manifest("acme/secret", "v1")).await.text();
    registry.go_down().await;
    told += &mirror.get(&manifest("library/app", "v1")).await.text();
    told += &mirror.get(&blob("library/app", &Blob::new("x").digest)).await.text();
    for secret in [PASSWORD, "hunter2", "token-1", "X-Signature"] {
        assert!(!told.contains(secret), "{told}");
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_image_is_served_though_upstream_hangs_and_a_credential_is_configured() {
    let (registry, public, private, builder) = world(bearer(), true).await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &public).await;
    mirror.idle().await;
    // Who opened it is known from the records from here on.
    let site = mirror.stop().await;
    let silence = registry.gate(On::any());
    let mirror = site.start().await;
    mirror.pull("library/app", "v1", &public).await;
    let stale = mirror.get(&manifest("library/app", "v1")).await;
    assert!(stale.header("warning").is_some(), "{:?}", stale.head);
    // Nothing is known of this one, so nothing is said of it.
    let unknown = mirror.get(&manifest("acme/secret", &private.manifest.digest)).await;
    assert_eq!(unknown.status(), 504, "{}", unknown.text());
    silence.open();
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_upstream_is_not_taken_for_a_private_repository() {
    let (registry, public, _, builder) = world(bearer(), true).await;
    let mirror = builder.start().await;
    registry.fault(On::any(), Fault::status(503));
    let answer = mirror.get(&manifest("library/app", "v1")).await;
    assert_eq!(answer.status(), 502, "{}", answer.text());
    registry.heal();
    mirror.get_once_well(&manifest("library/app", "v1")).await.assert_ok(&public.manifest.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tag_outlives_a_restart_though_a_credential_is_configured() {
    let (registry, public, _, builder) = world(bearer(), true).await;
    let mirror = builder.start().await;
    mirror.pull("library/app", "v1", &public).await;
    mirror.idle().await;
    let site = mirror.stop().await;
    registry.delete_tag("library/app", "v1");
    let mirror = site.start().await;
    let kept = mirror.get(&manifest("library/app", "v1")).await;
    kept.assert_ok(&public.manifest.bytes);
    assert!(kept.header("warning").is_some_and(|text| text.contains("deleted")), "{:?}", kept.head);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_costs_one_look_at_what_strangers_may_read() {
    let (registry, public, _, builder) = world(bearer(), true).await;
    // Who comes when all is over already finds the tag fresh.
    let mirror = builder.tag_ttl("1h").start().await;
    let gate = registry.gate(On::manifest("v1").head());
    let mut herd = Vec::new();
    for _ in 0..20 {
        let mut connection = mirror.connect().await;
        connection.send(&crate::support::client::Request::get(manifest("library/app", "v1"))).await;
        herd.push(connection);
    }
    gate.arrived().await;
    gate.open();
    for mut connection in herd {
        connection.answer().await.assert_ok(&public.manifest.bytes);
    }
    // At most a look without and a check with a credential, and each may have to fetch a token first.
    let heads = registry.count(&On::manifest("v1").head());
    assert!(heads <= 4, "{heads} requests");
    mirror.finish().await;
}

/// Leaves no credential in the configuration, and nobody's permission to share what it opened.
fn take_credentials_away(site: &Site) {
    let config = std::fs::read_to_string(site.config()).unwrap();
    let without: Vec<_> =
        config.lines().filter(|line| !line.starts_with("credentials") && !line.starts_with("share_private")).collect();
    std::fs::write(site.config(), without.join("\n")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_credential_opened_stays_private_when_it_is_taken_away() {
    let (registry, public, private, builder) = world(bearer(), true).await;
    let mirror = builder.upstream_set("docker.io", "share_private", "true").tag_ttl("0s").start().await;
    mirror.pull("library/app", "v1", &public).await;
    mirror.pull("acme/secret", "v1", &private).await;
    mirror.idle().await;
    let site = mirror.stop().await;
    take_credentials_away(&site);
    let mirror = site.start().await;
    let paths = [
        manifest("acme/secret", "v1"),
        manifest("acme/secret", &private.manifest.digest),
        blob("acme/secret", &private.layers[0].digest),
    ];
    for _ in 0..2 {
        for path in &paths {
            let answer = mirror.get(path).await;
            assert_eq!((answer.status(), answer.error_code().as_str()), (403, "DENIED"), "{path}: {}", answer.text());
        }
        // What upstream shows to anybody is not.
        mirror.pull("library/app", "v1", &public).await;
    }
    registry.go_down().await;
    for path in &paths {
        assert_ne!(mirror.get(path).await.status(), 200, "{path}");
    }
    mirror.pull("library/app", "v1", &public).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_names_what_a_credential_once_opened_does_not_open_it_when_that_is_taken_away() {
    let (registry, _, private, builder) = world(bearer(), true).await;
    let mirror = builder.upstream_set("docker.io", "share_private", "true").tag_ttl("0s").start().await;
    mirror.pull("acme/secret", "v1", &private).await;
    mirror.idle().await;
    let site = mirror.stop().await;
    take_credentials_away(&site);
    registry.put_manifest("mallory/open", Some("v1"), &private.manifest);
    let mirror = site.start().await;
    mirror.get(&manifest("mallory/open", "v1")).await.assert_ok(&private.manifest.bytes);
    let stolen = mirror.get(&blob("mallory/open", &private.layers[0].digest)).await;
    assert_eq!((stolen.status(), stolen.error_code().as_str()), (404, "BLOB_UNKNOWN"));
    registry.go_down().await;
    let stolen = mirror.get(&blob("mallory/open", &private.layers[0].digest)).await;
    assert_eq!((stolen.status(), stolen.error_code().as_str()), (403, "DENIED"));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_before_its_manifest_came_is_served_while_upstream_is_gone() {
    let (registry, public, _, builder) = world(bearer(), true).await;
    let mirror = builder.start().await;
    for part in public.blobs() {
        mirror.get(&blob("library/app", &part.digest)).await.assert_ok(&part.bytes);
    }
    mirror.idle().await;
    // What upstream said of them was noted nowhere: no manifest listed them.
    let mirror = mirror.stop().await.start().await;
    mirror.get(&manifest("library/app", "v1")).await.assert_ok(&public.manifest.bytes);
    let name = public.manifest.digest.replace(':', "-");
    let record = mirror.site().data().join(format!("v1/repositories/docker.io/library/app/_manifests/{name}.json"));
    let confirmed = || {
        let record: Option<serde_json::Value> =
            std::fs::read(&record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        record.is_some_and(|record| record["confirmed"].as_array().map(Vec::len) == Some(public.blobs().count()))
    };
    crate::support::until("upstream has confirmed them ahead", confirmed).await;
    registry.go_down().await;
    mirror.pull("library/app", "v1", &public).await;
    mirror.finish().await;
}
