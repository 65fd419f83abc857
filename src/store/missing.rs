//! What an image lacks: whether a pull of it is served to its last byte without asking anybody.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Store;
use super::error::StoreError;
use super::reach::is_of;
use crate::oci::manifest::{Descriptor, manifests_and_blobs};
use crate::oci::{Digest, ImageName, Reference};

/// What is held of an image, and what isn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Which one.
    pub image: ImageName,
    /// Its manifest, if that is known here.
    pub digest: Option<Digest>,
    /// Whether every byte that was asked for is held. What is held was verified. Who may have it is another question.
    pub complete: bool,
    /// What of it is held.
    pub held_bytes: u64,
    /// What belongs to it and isn't held, or isn't known to belong to its repository.
    pub missing: Vec<Digest>,
    /// The platforms that were asked for and that it has nothing for.
    pub absent_platforms: Vec<String>,
}

/// How long what was fetched just now may take to get to the disk.
const WRITTEN_MAX: Duration = Duration::from_secs(5);

// === impl Store ===

impl Store {
    /// What is held of an image: for these platforms, or for all if there are none, with what refers to it as far as that is
    /// known here. Signatures that were never fetched are not missed.
    pub async fn holding(
        &self,
        image: &ImageName,
        platforms: &[String],
        with_referrers: bool,
    ) -> Result<Holding, StoreError> {
        let repository = &image.repository;
        // A disk that hangs has not taken what it should hold, and that shows.
        let _ = timeout(WRITTEN_MAX, self.shared.written(repository)).await;
        let mut holding = Holding {
            image: image.clone(),
            digest: None,
            complete: false,
            held_bytes: 0,
            missing: Vec::new(),
            absent_platforms: Vec::new(),
        };
        let root = match &image.reference {
            Reference::Digest(digest) => self.manifest(repository, digest).await?.map(|_| *digest),
            Reference::Tag(tag) => self.tag(repository, tag).await?.map(|record| record.digest),
        };
        let Some(root) = root else { return Ok(holding) };
        holding.digest = Some(root);
        let (mut seen, mut manifests) = (HashSet::from([root]), vec![root]);
        while let Some(digest) = manifests.pop() {
            // Clients find a manifest only where it's recorded in this very repository.
            let record = self.manifest(repository, &digest).await?;
            holding.count(digest, self.size_of(&digest).filter(|_| record.is_some()));
            let Some(record) = record else { continue };
            let (children, blobs) = manifests_and_blobs(record.descriptors.iter());
            if digest == root && !children.is_empty() {
                let has = |wanted: &&String| children.iter().any(|child| is_for(child, wanted));
                holding.absent_platforms = platforms.iter().filter(|wanted| !has(wanted)).cloned().collect();
            }
            let wanted = |child: &&&Descriptor| {
                digest != root || platforms.is_empty() || platforms.iter().any(|wanted| is_for(child, wanted))
            };
            manifests
                .extend(children.iter().filter(wanted).map(|child| child.digest).filter(|child| seen.insert(*child)));
            for blob in blobs.into_iter().filter(|blob| seen.insert(blob.digest)) {
                holding.count(blob.digest, self.size_of(&blob.digest));
            }
            if with_referrers {
                let referring = self.referring(repository, &digest).await?;
                manifests.extend(referring.into_iter().filter(|manifest| seen.insert(*manifest)));
            }
        }
        holding.missing.sort_unstable();
        holding.complete = holding.missing.is_empty() && holding.absent_platforms.is_empty();
        Ok(holding)
    }
}

/// Whether a child of an index is for a platform.
fn is_for(child: &Descriptor, wanted: &str) -> bool {
    child.platform.as_ref().is_some_and(|platform| is_of(&platform.to_string(), wanted))
}

// === impl Holding ===

impl Holding {
    fn count(&mut self, digest: Digest, size_bytes: Option<u64>) {
        match size_bytes {
            Some(size_bytes) => self.held_bytes += size_bytes,
            None => self.missing.push(digest),
        }
    }
}
