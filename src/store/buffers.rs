//! Buffers for what is read from files on its way to clients: reused, and large only while few are in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

/// The buffers of one store.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    idle: Mutex<Vec<Box<[u8]>>>,
    in_use: AtomicUsize,
}

/// A buffer with `len` bytes of room.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    /// Where it goes back to; small ones go nowhere.
    home: Option<Arc<Buffers>>,
}

/// How much is read at a time.
pub(super) const LARGE_BYTES: usize = 256 << 10;

/// How much is read at a time while too many large buffers are in use: a record of TLS.
pub(super) const SMALL_BYTES: usize = 16 << 10;

/// At most so many large buffers are in use, 64 MiB. A client that doesn't read holds two or three.
const LARGE_MAX: usize = 256;

/// At most so many wait to be used again, 8 MiB.
const IDLE_MAX: usize = 32;

// === impl Buffers ===

impl Buffers {
    /// How much should be read at a time now.
    pub(super) fn read_bytes(&self) -> usize {
        if self.in_use.load(Ordering::Relaxed) < LARGE_MAX { LARGE_BYTES } else { SMALL_BYTES }
    }

    /// A buffer for so many bytes.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        if !(SMALL_BYTES + 1..=LARGE_BYTES).contains(&len) {
            return Buffer { bytes: vec![0; len].into(), len, home: None };
        }
        self.in_use.fetch_add(1, Ordering::Relaxed);
        let idle = self.idle.lock().pop();
        let bytes = idle.unwrap_or_else(|| vec![0; LARGE_BYTES].into());
        Buffer { bytes, len, home: Some(self.clone()) }
    }
}

// === impl Buffer ===

impl Buffer {
    /// All of it, to be filled. It holds what it held when it was used last.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// As bytes, the last of which gives the buffer back when it is dropped.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        home.in_use.fetch_sub(1, Ordering::Relaxed);
        let mut idle = home.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_nobody_reads_it() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take(100_000);
        buffer.room().fill(7);
        let bytes = buffer.freeze();
        assert_eq!(bytes.len(), 100_000);
        let part = bytes.slice(5..9);
        drop(bytes);
        assert_eq!(buffers.idle.lock().len(), 0, "a part of it is still held");
        assert_eq!(&part[..], [7; 4]);
        drop(part);
        assert_eq!(buffers.idle.lock().len(), 1);
        assert_eq!(buffers.take(LARGE_BYTES).room().len(), LARGE_BYTES);
        assert_eq!(buffers.in_use.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_readers_get_small_buffers_and_few_are_kept() {
        let buffers = Arc::new(Buffers::default());
        let held: Vec<_> = (0..LARGE_MAX).map(|_| buffers.take(buffers.read_bytes())).collect();
        assert_eq!(buffers.read_bytes(), SMALL_BYTES);
        drop(held);
        assert_eq!(buffers.read_bytes(), LARGE_BYTES);
        assert_eq!(buffers.idle.lock().len(), IDLE_MAX);
    }
}
