//! The scripted registry and the raw client do what the other tests believe they do.

use crate::support::client::{self, Connection, End, Request};
use crate::support::images::{Blob, Image, Index, OCI_INDEX, OCI_MANIFEST, sha256};
use crate::support::registry::{Auth, Bearer, Denial, Fault, Kind, On, Registry};

/// A registry that holds one blob of `len` bytes in `app`, and the blob's path.
async fn with_blob(len: usize) -> (Registry, Blob, String) {
    let registry = Registry::start().await;
    let blob = Blob::noise(1, len);
    registry.put_blob("app", &blob);
    let path = format!("/v2/app/blobs/{}", blob.digest);
    (registry, blob, path)
}

#[tokio::test]
async fn serves_images_by_tag_and_digest_with_true_headers() {
    let registry = Registry::start().await;
    let index = Index::new(1, &[1000, 0]);
    registry.put_index("library/app", "v1", &index);
    for reference in ["v1", &index.manifest.digest] {
        let path = format!("/v2/library/app/manifests/{reference}");
        let answer = client::send(registry.addr(), &Request::get(&path)).await;
        answer.assert_ok(&index.manifest.bytes);
        assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
        assert_eq!(answer.header("docker-content-digest"), Some(sha256(&answer.body).as_str()));
        let head = client::send(registry.addr(), &Request::head(&path)).await;
        assert_eq!((head.status(), head.body.len(), head.end), (200, 0, End::Complete));
        assert_eq!(head.header("content-length"), Some(index.manifest.bytes.len().to_string().as_str()));
    }
    for image in &index.images {
        for blob in image.blobs() {
            let path = format!("/v2/library/app/blobs/{}", blob.digest);
            client::send(registry.addr(), &Request::get(path)).await.assert_ok(&blob.bytes);
        }
    }
    let unknown = client::send(registry.addr(), &Request::get("/v2/library/app/manifests/v2")).await;
    assert_eq!((unknown.status(), unknown.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
    assert_eq!(registry.count(&On::kind(Kind::Manifest).head()), 2);
    assert_eq!(registry.body_bytes(&On::blob(&index.images[0].layers[0].digest)), 1000);
}

#[tokio::test]
async fn answers_ranges() {
    let (registry, blob, path) = with_blob(2048).await;
    let mut connection = Connection::open(registry.addr()).await;
    for (range, first, last) in [
        ("bytes=500-1499", 500, 1499),
        ("bytes=500-", 500, 2047),
        ("bytes=-500", 1548, 2047),
        ("bytes=2000-5000", 2000, 2047),
        ("bytes=0-", 0, 2047),
        ("bytes=-5000", 0, 2047),
    ] {
        let answer = connection.exchange(&Request::get(&path).range(range)).await;
        assert_eq!(answer.status(), 206, "{range}");
        assert_eq!(answer.header("content-range"), Some(format!("bytes {first}-{last}/2048").as_str()));
        assert_eq!(answer.body, blob.bytes.slice(first..=last), "{range}");
    }
    for range in ["bytes=500-0", "bytes=5000-10000"] {
        let answer = connection.exchange(&Request::get(&path).range(range)).await;
        assert_eq!((answer.status(), answer.header("content-range")), (416, Some("bytes */2048")), "{range}");
    }
    assert_eq!(registry.connections(), 1);
    assert_eq!(registry.seen(&On::any().ranged(true)).len(), 8);
}

#[tokio::test]
async fn the_client_pipelines_and_tells_how_a_body_ended() {
    let (registry, blob, path) = with_blob(5000).await;
    let mut connection = Connection::open(registry.addr()).await;
    connection.send(&Request::get(&path)).await;
    connection.send(&Request::head(&path)).await;
    connection.send(&Request::get(&path).range("bytes=1-2")).await;
    connection.answer().await.assert_ok(&blob.bytes);
    assert_eq!(connection.answer().await.body.len(), 0);
    assert_eq!(connection.answer().await.body, blob.bytes.slice(1..3));

    for (fault, end, len) in [
        (Fault::Cut(1234), End::Short, 1234),
        (Fault::Cut(0), End::Short, 0),
        (Fault::ContentLength(6000), End::Short, 5000),
        (Fault::NoLength, End::Closed, 5000),
        (Fault::Chunked, End::Complete, 5000),
        (Fault::Overlong(7), End::Complete, 5007),
        (Fault::Drip(1000), End::Complete, 5000),
    ] {
        registry.fault(On::blob(&blob.digest).once(), fault.clone());
        let answer = client::send(registry.addr(), &Request::get(&path)).await;
        assert_eq!((answer.status(), answer.end, answer.body.len()), (200, end, len), "{fault:?}");
        assert_eq!(answer.body[..len.min(5000)], blob.bytes[..len.min(5000)], "{fault:?}");
    }
    registry.fault(On::blob(&blob.digest).once(), Fault::Reset(100));
    let answer = client::send(registry.addr(), &Request::get(&path)).await;
    assert_eq!(answer.end, End::Reset);
    registry.fault(On::blob(&blob.digest).once(), Fault::HangUp);
    let mut connection = Connection::open(registry.addr()).await;
    connection.send(&Request::get(&path)).await;
    assert!(connection.try_head().await.is_none());
    assert_eq!(connection.closed().await, End::Short);
}

#[tokio::test]
async fn faults_befall_those_that_they_are_meant_for() {
    let (registry, blob, path) = with_blob(300).await;
    let on = On::blob(&blob.digest).get().after(1).times(2);
    registry.fault(on, Fault::status(503));
    let get = Request::get(&path);
    let mut statuses = Vec::new();
    for request in [&get, &Request::head(&path), &get, &get, &get] {
        statuses.push(client::send(registry.addr(), request).await.status());
    }
    assert_eq!(statuses, [200, 200, 503, 503, 200]);

    registry.fault(On::blob(&blob.digest), Fault::Corrupt(299));
    let answer = client::send(registry.addr(), &get).await;
    assert_eq!(answer.body[..299], blob.bytes[..299]);
    assert_eq!(answer.body[299], !blob.bytes[299]);
    let ranged = client::send(registry.addr(), &Request::get(&path).range("bytes=290-")).await;
    assert_eq!((ranged.status(), ranged.body[9]), (206, !blob.bytes[299]));
    registry.heal();
    client::send(registry.addr(), &get).await.assert_ok(&blob.bytes);

    registry.fault(On::any(), Fault::IgnoreRange);
    client::send(registry.addr(), &Request::get(&path).range("bytes=290-")).await.assert_ok(&blob.bytes);
    registry.heal();
    registry.fault(On::any(), Fault::Gzip);
    let zipped = client::send(registry.addr(), &get).await;
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    assert_eq!(zipped.body[15..315], blob.bytes);
    registry.heal();
    registry.fault(On::any(), Fault::too_many_requests(Some("7")));
    let refused = client::send(registry.addr(), &get).await;
    assert_eq!((refused.status(), refused.header("retry-after")), (429, Some("7")));
}

#[tokio::test]
async fn gates_hold_heads_and_bodies_until_they_open() {
    let registry = Registry::builder().v6().start().await;
    let blob = Blob::noise(1, 300);
    registry.put_blob("app", &blob);
    let path = format!("/v2/app/blobs/{}", blob.digest);
    let head = registry.gate_blob(&blob.digest);
    let body = registry.gate_body(On::blob(&blob.digest), 100);
    let mut connection = Connection::open(registry.addr()).await;
    connection.send(&Request::get(&path)).await;
    head.arrived().await;
    registry.asked(&On::blob(&blob.digest), 1).await;
    assert_eq!(body.arrivals(), 0);
    head.let_one_pass();
    assert_eq!(connection.head().await.status, 200);
    assert_eq!(connection.take(100).await, blob.bytes.slice(..100));
    body.arrived().await;
    let seen = registry.seen(&On::blob(&blob.digest));
    assert_eq!((seen[0].body_bytes(), seen[0].finished()), (100, false));
    body.open();
    assert_eq!(connection.rest().await, (blob.bytes.slice(100..), End::Complete));
    assert_eq!(seen[0].body_bytes(), 300);
}

#[tokio::test]
async fn redirects_are_signed_for_a_method_and_expire() {
    let registry = Registry::builder().redirect_blobs().redirect_manifests().start().await;
    let image = Image::new(1, &[500]);
    registry.put_image("app", "v1", &image);
    let layer = &image.layers[0];
    let path = format!("/v2/app/blobs/{}", layer.digest);
    let location = |answer: &client::Answer| {
        assert_eq!(answer.status(), 307);
        let prefix = format!("http://{}", registry.cdn_addr());
        answer.header("location").unwrap().strip_prefix(&prefix).unwrap().to_owned()
    };
    let signed = location(&client::send(registry.addr(), &Request::get(&path)).await);
    client::send(registry.cdn_addr(), &Request::get(&signed)).await.assert_ok(&layer.bytes);
    assert_eq!(client::send(registry.cdn_addr(), &Request::head(&signed)).await.status(), 403);
    assert_eq!(registry.count(&On::cdn(&layer.digest).get()), 1);
    assert_eq!(registry.violations(), [""; 0]);
    let leaked = Request::get(&signed).header("Authorization", "Bearer x");
    assert_eq!(client::send(registry.cdn_addr(), &leaked).await.status(), 400);
    assert_eq!(registry.violations().len(), 1);
    registry.expire_signatures();
    assert_eq!(client::send(registry.cdn_addr(), &Request::get(&signed)).await.status(), 403);

    let accept = Request::get("/v2/app/manifests/v1").header("Accept", "*/*");
    let signed = location(&client::send(registry.addr(), &accept).await);
    let manifest = client::send(registry.cdn_addr(), &Request::get(&signed)).await;
    manifest.assert_ok(&image.manifest.bytes);
    assert_eq!(manifest.header("content-type"), Some(OCI_MANIFEST));
}

#[tokio::test]
async fn tokens_open_what_their_user_may_read() {
    let bearer = Bearer { denial: Denial::Resource403, ..Bearer::default() };
    let registry = Registry::builder().auth(Auth::Bearer(bearer)).start().await;
    for repository in ["open", "secret"] {
        registry.put_image(repository, "v1", &Image::new(1, &[]));
    }
    registry.add_user("ann", "pässword:1");
    registry.make_private("secret", &["ann"]);
    let token = async |repository: &str, basic: Option<&str>| {
        let mut request =
            Request::get(format!("/token?service=scripted&scope=repository%3A{repository}%3Apull&extra=1"));
        if let Some(basic) = basic {
            request = request.header("Authorization", basic);
        }
        let answer = client::send(registry.addr(), &request).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        format!("Bearer {}", answer.json()["token"].as_str().unwrap())
    };
    let get = async |repository: &str, token: &str| {
        let request = Request::get(format!("/v2/{repository}/manifests/v1")).header("Authorization", token);
        client::send(registry.addr(), &request).await
    };
    let bare = client::send(registry.addr(), &Request::get("/v2/open/manifests/v1")).await;
    assert_eq!(bare.status(), 401);
    let challenge = bare.header("www-authenticate").unwrap();
    assert!(challenge.contains(&format!("Bearer realm=\"{}/token\"", registry.url())), "{challenge}");

    let anonymous = token("open", None).await;
    assert_eq!(get("open", &anonymous).await.status(), 200);
    assert_eq!(get("secret", &anonymous).await.status(), 401, "the scope does not cover it");
    assert_eq!(get("secret", &token("secret", None).await).await.status(), 403);
    let ann = token("secret", Some("Basic YW5uOnDDpHNzd29yZDox")).await;
    assert_eq!(get("secret", &ann).await.status(), 200);
    registry.expire_tokens();
    assert_eq!(get("secret", &ann).await.status(), 401);
}

#[tokio::test]
async fn tag_lists_come_in_pages() {
    let registry = Registry::builder().tags_per_page(2).start().await;
    let image = Image::new(1, &[]);
    for tag in ["a", "b", "c", "d", "e"] {
        registry.put_image("app", tag, &image);
    }
    let mut next = Some("/v2/app/tags/list?n=100".to_owned());
    let mut tags = Vec::new();
    while let Some(path) = next {
        let answer = client::send(registry.addr(), &Request::get(path)).await;
        tags.extend(answer.json()["tags"].as_array().unwrap().clone());
        next = answer.header("link").map(|link| link[1..link.find('>').unwrap()].to_owned());
    }
    assert_eq!(tags, ["a", "b", "c", "d", "e"]);
}

#[tokio::test]
async fn lists_what_refers_to_a_manifest() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[]);
    registry.put_image("app", "v1", &image);
    let signature = Image::artifact(2, "application/x-signature", &image.manifest);
    registry.put_untagged("app", &signature);
    let path = format!("/v2/app/referrers/{}", image.manifest.digest);
    let answer = client::send(registry.addr(), &Request::get(&path)).await;
    assert_eq!(answer.json()["manifests"][0]["digest"], signature.manifest.digest.as_str());
    assert_eq!(answer.json()["manifests"][0]["artifactType"], "application/x-signature");
}

#[tokio::test]
async fn a_registry_that_is_down_refuses_connections_until_it_comes_back() {
    let (registry, blob, path) = with_blob(300).await;
    let mut connection = Connection::open(registry.addr()).await;
    connection.exchange(&Request::get(&path)).await.assert_ok(&blob.bytes);
    registry.go_down().await;
    assert!(tokio::net::TcpStream::connect(registry.addr()).await.is_err());
    assert!(matches!(connection.closed().await, End::Short | End::Reset));
    registry.come_back().await;
    client::send(registry.addr(), &Request::get(&path)).await.assert_ok(&blob.bytes);
}

#[tokio::test]
async fn bandwidth_is_limited_by_connection() {
    let registry = Registry::builder().bandwidth(1_000_000).start().await;
    let blob = Blob::noise(1, 200_000);
    registry.put_blob("app", &blob);
    let begun = std::time::Instant::now();
    let path = format!("/v2/app/blobs/{}", blob.digest);
    client::send(registry.addr(), &Request::get(path)).await.assert_ok(&blob.bytes);
    assert!(begun.elapsed().as_millis() >= 180, "{:?}", begun.elapsed());
}
