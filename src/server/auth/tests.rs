//! Names proven and refused, and rules applied to them.

use std::collections::BTreeMap;

use http::HeaderValue;

use super::*;
use crate::config::{Access, Reader, RepositoryGlobs, Rule, Token};

fn users() -> Users {
    let hash = bcrypt::hash("right", 4).unwrap();
    Users {
        passwords: BTreeMap::from([("ann".to_owned(), Secret::new(&hash))]),
        tokens: vec![
            Token { name: "ci".to_owned(), secret: TokenSecret::Plain(Secret::new("0123456789abcdef")) },
            Token { name: "bot".to_owned(), secret: TokenSecret::Sha256(Sha256::digest("fedcba9876543210").into()) },
        ],
        ..Users::default()
    }
}

fn checks() -> Checks {
    Checks::new(Pool::new("test", 2).unwrap())
}

async fn ask(checks: &Checks, known: &Known, authorization: &str) -> Result<String, Refusal> {
    let mut headers = HeaderMap::new();
    if !authorization.is_empty() {
        headers.insert(AUTHORIZATION, HeaderValue::from_str(authorization).unwrap());
    }
    let identity = checks.identify(known, &headers, "10.0.0.1".parse().unwrap()).await?;
    Ok(match identity {
        Identity::Anonymous => "-".to_owned(),
        Identity::User(name) => name.to_string(),
    })
}

fn basic(pair: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

#[tokio::test]
async fn passwords_and_tokens_prove_their_names_and_nothing_else_does() {
    let (checks, known) = (checks(), Known::new(&users()));
    let good = [
        (String::new(), "-"),
        (basic("ann:right"), "ann"),
        // From memory.
        (basic("ann:right"), "ann"),
        ("Bearer 0123456789abcdef".to_owned(), "ci"),
        ("bearer fedcba9876543210".to_owned(), "bot"),
        (basic("ci:0123456789abcdef"), "ci"),
    ];
    for (authorization, name) in good {
        assert_eq!(ask(&checks, &known, &authorization).await.as_deref(), Ok(name));
    }
    let bad = [
        basic("ann:wrong"),
        basic("ann:"),
        basic("nobody:right"),
        basic("bot:0123456789abcdef"),
        basic("ann:0123456789abcdef"),
        "Bearer right".to_owned(),
        "Basic !".to_owned(),
        "Digest x".to_owned(),
    ];
    for authorization in bad {
        assert_eq!(ask(&checks, &known, &authorization).await, Err(Refusal::Wrong), "{authorization}");
    }
}

#[tokio::test]
async fn guessing_is_stopped_while_the_right_password_once_proven_goes_on() {
    let (checks, known) = (checks(), Known::new(&users()));
    ask(&checks, &known, &basic("ann:right")).await.unwrap();
    for n in 0..10 {
        assert_eq!(ask(&checks, &known, &basic(&format!("ann:{n}"))).await, Err(Refusal::Wrong));
    }
    assert_eq!(ask(&checks, &known, &basic("ann:11")).await, Err(Refusal::TooOften));
    ask(&checks, &known, &basic("ann:right")).await.unwrap();
}

#[tokio::test]
async fn a_changed_password_is_not_believed_from_memory() {
    let checks = checks();
    ask(&checks, &Known::new(&users()), &basic("ann:right")).await.unwrap();
    let mut changed = users();
    changed.passwords.insert("ann".to_owned(), Secret::new(&bcrypt::hash("other", 4).unwrap()));
    assert_eq!(ask(&checks, &Known::new(&changed), &basic("ann:right")).await, Err(Refusal::Wrong));
}

#[test]
fn rules_name_users_and_repositories() {
    let rule = |readers: &[Reader], globs: &[&str]| Rule {
        readers: readers.to_vec(),
        repositories: RepositoryGlobs::new(globs.iter().map(|&glob| glob.to_owned()).collect()).unwrap(),
    };
    let rules = vec![
        rule(&[Reader::Anonymous], &["docker.io/library/*"]),
        rule(&[Reader::Known], &["quay.io/**"]),
        rule(&[Reader::User("ann".to_owned())], &["docker.io/library/*", "ghcr.io/acme/**"]),
    ];
    let access = Access { users: users(), rules, exempt: Vec::new() };
    let readers = Readers::new(&access, vec!["127.0.0.1:80".parse().unwrap()]);
    assert!(readers.admits_anonymous());
    assert!(readers.is_exempt("[::ffff:127.0.0.1]:80".parse().unwrap()));
    assert!(!readers.is_exempt("127.0.0.1:81".parse().unwrap()));
    let user = |name: &str| Identity::User(name.into());
    for (who, repository, admission) in [
        (Identity::Anonymous, "docker.io/library/nginx", Admission::Open),
        (Identity::Anonymous, "docker.io/library/a/b", Admission::Unknown),
        (Identity::Anonymous, "quay.io/a/b", Admission::Unknown),
        (user("ci"), "docker.io/library/nginx", Admission::Open),
        (user("ci"), "quay.io/a/b/c", Admission::Listed),
        (user("ci"), "ghcr.io/acme/x", Admission::Denied),
        (user("ann"), "docker.io/library/nginx", Admission::Listed),
        (user("ann"), "ghcr.io/acme/x/y", Admission::Listed),
        (user("ann"), "ghcr.io/acmex/y", Admission::Denied),
    ] {
        assert_eq!(readers.admit(&who, repository), admission, "{who:?} {repository}");
    }
}
