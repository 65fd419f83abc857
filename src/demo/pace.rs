//! A speed limit for one connection.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// When a connection may send its next bytes.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    next: Mutex<Instant>,
}

/// How much lateness a connection may make up for: timers are a millisecond or more late, every time.
const CATCH_UP: Duration = Duration::from_millis(50);

// === impl Pace ===

impl Pace {
    /// A connection that has sent nothing yet.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, next: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be sent, and books them.
    pub async fn wait(&self, bytes: usize) {
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_second.max(1);
        let now = Instant::now();
        let due = {
            let mut next = self.next.lock();
            let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
            *next = (*next).max(earliest) + Duration::from_nanos(nanos);
            *next
        };
        tokio::time::sleep_until(due).await;
    }
}
