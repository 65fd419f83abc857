//! Which bytes a request wants, and the head of the answer that carries them.

use axum::body::Body;
use axum::response::Response;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::oci::Digest;
use crate::oci::error::ErrorCode;
use crate::oci::range::{self, ByteRange, RangeRequest, RangeSpec, RangesRefused};
use crate::store::Pieces;

use super::error::ErrorResponse;
use super::multipart::Multipart;
use super::router::{DIGEST_HEADER, insert};

/// What part of some content a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    Whole,
    /// One range.
    Range(RangeSpec),
    /// Several ranges, each of which is to be a part of its own in the answer.
    Ranges(Vec<RangeSpec>),
}

/// What part of some content is sent.
#[derive(Clone, Debug)]
pub(super) enum Selection {
    /// All of it.
    Whole,
    /// One range.
    Range(ByteRange),
    /// Several ranges.
    Ranges(Multipart),
}

/// How long content that can't change may be kept by whoever gets it.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// Content that can be something else a moment later.
pub(super) const CHANGING: HeaderValue = HeaderValue::from_static("no-cache");

// === impl Wanted ===

impl Wanted {
    /// Reads `Range` and `If-Range`. The latter must be our own strong tag, or the range is not heeded.
    ///
    /// What can't be served as asked is refused with 400, upon which lazy pullers ask for fewer ranges or for one; a 200
    /// would cost them the whole blob, and some copy its first bytes as if they were those that they asked for.
    pub(super) fn of(headers: &HeaderMap, digest: &Digest) -> Result<Self, ErrorResponse> {
        if headers.get(IF_RANGE).is_some_and(|tag| tag.as_bytes() != etag(digest).as_bytes()) {
            return Ok(Self::Whole);
        }
        let mut values = headers.get_all(RANGE).iter();
        let value = values.next();
        if values.next().is_some() {
            return Err(refused("there is more than one Range header"));
        }
        match range::parse(value.map(HeaderValue::as_bytes)) {
            RangeRequest::None => Ok(Self::Whole),
            RangeRequest::Single(spec) => Ok(Self::Range(spec)),
            RangeRequest::Multiple(specs) => Ok(Self::Ranges(specs)),
            RangeRequest::TooMany => {
                Err(refused(format!("more than {} ranges in one request are not served", range::RANGES_MAX)))
            }
        }
    }

    /// The ranges as they were asked for; none for the whole.
    pub(super) fn specs(&self) -> &[RangeSpec] {
        match self {
            Self::Whole => &[],
            Self::Range(spec) => std::slice::from_ref(spec),
            Self::Ranges(specs) => specs,
        }
    }

    /// The bytes that are wanted of content of this size and type.
    pub(super) fn resolve(&self, size_bytes: u64, content_type: &str) -> Result<Selection, ErrorResponse> {
        match self {
            Self::Whole => Ok(Selection::Whole),
            Self::Range(spec) => match spec.resolve(size_bytes) {
                Some(range) => Ok(Selection::Range(range)),
                None => Err(ErrorResponse::range_not_satisfiable(size_bytes)),
            },
            Self::Ranges(specs) => match range::resolve_all(specs, size_bytes) {
                Ok(ranges) => Ok(Selection::Ranges(Multipart::new(ranges, size_bytes, content_type))),
                Err(RangesRefused::Unsatisfiable) => Err(ErrorResponse::range_not_satisfiable(size_bytes)),
                Err(error @ RangesRefused::Disordered) => Err(refused(error.to_string())),
            },
        }
    }
}

// === impl Selection ===

impl Selection {
    /// The ranges whose bytes are sent, in order; `None` is all there is.
    pub(super) fn ranges(&self) -> Option<&[ByteRange]> {
        match self {
            Self::Whole => None,
            Self::Range(range) => Some(std::slice::from_ref(range)),
            Self::Ranges(multipart) => Some(multipart.ranges()),
        }
    }

    /// The body: the pieces of [`Self::ranges`], with what goes between the parts if there are several.
    pub(super) fn body(self, pieces: Pieces) -> Pieces {
        match self {
            Self::Whole | Self::Range(_) => pieces,
            Self::Ranges(multipart) => multipart.body(pieces),
        }
    }

    /// How long the body is, of content of this size.
    pub(super) fn len(&self, size_bytes: Option<u64>) -> Option<u64> {
        match self {
            Self::Whole => size_bytes,
            Self::Range(range) => Some(range.len()),
            Self::Ranges(multipart) => Some(multipart.len()),
        }
    }
}

/// The head of an answer with content: status, length, type, and everything that says which bytes these are.
pub(super) fn content_head(
    digest: &Digest,
    content_type: &str,
    size_bytes: Option<u64>,
    selection: &Selection,
) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    insert(headers, CONTENT_TYPE, content_type);
    insert(headers, DIGEST_HEADER, &digest.to_string());
    insert(headers, ETAG, &etag(digest));
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(len) = selection.len(size_bytes) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    }
    match (selection, size_bytes) {
        (Selection::Range(range), Some(size_bytes)) => {
            insert(headers, CONTENT_RANGE, &range.content_range(size_bytes));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        (Selection::Ranges(multipart), _) => {
            insert(headers, CONTENT_TYPE, &multipart.content_type());
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        _ => {}
    }
    response
}

fn refused(message: impl Into<String>) -> ErrorResponse {
    ErrorResponse::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
}

/// Whether the client has said that it holds just what it would get (RFC 9110 §13.1.2), so that a cache in front of us can go
/// on with what it has.
pub(super) fn is_known(request: &HeaderMap, response: &HeaderMap) -> bool {
    let (Some(known), Some(tag)) = (request.get(IF_NONE_MATCH), response.get(ETAG)) else { return false };
    let (Ok(known), Ok(tag)) = (known.to_str(), tag.to_str()) else { return false };
    known.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}
