//! What an export takes along: the images that were asked for, what refers to them, and whether all of it is held.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::BundleError;
use super::layout::{IMAGES_MAX, Listed, Name};
use super::tree::{Content, Tree};
use crate::oci::referrers::{cosign_tags, fallback_tag};
use crate::oci::{Digest, ImageName, Reference, Repository};
use crate::store::{PinName, Store};

/// What is to be exported.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// These images.
    #[serde(default)]
    pub images: Vec<ImageName>,
    /// And all of this pin.
    #[serde(default)]
    pub pin: Option<PinName>,
    /// Of images for several platforms only these, such as `linux/amd64`; empty is what the pin says, or all.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// What refers to the images (signatures, SBOMs) as well.
    #[serde(default = "yes")]
    pub referrers: bool,
}

const fn yes() -> bool {
    true
}

/// What travels.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) images: Vec<Chosen>,
    pub(super) referrers: Vec<Chosen>,
    /// Referrers of which parts are missing, which stay behind.
    pub(super) left_behind: Vec<ImageName>,
}

/// An image, or what refers to one.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) name: ImageName,
    pub(super) listed: Listed,
    pub(super) tree: Tree,
}

/// What is looked for in the store.
struct Held<'a>(&'a Store);

// === impl Selection ===

impl Selection {
    /// Finds everything, and sees that it is held. Nothing is written before that.
    pub(super) async fn of(store: &Store, wanted: &Wanted) -> Result<Self, BundleError> {
        let (names, platforms) = roots(store, wanted)?;
        let (mut images, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            let chosen = choose(store, &name, &platforms).await?.ok_or_else(|| BundleError::NotHeld(name.clone()))?;
            missing.extend(chosen.tree.missing.iter().map(|what| format!("{name}: {what}")));
            images.push(chosen);
        }
        if !missing.is_empty() {
            return Err(BundleError::Incomplete(missing));
        }
        let mut selection = Self { images, referrers: Vec::new(), left_behind: Vec::new() };
        if wanted.referrers {
            selection.add_referrers(store).await?;
        }
        Ok(selection)
    }

    /// Everything that travels, with sizes.
    pub(super) fn blobs(&self) -> BTreeMap<Digest, u64> {
        self.images.iter().chain(&self.referrers).flat_map(|chosen| chosen.tree.contents()).collect()
    }

    /// Adds what refers to the images, and what refers to that.
    async fn add_referrers(&mut self, store: &Store) -> Result<(), BundleError> {
        let mut known: HashSet<ImageName> = self.images.iter().map(|chosen| chosen.name.clone()).collect();
        let subjects = |chosen: &Chosen| {
            let repository = chosen.name.repository.clone();
            let parts = chosen.tree.manifests.iter().map(|part| part.digest).collect::<Vec<_>>();
            parts.into_iter().map(move |digest| (repository.clone(), digest))
        };
        let mut pending: Vec<(Repository, Digest)> = self.images.iter().flat_map(subjects).collect();
        let mut looked: HashSet<(Repository, Digest)> = HashSet::new();
        while let Some(subject) = pending.pop() {
            if !looked.insert(subject.clone()) {
                continue;
            }
            for name in referring(store, &subject.0, &subject.1).await? {
                if !known.insert(name.clone()) {
                    continue;
                }
                if known.len() > IMAGES_MAX {
                    return Err(BundleError::TooMany { what: "images", limit: IMAGES_MAX });
                }
                let Some(chosen) = choose(store, &name, &[]).await? else { continue };
                if chosen.tree.missing.is_empty() {
                    pending.extend(subjects(&chosen));
                    self.referrers.push(chosen);
                } else {
                    self.left_behind.push(name);
                }
            }
        }
        self.referrers.sort_by_cached_key(|chosen| chosen.name.to_string());
        self.left_behind.sort_by_cached_key(ToString::to_string);
        Ok(())
    }
}

/// The images that were asked for, by name, and their platforms.
fn roots(store: &Store, wanted: &Wanted) -> Result<(Vec<ImageName>, Vec<String>), BundleError> {
    let mut names: BTreeMap<String, ImageName> = BTreeMap::new();
    let mut platforms = wanted.platforms.clone();
    let mut add = |images: &[ImageName]| names.extend(images.iter().map(|image| (image.to_string(), image.clone())));
    add(&wanted.images);
    if let Some(name) = &wanted.pin {
        let pin = store.pin_called(name).ok_or_else(|| BundleError::NoPin(name.clone()))?;
        add(&pin.roots);
        if platforms.is_empty() {
            platforms.clone_from(&pin.platforms);
        }
    }
    match names.len() {
        0 => Err(BundleError::Nothing("name images, or a pin that keeps some".to_owned())),
        count if count > IMAGES_MAX => Err(BundleError::TooMany { what: "images", limit: IMAGES_MAX }),
        _ => Ok((names.into_values().collect(), platforms)),
    }
}

/// An image with what belongs to it; `None` if nobody knows it.
async fn choose(store: &Store, name: &ImageName, platforms: &[String]) -> Result<Option<Chosen>, BundleError> {
    let ImageName { repository, reference } = name;
    let (digest, tagged_as) = match reference {
        Reference::Digest(digest) => (*digest, None),
        Reference::Tag(tag) => match store.tag(repository, tag).await? {
            Some(record) => (record.digest, Some(record.media_type)),
            None => return Ok(None),
        },
    };
    let record = store.manifest(repository, &digest).await?;
    let public = record.as_ref().is_some_and(|record| record.public);
    let Some(media_type) = record.map(|record| record.media_type.clone()).or(tagged_as) else { return Ok(None) };
    let tree = Tree::grow(&Held(store), digest, &media_type, platforms).await?;
    let size_bytes = tree.manifests.first().map_or(0, |part| part.size_bytes);
    let listed = Listed { name: Name::Full(name.clone()), digest, media_type, size_bytes, public: Some(public) };
    Ok(Some(Chosen { name: name.clone(), listed, tree }))
}

/// What refers to a manifest in its repository: by its `subject`, or by a tag that says so.
async fn referring(store: &Store, repository: &Repository, subject: &Digest) -> Result<Vec<ImageName>, BundleError> {
    let image = |reference| ImageName { repository: repository.clone(), reference };
    let (mut found, mut tagged) = (Vec::new(), BTreeSet::new());
    for tag in std::iter::once(fallback_tag(subject)).chain(cosign_tags(subject)) {
        if let Some(record) = store.tag(repository, &tag).await? {
            tagged.insert(record.digest);
            found.push(image(Reference::Tag(tag)));
        }
    }
    let by_subject = store.referring(repository, subject).await?;
    found.extend(
        by_subject.into_iter().filter(|digest| !tagged.contains(digest)).map(|digest| image(Reference::Digest(digest))),
    );
    Ok(found)
}

impl Content for Held<'_> {
    fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.0.size_of(digest)
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Bytes>, BundleError> {
        Ok(self.0.read_blob(digest).await?)
    }
}
