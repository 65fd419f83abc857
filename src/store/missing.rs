//! What an image lacks: whether a pull of it is served to its last byte without asking anybody.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Store;
use super::reach::{reach, referrers};
use crate::oci::{Digest, ImageName};

/// What is held of an image, and what isn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Which one.
    pub image: ImageName,
    /// Its manifest, if that is known here.
    pub digest: Option<Digest>,
    /// Whether every byte that was asked for is held. What is held was verified.
    pub complete: bool,
    /// What of it is held.
    pub held_bytes: u64,
    /// What belongs to it and isn't held.
    pub missing: Vec<Digest>,
    /// The platforms that were asked for and that it has nothing for.
    pub absent_platforms: Vec<String>,
}

// === impl Store ===

impl Store {
    /// What is held of an image: for these platforms, or for all if there are none, with what refers to it as far as that is
    /// known here. Signatures that were never fetched are not missed.
    pub async fn holding(&self, image: &ImageName, platforms: &[String], with_referrers: bool) -> Holding {
        let view = self.shared.view().await;
        let mut holding = Holding {
            image: image.clone(),
            digest: None,
            complete: false,
            held_bytes: 0,
            missing: Vec::new(),
            absent_platforms: Vec::new(),
        };
        let Some(root) = self.shared.catalog.read().resolve(image) else { return holding };
        holding.digest = Some(root);
        let referring = if with_referrers { referrers(view.lines.iter()) } else { HashMap::default() };
        let reached = reach([root], |digest| view.lines.get(digest), &referring, platforms);
        for digest in reached {
            match view.held.get(&digest) {
                Some((size_bytes, _)) => holding.held_bytes += size_bytes,
                None => holding.missing.push(digest),
            }
        }
        holding.missing.sort_unstable();
        if let Some(lines) = view.lines.get(&root).filter(|lines| !lines.platforms.is_empty()) {
            let absent = |platform: &&String| !lines.has_platform(platform);
            holding.absent_platforms = platforms.iter().filter(absent).cloned().collect();
        }
        holding.complete =
            view.lines.contains_key(&root) && holding.missing.is_empty() && holding.absent_platforms.is_empty();
        holding
    }
}
