//! Why the mirror can't answer. Knows no HTTP: `server/error.rs` gives each kind its status.

use std::sync::Arc;
use std::time::Duration;

use crate::fill::{FillError, OriginError, OriginErrorKind};
use crate::oci::{InvalidManifest, Mismatch, Repository};
use crate::upstream::{UpstreamError, UpstreamErrorKind};

use super::resolve::Unresolved;

/// Why the mirror can't answer. The message is a sentence for the person who pulls: container runtimes show it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct MirrorError {
    /// What kind of failure it is.
    pub kind: MirrorErrorKind,
    /// What happened, where, and what to do.
    pub message: Arc<str>,
}

/// The kinds of failure that clients must be able to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorErrorKind {
    /// The registry is not configured, or the repository can't be seen by anyone without a credential.
    UnknownName,
    /// The repository's name is not one.
    InvalidName,
    /// Upstream has no such manifest, or none is held and nobody can be asked.
    UnknownManifest,
    /// The same for a blob.
    UnknownBlob,
    /// Our credential opens it, and the one who asks has none; or even our credential does not.
    Denied,
    /// Upstream is over its limit. Never passed on as 429, which clients answer with more requests.
    RateLimited {
        /// When to come back, if upstream said so.
        retry_after: Option<Duration>,
    },
    /// Upstream can't be reached or answers with errors.
    Unavailable,
    /// Upstream does not answer in time.
    Timeout,
    /// Upstream answered with something that can't be used: wrong content, HTML, too much.
    Unusable,
    /// As much is under way as may be; what is held is served all the same.
    Overloaded,
    /// Our own fault: the server is stopping, or a task died.
    Internal,
}

// === impl MirrorError ===

impl MirrorError {
    pub(super) fn new(kind: MirrorErrorKind, message: impl Into<Arc<str>>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn died(task: &str) -> Self {
        Self::new(MirrorErrorKind::Internal, format!("the mirror's {task} task ended unexpectedly; its log says why"))
    }

    pub(super) fn overloaded() -> Self {
        let message = "this mirror asks its upstreams for as much as server.max_misses allows; try again in a moment";
        Self::new(MirrorErrorKind::Overloaded, message)
    }

    pub(super) fn stopping() -> Self {
        Self::new(MirrorErrorKind::Internal, "the mirror is shutting down")
    }

    /// Upstream has not said a word for as long as a client waits who can be served without it.
    pub(super) fn silent(repository: &Repository) -> Self {
        let message = format!("{} did not answer within {} s", repository.registry, super::PATIENCE.as_secs());
        Self::new(MirrorErrorKind::Timeout, message)
    }

    /// Upstream wants to be left alone for a while, and what is asked can wait.
    pub(super) fn paused(repository: &Repository, pause: Duration) -> Self {
        let message = format!("{} limits our requests, for {} s more", repository.registry, pause.as_secs() + 1);
        Self::new(MirrorErrorKind::RateLimited { retry_after: Some(pause) }, message)
    }

    pub(super) fn offline(what: &str) -> Self {
        let message =
            format!("offline: not seeded: {what} is not held, and this mirror asks no upstream; seed or import it");
        Self::new(MirrorErrorKind::UnknownManifest, message)
    }

    /// Nothing was found, rather than that something failed.
    pub fn is_not_found(&self) -> bool {
        matches!(self.kind, MirrorErrorKind::UnknownManifest | MirrorErrorKind::UnknownBlob)
    }

    /// The same failure where a blob was asked for instead of a manifest.
    pub(super) fn of_blob(mut self) -> Self {
        if self.kind == MirrorErrorKind::UnknownManifest {
            self.kind = MirrorErrorKind::UnknownBlob;
        }
        self
    }

    /// Puts what was asked for in front of a message that doesn't name it: a repository and, in it, `:tag`, `@digest` or
    /// nothing.
    pub(super) fn about(self, repository: &Repository, which: &str) -> Self {
        let (text, repository) = (&self.message, repository.to_string());
        let named = format!("{repository}{which}");
        let content = which.strip_prefix('@').unwrap_or(&named);
        if text.starts_with(&repository) || (text.contains(&repository) && text.contains(content)) {
            return self;
        }
        let message = format!("{named}: {text}").into();
        Self { message, ..self }
    }

    pub(super) fn wrong_manifest(repository: &Repository, mismatch: &Mismatch) -> Self {
        Self::new(
            MirrorErrorKind::Unusable,
            format!("{} sent a wrong manifest for {repository}: {mismatch}", repository.registry),
        )
    }

    pub(super) fn bad_manifest(repository: &Repository, error: &InvalidManifest) -> Self {
        Self::new(
            MirrorErrorKind::Unusable,
            format!("{} sent a manifest for {repository} that can't be used: {error}", repository.registry),
        )
    }
}

impl From<UpstreamError> for MirrorError {
    /// A refusal without a credential looks just like a missing repository, and is answered like one, so that clients
    /// move on to a host where they may have a credential of their own.
    fn from(error: UpstreamError) -> Self {
        let kind = match &error.kind {
            UpstreamErrorKind::NotFound { .. } => MirrorErrorKind::UnknownManifest,
            UpstreamErrorKind::Refused { anonymous: true, .. } => MirrorErrorKind::UnknownName,
            UpstreamErrorKind::Refused { anonymous: false, .. } => MirrorErrorKind::Denied,
            UpstreamErrorKind::RateLimited { retry_after } => {
                MirrorErrorKind::RateLimited { retry_after: *retry_after }
            }
            UpstreamErrorKind::Status(_)
            | UpstreamErrorKind::Connect
            | UpstreamErrorKind::Name
            | UpstreamErrorKind::Certificate
            | UpstreamErrorKind::Tls
            | UpstreamErrorKind::Broken => MirrorErrorKind::Unavailable,
            UpstreamErrorKind::Timeout(_) => MirrorErrorKind::Timeout,
            UpstreamErrorKind::Protocol(_) | UpstreamErrorKind::RedirectRefused => MirrorErrorKind::Unusable,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<OriginError> for MirrorError {
    fn from(error: OriginError) -> Self {
        let kind = match error.kind {
            OriginErrorKind::NotFound => MirrorErrorKind::UnknownBlob,
            OriginErrorKind::Refused { anonymous: true } => MirrorErrorKind::UnknownName,
            OriginErrorKind::Refused { anonymous: false } => MirrorErrorKind::Denied,
            OriginErrorKind::RateLimited { retry_after } => MirrorErrorKind::RateLimited { retry_after },
            OriginErrorKind::Unavailable | OriginErrorKind::Broken => MirrorErrorKind::Unavailable,
            OriginErrorKind::Timeout | OriginErrorKind::Busy => MirrorErrorKind::Timeout,
            OriginErrorKind::Unusable => MirrorErrorKind::Unusable,
        };
        Self { kind, message: error.message }
    }
}

impl From<FillError> for MirrorError {
    fn from(error: FillError) -> Self {
        match error {
            FillError::Origin(error) => error.into(),
            FillError::Mismatch { .. } => Self::new(MirrorErrorKind::Unusable, error.to_string()),
            FillError::NotStorable { .. } | FillError::Stopped { .. } => {
                Self::new(MirrorErrorKind::Internal, error.to_string())
            }
        }
    }
}

impl From<Unresolved> for MirrorError {
    fn from(error: Unresolved) -> Self {
        Self::new(MirrorErrorKind::UnknownName, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn what_was_asked_for_is_named_once() {
        let repository = Repository { registry: "docker.io".parse().unwrap(), name: "library/app".parse().unwrap() };
        let about = |message: &str, which: &str| {
            MirrorError::new(MirrorErrorKind::Unavailable, message).about(&repository, which).message.to_string()
        };
        assert_eq!(about("docker.io is down", ":1"), "docker.io/library/app:1: docker.io is down");
        assert_eq!(about("docker.io is down", ""), "docker.io/library/app: docker.io is down");
        let digest = Digest::sha256(b"").to_string();
        let which = format!("@{digest}");
        assert_eq!(about("no", &which), format!("docker.io/library/app{which}: no"));
        assert_eq!(about("no", &which), about(&about("no", &which), &which));
        for (named, which) in [
            ("docker.io/library/app is private", ":1"),
            ("never saw docker.io/library/app open", ""),
            (&format!("{digest} is a manifest of docker.io/library/app"), &which),
        ] {
            assert_eq!(about(named, which), named);
        }
    }
}
