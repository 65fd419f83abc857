//! What an image consists of, part by part: manifests, configurations and layers, and what of it is held and shared.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Store;
use super::error::StoreError;
use crate::oci::manifest::{Descriptor, manifests_and_blobs};
use crate::oci::{Digest, ImageName};

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePart {
    /// What it is.
    pub digest: Digest,
    /// What kind of content it is; empty if nobody said.
    pub media_type: String,
    /// How long it is, as far as that is known.
    pub size_bytes: u64,
    /// The platform of an index that it belongs to.
    pub platform: Option<String>,
    /// Whether it is held.
    pub held: bool,
    /// How many images use it, this one included.
    pub images: usize,
}

/// So many parts are looked at.
const PARTS_MAX: usize = 20_000;

// === impl Store ===

impl Store {
    /// The parts of an image, those of an index by its platforms in their order; each once. None if the image isn't held.
    pub async fn parts_of(&self, image: &ImageName) -> Result<Vec<ImagePart>, StoreError> {
        let Some(root) = self.shared.catalog.read().resolve(image) else { return Ok(Vec::new()) };
        let users = self.shared.view().await.users();
        let part = |digest: Digest, media_type: &str, size_bytes, platform: &Option<String>| ImagePart {
            digest,
            media_type: media_type.to_owned(),
            size_bytes,
            platform: platform.clone(),
            held: self.size_of(&digest).is_some(),
            images: users.get(&digest).map_or(0, HashSet::len),
        };
        let (mut parts, mut seen, mut manifests) = (Vec::new(), HashSet::from([root]), vec![(root, None)]);
        while let Some((digest, platform)) = manifests.pop() {
            let Some(record) = self.manifest(&image.repository, &digest).await? else {
                parts.push(part(digest, "", self.size_of(&digest).unwrap_or_default(), &platform));
                continue;
            };
            parts.push(part(digest, &record.media_type, record.size_bytes, &platform));
            let fresh = record.descriptors.iter().filter(|listed| !listed.is_foreign() && seen.insert(listed.digest));
            let (children, blobs) = manifests_and_blobs(fresh);
            parts.extend(blobs.iter().map(|blob| part(blob.digest, &blob.media_type, blob.size_bytes, &platform)));
            let named = |child: &&Descriptor| child.platform.as_ref().map(ToString::to_string).or(platform.clone());
            manifests.extend(children.iter().rev().map(|child| (child.digest, named(child))));
            if parts.len() > PARTS_MAX {
                parts.truncate(PARTS_MAX);
                break;
            }
        }
        Ok(parts)
    }
}
