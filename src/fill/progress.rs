//! How far a fill has come, and who waits for it to come further.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};

use crate::oci::range::ByteRange;
use crate::store::OpenFile;

use super::demand::{Demand, blocks_of, bytes_of, needs_tail};
use super::error::FillError;
use super::phase::{Arrived, Content, Head, Phase};
use super::segments::{Claim, Segments};
use super::snapshot::Stage;
use super::waiting::{Goal, Place, Waiting};

/// How many waiting readers have a say in what is fetched next.
const WANTED_MAX: usize = 32;

/// A part that lies so near to what has arrived is not worth a request of its own, where all of the blob is fetched.
const NEAR_BYTES: u64 = 4 * 1024 * 1024;

/// How far a fill has come, what is wanted of it, and who waits.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
    /// Told of everything that may give connections or the hashing something to do.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    waiting: Waiting,
    /// The parts that clients want, by the number of their want.
    wants: BTreeMap<u64, Vec<ByteRange>>,
    next_want: u64,
    ahead: Ahead,
    /// Once so many bytes are there, the rest is fetched ahead.
    complete_from: u64,
    /// Nobody may want anything of it any more: it is about to leave the table.
    leaving: bool,
}

/// What is fetched besides the parts that clients want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ahead {
    /// Nothing: lazy pullers want no more than they ask for.
    Nothing,
    /// All the rest, but gently: so much of the blob was wanted that more will be.
    Gently,
    /// All of it: a client waits for it.
    Fully,
}

/// What can be read at some offset.
#[derive(Debug)]
pub(super) enum Available {
    /// Bytes `offset..end` of this file, which will have so many in the end.
    File { file: Arc<OpenFile>, end: u64, size_bytes: Option<u64> },
    /// The whole blob.
    Memory(Bytes),
    /// The blob ends here.
    End,
}

// === impl Progress ===

impl Progress {
    pub(super) fn new() -> Self {
        let state = State {
            phase: Phase::Starting,
            waiting: Waiting::default(),
            wants: BTreeMap::new(),
            next_want: 0,
            ahead: Ahead::Nothing,
            complete_from: u64::MAX,
            leaving: false,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Takes in what a client wants. The number is for [`unwant`](Self::unwant). `None`: this fill has ended, or is about
    /// to.
    pub(super) fn want(&self, demand: &Demand) -> Option<u64> {
        let mut state = self.state.lock();
        if state.leaving || matches!(state.phase, Phase::Failed(_)) {
            return None;
        }
        let number = state.next_want;
        state.next_want += 1;
        match demand {
            Demand::Whole { .. } => state.ahead = Ahead::Fully,
            Demand::Parts(parts) => {
                let size_bytes = state.phase.segments().map(|segments| segments.size_bytes());
                if size_bytes.is_some_and(|size_bytes| needs_tail(parts, size_bytes)) {
                    state.ahead = Ahead::Fully;
                }
                state.wants.insert(number, parts.clone());
            }
        }
        drop(state);
        self.changed.notify_waiters();
        Some(number)
    }

    /// A client no longer wants its parts: it has them, or has left.
    pub(super) fn unwant(&self, number: u64) {
        let mut state = self.state.lock();
        state.wants.remove(&number);
        if state.is_quiet() {
            self.changed.notify_waiters();
        }
    }

    /// From now on, at least so much is fetched ahead.
    pub(super) fn fetch_ahead(&self, ahead: Ahead) {
        let mut state = self.state.lock();
        state.ahead = state.ahead.max(ahead);
        drop(state);
        self.changed.notify_waiters();
    }

    /// There is no room for all of the blob: no more than what clients want is fetched, unless one wants all.
    pub(super) fn give_up_ahead(&self) {
        let mut state = self.state.lock();
        if state.ahead == Ahead::Gently {
            (state.ahead, state.complete_from) = (Ahead::Nothing, u64::MAX);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub(super) fn ahead(&self) -> Ahead {
        self.state.lock().ahead
    }

    /// The part that was wanted first, before anything is known of the blob.
    pub(super) fn first_part(&self) -> Option<ByteRange> {
        self.state.lock().wants.values().next().and_then(|parts| parts.first().copied())
    }

    /// Whether nobody wants anything for now.
    pub(super) fn is_quiet(&self) -> bool {
        self.state.lock().is_quiet()
    }

    /// Closes the fill to new clients, if nobody wants anything.
    pub(super) fn leave_if_quiet(&self) -> bool {
        let mut state = self.state.lock();
        state.leaving |= state.is_quiet();
        state.leaving
    }

    /// The size of a blob in segments.
    pub(super) fn size_bytes(&self) -> u64 {
        self.state.lock().phase.segments().map_or(0, |segments| segments.size_bytes())
    }

    /// How many bytes of a blob in segments are there.
    pub(super) fn present_bytes(&self) -> u64 {
        self.state.lock().phase.segments().map_or(0, |segments| segments.present_bytes())
    }

    /// What of a blob in segments is there from `from` on.
    pub(super) fn present_from(&self, from: u64) -> Vec<Range<u64>> {
        self.state.lock().phase.segments().map_or_else(Vec::new, |segments| segments.present_from(from))
    }

    /// Bytes will arrive in `file` one after the other, until they end.
    pub(super) fn start_stream(&self, file: Arc<OpenFile>) {
        self.state.lock().phase = Phase::Running { file, arrived: Arrived::Stream(0) };
    }

    /// The first `frontier` bytes of a stream are in the file.
    pub(super) fn advance(&self, frontier: u64) {
        let mut state = self.state.lock();
        let before = state.phase.given_out(0);
        if let Phase::Running { arrived: Arrived::Stream(reached), .. } = &mut state.phase {
            *reached = frontier;
        }
        state.wake_at(before..u64::MAX);
        // A head waits for as much as the first byte does.
        state.wake_at(0..before + 1);
    }

    /// Bytes will arrive in `file` in segments. Once `complete_from` of them are there, the rest is fetched ahead.
    pub(super) fn start_segments(&self, file: Arc<OpenFile>, segments: Segments, complete_from: u64) {
        let mut state = self.state.lock();
        state.complete_from = complete_from;
        let size_bytes = segments.size_bytes();
        state.phase = Phase::Running { file, arrived: Arrived::Segments(segments) };
        // The tail goes out only once the whole is verified: who wants some of it wants all.
        if state.wants.values().any(|parts| needs_tail(parts, size_bytes)) {
            state.ahead = Ahead::Fully;
        }
        // Those who wait for what lies beyond the end know now that they do.
        state.wake_at(0..u64::MAX);
        drop(state);
        self.changed.notify_waiters();
    }

    /// The next segment that a connection should bring, if any: what readers wait for comes first.
    pub(super) fn claim(&self) -> Option<Claim> {
        let mut state = self.state.lock();
        let wanted = state.waiting.bytes(WANTED_MAX);
        state.phase.segments()?.claim(&wanted)
    }

    /// The next bytes of the parts that clients want, if any are neither there nor on their way.
    pub(super) fn claim_wanted(&self) -> Option<Claim> {
        let mut state = self.state.lock();
        let State { phase, wants, ahead, .. } = &mut *state;
        let segments = phase.segments()?;
        let size_bytes = segments.size_bytes();
        // Where the rest is on its way anyhow, what comes soon is waited for.
        let from = if *ahead == Ahead::Nothing { 0 } else { segments.frontier().saturating_add(NEAR_BYTES) };
        wants.values_mut().find_map(|parts| {
            parts.retain(|part| !segments.has(bytes_of(*part)));
            let far = parts.iter().map(|part| (bytes_of(*part), blocks_of(*part, size_bytes)));
            far.filter(|(_, blocks)| blocks.start >= from)
                .find_map(|(part, blocks)| segments.claim_wanted(part, blocks))
        })
    }

    /// A claim on the first bytes within `bytes` that are neither there nor claimed.
    pub(super) fn claim_missing_in(&self, bytes: Range<u64>) -> Option<Claim> {
        self.state.lock().phase.segments()?.claim_missing_in(bytes)
    }

    /// The next bytes of a claim are in the file.
    pub(super) fn received(&self, claim: &mut Claim, len: u64) {
        let start = claim.rest.start;
        let mut state = self.state.lock();
        if let Some(segments) = state.phase.segments() {
            segments.received(claim, len);
            if segments.present_bytes() >= state.complete_from {
                state.ahead = state.ahead.max(Ahead::Gently);
            }
        }
        state.wake_at(start..start + len);
        drop(state);
        self.changed.notify_waiters();
    }

    /// A claim is done or given up.
    pub(super) fn release(&self, claim: &Claim) {
        if let Some(segments) = self.state.lock().phase.segments() {
            segments.release(claim);
        }
        self.changed.notify_waiters();
    }

    /// Up to here, everything from the start of a blob in segments is in the file.
    pub(super) fn frontier(&self) -> u64 {
        self.state.lock().phase.segments().map_or(0, |segments| segments.frontier())
    }

    /// Makes those look again who wait for a change.
    pub(super) fn nudge(&self) {
        self.changed.notify_waiters();
    }

    /// How far it is, for those who watch.
    pub(super) fn stage(&self) -> Stage {
        self.state.lock().phase.stage()
    }

    /// Waits for something to change after this call.
    pub(super) fn change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Every byte is in the file and right.
    pub(super) fn verified_in_file(&self, size_bytes: u64) {
        let mut state = self.state.lock();
        if let Phase::Running { file, .. } = &state.phase {
            state.phase = Phase::Verified { content: Content::File(Arc::clone(file)), size_bytes };
        }
        state.waiting.wake_all();
    }

    /// Every byte is here and right.
    pub(super) fn verified_in_memory(&self, bytes: Bytes) {
        let mut state = self.state.lock();
        state.phase = Phase::Verified { size_bytes: bytes.len() as u64, content: Content::Memory(bytes) };
        state.waiting.wake_all();
    }

    /// The fill failed, unless it had already ended.
    pub(super) fn fail(&self, error: FillError) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Starting | Phase::Running { .. }) {
            state.phase = Phase::Failed(error);
        }
        state.waiting.wake_all();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until the byte at `first` is there, or is known to lie beyond the end, or the fill has ended.
    pub(super) async fn head(&self, first: u64) -> Result<Head, FillError> {
        self.wait_for(Goal::Present(first)).await?;
        self.state.lock().phase.head()
    }

    /// Waits until the blob's size is known: for an origin that does not say it, this is when the last byte came.
    pub(super) async fn size(&self) -> Result<u64, FillError> {
        if let Some(size) = self.head(0).await?.size_bytes {
            return Ok(size);
        }
        self.wait_for(Goal::Verified).await?;
        // A verified fill has a size; the default only spares a panic.
        Ok(self.state.lock().phase.head()?.size_bytes.unwrap_or_default())
    }

    /// Waits until the byte at `offset` can be given out, or until all is verified when `verified` is set.
    pub(super) async fn available(&self, offset: u64, verified: bool) -> Result<Available, FillError> {
        self.wait_for(if verified { Goal::Verified } else { Goal::Byte(offset) }).await?;
        let state = self.state.lock();
        Ok(match &state.phase {
            Phase::Verified { size_bytes, .. } if offset >= *size_bytes => Available::End,
            Phase::Verified { content: Content::Memory(bytes), .. } => Available::Memory(bytes.clone()),
            Phase::Verified { content: Content::File(file), size_bytes } => {
                Available::File { file: Arc::clone(file), end: *size_bytes, size_bytes: Some(*size_bytes) }
            }
            Phase::Running { file, .. } => {
                let size_bytes = state.phase.head()?.size_bytes;
                Available::File { file: Arc::clone(file), end: state.phase.given_out(offset), size_bytes }
            }
            Phase::Starting => Available::End,
            Phase::Failed(error) => return Err(error.clone()),
        })
    }

    async fn wait_for(&self, goal: Goal) -> Result<(), FillError> {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                if let Phase::Failed(error) = &state.phase {
                    return Err(error.clone());
                }
                if state.phase.reached(goal) {
                    return Ok(());
                }
                // A reader that waits changes what connections should bring next, ahead of it as well.
                self.changed.notify_waiters();
                let (place, woken) = state.waiting.enter(goal);
                Waiter { progress: self, place, woken }
            };
            waiter.woken().await;
        }
    }
}

// === impl State ===

impl State {
    fn wake_at(&mut self, bytes: Range<u64>) {
        let Self { phase, waiting, .. } = self;
        waiting.wake_at(bytes, |goal| phase.reached(goal));
    }

    /// What a connection is still bringing is not thrown away, even if the client that wanted it has all it asked for.
    fn is_quiet(&mut self) -> bool {
        let nobody = self.ahead == Ahead::Nothing && self.wants.is_empty() && self.waiting.is_empty();
        nobody && !self.phase.segments().is_some_and(|segments| segments.has_claims())
    }
}

/// A place in the queue, given up when the one who waits leaves.
struct Waiter<'a> {
    progress: &'a Progress,
    place: Place,
    woken: oneshot::Receiver<()>,
}

impl Waiter<'_> {
    async fn woken(mut self) {
        // An error means that the sender is gone, which the caller's loop finds out by looking.
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.progress.state.lock();
        state.waiting.leave(self.place);
        // It may have been the last one who wanted anything.
        if state.is_quiet() {
            self.progress.changed.notify_waiters();
        }
    }
}
