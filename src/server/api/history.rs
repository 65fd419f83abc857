//! `/history`: totals over time, for charts: the last hour in steps of 10 s, the last week in steps of 10 minutes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;

use crate::clock::Timestamp;
use crate::metrics::Metrics;

use super::super::activity::{Activity, Totals};
use super::page::{self, Query};
use super::{Api, ApiError};

/// Samples of the totals. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Samples>>);

#[derive(Debug, Default)]
struct Samples {
    taken: u64,
    fine: VecDeque<Sample>,
    coarse: VecDeque<Sample>,
}

/// The totals at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    at_ms: Timestamp,
    #[serde(flatten)]
    totals: Totals,
    /// Body bytes received from upstreams since the start.
    upstream_bytes: u64,
}

/// How often a sample is taken.
const STEP: Duration = Duration::from_secs(10);

/// How many fine samples make a coarse one.
const COARSE_EVERY: u64 = 60;

/// An hour, and a week.
const FINE_MAX: usize = 360;
const COARSE_MAX: usize = 1008;

// === impl History ===

impl History {
    /// Takes samples for ever.
    pub async fn keep(self, activity: Activity, metrics: Arc<Metrics>) {
        let mut ticks = tokio::time::interval(STEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.take(Sample {
                at_ms: Timestamp::now(),
                totals: activity.totals(),
                upstream_bytes: metrics.upstream_bytes_in_all(),
            });
        }
    }

    fn take(&self, sample: Sample) {
        fn push(samples: &mut VecDeque<Sample>, sample: Sample, max: usize) {
            if samples.len() >= max {
                samples.pop_front();
            }
            samples.push_back(sample);
        }
        let mut samples = self.0.lock();
        push(&mut samples.fine, sample, FINE_MAX);
        if samples.taken.is_multiple_of(COARSE_EVERY) {
            push(&mut samples.coarse, sample, COARSE_MAX);
        }
        samples.taken += 1;
    }
}

pub(super) async fn show(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["step"])?;
    let now = Sample {
        at_ms: Timestamp::now(),
        totals: api.0.activity.totals(),
        upstream_bytes: api.0.metrics.upstream_bytes_in_all(),
    };
    let (step_seconds, mut items): (_, Vec<_>) = {
        let samples = api.0.history.0.lock();
        match query.get("step") {
            None | Some("10s") => (STEP.as_secs(), samples.fine.iter().copied().collect()),
            Some("10m") => (STEP.as_secs() * COARSE_EVERY, samples.coarse.iter().copied().collect()),
            Some(_) => return Err(ApiError::bad_request("step is 10s or 10m")),
        }
    };
    items.push(now);
    page::ok(&json!({ "step_seconds": step_seconds, "items": items }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_in_full_and_a_week_in_part() {
        let history = History::default();
        for n in 0..70_000 {
            history.take(Sample { at_ms: Timestamp(n), totals: Totals::default(), upstream_bytes: n });
        }
        let samples = history.0.lock();
        assert_eq!((samples.fine.len(), samples.fine[0].upstream_bytes), (FINE_MAX, 70_000 - 360));
        assert_eq!(samples.coarse.len(), COARSE_MAX);
        assert!(samples.coarse.iter().all(|sample| sample.upstream_bytes % 60 == 0));
    }
}
