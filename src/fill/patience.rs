//! How much trouble a connection may have before it gives up, while others of the same fill may do well.

use std::time::Duration;

use super::origin::{OriginError, OriginErrorKind};
use super::retry::Retry;

/// The patience of one connection.
#[derive(Debug)]
pub(super) struct Patience {
    retry: Retry,
    /// What all connections had brought when it was last in trouble.
    arrived: u64,
    busy: u32,
}

/// How often, and how long each time, a fill waits for one of our own connections beyond upstream's header deadline.
const BUSY_ROUNDS_MAX: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(500);

// === impl Patience ===

impl Patience {
    /// Gives up at the failure after `failures_max` in a row.
    pub(super) fn new(failures_max: u32) -> Self {
        Self { retry: Retry::new(failures_max), arrived: 0, busy: 0 }
    }

    /// How long to wait before the next attempt at the same origin; `None` is to give it up. All connections have brought
    /// `arrived` bytes by now: as long as some do well, there is hope.
    pub(super) fn pause(&mut self, arrived: u64, error: &OriginError) -> Option<Duration> {
        match error.kind {
            OriginErrorKind::NotFound | OriginErrorKind::Refused { .. } => None,
            // All of our own connections to this upstream are in use. They will be free again.
            OriginErrorKind::Busy if self.busy < BUSY_ROUNDS_MAX => {
                self.busy += 1;
                Some(BUSY_PAUSE)
            }
            _ => self.failed(arrived, error),
        }
    }

    /// The same for whoever need not wait for a free connection, nor try hard.
    pub(super) fn failed(&mut self, arrived: u64, error: &OriginError) -> Option<Duration> {
        self.retry.arrived(arrived - self.arrived);
        self.arrived = arrived;
        self.retry.failed(rand::random(), error.kind.wish())
    }
}
