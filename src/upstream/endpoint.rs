//! One endpoint of an upstream: its address, and what was learnt about it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

use super::EndpointOptions;
use super::credentials::{CredentialId, Credentials};
use super::health::Health;
use super::redirect::place;
use crate::oci::{Repository, RepositoryName};

/// An endpoint and its memory. Nothing here outlives the process.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) url: Url,
    label: String,
    /// Another mirror, which must be told which of its upstreams is meant.
    pub(super) mirror: bool,
    /// Where the upstream's repositories begin there.
    prefix: Option<RepositoryName>,
    /// Credentials for it alone.
    pub(super) own: Option<Credentials>,
    pub(super) health: Health,
    /// It asked for Basic, so that is sent without being asked.
    basic: AtomicBool,
    rejected: Mutex<HashMap<(CredentialId, Repository), Instant>>,
}

/// How long a rejected credential is not offered again for a repository.
const REJECTED_FOR: Duration = Duration::from_mins(10);
const REJECTED_MAX: usize = 4096;

// === impl Endpoint ===

impl Endpoint {
    pub(super) fn new(options: EndpointOptions) -> Self {
        let EndpointOptions { mut url, mirror, repository_prefix: prefix, credential } = options;
        url.set_query(None);
        url.set_fragment(None);
        // Credentials have their own place. These can't fail: an endpoint has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let label = place(&url);
        Self {
            url,
            label,
            mirror,
            prefix,
            own: credential.map(|credential| Credentials::new(vec![credential])),
            health: Health::default(),
            basic: AtomicBool::new(false),
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

    /// What a repository of the upstream is called there.
    pub(super) fn repository<'a>(&self, name: &'a RepositoryName) -> Cow<'a, str> {
        match &self.prefix {
            Some(prefix) => format!("{prefix}/{name}").into(),
            None => name.as_str().into(),
        }
    }

    pub(super) fn speaks_basic(&self) -> bool {
        self.basic.load(Ordering::Relaxed)
    }

    pub(super) fn remember_basic(&self, basic: bool) {
        self.basic.store(basic, Ordering::Relaxed);
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
            let endpoint = Endpoint::new(EndpointOptions::at(endpoint.parse().unwrap()));
            assert_eq!(endpoint.address("a/tags/list").as_str(), address);
        }
    }
}
