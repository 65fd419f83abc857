//! Who may read what at the scripted registry: Basic and Bearer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::answer::Reply;
use super::wire::Received;

/// What the registry wants to see.
#[derive(Clone, Debug)]
pub(crate) enum Auth {
    /// Nothing.
    Open,
    /// A user's name and password, for everything.
    Basic,
    /// A token.
    Bearer(Bearer),
}

/// The particulars of a token flow.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    /// Where tokens are given out; the registry's own `/token` when `None`.
    pub(crate) realm: Option<String>,
    /// Named in the challenge and wanted in the token request.
    pub(crate) service: Option<String>,
    /// The scope named in challenges, whatever was asked, as ghcr.io does on `/v2/`; the right one when `None`.
    pub(crate) scope: Option<String>,
    pub(crate) expires_in: Option<u64>,
    /// Anybody gets a token for what is public.
    pub(crate) anonymous: bool,
    /// Name of the token's field: `token` or `access_token`.
    pub(crate) field: &'static str,
    /// A token that has expired is answered with this realm, as nvcr.io does.
    pub(crate) stale_realm: Option<String>,
    /// A token that has expired is answered with Basic, as Harbor does.
    pub(crate) stale_basic: bool,
    /// What a POST to the token server comes to: a status, or an exchange of a refresh token.
    pub(crate) exchange: Exchange,
    /// How what may not be read is refused.
    pub(crate) denial: Denial,
}

/// What a token server makes of a POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// It knows only GET: Google's says 404, Artifactory's 401, ACR's 400.
    Refused(u16),
    /// It exchanges refresh tokens, which are users' passwords here.
    Refresh,
}

/// How a registry says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// 401 with a token that does not suffice: Docker Hub.
    Resource401,
    /// 403 with a token that does not suffice: Google.
    Resource403,
    /// The token is refused with this status: ghcr.io (401 without, 403 with bad credentials).
    Token(u16),
}

/// Users, tokens and what they open.
#[derive(Debug)]
pub(super) struct Access {
    auth: Auth,
    pub(super) users: HashMap<String, String>,
    /// Repositories that only some may read.
    pub(super) private: BTreeMap<String, BTreeSet<String>>,
    tokens: HashMap<String, Grant>,
    issued: u64,
}

#[derive(Debug)]
struct Grant {
    user: Option<String>,
    scope: String,
    expired: bool,
}

// === impl Bearer ===

impl Default for Bearer {
    fn default() -> Self {
        Self {
            realm: None,
            service: Some("scripted".to_owned()),
            scope: None,
            expires_in: Some(300),
            anonymous: true,
            field: "token",
            stale_realm: None,
            stale_basic: false,
            exchange: Exchange::Refused(405),
            denial: Denial::Resource401,
        }
    }
}

// === impl Access ===

impl Access {
    pub(super) fn new(auth: Auth) -> Self {
        Self { auth, users: HashMap::new(), private: BTreeMap::new(), tokens: HashMap::new(), issued: 0 }
    }

    pub(super) fn expire_tokens(&mut self) {
        self.tokens.values_mut().for_each(|grant| grant.expired = true);
    }

    /// Whether `request` may read `repository` (empty for the ping); if not, the refusal.
    pub(super) fn check(&self, request: &Received, repository: &str, own_url: &str) -> Result<(), Reply> {
        match &self.auth {
            Auth::Open => Ok(()),
            Auth::Basic => match self.user(request) {
                Ok(Some(user)) if self.may_read(Some(&user), repository) => Ok(()),
                Ok(Some(_)) => Err(Reply::error(403, "DENIED", "not yours")),
                _ => Err(Reply::error(401, "UNAUTHORIZED", "who are you")
                    .with("WWW-Authenticate", "Basic realm=\"scripted, with a \\\"comma\\\"\"")),
            },
            Auth::Bearer(bearer) => self.check_bearer(bearer, request, repository, own_url),
        }
    }

    fn check_bearer(&self, bearer: &Bearer, request: &Received, repository: &str, own_url: &str) -> Result<(), Reply> {
        let own_realm = bearer.realm.clone().unwrap_or_else(|| format!("{own_url}/token"));
        let challenge = |realm: &str, error: &str| {
            let mut text = format!("Bearer realm=\"{realm}\"");
            if let Some(service) = &bearer.service {
                text.push_str(&format!(",service=\"{service}\""));
            }
            match &bearer.scope {
                // Empty: none is named, not even the right one.
                Some(scope) if scope.is_empty() => {}
                Some(scope) => text.push_str(&format!(",scope=\"{scope}\"")),
                None if repository.is_empty() => {}
                None => text.push_str(&format!(",scope=\"repository:{repository}:pull\"")),
            }
            if !error.is_empty() {
                text.push_str(&format!(",error=\"{error}\""));
            }
            Reply::error(401, "UNAUTHORIZED", "a token is needed").with("WWW-Authenticate", text)
        };
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let Some(token) = token else { return Err(challenge(&own_realm, "")) };
        let Some(grant) = self.tokens.get(token).filter(|grant| !grant.expired) else {
            if bearer.stale_basic {
                return Err(
                    Reply::error(401, "UNAUTHORIZED", "stale").with("WWW-Authenticate", "Basic realm=\"harbor\"")
                );
            }
            return Err(challenge(bearer.stale_realm.as_ref().unwrap_or(&own_realm), "invalid_token"));
        };
        let covered = repository.is_empty()
            || grant.scope.split(' ').any(|scope| scope == format!("repository:{repository}:pull"));
        if covered && self.may_read(grant.user.as_deref(), repository) {
            return Ok(());
        }
        match bearer.denial {
            Denial::Resource403 if covered => Err(Reply::error(403, "DENIED", "denied, or it may not exist")),
            _ => Err(challenge(&own_realm, "insufficient_scope")),
        }
    }

    /// Answers a request for a token.
    pub(super) fn issue(&mut self, request: &Received) -> Reply {
        let Auth::Bearer(bearer) = self.auth.clone() else { return Reply::error(404, "UNSUPPORTED", "no tokens here") };
        if request.method == "POST" {
            return match bearer.exchange {
                Exchange::Refused(status) => Reply::error(status, "UNSUPPORTED", "tokens are got by GET"),
                Exchange::Refresh => self.exchange(&bearer, request),
            };
        }
        let Ok(user) = self.user(request) else { return Reply::error(401, "UNAUTHORIZED", "wrong password") };
        if user.is_none() && !bearer.anonymous {
            return Reply::error(401, "UNAUTHORIZED", "nobody is anonymous here");
        }
        if request.query("service") != bearer.service.as_deref() && bearer.service.is_some() {
            return Reply::error(400, "UNKNOWN", "not the service that the challenge named");
        }
        let scopes: Vec<_> =
            request.query.iter().filter(|(name, _)| name == "scope").map(|(_, value)| value.as_str()).collect();
        let scope = scopes.join(" ");
        if let Denial::Token(status) = bearer.denial {
            let names = scope.split(' ').filter_map(|scope| scope.strip_prefix("repository:")?.strip_suffix(":pull"));
            for name in names {
                if !self.may_read(user.as_deref(), name) {
                    return Reply::error(status, "DENIED", "requested access to the resource is denied");
                }
            }
        }
        self.give(&bearer, user, scope)
    }

    fn exchange(&mut self, bearer: &Bearer, request: &Received) -> Reply {
        let field = |name: &str| request.field(name).unwrap_or_default();
        if field("grant_type") != "refresh_token" || field("service") != bearer.service.clone().unwrap_or_default() {
            return Reply::error(400, "UNKNOWN", "not what the challenge asked for");
        }
        let token = field("refresh_token");
        let known = self.users.iter().find(|(_, password)| **password == token).map(|(user, _)| user.clone());
        match known {
            Some(user) => self.give(bearer, Some(user), field("scope")),
            None => Reply::error(401, "UNAUTHORIZED", "no such refresh token"),
        }
    }

    fn give(&mut self, bearer: &Bearer, user: Option<String>, scope: String) -> Reply {
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        self.tokens.insert(token.clone(), Grant { user, scope, expired: false });
        let mut body = serde_json::json!({ bearer.field: token });
        if let Some(seconds) = bearer.expires_in {
            body["expires_in"] = seconds.into();
        }
        Reply::new(200, "application/json", body.to_string())
    }

    fn may_read(&self, user: Option<&str>, repository: &str) -> bool {
        self.private.get(repository).is_none_or(|users| user.is_some_and(|user| users.contains(user)))
    }

    /// The user whose name and password came along; `Err` when they are wrong.
    fn user(&self, request: &Received) -> Result<Option<String>, ()> {
        let Some(value) = request.header("authorization") else { return Ok(None) };
        let known = self.users.iter().find(|(user, password)| value == basic(user, password));
        known.map(|(user, _)| Some(user.clone())).ok_or(())
    }
}

/// The value of an `Authorization` header for a user and password.
pub(super) fn basic(username: &str, password: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "Basic ".to_owned();
    for group in format!("{username}:{password}").as_bytes().chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for n in 0..4 {
            let sextet = (bits >> (18 - 6 * n)) & 63;
            text.push(if n <= group.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}
