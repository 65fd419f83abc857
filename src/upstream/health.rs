//! Whether an endpoint is worth asking: a circuit breaker that opens on trouble and lets one request at a time find out more.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::{Failure, Phase, UpstreamErrorKind};

/// What is known of an endpoint's health.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Failures since it answered last.
    failures: u32,
    /// When it failed last.
    failed: Option<Instant>,
    /// How often it was left alone since it answered last.
    openings: u32,
    /// While it is left alone: until when, and why.
    open: Option<(Instant, Failure)>,
    /// Somebody is finding out whether it answers again.
    probing: bool,
}

/// What the circuit breaker of an endpoint does at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// It is asked.
    Closed,
    /// It failed, and is left alone for so long.
    Open(Duration),
    /// One request finds out whether it answers again, or may.
    HalfOpen,
}

/// The right to ask an endpoint once. Dropped without a word, it has told nothing.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    health: &'a Health,
    probe: bool,
    told: bool,
}

/// Failures after which an endpoint is left alone, where one failure says little: a slow or broken answer may be about what
/// was asked for.
const FAILURES: u32 = 3;
/// How long it is left alone at first; doubled each time, up to the longest.
const OPEN_FIRST: Duration = Duration::from_secs(1);
/// So that its return is noticed within seconds.
const OPEN_LONGEST: Duration = Duration::from_secs(5);
/// How long one that failed is tried after the others.
const FAILED_FOR: Duration = Duration::from_secs(10);

/// Whether a single failure says that nobody gets an answer there.
fn is_plain(failure: &Failure) -> bool {
    use UpstreamErrorKind as Kind;
    matches!(failure.kind, Kind::Connect | Kind::Name | Kind::Certificate | Kind::Tls | Kind::Timeout(Phase::Connect))
}

// === impl Health ===

impl Health {
    /// A turn to ask, or why that would be in vain.
    pub(super) fn enter(&self, now: Instant) -> Result<Turn<'_>, Failure> {
        let mut state = self.0.lock();
        let probe = match &state.open {
            None => false,
            Some((until, why)) if now < *until || state.probing => return Err(why.clone().left_alone()),
            Some(_) => true,
        };
        state.probing |= probe;
        Ok(Turn { health: self, probe, told: false })
    }

    pub(super) fn breaker(&self, now: Instant) -> Breaker {
        match &self.0.lock().open {
            None => Breaker::Closed,
            Some((until, _)) if now < *until => Breaker::Open(*until - now),
            Some(_) => Breaker::HalfOpen,
        }
    }

    /// Whether it failed a short while ago.
    pub(super) fn has_failed(&self, now: Instant) -> bool {
        self.0.lock().failed.is_some_and(|when| now.saturating_duration_since(when) < FAILED_FOR)
    }

    fn answered(&self) {
        *self.0.lock() = State::default();
    }

    fn failed(&self, failure: &Failure, now: Instant) {
        let mut state = self.0.lock();
        state.failed = Some(now);
        if matches!(failure.kind, UpstreamErrorKind::RateLimited { .. }) {
            // It answers, only not us.
            return;
        }
        state.failures += 1;
        let due = state.open.as_ref().is_none_or(|(until, _)| *until <= now);
        if due && (is_plain(failure) || state.failures >= FAILURES || state.open.is_some()) {
            let wait = OPEN_FIRST.saturating_mul(1 << state.openings.min(8)).min(OPEN_LONGEST);
            state.openings += 1;
            state.open = Some((now + wait, failure.clone()));
        }
    }
}

// === impl Turn ===

impl Turn<'_> {
    /// It answered, whatever it said.
    pub(super) fn succeeded(mut self) {
        self.told = true;
        self.health.answered();
    }

    /// What a failure says about the endpoint: trouble, or just no.
    pub(super) fn ended(mut self, failure: &Failure, now: Instant) {
        match &failure.kind {
            // It answered: with the way to somewhere that doesn't.
            _ if failure.left => {
                self.told = true;
                self.health.answered();
            }
            kind if kind.is_transient() => self.health.failed(failure, now),
            kind if kind.is_verdict() => {
                self.told = true;
                self.health.answered();
            }
            _ => {}
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.probe && !self.told {
            self.health.0.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(health: &Health, kind: UpstreamErrorKind, now: Instant) {
        health.enter(now).unwrap().ended(&kind.into(), now);
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_endpoint_that_can_t_be_reached_is_left_alone_at_once_and_probed_by_one() {
        let (health, start) = (Health::default(), Instant::now());
        fail(&health, UpstreamErrorKind::Connect, start);
        assert!(health.has_failed(start));
        assert_eq!(health.breaker(start), Breaker::Open(SECOND));
        assert_eq!(health.enter(start).unwrap_err().kind, UpstreamErrorKind::Connect);
        let probe = health.enter(start + SECOND).unwrap();
        assert!(health.enter(start + SECOND).is_err(), "one is enough");
        assert_eq!(health.breaker(start + SECOND), Breaker::HalfOpen);
        drop(probe);
        // A probe that was given up makes room for the next. Each failure in a row doubles the wait, up to five seconds.
        let mut now = start + SECOND;
        for wait in [2, 4, 5, 5] {
            fail(&health, UpstreamErrorKind::Connect, now);
            assert!(health.enter(now + wait * SECOND - Duration::from_millis(1)).is_err());
            now += wait * SECOND;
        }
        health.enter(now).unwrap().succeeded();
        assert_eq!(health.breaker(now), Breaker::Closed);
        assert!(health.enter(now).is_ok() && !health.has_failed(now));
        fail(&health, UpstreamErrorKind::Certificate, now);
        assert!(health.enter(now + SECOND).is_ok(), "it begins anew");
    }

    #[test]
    fn one_bad_answer_is_no_outage_three_in_a_row_are() {
        for kind in
            [UpstreamErrorKind::Status(503), UpstreamErrorKind::Timeout(Phase::Header), UpstreamErrorKind::Broken]
        {
            let (health, now) = (Health::default(), Instant::now());
            for _ in 0..2 {
                fail(&health, kind.clone(), now);
                fail(&health, kind.clone(), now);
                health.enter(now).unwrap().ended(&UpstreamErrorKind::NotFound { oci_body: true }.into(), now);
            }
            (0..3).for_each(|_| fail(&health, kind.clone(), now));
            assert_eq!(health.enter(now).unwrap_err().kind, kind);
        }
    }

    #[test]
    fn what_says_nothing_about_the_endpoint_changes_nothing() {
        let (health, now) = (Health::default(), Instant::now());
        for _ in 0..9 {
            fail(&health, UpstreamErrorKind::RateLimited { retry_after: None }, now);
            fail(&health, UpstreamErrorKind::Protocol(String::new()), now);
        }
        assert!(health.enter(now).is_ok());
    }

    #[test]
    fn failures_of_one_crowd_open_it_once() {
        let (health, now) = (Health::default(), Instant::now());
        let turns: Vec<_> = (0..9).map(|_| health.enter(now).unwrap()).collect();
        for turn in turns {
            turn.ended(&UpstreamErrorKind::Connect.into(), now);
        }
        assert!(health.enter(now + SECOND).is_ok(), "not nine times as long");
    }
}
