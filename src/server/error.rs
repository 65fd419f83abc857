//! Errors as clients get them: a status, OCI JSON, and when to come back.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::mirror::{MirrorError, MirrorErrorKind, Outcome};
use crate::oci::error::{ErrorCode, error_body};
use crate::oci::range::content_range_unsatisfied;
use crate::oci::route::{RouteError, RouteStatus};

/// An answer that is an error. The message is for the person behind the client: containerd and others show the first
/// host's message, so it names the upstream, what happened and what to do.
#[derive(Clone, Debug)]
pub struct ErrorResponse {
    /// Never 429 or 408, which clients take as an order to come back here at once.
    pub status: StatusCode,
    /// The code in the JSON.
    pub code: ErrorCode,
    /// For people. No secrets and no query strings.
    pub message: String,
    /// Anything more for programs.
    pub detail: Option<serde_json::Value>,
    /// When it is worth asking again; rounded up to whole seconds.
    pub retry_after: Option<Duration>,
    /// Further headers, such as `Content-Range` on 416.
    pub headers: HeaderMap,
}

// === impl ErrorResponse ===

impl ErrorResponse {
    /// An error without detail, `Retry-After` or further headers.
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        let status = match status {
            // Law 7. Whoever maps an upstream's status should have done this already.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => StatusCode::SERVICE_UNAVAILABLE,
            other => other,
        };
        Self { status, code, message: message.into(), detail: None, retry_after: None, headers: HeaderMap::new() }
    }

    /// Tells the client when to ask again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds a `detail` to the JSON.
    #[must_use]
    pub fn detail(mut self, detail: serde_json::Value) -> Self {
        self.detail = Some(detail);
        self
    }

    /// Sets a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl ErrorResponse {
    /// A range of which no byte lies within content of this size.
    pub(super) fn range_not_satisfiable(size_bytes: u64) -> Self {
        let message = format!("the range asked for lies outside of the {size_bytes} bytes that there are");
        let error = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::SizeInvalid, message);
        match HeaderValue::from_str(&content_range_unsatisfied(size_bytes)) {
            Ok(value) => error.header(header::CONTENT_RANGE, value),
            Err(_) => error,
        }
    }

    /// What became of the request that is answered so.
    pub(super) fn outcome(&self) -> Outcome {
        if self.status.is_server_error() {
            Outcome::Failed
        } else if self.status == StatusCode::NOT_FOUND {
            Outcome::NotFound
        } else {
            Outcome::Refused
        }
    }
}

impl From<RouteError> for ErrorResponse {
    fn from(error: RouteError) -> Self {
        let status = match error.status() {
            RouteStatus::NotFound => StatusCode::NOT_FOUND,
            RouteStatus::BadRequest => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

/// The table of statuses: every kind of failure has its own, and none is 429 or 408 (law 7). containerd moves on to its
/// next host on any of them.
impl From<MirrorError> for ErrorResponse {
    fn from(error: MirrorError) -> Self {
        let (status, code) = match error.kind {
            MirrorErrorKind::UnknownName => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
            MirrorErrorKind::InvalidName => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
            MirrorErrorKind::UnknownManifest => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
            MirrorErrorKind::UnknownBlob => (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown),
            MirrorErrorKind::Denied => (StatusCode::FORBIDDEN, ErrorCode::Denied),
            MirrorErrorKind::RateLimited { .. } | MirrorErrorKind::Overloaded => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests)
            }
            MirrorErrorKind::Unavailable | MirrorErrorKind::Unusable => {
                (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable)
            }
            MirrorErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable),
            MirrorErrorKind::Internal => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
        };
        let response = Self::new(status, code, error.message.as_ref());
        match error.kind {
            MirrorErrorKind::RateLimited { retry_after } => {
                response.retry_after(retry_after.unwrap_or(RATE_LIMIT_PAUSE))
            }
            MirrorErrorKind::Overloaded => response.retry_after(OVERLOAD_PAUSE),
            _ => response,
        }
    }
}

/// When to come back after an upstream's limit, where upstream did not say.
const RATE_LIMIT_PAUSE: Duration = Duration::from_mins(1);

/// When to come back while too much is asked of upstreams at once.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(2);

/// The same for HEAD as for GET: the edge sends the headers, the length among them, and leaves the body out.
impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let body = error_body(self.code, &self.message, self.detail);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        *headers = self.headers;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_error_is_oci_json_with_its_headers() {
        let response = ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests, "wait a bit")
            .retry_after(Duration::from_millis(1500))
            .header(header::ALLOW, HeaderValue::from_static("GET, HEAD"))
            .detail(serde_json::json!({"upstream": "docker.io"}))
            .into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["allow"], "GET, HEAD");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["errors"][0]["code"], "TOOMANYREQUESTS");
        assert_eq!(json["errors"][0]["message"], "wait a bit");
        assert_eq!(json["errors"][0]["detail"]["upstream"], "docker.io");
    }

    #[test]
    fn no_client_is_ever_told_429_or_408() {
        for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT] {
            let response = ErrorResponse::new(status, ErrorCode::TooManyRequests, "").into_response();
            assert_eq!(response.status(), 503);
        }
    }
}
