//! A cap on how fast bodies arrive, shared by all that it is for.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// So many bytes a second, for one upstream or for all. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Pace(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes_per_second: u64,
    /// When all that was counted so far would have arrived at that speed.
    due: Mutex<Instant>,
}

/// How far ahead of the clock bodies may be: what fits into the buffers of a connection costs no wait.
const AHEAD: Duration = Duration::from_millis(100);

// === impl Pace ===

impl Pace {
    /// A cap of at least one byte a second.
    pub fn new(bytes_per_second: u64) -> Self {
        Self(Arc::new(Shared { bytes_per_second: bytes_per_second.max(1), due: Mutex::new(Instant::now()) }))
    }

    /// Counts bytes that have arrived, and waits until the next may. Whoever reads more slowly than that never waits.
    pub(super) async fn keep(&self, bytes: u64) {
        let now = Instant::now();
        let until = {
            let mut due = self.0.due.lock();
            #[expect(clippy::cast_precision_loss, reason = "a few nanoseconds more or less are no matter")]
            let takes = Duration::from_secs_f64(bytes as f64 / self.0.bytes_per_second as f64);
            *due = (*due).max(now) + takes;
            *due - AHEAD.min(due.saturating_duration_since(now))
        };
        if until > now {
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bodies_share_a_cap_and_idle_time_is_not_saved_up() {
        let pace = Pace::new(1000);
        let start = Instant::now();
        for _ in 0..2 {
            tokio::join!(pace.keep(500), pace.keep(500));
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(1900) && took <= Duration::from_millis(2010), "{took:?}");
        tokio::time::advance(Duration::from_mins(1)).await;
        let start = Instant::now();
        pace.keep(1000).await;
        assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        pace.keep(50).await;
        assert!(start.elapsed() <= Duration::from_millis(1001), "{:?}", start.elapsed());
    }
}
