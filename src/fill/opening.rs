//! How a fill begins: with what an earlier run left, or with the first body that an origin gives.

use crate::oci::range::ByteRange;

use super::demand::{BLOCK_BYTES, blocks_of};
use super::error::FillError;
use super::fill::Fill;
use super::origin::{Origin, OriginBody, OriginError, OriginErrorKind, Priority};
use super::progress::Ahead;
use super::sized::Sized;
use super::transfer::{OpenOrigin, SMALL_BYTES, Tools};

// === impl Tools ===

impl Tools {
    /// Takes up what an earlier run left.
    pub(super) async fn take_up<'a>(&'a self, fill: &'a Fill) -> Option<Sized<'a>> {
        let key = fill.key();
        let (partial, checkpoint) = self.store.reopen_partial(&key.registry, &key.digest).await?;
        let origin = fill.next_origin()?;
        Some(Sized { tools: self, fill, origin, partial, first: None, leftovers: Some(checkpoint) })
    }

    /// Tries the fill's origins in turn until one begins to give the blob.
    pub(super) async fn begin(&self, fill: &Fill) -> Result<(OpenOrigin, OriginBody), FillError> {
        let mut last_error = None;
        while let Some((id, origin)) = fill.next_origin() {
            match self.open(fill, &*origin).await {
                Ok(body) => return Ok(((id, origin), body)),
                Err(error) => {
                    fill.origin_failed(id, &error);
                    last_error = Some(error);
                }
            }
        }
        // A fill starts with one origin, so there is an error when the last one has been tried.
        Err(last_error.map_or(
            FillError::Stopped { digest: fill.key().digest, reason: "it has nowhere to download from" },
            FillError::Origin,
        ))
    }

    /// Asks for the part that is wanted, for the first segment of a blob that is known to be large, or for all of any other.
    async fn open(&self, fill: &Fill, origin: &dyn Origin) -> Result<OriginBody, OriginError> {
        let host = origin.host();
        let knows_ranges = !self.rangeless.contains(&host);
        let mut wanted = Vec::new();
        if let Some(part) = fill.progress().first_part().filter(|_| fill.progress().ahead() == Ahead::Nothing) {
            let blocks = blocks_of(part, u64::MAX);
            wanted.push(ByteRange { first: blocks.start, last: blocks.end - 1 });
            // If the blob ends before that, its first block says where.
            wanted.push(ByteRange { first: 0, last: BLOCK_BYTES - 1 });
            wanted.dedup();
        } else if fill.expected_bytes().is_some_and(|size| size >= self.limits.parallel_above_bytes)
            && !origin.sends_best_in_one_piece()
        {
            wanted.push(ByteRange { first: 0, last: self.limits.segment_bytes - 1 });
        }
        for range in wanted.into_iter().filter(|_| knows_ranges) {
            match origin.fetch(Some(range), Priority::Foreground).await {
                // A blob this small is taken whole.
                Ok(body) if body.total_bytes.is_some_and(|total| total <= SMALL_BYTES && !is_whole(&body)) => break,
                Ok(body) if body.total_bytes.is_some() => return Ok(body),
                // Nothing that can be used; a plain request may bring the blob all the same.
                Err(error) if error.kind != OriginErrorKind::Unusable => return Err(error),
                Ok(body) => {
                    self.rangeless.insert(body.host);
                    break;
                }
                // A part may lie beyond the end, and a blob without bytes has no ranges at all: that says nothing of others.
                Err(_) if range.last < self.limits.segment_bytes - 1 || range.first > 0 => {}
                Err(_) => self.rangeless.insert(host.clone()),
            }
        }
        let body = origin.fetch(None, Priority::Foreground).await?;
        if is_whole(&body) {
            return Ok(body);
        }
        Err(OriginError {
            kind: OriginErrorKind::Unusable,
            message: format!("{} answered with a part of the blob that was not asked for", origin.label()).into(),
        })
    }
}

/// Whether a body is all of its blob.
pub(super) fn is_whole(body: &OriginBody) -> bool {
    body.offset == 0 && (body.end.is_none() || body.end == body.total_bytes)
}
