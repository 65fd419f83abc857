//! Ranges asked right where the registry's redirect led to, until that place has had enough.

use super::*;

const BLOB: &str = "GET /v2/team/app/blobs/";

/// A registry that wants Basic and sends blobs to a content network, whose answer a test chooses.
async fn world(status: &Arc<AtomicUsize>) -> (Script, Script) {
    let status = Arc::clone(status);
    let cdn = Script::start(move |seen| {
        let range = seen.header("range").map(str::to_owned);
        match (status.load(Ordering::Relaxed), range) {
            (206, Some(_)) => Reply::raw(
                "HTTP/1.1 206 x\r\ncontent-range: bytes 0-1/4\r\ncontent-length: 2\r\n\r\nbl",
                Then::KeepAlive,
            ),
            (206 | 200, _) => Reply::ok("blob"),
            (0, _) => Reply::new(200, &[("content-type", "text/html")], "<html>expired</html>"),
            (1, _) => Reply::raw("", Then::Close),
            (status, _) => Reply::new(u16::try_from(status).unwrap(), &[("location", "http://127.0.0.9/x")], ""),
        }
    })
    .await;
    let (place, count) = (cdn.url(), AtomicUsize::new(0));
    let registry = Script::start(move |seen| match seen.authorization() {
        Some(_) => {
            let n = count.fetch_add(1, Ordering::Relaxed);
            Reply::redirect(307, &format!("{place}blob?signature={n}"))
        }
        None => Reply::challenge("Basic"),
    })
    .await;
    (registry, cdn)
}

fn redirects(registry: &Script) -> usize {
    registry.seen().iter().filter(|seen| seen.authorization().is_some()).count()
}

const RANGE: BlobRange = BlobRange { first: 0, last: Some(1) };

#[tokio::test]
async fn ranges_of_one_blob_cost_the_registry_one_question() {
    let status = Arc::new(AtomicUsize::new(206));
    let (registry, cdn) = world(&status).await;
    let upstream = registry.upstream_with_credential();
    for _ in 0..5 {
        assert_eq!(read(blob(&upstream, Some(RANGE)).await.unwrap()).await.unwrap(), b"bl");
    }
    assert_eq!((redirects(&registry), cdn.seen().len()), (1, 5));
    assert!(cdn.seen().iter().all(|seen| seen.authorization().is_none() && seen.target == "/blob?signature=0"));
    // Another repository proves its own right to the blob.
    let other = upstream.get_blob(&repository("other"), &Digest::sha256(b"blob"), Some(RANGE), Lane::Foreground).await;
    assert_eq!(read(other.unwrap()).await.unwrap(), b"bl");
    assert_eq!(redirects(&registry), 2);
    // A whole blob is asked of the registry, and what that brings is used for its ranges.
    assert_eq!(read(blob(&upstream, None).await.unwrap()).await.unwrap(), b"blob");
    read(blob(&upstream, Some(RANGE)).await.unwrap()).await.unwrap();
    assert_eq!(redirects(&registry), 3);
    assert_eq!(cdn.seen().last().unwrap().target, "/blob?signature=2");
    assert!(registry.story().iter().all(|line| line.starts_with(BLOB) || line.starts_with("GET /v2/other/")));
}

#[tokio::test]
async fn an_address_that_was_refused_is_not_asked_again_and_the_registry_is_asked_once() {
    for refusal in [400, 401, 403, 404, 410, 416, 429, 500, 503, 307, 0, 1] {
        let status = Arc::new(AtomicUsize::new(206));
        let (registry, cdn) = world(&status).await;
        let upstream = registry.upstream_with_credential();
        read(blob(&upstream, Some(RANGE)).await.unwrap()).await.unwrap();
        status.store(refusal, Ordering::Relaxed);
        // The fresh address is refused, too, so this is an error; but the registry was asked for it, once.
        let _ = blob(&upstream, Some(RANGE)).await;
        assert_eq!(redirects(&registry), 2, "{refusal}");
        let asked = cdn.seen().iter().filter(|seen| seen.target == "/blob?signature=0").count();
        status.store(206, Ordering::Relaxed);
        assert_eq!(read(blob(&upstream, Some(RANGE)).await.unwrap()).await.unwrap(), b"bl", "{refusal}");
        let again = cdn.seen().iter().filter(|seen| seen.target == "/blob?signature=0").count();
        assert_eq!(again, asked, "{refusal}");
    }
}

#[tokio::test]
async fn an_expired_address_is_resolved_again_within_the_same_question() {
    let cdn = Script::start(|seen| {
        if seen.target.ends_with("=0") && seen.header("range") == Some("bytes=0-1") {
            return Reply::new(403, &[], "<Error>ExpiredRequest</Error>");
        }
        Reply::raw("HTTP/1.1 206 x\r\ncontent-range: bytes 0-1/4\r\ncontent-length: 2\r\n\r\nbl", Then::KeepAlive)
    })
    .await;
    let (place, count) = (cdn.url(), AtomicUsize::new(0));
    let registry = Script::start(move |_| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        Reply::redirect(307, &format!("{place}blob?signature={n}"))
    })
    .await;
    let upstream = registry.upstream();
    let first = BlobRange { first: 0, last: Some(2) };
    blob(&upstream, Some(first)).await.unwrap();
    assert_eq!(read(blob(&upstream, Some(RANGE)).await.unwrap()).await.unwrap(), b"bl");
    let asked: Vec<String> = cdn.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(asked, ["/blob?signature=0", "/blob?signature=0", "/blob?signature=1"]);
}

#[tokio::test]
async fn a_place_with_a_door_of_its_own_is_reached_through_the_registry() {
    let cdn = Script::start(|seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => Reply::ok(r#"{"token":"foreign"}"#),
        (_, Some("Bearer foreign")) => Reply::ok("blob"),
        _ => Reply::challenge(&format!(
            "Bearer realm=\"http://{}/token\",scope=\"repository:x:pull\"",
            seen.header("host").unwrap()
        )),
    })
    .await;
    let place = cdn.url();
    let registry = Script::start(move |_| Reply::redirect(307, place.as_str())).await;
    let upstream = registry.upstream();
    for _ in 0..2 {
        assert_eq!(read(blob(&upstream, Some(RANGE)).await.unwrap()).await.unwrap(), b"blob");
    }
    assert_eq!(registry.seen().len(), 2);
}
