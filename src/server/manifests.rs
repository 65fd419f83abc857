//! Answers with manifests.

use axum::body::Body;
use http::header::CACHE_CONTROL;

use crate::oci::Reference;

use super::range::{CHANGING, Wanted, content_head};
use super::router::{Answer, Ask, insert_warning};

/// GET or HEAD of a manifest. It comes from memory, so a HEAD is answered like a GET whose body is left out.
pub(super) async fn answer(ask: &Ask<'_>, reference: &Reference) -> Answer {
    let manifest = ask.mirror.manifest(ask.target, reference).await?;
    let size = manifest.bytes.len() as u64;
    // containerd asks for manifests with "bytes=0-" when it fetches in chunks.
    let wanted = if ask.head { Wanted::Whole } else { Wanted::of(ask.headers, &manifest.digest)? };
    let range = wanted.resolve(size)?;
    let mut response = content_head(&manifest.digest, &manifest.media_type, Some(size), range);
    if matches!(reference, Reference::Tag(_)) {
        response.headers_mut().insert(CACHE_CONTROL, CHANGING);
    }
    insert_warning(response.headers_mut(), manifest.warning.as_deref());
    let bytes = match range {
        // A manifest is in memory, so its offsets fit a usize.
        Some(range) => {
            manifest.bytes.slice(usize::try_from(range.first).unwrap_or(0)..=usize::try_from(range.last).unwrap_or(0))
        }
        None => manifest.bytes,
    };
    *response.body_mut() = Body::from(bytes);
    Ok((response, manifest.outcome))
}
