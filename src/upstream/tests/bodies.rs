//! Manifests and blobs: what a good answer brings, and what becomes of a bad one.

use super::*;

fn kind_of<T>(result: Result<T, UpstreamError>) -> UpstreamErrorKind {
    match result {
        Ok(_) => panic!("an error was due"),
        Err(error) => error.kind,
    }
}

fn is_protocol<T>(result: Result<T, UpstreamError>) -> bool {
    matches!(kind_of(result), UpstreamErrorKind::Protocol(_))
}

#[tokio::test]
async fn a_manifest_comes_with_what_its_headers_say() {
    let digest = Digest::sha256(b"{}");
    let text = digest.to_string();
    let script = Script::start(move |_| {
        let headers = [("content-type", "application/vnd.oci.image.index.v1+json"), ("docker-content-digest", &text)];
        Reply::new(200, &headers, "{}")
    })
    .await;
    let upstream = script.upstream();
    let media_type = Some("application/vnd.oci.image.index.v1+json".to_owned());
    let body = get(&upstream).await.unwrap();
    assert_eq!(body, ManifestBody { bytes: "{}".into(), media_type: media_type.clone(), digest: Some(digest) });
    let reference = Reference::Digest(digest);
    let head = upstream.head_manifest(&app(), &reference, Access::Configured).await.unwrap();
    assert_eq!(head, ManifestHead { digest: Some(digest), media_type, size_bytes: Some(2) });
    assert_eq!(script.seen()[1].path(), format!("/v2/team/app/manifests/{digest}"));
    assert_eq!(script.seen()[0].header("accept"), Some(crate::oci::media::ACCEPT_MANIFESTS));
}

#[tokio::test]
async fn a_manifest_without_headers_is_taken_as_it_is() {
    let script = Script::start(|_| Reply::new(200, &[("docker-content-digest", "sha256:short")], "{}")).await;
    let body = get(&script.upstream()).await.unwrap();
    assert_eq!((body.media_type, body.digest), (None, None));
}

#[tokio::test]
async fn manifests_that_are_none() {
    for reply in [
        (|| Reply::new(200, &[("content-type", "text/html; charset=utf-8")], "<html>")) as fn() -> Reply,
        || Reply::new(200, &[("content-encoding", "gzip")], "{}"),
        || Reply::head(8 * 1024 * 1024 + 1, &[]),
        || Reply::new(206, &[("content-range", "bytes 0-1/2")], "{}"),
        || Reply::new(202, &[], "{}"),
    ] {
        let script = Script::start(move |_| reply()).await;
        assert!(is_protocol(get(&script.upstream()).await));
    }
    let endless = format!("HTTP/1.1 200 x\r\n\r\n{}", "x".repeat(8 * 1024 * 1024 + 1));
    let script = Script::start(move |_| Reply::raw(&endless, Then::Close)).await;
    assert!(is_protocol(get(&script.upstream()).await));
}

#[tokio::test]
async fn a_truncated_manifest_is_broken() {
    let script = Script::start(|_| Reply { then: Then::Close, ..Reply::head(10, &[]) }).await;
    assert_eq!(kind_of(get(&script.upstream()).await), UpstreamErrorKind::Broken);
}

#[tokio::test]
async fn a_blob_streams_with_its_size_and_is_counted() {
    let script = Script::start(|_| Reply::ok("some blob")).await;
    let metrics = Arc::new(Metrics::new());
    let upstream = Upstream::new(options(vec![script.url()]), Arc::clone(&metrics));
    let stream = blob(&upstream, None).await.unwrap();
    assert_eq!((stream.offset, stream.total_bytes, stream.length), (0, Some(9), Some(9)));
    assert_eq!(read(stream).await.unwrap(), b"some blob");
    assert!(metrics.render().contains("cachalot_upstream_bytes_total{upstream=\"corp\"} 9"));
    assert_eq!(script.seen()[0].header("range"), None);
}

#[tokio::test]
async fn a_blob_of_unknown_size_and_one_without_bytes() {
    let chunked = "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nblob\r\n0\r\n\r\n";
    let script = Script::start(move |_| Reply::raw(chunked, Then::KeepAlive)).await;
    let stream = blob(&script.upstream(), None).await.unwrap();
    assert_eq!((stream.total_bytes, stream.length), (None, None));
    assert_eq!(read(stream).await.unwrap(), b"blob");
    let script = Script::start(|_| Reply::ok("")).await;
    let stream = blob(&script.upstream(), None).await.unwrap();
    assert_eq!(stream.total_bytes, Some(0));
    assert_eq!(read(stream).await.unwrap(), b"");
}

#[tokio::test]
async fn a_body_that_ends_early_is_broken_after_what_came() {
    for text in [
        "HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\nblob",
        "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nblob\r\n",
        "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nblob\r\n9\r\nxx",
        "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nblob\r\nnonsense",
    ] {
        let script = Script::start(move |_| Reply::raw(text, Then::Close)).await;
        let mut body = blob(&script.upstream(), None).await.unwrap().body;
        let first = body.next().await.unwrap().unwrap();
        assert_eq!(&first[..], b"blob");
        let mut end = body.next().await.unwrap();
        while end.is_ok() {
            end = body.next().await.unwrap();
        }
        assert_eq!(end.unwrap_err().kind, UpstreamErrorKind::Broken, "{text}");
        assert!(body.next().await.is_none());
    }
}

#[tokio::test]
async fn a_chunked_part_is_held_to_its_range() {
    for (body, kind) in [("2\r\nob\r\n", Some(UpstreamErrorKind::Broken)), ("3\r\nlob\r\n", None)] {
        let text = format!(
            "HTTP/1.1 206 x\r\ncontent-range: bytes 1-3/4\r\ntransfer-encoding: chunked\r\n\r\n{body}0\r\n\r\n"
        );
        let script = Script::start(move |_| Reply::raw(&text, Then::KeepAlive)).await;
        let stream = blob(&script.upstream(), Some(BlobRange { first: 1, last: None })).await.unwrap();
        assert_eq!(read(stream).await.err().map(|error| error.kind), kind);
    }
    let long =
        "HTTP/1.1 206 x\r\ncontent-range: bytes 1-1/4\r\ntransfer-encoding: chunked\r\n\r\n3\r\nlob\r\n0\r\n\r\n";
    let script = Script::start(move |_| Reply::raw(long, Then::KeepAlive)).await;
    let stream = blob(&script.upstream(), Some(BlobRange { first: 1, last: None })).await.unwrap();
    assert!(is_protocol(read(stream).await));
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up() {
    let text = "HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\nblob";
    let script = Script::start(move |_| Reply::raw(text, Then::Stall)).await;
    let mut options = options(vec![script.url()]);
    options.read_idle_timeout = Duration::from_millis(50);
    let upstream = Upstream::new(options, Arc::new(Metrics::new()));
    let mut body = blob(&upstream, None).await.unwrap().body;
    assert!(body.next().await.unwrap().is_ok());
    assert_eq!(body.next().await.unwrap().unwrap_err().kind, UpstreamErrorKind::Timeout(Phase::Body));
    assert!(body.next().await.is_none());
    assert_eq!(kind_of(get(&upstream).await), UpstreamErrorKind::Timeout(Phase::Body));
}

#[tokio::test]
async fn blobs_that_are_none() {
    for reply in [
        (|| Reply::new(200, &[("content-type", "text/html")], "<html>")) as fn() -> Reply,
        || Reply::new(200, &[("content-encoding", "gzip")], "blob"),
        || Reply::new(206, &[("content-range", "bytes 0-3/4")], "blob"),
        || Reply::new(416, &[("content-range", "bytes */4")], ""),
    ] {
        let script = Script::start(move |_| reply()).await;
        assert!(is_protocol(blob(&script.upstream(), None).await));
    }
    let script = Script::start(|_| Reply::new(200, &[("content-encoding", "identity")], "blob")).await;
    assert!(blob(&script.upstream(), None).await.is_ok());
}

#[tokio::test]
async fn an_upstream_that_ignores_the_range_or_lies_about_it() {
    let range = Some(BlobRange { first: 2, last: Some(3) });
    let script = Script::start(|_| Reply::ok("blob")).await;
    let stream = blob(&script.upstream(), range).await.unwrap();
    assert_eq!((stream.offset, stream.total_bytes, stream.length), (0, Some(4), Some(4)));
    for reply in [
        (|| Reply::new(206, &[("content-range", "bytes 0-1/4")], "bl")) as fn() -> Reply,
        || Reply::new(206, &[("content-range", "bytes 2-2/4")], "ob"),
        || Reply::new(206, &[("content-range", "bytes 2-4/5")], "obx"),
        || Reply::new(206, &[], "ob"),
        || Reply::new(206, &[("content-type", "multipart/byteranges; boundary=x")], "--x--"),
        || Reply::new(416, &[("content-range", "bytes */2")], ""),
    ] {
        let script = Script::start(move |_| reply()).await;
        assert!(is_protocol(blob(&script.upstream(), range).await));
    }
}

#[tokio::test]
async fn a_blob_s_size_by_head_or_where_that_is_refused_by_its_first_byte() {
    let size = async |script: &Script| {
        let digest = Digest::sha256(b"blob");
        script.upstream().head_blob(&app(), &digest, Access::Configured).await
    };
    let script = Script::start(|_| Reply::head(1234, &[])).await;
    assert_eq!(size(&script).await.unwrap().size_bytes, Some(1234));
    assert_eq!(script.seen().len(), 1);

    for status in [401, 403, 405] {
        for (reply, expected) in [
            ((|| Reply::new(206, &[("content-range", "bytes 0-0/1234")], "x")) as fn() -> Reply, 1234),
            (|| Reply::ok("blob"), 4),
            (|| Reply::new(416, &[("content-range", "bytes */0")], ""), 0),
        ] {
            let script = Script::start(move |seen| match seen.method.as_str() {
                "HEAD" => Reply::new(status, &[], ""),
                _ => reply(),
            })
            .await;
            assert_eq!(size(&script).await.unwrap().size_bytes, Some(expected));
            let asked = script.seen().pop().unwrap();
            assert_eq!((asked.method.as_str(), asked.header("range")), ("GET", Some("bytes=0-0")));
        }
    }

    let script = Script::start(|seen| match seen.method.as_str() {
        "HEAD" => Reply::new(403, &[], ""),
        _ => Reply::not_found(),
    })
    .await;
    assert_eq!(kind_of(size(&script).await), UpstreamErrorKind::NotFound { oci_body: true });
    let script = Script::start(|_| Reply::new(500, &[], "")).await;
    assert_eq!(kind_of(size(&script).await), UpstreamErrorKind::Status(500));
}
