//! Getting past a registry's door: tokens, Basic, and what to do when what we hold is refused.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Method;
use tokio::time::Instant;

use super::Inner;
use super::answer::status_failure;
use super::challenge::Challenge;
use super::credentials::{Identity, Login};
use super::endpoint::Endpoint;
use super::error::{Failure, UpstreamErrorKind};
use super::redirect::place;
use super::request::{Ask, Reply};
use super::token::{Grant, Token, TokenKey};
use crate::secret::Secret;

/// What a request is sent with.
#[derive(Clone, Debug)]
enum Pass {
    Nothing,
    Basic(Arc<Identity>),
    Bearer(Arc<Token>),
    /// A token that we were given, and that nobody exchanges.
    Fixed(Secret),
}

/// A request's way past one endpoint's door as one identity.
struct Visit<'a> {
    inner: &'a Arc<Inner>,
    endpoint: &'a Endpoint,
    ask: &'a Ask<'a>,
    identity: Option<Arc<Identity>>,
    key: TokenKey,
    /// The identity was shown to the registry or its token server.
    offered: bool,
}

/// What an examination of a door came to.
#[derive(Debug)]
pub(super) enum Examined {
    /// It is open, or opened by a password.
    NotNeeded,
    /// The token, in words.
    Words(String),
}

/// Token answers above this are refused.
const TOKEN_BYTES_MAX: usize = 1024 * 1024;
/// Scopes longer than this are not asked for on a registry's word.
const SCOPE_BYTES_MAX: usize = 1024;

// === impl Inner ===

impl Inner {
    /// Asks one endpoint, as who we are for this repository. When the registry won't have that credential, asks once
    /// more as nobody: some refuse even public content to a wrong password.
    pub(super) async fn ask_authorized(self: &Arc<Self>, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Reply, Failure> {
        let Some(identity) = self.identity(endpoint, ask).await else {
            return self.visit(endpoint, ask, None).run().await;
        };
        let mut refused = None;
        let mut next = Some(identity.clone());
        // What was rejected may have been replaced in the meantime: a file that changed, a helper's password that expired.
        while let Some(identity) = next.take() {
            if endpoint.has_rejected(identity.id, ask.repository) {
                break;
            }
            let mut visit = self.visit(endpoint, ask, Some(identity.clone()));
            match visit.run().await {
                Err(failure) if failure.is_refusal() && visit.offered => {
                    if failure.kind.is_anonymous_refusal() {
                        self.note_rejected(endpoint, ask, &identity);
                        next = match self.credentials_at(endpoint) {
                            Some(credentials) if refused.is_none() => {
                                credentials.renewed(ask.repository, &identity).await
                            }
                            _ => None,
                        };
                    }
                    refused.get_or_insert(failure);
                }
                other => return other,
            }
        }
        match self.visit(endpoint, ask, None).run().await {
            Err(failure) if failure.is_refusal() => {
                let accepted = refused.filter(|refused| !refused.kind.is_anonymous_refusal());
                Err(accepted.unwrap_or_else(|| failure.after_rejecting(&identity.scope)))
            }
            other => other,
        }
    }

    fn note_rejected(&self, endpoint: &Endpoint, ask: &Ask<'_>, identity: &Identity) {
        endpoint.reject(identity.id, ask.repository);
        tracing::warn!(
            upstream = self.name,
            endpoint = endpoint.label(),
            repository = %ask.repository,
            scope = identity.scope,
            "the credential was rejected; asking without it for a while"
        );
    }

    fn visit<'a>(
        self: &'a Arc<Self>,
        endpoint: &'a Endpoint,
        ask: &'a Ask<'a>,
        identity: Option<Arc<Identity>>,
    ) -> Visit<'a> {
        let id = identity.as_ref().map(|identity| identity.id);
        let key = TokenKey { place: place(&endpoint.url), identity: id, scope: ask.scope(endpoint) };
        Visit { inner: self, endpoint, ask, identity, key, offered: false }
    }

    /// Fetches the token that a challenge asks for, and says so in words.
    pub(super) async fn examine_pass(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        identity: Option<Arc<Identity>>,
        challenge: Option<&Challenge>,
    ) -> Result<Examined, Failure> {
        let Some(challenge @ Challenge::Bearer { realm, .. }) = challenge else { return Ok(Examined::NotNeeded) };
        let mut visit = self.visit(endpoint, ask, identity);
        let Pass::Bearer(token) = visit.pass_for(challenge, None).await? else { return Ok(Examined::NotNeeded) };
        let server = realm.parse().map_or_else(|_| "?".to_owned(), |url| place(&url));
        let lifetime = token.lifetime(Instant::now()).as_secs();
        Ok(Examined::Words(format!("{server} gives one for {}, good for {lifetime} s", ask.scope(endpoint))))
    }

    /// Fetches a token for `key`, sharing the request with everyone else who wants it.
    async fn token(
        self: &Arc<Self>,
        key: &TokenKey,
        grant: Grant,
        identity: Option<Arc<Identity>>,
    ) -> Result<Arc<Token>, Failure> {
        let inner = Arc::clone(self);
        self.tokens.fetch(key, async move { inner.fetch_token(grant, identity).await }).await
    }

    async fn fetch_token(&self, grant: Grant, identity: Option<Arc<Identity>>) -> Result<Token, Failure> {
        let login = identity.as_ref().map(|identity| &identity.login);
        if let Some(Login::IdentityToken { token, .. }) = login {
            match self.exchange(&grant, token).await {
                // Not every token server knows this way: Google's and Artifactory's refuse it, or say 404.
                Err(failure) if failure.kind.means_no_post() => {}
                result => return result,
            }
        }
        let mut url = grant.realm.clone();
        url.query_pairs_mut().append_pair("service", &grant.service);
        for scope in &grant.scopes {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        let mut request = self.client.http().await?.get(url);
        match login {
            Some(Login::Password { username, password: secret } | Login::IdentityToken { username, token: secret }) => {
                request = request.basic_auth(username, Some(secret.expose()));
            }
            Some(Login::RegistryToken(_)) | None => {}
        }
        self.ask_token_server(grant, request).await
    }

    /// Exchanges an identity token for one that the registry takes (OAuth 2).
    async fn exchange(&self, grant: &Grant, token: &Secret) -> Result<Token, Failure> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", token.expose())
            .append_pair("client_id", "cachalot")
            .append_pair("service", &grant.service)
            .append_pair("scope", &grant.scopes.join(" "))
            .finish();
        let request = self
            .client
            .http()
            .await?
            .post(grant.realm.clone())
            .header(http::header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
            .body(form);
        self.ask_token_server(grant.clone(), request).await
    }

    async fn ask_token_server(&self, grant: Grant, request: reqwest::RequestBuilder) -> Result<Token, Failure> {
        let server = place(&grant.realm);
        let request = request.build().map_err(|error| Failure::protocol(error.without_url().to_string()))?;
        let at_server = |failure: Failure| failure.at_token_server(&server);
        let response = self.client.send("token", request).await.map_err(at_server)?;
        let status = response.status();
        if status != StatusCode::OK {
            let failure = match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    UpstreamErrorKind::Refused { status: status.as_u16(), anonymous: true, rejected: None }.into()
                }
                _ => status_failure(status, response.headers()),
            };
            self.client.drain(response).await;
            return Err(at_server(failure));
        }
        let body = self.client.collect(response, TOKEN_BYTES_MAX).await.map_err(at_server)?;
        Token::parse(&body, grant, Instant::now()).map_err(at_server)
    }

    /// An anonymous token for a host that a redirect led to and that has a door of its own.
    pub(super) async fn foreign_pass(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        host: &url::Url,
        headers: &HeaderMap,
    ) -> Option<HeaderValue> {
        let Challenge::Bearer { realm, service, scope, .. } = Challenge::best(headers)? else { return None };
        let scope = scope.filter(|scope| scope.len() <= SCOPE_BYTES_MAX)?;
        let key = TokenKey { place: place(host), identity: None, scope: scope.clone() };
        if let Some(token) = self.tokens.get(&key, Instant::now()) {
            return Some(token.authorization.clone());
        }
        let realm = self.realm(endpoint, &realm, false).ok()?;
        let grant = Grant { realm, service: service.unwrap_or_else(|| place(host)), scopes: vec![scope] };
        self.token(&key, grant, None).await.ok().map(|token| token.authorization.clone())
    }

    fn realm(&self, endpoint: &Endpoint, realm: &str, secret: bool) -> Result<url::Url, Failure> {
        let target = self.rules(endpoint).realm(realm, secret).map_err(Failure::refused_target)?;
        self.guarded(target)
    }
}

// === impl Visit ===

impl Visit<'_> {
    async fn run(&mut self) -> Result<Reply, Failure> {
        let mut pass = self.pass_held();
        let mut reply = self.send(&pass).await?;
        if reply.is_unauthorized() && !matches!(pass, Pass::Nothing) {
            // What we held is no longer good. The challenge that came with this answer may be about that only, so the
            // door is asked afresh.
            self.drop_pass(&pass);
            pass = Pass::Nothing;
            self.inner.client.drain(reply.response).await;
            reply = self.send(&pass).await?;
        }
        // Some registries refuse strangers with a bare 403 where an identity would open.
        let may_challenge = reply.is_unauthorized() || (reply.is_forbidden() && self.identity.is_some());
        if may_challenge && matches!(pass, Pass::Nothing) {
            let status = reply.response.status();
            let Some(challenge) = self.challenge(reply).await? else { return Err(self.refused(status, &pass)) };
            pass = self.pass_for(&challenge, None).await?;
            if matches!(pass, Pass::Nothing) {
                return Err(self.refused(status, &pass));
            }
            reply = self.send(&pass).await?;
            if let Some(more) = missing_scope(&reply) {
                self.inner.client.drain(reply.response).await;
                pass = self.pass_for(&challenge, Some(more)).await?;
                reply = self.send(&pass).await?;
            }
        }
        if reply.is_unauthorized() || reply.is_forbidden() {
            if reply.is_unauthorized() {
                self.drop_pass(&pass);
            }
            let refused = self.refused(reply.response.status(), &pass);
            self.inner.client.drain(reply.response).await;
            return Err(refused);
        }
        Ok(reply)
    }

    async fn send(&self, pass: &Pass) -> Result<Reply, Failure> {
        let authorization = match pass {
            Pass::Nothing => None,
            Pass::Basic(identity) => identity.basic(),
            Pass::Bearer(token) => Some(token.authorization.clone()),
            Pass::Fixed(token) => secret_header(&format!("Bearer {}", token.expose())),
        };
        self.inner.follow(self.endpoint, self.ask, authorization).await
    }

    /// What is held from earlier requests. A token that will expire soon is used once more while the next one is fetched.
    fn pass_held(&mut self) -> Pass {
        let now = Instant::now();
        if let Some(token) = self.inner.tokens.get(&self.key, now) {
            if token.is_due(now) {
                let (inner, grant, identity) = (Arc::clone(self.inner), token.grant.clone(), self.identity.clone());
                // The flight runs on by itself; who comes after its end finds the new token.
                drop(self.inner.tokens.fetch(&self.key, async move { inner.fetch_token(grant, identity).await }));
            }
            self.offered = self.identity.is_some();
            return Pass::Bearer(token);
        }
        if let Some(Login::RegistryToken(token)) = self.identity.as_ref().map(|identity| &identity.login) {
            self.offered = true;
            return Pass::Fixed(token.clone());
        }
        let basic = self.identity.clone().filter(|_| self.endpoint.speaks_basic());
        self.offered = basic.is_some();
        basic.map_or(Pass::Nothing, Pass::Basic)
    }

    fn drop_pass(&self, pass: &Pass) {
        match pass {
            Pass::Nothing | Pass::Fixed(_) => {}
            Pass::Basic(_) => self.endpoint.remember_basic(false),
            Pass::Bearer(token) => self.inner.tokens.forget(&self.key, token),
        }
    }

    /// The challenge in a refusal, or, where it has none, in the answer to `/v2/` (old gcr.io).
    async fn challenge(&self, reply: Reply) -> Result<Option<Challenge>, Failure> {
        let found = Challenge::best(reply.response.headers());
        self.inner.client.drain(reply.response).await;
        if found.is_some() {
            return Ok(found);
        }
        let url = self.endpoint.address("");
        let request = reqwest::Request::new(Method::GET, url);
        let response = self.inner.client.send(self.ask.kind, request).await?;
        let found = Challenge::best(response.headers());
        self.inner.client.drain(response).await;
        Ok(found)
    }

    async fn pass_for(&mut self, challenge: &Challenge, more: Option<String>) -> Result<Pass, Failure> {
        let Challenge::Bearer { realm, service, .. } = challenge else {
            let Some(identity) = self.identity.clone().filter(|identity| identity.basic().is_some()) else {
                return Ok(Pass::Nothing);
            };
            self.offered = true;
            self.endpoint.remember_basic(true);
            return Ok(Pass::Basic(identity));
        };
        let realm = self.inner.realm(self.endpoint, realm, self.identity.is_some())?;
        self.offered = self.identity.is_some();
        let service = service.clone().unwrap_or_else(|| place(&self.endpoint.url));
        let mut scopes = vec![self.key.scope.clone()];
        scopes.extend(more.filter(|more| *more != self.key.scope));
        let grant = Grant { realm, service, scopes };
        // Someone else may have fetched it while we were being refused.
        let held = self.inner.tokens.get(&self.key, Instant::now()).filter(|token| token.grant == grant);
        let token = match held {
            Some(token) => token,
            None => self.inner.token(&self.key, grant, self.identity.clone()).await?,
        };
        Ok(Pass::Bearer(token))
    }

    fn refused(&self, status: StatusCode, pass: &Pass) -> Failure {
        // A token server has accepted the credential when it gave out a token; a password is accepted by the registry.
        let accepted = match pass {
            Pass::Nothing => false,
            Pass::Basic(_) | Pass::Fixed(_) => status != StatusCode::UNAUTHORIZED,
            Pass::Bearer(_) => self.identity.is_some(),
        };
        UpstreamErrorKind::Refused { status: status.as_u16(), anonymous: !accepted, rejected: None }.into()
    }
}

/// A header's value that is never shown; `None` when it can't be sent.
pub(super) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn missing_scope(reply: &Reply) -> Option<String> {
    if !reply.is_unauthorized() && !reply.is_forbidden() {
        return None;
    }
    let challenge = Challenge::best(reply.response.headers())?;
    challenge.missing_scope().filter(|scope| scope.len() <= SCOPE_BYTES_MAX).map(ToOwned::to_owned)
}
