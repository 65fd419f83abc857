//! How far a fill has come, and who waits for it to come further.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};

use crate::store::OpenFile;

use super::error::FillError;
use super::segments::{Claim, Segments};
use super::snapshot::Stage;

/// The last bytes of a blob, which go out only once the whole of it is verified (law 2).
pub const TAIL_BYTES: u64 = 64 * 1024;

/// How many waiting readers have a say in what is fetched next.
const WANTED_MAX: usize = 32;

/// What is known about a fill at one moment.
///
/// The phases follow each other as `Starting → Running → Verified`, or end in `Failed` from any of the first two.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
    /// Told of everything that may give connections or the hashing something to do.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    waiting: BTreeMap<(Goal, u64), oneshot::Sender<()>>,
    next_waiter: u64,
}

#[derive(Debug)]
enum Phase {
    /// No origin has answered yet.
    Starting,
    /// Bytes are arriving in a file.
    Running { file: Arc<OpenFile>, arrived: Arrived },
    /// All bytes are there and right.
    Verified { content: Content, size_bytes: u64 },
    /// It ended without the blob.
    Failed(FillError),
}

/// What of a blob has arrived.
#[derive(Debug)]
enum Arrived {
    /// The first so many bytes of a blob whose size nobody has said.
    Stream(u64),
    /// Any bytes of a blob whose size is known.
    Segments(Segments),
}

/// Where verified bytes lie.
#[derive(Debug)]
enum Content {
    File(Arc<OpenFile>),
    Memory(Bytes),
}

/// What a waiter waits for, in the order in which it comes true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Goal {
    /// This byte may be given out.
    Byte(u64),
    /// The whole blob is verified.
    Verified,
}

/// What a fill says of itself before any byte of it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The blob's size, unless the origin has not said and the end has not come yet.
    pub size_bytes: Option<u64>,
    /// Every byte is verified.
    pub verified: bool,
}

/// What can be read at some offset.
#[derive(Debug)]
pub(super) enum Available {
    /// Bytes `offset..end` of this file.
    File { file: Arc<OpenFile>, end: u64 },
    /// The whole blob.
    Memory(Bytes),
    /// The blob ends here.
    End,
}

// === impl Progress ===

impl Progress {
    pub(super) fn new() -> Self {
        let state = State { phase: Phase::Starting, waiting: BTreeMap::new(), next_waiter: 0 };
        Self { state: Mutex::new(state), changed: Notify::new() }
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
    }

    /// Bytes will arrive in `file` in segments.
    pub(super) fn start_segments(&self, file: Arc<OpenFile>, segments: Segments) {
        self.state.lock().phase = Phase::Running { file, arrived: Arrived::Segments(segments) };
    }

    /// The next segment that a connection should bring, if any: what readers wait for comes first.
    pub(super) fn claim(&self) -> Option<Claim> {
        let mut state = self.state.lock();
        let State { phase, waiting, .. } = &mut *state;
        let wanted = waiting.keys().filter_map(|(goal, _)| match goal {
            Goal::Byte(offset) => Some(*offset),
            Goal::Verified => None,
        });
        let wanted: Vec<u64> = wanted.take(WANTED_MAX).collect();
        phase.segments()?.claim(&wanted)
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

    /// How far it is, for those who watch.
    pub(super) fn stage(&self) -> Stage {
        match &self.state.lock().phase {
            Phase::Starting => Stage::Starting,
            Phase::Running { arrived: Arrived::Stream(bytes), .. } => {
                Stage::Running { size_bytes: None, arrived_bytes: *bytes, frontier_bytes: *bytes }
            }
            Phase::Running { arrived: Arrived::Segments(segments), .. } => Stage::Running {
                size_bytes: Some(segments.size_bytes()),
                arrived_bytes: segments.present_bytes(),
                frontier_bytes: segments.frontier(),
            },
            Phase::Verified { size_bytes, .. } => Stage::Verified { size_bytes: *size_bytes },
            Phase::Failed(_) => Stage::Failed,
        }
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
        state.wake_all();
    }

    /// Every byte is here and right.
    pub(super) fn verified_in_memory(&self, bytes: Bytes) {
        let mut state = self.state.lock();
        state.phase = Phase::Verified { size_bytes: bytes.len() as u64, content: Content::Memory(bytes) };
        state.wake_all();
    }

    /// The fill failed, unless it had already ended.
    pub(super) fn fail(&self, error: FillError) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Starting | Phase::Running { .. }) {
            state.phase = Phase::Failed(error);
        }
        state.wake_all();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until any byte can be given out, or the fill has ended.
    pub(super) async fn head(&self) -> Result<Head, FillError> {
        self.wait_for(Goal::Byte(0)).await?;
        self.state.lock().phase.head()
    }

    /// Waits until the blob's size is known: for an origin that does not say it, this is when the last byte came.
    pub(super) async fn size(&self) -> Result<u64, FillError> {
        if let Some(size) = self.head().await?.size_bytes {
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
                Available::File { file: Arc::clone(file), end: *size_bytes }
            }
            Phase::Running { file, .. } => {
                Available::File { file: Arc::clone(file), end: state.phase.given_out(offset) }
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
                // A reader that waits may change what connections should bring next.
                self.changed.notify_waiters();
                let (sender, woken) = oneshot::channel();
                let key = (goal, state.next_waiter);
                state.next_waiter += 1;
                state.waiting.insert(key, sender);
                Waiter { progress: self, key, woken }
            };
            waiter.woken().await;
        }
    }
}

// === impl State ===

impl State {
    /// Wakes those who wait for one of these bytes, and nobody else: a broadcast to a thousand readers costs more than a
    /// core.
    fn wake_at(&mut self, bytes: Range<u64>) {
        let mut from = (Goal::Byte(bytes.start), 0);
        while let Some((&key, _)) = self.waiting.range(from..(Goal::Byte(bytes.end), 0)).next() {
            from = (key.0, key.1 + 1);
            // One who waits for a byte of the tail goes on waiting.
            if self.phase.reached(key.0)
                && let Some(waiter) = self.waiting.remove(&key)
            {
                // A waiter that left in the meantime needs no waking.
                let _ = waiter.send(());
            }
        }
    }

    fn wake_all(&mut self) {
        while let Some((_, waiter)) = self.waiting.pop_first() {
            let _ = waiter.send(());
        }
    }
}

// === impl Phase ===

impl Phase {
    fn segments(&mut self) -> Option<&mut Segments> {
        match self {
            Self::Running { arrived: Arrived::Segments(segments), .. } => Some(segments),
            _ => None,
        }
    }

    /// Up to where the bytes from `offset` on may be given out: what is there, but not the tail until all is verified.
    fn given_out(&self, offset: u64) -> u64 {
        match self {
            Self::Starting | Self::Failed(_) => 0,
            Self::Running { arrived: Arrived::Stream(frontier), .. } => frontier.saturating_sub(TAIL_BYTES),
            Self::Running { arrived: Arrived::Segments(segments), .. } => {
                segments.end_of(offset).min(segments.size_bytes().saturating_sub(TAIL_BYTES))
            }
            Self::Verified { size_bytes, .. } => *size_bytes,
        }
    }

    fn reached(&self, goal: Goal) -> bool {
        match (self, goal) {
            (Self::Verified { .. }, _) => true,
            (_, Goal::Byte(offset)) => offset < self.given_out(offset),
            (_, Goal::Verified) => false,
        }
    }

    fn head(&self) -> Result<Head, FillError> {
        match self {
            Self::Starting | Self::Running { arrived: Arrived::Stream(_), .. } => {
                Ok(Head { size_bytes: None, verified: false })
            }
            Self::Running { arrived: Arrived::Segments(segments), .. } => {
                Ok(Head { size_bytes: Some(segments.size_bytes()), verified: false })
            }
            Self::Verified { size_bytes, .. } => Ok(Head { size_bytes: Some(*size_bytes), verified: true }),
            Self::Failed(error) => Err(error.clone()),
        }
    }
}

/// A place in the queue, given up when the one who waits leaves.
struct Waiter<'a> {
    progress: &'a Progress,
    key: (Goal, u64),
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
        self.progress.state.lock().waiting.remove(&self.key);
    }
}
