//! Which bytes a request wants, and the head of the answer that carries them.

use axum::body::Body;
use axum::response::Response;
use http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::oci::Digest;
use crate::oci::error::ErrorCode;
use crate::oci::range::{self, ByteRange, RangeRequest, RangeSpec};

use super::error::ErrorResponse;
use super::router::{DIGEST_HEADER, insert};

/// What part of some content a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    Whole,
    /// One range.
    Range(RangeSpec),
}

/// How long content that can't change may be kept by whoever gets it.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// Content that can be something else a moment later.
pub(super) const CHANGING: HeaderValue = HeaderValue::from_static("no-cache");

// === impl Wanted ===

impl Wanted {
    /// Reads `Range` and `If-Range`. The latter must be our own strong tag, or the range is not heeded.
    ///
    /// Several ranges are refused with 400, upon which lazy pullers ask for one at a time; a 200 would cost them the
    /// whole blob, and some copy its first bytes as if they were those that they asked for.
    pub(super) fn of(headers: &HeaderMap, digest: &Digest) -> Result<Self, ErrorResponse> {
        if headers.get(IF_RANGE).is_some_and(|tag| tag.as_bytes() != etag(digest).as_bytes()) {
            return Ok(Self::Whole);
        }
        match range::parse(headers.get(RANGE).map(HeaderValue::as_bytes)) {
            RangeRequest::None => Ok(Self::Whole),
            RangeRequest::Single(spec) => Ok(Self::Range(spec)),
            RangeRequest::Multiple(_) | RangeRequest::TooMany => Err(ErrorResponse::new(
                StatusCode::BAD_REQUEST,
                ErrorCode::Unsupported,
                "several ranges in one request are not served; ask for one range at a time",
            )),
        }
    }

    /// The bytes that are wanted of content of this size: `None` is all of it.
    pub(super) fn resolve(self, size_bytes: u64) -> Result<Option<ByteRange>, ErrorResponse> {
        match self {
            Self::Whole => Ok(None),
            Self::Range(spec) => match spec.resolve(size_bytes) {
                Some(range) => Ok(Some(range)),
                None => Err(ErrorResponse::range_not_satisfiable(size_bytes)),
            },
        }
    }
}

/// The head of an answer with content: status, length, type, and everything that says which bytes these are.
pub(super) fn content_head(
    digest: &Digest,
    content_type: &str,
    size_bytes: Option<u64>,
    range: Option<ByteRange>,
) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    insert(headers, CONTENT_TYPE, content_type);
    insert(headers, DIGEST_HEADER, &digest.to_string());
    insert(headers, ETAG, &etag(digest));
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    match (range, size_bytes) {
        (Some(range), Some(size_bytes)) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(range.len()));
            insert(headers, CONTENT_RANGE, &range.content_range(size_bytes));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        (None, Some(size_bytes)) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(size_bytes));
        }
        (_, None) => {}
    }
    response
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}
