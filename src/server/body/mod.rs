//! Pieces to frames: the only place where content turns into response bodies.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http_body::{Frame, SizeHint};

use super::connection::AbortHandle;
use super::outbox::{FilePart, PART_BYTES_MAX};
use crate::store::{OpenFile, Piece, Pieces};

/// How much of what is in memory goes into a frame. Of a file that is read here, a client that stops reading holds two
/// chunks and a half at most: one read ahead here, and in hyper one more on top of what it still had to write when it asked
/// for that.
const CHUNK_BYTES: usize = 256 << 10;

/// What became of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyEnd {
    /// Bytes that the connection took; the last of them may not have reached a client that left.
    pub bytes_sent: u64,
    /// Whether that was all.
    pub complete: bool,
    /// Why the body was ended short. `None` with `complete` false: the client left.
    pub cut: Option<Arc<str>>,
}

/// A response body made of `pieces`. With a `length` the response gets exactly that `Content-Length`.
///
/// When the pieces are cut, cannot be read, or are not `length` bytes in all, the body ends short through `abort`: all
/// that came before is sent, then FIN. So that too many bytes are noticed as well as too few, the last chunk goes out
/// only when the pieces have said that they are at their end. `on_end` is called once, when the connection is done
/// with the body.
pub fn stream(
    pieces: Pieces,
    length: Option<u64>,
    abort: AbortHandle,
    on_end: impl FnOnce(BodyEnd) + Send + 'static,
) -> Body {
    let sends_files = abort.outbox().is_enabled();
    let parts = pieces.map(move |piece| match piece {
        Ok(Piece::File { file, offset, len }) if sends_files && file.is_sendable() => {
            Ok(Part::Sent { file, offset, len })
        }
        Ok(Piece::File { file, offset, len }) => Ok(Part::File { file: file as Arc<dyn ReadAt>, offset, len }),
        Ok(Piece::Memory(bytes)) => Ok(Part::Memory(bytes)),
        Err(cut) => Err(cut.reason),
    });
    Body::new(Frames::new(parts.boxed(), length, abort, Box::new(on_end)))
}

/// What can be read from; the store's open files, and a test's.
trait ReadAt: Send + Sync {
    /// How much should be read at a time.
    fn read_bytes(&self) -> usize;
    fn read_at(self: Arc<Self>, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>>;
}

enum Part {
    /// Of a file that is read here.
    File {
        file: Arc<dyn ReadAt>,
        offset: u64,
        len: u64,
    },
    /// Of a file that the connection sends without reading it.
    Sent {
        file: Arc<OpenFile>,
        offset: u64,
        len: u64,
    },
    Memory(Bytes),
}

/// A chunk on its way.
enum Chunk {
    Reading { len: usize, read: BoxFuture<'static, io::Result<Bytes>> },
    There(io::Result<Content>),
}

/// What a frame is made of.
enum Content {
    Memory(Bytes),
    File(FilePart),
}

/// Invariant: `taken` ≤ `length`, and `sent` + what is in hand, under way and in `part` = `taken`.
struct Frames {
    parts: BoxStream<'static, Result<Part, Arc<str>>>,
    /// The rest of the part being read.
    part: Option<Part>,
    /// The chunk after the one in hand.
    under_way: Option<Chunk>,
    in_hand: Option<Content>,
    /// The pieces have ended, or failed; they are not asked again.
    source: Source,
    length: Option<u64>,
    taken: u64,
    sent: u64,
    done: bool,
    abort: AbortHandle,
    cut: Option<Arc<str>>,
    on_end: Option<Box<dyn FnOnce(BodyEnd) + Send>>,
}

enum Source {
    Open,
    Ended,
    Failed(Arc<str>),
}

// === impl ReadAt ===

impl ReadAt for OpenFile {
    fn read_bytes(&self) -> usize {
        Self::read_bytes(self)
    }

    fn read_at(self: Arc<Self>, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        Box::pin(async move { OpenFile::read_at(&self, offset, len).await })
    }
}

// === impl Part ===

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } | Self::Sent { len, .. } => *len,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// The first chunk of this part, and the rest if there is any.
    fn split(self) -> (Chunk, Option<Self>) {
        match self {
            Self::File { file, offset, len } => {
                let first = usize::try_from(len).unwrap_or(usize::MAX).min(file.read_bytes());
                let read = file.clone().read_at(offset, first);
                let len = len - first as u64;
                let rest = (len > 0).then(|| Self::File { file, offset: offset + first as u64, len });
                (Chunk::Reading { len: first, read }, rest)
            }
            Self::Sent { file, offset, len } => {
                let first = usize::try_from(len).unwrap_or(usize::MAX).min(PART_BYTES_MAX);
                let part = FilePart { file: file.clone(), offset, len: first };
                let len = len - first as u64;
                let rest = (len > 0).then(|| Self::Sent { file, offset: offset + first as u64, len });
                (Chunk::There(Ok(Content::File(part))), rest)
            }
            Self::Memory(mut bytes) => {
                let first = bytes.split_to(bytes.len().min(CHUNK_BYTES));
                let rest = (!bytes.is_empty()).then_some(Self::Memory(bytes));
                (Chunk::There(Ok(Content::Memory(first))), rest)
            }
        }
    }
}

// === impl Chunk ===

impl Chunk {
    /// Makes it `There` if it is.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Reading { len, read } = self {
            let len = *len;
            let result = ready!(read.as_mut().poll(cx)).and_then(|bytes| {
                if bytes.len() == len { Ok(Content::Memory(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            });
            *self = Self::There(result);
        }
        Poll::Ready(())
    }
}

// === impl Content ===

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File(part) => part.len,
        }
    }
}

// === impl Frames ===

impl Frames {
    fn new(
        parts: BoxStream<'static, Result<Part, Arc<str>>>,
        length: Option<u64>,
        abort: AbortHandle,
        on_end: Box<dyn FnOnce(BodyEnd) + Send>,
    ) -> Self {
        Self {
            parts,
            part: None,
            under_way: None,
            in_hand: None,
            source: Source::Open,
            length,
            taken: 0,
            sent: 0,
            // hyper never polls a body of no bytes.
            done: length == Some(0),
            abort,
            cut: None,
            on_end: Some(on_end),
        }
    }

    /// Gets the next chunk under way, and no more than one; or learns that there is none.
    fn advance(&mut self, cx: &mut Context<'_>) {
        while self.under_way.is_none() && matches!(self.source, Source::Open) {
            if let Some(part) = self.part.take() {
                let (mut chunk, rest) = part.split();
                // Reads begin when they are first polled.
                let _ = chunk.poll(cx);
                self.under_way = Some(chunk);
                self.part = rest;
                return;
            }
            match self.parts.poll_next_unpin(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(part))) => self.take(part),
                Poll::Ready(Some(Err(reason))) => self.source = Source::Failed(reason),
                Poll::Ready(None) => self.source = Source::Ended,
            }
        }
    }

    fn take(&mut self, part: Part) {
        let len = part.len();
        self.taken = self.taken.saturating_add(len);
        match self.length {
            Some(length) if self.taken > length => {
                self.source = Source::Failed(format!("there is more than the {length} bytes announced").into());
            }
            _ => self.part = (len > 0).then_some(part),
        }
    }

    /// The next chunk. Ready with `None` when there is none, well or badly.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Content>> {
        self.advance(cx);
        if let Some(chunk) = &mut self.under_way {
            ready!(chunk.poll(cx));
        }
        match (self.under_way.take(), &self.source) {
            (Some(Chunk::There(Ok(content))), _) => Poll::Ready(Some(content)),
            (Some(Chunk::There(Err(error))), _) => {
                self.source = Source::Failed(format!("the content could not be read: {error}").into());
                Poll::Ready(None)
            }
            (reading @ Some(Chunk::Reading { .. }), _) => {
                self.under_way = reading;
                Poll::Pending
            }
            (None, Source::Open) => Poll::Pending,
            (None, Source::Ended | Source::Failed(_)) => Poll::Ready(None),
        }
    }

    /// There is no further chunk: the good end, or the abort, after which this stays pending.
    fn finish(&mut self) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let reason = match &self.source {
            Source::Failed(reason) => reason.clone(),
            _ if self.length.is_none_or(|length| length == self.sent) => {
                self.done = true;
                return Poll::Ready(None);
            }
            _ => format!("the content ended after {} bytes", self.sent).into(),
        };
        self.cut = Some(reason.clone());
        self.abort.abort(reason);
        Poll::Pending
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.cut.is_some() {
            return Poll::Pending;
        }
        if this.done {
            return Poll::Ready(None);
        }
        let content = match this.in_hand.take() {
            Some(content) => content,
            None => match ready!(this.poll_chunk(cx)) {
                Some(content) => content,
                None => return this.finish(),
            },
        };
        this.advance(cx);
        let sent = this.sent + content.len() as u64;
        if this.length == Some(sent) {
            match &this.source {
                Source::Ended => this.done = true,
                Source::Failed(_) => return this.finish(),
                Source::Open => {
                    this.in_hand = Some(content);
                    return Poll::Pending;
                }
            }
        }
        this.sent = sent;
        Poll::Ready(Some(Ok(Frame::data(match content {
            Content::Memory(bytes) => bytes,
            Content::File(part) => this.abort.outbox().announce(part),
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, |length| SizeHint::with_exact(length - self.sent))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        if let Some(on_end) = self.on_end.take() {
            on_end(BodyEnd { bytes_sent: self.sent, complete: self.done, cut: self.cut.take() });
        }
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("length", &self.length).field("sent", &self.sent).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
