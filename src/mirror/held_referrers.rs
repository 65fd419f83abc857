//! Referrers offline: those that are held, whatever upstream's list said.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::oci::Digest;
use crate::oci::referrers::Referrers;
use crate::store::{ListName, ListRecord, StoreError};

use super::Mirror;
use super::error::{MirrorError, MirrorErrorKind};
use super::outcome::Outcome;
use super::tag_list::ListAnswer;
use super::upstreams::Target;

// === impl Mirror ===

impl Mirror {
    /// What is held of what refers to `subject`. An empty list is a list too, but whoever gets it is warned where nobody ever
    /// looked for more: a signature that was not fetched is not one that does not exist.
    pub(super) async fn held_referrers(&self, target: &Target, subject: &Digest) -> Result<ListAnswer, MirrorError> {
        let internal = |error: String| MirrorError::new(MirrorErrorKind::Internal, error);
        let store = &self.0.store;
        // A list that can't be read is none (law 6).
        let told = store.list(&target.repository, &ListName::Referrers(*subject)).await.unwrap_or_default();
        let mut list = match &told {
            Some(told) => Referrers::parse(told.body.as_bytes()).map_err(|error| internal(error.to_string()))?,
            None => Referrers::empty(),
        };
        let known = list.len();
        list.retain(|digest| store.size_of(digest).is_some());
        let warning = match (&told, known - list.len()) {
            (None, _) => Some("this mirror is offline, and nobody has asked upstream what refers to this".to_owned()),
            (Some(_), 0) => None,
            (Some(_), absent) => {
                Some(format!("this mirror is offline, and {absent} of {known} referrers are not held"))
            }
        };
        let recorded = self.recorded_referrers(target, subject).await.map_err(|error| internal(error.to_string()))?;
        list.merge(recorded).map_err(|error| internal(error.to_string()))?;
        let list = Arc::new(ListRecord { fetched: Timestamp::now(), body: list.into_json() });
        Ok(ListAnswer { list, outcome: Outcome::Hit, warning })
    }

    /// Those that were fetched without a list, or imported.
    async fn recorded_referrers(&self, target: &Target, subject: &Digest) -> Result<Referrers, StoreError> {
        let store = &self.0.store;
        let mut list = Referrers::empty();
        for digest in store.referring(&target.repository, subject).await? {
            let Some(record) = store.manifest(&target.repository, &digest).await? else { continue };
            if let Some(bytes) = store.read_blob(&digest).await? {
                // What can't be read refers to nothing.
                let _ = list.add(&digest, &record.media_type, &bytes);
            }
        }
        Ok(list)
    }
}
