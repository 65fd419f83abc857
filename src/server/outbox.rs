//! Parts of files on their way through hyper: what stands for them there, and the queue of what it stands for.
//!
//! The bytes of a file that goes to a socket with `sendfile(2)` never enter this process. Through axum and hyper travels
//! a *placeholder* in their place: a slice of as many zeros, known by its address, which nobody may read. A body announces a
//! part and yields a placeholder; [`Outbox::claim`] turns that into a buffer for hyper; the stream that hyper writes to sends
//! the oldest part in the queue where it is given a placeholder. Whatever copies a placeholder on the way is found out before
//! the copy is sent: the frame after an announcement must be the placeholder itself, and hyper's buffer refuses to be read.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use crate::store::OpenFile;

/// A part of an open file.
#[derive(Clone, Debug)]
pub(super) struct FilePart {
    pub(super) file: Arc<OpenFile>,
    pub(super) offset: u64,
    /// From 1 to [`PART_BYTES_MAX`].
    pub(super) len: usize,
}

/// The parts of files that one connection still has to send.
#[derive(Debug)]
pub(super) struct Outbox {
    enabled: bool,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    /// What the placeholder stands for that a body is just yielding.
    announced: Option<FilePart>,
    /// In the order in which hyper has their placeholders.
    queued: VecDeque<FilePart>,
}

/// What hyper buffers of a response.
#[derive(Debug)]
pub(super) enum WireBuf {
    /// These bytes.
    Memory(Bytes),
    /// So many bytes of the part in the outbox whose turn it is.
    File(usize),
}

/// A placeholder and what was announced don't go together: something has come between body and connection.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the part of a file that was to be sent is not the one that was announced")]
pub(super) struct Mismatch;

/// How long one part may be.
pub(super) const PART_BYTES_MAX: usize = 2 << 20;

/// Zeros that are never read, and so take address space but no memory.
static PLACEHOLDER: LazyLock<&'static [u8]> = LazyLock::new(|| Box::leak(vec![0; PART_BYTES_MAX].into_boxed_slice()));

/// Whether a slice, as hyper gives it to its stream, stands for a part of a file.
pub(super) fn is_placeholder(slice: &[u8]) -> bool {
    !slice.is_empty() && std::ptr::eq(slice.as_ptr(), PLACEHOLDER.as_ptr())
}

// === impl FilePart ===

impl FilePart {
    /// Where in the file it lies.
    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len as u64
    }
}

// === impl Outbox ===

impl Outbox {
    /// An outbox; one that is not `enabled` is for streams that can only write bytes.
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, parts: Mutex::default() }
    }

    /// Whether parts of files may be announced.
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Takes in a part, and gives out what a body must yield in its place, at once.
    pub(super) fn announce(&self, part: FilePart) -> Bytes {
        debug_assert!(self.enabled && (1..=PART_BYTES_MAX).contains(&part.len));
        let placeholder = Bytes::from_static(&PLACEHOLDER[..part.len]);
        self.parts.lock().announced = Some(part);
        placeholder
    }

    /// Turns what a body has yielded into what hyper gets.
    pub(super) fn claim(&self, bytes: Bytes) -> Result<WireBuf, Mismatch> {
        if !self.enabled {
            return Ok(WireBuf::Memory(bytes));
        }
        let mut parts = self.parts.lock();
        match (parts.announced.take(), is_placeholder(&bytes)) {
            (None, false) => Ok(WireBuf::Memory(bytes)),
            (Some(part), true) if part.len == bytes.len() => {
                parts.queued.push_back(part);
                Ok(WireBuf::File(bytes.len()))
            }
            _ => Err(Mismatch),
        }
    }

    /// What is left of the part whose turn it is.
    pub(super) fn front(&self) -> Option<FilePart> {
        self.parts.lock().queued.front().cloned()
    }

    /// Lets go of what will not be sent any more.
    pub(super) fn clear(&self) {
        *self.parts.lock() = Parts::default();
    }

    /// So many bytes of the part whose turn it is were sent.
    pub(super) fn sent(&self, bytes: usize) {
        let mut parts = self.parts.lock();
        if let Some(part) = parts.queued.front_mut() {
            part.offset += bytes as u64;
            part.len = part.len.saturating_sub(bytes);
            if part.len == 0 {
                parts.queued.pop_front();
            }
        }
    }
}

// === impl WireBuf ===

impl Buf for WireBuf {
    fn remaining(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File(len) => *len,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            // A connection that ends is better than one wrong byte.
            Self::File(_) => panic!("a part of a file was about to be sent as if it were in memory"),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let slice = match self {
            Self::Memory(bytes) => bytes,
            Self::File(len) => &PLACEHOLDER[..*len],
        };
        match slices.first_mut() {
            Some(first) if !slice.is_empty() => {
                *first = IoSlice::new(slice);
                1
            }
            _ => 0,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Memory(bytes) => bytes.advance(count),
            Self::File(len) => *len -= count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::open_file;

    fn part(len: usize) -> FilePart {
        FilePart { file: open_file(b""), offset: 10, len }
    }

    #[test]
    fn a_part_goes_from_announcement_to_its_last_byte() {
        let outbox = Outbox::new(true);
        let mut first = outbox.claim(outbox.announce(part(100))).unwrap();
        let memory = outbox.claim(Bytes::from_static(b"abc")).unwrap();
        let second = outbox.claim(outbox.announce(part(PART_BYTES_MAX))).unwrap();
        assert!(matches!(memory, WireBuf::Memory(_)));

        let mut slices = [IoSlice::new(&[]); 2];
        assert_eq!(first.chunks_vectored(&mut slices), 1);
        assert!(is_placeholder(&slices[0]) && slices[0].len() == 100);
        outbox.sent(30);
        first.advance(30);
        assert_eq!(first.remaining(), 70);
        let mut slices = [IoSlice::new(&[]); 2];
        assert_eq!(first.chunks_vectored(&mut slices), 1);
        assert!(is_placeholder(&slices[0]), "what is left of a part is a placeholder too");
        let front = outbox.front().unwrap();
        assert_eq!((front.offset, front.len), (40, 70));
        outbox.sent(70);
        assert_eq!(outbox.front().unwrap().len, PART_BYTES_MAX);
        assert_eq!(second.remaining(), PART_BYTES_MAX);
        outbox.sent(PART_BYTES_MAX);
        assert!(outbox.front().is_none());
    }

    #[test]
    fn what_comes_in_place_of_a_placeholder_is_refused() {
        let outbox = Outbox::new(true);
        let copy = Bytes::copy_from_slice(&outbox.announce(part(100)));
        assert_eq!(outbox.claim(copy).unwrap_err(), Mismatch);
        let placeholder = outbox.announce(part(100));
        assert_eq!(outbox.claim(placeholder.slice(..50)).unwrap_err(), Mismatch);
        assert_eq!(outbox.claim(placeholder).unwrap_err(), Mismatch, "nothing is announced");
    }

    #[test]
    #[should_panic(expected = "as if it were in memory")]
    fn a_buffer_that_stands_for_a_file_cannot_be_read() {
        let _ = WireBuf::File(1).chunk();
    }
}
