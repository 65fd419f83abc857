//! Getting past a registry's door: tokens, Basic, and what to do when what we hold is refused.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Method;
use tokio::time::Instant;

use super::Inner;
use super::challenge::Challenge;
use super::credentials::CredentialId;
use super::endpoint::Endpoint;
use super::error::{Failure, UpstreamErrorKind};
use super::redirect::place;
use super::request::{Ask, Authorization, Reply, status_failure};
use super::token::{Grant, Token, TokenKey};

/// What a request is sent with.
#[derive(Clone, Debug)]
enum Pass {
    Nothing,
    Basic(CredentialId),
    Bearer(Arc<Token>),
}

/// A request's way past one endpoint's door as one identity.
struct Visit<'a> {
    inner: &'a Arc<Inner>,
    endpoint: &'a Endpoint,
    ask: &'a Ask<'a>,
    identity: Option<CredentialId>,
    key: TokenKey,
    /// The identity was shown to the registry or its token server.
    offered: bool,
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
        let Some(id) = self.identity(ask) else { return self.visit(endpoint, ask, None).run().await };
        let mut refused = None;
        if !endpoint.has_rejected(id, ask.repository) {
            let mut visit = self.visit(endpoint, ask, Some(id));
            match visit.run().await {
                Err(failure) if failure.is_refusal() && visit.offered => {
                    if failure.kind.is_anonymous_refusal() {
                        self.note_rejected(endpoint, ask, id);
                    } else {
                        refused = Some(failure);
                    }
                }
                other => return other,
            }
        }
        match self.visit(endpoint, ask, None).run().await {
            Err(failure) if failure.is_refusal() => {
                let scope = self.credentials.get(id).map_or("", |credential| credential.scope.as_str());
                Err(refused.unwrap_or_else(|| failure.after_rejecting(scope)))
            }
            other => other,
        }
    }

    fn note_rejected(&self, endpoint: &Endpoint, ask: &Ask<'_>, id: CredentialId) {
        endpoint.reject(id, ask.repository);
        tracing::warn!(
            upstream = self.name,
            endpoint = endpoint.label(),
            repository = %ask.repository,
            scope = self.credentials.get(id).map(|credential| credential.scope.as_str()),
            "the credential was rejected; asking without it for a while"
        );
    }

    fn visit<'a>(
        self: &'a Arc<Self>,
        endpoint: &'a Endpoint,
        ask: &'a Ask<'a>,
        identity: Option<CredentialId>,
    ) -> Visit<'a> {
        let key = TokenKey { place: place(&endpoint.url), identity, scope: ask.scope() };
        Visit { inner: self, endpoint, ask, identity, key, offered: false }
    }

    /// Fetches a token for `key`, sharing the request with everyone else who wants it.
    async fn token(self: &Arc<Self>, key: &TokenKey, grant: Grant) -> Result<Arc<Token>, Failure> {
        let inner = Arc::clone(self);
        let identity = key.identity;
        self.tokens.fetch(key, async move { inner.fetch_token(grant, identity).await }).await
    }

    async fn fetch_token(&self, grant: Grant, identity: Option<CredentialId>) -> Result<Token, Failure> {
        let mut url = grant.realm.clone();
        url.query_pairs_mut().append_pair("service", &grant.service);
        for scope in &grant.scopes {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        let server = place(&url);
        let mut request = self.client.http().await?.get(url);
        if let Some(credential) = identity.and_then(|id| self.credentials.get(id)) {
            request = request.basic_auth(&credential.username, Some(credential.password.expose()));
        }
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
        self.token(&key, grant).await.ok().map(|token| token.authorization.clone())
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
            Pass::Basic(id) => self.inner.credentials.get(*id).map(Authorization::Basic),
            Pass::Bearer(token) => Some(Authorization::Bearer(token.authorization.clone())),
        };
        self.inner.follow(self.endpoint, self.ask, authorization).await
    }

    /// What is held from earlier requests. A token that will expire soon is used once more while the next one is fetched.
    fn pass_held(&mut self) -> Pass {
        let now = Instant::now();
        if let Some(token) = self.inner.tokens.get(&self.key, now) {
            if token.is_due(now) {
                let (inner, grant, identity) = (Arc::clone(self.inner), token.grant.clone(), self.identity);
                // The flight runs on by itself; who comes after its end finds the new token.
                drop(self.inner.tokens.fetch(&self.key, async move { inner.fetch_token(grant, identity).await }));
            }
            self.offered = self.identity.is_some();
            return Pass::Bearer(token);
        }
        let basic = self.identity.filter(|_| self.endpoint.speaks_basic());
        self.offered = basic.is_some();
        basic.map_or(Pass::Nothing, Pass::Basic)
    }

    fn drop_pass(&self, pass: &Pass) {
        match pass {
            Pass::Nothing => {}
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
            let Some(id) = self.identity else { return Ok(Pass::Nothing) };
            self.offered = true;
            self.endpoint.remember_basic(true);
            return Ok(Pass::Basic(id));
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
            None => self.inner.token(&self.key, grant).await?,
        };
        Ok(Pass::Bearer(token))
    }

    fn refused(&self, status: StatusCode, pass: &Pass) -> Failure {
        // A token server has accepted the credential when it gave out a token; a password is accepted by the registry.
        let accepted = match pass {
            Pass::Nothing => false,
            Pass::Basic(_) => status != StatusCode::UNAUTHORIZED,
            Pass::Bearer(_) => self.identity.is_some(),
        };
        UpstreamErrorKind::Refused { status: status.as_u16(), anonymous: !accepted, rejected: None }.into()
    }
}

fn missing_scope(reply: &Reply) -> Option<String> {
    if !reply.is_unauthorized() && !reply.is_forbidden() {
        return None;
    }
    let challenge = Challenge::best(reply.response.headers())?;
    challenge.missing_scope().filter(|scope| scope.len() <= SCOPE_BYTES_MAX).map(ToOwned::to_owned)
}
