//! The scrub: every so often all that is held is hashed again, slowly, in the hours that the operator allows.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::store::{Checked, ScrubState, Store};
use crate::tasks;

/// When to scrub, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How long after the begin of one pass the next one begins; zero is never.
    pub period: Duration,
    /// How many bytes a second it reads.
    pub bytes_per_second: u64,
    /// The hours of the day (UTC) in which it works: from the first, until the second.
    pub hours: (u32, u32),
}

/// How often it looks whether its time has come, and notes how far it is.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Starts the scrub. It ends with the drain.
pub fn start(
    store: Store,
    schedule: Schedule,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
) -> tokio::task::JoinHandle<()> {
    tasks::spawn("scrub", async move {
        tokio::select! {
            () = scrub(&store, schedule, &metrics) => {}
            () = shutdown.draining() => {}
        }
    })
}

async fn scrub(store: &Store, schedule: Schedule, metrics: &Metrics) {
    if schedule.period.is_zero() {
        return;
    }
    let mut state = store.scrub_state().await;
    if state.begun.is_none() {
        // What is new has just been verified.
        state = ScrubState { begun: Some(Timestamp::now()), next: None };
        note(store, state).await;
    }
    loop {
        let overdue = state.begun.and_then(Timestamp::age).is_none_or(|age| age >= schedule.period);
        if state.next.is_none() && overdue {
            state.begun = Some(Timestamp::now());
            state.next = store.held().first().map(|(digest, _)| *digest);
        }
        if state.next.is_some() {
            pass(store, schedule, metrics, &mut state).await;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Goes on with a pass, to its end.
async fn pass(store: &Store, schedule: Schedule, metrics: &Metrics, state: &mut ScrubState) {
    let (mut wrong, mut noted) = (0_u64, Instant::now());
    let begin = state.next;
    let rest = store.held().into_iter().filter(|(digest, _)| begin.is_none_or(|begin| *digest >= begin));
    for (digest, size_bytes) in rest {
        while !schedule.allows(Timestamp::now()) {
            sleep(LOOK_EVERY).await;
        }
        state.next = Some(digest);
        if noted.elapsed() >= LOOK_EVERY {
            noted = Instant::now();
            note(store, *state).await;
        }
        match store.check_and_heal_blob(&digest, Some(schedule.bytes_per_second)).await {
            Checked::Right => _ = metrics.scrubbed_bytes.inc_by(size_bytes),
            Checked::Wrong(_) => wrong += 1,
            Checked::Gone => {}
            Checked::Unreadable(error) => tracing::warn!(%digest, %error, "the scrub could not read a blob"),
        }
    }
    state.next = None;
    note(store, *state).await;
    tracing::info!(wrong, "the scrub has hashed again all that is held");
}

async fn note(store: &Store, state: ScrubState) {
    if let Err(error) = store.set_scrub_state(state).await {
        tracing::debug!(%error, "could not note how far the scrub has come");
    }
}

// === impl Schedule ===

impl Schedule {
    fn allows(&self, now: Timestamp) -> bool {
        let hour = u32::try_from(now.0 / 3_600_000 % 24).unwrap_or_default();
        let (from, until) = self.hours;
        if from < until { (from..until).contains(&hour) } else { hour >= from || hour < until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_wrap_around_midnight() {
        let at = |hours, hour: u64| {
            let schedule = Schedule { period: Duration::ZERO, bytes_per_second: 1, hours };
            schedule.allows(Timestamp((20_000 * 24 + hour) * 3_600_000 + 59))
        };
        assert!((0..24).all(|hour| at((0, 24), hour)));
        let allowed = |hours| (0..24).filter(|hour| at(hours, *hour)).collect::<Vec<_>>();
        assert_eq!(allowed((2, 5)), [2, 3, 4]);
        assert_eq!(allowed((22, 2)), [0, 1, 22, 23]);
    }
}
