//! Outages: which upstreams fail, told to operators once a minute and once more when it is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::Timestamp;

use super::error::{MirrorError, MirrorErrorKind};

/// What was said of upstreams that failed. Those that never did take no room.
#[derive(Debug, Default)]
pub(super) struct Outages(Mutex<HashMap<Arc<str>, Outage>>);

/// What was said of one upstream, and when.
#[derive(Debug, Default)]
struct Outage {
    told: Option<Instant>,
    /// Nothing has been said since of its answering again.
    open: bool,
    /// When the failures began that go on; `None` when it answers.
    since: Option<Timestamp>,
    /// What it failed with last.
    error: Arc<str>,
}

/// How long nothing more is said of an upstream that goes on failing.
const QUIET: Duration = Duration::from_mins(1);

/// Whether an error tells that upstream is in trouble, rather than what it has. `None`: it tells nothing of upstream.
fn is_trouble(error: &MirrorError) -> Option<bool> {
    match error.kind {
        MirrorErrorKind::Unavailable
        | MirrorErrorKind::Timeout
        | MirrorErrorKind::RateLimited { .. }
        | MirrorErrorKind::Unusable => Some(true),
        MirrorErrorKind::UnknownName
        | MirrorErrorKind::UnknownManifest
        | MirrorErrorKind::UnknownBlob
        | MirrorErrorKind::Denied => Some(false),
        // It never came to asking, or nobody knows what upstream said.
        MirrorErrorKind::InvalidName | MirrorErrorKind::Overloaded | MirrorErrorKind::Internal => None,
    }
}

// === impl Outages ===

impl Outages {
    /// Learns what a question to an upstream came to, and says what operators should know. Returns whether upstream is in
    /// trouble, if that is known now.
    pub(super) fn heard<T>(&self, upstream: &Arc<str>, result: &Result<T, MirrorError>) -> Option<bool> {
        let trouble = result.as_ref().map_or_else(is_trouble, |_| Some(false));
        match (trouble, result) {
            (Some(true), Err(error)) => self.remember(upstream, &error.message),
            (Some(false), _) => self.forget(upstream),
            _ => {}
        }
        match (trouble, result) {
            (Some(true), Err(error)) if self.failed(upstream, Instant::now()) => {
                tracing::warn!(target: "cachalot::upstream", %upstream, %error, "upstream {upstream} fails");
            }
            (Some(false), _) if self.answered(upstream) => {
                tracing::info!(target: "cachalot::upstream", %upstream, "upstream {upstream} answers again");
            }
            _ => {}
        }
        trouble
    }

    /// Since when an upstream has failed, if it does, and with what last.
    pub(super) fn failing(&self, upstream: &str) -> Option<(Timestamp, Arc<str>)> {
        let outages = self.0.lock();
        let outage = outages.get(upstream)?;
        Some((outage.since?, Arc::clone(&outage.error)))
    }

    fn remember(&self, upstream: &Arc<str>, error: &Arc<str>) {
        let mut outages = self.0.lock();
        let outage = outages.entry(Arc::clone(upstream)).or_default();
        outage.since.get_or_insert_with(Timestamp::now);
        outage.error = Arc::clone(error);
    }

    fn forget(&self, upstream: &str) {
        if let Some(outage) = self.0.lock().get_mut(upstream) {
            outage.since = None;
        }
    }

    /// Whether this failure is worth a line.
    fn failed(&self, upstream: &Arc<str>, now: Instant) -> bool {
        let mut outages = self.0.lock();
        let outage = outages.entry(Arc::clone(upstream)).or_default();
        if outage.told.is_some_and(|told| now.saturating_duration_since(told) < QUIET) {
            return false;
        }
        (outage.told, outage.open) = (Some(now), true);
        true
    }

    /// Whether this answer is worth a line.
    fn answered(&self, upstream: &str) -> bool {
        self.0.lock().get_mut(upstream).is_some_and(|outage| std::mem::take(&mut outage.open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_a_minute_and_its_end_once() {
        let (outages, start) = (Outages::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (hub, quay): (Arc<str>, Arc<str>) = ("docker.io".into(), "quay.io".into());
        assert!(!outages.answered(&hub), "nothing had failed");
        assert!(outages.failed(&hub, at(0)));
        assert!(!outages.failed(&hub, at(59)));
        assert!(outages.failed(&quay, at(59)), "another upstream has its own minute");
        assert!(outages.failed(&hub, at(60)));
        assert!(outages.answered(&hub));
        assert!(!outages.answered(&hub));
        // One that flaps is told no more often, neither its failures nor its answers.
        assert!(!outages.failed(&hub, at(61)));
        assert!(!outages.answered(&hub));
        assert!(outages.failed(&hub, at(120)));
    }

    #[test]
    fn answers_that_say_no_are_no_outage() {
        let outages = Outages::default();
        let hub: Arc<str> = "docker.io".into();
        let is_open = |kind| {
            outages.heard::<()>(&hub, &Err(MirrorError::new(kind, "")));
            outages.0.lock().get(&hub).is_some_and(|outage| outage.open)
        };
        for kind in [MirrorErrorKind::UnknownManifest, MirrorErrorKind::Denied, MirrorErrorKind::Internal] {
            assert!(!is_open(kind), "{kind:?}");
        }
        assert!(is_open(MirrorErrorKind::RateLimited { retry_after: None }));
        assert!(is_open(MirrorErrorKind::Internal), "a server that stops says nothing about upstream");
        assert!(!is_open(MirrorErrorKind::UnknownBlob), "it answers again");
    }
}
