//! Who gets a connection to an upstream: checks before bodies, bodies that clients wait for before those that nobody does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Who waits for a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lane {
    /// A client.
    #[default]
    Foreground,
    /// Nobody in particular: what is fetched ahead of time, or behind a client's back.
    Background,
}

/// What a connection is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A question with a short answer: a manifest, a head, a token.
    Check,
    /// A page of a list of tags. Bots walk through thousands of these.
    List,
    /// A blob's bytes, which take as long as their reader takes.
    Body(Lane),
}

/// The requests that an upstream gets at once, and how many of them each kind may be.
#[derive(Debug)]
pub(super) struct Lanes {
    all: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    background: Arc<Semaphore>,
    lists: Arc<Semaphore>,
}

/// The right to one request, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _held: [Option<OwnedSemaphorePermit>; 3],
}

/// Lists that are walked through at once.
const LISTS: usize = 2;

// === impl Lanes ===

impl Lanes {
    /// Lanes for `connections` requests at once, of which an eighth is for checks alone, and of the rest a third for bodies
    /// that clients wait for. Where there are too few to divide, each lane still has one.
    pub(super) fn new(connections: usize) -> Self {
        let connections = connections.clamp(1, Semaphore::MAX_PERMITS);
        let bodies = (connections - connections.div_ceil(8)).max(1);
        let background = (bodies - bodies.div_ceil(3)).max(1);
        let lane = |permits| Arc::new(Semaphore::new(permits));
        Self { all: lane(connections), bodies: lane(bodies), background: lane(background), lists: lane(LISTS) }
    }

    /// Waits for a turn. `None` when it doesn't come within `patience`.
    pub(super) async fn enter(&self, wanted: Use, patience: Duration) -> Option<Permit> {
        // The narrowest first: who waits there takes no place from the others.
        let gates: &[&Arc<Semaphore>] = match wanted {
            Use::Check => &[&self.all],
            Use::List => &[&self.lists, &self.all],
            Use::Body(Lane::Foreground) => &[&self.bodies, &self.all],
            Use::Body(Lane::Background) => &[&self.background, &self.bodies, &self.all],
        };
        let pass = async {
            let mut held = [None, None, None];
            for (place, gate) in held.iter_mut().zip(gates) {
                *place = Some(Arc::clone(gate).acquire_owned().await.ok()?);
            }
            Some(Permit { _held: held })
        };
        // The semaphores are never closed, so only the clock says no.
        timeout(patience, pass).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many permits of a kind can be had until none is left.
    async fn take_all(lanes: &Lanes, wanted: Use) -> Vec<Permit> {
        let mut permits = Vec::new();
        while let Some(permit) = lanes.enter(wanted, Duration::ZERO).await {
            permits.push(permit);
        }
        permits
    }

    #[tokio::test]
    async fn what_nobody_waits_for_leaves_room_for_bodies_and_bodies_leave_room_for_checks() {
        for (connections, background, bodies, checks) in [(64, 37, 19, 8), (8, 4, 3, 1), (4, 2, 1, 1), (3, 1, 1, 1)] {
            let lanes = Lanes::new(connections);
            let held = [
                take_all(&lanes, Use::Body(Lane::Background)).await,
                take_all(&lanes, Use::Body(Lane::Foreground)).await,
                take_all(&lanes, Use::Check).await,
            ];
            assert_eq!(held.each_ref().map(Vec::len), [background, bodies, checks], "{connections}");
        }
    }

    #[tokio::test]
    async fn the_smallest_upstream_still_does_everything_one_at_a_time() {
        let lanes = Lanes::new(1);
        for wanted in [Use::Check, Use::List, Use::Body(Lane::Foreground), Use::Body(Lane::Background)] {
            let permits = take_all(&lanes, wanted).await;
            assert_eq!(permits.len(), 1, "{wanted:?}");
            assert!(lanes.enter(Use::Check, Duration::ZERO).await.is_none(), "{wanted:?}");
        }
    }

    #[tokio::test]
    async fn lists_take_two_places_at_most() {
        let lanes = Lanes::new(64);
        assert_eq!(take_all(&lanes, Use::List).await.len(), 2);
        assert!(lanes.enter(Use::Check, Duration::ZERO).await.is_some());
    }
}
