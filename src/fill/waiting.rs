//! The queue of those who wait for bytes: each is woken when what it waits for is there, and nobody else is.

use std::collections::BTreeMap;
use std::ops::Range;

use tokio::sync::oneshot;

/// Those who wait, in the order of what they wait for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: BTreeMap<Place, oneshot::Sender<()>>,
    next: u64,
}

/// One place in the queue.
pub(super) type Place = (Goal, u64);

/// What a waiter waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Goal {
    /// This byte is there, whether or not it may be given out yet.
    Present(u64),
    /// This byte may be given out.
    Byte(u64),
    /// The whole blob is verified.
    Verified,
}

// === impl Goal ===

impl Goal {
    /// The byte that is waited for.
    pub(super) fn byte(self) -> Option<u64> {
        match self {
            Self::Present(offset) | Self::Byte(offset) => Some(offset),
            Self::Verified => None,
        }
    }
}

// === impl Waiting ===

impl Waiting {
    /// Takes a place; the receiver is told when it's worth looking again.
    pub(super) fn enter(&mut self, goal: Goal) -> (Place, oneshot::Receiver<()>) {
        let (sender, woken) = oneshot::channel();
        let place = (goal, self.next);
        self.next += 1;
        self.queue.insert(place, sender);
        (place, woken)
    }

    /// Gives a place up.
    pub(super) fn leave(&mut self, place: Place) {
        self.queue.remove(&place);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The bytes that are waited for, at most so many, however many wait for each.
    pub(super) fn bytes(&self, most: usize) -> Vec<u64> {
        let mut bytes = Vec::new();
        let mut from = (Goal::Present(0), 0);
        while bytes.len() < most {
            let Some((&(goal, _), _)) = self.queue.range(from..).next() else { break };
            from = match goal {
                Goal::Present(offset) => (Goal::Present(offset.saturating_add(1)), 0),
                Goal::Byte(offset) => (Goal::Byte(offset.saturating_add(1)), 0),
                Goal::Verified => break,
            };
            bytes.extend(goal.byte());
        }
        bytes
    }

    /// Wakes those who wait for one of these bytes and have `reached` it: a broadcast to a thousand readers costs more than
    /// a core.
    pub(super) fn wake_at(&mut self, bytes: Range<u64>, reached: impl Fn(Goal) -> bool) {
        for kind in [Goal::Present as fn(u64) -> Goal, Goal::Byte] {
            let mut from = (kind(bytes.start), 0);
            while let Some((&place, _)) = self.queue.range(from..(kind(bytes.end), 0)).next() {
                from = (place.0, place.1 + 1);
                // One who waits for a byte of the tail goes on waiting.
                if reached(place.0)
                    && let Some(waiter) = self.queue.remove(&place)
                {
                    // A waiter that left in the meantime needs no waking.
                    let _ = waiter.send(());
                }
            }
        }
    }

    pub(super) fn wake_all(&mut self) {
        while let Some((_, waiter)) = self.queue.pop_first() {
            let _ = waiter.send(());
        }
    }
}
