//! One endpoint of an upstream: its address, and what was learnt about it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

use super::credentials::CredentialId;
use super::redirect::place;
use crate::oci::Repository;

/// An endpoint and its memory. Nothing here outlives the process.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) url: Url,
    label: String,
    /// It asked for Basic, so that is sent without being asked.
    basic: AtomicBool,
    failed: Mutex<Option<Instant>>,
    rejected: Mutex<HashMap<(CredentialId, Repository), Instant>>,
}

/// How long an endpoint that failed is tried after the others.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// How long a rejected credential is not offered again for a repository.
const REJECTED_FOR: Duration = Duration::from_mins(10);
const REJECTED_MAX: usize = 4096;

// === impl Endpoint ===

impl Endpoint {
    pub(super) fn new(mut url: Url) -> Self {
        url.set_query(None);
        url.set_fragment(None);
        // Credentials have their own place. These can't fail: an endpoint has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let label = place(&url);
        Self {
            url,
            label,
            basic: AtomicBool::new(false),
            failed: Mutex::new(None),
            rejected: Mutex::new(HashMap::new()),
        }
    }

    /// Host and port, for messages.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// The address of what is at `path` below `/v2/`.
    pub(super) fn address(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/v2/{path}"));
        url
    }

    pub(super) fn speaks_basic(&self) -> bool {
        self.basic.load(Ordering::Relaxed)
    }

    pub(super) fn remember_basic(&self, basic: bool) {
        self.basic.store(basic, Ordering::Relaxed);
    }

    pub(super) fn remember_failure(&self) {
        *self.failed.lock() = Some(Instant::now());
    }

    pub(super) fn remember_success(&self) {
        *self.failed.lock() = None;
    }

    /// Whether it failed a short while ago.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.lock().is_some_and(|when| when.elapsed() < FAILED_FOR)
    }

    pub(super) fn has_rejected(&self, id: CredentialId, repository: &Repository) -> bool {
        let rejected = self.rejected.lock();
        rejected.get(&(id, repository.clone())).is_some_and(|when| when.elapsed() < REJECTED_FOR)
    }

    pub(super) fn reject(&self, id: CredentialId, repository: &Repository) {
        let mut rejected = self.rejected.lock();
        if rejected.len() >= REJECTED_MAX {
            rejected.retain(|_, when| when.elapsed() < REJECTED_FOR);
        }
        if rejected.len() < REJECTED_MAX {
            rejected.insert((id, repository.clone()), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_below_an_endpoint() {
        for (endpoint, address) in [
            ("https://registry.example", "https://registry.example/v2/a/tags/list"),
            ("https://registry.example/", "https://registry.example/v2/a/tags/list"),
            ("http://u:p@h:5000/base/?x=y#z", "http://h:5000/base/v2/a/tags/list"),
        ] {
            assert_eq!(Endpoint::new(endpoint.parse().unwrap()).address("a/tags/list").as_str(), address);
        }
    }
}
