//! Referrers (signatures, SBOMs): upstream's list, or the fallback tag where upstream has no such API.

use futures_util::FutureExt;

use crate::clock::Timestamp;
use crate::oci::referrers::{self, Referrers};
use crate::oci::{Digest, Reference};
use crate::store::{ListName, ListRecord};
use crate::upstream::{self, Access, UpstreamErrorKind};

use super::Mirror;
use super::error::{MirrorError, MirrorErrorKind};
use super::outcome::Outcome;
use super::rights::Probe;
use super::tag_list::ListAnswer;
use super::upstreams::Target;

/// The referrers of a manifest.
#[derive(Debug)]
pub struct ReferrersAnswer {
    /// An OCI image index.
    pub body: String,
    /// It was filtered by artifact type.
    pub filtered: bool,
    /// How it came about.
    pub outcome: Outcome,
    /// What a client should be warned of.
    pub warning: Option<String>,
}

// === impl Mirror ===

impl Mirror {
    /// What refers to `subject`, filtered by artifact type if any is named. Never "not found", and never an empty list
    /// that nobody gave us: that could switch off a signature policy. Offline, where nobody can be asked, such a list says so.
    pub async fn referrers(
        &self,
        target: &Target,
        subject: &Digest,
        artifact_types: &[String],
    ) -> Result<ReferrersAnswer, MirrorError> {
        let reference = Reference::Digest(*subject);
        let found = match self.check_readable(target, Probe::Manifest(&reference)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => self.referrers_list(target, subject).await.map_err(never_not_found),
        };
        let ListAnswer { list, outcome, warning } =
            found.map_err(|error| error.about(&target.repository, &format!("@{subject}")))?;
        let mut found = Referrers::parse(list.body.as_bytes())
            .map_err(|error| MirrorError::new(MirrorErrorKind::Internal, error.to_string()))?;
        if !artifact_types.is_empty() {
            found.filter(artifact_types);
        }
        Ok(ReferrersAnswer { body: found.into_json(), filtered: !artifact_types.is_empty(), outcome, warning })
    }

    /// The list as upstream has it, or why there is none.
    pub(super) async fn referrers_list(&self, target: &Target, subject: &Digest) -> Result<ListAnswer, MirrorError> {
        if self.0.settings.offline {
            return self.held_referrers(target, subject).await;
        }
        // Strangers can ask for any digest; only lists about manifests that are held are worth a file.
        let kept = matches!(self.0.store.manifest(&target.repository, subject).await, Ok(Some(_)));
        let work = {
            let (target, subject) = (target.clone(), *subject);
            async move { fetch(&target, &subject).await }.boxed()
        };
        self.list(target, ListName::Referrers(*subject), kept, work).await
    }
}

async fn fetch(target: &Target, subject: &Digest) -> Result<ListRecord, MirrorError> {
    let (client, repository) = (&target.upstream.client, &target.repository);
    let list = match client.referrers(repository, subject).await? {
        upstream::Referrers::List(list) => list,
        upstream::Referrers::Unsupported => {
            let tag = referrers::fallback_tag(subject);
            match client.get_manifest(repository, &Reference::Tag(tag), Access::Configured).await {
                Ok(body) => parse(target, &body.bytes)?,
                Err(error) if matches!(error.kind, UpstreamErrorKind::NotFound { .. }) => Referrers::empty(),
                Err(error) => return Err(error.into()),
            }
        }
    };
    Ok(ListRecord { fetched: Timestamp::now(), body: list.into_json() })
}

fn parse(target: &Target, bytes: &[u8]) -> Result<Referrers, MirrorError> {
    Referrers::parse(bytes).map_err(|error| {
        MirrorError::new(
            MirrorErrorKind::Unusable,
            format!(
                "{} sent a list of referrers for {} that can't be used: {error}",
                target.repository.registry, target.repository
            ),
        )
    })
}

/// A registry that has this endpoint must not answer it with 404 (distribution specification, "listing referrers").
fn never_not_found(error: MirrorError) -> MirrorError {
    match error.kind {
        MirrorErrorKind::UnknownName
        | MirrorErrorKind::UnknownManifest
        | MirrorErrorKind::UnknownBlob
        | MirrorErrorKind::Denied => MirrorError { kind: MirrorErrorKind::Unavailable, ..error },
        _ => error,
    }
}
