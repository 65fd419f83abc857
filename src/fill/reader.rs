//! One client's view of a fill: pieces from its own offset, as they become available.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{StreamExt, stream};

use crate::oci::range::ByteRange;
use crate::store::{Cut, Piece, Pieces};

use super::fill::{Fill, Want};
use super::phase::TAIL_BYTES;
use super::progress::Available;

/// Reads a blob that is being filled, or parts of it. Slow or fast, it changes nothing for the fill or for other readers.
#[derive(Debug)]
pub struct FillReader {
    fill: Arc<Fill>,
    /// The next byte to give out.
    next: u64,
    /// Where the current range ends; `None` is the end of a blob whose size is not known yet.
    end: Option<u64>,
    /// The ranges that come after it.
    to_come: VecDeque<ByteRange>,
    /// From here on, bytes wait until the whole blob is verified.
    held_from: u64,
    /// What keeps connections at work for this reader.
    _want: Option<Want>,
}

// === impl FillReader ===

impl FillReader {
    /// Reads `ranges`, which ascend, or all of it. With `wait_for_verified`, the last bytes of the last range are held back
    /// until the whole blob is verified, so that even a range in the middle ends normally only when it's right.
    pub(super) fn new(
        fill: Arc<Fill>,
        ranges: Option<&[ByteRange]>,
        wait_for_verified: bool,
        want: Option<Want>,
    ) -> Self {
        fill.reader_came();
        let mut to_come: VecDeque<_> = ranges.unwrap_or_default().iter().copied().collect();
        let held_from = match to_come.back() {
            Some(last) if wait_for_verified => last.first.max((last.last + 1).saturating_sub(TAIL_BYTES)),
            _ => u64::MAX,
        };
        let (next, end) = to_come.pop_front().map_or((0, None), |range| (range.first, Some(range.last + 1)));
        Self { fill, next, end, to_come, held_from, _want: want }
    }

    /// The pieces, in order. The stream ends with a [`Cut`] when the fill fails.
    pub fn pieces(self) -> Pieces {
        stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            match reader.next_piece().await {
                Some(Ok(piece)) => Some((Ok(piece), Some(reader))),
                Some(Err(cut)) => Some((Err(cut), None)),
                None => None,
            }
        })
        .boxed()
    }

    async fn next_piece(&mut self) -> Option<Result<Piece, Cut>> {
        if self.end.is_some_and(|end| self.next >= end) {
            let range = self.to_come.pop_front()?;
            (self.next, self.end) = (range.first, Some(range.last + 1));
        }
        let end = self.end.unwrap_or(u64::MAX);
        let wait = self.next >= self.held_from;
        // Before the held part, a piece stops where that part begins.
        let stop = if wait { end } else { end.min(self.held_from) };
        match self.fill.progress().available(self.next, wait).await {
            Ok(Available::File { file, end: available }) => {
                let len = available.min(stop) - self.next;
                let piece = Piece::File { file, offset: self.next, len };
                self.next += len;
                Some(Ok(piece))
            }
            Ok(Available::Memory(bytes)) => {
                let end = usize::try_from(stop).unwrap_or(usize::MAX).min(bytes.len());
                let start = usize::try_from(self.next).unwrap_or(usize::MAX).min(end);
                self.next = end as u64;
                Some(Ok(Piece::Memory(bytes.slice(start..end))))
            }
            Ok(Available::End) => None,
            Err(error) => Some(Err(Cut::new(error.to_string()))),
        }
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        self.fill.reader_left();
    }
}
