//! What an upstream says of our share: how many pulls are left, and how long it wants to be left alone.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::answer::retry_after;

/// What was heard last.
#[derive(Debug, Default)]
pub(super) struct Quota(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Nothing that can wait is asked before then.
    paused_until: Option<Instant>,
    /// What is left is little, as of then.
    low: Option<Instant>,
}

/// A pause where upstream names none.
const PAUSE: Duration = Duration::from_secs(15);
/// The longest pause that is kept without asking again.
const PAUSE_MAX: Duration = Duration::from_hours(6);
/// How long it is believed that little is left.
const LOW_FOR: Duration = Duration::from_mins(10);

// === impl Quota ===

impl Quota {
    /// Reads an answer. Returns how many pulls are left, where it says so.
    pub(super) fn heard(&self, status: StatusCode, headers: &HeaderMap, now: Instant) -> Option<i64> {
        let mut state = self.0.lock();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let until = now + retry_after(headers).unwrap_or(PAUSE).min(PAUSE_MAX);
            state.paused_until = state.paused_until.max(Some(until));
        }
        let remaining = count(headers, "ratelimit-remaining")?;
        // A tenth, and where upstream doesn't say of what, of Docker Hub's hundred.
        let low = remaining <= count(headers, "ratelimit-limit").unwrap_or(100) / 10;
        state.low = low.then_some(now);
        Some(remaining)
    }

    /// How long upstream still wants to be left alone.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        let until = self.0.lock().paused_until?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Whether little is left.
    pub(super) fn is_low(&self, now: Instant) -> bool {
        self.0.lock().low.is_some_and(|when| now.saturating_duration_since(when) < LOW_FOR)
    }
}

/// Docker Hub's `ratelimit-remaining: 20;w=21600`.
fn count(headers: &HeaderMap, name: &str) -> Option<i64> {
    headers.get(name)?.to_str().ok()?.split(';').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_is_left_and_when_it_is_little() {
        let (quota, now) = (Quota::default(), Instant::now());
        for (limit, remaining, left, low) in [
            (Some("100;w=21600"), "76;w=21600", Some(76), false),
            (Some("100;w=21600"), "10;w=21600", Some(10), true),
            (Some("200;w=21600"), "20;w=21600", Some(20), true),
            (Some("200;w=21600"), "21", Some(21), false),
            (None, "5", Some(5), true),
            (None, "many", None, true),
        ] {
            let mut pairs = vec![("ratelimit-remaining", remaining)];
            pairs.extend(limit.map(|limit| ("ratelimit-limit", limit)));
            assert_eq!(quota.heard(StatusCode::OK, &headers(&pairs), now), left, "{remaining}");
            assert_eq!(quota.is_low(now), low, "{remaining}");
            assert!(!quota.is_low(now + LOW_FOR));
        }
        assert_eq!(quota.pause(now), None);
    }

    #[test]
    fn a_pause_is_as_long_as_upstream_says_and_never_shortened() {
        let (quota, now) = (Quota::default(), Instant::now());
        let limited = StatusCode::TOO_MANY_REQUESTS;
        quota.heard(limited, &HeaderMap::new(), now);
        assert_eq!(quota.pause(now), Some(PAUSE));
        quota.heard(limited, &headers(&[("retry-after", "120")]), now);
        quota.heard(limited, &headers(&[("retry-after", "1")]), now);
        assert_eq!(quota.pause(now), Some(Duration::from_mins(2)));
        assert_eq!(quota.pause(now + Duration::from_mins(2)), None);
        quota.heard(limited, &headers(&[("retry-after", "86400")]), now);
        assert_eq!(quota.pause(now), Some(PAUSE_MAX));
    }
}
