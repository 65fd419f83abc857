//! Answers with blobs: whole or ranges of them, the same from a file, a fill, or an upstream passed through (law 5).

use axum::body::Body;
use http::StatusCode;

use crate::mirror::Outcome;
use crate::oci::Digest;
use crate::oci::error::ErrorCode;

use super::body;
use super::error::ErrorResponse;
use super::range::{Selection, Wanted, content_head};
use super::router::{Answer, Ask};

/// Blobs have no type of their own here; what they are is said by the manifest that names them.
const CONTENT_TYPE: &str = "application/octet-stream";

/// GET or HEAD of a blob. A HEAD gets the whole blob's length whatever range it names (RFC 9110 defines none for it).
pub(super) async fn answer(ask: &Ask<'_>, digest: &Digest) -> Answer {
    if ask.head {
        let (size_bytes, outcome) = ask.mirror.blob_size(ask.target, digest).await?;
        return Ok((content_head(digest, CONTENT_TYPE, Some(size_bytes), &Selection::Whole), outcome));
    }
    let wanted = Wanted::of(ask.headers, digest)?;
    let blob = ask.mirror.blob(ask.target, digest, wanted.specs()).await?;
    let selection = match (&wanted, blob.size_bytes) {
        (wanted, Some(size_bytes)) => wanted.resolve(size_bytes, CONTENT_TYPE)?,
        (Wanted::Whole, None) => Selection::Whole,
        // Some clients would copy the first bytes of a 200 as if they were those that they asked for.
        (Wanted::Range(_) | Wanted::Ranges(_), None) => {
            let message =
                format!("{} does not say how long {digest} is, so no part of it can be served", ask.target.repository);
            return Err(ErrorResponse::new(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message));
        }
    };
    let mut response = content_head(digest, CONTENT_TYPE, blob.size_bytes, &selection);
    if let (Selection::Whole, Some(bytes)) = (&selection, blob.in_memory()) {
        *response.body_mut() = Body::from(bytes);
        return Ok((response, Outcome::Hit));
    }
    let length = selection.len(blob.size_bytes);
    let (pieces, outcome) = blob.pieces(selection.ranges());
    *response.body_mut() = body::stream(selection.body(pieces), length, ask.abort.clone(), |_| {});
    Ok((response, outcome))
}
