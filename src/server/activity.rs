//! What was asked lately: the last requests, and totals for charts.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::clock::Timestamp;

/// The last requests, and totals of all. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    recent: Mutex<VecDeque<Finished>>,
    totals: Counters,
}

/// A request that has had its answer.
#[derive(Clone, Debug, Serialize)]
pub struct Finished {
    /// Numbers requests in the order of their ends, from 1.
    pub id: u64,
    /// When it ended, in milliseconds since 1970.
    pub at_ms: Timestamp,
    /// Its method.
    pub method: String,
    /// What it was for: `manifest`, `blob`, …
    pub kind: &'static str,
    /// The upstream's configured name or pattern, or `-`.
    pub upstream: String,
    /// The repository, or empty.
    pub repository: String,
    /// The tag or digest, or empty.
    pub reference: String,
    /// The status; 499 if the client left before there was one.
    pub status: u16,
    /// The outcome's name.
    pub outcome: &'static str,
    /// How many body bytes were sent.
    pub bytes: u64,
    /// Whether the body was sent to its end.
    pub complete: bool,
    /// Milliseconds until the response's head.
    pub ttfb_ms: Option<f64>,
    /// Milliseconds until its end.
    pub duration_ms: f64,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Who it said it is, if that was proven.
    pub user: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests for content.
    pub requests: u64,
    /// Of these, answered from what is held.
    pub hits: u64,
    /// Of these, answered with something that was fetched.
    pub misses: u64,
    /// Of these, answered with an error.
    pub errors: u64,
    /// Body bytes sent.
    pub sent_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    errors: AtomicU64,
    sent_bytes: AtomicU64,
}

/// How many requests are remembered.
const RECENT_MAX: usize = 1000;

/// How long the end of a request waits for its place among the last ones: those who look must not hold up those who pull.
const PATIENCE: Duration = Duration::from_millis(1);

// === impl Activity ===

impl Activity {
    /// Counts a request, and remembers it unless others are in the way.
    pub(super) fn finished(&self, mut request: Finished) {
        self.0.totals.count(&request);
        request.id = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(mut recent) = self.0.recent.try_lock_for(PATIENCE) else { return };
        let dropped = if recent.len() >= RECENT_MAX { recent.pop_front() } else { None };
        recent.push_back(request);
        drop(recent);
        drop(dropped);
    }

    /// The last requests that `wanted` accepts, newest first, of those that ended before the one numbered `before`.
    pub fn recent(&self, before: Option<u64>, limit: usize, wanted: impl Fn(&Finished) -> bool) -> Vec<Finished> {
        let recent = self.0.recent.lock();
        let earlier = recent.iter().rev().filter(|request| before.is_none_or(|before| request.id < before));
        earlier.filter(|request| wanted(request)).take(limit).cloned().collect()
    }

    /// Totals since the start.
    pub fn totals(&self) -> Totals {
        self.0.totals.read()
    }
}

// === impl Counters ===

impl Counters {
    fn count(&self, request: &Finished) {
        if !matches!(request.kind, "manifest" | "blob" | "tags" | "referrers") {
            return;
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(request.bytes, Ordering::Relaxed);
        let counter = match request.outcome {
            "hit" | "revalidated" | "stale" => &self.hits,
            "miss" | "collapsed" | "unverified" | "bypass" => &self.misses,
            _ => &self.errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            requests: read(&self.requests),
            hits: read(&self.hits),
            misses: read(&self.misses),
            errors: read(&self.errors),
            sent_bytes: read(&self.sent_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn request(kind: &'static str, outcome: &'static str) -> Finished {
        Finished {
            id: 0,
            at_ms: Timestamp(1),
            method: "GET".to_owned(),
            kind,
            upstream: "docker.io".to_owned(),
            repository: String::new(),
            reference: String::new(),
            status: 200,
            outcome,
            bytes: 10,
            complete: true,
            ttfb_ms: None,
            duration_ms: 1.0,
            client: None,
            user: None,
            error: None,
        }
    }

    #[test]
    fn the_last_requests_are_remembered_and_all_are_counted() {
        let activity = Activity::default();
        for outcome in ["hit", "miss", "failed"] {
            for _ in 0..500 {
                activity.finished(request("blob", outcome));
            }
        }
        activity.finished(request("ping", "local"));
        let recent = activity.recent(None, 2000, |_| true);
        assert_eq!((recent.len(), recent[0].id, recent[999].id), (RECENT_MAX, 1501, 502));
        assert_eq!(activity.recent(Some(1002), 2, |_| true).iter().map(|r| r.id).collect::<Vec<_>>(), [1001, 1000]);
        assert_eq!(activity.recent(None, 9, |r| r.outcome == "miss")[0].id, 1000);
        let expected = Totals { requests: 1500, hits: 500, misses: 500, errors: 500, sent_bytes: 15_000 };
        assert_eq!(activity.totals(), expected);
    }
}
