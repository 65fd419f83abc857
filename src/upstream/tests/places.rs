//! Redirects, private addresses, the order of endpoints, and failures before there is an answer.

use super::super::error::Failure;
use super::*;

/// The loopback address counts as public here, the one after it as private.
fn network(names: &[(&str, Ipv4Addr)]) -> Network {
    let fixed = names.iter().map(|(name, address)| ((*name).to_owned(), vec![IpAddr::V4(*address)])).collect();
    Network { fixed, is_public: |address| address == IpAddr::V4(Ipv4Addr::LOCALHOST) }
}

const PRIVATE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Asks for the manifest of an upstream called registry.test, whose address counts as public.
async fn public(script: &Script, change: impl FnOnce(&mut Options)) -> Result<ManifestBody, UpstreamError> {
    let url = format!("http://registry.test:{}", script.address.port()).parse().unwrap();
    let mut options = with_credential(options(vec![url]));
    change(&mut options);
    let names =
        network(&[("registry.test", Ipv4Addr::LOCALHOST), ("cdn.test", Ipv4Addr::LOCALHOST), ("inner.test", PRIVATE)]);
    get(&Upstream::in_network(options, Arc::new(Metrics::new()), names)).await
}

#[tokio::test]
async fn authorization_stays_with_its_host_and_port_and_the_range_goes_along() {
    let elsewhere = Script::start(|_| {
        Reply::raw("HTTP/1.1 206 x\r\ncontent-range: bytes 2-3/4\r\ncontent-length: 2\r\n\r\nob", Then::KeepAlive)
    })
    .await;
    let target = elsewhere.url();
    let script = Script::start(move |seen| match (seen.path(), seen.authorization()) {
        (_, None) => Reply::challenge("Basic"),
        ("/near", Some(_)) => Reply::redirect(302, &format!("{target}far?sig=1")),
        (_, Some(_)) => Reply::redirect(307, "/near"),
    })
    .await;
    let range = BlobRange { first: 2, last: Some(3) };
    let stream = blob(&script.upstream_with_credential(), Some(range)).await.unwrap();
    assert_eq!((stream.offset, stream.total_bytes, stream.length), (2, Some(4), Some(2)));
    assert_eq!(stream.endpoint, script.address.to_string());
    assert_eq!(read(stream).await.unwrap(), b"ob");
    let near = script.seen().pop().unwrap();
    assert!(near.authorization().is_some());
    let far = elsewhere.seen().pop().unwrap();
    assert_eq!(
        (far.target.as_str(), far.authorization(), far.header("range")),
        ("/far?sig=1", None, Some("bytes=2-3"))
    );
    assert_eq!((far.header("cookie"), far.header("referer"), far.header("content-type")), (None, None, None));
    assert_eq!(far.header("accept-encoding"), Some("identity"));
    assert!(far.header("user-agent").unwrap().starts_with("cachalot/"));
}

#[tokio::test]
async fn manifests_follow_every_kind_of_redirect_with_their_method() {
    for status in [301, 302, 303, 307, 308] {
        let script = Script::start(move |seen| match seen.path() {
            "/moved" => Reply::ok("{}"),
            _ => Reply::redirect(status, "/moved"),
        })
        .await;
        script.upstream().head_manifest(&app(), &latest(), Access::Configured).await.unwrap();
        assert_eq!(script.story(), [format!("HEAD {MANIFEST} -"), "HEAD /moved -".to_owned()]);
        assert!(script.seen()[1].header("accept").unwrap().contains("oci.image.index"));
    }
}

#[tokio::test]
async fn a_circle_of_redirects_ends_after_ten() {
    let script = Script::start(|_| Reply::redirect(302, "/round")).await;
    let error = get(&script.upstream()).await.unwrap_err();
    assert!(matches!(error.kind, UpstreamErrorKind::Protocol(_)), "{error}");
    assert_eq!(script.seen().len(), 11);
    let script = Script::start(|_| Reply::new(302, &[], "")).await;
    assert!(matches!(get(&script.upstream()).await.unwrap_err().kind, UpstreamErrorKind::Protocol(_)));
}

#[tokio::test]
async fn a_refusal_by_the_host_that_a_redirect_led_to_is_no_refusal_by_the_registry() {
    let elsewhere = Script::start(|_| Reply::new(403, &[], "<Error/>")).await;
    let target = elsewhere.url();
    let script = Script::start(move |_| Reply::redirect(307, target.as_str())).await;
    let error = blob(&script.upstream(), None).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Status(403));
}

#[tokio::test]
async fn a_redirect_to_a_registry_with_its_own_door_is_opened_as_nobody() {
    let elsewhere = Script::start(|seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => Reply::ok(r#"{"token":"foreign"}"#),
        (_, Some("Bearer foreign")) => Reply::ok("{}"),
        _ => Reply::challenge(&format!(
            "Bearer realm=\"http://{}/token\",scope=\"repository:x:pull\"",
            seen.header("host").unwrap()
        )),
    })
    .await;
    let target = elsewhere.url();
    let script = Script::start(move |seen| match seen.authorization() {
        Some(_) => Reply::redirect(307, target.as_str()),
        None => Reply::challenge("Basic"),
    })
    .await;
    get(&script.upstream_with_credential()).await.unwrap();
    assert_eq!(elsewhere.story(), ["GET / -", "GET /token -", "GET / Bearer foreign"]);
}

#[tokio::test]
async fn a_public_upstream_must_not_send_us_into_the_private_network() {
    let inner = Script::start_at(PRIVATE, |_| Reply::ok("{}")).await;
    let port = inner.address.port();
    for target in [format!("http://127.0.0.2:{port}/x"), format!("http://inner.test:{port}/x?secret=1")] {
        let location = target.clone();
        let script = Script::start(move |_| Reply::redirect(307, &location)).await;
        let error = public(&script, |_| {}).await.unwrap_err();
        assert_eq!(error.kind, UpstreamErrorKind::RedirectRefused, "{error}");
        assert!(error.to_string().contains("redirect_hosts") && !error.to_string().contains("secret"), "{error}");

        let location = target.clone();
        let script = Script::start(move |_| Reply::challenge(&format!("Bearer realm=\"{location}\""))).await;
        let error = public(&script, |_| {}).await.unwrap_err();
        assert_eq!(error.kind, UpstreamErrorKind::RedirectRefused, "{error}");
    }
    assert!(inner.seen().is_empty());

    for allowed in ["127.0.0.2", "inner.test", "*.test"] {
        let host = if allowed == "127.0.0.2" { allowed } else { "inner.test" };
        let location = format!("http://{host}:{port}/x");
        let script = Script::start(move |_| Reply::redirect(307, &location)).await;
        public(&script, |options| options.redirect_hosts = vec![allowed.to_owned()]).await.unwrap();
    }
}

#[tokio::test]
async fn a_public_upstream_may_send_us_to_public_names() {
    let cdn = Script::start(|_| Reply::ok("{}")).await;
    let location = format!("http://cdn.test:{}/x", cdn.address.port());
    let script = Script::start(move |_| Reply::redirect(307, &location)).await;
    public(&script, |_| {}).await.unwrap();
}

#[tokio::test]
async fn an_upstream_in_the_private_network_may_stay_there() {
    let inner = Script::start_at(PRIVATE, |_| Reply::ok("{}")).await;
    let port = inner.address.port();
    for location in [format!("http://127.0.0.2:{port}/x"), format!("http://inner.test:{port}/x")] {
        for host in ["127.0.0.2", "registry.test"] {
            let location = location.clone();
            let script = Script::start_at(PRIVATE, move |_| Reply::redirect(307, &location)).await;
            let url = format!("http://{host}:{}", script.address.port()).parse().unwrap();
            let names = network(&[("registry.test", PRIVATE), ("inner.test", PRIVATE)]);
            let upstream = Upstream::in_network(options(vec![url]), Arc::new(Metrics::new()), names.clone());
            get(&upstream).await.unwrap();
        }
    }
    assert_eq!(inner.seen().len(), 4);
}

#[tokio::test]
async fn an_endpoint_may_point_at_its_siblings() {
    let sibling = Script::start_at(PRIVATE, |_| Reply::ok("{}")).await;
    let url: Url = format!("http://inner.test:{}/x", sibling.address.port()).parse().unwrap();
    let location = url.to_string();
    let script = Script::start(move |_| Reply::redirect(307, &location)).await;
    public(&script, |options| options.endpoints.push(EndpointOptions::at(url))).await.unwrap();
}

#[tokio::test]
async fn a_name_that_a_client_chose_is_only_dialled_at_public_addresses() {
    let inner = Script::start_at(PRIVATE, |_| Reply::ok("{}")).await;
    let url: Url = format!("http://inner.test:{}", inner.address.port()).parse().unwrap();
    let mut options = options(vec![url]);
    options.public_only = true;
    let upstream = Upstream::in_network(options, Arc::new(Metrics::new()), network(&[("inner.test", PRIVATE)]));
    assert_eq!(get(&upstream).await.unwrap_err().kind, UpstreamErrorKind::RedirectRefused);
    let mut literal = super::options(vec![inner.url()]);
    literal.public_only = true;
    let upstream = Upstream::in_network(literal, Arc::new(Metrics::new()), network(&[]));
    assert_eq!(get(&upstream).await.unwrap_err().kind, UpstreamErrorKind::RedirectRefused);
    assert!(inner.seen().is_empty());
}

#[tokio::test]
async fn endpoints_are_tried_in_order_and_one_that_failed_comes_last_for_a_while() {
    let broken = Arc::new(AtomicUsize::new(503));
    let status = Arc::clone(&broken);
    let first =
        Script::start(move |_| Reply::new(u16::try_from(status.load(Ordering::Relaxed)).unwrap(), &[], "")).await;
    let second = Script::start(|_| Reply::ok("{}")).await;
    let upstream = Upstream::new(options(vec![first.url(), second.url()]), Arc::new(Metrics::new()));
    get(&upstream).await.unwrap();
    get(&upstream).await.unwrap();
    assert_eq!((first.seen().len(), second.seen().len()), (1, 2));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    broken.store(429, Ordering::Relaxed);
    get(&upstream).await.unwrap();
    assert_eq!((first.seen().len(), second.seen().len()), (2, 3));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    broken.store(404, Ordering::Relaxed);
    assert!(matches!(get(&upstream).await.unwrap_err().kind, UpstreamErrorKind::NotFound { .. }));
    assert_eq!((first.seen().len(), second.seen().len()), (3, 3));
}

#[tokio::test]
async fn an_endpoint_that_can_t_be_reached_is_passed_over() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone: Url = format!("http://{unused}").parse().unwrap();
    let fine = Script::start(|_| Reply::ok("{}")).await;
    let upstream = Upstream::new(options(vec![gone.clone(), fine.url()]), Arc::new(Metrics::new()));
    get(&upstream).await.unwrap();
    let upstream = Upstream::new(options(vec![gone]), Arc::new(Metrics::new()));
    let error = get(&upstream).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Connect, "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    let upstream = Upstream::new(options(Vec::new()), Arc::new(Metrics::new()));
    assert!(get(&upstream).await.is_err());
}

#[tokio::test]
async fn a_late_head_is_a_timeout() {
    let script = Script::start(|_| Reply::raw("HTTP/1.1 200 x\r\n", Then::Stall)).await;
    let mut options = options(vec![script.url()]);
    options.header_timeout = Duration::from_millis(50);
    let upstream = Upstream::new(options, Arc::new(Metrics::new()));
    assert_eq!(get(&upstream).await.unwrap_err().kind, UpstreamErrorKind::Timeout(Phase::Header));
}

#[tokio::test]
async fn requests_above_the_bound_wait_for_a_body_to_end() {
    let script = Script::start(|_| Reply::ok("blob")).await;
    let mut options = options(vec![script.url()]);
    options.max_connections = 1;
    options.header_timeout = Duration::from_millis(200);
    let upstream = Upstream::new(options, Arc::new(Metrics::new()));
    let held = blob(&upstream, None).await.unwrap();
    let error = get(&upstream).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Timeout(Phase::Queue));
    assert_eq!(read(held).await.unwrap(), b"blob");
    get(&upstream).await.unwrap();
    assert_eq!(script.seen().len(), 2);
}

#[tokio::test]
async fn a_connection_that_the_registry_closed_meanwhile_is_replaced() {
    let count = AtomicUsize::new(0);
    let script = Script::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::raw("", Then::Close),
        _ => Reply::ok("{}"),
    })
    .await;
    get(&script.upstream()).await.unwrap();
    assert_eq!(script.seen().len(), 2);
}

#[tokio::test]
async fn statuses_and_their_meaning() {
    for (reply, kind) in [
        (Reply::not_found as fn() -> Reply, UpstreamErrorKind::NotFound { oci_body: true }),
        (|| Reply::new(404, &[], "<html>nginx</html>"), UpstreamErrorKind::NotFound { oci_body: false }),
        (|| Reply::new(404, &[], r#"{"errors":[]}"#), UpstreamErrorKind::NotFound { oci_body: false }),
        (|| Reply::new(429, &[], ""), UpstreamErrorKind::RateLimited { retry_after: None }),
        (|| Reply::new(500, &[], ""), UpstreamErrorKind::Status(500)),
        (|| Reply::new(418, &[], ""), UpstreamErrorKind::Status(418)),
        (|| Reply::new(304, &[], ""), UpstreamErrorKind::Status(304)),
        (|| Reply::new(403, &[], ""), UpstreamErrorKind::Refused { status: 403, anonymous: true, rejected: None }),
    ] {
        let script = Script::start(move |_| reply()).await;
        let error = get(&script.upstream()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
    let script = Script::start(|_| Reply::not_found()).await;
    let error = script.upstream().head_manifest(&app(), &latest(), Access::Configured).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::NotFound { oci_body: false });
}

#[tokio::test]
async fn every_exchange_is_counted() {
    let script = Script::start(|seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => Reply::ok(r#"{"token":"t1"}"#),
        (_, Some(_)) => Reply::new(200, &[("ratelimit-remaining", "76;w=21600")], "{}"),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    let metrics = Arc::new(Metrics::new());
    let upstream = Upstream::new(options(vec![script.url()]), Arc::clone(&metrics));
    get(&upstream).await.unwrap();
    let text = metrics.render();
    for line in [
        "cachalot_upstream_requests_total{upstream=\"corp\",kind=\"manifest\",status=\"401\"} 1",
        "cachalot_upstream_requests_total{upstream=\"corp\",kind=\"token\",status=\"200\"} 1",
        "cachalot_upstream_requests_total{upstream=\"corp\",kind=\"manifest\",status=\"200\"} 1",
        "cachalot_upstream_ratelimit_remaining{upstream=\"corp\"} 76",
        "cachalot_upstream_last_success_timestamp_seconds{upstream=\"corp\"}",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_proxy_is_told_names_that_nobody_here_looks_up() {
    let proxy = Script::start(|_| Reply::ok("{}")).await;
    let address = || ProxyAddress::new(crate::secret::Secret::new(&format!("http://bot:hunter2@{}", proxy.address)));
    let environment = |no_proxy: &str| {
        Proxy::Environment(Environment { http: Some(address()), https: None, no_proxy: no_proxy.to_owned() })
    };
    let away: Url = "http://registry.invalid".parse().unwrap();
    for way in [Proxy::Through(address()), environment("10.0.0.0/8,.corp")] {
        let mut options = options(vec![away.clone()]);
        options.proxy = way;
        get(&Upstream::new(options, Arc::new(Metrics::new()))).await.unwrap();
        let seen = proxy.seen().pop().unwrap();
        assert_eq!(seen.target, format!("http://registry.invalid{MANIFEST}"));
        assert!(seen.header("proxy-authorization").is_some());
    }
    let direct = Script::start(|_| Reply::ok("{}")).await;
    let asked = proxy.seen().len();
    for way in [Proxy::Direct, environment("127.0.0.0/8"), environment("registry.corp,127.0.0.1"), environment("*")] {
        let mut options = options(vec![direct.url()]);
        options.proxy = way;
        get(&Upstream::new(options, Arc::new(Metrics::new()))).await.unwrap();
        assert_eq!(direct.seen().pop().unwrap().target, MANIFEST);
    }
    assert_eq!((direct.seen().len(), proxy.seen().len()), (4, asked));
    // A suffix, by name.
    let mut options = options(vec!["http://registry.corp:1".parse().unwrap()]);
    options.proxy = environment(".corp");
    let names = network(&[("registry.corp", Ipv4Addr::LOCALHOST)]);
    let error = get(&Upstream::in_network(options, Arc::new(Metrics::new()), names)).await.unwrap_err();
    assert_eq!((error.kind, proxy.seen().len()), (UpstreamErrorKind::Connect, asked));
}

#[tokio::test]
async fn a_doctor_looks_names_up_unless_a_proxy_does() {
    let script = Script::start(|_| Reply::ok("{}")).await;
    let address = || ProxyAddress::new(crate::secret::Secret::new(&format!("http://bot:hunter2@{}", script.address)));
    let environment = |no_proxy: &str| {
        Proxy::Environment(Environment { http: Some(address()), https: None, no_proxy: no_proxy.to_owned() })
    };
    let none = || Proxy::Environment(Environment::default());
    let url: Url = format!("http://registry.corp:{}", script.address.port()).parse().unwrap();
    for (proxy, expected) in [
        (Proxy::Direct, "registry.corp is 127.0.0.1".to_owned()),
        (none(), "registry.corp is 127.0.0.1".to_owned()),
        (environment(".corp"), "registry.corp is 127.0.0.1".to_owned()),
        (environment(".example"), format!("registry.corp is looked up by http://{}", script.address)),
        (Proxy::Through(address()), format!("registry.corp is looked up by http://{}", script.address)),
    ] {
        let mut options = options(vec![url.clone()]);
        options.proxy = proxy.clone();
        let names = network(&[("registry.corp", Ipv4Addr::LOCALHOST)]);
        let upstream = Upstream::in_network(options, Arc::new(Metrics::new()), names);
        let findings = upstream.examine(&repository("library/app"), Access::Anonymous).await;
        let steps: Vec<_> = findings.iter().map(|finding| finding.step).collect();
        assert_eq!(steps[..2], ["name", "door"], "{findings:?}");
        let said = findings[0].said.as_ref().unwrap();
        assert!(said.starts_with(&expected) && !said.contains("hunter2"), "{proxy:?}: {said}");
    }
}

#[tokio::test]
async fn every_way_to_be_gone_has_its_own_words() {
    let mut options = options(vec!["http://no-such-host.invalid".parse().unwrap()]);
    options.connect_timeout = Duration::from_secs(5);
    let error = get(&Upstream::new(options, Arc::new(Metrics::new()))).await.unwrap_err();
    let said = error.to_string();
    assert!(matches!(error.kind, UpstreamErrorKind::Name | UpstreamErrorKind::Timeout(Phase::Connect)), "{said}");
    for (kind, words) in [
        (UpstreamErrorKind::Name, "can't be found by its name"),
        (UpstreamErrorKind::Connect, "can't be reached"),
        (UpstreamErrorKind::Certificate, "shows a certificate that is not trusted"),
        (UpstreamErrorKind::Tls, "can't be talked to over TLS"),
        (UpstreamErrorKind::Timeout(Phase::Connect), "did not accept a connection in time"),
        (UpstreamErrorKind::Timeout(Phase::Header), "did not answer in time"),
        (UpstreamErrorKind::Status(503), "failed: 503"),
    ] {
        let said = Failure::from(kind).at("corp", "corp").to_string();
        assert!(said.contains(words) && said.contains("; "), "{said}");
    }
}
