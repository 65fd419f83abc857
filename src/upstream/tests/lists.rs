//! Tag lists page by page, and referrers over all pages.

use super::*;

const EMPTY: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

fn page(seeds: &[u8]) -> String {
    let entries: Vec<String> = seeds
        .iter()
        .map(|seed| format!(r#"{{"mediaType":"a/b","digest":"{}","size":1}}"#, Digest::sha256(&[*seed])))
        .collect();
    format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","))
}

async fn referrers(script: &Script) -> Result<Referrers, UpstreamError> {
    script.upstream().referrers(&app(), &Digest::sha256(b"subject")).await
}

#[tokio::test]
async fn tags_come_page_by_page() {
    let script = Script::start(|seen| match seen.query("last").first().map(String::as_str) {
        None => Reply::new(
            200,
            &[("link", "</v2/team/app/tags/list?n=2&last=v1%2B1>; rel=\"next\"")],
            r#"{"name":"team/app","tags":["a","v1+1"]}"#,
        ),
        Some(_) => Reply::ok(r#"{"name":"team/app","tags":null}"#),
    })
    .await;
    let upstream = script.upstream();
    let first = upstream.list_tags(&app(), Some(2), None, Access::Configured).await.unwrap();
    assert_eq!(first.tags, ["a", "v1+1"]);
    let next = first.next.unwrap();
    assert_eq!(next, TagCursor { limit: Some(2), last: "v1+1".to_owned() });
    let second = upstream.list_tags(&app(), next.limit, Some(&next.last), Access::Configured).await.unwrap();
    assert_eq!(second, TagPage { tags: Vec::new(), next: None });
    assert_eq!(script.seen()[1].target, "/v2/team/app/tags/list?n=2&last=v1%2B1");
    upstream.list_tags(&app(), None, None, Access::Configured).await.unwrap();
    assert_eq!(script.seen()[2].target, "/v2/team/app/tags/list");
}

#[tokio::test]
async fn a_tag_list_that_is_none_is_an_error() {
    let script = Script::start(|_| Reply::ok("<html>")).await;
    let error = script.upstream().list_tags(&app(), None, None, Access::Configured).await.unwrap_err();
    assert!(matches!(error.kind, UpstreamErrorKind::Protocol(_)));
}

#[tokio::test]
async fn referrers_come_in_one_list() {
    let script = Script::start(|seen| match seen.query("page").first().map(String::as_str) {
        None => Reply::new(200, &[("link", "<?page=2>; rel=next")], &page(&[1, 2])),
        Some("2") => Reply::new(200, &[("link", "<?page=3>; rel=next")], &page(&[2, 3])),
        Some(_) => Reply::ok(&page(&[4])),
    })
    .await;
    let Referrers::List(list) = referrers(&script).await.unwrap() else { panic!("a list was due") };
    assert_eq!(list.len(), 4);
    assert_eq!(script.seen()[0].header("accept"), Some("application/vnd.oci.image.index.v1+json"));
    let script = Script::start(|_| Reply::ok(EMPTY)).await;
    assert!(matches!(referrers(&script).await.unwrap(), Referrers::List(list) if list.is_empty()));
}

#[tokio::test]
async fn a_registry_without_referrers_is_told_from_one_that_fails() {
    let elsewhere = Script::start(|_| Reply::ok(EMPTY)).await;
    let target = elsewhere.url().to_string();
    for (status, headers, body) in [
        (404, vec![], "not found"),
        (404, vec![], r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#),
        (400, vec![], ""),
        (405, vec![], ""),
        (406, vec![], ""),
        (200, vec![("content-type", "text/html")], "<html>log in</html>"),
        (302, vec![("location", target.as_str())], ""),
        (302, vec![("location", "https://127.0.0.1:1/login")], ""),
    ] {
        let headers: Vec<(String, String)> =
            headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let script = Script::start(move |_| {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            Reply::new(status, &headers, body)
        })
        .await;
        assert_eq!(referrers(&script).await.unwrap(), Referrers::Unsupported, "{status} {body}");
    }
    assert!(elsewhere.seen().is_empty());
    for status in [401, 403, 429, 500, 503] {
        let script = Script::start(move |_| Reply::new(status, &[], "")).await;
        assert!(referrers(&script).await.is_err(), "{status}");
    }
    // A damaged list is no empty one.
    for body in [r#"{"tags":[]}"#, r#"{"schemaVersion":2,"manif"#, "", "null"] {
        let script = Script::start(move |_| Reply::ok(body)).await;
        assert!(referrers(&script).await.is_err(), "{body}");
    }
}

#[tokio::test]
async fn a_list_of_referrers_that_breaks_off_or_never_ends_is_an_error() {
    for second in [Reply::not_found as fn() -> Reply, || Reply::ok("<html>"), || Reply::new(500, &[], "")] {
        let script = Script::start(move |seen| {
            if seen.query("page").is_empty() {
                Reply::new(200, &[("link", "<?page=2>; rel=next")], &page(&[1]))
            } else {
                second()
            }
        })
        .await;
        assert!(referrers(&script).await.is_err());
    }
    let count = AtomicUsize::new(0);
    let script = Script::start(move |_| {
        let link = format!("<?page={}>; rel=next", count.fetch_add(1, Ordering::Relaxed));
        Reply::new(200, &[("link", &link)], EMPTY)
    })
    .await;
    assert!(referrers(&script).await.is_err());
    assert_eq!(script.seen().len(), 100);
}
