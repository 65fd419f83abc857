//! A name is a key to look up and never an address to dial.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;

use crate::support::client::Request;
use crate::support::images::{Blob, Image};
use crate::support::mirror::Mirror;
use crate::support::registry::Registry;

/// A listener that nobody should ever connect to.
struct Tripwire {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Tripwire {
    async fn lay() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        cachalot::tasks::spawn("tripwire", async move {
            while listener.accept().await.is_ok() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { port, connections }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_configured_are_404_and_dial_nothing() {
    let wire = Tripwire::lay().await;
    let registry = Registry::start().await;
    let mirror = Mirror::of(&registry).await;
    let port = wire.port;
    let digest = Blob::new("x").digest;
    let namespaces = [
        "evil.example".to_owned(),
        "127.0.0.1:1".to_owned(),
        format!("127.0.0.1:{port}"),
        format!("127.0.0.1%3A{port}"),
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
        format!("http://127.0.0.1:{port}"),
        format!("http%3A%2F%2F127.0.0.1%3A{port}%2F"),
        format!("docker.io@127.0.0.1:{port}"),
        "169.254.169.254".to_owned(),
        "docker.io.evil.example".to_owned(),
        "evil.example%23docker.io".to_owned(),
    ];
    for namespace in &namespaces {
        // What is no host name may as well be told so.
        let malformed = namespace.contains("//") || namespace.contains("%2F") || namespace.contains(['@', '%']);
        for endpoint in
            ["manifests/v1".to_owned(), format!("blobs/{digest}"), "tags/list".into(), format!("referrers/{digest}")]
        {
            let path = format!("/v2/library/app/{endpoint}?ns={namespace}");
            let answer = mirror.get(&path).await;
            let refusal = (answer.status(), answer.error_code());
            let unknown = refusal == (404, "NAME_UNKNOWN".to_owned());
            assert!(unknown || (malformed && refusal == (400, "NAME_INVALID".to_owned())), "{path}: {refusal:?}");
            assert_eq!(mirror.head(&path).await.status(), answer.status(), "{path}");
        }
    }
    let told = mirror.get("/v2/library/app/manifests/v1?ns=evil.example").await.error_message();
    assert!(told.contains("evil.example") && told.contains("upstreams"), "says what and what to do: {told}");

    for path in [
        "/v2/evil.example/library/app/manifests/v1".to_owned(),
        "/evil.example/v2/library/app/manifests/v1".to_owned(),
        "/evil/deeper/v2/library/app/manifests/v1?ns=docker.io".to_owned(),
        "/v2/localhost/app/manifests/v1".to_owned(),
        "/v2/127.0.0.1/app/manifests/v1".to_owned(),
        format!("/127.0.0.1:{port}/v2/app/manifests/v1"),
    ] {
        let answer = mirror.get(&path).await;
        assert_eq!((answer.status(), answer.error_code().as_str()), (404, "NAME_UNKNOWN"), "{path}");
        assert!(!answer.error_message().is_empty());
    }
    // What is no name at all may as well be told so.
    let port_in_path = mirror.get(&format!("/v2/127.0.0.1:{port}/app/manifests/v1")).await;
    assert!([400, 404].contains(&port_in_path.status()), "{:?}", port_in_path.head);

    assert_eq!(wire.connections.load(Ordering::SeqCst), 0);
    assert_eq!(registry.connections(), 0, "what is refused is not asked of the default upstream either");
    let counted = mirror.metrics().await;
    let refused = counted.lines().find(|line| line.starts_with("cachalot_refused_names_total")).unwrap_or_default();
    assert!(!refused.is_empty() && !refused.ends_with(" 0"), "{refused:?}");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_absolute_targets_are_never_dialled() {
    let wire = Tripwire::lay().await;
    let registry = Registry::start().await;
    let image = Image::new(1, &[]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    let evil = format!("127.0.0.1:{}", wire.port);
    // An unknown Host means the default upstream.
    let host = Request::get("/v2/library/app/manifests/v1").header("Host", &evil);
    mirror.send(&host).await.assert_ok(&image.manifest.bytes);
    let proxied = Request::get(format!("http://{evil}/v2/library/app/manifests/v1"));
    let answer = mirror.send(&proxied).await;
    assert!([200, 400, 404].contains(&answer.status()), "{:?}", answer.head);
    let tunnel = mirror.send(&Request::new("CONNECT", &evil)).await;
    assert!((400..500).contains(&tunnel.status()), "{:?}", tunnel.head);
    for name in ["X-Forwarded-Host", "Forwarded", "X-Original-URL"] {
        let request = Request::get("/v2/library/app/manifests/v1").header(name, &evil);
        mirror.send(&request).await.assert_ok(&image.manifest.bytes);
    }
    assert_eq!(wire.connections.load(Ordering::SeqCst), 0);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_default_upstream_a_request_must_name_one() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[]);
    registry.put_image("library/app", "v1", &image);
    let builder = Mirror::builder().upstream("docker.io", &registry).set("server", "default_upstream", "\"\"");
    let mirror = builder.start().await;
    let answer = mirror.get("/v2/library/app/manifests/v1").await;
    assert_eq!((answer.status(), answer.error_code().as_str()), (404, "NAME_UNKNOWN"));
    assert_eq!(registry.connections(), 0);
    mirror.get("/v2/library/app/manifests/v1?ns=docker.io").await.assert_ok(&image.manifest.bytes);
    mirror.finish().await;
}
