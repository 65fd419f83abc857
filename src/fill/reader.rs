//! One client's view of a fill: pieces from its own offset, as they become available.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};

use crate::oci::range::ByteRange;
use crate::store::{Cut, OpenFile, Piece, Pieces};

use super::error::FillError;
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
    /// Where it began, what it reads, and how large the blob is, as far as that is known.
    begun: u64,
    file: Option<Arc<OpenFile>>,
    size_bytes: Option<u64>,
    /// What keeps connections at work for this reader.
    _want: Option<Want>,
}

/// A reader whose blob the store could not take to its end.
#[derive(Debug)]
pub struct Interrupted {
    /// What it has read, from the start of this file on.
    pub(super) file: Arc<OpenFile>,
    /// How much of it.
    pub next: u64,
    /// The size of the whole blob.
    pub size_bytes: u64,
}

/// Where a reader's pieces come from.
enum State<F> {
    Reading(FillReader, F),
    Elsewhere(Pieces),
    Over,
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
        Self { fill, next, end, to_come, held_from, begun: next, file: None, size_bytes: None, _want: want }
    }

    /// The pieces, in order. The stream ends with a [`Cut`] when the fill fails.
    pub fn pieces(self) -> Pieces {
        self.pieces_or(|_| async { Err(Cut::new("there is no other way")) }.boxed())
    }

    /// The same, except that a reader of the whole blob that has everything up to where it is goes on another way when the
    /// store can't take any more of the blob.
    pub fn pieces_or<F>(self, other_way: F) -> Pieces
    where
        F: FnOnce(Interrupted) -> BoxFuture<'static, Result<Pieces, Cut>> + Send + 'static,
    {
        stream::unfold(State::Reading(self, other_way), |state| async {
            match state {
                State::Reading(mut reader, other_way) => match reader.next_piece().await? {
                    Ok(piece) => Some((Ok(piece), State::Reading(reader, other_way))),
                    Err(error) => match reader.interrupted(&error) {
                        Some(interrupted) => match other_way(interrupted).await {
                            Ok(mut rest) => rest.next().await.map(|piece| (piece, State::Elsewhere(rest))),
                            Err(cut) => Some((Err(Cut::new(format!("{error}; {cut}"))), State::Over)),
                        },
                        None => Some((Err(Cut::new(error.to_string())), State::Over)),
                    },
                },
                State::Elsewhere(mut rest) => rest.next().await.map(|piece| (piece, State::Elsewhere(rest))),
                State::Over => None,
            }
        })
        .boxed()
    }

    /// Where it stands, if it has given out all from the start of the blob, and all the rest is wanted.
    fn interrupted(&self, error: &FillError) -> Option<Interrupted> {
        let all = self.begun == 0 && self.end.is_none_or(|end| Some(end) == self.size_bytes) && self.to_come.is_empty();
        let storable = !matches!(error, FillError::NotStorable { .. });
        let file = self.file.clone()?;
        (all && !storable).then_some(Interrupted { file, next: self.next, size_bytes: self.size_bytes? })
    }

    async fn next_piece(&mut self) -> Option<Result<Piece, FillError>> {
        if self.end.is_some_and(|end| self.next >= end) {
            let range = self.to_come.pop_front()?;
            (self.next, self.end) = (range.first, Some(range.last + 1));
        }
        let end = self.end.unwrap_or(u64::MAX);
        let wait = self.next >= self.held_from;
        // Before the held part, a piece stops where that part begins.
        let stop = if wait { end } else { end.min(self.held_from) };
        match self.fill.progress().available(self.next, wait).await {
            Ok(Available::File { file, end: available, size_bytes }) => {
                let len = available.min(stop) - self.next;
                let piece = Piece::File { file: Arc::clone(&file), offset: self.next, len };
                (self.file, self.size_bytes) = (Some(file), size_bytes);
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
            Err(error) => Some(Err(error)),
        }
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        self.fill.reader_left();
    }
}
