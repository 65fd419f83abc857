//! Parts of a blob that can't be kept: each asked of its origin by itself, and sent to one client, unverified.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::oci::range::ByteRange;
use crate::store::{Cut, Piece, Pieces};

use super::demand::Demand;
use super::origin::{Origin, OriginBody, OriginError, OriginErrorKind, Priority};
use super::transfer::SMALL_BYTES;

/// Parts on their way to one client.
#[derive(Debug)]
pub struct PartsThrough {
    /// The size of the whole blob.
    pub size_bytes: u64,
    origin: Arc<dyn Origin>,
    /// The answer to the first request.
    first: OriginBody,
}

/// Asks `origin` for the first of the parts that are demanded. `None` where the whole must be passed through instead: it is
/// wanted or small, the end of the blob is wanted, or upstream answers with something else.
pub async fn parts_through(origin: Arc<dyn Origin>, demand: &Demand) -> Result<Option<PartsThrough>, OriginError> {
    let Demand::Parts(parts) = demand else { return Ok(None) };
    let Some(part) = parts.first().copied() else { return Ok(None) };
    let first = match origin.fetch(Some(part), Priority::Foreground).await {
        Ok(first) => first,
        Err(error) if error.kind == OriginErrorKind::Unusable => return Ok(None),
        Err(error) => return Err(error),
    };
    let size_bytes = first.total_bytes.filter(|size| *size > SMALL_BYTES && !demand.needs_tail(*size));
    let answered = first.offset == part.first && first.end.is_some();
    let through = |size_bytes| PartsThrough { size_bytes, origin, first };
    Ok(size_bytes.filter(|_| answered).map(through))
}

// === impl PartsThrough ===

impl PartsThrough {
    /// The bytes of `ranges`, of which the first is the one that was asked for.
    pub fn pieces(self, ranges: &[ByteRange]) -> Pieces {
        let flow = Flow {
            origin: self.origin,
            ranges: ranges.iter().copied().collect(),
            body: Some(self.first),
            at: ranges.first().map_or(0, |range| range.first),
        };
        stream::try_unfold(flow, |mut flow| async {
            let bytes = flow.next_piece().await?;
            Ok(bytes.map(|bytes| (Piece::Memory(bytes), flow)))
        })
        .boxed()
    }
}

/// The state of one such body.
struct Flow {
    origin: Arc<dyn Origin>,
    /// The range under way, and those to come.
    ranges: VecDeque<ByteRange>,
    /// The body that brings the range under way, once it was asked for.
    body: Option<OriginBody>,
    /// The next byte to give out.
    at: u64,
}

// === impl Flow ===

impl Flow {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Cut> {
        loop {
            let Some(range) = self.ranges.front().copied() else { return Ok(None) };
            let mut body = match self.body.take() {
                Some(body) => body,
                None => ask(&*self.origin, range).await?,
            };
            match body.body.next().await {
                Some(Ok(mut bytes)) => {
                    let missing = usize::try_from(range.last + 1 - self.at).unwrap_or(usize::MAX);
                    bytes.truncate(missing);
                    self.at += bytes.len() as u64;
                    if self.at > range.last {
                        self.ranges.pop_front();
                        self.at = self.ranges.front().map_or(self.at, |next| next.first);
                    } else {
                        self.body = Some(body);
                    }
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => return Err(Cut::new(error.to_string())),
                None => {
                    return Err(Cut::new(format!("the body ended at byte {} instead of {}", self.at, range.last + 1)));
                }
            }
        }
    }
}

async fn ask(origin: &dyn Origin, range: ByteRange) -> Result<OriginBody, Cut> {
    let asked = origin.fetch(Some(range), Priority::Foreground).await;
    let body = asked.map_err(|error| Cut::new(error.to_string()))?;
    if body.offset != range.first || body.end.is_none() {
        return Err(Cut::new(format!("{} answered a range with something else", origin.label())));
    }
    Ok(body)
}
