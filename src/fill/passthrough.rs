//! A blob that can't be kept: streamed from its origin to one client, verified on the way, stored nowhere.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::metrics::{Metrics, WhereLabels};
use crate::oci::range::ByteRange;
use crate::oci::{Digest, Verifier};
use crate::store::{Cut, Piece, Pieces};

use super::origin::{Origin, OriginBody, OriginError, OriginErrorKind, Priority};
use super::phase::TAIL_BYTES;
use super::transfer::SMALL_BYTES;

/// A body that goes to one client only.
#[derive(Debug)]
pub struct PassThrough {
    origin: String,
    body: OriginBody,
    digest: Digest,
    metrics: Arc<Metrics>,
    /// Has taken in what its client had before, if it had something.
    verifier: Option<Verifier>,
}

/// Asks `origin` for a blob that the store has no room for.
pub async fn pass_through(
    origin: &dyn Origin,
    digest: Digest,
    metrics: Arc<Metrics>,
) -> Result<PassThrough, OriginError> {
    let body = origin.fetch(None, Priority::Foreground).await?;
    if body.offset != 0 {
        return Err(OriginError {
            kind: OriginErrorKind::Unusable,
            message: format!("{} answered a request for a whole blob with a part of it", origin.label()).into(),
        });
    }
    Ok(PassThrough { origin: origin.label(), body, digest, metrics, verifier: None })
}

/// Asks `origin` for the rest of a blob of `size_bytes`, of which a client has what `verifier` has taken in.
pub(super) async fn pass_on(
    origin: &dyn Origin,
    digest: Digest,
    size_bytes: u64,
    verifier: Verifier,
    metrics: Arc<Metrics>,
) -> Result<PassThrough, OriginError> {
    let rest = ByteRange { first: verifier.size_bytes(), last: size_bytes.saturating_sub(1) };
    let body = origin.fetch(Some(rest), Priority::Foreground).await?;
    if body.offset > rest.first || body.total_bytes != Some(size_bytes) {
        return Err(OriginError {
            kind: OriginErrorKind::Unusable,
            message: format!("{} answered a request for the rest of a blob with something else", origin.label()).into(),
        });
    }
    Ok(PassThrough { origin: origin.label(), body, digest, metrics, verifier: Some(verifier) })
}

// === impl PassThrough ===

impl PassThrough {
    /// The blob's size, where the origin said it.
    pub fn size_bytes(&self) -> Option<u64> {
        self.body.total_bytes
    }

    /// The pieces of `ranges`, which ascend, or of the whole. The blob is read from its start in any case, so that its
    /// digest can be told; the client sets the pace, and the blob's last bytes are held back until the digest is right.
    /// With `wait_for_verified` so are the last bytes of the last range.
    pub fn pieces(mut self, ranges: Option<&[ByteRange]>, wait_for_verified: bool) -> Pieces {
        const WHOLE: ByteRange = ByteRange { first: 0, last: u64::MAX - 1 };
        let ranges: VecDeque<_> = ranges.unwrap_or(&[WHOLE]).iter().copied().collect();
        let verifier = self.verifier.take();
        let verifier = verifier.unwrap_or_else(|| Verifier::new(self.digest, self.body.total_bytes));
        let flow = Flow {
            end: ranges.back().map_or(0, |last| last.last + 1),
            ranges,
            hold_back: if self.is_small() { SMALL_BYTES } else { TAIL_BYTES },
            received: self.body.offset,
            source: Some((self, verifier)),
            wait_for_verified,
            held: VecDeque::new(),
            given_out: 0,
        };
        stream::try_unfold(flow, |mut flow| async {
            let bytes = flow.next_piece().await?;
            Ok(bytes.map(|bytes| (Piece::Memory(bytes), flow)))
        })
        .boxed()
    }

    /// Whether all of it is verified before its first byte goes out, whatever range is asked for.
    pub fn is_small(&self) -> bool {
        self.body.total_bytes.is_some_and(|total| total <= SMALL_BYTES)
    }
}

/// The state of one pass-through: what arrived and is wanted, but is still held back.
struct Flow {
    /// What is wanted and has not arrived yet, or not all of it.
    ranges: VecDeque<ByteRange>,
    /// Where the last of them ends.
    end: u64,
    wait_for_verified: bool,
    /// `None` once the body has ended and is verified.
    source: Option<(PassThrough, Verifier)>,
    /// With the place in the blob where each ends.
    held: VecDeque<(u64, Bytes)>,
    /// How much is held back until the end: all of a small blob, else the tail.
    hold_back: u64,
    /// Up to where the blob has arrived.
    received: u64,
    /// The place in the blob where the last piece given out ended.
    given_out: u64,
}

// === impl Flow ===

impl Flow {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Cut> {
        loop {
            if self.given_out >= self.end {
                return Ok(None);
            }
            match self.held.front() {
                Some((end, _)) if self.may_go(*end) => {
                    let Some((end, piece)) = self.held.pop_front() else { return Ok(None) };
                    self.given_out = end;
                    return Ok(Some(piece));
                }
                None if self.source.is_none() => return Ok(None),
                _ => self.receive().await?,
            }
        }
    }

    /// Whether what ends at `end` may be given out.
    fn may_go(&self, end: u64) -> bool {
        let limit = if self.wait_for_verified { self.received.min(self.end) } else { self.received };
        self.source.is_none() || end + self.hold_back <= limit
    }

    /// Holds those parts of a chunk at `start` that lie in a range.
    fn hold(&mut self, start: u64, chunk: &Bytes) {
        let len = chunk.len() as u64;
        while let Some(range) = self.ranges.front() {
            let from = range.first.saturating_sub(start).min(len);
            let to = (range.last + 1).saturating_sub(start).min(len);
            // Both are at most the chunk's length, which is a usize.
            let part = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
            if from < to {
                self.held.push_back((start + to, chunk.slice(part)));
            }
            if range.last >= start + len {
                break;
            }
            self.ranges.pop_front();
        }
    }

    /// Takes in the next chunk, or the end: then everything that is held is verified.
    async fn receive(&mut self) -> Result<(), Cut> {
        let Some((source, verifier)) = &mut self.source else { return Ok(()) };
        match source.body.body.next().await {
            Some(Ok(chunk)) => {
                let start = self.received;
                // What was taken in before may come once more.
                let known = usize::try_from(verifier.size_bytes().saturating_sub(start)).unwrap_or(usize::MAX);
                verifier.update(&chunk[known.min(chunk.len())..]);
                self.received += chunk.len() as u64;
                self.hold(start, &chunk);
                Ok(())
            }
            Some(Err(error)) => Err(Cut::new(error.to_string())),
            None => {
                let Some((source, verifier)) = self.source.take() else { return Ok(()) };
                verifier.finish().map(drop).map_err(|mismatch| {
                    source.metrics.verify_failures.get_or_create(&WhereLabels { r#where: "upstream" }).inc();
                    let reason = format!("{} sent wrong content: {mismatch}", source.origin);
                    tracing::warn!(digest = %source.digest, "{reason}");
                    Cut::new(reason)
                })
            }
        }
    }
}
