//! Import: a bundle is taken into a store, all of it or nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Seen;
use super::error::BundleError;
use super::files::{self, Incoming, Stream};
use super::intake::{Found, Intake};
use super::migration;
use super::reading::Reader;
use super::recording::{Judged, Lists, judge, record};
use crate::clock::Timestamp;
use crate::oci::{Digest, ImageName, Reference, RegistryName, Repository};
use crate::store::{Pin, PinName, Store};

/// Where a bundle comes from.
pub enum Source {
    /// A file or a folder, which is looked at as a whole before anything is written.
    Path(PathBuf),
    /// An archive on the standard input.
    Stdin,
    /// An archive from whatever gives it.
    Stream(Stream),
    /// The storage folder of a docker-registry, whose images are those of a registry of this name. What is not complete there
    /// is left out.
    Registry(PathBuf, RegistryName),
    /// The root folder of a containerd. What is not complete there is left out.
    Containerd(PathBuf),
}

/// How a bundle is imported.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// All images belong to this repository, whatever the bundle calls them.
    pub under: Option<Repository>,
    /// The images are kept by this pin, beside what it keeps already.
    pub pin: Option<PinName>,
    /// Whether clients without an account may have the images, whatever the bundle says of that.
    pub public: Option<bool>,
    /// What is damaged or not complete is left out, and told, instead of ending it all.
    pub partly: bool,
    /// How registries that have several names are called here.
    pub canonical: Canonical,
}

/// An image by the canonical name of its registry, as everything that is kept has it, or why it has none.
#[derive(Clone)]
pub struct Canonical(Arc<Naming>);

type Naming = dyn Fn(&ImageName) -> Result<ImageName, String> + Send + Sync;

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The images, as the bundle lists them.
    pub images: Vec<ImportedImage>,
    /// What refers to them.
    pub referrers: Vec<ImageName>,
    /// How many blobs were not held before.
    pub brought_blobs: usize,
    /// How long these are together.
    pub brought_bytes: u64,
    /// How many blobs of the bundle were held already.
    pub held_blobs: usize,
    /// How many blobs of the bundle no image of it needs; they were not kept.
    pub unused_blobs: usize,
    /// What was left out, and why, in sentences.
    pub left_out: Vec<String>,
}

/// An image that was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedImage {
    /// Its name.
    pub image: ImageName,
    /// Its manifest or index.
    pub digest: Digest,
    /// Of an index, the platforms that came along.
    pub platforms: Vec<String>,
    /// Of an index, the platforms that are not in the bundle.
    pub left_out: Vec<String>,
    /// Whether clients without an account may have it.
    pub public: bool,
    /// The bundle had no manifest of it, so one was made.
    pub is_made_here: bool,
}

/// The name under which partials lie while they are written.
#[expect(clippy::expect_used, reason = "a few letters are always the name of a registry")]
fn registry() -> RegistryName {
    "import".parse().expect("a legal name")
}

/// Takes a bundle in. Records are written only when all of it is there and right; of one that isn't, nothing stays. What was
/// interrupted can be done once more, and comes to the same.
pub async fn import(
    store: &Store,
    source: Source,
    options: &Options,
    seen: &Seen<'_>,
) -> Result<Imported, BundleError> {
    let pool = files::pool()?;
    let partly = options.partly || source.is_storage();
    let (mut reader, survey) = match source {
        Source::Path(path) if files::is_special(&path) => (Reader::open(&path, &pool).await?, None),
        Source::Path(path) => {
            let survey = look(store, &mut Reader::open(&path, &pool).await?, options).await?;
            (Reader::open(&path, &pool).await?, Some(survey))
        }
        Source::Registry(path, name) => {
            let survey = look(store, &mut Reader::files(migration::registry(&path, &name)?, &pool), options).await?;
            (Reader::files(migration::registry(&path, &name)?, &pool), Some(survey))
        }
        Source::Containerd(path) => {
            let survey = look(store, &mut Reader::files(migration::containerd(&path)?, &pool), options).await?;
            (Reader::files(migration::containerd(&path)?, &pool), Some(survey))
        }
        Source::Stdin => {
            let stdin = Incoming::stdin(&pool)?;
            (Reader::archive(stdin).await.map_err(BundleError::Stream)?, None)
        }
        Source::Stream(stream) => {
            let stream = Incoming::stream(stream);
            (Reader::archive(stream).await.map_err(BundleError::Stream)?, None)
        }
    };
    let mut intake = Intake::new(store, registry(), pool.clone());
    intake.left_out = partly.then(Vec::new);
    let taken = take(store, &mut intake, &mut reader, survey.as_ref(), options, seen).await;
    let judged = match taken {
        Ok(judged) => judged,
        Err(error) => {
            drop(reader);
            // Removing a partial takes a moment.
            store.settled().await;
            // Of a stream that broke off, what came is kept for the next attempt: it is right, and belongs to no image yet.
            if !matches!(error, BundleError::Stream(_)) {
                store.remove_unlisted(intake.brought).await;
            }
            return Err(error);
        }
    };
    let needed: HashSet<Digest> =
        judged.iter().flat_map(|image| image.tree.contents()).map(|(digest, _)| digest).collect();
    let unused: Vec<Digest> = intake.found.blobs.keys().filter(|digest| !needed.contains(digest)).copied().collect();
    let imported = Imported::of(&judged, &intake, options, unused.len());
    intake.brought.retain(|digest| !needed.contains(digest));
    store.remove_unlisted(intake.brought).await;
    Ok(imported)
}

/// Looks at a bundle before anything is written: has it names, and is there room for it?
async fn look(store: &Store, reader: &mut Reader, options: &Options) -> Result<Found, BundleError> {
    let survey = Found::survey(reader).await?;
    Lists::read(&survey.documents)?.check_names(options.under.as_ref())?;
    check_room(store, survey.blobs.iter().map(|(digest, size_bytes)| (*digest, *size_bytes))).await?;
    Ok(survey)
}

/// Whether a store has room for those of these blobs that it doesn't hold.
pub async fn check_room(store: &Store, blobs: impl IntoIterator<Item = (Digest, u64)>) -> Result<(), BundleError> {
    let missing = blobs.into_iter().filter(|(digest, _)| store.size_of(digest).is_none());
    let sizes: Vec<u64> = missing.map(|(_, size_bytes)| size_bytes).collect();
    store.check_room(&sizes).await.map_err(BundleError::NoRoom)
}

async fn take(
    store: &Store,
    intake: &mut Intake<'_>,
    reader: &mut Reader,
    survey: Option<&Found>,
    options: &Options,
    seen: &Seen<'_>,
) -> Result<Vec<Judged>, BundleError> {
    intake.take(reader, survey, seen).await?;
    let judged = judge(store, intake, options).await?;
    record(store, &judged, options.public).await?;
    if let Some(name) = &options.pin {
        pin(store, name, &judged).await?;
    }
    Ok(judged)
}

/// Keeps the images by a pin, beside what it keeps already: a bundle of the same file name must not take back the promise
/// that an earlier one was given.
async fn pin(store: &Store, name: &PinName, judged: &[Judged]) -> Result<(), BundleError> {
    // What refers to images by a tag of its own is not found by looking at the images.
    let is_found = |image: &&Judged| image.is_referrer && matches!(image.name.reference, Reference::Digest(_));
    let roots = judged.iter().filter(|image| !is_found(image)).map(|image| image.name.clone()).collect();
    let pin = Pin { roots, platforms: Vec::new(), referrers: true, created: Timestamp::now() };
    Ok(store.widen_pin(name, pin).await?)
}

/// The pin that a bundle gets where nobody says another: named after its file.
pub fn pin_name(path: &Path) -> Result<PinName, BundleError> {
    const ENDS: [&str; 6] = [".gz", ".tgz", ".zst", ".zstd", ".tar", ".oci"];
    let file_name = path.canonicalize().ok();
    let file_name = file_name.as_deref().unwrap_or(path).file_name().unwrap_or_default();
    let file_name = file_name.to_string_lossy();
    let mut name = &*file_name;
    while let Some(rest) = ENDS.iter().find_map(|end| name.strip_suffix(end)) {
        name = rest;
    }
    let legal = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let legal: String = name.chars().map(legal).take(128).collect();
    legal.trim_start_matches(['.', '-']).parse().map_err(|_| BundleError::NoPinName(name.to_owned()))
}

// === impl Source ===

impl Source {
    /// Whether it is what another program keeps, which need not be complete.
    pub(super) fn is_storage(&self) -> bool {
        matches!(self, Self::Registry(..) | Self::Containerd(_))
    }
}

// === impl Imported ===

impl Imported {
    fn of(judged: &[Judged], intake: &Intake<'_>, options: &Options, unused_blobs: usize) -> Self {
        let image = |image: &Judged| ImportedImage {
            image: image.name.clone(),
            digest: image.listed.digest,
            platforms: image.tree.platforms.clone(),
            left_out: image.tree.left_out.clone(),
            public: image.is_public(options.public),
            is_made_here: image.is_made_here,
        };
        let brought: HashSet<&Digest> = intake.brought.iter().collect();
        let is_referrer = |image: &&Judged| image.is_referrer;
        Self {
            images: judged.iter().filter(|image| !image.is_referrer).map(image).collect(),
            referrers: judged.iter().filter(is_referrer).map(|image| image.name.clone()).collect(),
            brought_blobs: brought.len(),
            brought_bytes: intake.brought_bytes,
            held_blobs: intake.found.blobs.keys().filter(|digest| !brought.contains(digest)).count(),
            unused_blobs,
            left_out: intake.left_out.clone().unwrap_or_default(),
        }
    }
}

// === impl Canonical ===

impl Canonical {
    /// Names are as this makes them.
    pub fn new(naming: impl Fn(&ImageName) -> Result<ImageName, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(naming))
    }

    pub(super) fn of(&self, image: &ImageName) -> Result<ImageName, String> {
        (self.0)(image)
    }
}

impl Default for Canonical {
    /// Each registry has one name.
    fn default() -> Self {
        Self(Arc::new(|image| Ok(image.clone())))
    }
}

impl std::fmt::Debug for Canonical {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Canonical")
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stdin => f.write_str("Stdin"),
            Self::Stream(_) => f.write_str("Stream"),
            Self::Registry(path, name) => f.debug_tuple("Registry").field(path).field(name).finish(),
            Self::Containerd(path) => f.debug_tuple("Containerd").field(path).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_named_after_files() {
        for (path, name) in [
            ("/x/release-1.2.tar", "release-1.2"),
            ("images.tar.gz", "images"),
            ("a b.tgz", "a-b"),
            ("/media/usb/bundle/", "bundle"),
            (".hidden.oci.tar.zst", "hidden"),
        ] {
            assert_eq!(pin_name(Path::new(path)).unwrap().as_str(), name, "{path}");
        }
        assert!(pin_name(Path::new("/")).is_err());
        assert!(pin_name(Path::new("---")).is_err());
    }
}
