//! Images: what is held, as people think of it, and the removal of one with all that only it used.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::order::Candidate;
use super::pins::PinName;
use super::reach::{Lines, Scope, reach};
use super::{Shared, Store};
use crate::clock::Timestamp;
use crate::oci::{Digest, ImageName, Platform, Reference, media};

/// A held image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldImage {
    /// Its name: with its tag, or with its digest if it has none.
    pub image: ImageName,
    /// Its manifest.
    pub digest: Digest,
    /// What of it is held, manifests included.
    pub size_bytes: u64,
    /// The part of that which other images use as well.
    pub shared_bytes: u64,
    /// What it runs on, as far as that is held.
    pub platforms: Vec<String>,
    /// Whether everything that it lists is held, for every platform.
    pub complete: bool,
    /// When anything asked for it last.
    pub last_used: Timestamp,
    /// The pins that keep it.
    pub pins: Vec<PinName>,
}

/// A held blob that takes much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLayer {
    /// What it is.
    pub digest: Digest,
    /// How long it is.
    pub size_bytes: u64,
    /// Who uses it.
    pub images: Vec<ImageName>,
}

/// What became of removing an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// How much room that made, as it counts.
    pub freed_bytes: u64,
    /// How many blobs went, manifests included.
    pub blobs: usize,
    /// How many blobs stayed because somebody was reading them. Nothing keeps them any longer.
    pub in_use: usize,
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It isn't there.
    #[error("{0} is not held")]
    Absent(ImageName),
    /// A pin keeps it.
    #[error("{image} is kept by the pin {pin}; unpin that first")]
    Pinned {
        /// The image.
        image: ImageName,
        /// The pin, or one of several.
        pin: PinName,
    },
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was known at one moment.
pub(super) struct View {
    images: Vec<(ImageName, Digest)>,
    pub(super) lines: HashMap<Digest, Lines>,
    /// Size and stamp of what is held.
    pub(super) held: HashMap<Digest, (u64, u64)>,
}

// === impl Store ===

impl Store {
    /// All held images, by name.
    pub async fn images(&self) -> Result<Vec<HeldImage>, StoreError> {
        self.images_where(|_, _| true, usize::MAX).await
    }

    /// The first `limit` of the held images that are wanted, by name, which is given as a text as well.
    pub async fn images_where(
        &self,
        wanted: impl Fn(&ImageName, &str) -> bool,
        limit: usize,
    ) -> Result<Vec<HeldImage>, StoreError> {
        let view = self.shared.view().await;
        let users = view.users();
        let mut named: Vec<_> = view.images.iter().map(|(image, digest)| (image.to_string(), image, digest)).collect();
        named.retain(|(text, image, _)| wanted(image, text));
        named.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
        named.truncate(limit);
        let mut rows = Vec::new();
        for (_, image, digest) in named {
            let reached = view.reach([*digest]);
            let held = |digest: &&Digest| view.held.contains_key(*digest);
            let size = |digest: &Digest| view.held.get(digest).map_or(0, |(size_bytes, _)| *size_bytes);
            let is_shared = |digest: &&Digest| users.get(*digest).is_some_and(|users| users.len() > 1);
            rows.push(HeldImage {
                image: image.clone(),
                digest: *digest,
                size_bytes: reached.iter().map(size).sum(),
                shared_bytes: reached.iter().filter(is_shared).map(size).sum(),
                platforms: self.platforms(&view, digest).await,
                complete: reached.iter().filter(held).count() == reached.len(),
                last_used: Timestamp(view.held.get(digest).map_or(0, |(_, stamp)| stamp / 1000)),
                pins: self.pins_of(image),
            });
        }
        Ok(rows)
    }

    /// The largest blobs that are held, at most `limit` of them.
    pub async fn largest_layers(&self, limit: usize) -> Vec<HeldLayer> {
        let view = self.shared.view().await;
        let users = view.users();
        let mut sizes: Vec<_> = view.held.iter().map(|(digest, (size_bytes, _))| (*size_bytes, *digest)).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let layer = |(size_bytes, digest): (u64, Digest)| {
            let users = users.get(&digest);
            let uses = |image: &Digest| users.is_some_and(|users| users.contains(image));
            let names = view.images.iter().filter(|(_, digest)| uses(digest)).map(|(image, _)| image.clone());
            HeldLayer { digest, size_bytes, images: names.collect() }
        };
        sizes.into_iter().take(limit).map(layer).collect()
    }

    /// Removes an image, and frees what only it used.
    pub async fn remove_image(&self, image: &ImageName) -> Result<Removed, RemoveError> {
        self.shared.written(&image.repository).await;
        let view = self.shared.view().await;
        let found = view.images.iter().find(|(name, digest)| {
            let by_digest = matches!(&image.reference, Reference::Digest(wanted) if wanted == digest);
            name == image || (by_digest && name.repository == image.repository)
        });
        let digest = found.map(|(_, digest)| *digest).ok_or_else(|| RemoveError::Absent(image.clone()))?;
        if let Some(pin) = self.pins_of(image).into_iter().next() {
            return Err(RemoveError::Pinned { image: image.clone(), pin });
        }
        let is_it = |(name, target): &&(ImageName, Digest)| {
            name == image
                || (matches!(image.reference, Reference::Digest(_))
                    && name.repository == image.repository
                    && *target == digest)
        };
        let reached = view.reach([digest]);
        let gone: Vec<_> = view.images.iter().filter(is_it).map(|(name, _)| name.clone()).collect();
        // Manifests without a tag that the image leads to are its own, unless another repository has them.
        let others = view.images.iter().filter(|(name, target)| {
            let part = matches!(name.reference, Reference::Digest(_))
                && name.repository == image.repository
                && reached.contains(target);
            !gone.contains(name) && !part
        });
        let kept = view.reach(others.map(|(_, digest)| *digest));
        for name in gone {
            if let Reference::Tag(tag) = &name.reference {
                self.remove_tag(&name.repository, tag).await?;
            }
        }
        let mut free: Vec<Digest> = reached.difference(&kept).copied().collect();
        free.sort_unstable();
        Ok(self.shared.remove_blobs(free).await)
    }

    /// What an image runs on: what its index says of the children that are held, or else its configuration.
    async fn platforms(&self, view: &View, digest: &Digest) -> Vec<String> {
        let Some(lines) = view.lines.get(digest) else { return Vec::new() };
        let children = lines.children.iter().zip(lines.platforms.iter());
        let named: Vec<String> =
            children.filter(|(child, _)| view.held.contains_key(*child)).filter_map(|(_, p)| p.clone()).collect();
        if !lines.platforms.is_empty() {
            return named;
        }
        let Some(config) = lines.children.first() else { return Vec::new() };
        let small = view.held.get(config).is_some_and(|(size_bytes, _)| *size_bytes <= media::CONFIG_BYTES_MAX);
        if !small {
            return Vec::new();
        }
        let Ok(Some(bytes)) = self.peek_blob(config).await else { return Vec::new() };
        let platform = serde_json::from_slice::<Platform>(&bytes).ok();
        platform.filter(|platform| !platform.os.is_empty()).map(|platform| platform.to_string()).into_iter().collect()
    }
}

// === impl Shared ===

impl Shared {
    pub(super) async fn view(self: &Arc<Self>) -> View {
        let _ = self.loaded.subscribe().wait_for(|loaded| *loaded).await;
        let shared = self.clone();
        let look = move || {
            let (images, lines) = {
                let catalog = shared.catalog.read();
                (catalog.images(), catalog.lines())
            };
            let index = shared.ledger.read();
            let stamps: HashMap<_, _> = index.candidates().into_iter().map(|c| (c.digest, c.stamp)).collect();
            let held = index
                .sizes()
                .into_iter()
                .filter_map(|(digest, size_bytes)| stamps.get(&digest).map(|stamp| (digest, (size_bytes, *stamp))));
            View { images, lines: lines.into_iter().collect(), held: held.collect() }.without_parts()
        };
        self.io.reading.run(look).await
    }

    /// Everything that any image leads to, held or not.
    pub(super) async fn listed_anywhere(self: &Arc<Self>) -> HashSet<Digest> {
        let view = self.view().await;
        view.reach(view.images.iter().map(|(_, digest)| *digest))
    }

    /// Removes blobs that nothing keeps, and their records. Those that are being read stay for now.
    pub(super) async fn remove_blobs(self: &Arc<Self>, digests: Vec<Digest>) -> Removed {
        let _turn = self.evictor.lock().await;
        let held = |digest: &&Digest| self.ledger.read().size_of(digest).is_some();
        let count = digests.iter().filter(held).count();
        let candidates: Vec<_> = digests.iter().map(|digest| Candidate { digest: *digest, stamp: u64::MAX }).collect();
        let victims = self.ledger.change(|index| index.begin_evict(&candidates, 0, u64::MAX));
        let chosen = victims.len();
        let (freed_bytes, blobs) = self.evict_all(victims).await;
        Removed { freed_bytes, blobs, in_use: count - chosen.min(count) }
    }
}

// === impl View ===

impl View {
    fn reach(&self, roots: impl IntoIterator<Item = Digest>) -> HashSet<Digest> {
        reach(roots, |digest| self.lines.get(digest), &HashMap::new(), Scope::default())
    }

    /// Leaves out manifests without a tag that another image of their repository leads to: they are part of that.
    fn without_parts(mut self) -> Self {
        let tagged = |(name, _): &&(ImageName, Digest)| matches!(name.reference, Reference::Tag(_));
        let mut parts: HashSet<(ImageName, Digest)> = HashSet::new();
        let mut by_repository: HashMap<_, Vec<Digest>> = HashMap::new();
        for (name, digest) in self.images.iter().filter(tagged) {
            by_repository.entry(&name.repository).or_default().push(*digest);
        }
        let children: HashSet<Digest> = self
            .images
            .iter()
            .filter(|image| !tagged(image))
            .filter_map(|(_, digest)| self.lines.get(digest))
            .flat_map(|lines| lines.children.iter().copied())
            .collect();
        let reached: HashMap<_, _> =
            by_repository.into_iter().map(|(repository, roots)| (repository, self.reach(roots))).collect();
        for image in self.images.iter().filter(|image| !tagged(image)) {
            let of_a_tag = reached.get(&image.0.repository).is_some_and(|reached| reached.contains(&image.1));
            if of_a_tag || children.contains(&image.1) {
                parts.insert(image.clone());
            }
        }
        self.images.retain(|image| !parts.contains(image));
        self
    }

    /// Which images, by their digests, use each blob.
    pub(super) fn users(&self) -> HashMap<Digest, HashSet<Digest>> {
        let mut users: HashMap<Digest, HashSet<Digest>> = HashMap::new();
        for root in self.images.iter().map(|(_, digest)| *digest).collect::<HashSet<_>>() {
            for digest in self.reach([root]) {
                users.entry(digest).or_default().insert(root);
            }
        }
        users
    }
}
