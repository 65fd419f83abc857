//! Answers with manifests.

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::CACHE_CONTROL;

use crate::oci::Reference;
use crate::oci::range::ByteRange;
use crate::store::Piece;

use super::body;
use super::range::{CHANGING, Wanted, content_head};
use super::router::{Answer, Ask, insert_warning};

/// GET or HEAD of a manifest. It comes from memory, so a HEAD is answered like a GET whose body is left out.
pub(super) async fn answer(ask: &Ask<'_>, reference: &Reference) -> Answer {
    let manifest = ask.mirror.manifest(ask.target, reference).await?;
    let size = manifest.bytes.len() as u64;
    // containerd asks for manifests with "bytes=0-" when it fetches in chunks.
    let wanted = if ask.head { Wanted::Whole } else { Wanted::of(ask.headers, &manifest.digest)? };
    let selection = wanted.resolve(size, &manifest.media_type)?;
    let mut response = content_head(&manifest.digest, &manifest.media_type, Some(size), &selection);
    if matches!(reference, Reference::Tag(_)) {
        response.headers_mut().insert(CACHE_CONTROL, CHANGING);
    }
    insert_warning(response.headers_mut(), manifest.warning.as_deref());
    *response.body_mut() = match selection.ranges() {
        None => Body::from(manifest.bytes),
        Some(ranges) => {
            let pieces: Vec<_> = ranges.iter().map(|range| Ok(Piece::Memory(part(&manifest.bytes, range)))).collect();
            let length = selection.len(Some(size));
            body::stream(selection.body(stream::iter(pieces).boxed()), length, ask.abort.clone(), |_| {})
        }
    };
    Ok((response, manifest.outcome))
}

/// The bytes of a range that lies within `bytes`.
fn part(bytes: &Bytes, range: &ByteRange) -> Bytes {
    // They are in memory, so offsets fit a usize.
    bytes.slice(usize::try_from(range.first).unwrap_or(0)..=usize::try_from(range.last).unwrap_or(0))
}
