//! Tokens, Basic, and what happens when either is refused.

use super::super::token::TokenKey;
use super::*;

const BOT_BASIC: &str = "Basic Ym90Omh1bnRlcjI=";

/// A registry that wants a bearer token for everything, and its token server in one.
fn token_registry(realm_and_service: &'static str, token: &'static str) -> impl Fn(&Seen) -> Reply + Send + Sync {
    move |seen| match seen.path() {
        "/token" => Reply::ok(token),
        _ if seen.authorization().is_some_and(|value| value.starts_with("Bearer t")) => Reply::ok("{}"),
        _ => Reply::challenge(&format!(
            "Bearer realm=\"http://{}/token\"{realm_and_service}",
            seen.header("host").unwrap()
        )),
    }
}

#[tokio::test]
async fn a_token_is_fetched_for_our_scope_and_used_again() {
    let script = Script::start(token_registry(
        ",service=\"reg\",scope=\"repository:user/image:pull,push\"",
        r#"{"token":"t1","expires_in":300}"#,
    ))
    .await;
    let upstream = script.upstream();
    get(&upstream).await.unwrap();
    get(&upstream).await.unwrap();
    assert_eq!(
        script.story(),
        [
            format!("GET {MANIFEST} -"),
            "GET /token -".to_owned(),
            format!("GET {MANIFEST} Bearer t1"),
            format!("GET {MANIFEST} Bearer t1")
        ]
    );
    let token_request = &script.seen()[1];
    assert_eq!(token_request.query("scope"), ["repository:team/app:pull"]);
    assert_eq!(token_request.query("service"), ["reg"]);
}

#[tokio::test]
async fn without_a_service_the_endpoint_s_host_is_named() {
    let script = Script::start(token_registry("", r#"{"access_token":"t1"}"#)).await;
    get(&script.upstream()).await.unwrap();
    assert_eq!(script.seen()[1].query("service"), [script.address.to_string()]);
}

#[tokio::test]
async fn the_credential_goes_to_the_token_server_only() {
    let script = Script::start(token_registry("", r#"{"token":"t1"}"#)).await;
    get(&script.upstream_with_credential()).await.unwrap();
    assert_eq!(
        script.story(),
        [format!("GET {MANIFEST} -"), format!("GET /token {BOT_BASIC}"), format!("GET {MANIFEST} Bearer t1")]
    );
}

#[tokio::test]
async fn nobody_s_rights_need_nobody_s_credential_and_their_tokens_stay_apart() {
    let script = Script::start(token_registry("", r#"{"token":"t1"}"#)).await;
    let upstream = script.upstream_with_credential();
    get(&upstream).await.unwrap();
    upstream.head_manifest(&app(), &latest(), Access::Anonymous).await.unwrap();
    let story = script.story();
    assert_eq!(story.last().unwrap(), &format!("HEAD {MANIFEST} Bearer t1"));
    assert_eq!(story[4], "GET /token -");
}

#[tokio::test]
async fn a_hundred_requests_share_one_token_request() {
    let script = Script::start(|seen| match seen.path() {
        "/token" => Reply::ok(r#"{"token":"t1"}"#),
        _ if seen.authorization().is_some() => Reply::ok("{}"),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    let upstream = script.upstream();
    script.gate.send_replace(false);
    let requests = (0..100).map(|_| {
        let upstream = upstream.clone();
        tasks::spawn("request", async move { get(&upstream).await })
    });
    let requests: Vec<_> = requests.collect();
    while script.seen.lock().len() < 100 {
        tokio::task::yield_now().await;
    }
    script.gate.send_replace(true);
    for request in requests {
        request.await.unwrap().unwrap();
    }
    let tokens = script.seen().iter().filter(|seen| seen.path() == "/token").count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn a_token_without_a_lifetime_lasts_a_minute_and_is_replaced_before_it_ends() {
    let count = AtomicUsize::new(0);
    let script = Script::start(move |seen| match seen.path() {
        "/token" => {
            let n = count.fetch_add(1, Ordering::Relaxed) + 1;
            Reply::ok(&format!(r#"{{"token":"t{n}","expires_in":5}}"#))
        }
        _ if seen.authorization().is_some() => Reply::ok("{}"),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    let upstream = script.upstream();
    let after = async |seconds| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
        get(&upstream).await.unwrap();
    };
    after(0).await;
    after(44).await;
    assert_eq!(script.story().last().unwrap(), &format!("GET {MANIFEST} Bearer t1"));
    // Due, but still good: used once more while the next one is fetched.
    after(8).await;
    while script.seen.lock().iter().filter(|seen| seen.path() == "/token").count() < 2 {
        tokio::task::yield_now().await;
    }
    let used: Vec<String> = script.story().into_iter().filter(|line| line.contains(MANIFEST)).collect();
    assert_eq!(used.last().unwrap(), &format!("GET {MANIFEST} Bearer t1"));
    while upstream.inner.tokens.get(&key(&script), Instant::now()).unwrap().authorization != "Bearer t2" {
        tokio::task::yield_now().await;
    }
    after(0).await;
    assert_eq!(script.story().last().unwrap(), &format!("GET {MANIFEST} Bearer t2"));
    // Expired: not sent any more.
    after(61).await;
    let story = script.story();
    assert_eq!(story[story.len() - 3], format!("GET {MANIFEST} -"));
    assert_eq!(story[story.len() - 1], format!("GET {MANIFEST} Bearer t3"));
}

fn key(script: &Script) -> TokenKey {
    TokenKey { place: script.address.to_string(), identity: None, scope: "repository:team/app:pull".to_owned() }
}

#[tokio::test]
async fn a_stale_token_is_dropped_and_a_changed_realm_is_believed_only_from_a_fresh_challenge() {
    let revoked = Arc::new(AtomicUsize::new(0));
    let flag = Arc::clone(&revoked);
    let script = Script::start(move |seen| {
        let revoked = flag.load(Ordering::Relaxed) == 1;
        let realm =
            |path: &str| Reply::challenge(&format!("Bearer realm=\"http://{}{path}\"", seen.header("host").unwrap()));
        match (seen.path(), seen.authorization()) {
            ("/token", _) => Reply::ok(r#"{"token":"old"}"#),
            ("/new", _) => Reply::ok(r#"{"token":"new"}"#),
            (_, Some("Bearer old")) if revoked => realm("/trap"),
            (_, Some(_)) => Reply::ok("{}"),
            (_, None) => realm(if revoked { "/new" } else { "/token" }),
        }
    })
    .await;
    let upstream = script.upstream();
    get(&upstream).await.unwrap();
    revoked.store(1, Ordering::Relaxed);
    get(&upstream).await.unwrap();
    assert_eq!(
        script.story()[3..],
        [
            format!("GET {MANIFEST} Bearer old"),
            format!("GET {MANIFEST} -"),
            "GET /new -".to_owned(),
            format!("GET {MANIFEST} Bearer new")
        ]
    );
}

#[tokio::test]
async fn a_stale_token_may_be_answered_with_basic() {
    let stale = Arc::new(AtomicUsize::new(0));
    let flag = Arc::clone(&stale);
    let script = Script::start(move |seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => Reply::ok(r#"{"token":"t1"}"#),
        (_, Some(_)) if flag.load(Ordering::Relaxed) == 0 => Reply::ok("{}"),
        (_, Some(_)) => Reply::challenge("Basic realm=\"harbor\""),
        (_, None) if flag.load(Ordering::Relaxed) == 0 => {
            Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap()))
        }
        (_, None) => Reply::ok("{}"),
    })
    .await;
    let upstream = script.upstream();
    get(&upstream).await.unwrap();
    stale.store(1, Ordering::Relaxed);
    get(&upstream).await.unwrap();
    assert_eq!(script.story().last().unwrap(), &format!("GET {MANIFEST} -"));
}

#[tokio::test]
async fn a_registry_that_never_lets_us_in_is_asked_a_bounded_number_of_times() {
    let script = Script::start(|seen| match seen.path() {
        "/token" => Reply::ok(r#"{"token":"t1"}"#),
        _ => Reply::challenge(&format!(
            "Bearer realm=\"http://{}/token\",error=\"insufficient_scope\",scope=\"repository:team/app:pull,more\"",
            seen.header("host").unwrap()
        )),
    })
    .await;
    let error = get(&script.upstream()).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Refused { status: 401, anonymous: true, rejected: None });
    assert_eq!(script.seen().len(), 5);
}

#[tokio::test]
async fn a_missing_scope_is_added_once() {
    let script = Script::start(|seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => Reply::ok(&format!(r#"{{"token":"t{}"}}"#, seen.query("scope").len())),
        (_, Some("Bearer t2")) => Reply::ok("{}"),
        (_, sent) => {
            let error =
                if sent.is_some() { ",error=\"insufficient_scope\",scope=\"repository:base/app:pull\"" } else { "" };
            Reply::challenge(&format!("Bearer realm=\"http://{}/token\"{error}", seen.header("host").unwrap()))
        }
    })
    .await;
    let upstream = script.upstream();
    get(&upstream).await.unwrap();
    assert_eq!(script.seen()[3].query("scope"), ["repository:team/app:pull", "repository:base/app:pull"]);
    get(&upstream).await.unwrap();
    assert_eq!(script.story().last().unwrap(), &format!("GET {MANIFEST} Bearer t2"));
    assert_eq!(script.seen().len(), 6);
}

#[tokio::test]
async fn a_refusal_without_a_challenge_is_followed_by_a_question_for_one() {
    let script = Script::start(|seen| match (seen.path(), seen.authorization()) {
        ("/v2/", _) => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
        ("/token", _) => Reply::ok(r#"{"token":"t1"}"#),
        (_, Some(_)) => Reply::ok("{}"),
        (_, None) => Reply::new(401, &[], ""),
    })
    .await;
    get(&script.upstream()).await.unwrap();
}

#[tokio::test]
async fn basic_is_remembered() {
    let script = Script::start(|seen| match seen.authorization() {
        Some(BOT_BASIC) => Reply::ok("{}"),
        _ => Reply::challenge("Basic realm=\"x\""),
    })
    .await;
    let upstream = script.upstream_with_credential();
    get(&upstream).await.unwrap();
    upstream.head_manifest(&repository("other"), &latest(), Access::Configured).await.unwrap();
    assert_eq!(
        script.story(),
        [
            format!("GET {MANIFEST} -"),
            format!("GET {MANIFEST} {BOT_BASIC}"),
            format!("HEAD /v2/other/manifests/latest {BOT_BASIC}")
        ]
    );
}

#[tokio::test]
async fn a_rejected_password_gives_way_to_nobody_and_is_not_offered_again() {
    let script = Script::start(|seen| match (seen.path(), seen.authorization()) {
        ("/token", Some(_)) => Reply::new(403, &[], ""),
        ("/token", None) => Reply::ok(r#"{"token":"t1"}"#),
        (_, Some("Bearer t1")) => Reply::ok("{}"),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    let upstream = script.upstream_with_credential();
    get(&upstream).await.unwrap();
    get(&upstream).await.unwrap();
    let offered = script.story().iter().filter(|line| line.contains(BOT_BASIC)).count();
    assert_eq!(offered, 1);
}

#[tokio::test]
async fn refusals_say_whether_a_credential_of_ours_was_accepted() {
    // A token server that gives anyone a token, and a registry that honours none.
    let denied = |seen: &Seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => Reply::ok(r#"{"token":"t1"}"#),
        (_, Some(_)) => Reply::new(403, &[], r#"{"errors":[{"code":"DENIED"}]}"#),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    };
    let script = Script::start(denied).await;
    let error = get(&script.upstream_with_credential()).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Refused { status: 403, anonymous: false, rejected: None });
    let error = get(&script.upstream()).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Refused { status: 403, anonymous: true, rejected: None });

    let closed = Script::start(|seen: &Seen| match seen.path() {
        "/token" => Reply::new(401, &[], ""),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    for (upstream, rejected) in [(closed.upstream(), None), (closed.upstream_with_credential(), Some("corp"))] {
        let (rejected, error) = (rejected.map(str::to_owned), get(&upstream).await.unwrap_err());
        assert_eq!(error.kind, UpstreamErrorKind::Refused { status: 401, anonymous: true, rejected });
    }

    // A credential that was never asked for was not rejected.
    let forbidden = Script::start(|_: &Seen| Reply::new(403, &[], "")).await;
    let error = get(&forbidden.upstream_with_credential()).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Refused { status: 403, anonymous: true, rejected: None });
    assert!(!error.to_string().contains("rejected"), "{error}");

    let rejecting = Script::start(|_: &Seen| Reply::challenge("Basic")).await;
    let upstream = rejecting.upstream_with_credential();
    for _ in 0..2 {
        let error = get(&upstream).await.unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("rejected the credential configured for corp, and refused access without it: 401"),
            "{said}"
        );
        assert!(said.ends_with("; check that credential's user name and password"), "{said}");
        assert!(!said.contains("anonymous") && !said.contains("configure a credential"), "{said}");
    }

    let basic = Script::start(|_: &Seen| Reply::challenge("Basic")).await;
    for (upstream, rejected) in [(basic.upstream(), None), (basic.upstream_with_credential(), Some("corp"))] {
        let (rejected, error) = (rejected.map(str::to_owned), get(&upstream).await.unwrap_err());
        assert_eq!(error.kind, UpstreamErrorKind::Refused { status: 401, anonymous: true, rejected });
    }
}

#[tokio::test]
async fn a_failing_token_server_is_no_refusal() {
    for (status, kind) in [
        (503, UpstreamErrorKind::Status(503)),
        (404, UpstreamErrorKind::Status(404)),
        (429, UpstreamErrorKind::RateLimited { retry_after: Some(Duration::from_secs(7)) }),
    ] {
        let script = Script::start(move |seen| match seen.path() {
            "/token" => Reply::new(status, &[("retry-after", "7")], ""),
            _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
        })
        .await;
        let error = get(&script.upstream()).await.unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(error.to_string().contains("token server"), "{error}");
    }
    let huge = "x".repeat(1024 * 1024 + 1);
    let script = Script::start(move |seen| match seen.path() {
        "/token" => Reply::ok(&huge),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    assert!(matches!(get(&script.upstream()).await.unwrap_err().kind, UpstreamErrorKind::Protocol(_)));
}

#[tokio::test]
async fn secrets_and_query_strings_stay_out_of_every_text() {
    let script = Script::start(|seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => Reply::ok(r#"{"token":"tokentext"}"#),
        ("/signed", _) => Reply::raw("", Then::Close),
        (_, Some("Bearer tokentext")) => Reply::redirect(307, "/signed?X-Signature=presigned"),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    let upstream = script.upstream_with_credential();
    let error = get(&upstream).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Broken);
    assert!(script.story().iter().any(|line| line.starts_with("GET /signed")));
    for text in
        [format!("{error}"), format!("{error:?}"), format!("{upstream:?}"), format!("{:?}", upstream.inner.tokens)]
    {
        for secret in ["hunter2", "tokentext", "presigned", "Signature", "Ym90"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    let expected = format!("upstream corp ({}) broke the connection", script.address);
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[tokio::test]
async fn a_bare_403_is_asked_again_with_the_credential() {
    let script = Script::start(|seen| match (seen.path(), seen.authorization()) {
        ("/v2/", _) => Reply::challenge("Basic"),
        (_, Some(BOT_BASIC)) => Reply::ok("{}"),
        _ => Reply::new(403, &[], ""),
    })
    .await;
    get(&script.upstream_with_credential()).await.unwrap();
    assert!(get(&script.upstream()).await.is_err());
}
