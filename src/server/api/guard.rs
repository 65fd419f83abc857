//! Who may use the API: those who are known, and where nobody is, whoever sits at a loopback address.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Uri};

use crate::audit::{self, Actor};

use super::super::auth::{Checks, Identity, Known, Refusal};
use super::super::connection::ConnectionInfo;
use super::{Api, ApiError};

/// Who is known, and who of them may change things.
#[derive(Debug)]
pub struct Guard {
    known: Known,
    admins: Vec<String>,
    checks: Checks,
}

/// Whoever uses the API: an extension of each of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Who, and from where.
    pub actor: Actor,
    /// What they may do.
    pub role: Role,
}

/// What someone may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Reader,
    /// Look, and change things.
    Admin,
}

/// The middleware of all routes: no one gets past it unknown, and only admins to what changes something.
pub(super) async fn require(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let guard = api.guard();
    let operator = match guard.admit(&parts).await {
        Ok(operator) => operator,
        Err(error) => return error.into_response(),
    };
    let writes = !parts.method.is_safe();
    if writes && operator.role != Role::Admin {
        let subject = format!("{} {}", parts.method, parts.uri.path());
        audit::changed("refused", &operator.actor, &subject, &"-", &"-");
        return ApiError::forbidden("you may look, and only those in admin.admins may change things").into_response();
    }
    if writes && let Err(error) = check_origin(&parts.headers) {
        return error.into_response();
    }
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().insert(operator);
    next.run(request).await
}

/// A page of another site must not be able to make a browser on the operator's machine change things here.
fn check_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = origin.as_ref().and_then(Uri::authority).map(http::uri::Authority::as_str);
    match (authority, host) {
        (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host) => Ok(()),
        _ => Err(ApiError::forbidden("this comes from a page of another site")),
    }
}

/// A name that leads to a loopback address may be anybody's; `localhost` and addresses are not.
fn is_own_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

// === impl Guard ===

impl Guard {
    /// Lets in `known`; those of them in `admins` may also change things.
    pub fn new(known: Known, admins: Vec<String>, checks: Checks) -> Self {
        Self { known, admins, checks }
    }

    /// Whoever sends a request, if they may use the API at all.
    pub(in crate::server) async fn admit(&self, request: &Parts) -> Result<Operator, ApiError> {
        let info = request.extensions.get::<ConnectionInfo>().copied();
        let Some(info) = info else { return Err(ApiError::internal("nobody knows where this request came from")) };
        let address = Some(info.peer.to_string());
        if self.known.is_empty() {
            let is_loopback =
                info.peer.ip().to_canonical().is_loopback() && info.local.ip().to_canonical().is_loopback();
            let proxied = request.headers.contains_key("x-forwarded-for") || request.headers.contains_key("forwarded");
            if !is_loopback || proxied || !is_own_host(&request.headers) {
                return Err(ApiError::forbidden(
                    "nobody is known here, so the API answers only to loopback addresses: set admin.tokens_file or \
                     admin.htpasswd",
                ));
            }
            return Ok(Operator { actor: Actor { name: "loopback".to_owned(), address }, role: Role::Admin });
        }
        match self.checks.identify(&self.known, &request.headers, info.peer.ip()).await {
            Ok(Identity::User(name)) => {
                let role = if self.admins.iter().any(|admin| **admin == *name) { Role::Admin } else { Role::Reader };
                Ok(Operator { actor: Actor { name: name.to_string(), address }, role })
            }
            Ok(Identity::Anonymous) => Err(ApiError::unauthorized()),
            Err(Refusal::Busy) => Err(ApiError::busy("too many passwords are being checked")),
            Err(Refusal::Wrong | Refusal::TooOften) => {
                audit::decided("api login refused", &info.peer.to_string(), &"the name, password or token is wrong");
                Err(ApiError::unauthorized())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let host = ("host", "127.0.0.1:5051");
        check_origin(&headers(&[host])).unwrap();
        check_origin(&headers(&[host, ("origin", "http://127.0.0.1:5051")])).unwrap();
        for origin in ["http://evil.example", "http://127.0.0.1:5052", "null", "https://127.0.0.1"] {
            check_origin(&headers(&[host, ("origin", origin)])).unwrap_err();
        }
    }

    #[test]
    fn names_that_anyone_can_point_here_are_not_ours() {
        for own in ["localhost", "LOCALHOST:5051", "127.0.0.1:5051", "[::1]:5051", "10.0.0.1"] {
            assert!(is_own_host(&headers(&[("host", own)])), "{own}");
        }
        for other in ["evil.example", "localhost.evil.example:5051", "", "127.0.0.1.nip.io"] {
            assert!(!is_own_host(&headers(&[("host", other)])), "{other}");
        }
        assert!(!is_own_host(&HeaderMap::new()));
    }
}
