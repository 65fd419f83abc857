//! A request's journey: a free connection, the endpoints in order, redirects, and what the answer's status means.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::{Method, Response};
use tokio::time::Instant;
use url::Url;

use super::answer::{oci_error_code, status_failure};
use super::credentials::{Credentials, Identity};
use super::endpoint::Endpoint;
use super::error::{Failure, Phase, UpstreamError, UpstreamErrorKind};
use super::lanes::{Permit, Use};
use super::locations::Location;
use super::manifests::no_page;
use super::redirect::{HOPS_MAX, Rules, Target, same_place};
use super::{Access, BlobRange, Inner, via};
use crate::oci::{Digest, Repository};

/// What is asked of an upstream.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    /// The `kind` label in metrics.
    pub(super) kind: &'static str,
    pub(super) method: Method,
    pub(super) repository: &'a Repository,
    /// What follows the repository's name in the path, without a slash before it.
    pub(super) what: String,
    pub(super) query: Option<String>,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<BlobRange>,
    pub(super) access: Access,
    /// Whether a redirect may lead to another host.
    pub(super) may_leave: bool,
    /// What its connection is used for.
    pub(super) wanted: Use,
    /// The blob whose bytes are asked for.
    pub(super) blob: Option<&'a Digest>,
    /// The mirrors that the question has come through.
    pub(super) via: Option<Arc<str>>,
}

/// An answer at the end of its redirects.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response,
    /// A redirect led to another host or port, so its status says nothing about our rights at the registry.
    pub(super) left: bool,
    /// That other host had a door of its own, so its address alone opens nothing.
    pub(super) opened: bool,
}

/// A good answer: 200, 206 or 416. The permit belongs to whoever reads the body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) endpoint: String,
    pub(super) permit: Permit,
}

/// Error bodies are looked into up to this size.
const ERROR_BYTES_MAX: usize = 64 * 1024;

// === impl Ask ===

impl<'a> Ask<'a> {
    /// A GET of `what` in `repository`.
    pub(super) fn get(kind: &'static str, repository: &'a Repository, what: String) -> Self {
        Self {
            kind,
            method: Method::GET,
            repository,
            what,
            query: None,
            accept: None,
            range: None,
            access: Access::Configured,
            may_leave: true,
            wanted: Use::Check,
            blob: None,
            via: None,
        }
    }

    /// The scope that a token needs for it.
    pub(super) fn scope(&self, endpoint: &Endpoint) -> String {
        format!("repository:{}:pull", endpoint.repository(&self.repository.name))
    }

    fn address(&self, endpoint: &Endpoint) -> Url {
        let mut url = endpoint.address(&format!("{}/{}", endpoint.repository(&self.repository.name), self.what));
        url.set_query(self.query.as_deref());
        if endpoint.mirror {
            // Another mirror has many upstreams, and must be told which one is meant.
            url.query_pairs_mut().append_pair("ns", self.repository.registry.as_str());
        }
        url
    }
}

// === impl Reply ===

impl Reply {
    pub(super) fn is_unauthorized(&self) -> bool {
        !self.left && self.response.status() == StatusCode::UNAUTHORIZED
    }

    pub(super) fn is_forbidden(&self) -> bool {
        !self.left && self.response.status() == StatusCode::FORBIDDEN
    }
}

// === impl Inner ===

impl Inner {
    /// Asks the endpoints in turn until one says something about the content, be it yes or no.
    pub(super) async fn ask(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let permit = self.permit(ask.wanted).await?;
        if let Some((response, endpoint)) = self.ask_where_it_lay(ask).await? {
            return Ok(Answer { response, endpoint, permit });
        }
        let mut errors = Vec::new();
        for endpoint in self.endpoints_in_order() {
            let turn = match endpoint.health.enter(Instant::now()) {
                Ok(turn) => turn,
                Err(failure) => {
                    errors.push(failure.at(&self.name, endpoint.label()));
                    continue;
                }
            };
            // Boxed, for the way through redirects and tokens is a long one.
            let result = Box::pin(self.ask_endpoint(endpoint, ask)).await;
            match result {
                Ok(response) => {
                    turn.succeeded();
                    self.client.metrics().upstream_succeeded(&self.name);
                    return Ok(Answer { response, endpoint: endpoint.label().to_owned(), permit });
                }
                Err(failure) => {
                    turn.ended(&failure, Instant::now());
                    let error = failure.at(&self.name, endpoint.label());
                    tracing::debug!(repository = %ask.repository, kind = ask.kind, %error, "upstream request failed");
                    // What another mirror does not have, or not give, may well be had further on.
                    if !error.is_transient() && !endpoint.mirror {
                        if error.kind.is_verdict() {
                            self.client.metrics().upstream_succeeded(&self.name);
                        }
                        return Err(error);
                    }
                    errors.push(error);
                }
            }
        }
        Err(most_telling(errors).unwrap_or_else(|| Failure::protocol("it has no endpoints").at(&self.name, "-")))
    }

    async fn permit(&self, wanted: Use) -> Result<Permit, UpstreamError> {
        let busy = || {
            let endpoint = self.endpoints.first().map_or("-", Endpoint::label);
            Failure::timeout(Phase::Queue).at(&self.name, endpoint)
        };
        self.lanes.enter(wanted, self.client.settings.header_timeout).await.ok_or_else(busy)
    }

    /// Asks for a part of a blob where the registry's redirect led to a moment ago, so that ranges of one blob cost the
    /// registry one request. `None`: nothing is remembered, or it is no longer good, so the registry must be asked.
    async fn ask_where_it_lay(&self, ask: &Ask<'_>) -> Result<Option<(Response, String)>, UpstreamError> {
        let (Some(digest), Some(_)) = (ask.blob, ask.range) else { return Ok(None) };
        let Some(location) = self.locations.get(ask.repository, digest) else { return Ok(None) };
        let Some(endpoint) = self.endpoints.get(location.endpoint) else { return Ok(None) };
        let at = |failure: Failure| failure.at(&self.name, endpoint.label());
        let request = self.request(ask, &location.url, None, None).await.map_err(at)?;
        match self.client.send(ask.kind, request).await {
            Ok(response) if is_content(&response) => {
                self.client.metrics().upstream_succeeded(&self.name);
                Ok(Some((response, endpoint.label().to_owned())))
            }
            // Expired, revoked, moved or broken: whatever it is, this address is never asked again.
            Ok(response) => {
                self.locations.forget(ask.repository, digest, &location);
                self.client.drain(response).await;
                Ok(None)
            }
            Err(failure) => {
                self.locations.forget(ask.repository, digest, &location);
                // Whoever waits has waited for one deadline already.
                if matches!(failure.kind, UpstreamErrorKind::Timeout(_)) { Err(at(failure)) } else { Ok(None) }
            }
        }
    }

    /// Remembers where a blob's bytes came from, if that address can be asked again as it is.
    fn remember_location(&self, ask: &Ask<'_>, endpoint: &Endpoint, reply: &Reply) {
        let (Some(digest), true, false) = (ask.blob, reply.left, reply.opened) else { return };
        if let Some(endpoint) = self.endpoints.iter().position(|known| std::ptr::eq(known, endpoint)) {
            let location = Location { url: reply.response.url().clone(), endpoint };
            self.locations.remember(ask.repository, digest, location);
        }
    }

    /// As configured, but those that failed just now come last.
    pub(super) fn endpoints_in_order(&self) -> Vec<&Endpoint> {
        let now = Instant::now();
        let (failed, fine): (Vec<&Endpoint>, Vec<&Endpoint>) =
            self.endpoints.iter().partition(|endpoint| endpoint.health.has_failed(now));
        fine.into_iter().chain(failed).collect()
    }

    async fn ask_endpoint(self: &Arc<Self>, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response, Failure> {
        self.may_dial(endpoint)?;
        let reply = self.ask_authorized(endpoint, ask).await?;
        let status = reply.response.status();
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.remember_location(ask, endpoint, &reply);
                Ok(reply.response)
            }
            _ if status.is_success() => Err(Failure::protocol(format!("status {status} to a read"))),
            _ => Err(self.failure_of(endpoint, reply).await),
        }
    }

    /// Names are watched by the resolver, addresses here.
    fn may_dial(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        if self.public_only && self.has_private_literal() {
            return Err(Failure::refused_target(format!("{} is not a public address", endpoint.label())));
        }
        Ok(())
    }

    /// Reads an answer that is none, its body included.
    async fn failure_of(&self, endpoint: &Endpoint, reply: Reply) -> Failure {
        let mut failure = status_failure(reply.response.status(), reply.response.headers());
        let not_found = reply.response.status() == StatusCode::NOT_FOUND;
        // Another mirror says in words what it could not do, also where an answer has no body.
        let warned = via::warning(reply.response.headers()).filter(|_| endpoint.mirror);
        let code = match self.client.collect(reply.response, ERROR_BYTES_MAX).await {
            Ok(body) => oci_error_code(&body),
            Err(_) => None,
        };
        if not_found {
            let oci_body = code.is_some() && !reply.left && !endpoint.mirror;
            failure.kind = UpstreamErrorKind::NotFound { oci_body };
        }
        failure.cause = warned.or(code);
        failure.after_leaving(reply.left)
    }

    /// Who we are for what is asked, unless nobody's rights are wanted.
    pub(super) async fn identity(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Option<Arc<Identity>> {
        match ask.access {
            Access::Anonymous => None,
            Access::Configured => self.credentials_at(endpoint)?.for_repository(ask.repository).await,
        }
    }

    /// The credentials that may be shown to an endpoint: its own, or the upstream's. A mirror is not the upstream.
    pub(super) fn credentials_at<'a>(&'a self, endpoint: &'a Endpoint) -> Option<&'a Credentials> {
        match &endpoint.own {
            Some(own) => Some(own),
            None if endpoint.mirror => None,
            None => Some(&self.credentials),
        }
    }

    /// Sends a request to an endpoint and follows where it leads.
    pub(super) async fn follow(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Reply, Failure> {
        let mut url = ask.address(endpoint);
        let (mut authorization, mut left, mut opened) = (authorization, false, false);
        let mut via = endpoint.mirror.then(|| self.via.with(ask.via.as_deref()));
        let mut hops = 0;
        loop {
            let request = self.request(ask, &url, authorization.as_ref(), via.as_ref()).await?;
            let sent = self.client.send(ask.kind, request).await;
            let response = sent.map_err(|failure| failure.after_leaving(left))?;
            let status = response.status();
            if left && status == StatusCode::UNAUTHORIZED && !opened {
                opened = true;
                let Some(pass) = self.foreign_pass(endpoint, &url, response.headers()).await else {
                    return Ok(Reply { response, left, opened });
                };
                authorization = Some(pass);
                self.client.drain(response).await;
                continue;
            }
            if !is_redirect(status) {
                return Ok(Reply { response, left, opened });
            }
            if !ask.may_leave && leads_away(&url, response.headers()) {
                return Ok(Reply { response, left: true, opened });
            }
            hops += 1;
            if hops > HOPS_MAX {
                return Err(Failure::protocol(format!("more than {HOPS_MAX} redirects")));
            }
            let next = self.next_hop(endpoint, &url, response.headers())?;
            self.client.drain(response).await;
            if !same_place(&url, &next) {
                // Once away it stays away, also when a later hop leads back.
                authorization = None;
                via = None;
                left = !same_place(&endpoint.url, &next);
            }
            url = next;
        }
    }

    async fn request(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
        via: Option<&HeaderValue>,
    ) -> Result<reqwest::Request, Failure> {
        let mut request = self
            .client
            .http()
            .await?
            .request(ask.method.clone(), url.clone())
            .header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(accept) = ask.accept {
            request = request.header(header::ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some(range) = ask.range {
            request = request.header(header::RANGE, range.to_string());
        }
        for (name, value) in [(header::AUTHORIZATION, authorization), (header::VIA, via)] {
            if let Some(value) = value {
                request = request.header(name, value.clone());
            }
        }
        request.build().map_err(|error| Failure::protocol(error.without_url().to_string()))
    }

    fn next_hop(&self, endpoint: &Endpoint, current: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
        let location =
            headers.get(header::LOCATION).ok_or_else(|| Failure::protocol("a redirect without a location"))?;
        let target = self.rules(endpoint).redirect(current, location.as_bytes()).map_err(Failure::refused_target)?;
        self.guarded(target)
    }

    pub(super) fn rules<'a>(&'a self, endpoint: &'a Endpoint) -> Rules<'a> {
        Rules {
            endpoint: &endpoint.url,
            private: self.is_private(),
            allowed: &self.redirect_hosts,
            is_public: self.resolver.is_public(),
        }
    }

    /// The target's address, once the resolver has been told to watch its name.
    pub(super) fn guarded(&self, target: Target) -> Result<Url, Failure> {
        match &target.guard {
            Some(name) if !self.resolver.guard(name) => {
                Err(Failure::refused_target(format!("one more host than can be watched: {name}")))
            }
            Some(_) | None => Ok(target.url),
        }
    }
}

/// What is told when no endpoint helped: the first trouble, for error beats lie; else the first verdict.
fn most_telling(errors: Vec<UpstreamError>) -> Option<UpstreamError> {
    let trouble = errors.iter().position(UpstreamError::is_transient);
    errors.into_iter().nth(trouble.unwrap_or(0))
}

/// Whether an answer to a question for a blob brings bytes of it.
fn is_content(response: &Response) -> bool {
    matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) && no_page(response.headers()).is_ok()
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn leads_away(current: &Url, headers: &HeaderMap) -> bool {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    !location.and_then(|location| current.join(location).ok()).is_some_and(|next| same_place(current, &next))
}
