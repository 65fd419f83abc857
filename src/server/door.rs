//! The door of the registry: clients say who they are, and rules say what they may read.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{USER_AGENT, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::audit;
use crate::mirror::Target;
use crate::oci::error::ErrorCode;

use super::auth::{Admission, Identity, Refusal};
use super::connection::ConnectionInfo;
use super::error::ErrorResponse;
use super::router::Edge;

/// Our own challenge, the only one that clients ever get: upstream's are never passed on.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"cachalot\", charset=\"UTF-8\"");

/// When to come back after a check that did not get its turn.
const BUSY_PAUSE: Duration = Duration::from_secs(2);

/// Who asks; `None` where that is of no interest, because everyone may read.
pub(super) async fn identify(
    edge: &Edge,
    request: &Parts,
    from: Option<(ConnectionInfo, IpAddr)>,
) -> Result<Option<Identity>, ErrorResponse> {
    // Without a connection there is nobody to refuse: handlers are called so only by tests.
    let (Some(readers), Some((info, client))) = (edge.readers.as_deref(), from) else { return Ok(None) };
    if readers.is_exempt(info.local) {
        return Ok(None);
    }
    match edge.checks.identify(readers.known(), &request.headers, client).await {
        Ok(identity) => Ok(Some(identity)),
        Err(Refusal::Busy) => {
            let message = "too many passwords are being checked; try again in a moment";
            Err(ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message)
                .retry_after(BUSY_PAUSE))
        }
        Err(Refusal::Wrong) => {
            audit::decided("login refused", &client.to_string(), &"the name, password or token is wrong");
            Err(unauthorized("the name, password or token is wrong"))
        }
        Err(Refusal::TooOften) => Err(unauthorized("wrong passwords came too often from here; try again in a minute")),
    }
}

/// Lets someone in who only asks whether this is a registry. Clients that ask this first learn only here that they may say
/// who they are: skopeo, podman, buildah and CRI-O send no password that they weren't asked for here, and take the first
/// answer for a successful login. Without a password they go on as nobody. dockerd doesn't: where it has none, it gives up.
pub(super) fn admit_ping(edge: &Edge, reader: Option<&Identity>, headers: &HeaderMap) -> Result<(), ErrorResponse> {
    let (Some(Identity::Anonymous), Some(readers)) = (reader, &edge.readers) else { return Ok(()) };
    let is_dockerd = headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"docker/"));
    let may_pass = readers.admits_anonymous() && (is_dockerd || readers.known().is_empty());
    if may_pass { Ok(()) } else { Err(login()) }
}

/// Lets someone read a repository, or says why not. Whoever is listed as its reader is marked as such.
pub(super) fn admit(edge: &Edge, reader: Option<&Identity>, target: &mut Target) -> Result<(), ErrorResponse> {
    let (Some(reader), Some(readers)) = (reader, &edge.readers) else { return Ok(()) };
    match readers.admit(reader, &target.repository.to_string()) {
        Admission::Listed => target.listed = true,
        Admission::Open => {}
        Admission::Unknown => return Err(login()),
        Admission::Denied => {
            let name = match reader {
                Identity::User(name) => name,
                Identity::Anonymous => "nobody",
            };
            audit::decided("read refused", name, &target.repository);
            let message = format!("no rule of this mirror's [access] lets {name} read {}", target.repository);
            return Err(ErrorResponse::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message));
        }
    }
    Ok(())
}

fn login() -> ErrorResponse {
    unauthorized("this mirror wants to know who reads here: log in with a name and password or token")
}

fn unauthorized(message: &str) -> ErrorResponse {
    ErrorResponse::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message).header(WWW_AUTHENTICATE, CHALLENGE)
}
