//! Manifests by digest: held, or fetched once however many ask.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use crate::metrics::WhereLabels;
use crate::oci::manifest::Manifest;
use crate::oci::{Digest, Reference, Verified, media};
use crate::store::ManifestRecord;
use crate::upstream::{Access, UpstreamError, UpstreamErrorKind};

use super::error::MirrorError;
use super::outcome::Outcome;
use super::rights::Probe;
use super::upstreams::Target;
use super::{HeldManifest, Mirror, Wanted};

/// A manifest, as upstream sent it.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// The exact bytes (law 11).
    pub bytes: Bytes,
    /// Its media type.
    pub media_type: Arc<str>,
    /// The digest of the bytes.
    pub digest: Digest,
    /// How it came about.
    pub outcome: Outcome,
    /// What a client should be warned of.
    pub warning: Option<String>,
}

/// Some registries answer HEAD with an error where GET works.
pub(super) fn head_not_supported(error: &UpstreamError) -> bool {
    matches!(error.kind, UpstreamErrorKind::Status(400 | 405 | 501) | UpstreamErrorKind::Refused { .. })
}

// === impl HeldManifest ===

impl HeldManifest {
    pub(super) fn answer(self, outcome: Outcome) -> ManifestAnswer {
        ManifestAnswer { bytes: self.bytes, media_type: self.media_type, digest: self.digest, outcome, warning: None }
    }
}

// === impl Mirror ===

impl Mirror {
    /// The manifest that a reference means.
    pub async fn manifest(&self, target: &Target, reference: &Reference) -> Result<ManifestAnswer, MirrorError> {
        let answer = async {
            if let Reference::Digest(digest) = reference {
                self.check_digest(target, digest).await?;
            }
            self.check_readable(target, Probe::Manifest(reference)).await?;
            let answer = match reference {
                Reference::Digest(digest) => self.manifest_by_digest(target, digest).await?,
                Reference::Tag(tag) => self.manifest_by_tag(target, tag).await?,
            };
            self.check_content(target, &answer).await?;
            Ok(answer)
        };
        answer.await.map_err(|error: MirrorError| match reference {
            Reference::Digest(digest) => error.about(&target.repository, &format!("@{digest}")),
            Reference::Tag(tag) => error.about(&target.repository, &format!(":{tag}")),
        })
    }

    /// By digest: immutable, so upstream is never asked about what is held.
    async fn manifest_by_digest(&self, target: &Target, digest: &Digest) -> Result<ManifestAnswer, MirrorError> {
        if let Some(held) = self.held_manifest(target, digest).await {
            return Ok(held.answer(Outcome::Hit));
        }
        if self.0.settings.offline {
            return Err(MirrorError::offline(&format!("{}@{digest}", target.repository)));
        }
        if let Some(error) = self.known_missing(target, Wanted::Manifest(Reference::Digest(*digest))) {
            return Err(error);
        }
        let (fetched, joined) = self.fetch_manifest(target, digest).await;
        Ok(fetched?.answer(if joined { Outcome::Collapsed } else { Outcome::Miss }))
    }

    /// A manifest that is held and recorded in this very repository. Trouble with the disk counts as not held (law 6).
    pub(super) async fn held_manifest(&self, target: &Target, digest: &Digest) -> Option<HeldManifest> {
        let looked_up = async {
            let Some(record) = self.0.store.manifest(&target.repository, digest).await? else { return Ok(None) };
            let bytes = self.0.store.read_blob(digest).await?;
            Ok(bytes.map(|bytes| HeldManifest {
                bytes,
                media_type: record.media_type.as_str().into(),
                digest: *digest,
            }))
        };
        looked_up.await.unwrap_or_else(|error: crate::store::StoreError| {
            tracing::warn!("could not read a held manifest: {error}; asking upstream instead");
            None
        })
    }

    /// Fetches a manifest by digest, once however many ask. Says also whether somebody else had asked.
    pub(super) async fn fetch_manifest(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> (Result<HeldManifest, MirrorError>, bool) {
        let work = {
            let (mirror, target, digest) = (self.clone(), target.clone(), *digest);
            let wanted = Wanted::Manifest(Reference::Digest(digest));
            async move {
                // Another fetch may have ended between this one's being found necessary and its beginning.
                if let Some(held) = mirror.held_manifest(&target, &digest).await {
                    return Ok(held);
                }
                if let Some(error) = mirror.known_missing(&target, wanted.clone()) {
                    return Err(error);
                }
                let fetched = mirror.heard(&target, mirror.fetch_manifest_now(&target, &digest).await);
                fetched.inspect_err(|error| mirror.remember_missing(&target, wanted, error))
            }
            .boxed()
        };
        let key = (target.repository.clone(), *digest, target.via.clone());
        self.0.manifests.run("manifest fetch", key, work).await
    }

    async fn fetch_manifest_now(&self, target: &Target, digest: &Digest) -> Result<HeldManifest, MirrorError> {
        let (client, repository) = (&target.upstream.client, &target.repository);
        let reference = Reference::Digest(*digest);
        // Held because another repository has it too: a HEAD, which costs no quota, tells whether this one does.
        if let Ok(Some(bytes)) = self.0.store.read_blob(digest).await {
            match client.head_manifest(repository, &reference, Access::Configured).await {
                Ok(head) => return self.keep_manifest(target, *digest, bytes, head.media_type.as_deref()),
                Err(error) if head_not_supported(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let body = client.get_manifest(repository, &reference, Access::Configured).await?;
        self.keep_manifest(target, *digest, body.bytes, body.media_type.as_deref())
    }

    /// Verifies, keeps and records a manifest that upstream sent. Nobody waits for the disk, and what
    /// that can't take is served all the same.
    pub(super) fn keep_manifest(
        &self,
        target: &Target,
        digest: Digest,
        bytes: Bytes,
        content_type: Option<&str>,
    ) -> Result<HeldManifest, MirrorError> {
        let repository = &target.repository;
        let verified = Verified::check(&digest, &bytes).map_err(|mismatch| {
            self.0.metrics.verify_failures.get_or_create(&WhereLabels { r#where: "upstream" }).inc();
            let error = MirrorError::wrong_manifest(repository, &mismatch);
            tracing::warn!(upstream = %target.upstream.policy.label, %repository, "{error}");
            error
        })?;
        let content_type = content_type.map(media::without_parameters);
        let manifest =
            Manifest::parse(&bytes, content_type).map_err(|error| MirrorError::bad_manifest(repository, &error))?;
        let media_type: Arc<str> = manifest.media_type.as_str().into();
        let (public, confirmed) = (self.is_public(target), self.confirmed_of(repository, &manifest));
        let record = ManifestRecord::of(&manifest, bytes.len() as u64, public, confirmed);
        self.0.store.keep_manifest(repository, verified, bytes.clone(), record);
        // From here on its record is seen, so nobody takes the repository for open any more.
        if !public {
            self.note_private(repository);
        }
        self.prefetch(target, digest, &manifest);
        Ok(HeldManifest { bytes, media_type, digest })
    }
}
