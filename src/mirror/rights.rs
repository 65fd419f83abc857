//! Who may read what: bytes are shared on disk, rights are not (design §10).

use std::time::Duration;

use futures_util::FutureExt;

use crate::oci::{Digest, Reference, Repository};
use crate::upstream::{Access, UpstreamErrorKind};

use super::Mirror;
use super::error::{MirrorError, MirrorErrorKind};
use super::upstreams::Target;

/// How many repositories are remembered as public or private, and how many blobs as confirmed in a repository.
const REMEMBERED_MAX: u64 = 200_000;

/// How long a repository counts as open to all after upstream let us in without a credential.
const PUBLIC_FOR: Duration = Duration::from_hours(24);

/// How long one counts as closed: shorter, because people wait for it when they open one.
const PRIVATE_FOR: Duration = Duration::from_mins(5);

/// What is remembered about rights. All of it can be found out again from upstream.
#[derive(Debug)]
pub(super) struct Rights {
    public: moka::sync::Cache<Repository, ()>,
    private: moka::sync::Cache<Repository, ()>,
    /// Blobs that upstream confirmed to be in a repository, with their size where it said so.
    confirmed: moka::sync::Cache<(Repository, Digest), Option<u64>>,
}

/// What a client asked for, as far as an anonymous look at it goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Probe<'a> {
    Manifest(&'a Reference),
    Blob(&'a Digest),
    Tags,
}

/// What is known of a blob's place in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// It belongs there, and is so long if that is known.
    Proven { size_bytes: Option<u64> },
    /// Nobody has said so yet.
    Unknown,
}

// === impl Rights ===

impl Rights {
    pub(super) fn new() -> Self {
        let remember = |time| moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(time).build();
        Self {
            public: remember(PUBLIC_FOR),
            private: remember(PRIVATE_FOR),
            confirmed: moka::sync::Cache::new(REMEMBERED_MAX),
        }
    }
}

// === impl Mirror ===

impl Mirror {
    /// Refuses a repository that only our credential opens: a credential given for its quota, or for some private
    /// images, does not make them everybody's.
    pub(super) async fn check_readable(&self, target: &Target, probe: Probe<'_>) -> Result<(), MirrorError> {
        let repository = &target.repository;
        let client = &target.upstream.client;
        if target.upstream.policy.share_private || !client.has_credential(repository) {
            return Ok(());
        }
        let rights = &self.0.rights;
        if rights.public.contains_key(repository) {
            return Ok(());
        }
        if rights.private.contains_key(repository) {
            return Err(private(target));
        }
        if self.0.settings.offline {
            return self.known_public(target).await;
        }
        let answer = match probe {
            Probe::Manifest(reference) => {
                client.head_manifest(repository, reference, Access::Anonymous).await.map(drop)
            }
            Probe::Blob(digest) => client.head_blob(repository, digest, Access::Anonymous).await.map(drop),
            Probe::Tags => client.list_tags(repository, Some(1), None, Access::Anonymous).await.map(drop),
        };
        match answer {
            Ok(()) => {
                rights.public.insert(repository.clone(), ());
                Ok(())
            }
            Err(error) => match error.kind {
                UpstreamErrorKind::Refused { .. } => {
                    rights.private.insert(repository.clone(), ());
                    Err(private(target))
                }
                // What an anonymous client would be told; it proves nothing about the repository.
                UpstreamErrorKind::NotFound { .. } => Err(error.into()),
                _ => self.known_public(target).await,
            },
        }
    }

    /// Without upstream: a repository is public if it was when something of it was fetched.
    async fn known_public(&self, target: &Target) -> Result<(), MirrorError> {
        match self.0.store.is_public(&target.repository).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(private(target)),
            Err(error) => Err(MirrorError::new(MirrorErrorKind::Internal, error.to_string())),
        }
    }

    /// Whether what is fetched from a repository now is open to all.
    pub(super) fn is_public(&self, target: &Target) -> bool {
        !target.upstream.client.has_credential(&target.repository)
            || self.0.rights.public.contains_key(&target.repository)
    }

    /// What is known, without asking upstream, of a blob's place in a repository.
    pub(super) async fn link(&self, target: &Target, digest: &Digest) -> Link {
        let key = (target.repository.clone(), *digest);
        if let Some(size_bytes) = self.0.rights.confirmed.get(&key) {
            return Link::Proven { size_bytes };
        }
        match self.0.store.listed(&target.repository, digest).await {
            // Anyone can push a manifest that names a stranger's blob. Where no credential opens anything, all that is
            // held is public and this does not matter; elsewhere only upstream's word counts.
            Ok(Some(listed)) if listed.confirmed || !self.0.any_credentials => {
                Link::Proven { size_bytes: Some(listed.size_bytes) }
            }
            Ok(_) => Link::Unknown,
            Err(error) => {
                tracing::warn!(%error, "could not look up links: {error}");
                Link::Unknown
            }
        }
    }

    /// Remembers that upstream gave, or would give, a blob from a repository.
    pub(super) async fn confirmed(&self, repository: &Repository, digest: &Digest, size_bytes: Option<u64>) {
        self.0.rights.confirmed.insert((repository.clone(), *digest), size_bytes);
        if self.0.any_credentials
            && let Err(error) = self.0.store.confirm(repository, digest).await
        {
            tracing::warn!(%error, "could not keep a confirmation: {error}");
        }
    }

    /// Asks upstream whether a repository has a blob, once however many ask. Returns its size where upstream says it.
    pub(super) async fn ask_for_blob(&self, target: &Target, digest: &Digest) -> Result<Option<u64>, MirrorError> {
        let work = {
            let (mirror, target, digest) = (self.clone(), target.clone(), *digest);
            async move {
                let head = target
                    .upstream
                    .client
                    .head_blob(&target.repository, &digest, Access::Configured)
                    .await
                    .map_err(|error| MirrorError::from(error).of_blob())?;
                mirror.confirmed(&target.repository, &digest, head.size_bytes).await;
                Ok(head.size_bytes)
            }
            .boxed()
        };
        self.0.blob_heads.run("blob check", (target.repository.clone(), *digest), work).await.0
    }

    /// Makes sure that a blob that is held, or being filled for another repository, may be read through this one.
    pub(super) async fn confirm(&self, target: &Target, digest: &Digest) -> Result<(), MirrorError> {
        let unconfirmed = || {
            let message = format!(
                "{digest} is held, but {} can't be asked whether it belongs to {}",
                target.repository.registry, target.repository
            );
            if self.0.any_credentials { Err(MirrorError::new(MirrorErrorKind::Denied, message)) } else { Ok(()) }
        };
        if self.0.settings.offline {
            return unconfirmed();
        }
        match self.ask_for_blob(target, digest).await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind {
                MirrorErrorKind::Unavailable | MirrorErrorKind::Timeout | MirrorErrorKind::RateLimited { .. } => {
                    unconfirmed()
                }
                _ => Err(error),
            },
        }
    }
}

fn private(target: &Target) -> MirrorError {
    MirrorError::new(
        MirrorErrorKind::Denied,
        format!(
            "{} is private: only the mirror's own credential opens it. To serve it to everyone who can reach this \
             mirror, set share_private = true under [upstreams.\"{}\"]",
            target.repository, target.upstream.policy.label
        ),
    )
}
