//! Who answers ranges and who doesn't: learnt by each fill, and remembered by host for a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Hosts of which no ranges are asked for a while, because they don't answer them, or answer with something else.
#[derive(Debug)]
pub(super) struct Rangeless(moka::sync::Cache<String, ()>);

/// What one fill learns.
#[derive(Debug)]
pub(super) struct Ranges<'a> {
    rangeless: &'a Rangeless,
    /// The hosts that have answered a range with just that range.
    given_by: Mutex<Vec<String>>,
    /// A range was answered with something else.
    refused: AtomicBool,
}

/// For so long a host is then asked for no ranges.
const REMEMBERED_FOR: Duration = Duration::from_mins(10);

/// So many of them are remembered.
const HOSTS_MAX: u64 = 1024;

// === impl Rangeless ===

impl Rangeless {
    /// Whether a host was noted lately.
    pub(super) fn contains(&self, host: &str) -> bool {
        self.0.contains_key(host)
    }

    /// Notes a host.
    pub(super) fn insert(&self, host: String) {
        self.0.insert(host, ());
    }
}

impl Default for Rangeless {
    fn default() -> Self {
        Self(moka::sync::Cache::builder().max_capacity(HOSTS_MAX).time_to_live(REMEMBERED_FOR).build())
    }
}

// === impl Ranges ===

impl<'a> Ranges<'a> {
    pub(super) fn new(rangeless: &'a Rangeless) -> Self {
        Self { rangeless, given_by: Mutex::default(), refused: AtomicBool::new(false) }
    }

    /// Whether any host has answered a range with just that range.
    pub(super) fn are_proven(&self) -> bool {
        !self.given_by.lock().is_empty()
    }

    /// Whether none are to be asked for any more.
    pub(super) fn are_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// A host has answered a range with just that range. Says whether that is news.
    pub(super) fn given_by(&self, host: &str) -> bool {
        let mut hosts = self.given_by.lock();
        let news = !hosts.iter().any(|known| known == host);
        if news {
            hosts.push(host.to_owned());
        }
        news
    }

    /// This fill asks for no more of them; other fills may.
    pub(super) fn refuse_here(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// A host has answered a range with something else.
    pub(super) fn refused_by(&self, host: &str) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            self.rangeless.insert(host.to_owned());
        }
    }

    /// What came in ranges is wrong, and nobody knows which of them.
    pub(super) fn distrust_all(&self) {
        for host in self.given_by.lock().drain(..) {
            self.rangeless.insert(host);
        }
    }
}
