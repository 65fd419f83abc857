//! What a bundle says: its images, judged as a whole, and recorded only when all of them are there and right.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::docker;
use super::error::BundleError;
use super::import::Options;
use super::intake::Intake;
use super::layout::{self, IMAGES_MAX, Listed, Name, renamed};
use super::tree::{Content, Part, Tree};
use crate::clock::Timestamp;
use crate::oci::{Digest, ImageName, Reference, Repository, Verified, media};
use crate::store::{ManifestRecord, Store, TagRecord};

/// An image of a bundle, or what refers to one.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) name: ImageName,
    pub(super) listed: Listed,
    pub(super) tree: Tree,
    pub(super) is_referrer: bool,
    pub(super) is_made_here: bool,
}

/// What a bundle lists.
#[derive(Debug, Default)]
pub(super) struct Lists {
    images: Vec<Listed>,
    referrers: Vec<Listed>,
    docker: Vec<layout::DockerImage>,
}

/// What is looked for in a bundle that was taken in.
struct Brought<'a> {
    store: &'a Store,
    blobs: &'a HashMap<Digest, u64>,
}

// === impl Lists ===

impl Lists {
    /// Reads the documents of a bundle.
    pub(super) fn read(documents: &BTreeMap<String, Bytes>) -> Result<Self, BundleError> {
        let document = |path: &str| documents.get(path).map(|bytes| &bytes[..]);
        if let Some(sums) = document(layout::SUMS) {
            layout::check_sums(sums, document)?;
        }
        let Some(index) = document(layout::INDEX) else {
            let docker = document(layout::DOCKER).ok_or(BundleError::NoBundle)?;
            return Ok(Self { docker: layout::read_docker_index(docker)?, ..Self::default() });
        };
        let missing = || layout::problem(layout::LAYOUT, "it is not there, so this is no OCI layout".to_owned());
        layout::check_layout(document(layout::LAYOUT).ok_or_else(missing)?)?;
        let images = layout::read_index(layout::INDEX, index)?;
        let referrers = document(layout::REFERRERS).map(|bytes| layout::read_index(layout::REFERRERS, bytes));
        Ok(Self { images, referrers: referrers.transpose()?.unwrap_or_default(), ..Self::default() })
    }

    /// Sees that there is something to import, and that it has names.
    pub(super) fn check_names(&self, under: Option<&Repository>) -> Result<(), BundleError> {
        if self.images.is_empty() && self.docker.is_empty() {
            return Err(BundleError::Nothing("the bundle lists no images".to_owned()));
        }
        if under.is_some() {
            return Ok(());
        }
        let tags = self.images.iter().filter_map(|listed| match &listed.name {
            Name::Tag(tag) => Some(format!("{tag:?} is only a tag")),
            Name::Full(_) | Name::None => None,
        });
        let docker = self.docker.iter().filter(|image| image.repo_tags.as_ref().is_none_or(Vec::is_empty));
        let nameless: Vec<_> = tags.chain(docker.map(|image| format!("{} has no tag", image.config))).collect();
        let named = self.images.iter().any(|listed| matches!(listed.name, Name::Full(_))) || !self.docker.is_empty();
        match (nameless.is_empty(), named) {
            (true, true) => Ok(()),
            (false, _) => Err(BundleError::Nameless(nameless)),
            (true, false) => Err(nameless_digests(self.images.iter())),
        }
    }
}

fn nameless_digests<'a>(listed: impl Iterator<Item = &'a Listed>) -> BundleError {
    BundleError::Nameless(listed.map(|listed| format!("{} has no name", listed.digest)).collect())
}

/// Judges a bundle that was taken in: every image must be there and right.
pub(super) async fn judge(
    store: &Store,
    intake: &mut Intake<'_>,
    options: &Options,
) -> Result<Vec<Judged>, BundleError> {
    let under = options.under.as_ref();
    let mut lists = Lists::read(&intake.found.documents)?;
    lists.check_names(under)?;
    let made_here = !lists.docker.is_empty();
    for image in std::mem::take(&mut lists.docker) {
        lists.images.extend(make(store, intake, &image).await?);
    }
    let all = lists.images.into_iter().map(|listed| (listed, false));
    let all: Vec<_> = all.chain(lists.referrers.into_iter().map(|listed| (listed, true))).collect();
    if all.len() > IMAGES_MAX {
        return Err(BundleError::TooMany { what: "images", limit: IMAGES_MAX });
    }
    let content = Brought { store, blobs: &intake.found.blobs };
    let (mut judged, mut nameless) = (Vec::new(), Vec::new());
    for (listed, is_referrer) in all {
        let tree = match (grow(&content, &listed).await, &mut intake.left_out) {
            (Err(error @ (BundleError::Missing { .. } | BundleError::Manifest { .. })), Some(left_out)) => {
                left_out.push(error.to_string());
                continue;
            }
            (tree, _) => tree?,
        };
        let name = match (under, &listed.name) {
            (Some(repository), _) => renamed(&listed, repository),
            (None, Name::Full(name)) => Some(name.clone()),
            (None, _) => None,
        };
        match name {
            Some(name) => {
                let name = options.canonical.of(&name).map_err(|what| layout::problem(layout::INDEX, what))?;
                judged.push(Judged { name, listed, tree, is_referrer, is_made_here: made_here });
            }
            None => nameless.push((listed, tree)),
        }
    }
    place_referrers(&mut judged, nameless)?;
    without_twins(judged)
}

/// Looks at an image of which all must be there.
async fn grow(content: &Brought<'_>, listed: &Listed) -> Result<Tree, BundleError> {
    let what = match &listed.name {
        Name::Full(name) => name.to_string(),
        Name::Tag(_) | Name::None => listed.digest.to_string(),
    };
    let mut tree = Tree::grow(content, listed.digest, &listed.media_type, &[]).await?;
    if let Some(found_bytes) = content.size_of(&listed.digest)
        && listed.size_bytes != found_bytes
    {
        let problem = format!("{} is listed with {} bytes and has {found_bytes}", listed.digest, listed.size_bytes);
        tree.missing.push(problem);
    }
    if tree.missing.is_empty() { Ok(tree) } else { Err(BundleError::Missing { what, missing: tree.missing }) }
}

/// What has no name but refers to a named image belongs into its repository.
fn place_referrers(judged: &mut Vec<Judged>, mut nameless: Vec<(Listed, Tree)>) -> Result<(), BundleError> {
    loop {
        let of_part = |image: &Judged| {
            let repository = image.name.repository.clone();
            image
                .tree
                .manifests
                .iter()
                .map(|part| part.digest)
                .map(|digest| (digest, repository.clone()))
                .collect::<Vec<_>>()
        };
        let homes: HashMap<Digest, Repository> = judged.iter().flat_map(of_part).collect();
        let home = |tree: &Tree| {
            let subject = tree.manifests.first()?.manifest.subject.as_ref()?;
            homes.get(&subject.digest).cloned()
        };
        let before = nameless.len();
        let (placed, rest): (Vec<_>, Vec<_>) = nameless.into_iter().partition(|(_, tree)| home(tree).is_some());
        for (listed, tree) in placed {
            let Some(repository) = home(&tree) else { continue };
            let name = ImageName { repository, reference: Reference::Digest(listed.digest) };
            judged.push(Judged { name, listed, tree, is_referrer: true, is_made_here: false });
        }
        nameless = rest;
        match nameless.len() {
            0 => return Ok(()),
            left if left == before => return Err(nameless_digests(nameless.iter().map(|(listed, _)| listed))),
            _ => {}
        }
    }
}

/// Two images of one name are one, or a mistake.
fn without_twins(judged: Vec<Judged>) -> Result<Vec<Judged>, BundleError> {
    let mut by_name: HashMap<ImageName, Digest> = HashMap::new();
    let mut single = Vec::new();
    for image in judged {
        match by_name.insert(image.name.clone(), image.listed.digest) {
            None => single.push(image),
            Some(digest) if digest == image.listed.digest => {}
            Some(_) => return Err(BundleError::SameName(image.name)),
        }
    }
    Ok(single)
}

/// Makes the manifest of an image of a Docker archive, once for each of its names.
async fn make(store: &Store, intake: &mut Intake<'_>, image: &layout::DockerImage) -> Result<Vec<Listed>, BundleError> {
    let digest = docker::config_of(image, &intake.found)?;
    let too_large = || layout::problem(&image.config, "it is too large for a configuration".to_owned());
    if intake.found.blobs.get(&digest).is_none_or(|size_bytes| *size_bytes > media::CONFIG_BYTES_MAX) {
        return Err(too_large());
    }
    let config = store.read_blob(&digest).await?.ok_or(BundleError::Gone(digest))?;
    let bytes = Bytes::from(docker::manifest(image, &config, &intake.found)?);
    let (digest, size_bytes) = (Digest::sha256(&bytes), bytes.len() as u64);
    let verified = Verified::check(&digest, &bytes)
        .map_err(|mismatch| BundleError::Wrong { path: layout::DOCKER.to_owned(), mismatch })?;
    intake.put(verified, bytes).await?;
    intake.found.blobs.insert(digest, size_bytes);
    let listed = |name| Listed { name, digest, media_type: media::OCI_MANIFEST.to_owned(), size_bytes, public: None };
    let tags = image.repo_tags.iter().flatten();
    let names: Result<Vec<_>, _> = tags.map(|tag| tag.parse::<ImageName>().map(Name::Full)).collect();
    let names = names.map_err(|error| layout::problem(layout::DOCKER, error.to_string()))?;
    Ok(if names.is_empty() { vec![listed(Name::None)] } else { names.into_iter().map(listed).collect() })
}

/// Records what was judged: manifests first, children before those that list them, then tags.
pub(super) async fn record(store: &Store, judged: &[Judged], public: Option<bool>) -> Result<(), BundleError> {
    for image in judged {
        if let Some((digest, _)) = image.tree.contents().find(|(digest, _)| store.size_of(digest).is_none()) {
            return Err(BundleError::Gone(digest));
        }
    }
    // Else a mirror without credentials would take all that it holds for everybody's.
    if judged.iter().any(|image| !image.is_public(public)) {
        store.note_credentials().await?;
    }
    for image in judged {
        let public = image.is_public(public);
        let carried: BTreeSet<Digest> = image.tree.contents().map(|(digest, _)| digest).collect();
        for part in image.tree.manifests.iter().rev() {
            let record = manifest_record(part, public, &carried);
            if !store.put_manifest(&image.name.repository, part.digest, record).await? {
                return Err(BundleError::NotRecorded(image.name.to_string()));
            }
        }
    }
    for image in judged {
        let Reference::Tag(tag) = &image.name.reference else { continue };
        let now = Timestamp::now();
        let media_type = image.tree.manifests.first().map(|part| part.manifest.media_type.clone()).unwrap_or_default();
        let record = TagRecord { digest: image.listed.digest, media_type, fetched: now, checked: now, gone: None };
        if !store.put_tag(&image.name.repository, tag, record).await? {
            return Err(BundleError::NotRecorded(image.name.to_string()));
        }
    }
    Ok(())
}

/// What a manifest's record says. Whoever has the bundle has all that it carries, so that belongs where it is listed; what a
/// manifest only names may be somebody else's.
fn manifest_record(part: &Part, public: bool, carried: &BTreeSet<Digest>) -> ManifestRecord {
    let listed = part.manifest.descriptors().map(|listed| listed.digest);
    let confirmed = listed.filter(|digest| carried.contains(digest)).collect();
    ManifestRecord::of(&part.manifest, part.size_bytes, public, confirmed)
}

// === impl Judged ===

impl Judged {
    /// Whether clients without an account may have it: as the operator says, else as the bundle does, else yes, for who imports
    /// a file has decided to give it out.
    pub(super) fn is_public(&self, said: Option<bool>) -> bool {
        said.or(self.listed.public).unwrap_or(true)
    }
}

impl Content for Brought<'_> {
    fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).copied()
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Bytes>, BundleError> {
        // What the store holds of others is not the bundle's.
        if self.blobs.contains_key(digest) { Ok(self.store.read_blob(digest).await?) } else { Ok(None) }
    }
}
