//! Which phase a client's connection is in, its clocks, and the order to end a response short.
//!
//! In hyper a response body that yields an error, or ends before its length, loses the frames that are still buffered,
//! even the response head. So a body here does neither: it says [`AbortHandle::abort`] and stays pending for ever.
//! hyper flushes after every poll of a body, and calls the stream's `poll_flush` only when all that it had buffered is
//! written: that is the moment when the response may end, and `Shared::may_end_short` turns true.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::outbox::{Outbox, WireBuf};

/// Ends one response short. Cloneable; only good for the request that it was made for.
#[derive(Clone, Debug)]
pub struct AbortHandle {
    shared: Arc<Shared>,
    request: u64,
}

/// How long a connection may be in a phase.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// From accept to the first byte of the first request.
    pub first_byte: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// From the end of a response to the first byte of the next request.
    pub idle: Duration,
    /// How long a write may make no progress at all.
    pub stall: Duration,
}

/// Which clock ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// No request came.
    FirstByte,
    /// A request's head did not come to its end.
    Head,
    /// No further request came.
    Idle,
    /// The client stopped reading.
    Stall,
}

/// What the stream, the service, the bodies and the task of one connection tell each other.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    waker: AtomicWaker,
    outbox: Outbox,
    /// How often the connection was given the processor.
    turn: AtomicU64,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The number of the latest request, from 1.
    request: u64,
    aborted: Option<Aborted>,
    may_end_short: bool,
    stalled_since: Option<Instant>,
    client_gone: bool,
}

#[derive(Debug)]
struct Aborted {
    request: u64,
    reason: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests, or before the first one.
    Waiting { since: Instant, first: bool },
    /// Part of a head has come.
    Head { since: Instant },
    /// The handler works.
    Serving,
    /// There is a response head; its body is not at its end.
    Responding,
    /// hyper has the whole response, the socket has not.
    Flushing,
}

/// Any response body, watched: its end is a phase of the connection, and neither an error nor an end before the
/// promised length reaches hyper.
#[derive(Debug)]
pub(super) struct Tracked {
    body: axum::body::Body,
    abort: AbortHandle,
    /// What was promised and has not come; `None` if nothing was promised.
    remaining: Option<u64>,
    started: bool,
}

// === impl AbortHandle ===

impl AbortHandle {
    /// A handle of no connection, for handlers called without one. It only keeps its reason.
    pub fn unattached() -> Self {
        let shared = Shared::new(false);
        let request = shared.request_began();
        Self { shared, request }
    }

    pub(super) fn new(shared: Arc<Shared>, request: u64) -> Self {
        Self { shared, request }
    }

    /// Where parts of files go on this connection.
    pub(super) fn outbox(&self) -> &Outbox {
        &self.shared.outbox
    }

    /// Orders the response to end where it is: what its body has yielded is sent, then FIN. The body must stay pending
    /// from here on. The first reason stays; after the response's end this does nothing.
    pub fn abort(&self, reason: impl Into<Arc<str>>) {
        let mut state = self.shared.state.lock();
        if state.request != self.request || state.aborted.as_ref().is_some_and(|a| a.request == self.request) {
            return;
        }
        state.aborted = Some(Aborted { request: self.request, reason: reason.into() });
        drop(state);
        // A body that fails while hyper polls it is flushed in that same poll; one that fails elsewhere needs a poll.
        self.shared.waker.wake();
    }

    /// Why this response was ended short, if it was.
    pub fn reason(&self) -> Option<Arc<str>> {
        let state = self.shared.state.lock();
        state.aborted.as_ref().filter(|a| a.request == self.request).map(|a| a.reason.clone())
    }
}

// === impl Shared ===

impl Shared {
    /// What belongs to a stream that does, or does not, send parts of files.
    pub(super) fn new(sends_files: bool) -> Arc<Self> {
        let state = State {
            phase: Phase::Waiting { since: Instant::now(), first: true },
            request: 0,
            aborted: None,
            may_end_short: false,
            stalled_since: None,
            client_gone: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            waker: AtomicWaker::new(),
            outbox: Outbox::new(sends_files),
            turn: AtomicU64::new(0),
        })
    }

    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The connection is given the processor once more.
    pub(super) fn turn_began(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Ends the response where the stream stands, which can't go on: all that came before was written.
    pub(super) fn end_short(&self, reason: String) {
        let mut state = self.state.lock();
        let request = state.request;
        if state.aborted.as_ref().is_none_or(|aborted| aborted.request != request) {
            state.aborted = Some(Aborted { request, reason: reason.into() });
        }
        state.may_end_short = true;
    }

    /// A request's head is complete; returns the request's number.
    pub(super) fn request_began(&self) -> u64 {
        let mut state = self.state.lock();
        state.request += 1;
        state.phase = Phase::Serving;
        state.request
    }

    /// The response head is about to be given to hyper, which buffers it before it flushes the next time.
    pub(super) fn response_began(&self) {
        self.state.lock().phase = Phase::Responding;
    }

    fn response_ended(&self, request: u64) {
        let mut state = self.state.lock();
        if state.request == request && state.phase == Phase::Responding {
            state.phase = Phase::Flushing;
        }
    }

    /// Whether an aborted response is flushed, so that the connection may end.
    pub(super) fn may_end_short(&self) -> bool {
        self.state.lock().may_end_short
    }

    /// Whether the client has closed its side, or the connection is broken.
    pub(super) fn client_gone(&self) -> bool {
        self.state.lock().client_gone
    }

    /// When to give the connection up, as things stand.
    pub(super) fn deadline(&self, clocks: &Clocks) -> Option<(Instant, Clock)> {
        let state = self.state.lock();
        if let Some(since) = state.stalled_since {
            return Some((since + clocks.stall, Clock::Stall));
        }
        match state.phase {
            Phase::Waiting { since, first: true } => Some((since + clocks.first_byte, Clock::FirstByte)),
            Phase::Waiting { since, first: false } => Some((since + clocks.idle, Clock::Idle)),
            Phase::Head { since } => Some((since + clocks.head, Clock::Head)),
            // The handler, the upstream and the disk have deadlines of their own.
            Phase::Serving | Phase::Responding | Phase::Flushing => None,
        }
    }

    /// Makes `waker` the one that an abort from elsewhere wakes.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(super) fn has_read(&self, n: usize) {
        let mut state = self.state.lock();
        if n == 0 {
            state.client_gone = true;
        } else if let Phase::Waiting { .. } = state.phase {
            state.phase = Phase::Head { since: Instant::now() };
        }
    }

    pub(super) fn has_written(&self, result: &Poll<io::Result<usize>>) {
        let mut state = self.state.lock();
        match result {
            Poll::Pending => _ = state.stalled_since.get_or_insert_with(Instant::now),
            Poll::Ready(Ok(_)) => state.stalled_since = None,
            Poll::Ready(Err(_)) => state.client_gone = true,
        }
    }

    pub(super) fn has_flushed(&self) {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Flushing => state.phase = Phase::Waiting { since: Instant::now(), first: false },
            Phase::Responding if state.aborted.as_ref().is_some_and(|a| a.request == state.request) => {
                state.may_end_short = true;
            }
            Phase::Waiting { .. } | Phase::Head { .. } | Phase::Serving | Phase::Responding => {}
        }
    }
}

// === impl Tracked ===

impl Tracked {
    /// `promised` is the response's `Content-Length`, if it has one.
    pub(super) fn new(body: axum::body::Body, promised: Option<u64>, abort: AbortHandle) -> Self {
        let remaining = promised.or_else(|| body.size_hint().exact());
        Self { body, abort, remaining, started: false }
    }

    fn fail(&self, reason: impl Into<Arc<str>>) -> Poll<Option<Result<Frame<WireBuf>, axum::Error>>> {
        self.abort.abort(reason);
        Poll::Pending
    }
}

impl http_body::Body for Tracked {
    type Data = WireBuf;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<WireBuf>, axum::Error>>> {
        let this = self.get_mut();
        if this.abort.reason().is_some() {
            return Poll::Pending;
        }
        this.started = true;
        match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let data = match frame.into_data() {
                    Ok(data) => data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers.map_data(WireBuf::Memory)))),
                };
                let len = data.len() as u64;
                match this.abort.outbox().claim(data) {
                    Ok(data) => {
                        this.remaining = this.remaining.map(|remaining| remaining.saturating_sub(len));
                        Poll::Ready(Some(Ok(Frame::data(data))))
                    }
                    Err(mismatch) => this.fail(mismatch.to_string()),
                }
            }
            Some(Err(error)) => this.fail(error.to_string()),
            None => match this.remaining {
                Some(missing) if missing > 0 => this.fail(format!("the body ended {missing} bytes early")),
                _ => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        // Before the first frame this is about responses without a body, such as 304, whose length header describes
        // what a GET would have got.
        self.body.is_end_stream() && (!self.started || self.remaining.is_none_or(|missing| missing == 0))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.abort.shared.response_ended(self.abort.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCKS: Clocks = Clocks {
        first_byte: Duration::from_secs(1),
        head: Duration::from_secs(2),
        idle: Duration::from_secs(3),
        stall: Duration::from_secs(4),
    };

    fn clock(shared: &Shared) -> Option<Clock> {
        shared.deadline(&CLOCKS).map(|(_, clock)| clock)
    }

    #[tokio::test]
    async fn each_phase_has_its_clock_and_a_response_in_the_making_has_none() {
        let shared = Shared::new(false);
        assert_eq!(clock(&shared), Some(Clock::FirstByte));
        for _ in 0..2 {
            shared.has_read(1);
            assert_eq!(clock(&shared), Some(Clock::Head));
            let begun = shared.deadline(&CLOCKS);
            shared.has_read(1);
            assert_eq!(shared.deadline(&CLOCKS), begun, "more bytes buy no time");
            let request = shared.request_began();
            assert_eq!(clock(&shared), None);
            shared.response_began();
            shared.has_flushed();
            assert_eq!(clock(&shared), None);
            shared.has_written(&Poll::Pending);
            assert_eq!(clock(&shared), Some(Clock::Stall));
            let begun = shared.deadline(&CLOCKS);
            shared.has_written(&Poll::Pending);
            assert_eq!(shared.deadline(&CLOCKS), begun, "the clock runs from the first write that waits");
            shared.has_written(&Poll::Ready(Ok(1)));
            assert_eq!(clock(&shared), None);
            shared.response_ended(request);
            assert_eq!(clock(&shared), None);
            shared.has_flushed();
            assert_eq!(clock(&shared), Some(Clock::Idle));
        }
    }

    #[tokio::test]
    async fn an_abort_before_the_response_head_waits_for_it() {
        let shared = Shared::new(false);
        let abort = AbortHandle::new(shared.clone(), shared.request_began());
        abort.abort("because");
        shared.has_flushed();
        assert!(!shared.may_end_short());
        shared.response_began();
        assert!(!shared.may_end_short());
        shared.has_flushed();
        assert!(shared.may_end_short());
    }

    #[test]
    fn a_handle_of_no_connection_keeps_its_first_reason() {
        let abort = AbortHandle::unattached();
        assert_eq!(abort.reason(), None);
        abort.abort("one");
        abort.abort("two");
        assert_eq!(abort.reason().as_deref(), Some("one"));
    }
}
