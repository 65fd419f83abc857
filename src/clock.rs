//! Wall-clock time: the one place that asks the operating system what time it is.
//!
//! Durations are measured with [`std::time::Instant`]; wall-clock time is only for records, log lines and the order of
//! last reads, all of which outlive the process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, as kept in records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Now. A clock set before 1970 reads as 0.
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }

    /// How long ago this was. `None` when it lies in the future: the clock jumped, and what is asked counts as expired.
    pub fn age(self) -> Option<Duration> {
        Self::now().0.checked_sub(self.0).map(Duration::from_millis)
    }

    /// Whole seconds since 1970, as metrics show them.
    pub fn seconds(self) -> i64 {
        i64::try_from(self.0 / 1000).unwrap_or(i64::MAX)
    }
}
