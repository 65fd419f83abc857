//! How far a fill has come, and who waits for it to come further.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::store::OpenFile;

use super::error::FillError;

/// The last bytes of a blob, which go out only once the whole of it is verified (law 2).
pub const TAIL_BYTES: u64 = 64 * 1024;

/// What is known about a fill at one moment.
///
/// The phases follow each other as `Starting → Running → Verified`, or end in `Failed` from any of the first two.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    waiting: BTreeMap<(Goal, u64), oneshot::Sender<()>>,
    next_waiter: u64,
}

#[derive(Debug, Clone)]
enum Phase {
    /// No origin has answered yet.
    Starting,
    /// Bytes are arriving in a file.
    Running { file: Arc<OpenFile>, frontier: u64, size_bytes: Option<u64> },
    /// All bytes are there and right.
    Verified { content: Content, size_bytes: u64 },
    /// It ended without the blob.
    Failed(FillError),
}

/// Where verified bytes lie.
#[derive(Debug, Clone)]
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
        Self { state: Mutex::new(State { phase: Phase::Starting, waiting: BTreeMap::new(), next_waiter: 0 }) }
    }

    /// Bytes will arrive in `file`.
    pub(super) fn start(&self, file: Arc<OpenFile>, size_bytes: Option<u64>) {
        self.state.lock().phase = Phase::Running { file, frontier: 0, size_bytes };
    }

    /// The first `frontier` bytes are in the file.
    pub(super) fn advance(&self, frontier: u64) {
        let mut state = self.state.lock();
        if let Phase::Running { frontier: reached, .. } = &mut state.phase {
            *reached = frontier;
        }
        state.wake();
    }

    /// Every byte is in the file and right.
    pub(super) fn verified_in_file(&self, size_bytes: u64) {
        let mut state = self.state.lock();
        if let Phase::Running { file, .. } = &state.phase {
            state.phase = Phase::Verified { content: Content::File(Arc::clone(file)), size_bytes };
        }
        state.wake();
    }

    /// Every byte is here and right.
    pub(super) fn verified_in_memory(&self, bytes: Bytes) {
        let mut state = self.state.lock();
        state.phase = Phase::Verified { size_bytes: bytes.len() as u64, content: Content::Memory(bytes) };
        state.wake();
    }

    /// The fill failed, unless it had already ended.
    pub(super) fn fail(&self, error: FillError) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Starting | Phase::Running { .. }) {
            state.phase = Phase::Failed(error);
        }
        state.wake();
    }

    /// Waits until the first byte can be given out, or the fill has ended.
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
            Phase::Running { file, .. } => Available::File { file: Arc::clone(file), end: state.phase.given_out() },
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
    /// Wakes those whose goal is reached, and nobody else: a broadcast to a thousand readers costs more than a core.
    fn wake(&mut self) {
        let ended = matches!(self.phase, Phase::Failed(_));
        while let Some(first) = self.waiting.first_entry() {
            if !ended && !self.phase.reached(first.key().0) {
                break;
            }
            // A waiter that left in the meantime needs no waking.
            let _ = first.remove().send(());
        }
    }
}

// === impl Phase ===

impl Phase {
    /// How many bytes from the start may be given out.
    fn given_out(&self) -> u64 {
        match self {
            Self::Starting | Self::Failed(_) => 0,
            Self::Running { frontier, size_bytes: Some(size), .. } => (*frontier).min(size.saturating_sub(TAIL_BYTES)),
            Self::Running { frontier, size_bytes: None, .. } => frontier.saturating_sub(TAIL_BYTES),
            Self::Verified { size_bytes, .. } => *size_bytes,
        }
    }

    fn reached(&self, goal: Goal) -> bool {
        match (self, goal) {
            (Self::Verified { .. }, _) => true,
            (_, Goal::Byte(offset)) => offset < self.given_out(),
            (_, Goal::Verified) => false,
        }
    }

    fn head(&self) -> Result<Head, FillError> {
        match self {
            Self::Starting => Ok(Head { size_bytes: None, verified: false }),
            Self::Running { size_bytes, .. } => Ok(Head { size_bytes: *size_bytes, verified: false }),
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
