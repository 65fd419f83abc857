//! When to try again after upstream broke off, and when to give up. Pure.

use std::time::Duration;

/// The patience of one connection.
#[derive(Debug, Clone)]
pub(super) struct Retry {
    failures_max: u32,
    failures: u32,
    /// What has arrived since the last failure that counted.
    arrived_bytes: u64,
}

/// So much must arrive before earlier failures are forgotten: an upstream that sends a little and breaks off, again and
/// again, must not be asked for ever.
const FORGIVEN_AFTER_BYTES: u64 = 1024 * 1024;

const FIRST_PAUSE: Duration = Duration::from_millis(100);

const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The longest that an upstream's own wish for a pause is heeded: readers wait meanwhile.
const WISH_MAX: Duration = Duration::from_secs(30);

// === impl Retry ===

impl Retry {
    /// Gives up at the failure after `failures_max` in a row.
    pub(super) fn new(failures_max: u32) -> Self {
        Self { failures_max, failures: 0, arrived_bytes: 0 }
    }

    /// Bytes have arrived.
    pub(super) fn arrived(&mut self, bytes: u64) {
        self.arrived_bytes = self.arrived_bytes.saturating_add(bytes);
        if self.arrived_bytes >= FORGIVEN_AFTER_BYTES {
            self.failures = 0;
        }
    }

    /// How long to wait before the next attempt; `None` is to give up. `jitter` is between 0 and 1, and spreads those who
    /// failed together; `wish` is how long upstream wants to be left alone.
    pub(super) fn failed(&mut self, jitter: f64, wish: Option<Duration>) -> Option<Duration> {
        if self.failures >= self.failures_max {
            return None;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures += 1;
        self.arrived_bytes = 0;
        Some(pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0).max(wish.unwrap_or_default().min(WISH_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let mut retry = Retry::new(8);
        let pauses: Vec<_> = (0..8).map(|_| retry.failed(1.0, None).unwrap().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(retry.failed(1.0, None), None);
        assert_eq!(Retry::new(1).failed(0.0, None), Some(Duration::from_millis(50)));
    }

    #[test]
    fn only_real_progress_is_forgiven() {
        let mut retry = Retry::new(1);
        assert!(retry.failed(0.0, None).is_some());
        retry.arrived(FORGIVEN_AFTER_BYTES - 1);
        assert!(retry.failed(0.0, None).is_none());
        retry.arrived(1);
        assert!(retry.failed(0.0, None).is_some());
    }

    #[test]
    fn what_upstream_wishes_is_heeded_within_reason() {
        let wish = |seconds| Retry::new(1).failed(0.0, Some(Duration::from_secs(seconds))).unwrap();
        assert_eq!(wish(3), Duration::from_secs(3));
        assert_eq!(wish(3600), WISH_MAX);
    }
}
