//! Who may read what: bytes are shared on disk, rights are not (design §10).

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use crate::oci::manifest::Manifest;
use crate::oci::{Digest, Reference, Repository};
use crate::upstream::{Access, UpstreamError, UpstreamErrorKind};

use super::error::{MirrorError, MirrorErrorKind};
use super::upstreams::Target;
use super::{FAILED_CHECK_WINDOW, Mirror, PATIENCE, Wanted};

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
    /// Of these, for which there is no credential, nothing is held that one opened.
    open: moka::sync::Cache<Repository, ()>,
    /// Of these, known to be public earlier, upstream does not say now whether they still are.
    unanswered: moka::sync::Cache<Repository, ()>,
    /// Blobs that upstream confirmed to be in a repository, with their size where it said so.
    confirmed: moka::sync::Cache<(Repository, Digest), Option<u64>>,
    /// Blobs that were had without a credential.
    public_blobs: moka::sync::Cache<Digest, ()>,
}

/// What a client asked for, as far as an anonymous look at it goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Probe<'a> {
    Manifest(&'a Reference),
    Blob(&'a Digest),
    Tags,
}

/// What those without a credential see of something.
#[derive(Clone, Debug)]
pub(super) enum Look {
    /// It's there, so the repository is open to all.
    Open,
    /// Nobody sees it, which proves nothing about the repository.
    Missing(MirrorError),
}

/// What is known of a blob's place in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// It belongs there, and is so long if that is known.
    Proven { size_bytes: Option<u64> },
    /// Nobody has said so yet. A manifest says that it is so long, which decides how upstream is asked, and nothing more.
    Unknown { expected_bytes: Option<u64> },
}

// === impl Link ===

impl Link {
    pub(super) const fn is_proven(self) -> bool {
        matches!(self, Self::Proven { .. })
    }

    /// How long it is, by whatever says so.
    pub(super) const fn expected_bytes(self) -> Option<u64> {
        match self {
            Self::Proven { size_bytes: bytes } | Self::Unknown { expected_bytes: bytes } => bytes,
        }
    }
}

// === impl Rights ===

impl Rights {
    pub(super) fn new() -> Self {
        let remember = |time| moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(time).build();
        Self {
            public: remember(PUBLIC_FOR),
            private: remember(PRIVATE_FOR),
            open: remember(PUBLIC_FOR),
            unanswered: remember(FAILED_CHECK_WINDOW),
            confirmed: moka::sync::Cache::new(REMEMBERED_MAX),
            public_blobs: moka::sync::Cache::new(REMEMBERED_MAX),
        }
    }
}

// === impl Mirror ===

impl Mirror {
    /// Refuses a repository that only our credential opens: a credential given for its quota, or for some private
    /// images, does not make them everybody's.
    ///
    /// Upstream is asked once in a while. When it fails or is silent, what it said earlier counts (laws 7 and 9).
    pub(super) async fn check_readable(&self, target: &Target, probe: Probe<'_>) -> Result<(), MirrorError> {
        let repository = &target.repository;
        if target.listed || target.upstream.policy.share_private {
            return Ok(());
        }
        let rights = &self.0.rights;
        let has_credential = target.upstream.client.has_credential(repository);
        if rights.public.contains_key(repository) || (!has_credential && rights.open.contains_key(repository)) {
            return Ok(());
        }
        if rights.private.contains_key(repository) {
            return Err(private(target));
        }
        let recorded = self.recorded_public(target).await?;
        // Nothing is held, or something was had by nobody. Otherwise a credential opened it that is gone since, and what is
        // held of it is as private as before.
        if !has_credential && recorded != Some(false) {
            rights.open.insert(repository.clone(), ());
            return Ok(());
        }
        if recorded != Some(true) {
            if self.0.settings.offline {
                return Err(never_seen_open(target));
            }
            return match self.look_as_a_stranger(target, probe).await? {
                Look::Open => Ok(()),
                Look::Missing(error) => Err(error),
            };
        }
        if self.0.settings.offline || rights.unanswered.contains_key(repository) {
            return Ok(());
        }
        match timeout(PATIENCE, self.look_as_a_stranger(target, probe)).await {
            // What is missing for everyone may be held here: that is for others to decide.
            Ok(Ok(Look::Open | Look::Missing(_))) => Ok(()),
            Ok(Err(error)) if error.kind == MirrorErrorKind::Denied => Err(error),
            failed => {
                rights.unanswered.insert(repository.clone(), ());
                if let (Err(_elapsed), Probe::Manifest(Reference::Tag(tag))) = (failed, probe) {
                    // This client has waited long enough.
                    let silent = MirrorError::silent(repository);
                    self.0.failed_checks.insert((repository.clone(), tag.clone()), silent);
                }
                Ok(())
            }
        }
    }

    /// Finds out, if that is easy, whether a repository is open to all, so that what is fetched of it is recorded as such.
    pub(super) async fn learn_rights(&self, target: &Target, reference: &Reference) {
        let has_credential = target.upstream.client.has_credential(&target.repository);
        if has_credential && !self.is_public(target) && !self.0.settings.offline {
            // Where upstream doesn't say, it counts as private.
            let _ = self.look_as_a_stranger(target, Probe::Manifest(reference)).await;
        }
    }

    /// Asks upstream without a credential, once however many ask for the same.
    async fn look_as_a_stranger(&self, target: &Target, probe: Probe<'_>) -> Result<Look, MirrorError> {
        let wanted = match probe {
            Probe::Manifest(reference) => Some(Wanted::Manifest(reference.clone())),
            Probe::Blob(digest) => Some(Wanted::Blob(*digest)),
            Probe::Tags => None,
        };
        let key = (target.repository.clone(), wanted.clone(), target.via.clone());
        let work = {
            let (mirror, target) = (self.clone(), target.clone());
            async move { mirror.heard(&target, mirror.look_now(&target, wanted.as_ref()).await) }.boxed()
        };
        self.0.looks.run("look as a stranger", key, work).await.0
    }

    async fn look_now(&self, target: &Target, wanted: Option<&Wanted>) -> Result<Look, MirrorError> {
        // Another look may have ended between this one's being found necessary and its beginning.
        if self.0.rights.public.contains_key(&target.repository) {
            return Ok(Look::Open);
        }
        if self.0.rights.private.contains_key(&target.repository) {
            return Err(private(target));
        }
        let Err(error) = look(target, wanted, Access::Anonymous).await else {
            self.0.rights.public.insert(target.repository.clone(), ());
            return Ok(Look::Open);
        };
        match error.kind {
            UpstreamErrorKind::Refused { .. } => {
                self.0.rights.private.insert(target.repository.clone(), ());
                Err(private(target))
            }
            // Some registries say so of all that a stranger may not see.
            UpstreamErrorKind::NotFound { .. } => match look(target, wanted, Access::Configured).await {
                Ok(()) => Err(private(target)),
                Err(UpstreamError { kind: UpstreamErrorKind::NotFound { .. }, .. }) => {
                    let missing = MirrorError::from(error);
                    Ok(Look::Missing(match wanted {
                        Some(Wanted::Manifest(_)) => missing,
                        Some(Wanted::Blob(_)) => missing.of_blob(),
                        None => MirrorError { kind: MirrorErrorKind::UnknownName, ..missing },
                    }))
                }
                Err(error) => Err(error.into()),
            },
            _ => Err(error.into()),
        }
    }

    /// Notes that something of a repository was had by a credential, which may be gone when it is asked for.
    pub(super) fn note_private(&self, repository: &Repository) {
        self.0.rights.open.invalidate(repository);
    }

    /// Whether anything of a repository was had without a credential; `None` if nothing is held. When the records can't be read
    /// it counts as private, so that upstream is asked: cache trouble is no client's trouble (law 6).
    async fn recorded_public(&self, target: &Target) -> Result<Option<bool>, MirrorError> {
        match self.0.store.is_public(&target.repository).await {
            Ok(known) => Ok(known),
            Err(error) if self.0.settings.offline => {
                Err(MirrorError::new(MirrorErrorKind::Internal, error.to_string()))
            }
            Err(error) => {
                tracing::warn!("could not look up who may read {}: {error}; asking upstream", target.repository);
                Ok(Some(false))
            }
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
            // What anybody could once have had from somewhere is no secret, and may be served wherever it is listed.
            Ok(Some(listed)) if self.is_public_blob(digest).await => {
                Link::Proven { size_bytes: Some(listed.size_bytes) }
            }
            Ok(listed) => Link::Unknown { expected_bytes: listed.map(|listed| listed.size_bytes) },
            Err(error) => {
                tracing::warn!("could not look up links: {error}");
                Link::Unknown { expected_bytes: None }
            }
        }
    }

    /// Whether a blob was had without a credential at least once: upstream gave it from a repository that is open to all.
    async fn is_public_blob(&self, digest: &Digest) -> bool {
        if self.0.rights.public_blobs.contains_key(digest) {
            return true;
        }
        let known = self.0.store.was_public(digest).await.unwrap_or_else(|error| {
            tracing::warn!("could not look up where a blob came from: {error}");
            false
        });
        if known {
            self.0.rights.public_blobs.insert(*digest, ());
        }
        known
    }

    /// What upstream has confirmed of that which a manifest lists: it is noted with each manifest that lists it.
    pub(super) fn confirmed_of(&self, repository: &Repository, manifest: &Manifest) -> Vec<Digest> {
        if !self.0.any_credentials {
            return Vec::new();
        }
        let confirmed = |digest: &Digest| self.0.rights.confirmed.contains_key(&(repository.clone(), *digest));
        manifest.descriptors().map(|listed| listed.digest).filter(confirmed).collect()
    }

    /// Remembers that upstream gave, or would give, a blob from a repository.
    pub(super) async fn confirmed(&self, repository: &Repository, digest: &Digest, size_bytes: Option<u64>) {
        self.0.rights.confirmed.insert((repository.clone(), *digest), size_bytes);
        if self.0.any_credentials
            && let Err(error) = self.0.store.confirm(repository, digest).await
        {
            tracing::warn!("could not keep a confirmation: {error}");
        }
    }

    /// Asks upstream whether a repository has a blob, once however many ask. Returns its size where upstream says it.
    pub(super) async fn ask_for_blob(&self, target: &Target, digest: &Digest) -> Result<Option<u64>, MirrorError> {
        let work = {
            let (mirror, target, digest) = (self.clone(), target.clone(), *digest);
            async move {
                // Another question may have been answered between this one's being found necessary and its beginning. Of
                // another mirror each is asked, for what is in doubt is whether it waits for us.
                let known = mirror.0.rights.confirmed.get(&(target.repository.clone(), digest));
                if let Some(size_bytes) = known.filter(|_| target.via.is_none()) {
                    return Ok(size_bytes);
                }
                let head = target.upstream.client.head_blob(&target.repository, &digest, Access::Configured).await;
                let head = mirror.heard(&target, head.map_err(|error| MirrorError::from(error).of_blob()))?;
                mirror.confirmed(&target.repository, &digest, head.size_bytes).await;
                Ok(head.size_bytes)
            }
            .boxed()
        };
        let key = (target.repository.clone(), *digest, target.via.clone());
        self.0.blob_heads.run("blob check", key, work).await.0
    }

    /// Makes sure that a blob that is held, or being filled for another repository, may be read through this one.
    pub(super) async fn confirm(&self, target: &Target, digest: &Digest) -> Result<(), MirrorError> {
        let unconfirmed = || {
            let message = format!(
                "{digest} is held, but {} can't be asked now whether it belongs to {}, and where credentials are configured a \
                 manifest alone does not open what it names; try again once upstream answers",
                target.repository.registry, target.repository
            );
            if self.0.any_credentials { Err(MirrorError::new(MirrorErrorKind::Denied, message)) } else { Ok(()) }
        };
        if self.0.settings.offline {
            return unconfirmed();
        }
        let asked = self.ask_for_blob(target, digest);
        let answered = if self.0.any_credentials {
            asked.await
        } else {
            // It will be served in any case, unless upstream says no.
            timeout(PATIENCE, asked).await.unwrap_or_else(|_elapsed| Err(MirrorError::silent(&target.repository)))
        };
        match answered {
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

/// Whether upstream shows something, without asking for its content.
async fn look(target: &Target, wanted: Option<&Wanted>, access: Access) -> Result<(), UpstreamError> {
    let (client, repository) = (&target.upstream.client, &target.repository);
    match wanted {
        Some(Wanted::Manifest(reference)) => client.head_manifest(repository, reference, access).await.map(drop),
        Some(Wanted::Blob(digest)) => client.head_blob(repository, digest, access).await.map(drop),
        None => client.list_tags(repository, Some(1), None, access).await.map(drop),
    }
}

fn never_seen_open(target: &Target) -> MirrorError {
    let message = format!(
        "this mirror is offline and never saw {} open to those without a credential, so it is not served to them",
        target.repository
    );
    MirrorError::new(MirrorErrorKind::Denied, message)
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
