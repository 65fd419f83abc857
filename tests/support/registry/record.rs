//! What the registry was asked, and how much it answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Door;
use super::script::Kind;
use super::wire::Received;

/// A request as it came, with what has been written in answer so far.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    pub(crate) method: String,
    pub(crate) target: String,
    /// The repository, or empty.
    pub(crate) repository: String,
    /// The tag or digest, or empty.
    pub(crate) reference: String,
    pub(crate) headers: Vec<(String, String)>,
    body_bytes: AtomicU64,
    finished: AtomicBool,
}

// === impl Seen ===

impl Seen {
    pub(super) fn new(door: Door, request: &Received) -> Self {
        let (kind, repository, reference) = classify(door, &request.path);
        Self {
            kind,
            method: request.method.clone(),
            target: request.target.clone(),
            repository,
            reference,
            headers: request.headers.clone(),
            body_bytes: AtomicU64::new(0),
            finished: AtomicBool::new(false),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The first and, if there is one, the last byte of the single range that was asked for.
    pub(crate) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }

    /// The bytes of the body handed to the kernel so far.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::SeqCst)
    }

    /// Whether the answer was written to the end that was meant for it.
    pub(crate) fn finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.body_bytes.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::SeqCst);
    }
}

/// Kind, repository and reference of a path, read from the right.
fn classify(door: Door, path: &str) -> (Kind, String, String) {
    let known = |kind, repository: &str, reference: &str| (kind, repository.to_owned(), reference.to_owned());
    if door == Door::Cdn {
        let parts: Option<_> = path.strip_prefix("/cdn/").and_then(|rest| rest.rsplit_once('/'));
        return parts.map_or_else(|| known(Kind::Other, "", ""), |(name, digest)| known(Kind::Cdn, name, digest));
    }
    if path.starts_with("/token") {
        return known(Kind::Token, "", "");
    }
    let Some(rest) = path.strip_prefix("/v2") else { return known(Kind::Other, "", "") };
    let rest = rest.trim_start_matches('/');
    if rest.is_empty() {
        return known(Kind::Ping, "", "");
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return known(Kind::Tags, name, "");
    }
    let mut parts = rest.rsplitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(reference), Some("manifests"), Some(name)) => known(Kind::Manifest, name, reference),
        (Some(reference), Some("blobs"), Some(name)) => known(Kind::Blob, name, reference),
        (Some(reference), Some("referrers"), Some(name)) => known(Kind::Referrers, name, reference),
        _ => known(Kind::Other, "", ""),
    }
}
