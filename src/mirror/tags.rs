//! Manifests by tag: fresh, revalidated with a HEAD, or stale when upstream fails.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use crate::audit;
use crate::clock::Timestamp;
use crate::config::DeletedTags;
use crate::metrics::UpstreamLabels;
use crate::oci::{Digest, Reference, Tag};
use crate::store::TagRecord;
use crate::upstream::{Access, ManifestBody, UpstreamError, UpstreamErrorKind};

use super::error::MirrorError;
use super::freshness::{Freshness, is_forgotten, judge, lifetime, stale_allowed};
use super::manifests::{ManifestAnswer, head_not_supported};
use super::outcome::Outcome;
use super::upstreams::Target;
use super::{HeldManifest, Mirror, PATIENCE, Wanted};

/// What a check of a tag found.
#[derive(Clone, Debug)]
pub(super) enum Checked {
    /// It points at this manifest, which is held now.
    Current {
        manifest: HeldManifest,
        /// Nothing but a HEAD was needed.
        unchanged: bool,
    },
    /// Upstream has deleted it.
    Gone {
        /// What upstream said.
        error: MirrorError,
        /// What is recorded of it, unless it has been gone for so long that it's forgotten.
        record: Option<TagRecord>,
    },
}

/// A tag that is served without having been confirmed for longer than this is a decision to be noted.
const TRUSTED_FOR: Duration = Duration::from_hours(24);

// === impl Mirror ===

impl Mirror {
    pub(super) async fn manifest_by_tag(&self, target: &Target, tag: &Tag) -> Result<ManifestAnswer, MirrorError> {
        let Some(record) = self.tag_record(target, tag).await else { return self.cold_tag(target, tag, None).await };
        match self.held_manifest(target, &record.digest).await {
            Some(manifest) => self.held_tag(target, tag, record, manifest).await,
            None => self.cold_tag(target, tag, Some(record.checked)).await,
        }
    }

    async fn tag_record(&self, target: &Target, tag: &Tag) -> Option<TagRecord> {
        self.0.store.tag(&target.repository, tag).await.unwrap_or_else(|error| {
            tracing::warn!("could not read a tag: {error}; asking upstream instead");
            None
        })
    }

    async fn held_tag(
        &self,
        target: &Target,
        tag: &Tag,
        record: TagRecord,
        manifest: HeldManifest,
    ) -> Result<ManifestAnswer, MirrorError> {
        let policy = &target.upstream.policy;
        let ttl = lifetime(policy.tag_ttl, target.upstream.client.quota_is_low());
        let expired_for = match judge(&record, ttl, policy.immutable_tags.matches(tag)) {
            Freshness::Fresh => return Ok(deleted_or(target, &record, manifest, Outcome::Hit)),
            Freshness::Expired(_) if self.0.settings.offline => return Ok(manifest.answer(Outcome::Hit)),
            Freshness::Expired(expired_for) => expired_for,
        };
        let outcome = Outcome::Stale { expired_for };
        let key = (target.repository.clone(), tag.clone());
        if let Some(failure) = self.0.failed_checks.get(&key).or_else(|| self.left_alone(target, &record)) {
            return self.stale(target, tag, &record, manifest, outcome, failure);
        }
        match timeout(PATIENCE, self.check_tag(target, tag, Some(record.checked), Some(record.digest))).await {
            Ok((Ok(Checked::Current { manifest, unchanged }), joined)) => {
                Ok(manifest.answer(match (unchanged, joined) {
                    (true, _) => Outcome::Revalidated,
                    (false, true) => Outcome::Collapsed,
                    (false, false) => Outcome::Miss,
                }))
            }
            Ok((Ok(Checked::Gone { record: Some(record), .. }), _)) => {
                Ok(deleted_or(target, &record, manifest, Outcome::Revalidated))
            }
            Ok((Ok(Checked::Gone { error, record: None }), _)) => Err(error),
            Ok((Err(error), _)) => self.stale(target, tag, &record, manifest, outcome, error),
            Err(_elapsed) => {
                let error = MirrorError::silent(&target.repository);
                // The check goes on, but those who come in the next moments need not wait for it as well.
                self.0.failed_checks.insert(key, error.clone());
                self.0.silent.insert(target.repository.registry.clone(), error.clone());
                self.stale(target, tag, &record, manifest, outcome, error)
            }
        }
    }

    /// Why upstream is not asked about a tag that is held and may be served stale: it wants to be left alone, or it did not
    /// answer when it was asked about another a moment ago.
    fn left_alone(&self, target: &Target, record: &TagRecord) -> Option<MirrorError> {
        if !stale_allowed(target.upstream.policy.stale_if_error, record.checked) {
            return None;
        }
        match target.upstream.client.pause() {
            Some(pause) => Some(MirrorError::paused(&target.repository, pause)),
            None => self.0.silent.get(&target.repository.registry),
        }
    }

    /// A tag that is not held, or whose manifest is not. `checked` is when the tag was checked last, if it ever was.
    async fn cold_tag(
        &self,
        target: &Target,
        tag: &Tag,
        checked: Option<Timestamp>,
    ) -> Result<ManifestAnswer, MirrorError> {
        if self.0.settings.offline {
            return Err(MirrorError::offline(&format!("{}:{tag}", target.repository)));
        }
        if let Some(error) = self.known_missing(target, Wanted::Manifest(Reference::Tag(tag.clone()))) {
            return Err(error);
        }
        let (checked, joined) = self.check_tag(target, tag, checked, None).await;
        match checked {
            // Unchanged since a check that ended a moment ago.
            Ok(Checked::Current { manifest, unchanged }) => {
                Ok(manifest.answer(if joined || unchanged { Outcome::Collapsed } else { Outcome::Miss }))
            }
            Ok(Checked::Gone { error, .. }) | Err(error) => Err(error),
        }
    }

    /// Asks upstream what a tag means, once however many ask. Goes on when nobody waits any longer. `judged` is when the tag
    /// had been checked last when its record was looked at, `held` what it then was, if that is held.
    async fn check_tag(
        &self,
        target: &Target,
        tag: &Tag,
        judged: Option<Timestamp>,
        held: Option<Digest>,
    ) -> (Result<Checked, MirrorError>, bool) {
        let key = (target.repository.clone(), tag.clone());
        let work = {
            let (mirror, target, key) = (self.clone(), target.clone(), key.clone());
            let wanted = Wanted::Manifest(Reference::Tag(tag.clone()));
            async move {
                // Another check may have ended between this one's being found necessary and its beginning.
                if let Some(manifest) = mirror.checked_since(&target, &key.1, judged).await {
                    return Ok(Checked::Current { manifest, unchanged: true });
                }
                if let Some(error) = mirror.known_missing(&target, wanted.clone()).filter(|_| held.is_none()) {
                    return Err(error);
                }
                let checked = mirror.heard(&target, mirror.check_tag_now(&target, &key.1, held).await);
                match (&checked, held) {
                    (Ok(_), _) => mirror.0.failed_checks.invalidate(&key),
                    (Err(error), Some(_)) => mirror.0.failed_checks.insert(key, error.clone()),
                    (Err(error), None) => mirror.remember_missing(&target, wanted, error),
                }
                checked
            }
            .boxed()
        };
        let (repository, tag) = key;
        self.0.tags.run("tag check", (repository, tag, target.via.clone()), work).await
    }

    /// What a tag means, if it was checked after whoever asks found it expired, or not there at all.
    async fn checked_since(&self, target: &Target, tag: &Tag, judged: Option<Timestamp>) -> Option<HeldManifest> {
        let record = self.tag_record(target, tag).await?;
        if record.gone.is_some() || judged.is_some_and(|judged| record.checked <= judged) {
            return None;
        }
        self.held_manifest(target, &record.digest).await
    }

    /// A HEAD, which is free where pulls are counted, and a GET *by digest* only when the tag moved.
    async fn check_tag_now(&self, target: &Target, tag: &Tag, held: Option<Digest>) -> Result<Checked, MirrorError> {
        let (client, repository) = (&target.upstream.client, &target.repository);
        let reference = Reference::Tag(tag.clone());
        let manifest = match client.head_manifest(repository, &reference, Access::Configured).await {
            Ok(head) => match head.digest {
                Some(digest) => self.manifest_for_tag(target, &digest).await?,
                None => self.get_by_tag(target, &reference).await?,
            },
            Err(error) if head_not_supported(&error) => self.get_by_tag(target, &reference).await?,
            // A HEAD has no body that could tell a registry's "not found" from a stray one. It matters when a tag that
            // is held would be forgotten.
            Err(UpstreamError { kind: UpstreamErrorKind::NotFound { .. }, .. }) if held.is_some() => {
                match client.get_manifest(repository, &reference, Access::Configured).await {
                    Ok(body) => self.keep_by_tag(target, body)?,
                    Err(error) if matches!(error.kind, UpstreamErrorKind::NotFound { oci_body: true }) => {
                        let record = self.record_deletion(target, tag).await;
                        return Ok(Checked::Gone { error: error.into(), record });
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        self.record_tag(target, tag, &manifest, held).await;
        Ok(Checked::Current { unchanged: held == Some(manifest.digest), manifest })
    }

    async fn manifest_for_tag(&self, target: &Target, digest: &Digest) -> Result<HeldManifest, MirrorError> {
        if let Some(held) = self.held_manifest(target, digest).await {
            return Ok(held);
        }
        // Upstream has just said that it's there, whatever it said a moment ago.
        self.0.missing.invalidate(&(target.repository.clone(), Wanted::Manifest(Reference::Digest(*digest))));
        self.fetch_manifest(target, digest).await.0
    }

    async fn get_by_tag(&self, target: &Target, reference: &Reference) -> Result<HeldManifest, MirrorError> {
        let body = target.upstream.client.get_manifest(&target.repository, reference, Access::Configured).await?;
        self.keep_by_tag(target, body)
    }

    fn keep_by_tag(&self, target: &Target, body: ManifestBody) -> Result<HeldManifest, MirrorError> {
        // The header, where there is one, names the algorithm that this registry uses; the bytes decide.
        let digest = body.digest.unwrap_or_else(|| Digest::sha256(&body.bytes));
        self.keep_manifest(target, digest, body.bytes, body.media_type.as_deref())
    }

    async fn record_tag(&self, target: &Target, tag: &Tag, manifest: &HeldManifest, held: Option<Digest>) {
        let now = Timestamp::now();
        let before = if held == Some(manifest.digest) { self.tag_record(target, tag).await } else { None };
        let record = TagRecord {
            digest: manifest.digest,
            media_type: manifest.media_type.to_string(),
            fetched: before.map_or(now, |record| record.fetched),
            checked: now,
            gone: None,
        };
        self.0.store.keep_tag(&target.repository, tag, record);
    }

    /// A tag whose check failed: stale beats error, where it's allowed (law 7).
    fn stale(
        &self,
        target: &Target,
        tag: &Tag,
        record: &TagRecord,
        manifest: HeldManifest,
        outcome: Outcome,
        failure: MirrorError,
    ) -> Result<ManifestAnswer, MirrorError> {
        if !stale_allowed(target.upstream.policy.stale_if_error, record.checked) {
            return Err(failure);
        }
        let age = record.checked.age().unwrap_or_default();
        let labels = UpstreamLabels { upstream: target.upstream.policy.label.to_string() };
        self.0.metrics.stale_served.get_or_create(&labels).inc();
        self.0.metrics.stale_age_seconds.get_or_create(&labels).set(age.as_secs_f64());
        if age > TRUSTED_FOR {
            self.tell_stale(target, tag, age, &failure);
        }
        let warning = format!("served stale, last confirmed {} s ago: {failure}", age.as_secs());
        Ok(ManifestAnswer { warning: Some(warning), ..manifest.answer(outcome) })
    }

    /// Notes now and then that a tag is still trusted though nobody has confirmed it for long.
    fn tell_stale(&self, target: &Target, tag: &Tag, age: Duration, failure: &MirrorError) {
        let key = (target.repository.clone(), tag.clone());
        if self.0.told_stale.get(&key).is_none() {
            self.0.told_stale.insert(key, ());
            let reason = format!("last confirmed {} hours ago: {failure}", age.as_secs() / 3600);
            audit::decided("served stale", &format!("{}:{tag}", target.repository), &reason);
        }
    }

    /// Records that upstream has deleted a tag, which is kept for a while so that what runs can be pulled again. `None`:
    /// that while is over, or nothing was recorded of it.
    async fn record_deletion(&self, target: &Target, tag: &Tag) -> Option<TagRecord> {
        let record = self.tag_record(target, tag).await?;
        let gone = record.gone.unwrap_or_else(Timestamp::now);
        let forget = is_forgotten(target.upstream.policy.deleted_tags, gone);
        let record = TagRecord { gone: Some(gone), checked: Timestamp::now(), ..record };
        if forget {
            self.0.store.forget_tag(&target.repository, tag);
        } else {
            self.0.store.keep_tag(&target.repository, tag, record.clone());
        }
        (!forget).then_some(record)
    }
}

/// The answer for a held tag, with a warning if upstream no longer has it.
fn deleted_or(target: &Target, record: &TagRecord, manifest: HeldManifest, outcome: Outcome) -> ManifestAnswer {
    let warning = record.gone.map(|gone| {
        let days = |time: Duration| time.as_secs() / 86400;
        let gone = days(gone.age().unwrap_or_default());
        let then = match target.upstream.policy.deleted_tags {
            DeletedTags::For(kept) => format!("; this mirror forgets it {} days after that", days(kept)),
            DeletedTags::Keep | DeletedTags::Forget => String::new(),
        };
        format!("upstream deleted this tag {gone} days ago{then}")
    });
    ManifestAnswer { warning, ..manifest.answer(outcome) }
}
