//! The wrapped client stream, and how parts of files get onto one that takes them straight from the page cache.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::outbox::{FilePart, Outbox, is_placeholder};
use super::stream::Shared;
use crate::store::OpenFile;

/// A client's stream. Only those that [send files](Self::sends_files) are given parts of files; others, such as TLS, get
/// bytes.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Whether parts of files can be sent.
    fn sends_files(&self) -> bool {
        false
    }

    /// Sends a part of a file; returns how much of it. 0: the file ends before it.
    fn poll_send_file(
        &self,
        _cx: &mut Context<'_>,
        _file: &OpenFile,
        _offset: u64,
        _len: usize,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Sends bytes that more will follow at once.
    fn poll_send_more(&self, _cx: &mut Context<'_>, _bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// A client's stream, watched, to which hyper writes.
#[derive(Debug)]
pub(super) struct ClientStream<T> {
    inner: T,
    shared: Arc<Shared>,
    sender: FileSender,
}

/// Sends one connection's parts of files, in turns: however fast its client is, others come between.
#[derive(Default)]
struct FileSender {
    /// The turn that `used_bytes` is about.
    turn: u64,
    used_bytes: usize,
    /// What was found in memory, or brought there, a moment ago.
    resident: Option<Resident>,
    fetching: Option<BoxFuture<'static, ()>>,
}

/// Bytes of a file that were in memory at some time.
struct Resident {
    file: Arc<OpenFile>,
    range: Range<u64>,
    since: Instant,
}

/// What came of sending a part.
#[derive(Debug)]
enum Sent {
    Bytes(usize),
    /// The connection's turn is over, or the disk is being read: the socket is not what is waited for.
    Later,
    /// The socket is full.
    Full,
    /// The file doesn't give what it should.
    FileFailed(String),
    ConnectionFailed(io::Error),
}

/// How long what was found in memory is believed to be there: it may take a client long to make room, and the kernel may
/// need the memory meanwhile.
const RESIDENT_FOR: Duration = Duration::from_millis(100);

/// How much a connection may send before others have their turn: a millisecond or two. Each turn's end wakes another worker,
/// which takes the connection over as often as not; with 2 MiB that cost more than it gave.
const TURN_BYTES: usize = 8 << 20;

// === impl TcpStream ===

#[cfg(target_os = "linux")]
impl Wire for TcpStream {
    fn sends_files(&self) -> bool {
        true
    }

    fn poll_send_file(
        &self,
        cx: &mut Context<'_>,
        file: &OpenFile,
        offset: u64,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        poll_io(self, cx, || file.send_to(self, offset, len))
    }

    fn poll_send_more(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        poll_io(self, cx, || {
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            Ok(rustix::net::sendmsg(self, bufs, &mut SendAncillaryBuffer::default(), flags)?)
        })
    }
}

#[cfg(not(target_os = "linux"))]
impl Wire for TcpStream {}

/// What is encrypted passes through memory.
impl<T: Wire> Wire for TlsStream<T> {}

/// Runs an operation that fails with `WouldBlock` while the socket is full.
#[cfg(target_os = "linux")]
fn poll_io(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    mut operation: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match stream.try_io(Interest::WRITABLE, &mut operation) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            result => return Poll::Ready(result),
        }
    }
}

#[cfg(test)]
impl Wire for tokio::io::DuplexStream {}

// === impl ClientStream ===

impl<T: Wire> ClientStream<T> {
    pub(super) fn new(inner: T, shared: Arc<Shared>) -> Self {
        Self { inner, shared, sender: FileSender::default() }
    }

    pub(super) fn into_inner(self) -> T {
        self.inner
    }

    fn poll_memory(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.shared.has_written(&result);
        result
    }

    /// Sends bytes that a part of a file follows, and as much as it can of that.
    fn poll_memory_and_file(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        // Held back by the kernel until the part comes, they must not wait for a disk.
        let follows_at_once = self.shared.outbox().front().is_some_and(|part| self.sender.is_ready(&part));
        if !follows_at_once {
            return self.poll_memory(cx, bufs);
        }
        let result = self.inner.poll_send_more(cx, bufs);
        self.shared.has_written(&result);
        let written = ready!(result)?;
        if written < bufs.iter().map(|buf| buf.len()).sum() {
            return Poll::Ready(Ok(written));
        }
        // What went wrong now will be told when it is tried again.
        let sent = match self.poll_file(cx) {
            Poll::Ready(Ok(sent)) => sent,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        Poll::Ready(Ok(written + sent))
    }

    fn poll_file(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let result = match self.sender.send(&self.inner, self.shared.outbox(), self.shared.turn(), cx) {
            Sent::Bytes(sent) => Poll::Ready(Ok(sent)),
            Sent::Full => Poll::Pending,
            Sent::ConnectionFailed(error) => Poll::Ready(Err(error)),
            Sent::Later => return Poll::Pending,
            Sent::FileFailed(what) => {
                self.shared.end_short(format!("the content could not be sent: {what}"));
                return Poll::Pending;
            }
        };
        self.shared.has_written(&result);
        result
    }
}

impl<T: Wire> AsyncRead for ClientStream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, room) = (buf.filled().len(), buf.remaining());
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        match &result {
            Poll::Ready(Ok(())) if room > 0 => this.shared.has_read(buf.filled().len() - before),
            Poll::Ready(Err(_)) => this.shared.has_read(0),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        result
    }
}

impl<T: Wire> AsyncWrite for ClientStream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match bufs.iter().position(|buf| is_placeholder(buf)) {
            None => this.poll_memory(cx, bufs),
            Some(0) => this.poll_file(cx),
            Some(at) => this.poll_memory_and_file(cx, &bufs[..at]),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        if let Poll::Ready(Ok(())) = result {
            this.shared.has_flushed();
        }
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

// === impl FileSender ===

impl FileSender {
    /// Whether the next part can be sent without waiting for the disk.
    fn is_ready(&mut self, part: &FilePart) -> bool {
        self.fetching.is_none() && self.find_resident(part)
    }

    /// Sends some of the part whose turn it is. `turn` counts the times that the connection was given the processor.
    fn send<T: Wire>(&mut self, wire: &T, outbox: &Outbox, turn: u64, cx: &mut Context<'_>) -> Sent {
        let Some(part) = outbox.front() else {
            return Sent::FileFailed("there is no part of a file to send".to_owned());
        };
        if self.turn != turn {
            (self.turn, self.used_bytes) = (turn, 0);
        }
        if self.used_bytes >= TURN_BYTES {
            cx.waker().wake_by_ref();
            return Sent::Later;
        }
        if self.poll_resident(&part, cx).is_pending() {
            return Sent::Later;
        }
        match wire.poll_send_file(cx, &part.file, part.offset, part.len) {
            Poll::Pending => Sent::Full,
            Poll::Ready(Ok(0)) => {
                let what = format!("it ends before byte {}", part.offset);
                part.file.mark_suspect(&what);
                Sent::FileFailed(what)
            }
            Poll::Ready(Ok(sent)) => {
                self.used_bytes += sent;
                outbox.sent(sent);
                if sent == part.len {
                    // Who holds a file keeps it from being evicted.
                    self.resident = None;
                }
                Sent::Bytes(sent)
            }
            Poll::Ready(Err(error)) if is_of_connection(&error) => Sent::ConnectionFailed(error),
            Poll::Ready(Err(error)) => {
                part.file.sending_failed(&error);
                Sent::FileFailed(error.to_string())
            }
        }
    }

    /// Pending while what is sent next is read from the disk, on other threads: no runtime worker waits for a disk.
    fn poll_resident(&mut self, part: &FilePart, cx: &mut Context<'_>) -> Poll<()> {
        if self.fetching.is_none() {
            if self.find_resident(part) {
                return Poll::Ready(());
            }
            let (file, offset, len) = (part.file.clone(), part.offset, part.len);
            self.fetching = Some(Box::pin(async move { file.make_resident(offset, len).await }));
        }
        if let Some(fetching) = &mut self.fetching {
            ready!(fetching.as_mut().poll(cx));
            self.fetching = None;
        }
        // Not asked again: where memory is that scarce, sending has to wait for the disk all the same.
        self.resident = Some(Resident::now(part));
        Poll::Ready(())
    }

    fn find_resident(&mut self, part: &FilePart) -> bool {
        if self.resident.as_ref().is_some_and(|resident| resident.covers(part)) {
            return true;
        }
        let found = part.file.is_resident(part.offset, part.len);
        self.resident = found.then(|| Resident::now(part));
        found
    }
}

impl std::fmt::Debug for FileSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSender").field("fetching", &self.fetching.is_some()).finish_non_exhaustive()
    }
}

// === impl Resident ===

impl Resident {
    fn now(part: &FilePart) -> Self {
        Self { file: part.file.clone(), range: part.range(), since: Instant::now() }
    }

    fn covers(&self, part: &FilePart) -> bool {
        Arc::ptr_eq(&self.file, &part.file)
            && self.range.start <= part.offset
            && part.range().end <= self.range.end
            && self.since.elapsed() < RESIDENT_FOR
    }
}

/// Whether an error is about the socket, and not about the file.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::BrokenPipe
            | Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::NotConnected
            | Kind::TimedOut
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::io::DuplexStream;

    use super::super::outbox::PART_BYTES_MAX;
    use super::*;
    use crate::store::testing::open_file;

    /// A stream that takes whatever it's given.
    struct Greedy {
        stream: DuplexStream,
        taken: Cell<u64>,
    }

    impl Wire for Greedy {
        fn sends_files(&self) -> bool {
            true
        }

        fn poll_send_file(&self, _: &mut Context<'_>, _: &OpenFile, _: u64, len: usize) -> Poll<io::Result<usize>> {
            self.taken.set(self.taken.get() + len as u64);
            Poll::Ready(Ok(len))
        }
    }

    impl AsyncRead for Greedy {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Greedy {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
        }
    }

    fn outbox(parts: usize, file: &Arc<OpenFile>) -> Outbox {
        let outbox = Outbox::new(true);
        for _ in 0..parts {
            let len = PART_BYTES_MAX;
            outbox.claim(outbox.announce(FilePart { file: file.clone(), offset: 0, len })).unwrap();
        }
        outbox
    }

    #[test]
    fn a_fast_client_has_its_turn_and_then_others_have_theirs() {
        let file = open_file(&vec![1; PART_BYTES_MAX]);
        let outbox = outbox(4 * TURN_BYTES / PART_BYTES_MAX + 1, &file);
        let wire = Greedy { stream: tokio::io::duplex(1).0, taken: Cell::new(0) };
        let mut sender = FileSender::default();
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        for turn in 1..=4 {
            let mut sent = sender.send(&wire, &outbox, turn, cx);
            while let Sent::Bytes(_) = sent {
                sent = sender.send(&wire, &outbox, turn, cx);
            }
            assert!(matches!(sent, Sent::Later), "{sent:?}");
            assert_eq!(wire.taken.get(), turn * TURN_BYTES as u64);
        }
    }

    #[tokio::test]
    async fn what_is_not_in_memory_is_fetched_before_it_is_sent() {
        let file = open_file(&vec![1; PART_BYTES_MAX]);
        file.forget_pages();
        let outbox = outbox(1, &file);
        let wire = Greedy { stream: tokio::io::duplex(1).0, taken: Cell::new(0) };
        let mut sender = FileSender::default();
        if file.is_resident(0, 1 << 20) {
            // On tmpfs there is nothing else than memory.
            assert!(matches!(
                sender.send(&wire, &outbox, 1, &mut Context::from_waker(std::task::Waker::noop())),
                Sent::Bytes(_)
            ));
            return;
        }
        let first = std::future::poll_fn(|cx| match sender.send(&wire, &outbox, 1, cx) {
            Sent::Later => {
                assert_eq!(wire.taken.get(), 0);
                Poll::Pending
            }
            sent => Poll::Ready(sent),
        });
        assert!(matches!(first.await, Sent::Bytes(_)));
        assert!(file.is_resident(0, 1 << 20));
    }
}
