//! The registries that people use, each as it is: pulls as nobody and with a credential, blobs from elsewhere, tags that
//! move, repositories that aren't there, and the peculiarities of each. `docs/registries.md` lists them.

use std::time::Duration;

use crate::support::images::{Image, Index};
use crate::support::mirror::{Builder, Mirror, age_tags};
use crate::support::registry::profile::Profile;
use crate::support::registry::{Auth, Bearer, Exchange, Fault, Kind, On, Registry};

const PASSWORD: &str = "hunter2-of-the-profile";

/// A registry with a public and a private image, and a way to configure mirrors of it.
struct World {
    profile: Profile,
    registry: Registry,
    public: Image,
    private: Image,
}

// === impl World ===

impl World {
    async fn new(profile: Profile) -> Self {
        let registry = profile.start().await;
        let (public, private) = (Image::new(1, &[2000, 70_000]), Image::new(2, &[3000]));
        registry.add_user(profile.user, PASSWORD);
        registry.put_image(profile.repositories.0, "v1", &public);
        registry.put_image(profile.repositories.1, "v1", &private);
        registry.make_private(profile.repositories.1, &[profile.user]);
        Self { profile, registry, public, private }
    }

    fn builder(&self) -> Builder {
        Mirror::builder().upstream(self.profile.name, &self.registry).tag_ttl("0s")
    }

    fn with_credential(&self) -> Builder {
        let entry = format!("[{{ username = \"{}\", password = \"{PASSWORD}\" }}]", self.profile.user);
        self.builder().upstream_set(self.profile.name, "credentials", &entry).upstream_set(
            self.profile.name,
            "share_private",
            "true",
        )
    }

    fn manifest(&self, repository: &str, reference: &str) -> String {
        format!("/v2/{repository}/manifests/{reference}?ns={}", self.profile.name)
    }

    fn public(&self, reference: &str) -> String {
        self.manifest(self.profile.repositories.0, reference)
    }

    async fn pull(&self, mirror: &Mirror, repository: &str, image: &Image) {
        mirror.get(&self.manifest(repository, "v1")).await.assert_ok(&image.manifest.bytes);
        mirror.get(&self.manifest(repository, &image.manifest.digest)).await.assert_ok(&image.manifest.bytes);
        for part in image.blobs() {
            let path = format!("/v2/{repository}/blobs/{}?ns={}", part.digest, self.profile.name);
            assert_eq!(mirror.head(&path).await.header("content-length"), Some(part.len().to_string().as_str()));
            mirror.get(&path).await.assert_ok(&part.bytes);
        }
    }

    /// As nobody: what is public is pulled, what isn't there or is private is not.
    async fn walk_as_nobody(&self) {
        let mirror = self.builder().start().await;
        let (public, private) = self.profile.repositories;
        if self.profile.anonymous {
            self.pull(&mirror, public, &self.public).await;
        }
        let mut closed = vec!["team/none"];
        closed.extend(self.profile.private.then_some(private));
        for repository in closed {
            let answer = mirror.get(&self.manifest(repository, "v1")).await;
            assert_eq!(answer.status(), 404, "{repository}: {}", answer.text());
            assert!(answer.error_message().contains(repository), "{}", answer.text());
            assert_eq!(answer.header("www-authenticate"), None);
        }
        mirror.finish().await;
    }

    /// With a credential: both are pulled, blobs come from elsewhere, lists are read, a tag that moves is noticed.
    async fn walk_with_a_credential(&self) {
        let mirror = self.with_credential().start().await;
        let (public, private) = self.profile.repositories;
        self.pull(&mirror, public, &self.public).await;
        self.pull(&mirror, private, &self.private).await;
        assert_eq!(self.registry.count(&On::kind(Kind::Cdn)) > 0, self.profile.redirects);
        let tags = mirror.get(&format!("/v2/{public}/tags/list?ns={}", self.profile.name)).await;
        assert_eq!(tags.status(), 200, "{}", tags.text());
        assert!(tags.json()["tags"].as_array().unwrap().contains(&"v1".into()), "{}", tags.text());
        let subject = &self.public.manifest.digest;
        let referrers = mirror.get(&format!("/v2/{public}/referrers/{subject}?ns={}", self.profile.name)).await;
        assert_eq!((referrers.status(), &referrers.json()["manifests"]), (200, &serde_json::json!([])));

        let moved = Image::new(3, &[100]);
        self.registry.put_image(public, "v1", &moved);
        self.registry.forget_seen();
        self.pull(&mirror, public, &moved).await;
        let gets = self.registry.seen(&On::kind(Kind::Manifest).get());
        assert_eq!(gets.len(), 1, "one counted request for a tag that moved: {gets:?}");
        assert_eq!(gets[0].reference, moved.manifest.digest);
        self.registry.expire_tokens();
        self.registry.expire_signatures();
        mirror.get(&self.public("v1")).await.assert_ok(&moved.manifest.bytes);
        assert_eq!(self.registry.count(&On::kind(Kind::Manifest).get()), 1);
        self.check_secrets();
        mirror.finish().await;
    }

    /// Nothing of ours went where it does not belong.
    fn check_secrets(&self) {
        for seen in self.registry.seen(&On::any()) {
            let authorization = seen.header("authorization").unwrap_or_default();
            assert!(seen.kind != Kind::Cdn || authorization.is_empty(), "{}", seen.target);
            assert!(!seen.target.contains(PASSWORD), "{}", seen.target);
        }
    }

    async fn walk(&self) {
        self.walk_as_nobody().await;
        self.registry.forget_seen();
        self.walk_with_a_credential().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_hub() {
    let world = World::new(Profile::docker_hub()).await;
    world.walk().await;
    // Each manifest counted once for each mirror that pulled it as nobody and as somebody, whatever its HEADs.
    assert_eq!(world.registry.pulls(), 4);
    let mirror = world.builder().start().await;
    mirror.get("/v2/app/manifests/v1?ns=docker.io").await;
    let metrics = mirror.metrics().await;
    let left = metrics.lines().find(|line| line.starts_with("cachalot_upstream_ratelimit_remaining{")).unwrap();
    assert!(left.contains("docker.io") && left.ends_with("95"), "{left}");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_hub_counts_each_manifest_once_and_an_unchanged_tag_never_again() {
    let registry = Profile::docker_hub().start().await;
    let index = Index::new(7, &[100, 200, 300, 400, 500, 600, 700, 800, 900, 3_000_000]);
    registry.put_index("library/app", "v1", &index);
    let mirror = Mirror::builder().upstream("docker.io", &registry).tag_ttl("0s").start().await;
    let image = &index.images[0];
    let manifest = |reference: &str| format!("/v2/library/app/manifests/{reference}?ns=docker.io");
    let pull = async || {
        assert_eq!(mirror.head(&manifest("v1")).await.status(), 200);
        mirror.get(&manifest(&index.manifest.digest)).await.assert_ok(&index.manifest.bytes);
        mirror.get(&manifest(&image.manifest.digest)).await.assert_ok(&image.manifest.bytes);
        for part in image.blobs() {
            let path = format!("/v2/library/app/blobs/{}?ns=docker.io", part.digest);
            mirror.get(&path).await.assert_ok(&part.bytes);
        }
    };
    pull().await;
    for counted in [&index.manifest, &image.manifest] {
        assert_eq!(registry.count(&On::manifest(&counted.digest).get()), 1);
    }
    assert_eq!(registry.pulls(), 2, "the index and one platform's manifest");
    registry.forget_seen();
    // The tag is never fresh, so each of these asks.
    for _ in 0..100 {
        pull().await;
    }
    assert_eq!(registry.pulls(), 2);
    let asked = registry.seen(&On::any());
    assert!(asked.iter().all(|seen| seen.method == "HEAD"), "{:?}", asked.iter().find(|seen| seen.method != "HEAD"));
    assert_eq!(registry.count(&On::manifest("v1").head()), 100);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_hub_beyond_its_limit() {
    let world = World::new(Profile::docker_hub()).await;
    let mirror = world.builder().start().await;
    world.pull(&mirror, "library/app", &world.public).await;
    world.registry.fault(On::kind(Kind::Manifest), Fault::too_many_requests(Some("3600")));
    let moved = Image::new(5, &[10]);
    world.registry.put_image("library/app", "v1", &moved);
    // Held: served, with a word on why, and upstream is left alone as it wished.
    mirror.get(&world.public("v1")).await.assert_ok(&world.public.manifest.bytes);
    world.registry.forget_seen();
    for _ in 0..5 {
        let stale = mirror.get(&world.public("v1")).await;
        stale.assert_ok(&world.public.manifest.bytes);
        assert!(stale.header("warning").is_some_and(|text| text.contains("limits")), "{:?}", stale.head);
    }
    assert_eq!(world.registry.count(&On::any()), 0, "a pause is a pause");
    // Not held: clients never get a 429.
    let answer = mirror.get(&world.public(&moved.manifest.digest)).await;
    assert_eq!(answer.status(), 503, "{}", answer.text());
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_runs_low_stretches_lifetimes() {
    let world = World::new(Profile::docker_hub()).await;
    let mirror = world.builder().tag_ttl("1m").start().await;
    world.registry.fault(On::kind(Kind::Manifest), Fault::With("ratelimit-remaining", "3;w=21600".to_owned()));
    mirror.get(&world.public("v1")).await.assert_ok(&world.public.manifest.bytes);
    world.registry.forget_seen();
    let site = mirror.stop().await;
    age_tags(&site.data(), "docker.io/library/app", Duration::from_mins(5));
    // Only what it heard since its start counts, so it hears it again by another tag.
    world.registry.put_image("library/app", "v2", &world.public);
    let mirror = site.start().await;
    mirror.get(&world.public("v2")).await.assert_ok(&world.public.manifest.bytes);
    world.registry.forget_seen();
    mirror.get(&world.public("v1")).await.assert_ok(&world.public.manifest.bytes);
    assert_eq!(world.registry.count(&On::manifest("v1")), 0, "five minutes old, and good for ten");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ghcr() {
    let world = World::new(Profile::ghcr()).await;
    let index = Index::new(7, &[300]);
    world.registry.put_index("team/app", "multi", &index);
    world.walk().await;
    let mirror = world.builder().start().await;
    mirror.get(&world.public("multi")).await.assert_ok(&index.manifest.bytes);
    mirror.finish().await;
    // It refuses even what is public to a wrong password.
    let entry = "[{ username = \"bot\", password = \"expired\" }]";
    let mirror = world.builder().upstream_set("ghcr.io", "credentials", entry).start().await;
    mirror.get(&world.public("multi")).await.assert_ok(&index.manifest.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quay() {
    World::new(Profile::quay()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn google() {
    World::new(Profile::google()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes() {
    World::new(Profile::kubernetes()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nvidia() {
    World::new(Profile::nvidia()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ecr() {
    World::new(Profile::ecr()).await.walk().await;
}

/// A cache of Docker Hub's images in ECR, whose passwords a helper fetches for that registry's name.
#[tokio::test(flavor = "multi_thread")]
async fn ecr_s_pull_through_cache_with_passwords_that_end_after_twelve_hours() {
    let registry = Registry::builder().auth(Auth::Basic).redirect_blobs().start().await;
    registry.add_user("AWS", "first-word");
    let images = [1, 2, 3].map(|seed| Image::new(seed, &[1000]));
    for (image, tag) in images.iter().zip(["v1", "v2", "v3"]) {
        registry.put_image("docker-hub/library/app", tag, image);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let script = format!(
        "#!/bin/sh\nread -r server\necho \"$server\" >> {asked}\n[ \"$server\" = {addr} ] || exit 1\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"AWS\",\"Secret\":\"'\"$(cat {word})\"'\"}}'\n",
        asked = path("asked").display(),
        addr = registry.addr(),
        word = path("word").display(),
    );
    std::fs::write(path("helper"), script).unwrap();
    std::fs::set_permissions(path("helper"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(path("word"), "first-word").unwrap();
    let endpoints = format!(
        "[{{ url = \"{}\", repository_prefix = \"docker-hub\", helper = {} }}]",
        registry.url(),
        serde_json::json!(path("helper"))
    );
    let mirror = Mirror::builder()
        .upstream_set("docker.io", "endpoints", &endpoints)
        .upstream_set("docker.io", "share_private", "true")
        .tag_ttl("0s")
        .start()
        .await;
    let asked = || std::fs::read_to_string(path("asked")).unwrap().lines().count();
    mirror.pull("library/app", "v1", &images[0]).await;
    mirror.pull("library/app", "v2", &images[1]).await;
    assert_eq!(asked(), 1, "a helper is believed for a while");
    registry.add_user("AWS", "second-word");
    std::fs::write(path("word"), "second-word").unwrap();
    mirror.pull("library/app", "v3", &images[2]).await;
    assert_eq!(asked(), 2, "and asked again once what it said is refused");
    mirror.pull("library/app", "v1", &images[0]).await;
    assert_eq!(asked(), 2);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn public_ecr() {
    World::new(Profile::public_ecr()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure() {
    World::new(Profile::azure()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn microsoft() {
    World::new(Profile::microsoft()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn harbor() {
    World::new(Profile::harbor()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gitlab() {
    World::new(Profile::gitlab()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn artifactory() {
    World::new(Profile::artifactory()).await.walk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nexus() {
    let world = World::new(Profile::nexus()).await;
    world.registry.put_untagged("team/untagged", &world.public);
    world.walk().await;
    let mirror = world.with_credential().start().await;
    let none = mirror.get("/v2/team/untagged/tags/list?ns=nexus.corp").await;
    none.assert_ok(br#"{"name":"team/untagged","tags":[]}"#);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution() {
    World::new(Profile::distribution()).await.walk().await;
}

/// Docker's file with an identity token for a registry, which is exchanged by POST where the token server knows that.
#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_or_shown_by_the_old_way() {
    for exchange in [Exchange::Refresh, Exchange::Refused(400), Exchange::Refused(401), Exchange::Refused(404)] {
        let bearer = Bearer { anonymous: false, exchange, ..Bearer::default() };
        let registry = Registry::builder().auth(Auth::Bearer(bearer)).start().await;
        let image = Image::new(1, &[500]);
        registry.put_image("team/app", "v1", &image);
        registry.add_user("00000000-0000-0000-0000-000000000000", PASSWORD);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        // base64 of `00000000-0000-0000-0000-000000000000:`
        let auth = "MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOg==";
        let entry = serde_json::json!({ "auth": auth, "identitytoken": PASSWORD });
        std::fs::write(&file, serde_json::json!({ "auths": { "corp.azurecr.io": entry } }).to_string()).unwrap();
        let mirror = Mirror::builder()
            .upstream("corp.azurecr.io", &registry)
            .upstream_set("corp.azurecr.io", "share_private", "true")
            .set("credentials", "docker_config", &format!("[{}]", serde_json::json!(file)))
            .start()
            .await;
        let path = "/v2/team/app/manifests/v1?ns=corp.azurecr.io";
        mirror.get(path).await.assert_ok(&image.manifest.bytes);
        let methods: Vec<_> = registry.seen(&On::kind(Kind::Token)).iter().map(|seen| seen.method.clone()).collect();
        assert_eq!(methods, if exchange == Exchange::Refresh { vec!["POST"] } else { vec!["POST", "GET"] });
        mirror.finish().await;
    }
}
