//! Who may read: names proven by password or token, rules on all that a repository has, and what stays private.

use base64::Engine as _;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::support::client::{Answer, Request};
use crate::support::images::Image;
use crate::support::mirror::{Builder, Mirror, blob, manifest};
use crate::support::registry::{Auth, Bearer, On, Registry};

const TOKEN: &str = "0123456789abcdef";

/// Files of users: `ann` and `bob` with passwords, `ci` with a token.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let line = |name: &str| format!("{name}:{}\n", bcrypt::hash(format!("{name}-password"), 4).unwrap());
        std::fs::write(folder.path().join("htpasswd"), line("ann") + &line("bob")).unwrap();
        std::fs::write(folder.path().join("tokens"), format!("ci:{TOKEN}\n")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn quoted(&self, name: &str) -> String {
        serde_json::json!(self.path(name)).to_string()
    }

    /// Adds `[access]` with these users and `rules`.
    fn access(&self, builder: Builder, rules: &str) -> Builder {
        let builder = builder.set("access", "htpasswd", &self.quoted("htpasswd")).set(
            "access",
            "tokens_file",
            &self.quoted("tokens"),
        );
        if rules.is_empty() { builder } else { builder.set("access", "rules", rules) }
    }
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}")))
}

async fn get(mirror: &Mirror, path: &str, authorization: &str) -> Answer {
    let request = Request::get(path);
    let request = if authorization.is_empty() { request } else { request.header("Authorization", authorization) };
    mirror.send(&request).await
}

/// Every way to read something of a repository.
fn paths(repository: &str, image: &Image) -> Vec<String> {
    let digest = &image.manifest.digest;
    let mut paths = vec![
        manifest(repository, "v1"),
        manifest(repository, digest),
        format!("/v2/{repository}/tags/list?ns=docker.io"),
        format!("/v2/{repository}/referrers/{digest}?ns=docker.io"),
    ];
    paths.extend(image.blobs().map(|part| blob(repository, &part.digest)));
    paths
}

fn assert_challenge(answer: &Answer, path: &str) {
    assert_eq!(answer.status(), 401, "{path}");
    assert_eq!(answer.error_code(), "UNAUTHORIZED");
    let challenge = answer.header("www-authenticate").unwrap();
    assert!(challenge.starts_with("Basic realm=\"cachalot\""), "{challenge}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_access_nobody_is_asked_for_a_name_and_none_is_looked_at() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    assert_eq!(get(&mirror, "/v2/", "").await.status(), 200);
    assert_eq!(get(&mirror, "/v2/", &basic("ann", "wrong")).await.status(), 200);
    get(&mirror, &manifest("library/app", "v1"), "Bearer of-somewhere-else").await.assert_ok(&image.manifest.bytes);
    for seen in registry.seen(&On::any()) {
        assert_eq!(seen.header("authorization"), None, "what clients say goes nowhere: {}", seen.target);
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_proven_and_rules_keep_users_out_of_all_that_a_repository_has() {
    let registry = Registry::start().await;
    let (app, tool) = (Image::new(1, &[2000, 70_000]), Image::new(2, &[3000]));
    registry.put_image("library/app", "v1", &app);
    registry.put_image("acme/tool", "v1", &tool);
    let files = Files::new();
    let rules = "[{ users = [\"*\"], repositories = [\"docker.io/library/*\"] }, \
                 { users = [\"ann\", \"ci\"], repositories = [\"docker.io/acme/**\"] }]";
    let mirror = files.access(Mirror::builder().upstream("docker.io", &registry), rules).start().await;
    let (ann, bob) = (basic("ann", "ann-password"), basic("bob", "bob-password"));
    let bearer = format!("Bearer {TOKEN}");
    assert_challenge(&get(&mirror, "/v2/", "").await, "/v2/");
    for good in [&ann, &bob, &bearer, &basic("ci", TOKEN)] {
        assert_eq!(get(&mirror, "/v2/", good).await.status(), 200, "{good}");
    }
    for wrong in [&basic("ann", "bob-password"), &basic("eve", "x"), "Bearer 0123456789abcdee", "Basic ?"] {
        assert_challenge(&get(&mirror, "/v2/", wrong).await, "/v2/");
    }
    // Cold, then held: no difference.
    for _ in 0..2 {
        for path in paths("acme/tool", &tool) {
            let denied = get(&mirror, &path, &bob).await;
            assert_eq!((denied.status(), denied.error_code()), (403, "DENIED".to_owned()), "{path}");
            assert!(denied.header("www-authenticate").is_none());
            assert_challenge(&get(&mirror, &path, "").await, &path);
            assert_challenge(&get(&mirror, &path, &basic("ann", "wrong-password")).await, &path);
        }
        assert_eq!(registry.seen(&On::any()).iter().filter(|seen| seen.target.contains("acme")).count(), 0);
        for path in paths("library/app", &app) {
            assert_eq!(get(&mirror, &path, &bob).await.status(), 200, "{path}");
        }
        registry.forget_seen();
        for path in paths("acme/tool", &tool) {
            assert_eq!(get(&mirror, &path, &ann).await.status(), 200, "{path}");
            assert_eq!(get(&mirror, &path, &bearer).await.status(), 200, "{path}");
        }
        for seen in registry.seen(&On::any()) {
            assert_eq!(seen.header("authorization"), None, "{}", seen.target);
        }
        registry.forget_seen();
    }
    // A blob that is held is not to be had through a repository that one may read and that lacks it.
    let through_app = get(&mirror, &blob("library/app", &tool.layers[0].digest), &bob).await;
    assert_eq!(through_app.status(), 404, "{}", through_app.text());
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_our_credential_opens_is_for_those_whom_a_rule_names() {
    let registry = Registry::builder().auth(Auth::Bearer(Bearer::default())).start().await;
    registry.add_user("bot", "secret");
    let (public, private) = (Image::new(1, &[2000]), Image::new(2, &[3000]));
    registry.put_image("library/app", "v1", &public);
    registry.put_image("acme/secret", "v1", &private);
    registry.make_private("acme/secret", &["bot"]);
    let files = Files::new();
    let rules = "[{ users = [\"anonymous\"], repositories = [\"**\"] }, \
                 { users = [\"ann\"], repositories = [\"docker.io/acme/*\"] }]";
    let builder = Mirror::builder().upstream("docker.io", &registry).upstream_set(
        "docker.io",
        "credentials",
        "[{ username = \"bot\", password = \"secret\" }]",
    );
    let mirror = files.access(builder, rules).start().await;
    let ann = basic("ann", "ann-password");
    // Some clients say who they are only if they are asked here, and go on as nobody if they are nobody.
    assert_challenge(&get(&mirror, "/v2/", "").await, "/v2/");
    assert_challenge(&get(&mirror, "/v2/", &basic("ann", "wrong")).await, "/v2/");
    let open = manifest("library/app", "v1");
    for nobody in ["", "Basic Og=="] {
        assert_eq!(get(&mirror, &open, nobody).await.status(), 200, "{nobody:?}");
    }
    // This one gives up if it's asked and has nothing to say.
    let dockerd = Request::get("/v2/").header("User-Agent", "docker/28.0.1 go/go1.23 os/linux");
    assert_eq!(mirror.send(&dockerd).await.status(), 200);
    for _ in 0..2 {
        for path in [manifest("acme/secret", "v1"), blob("acme/secret", &private.layers[0].digest)] {
            for stranger in ["", &basic("bob", "bob-password")] {
                let denied = get(&mirror, &path, stranger).await;
                assert_eq!((denied.status(), denied.error_code()), (403, "DENIED".to_owned()), "{path}");
            }
            assert_eq!(get(&mirror, &path, &ann).await.status(), 200, "{path}");
        }
        get(&mirror, &manifest("library/app", "v1"), "").await.assert_ok(&public.manifest.bytes);
    }
    mirror.finish().await;
}

/// The attack: whoever may push somewhere public pushes a manifest there that lists a private blob's digest, and asks for that
/// blob there. Ann, whom a rule lets in, has had it pulled; so it is on the disk, or just arriving.
#[tokio::test(flavor = "multi_thread")]
async fn a_public_manifest_that_names_a_private_digest_opens_nothing_whatever_is_held_or_under_way() {
    let registry = Registry::builder().auth(Auth::Bearer(Bearer::default())).start().await;
    registry.add_user("bot", "secret");
    let (private, other) = (Image::new(2, &[3000, 3_000_000]), Registry::start().await);
    registry.put_image("acme/secret", "v1", &private);
    registry.make_private("acme/secret", &["bot"]);
    registry.put_manifest("mallory/open", Some("v1"), &private.manifest);
    // Of another upstream, too, which needs no credential at all.
    other.put_manifest("mallory/open", Some("v1"), &private.manifest);
    let files = Files::new();
    let rules = "[{ users = [\"anonymous\"], repositories = [\"**\"] }, \
                 { users = [\"ann\"], repositories = [\"docker.io/acme/*\"] }]";
    let builder = Mirror::builder().upstream("docker.io", &registry).upstream("quay.io", &other).upstream_set(
        "docker.io",
        "credentials",
        "[{ username = \"bot\", password = \"secret\" }]",
    );
    let mirror = files.access(builder, rules).start().await;
    let ann = basic("ann", "ann-password");
    let digest = &private.manifest.digest;
    let layer = &private.layers[1];
    let upstreams = ["docker.io", "quay.io"];
    let stolen = |mirror: &Mirror, digest: &str| {
        let addr = mirror.addr();
        let paths = upstreams.map(|name| format!("/v2/mallory/open/blobs/{digest}?ns={name}"));
        async move {
            for path in paths {
                for request in [
                    Request::get(&path),
                    Request::get(&path).range("bytes=0-99"),
                    Request::get(&path).range("bytes=-99"),
                    Request::head(&path),
                ] {
                    let answer = crate::support::client::send(addr, &request).await;
                    assert!([403, 404].contains(&answer.status()), "{path}: {}", answer.status());
                    assert!(answer.body.len() < 2000, "{path}");
                }
            }
        }
    };
    // The manifest itself is what Mallory has anyway.
    for name in upstreams {
        let open = mirror.get(&format!("/v2/mallory/open/manifests/v1?ns={name}")).await;
        open.assert_ok(&private.manifest.bytes);
    }
    // Nobody has it yet.
    stolen(&mirror, &layer.digest).await;
    // Just arriving, for Ann.
    assert_eq!(get(&mirror, &manifest("acme/secret", "v1"), &ann).await.status(), 200);
    let gate = registry.gate_body(On::blob(&layer.digest).repository("acme/secret").get().once(), 2_000_000);
    let path = blob("acme/secret", &layer.digest);
    let mut arriving = mirror.connect().await;
    arriving.send(&Request::get(&path).header("Authorization", ann.clone())).await;
    assert_eq!(arriving.head().await.status, 200);
    gate.arrived().await;
    stolen(&mirror, &layer.digest).await;
    let strangers = mirror.get(&path).await;
    assert_eq!((strangers.status(), strangers.error_code()), (403, "DENIED".to_owned()));
    gate.open();
    assert_eq!(arriving.rest().await.0, layer.bytes);
    mirror.idle().await;
    for path in paths("acme/secret", &private) {
        assert_eq!(get(&mirror, &path, &ann).await.status(), 200, "{path}");
    }
    // From the disk, and with upstream gone or not to be asked; in memory after the first time.
    let denied = async |mirror: &Mirror| {
        for _ in 0..2 {
            for part in private.blobs() {
                stolen(mirror, &part.digest).await;
            }
            for path in paths("acme/secret", &private) {
                let answer = mirror.get(&path).await;
                assert_eq!((answer.status(), answer.error_code()), (403, "DENIED".to_owned()), "{path}");
            }
            // A blob of it through its own repository's name elsewhere.
            let elsewhere = mirror.get(&format!("/v2/acme/secret/manifests/{digest}?ns=quay.io")).await;
            assert!([403, 404].contains(&elsewhere.status()), "{}", elsewhere.text());
        }
    };
    denied(&mirror).await;
    let site = mirror.stop().await;
    let mirror = site.start().await;
    denied(&mirror).await;
    mirror.idle().await;
    let site = mirror.stop().await;
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("offline = true\n{config}")).unwrap();
    let mirror = site.start().await;
    denied(&mirror).await;
    for path in paths("acme/secret", &private).into_iter().filter(|path| !path.contains("referrers")) {
        assert_eq!(get(&mirror, &path, &ann).await.status(), 200, "{path}");
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exempt_address_asks_for_no_name() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let files = Files::new();
    let builder = Mirror::builder()
        .upstream("docker.io", &registry)
        .set("server", "listen", "[\"127.0.0.1:0\", \"[::1]:0\"]")
        .set("access", "exempt", "\"127.0.0.1:0\"");
    let mirror = files.access(builder, "").start().await;
    get(&mirror, &manifest("library/app", "v1"), "").await.assert_ok(&image.manifest.bytes);
    let other = mirror.addrs()[1];
    let refused = crate::support::client::send(other, &Request::get(manifest("library/app", "v1"))).await;
    assert_challenge(&refused, "over [::1]");
    mirror.finish().await;
}
