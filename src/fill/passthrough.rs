//! A blob that can't be kept: streamed from its origin to one client, verified on the way, stored nowhere.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::metrics::{Metrics, WhereLabels};
use crate::oci::range::ByteRange;
use crate::oci::{Digest, Verifier};
use crate::store::{Cut, Piece, Pieces};

use super::origin::{Origin, OriginBody, OriginError, OriginErrorKind};
use super::progress::TAIL_BYTES;
use super::transfer::SMALL_BYTES;

/// A body that goes to one client only.
#[derive(Debug)]
pub struct PassThrough {
    origin: String,
    body: OriginBody,
    digest: Digest,
    metrics: Arc<Metrics>,
}

/// Asks `origin` for a blob that the store has no room for.
pub async fn pass_through(
    origin: &dyn Origin,
    digest: Digest,
    metrics: Arc<Metrics>,
) -> Result<PassThrough, OriginError> {
    let body = origin.fetch(None).await?;
    if body.offset != 0 {
        return Err(OriginError {
            kind: OriginErrorKind::Unusable,
            message: format!("{} answered a request for a whole blob with a part of it", origin.label()).into(),
        });
    }
    Ok(PassThrough { origin: origin.label(), body, digest, metrics })
}

// === impl PassThrough ===

impl PassThrough {
    /// The blob's size, where the origin said it.
    pub fn size_bytes(&self) -> Option<u64> {
        self.body.total_bytes
    }

    /// The pieces of `range`, or of the whole. The blob is read from its start in any case, so that its digest can be
    /// told; the client sets the pace, and its last bytes are held back until the digest is right.
    pub fn pieces(self, range: Option<ByteRange>) -> Pieces {
        let verifier = Verifier::new(self.digest, self.body.total_bytes);
        let small = self.body.total_bytes.is_some_and(|total| total <= SMALL_BYTES);
        let flow = Flow {
            first: range.map_or(0, |range| range.first),
            end: range.map_or(u64::MAX, |range| range.last + 1),
            source: Some((self, verifier)),
            hold_back: if small { SMALL_BYTES } else { TAIL_BYTES },
            held: VecDeque::new(),
            held_bytes: 0,
            position: 0,
        };
        stream::unfold(Some(flow), |flow| async {
            let mut flow = flow?;
            match flow.next_piece().await {
                Ok(Some(bytes)) => Some((Ok(Piece::Memory(bytes)), Some(flow))),
                Ok(None) => None,
                Err(cut) => Some((Err(cut), None)),
            }
        })
        .boxed()
    }
}

/// The state of one pass-through: what arrived but is still held back.
struct Flow {
    first: u64,
    end: u64,
    /// `None` once the body has ended and is verified.
    source: Option<(PassThrough, Verifier)>,
    held: VecDeque<Bytes>,
    held_bytes: u64,
    /// How much is held back until the end: all of a small blob, else the tail.
    hold_back: u64,
    /// Where in the blob the first held byte lies.
    position: u64,
}

// === impl Flow ===

impl Flow {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Cut> {
        loop {
            if self.position >= self.end {
                return Ok(None);
            }
            while self.releasable() {
                let Some(chunk) = self.held.pop_front() else { return Ok(None) };
                let start = self.position;
                self.held_bytes -= chunk.len() as u64;
                self.position += chunk.len() as u64;
                if let Some(wanted) = self.wanted(start, &chunk) {
                    return Ok(Some(wanted));
                }
            }
            self.receive().await?;
        }
    }

    fn releasable(&self) -> bool {
        self.source.is_none()
            || self.held.front().is_some_and(|chunk| self.held_bytes - chunk.len() as u64 >= self.hold_back)
    }

    /// The part of a chunk at `start` that lies in the range.
    fn wanted(&self, start: u64, chunk: &Bytes) -> Option<Bytes> {
        let len = chunk.len() as u64;
        let from = self.first.saturating_sub(start).min(len);
        let to = self.end.saturating_sub(start).min(len);
        // Both are at most the chunk's length, which is a usize.
        let (from, to) = (usize::try_from(from).ok()?, usize::try_from(to).ok()?);
        (from < to).then(|| chunk.slice(from..to))
    }

    /// Takes in the next chunk, or the end: then everything that is held is verified.
    async fn receive(&mut self) -> Result<(), Cut> {
        let Some((source, verifier)) = &mut self.source else { return Ok(()) };
        match source.body.body.next().await {
            Some(Ok(chunk)) => {
                verifier.update(&chunk);
                self.held_bytes += chunk.len() as u64;
                self.held.push_back(chunk);
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
