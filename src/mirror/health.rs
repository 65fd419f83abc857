//! How upstreams are, and which names were refused: what operators look at.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::metrics::UpstreamLabels;
use crate::upstream::Breaker;

use super::Mirror;

/// How an upstream is.
#[derive(Clone, Debug)]
pub struct UpstreamHealth {
    /// Its configured name or pattern.
    pub name: Arc<str>,
    /// Where it is; empty for a pattern.
    pub endpoints: Vec<String>,
    /// When it last answered as it should, in seconds since 1970.
    pub last_success: Option<i64>,
    /// Pulls left in its window, if it says so.
    pub quota_left: Option<i64>,
    /// Since when it has failed, if it does.
    pub failing_since: Option<Timestamp>,
    /// What it failed with last, while it does.
    pub last_error: Option<Arc<str>>,
    /// Body bytes received from it.
    pub received_bytes: u64,
    /// How long it wants to be left alone with everything that can wait, if it said so.
    pub pause: Option<Duration>,
    /// What the circuit breaker of each endpoint does; of none for a pattern.
    pub breakers: Vec<(String, Breaker)>,
}

/// Names that were asked for and are not configured.
#[derive(Debug, Default)]
pub(super) struct RefusedNames(Mutex<HashMap<String, u64>>);

/// How many refused names are counted: strangers can make up any number of them.
const REFUSED_MAX: usize = 1000;

/// How many of them are told.
const REFUSED_TOLD: usize = 100;

/// The longest name that is counted.
const NAME_BYTES_MAX: usize = 255;

// === impl RefusedNames ===

impl RefusedNames {
    pub(super) fn count(&self, name: &str) {
        if name.len() > NAME_BYTES_MAX {
            return;
        }
        let mut names = self.0.lock();
        if let Some(count) = names.get_mut(name) {
            *count += 1;
        } else if names.len() < REFUSED_MAX {
            names.insert(name.to_owned(), 1);
        }
    }

    fn most_asked(&self) -> Vec<(String, u64)> {
        let mut names: Vec<_> = self.0.lock().iter().map(|(name, count)| (name.clone(), *count)).collect();
        names.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        names.truncate(REFUSED_TOLD);
        names
    }
}

// === impl Mirror ===

impl Mirror {
    /// How each upstream is, in the order of the configuration.
    pub fn health(&self) -> Vec<UpstreamHealth> {
        let mirror = &self.0;
        let one = |(name, endpoints): (Arc<str>, Vec<String>)| {
            let labels = UpstreamLabels { upstream: name.to_string() };
            let last_success = mirror.metrics.upstream_last_success_timestamp_seconds.get_or_create(&labels).get();
            let quota_left = mirror.metrics.upstream_ratelimit_remaining.get(&labels).map(|gauge| gauge.get());
            let received_bytes = mirror.metrics.upstream_bytes.get_or_create(&labels).get();
            let (failing_since, last_error) = mirror.outages.failing(&name).unzip();
            let last_success = (last_success > 0).then_some(last_success);
            let client = mirror.upstreams.client_called(&name);
            let pause = client.as_ref().and_then(|client| client.pause());
            let breakers = client.map(|client| client.breakers()).unwrap_or_default();
            UpstreamHealth {
                name,
                endpoints,
                last_success,
                quota_left,
                failing_since,
                last_error,
                received_bytes,
                pause,
                breakers,
            }
        };
        mirror.upstreams.labels().map(one).collect()
    }

    /// The names that were refused most often, with how often.
    pub fn refused_names(&self) -> Vec<(String, u64)> {
        self.0.refused_names.most_asked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_names_are_counted_within_bounds() {
        let names = RefusedNames::default();
        for n in 0..2 * REFUSED_MAX {
            names.count(&format!("r{n:04}.example"));
        }
        names.count("r0007.example");
        names.count(&"x".repeat(300));
        assert_eq!(names.0.lock().len(), REFUSED_MAX);
        let told = names.most_asked();
        assert_eq!((told.len(), &told[0], told[1].1), (REFUSED_TOLD, &("r0007.example".to_owned(), 2), 1));
    }
}
