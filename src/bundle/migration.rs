//! What other programs hold, seen as a bundle: the storage of a docker-registry, and that of containerd.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::bolt::{Bucket, Item};
use super::error::{BundleError, at};
use super::files::{self, Found};
use super::layout::{self, IMAGES_MAX, Listed, Name, blob_path, problem};
use super::reading::{File, Lies};
use crate::oci::{Algorithm, Digest, ImageName, Reference, RegistryName, Repository};

/// Names and their manifests.
type Names = BTreeMap<String, (ImageName, Digest)>;

/// containerd's folders.
const CONTENT: &str = "io.containerd.content.v1.content/blobs";
/// See [`CONTENT`].
const METADATA: &str = "io.containerd.metadata.v1.bolt/meta.db";

/// No database of containerd's is larger.
const METADATA_BYTES_MAX: u64 = 512 << 20;

/// A link to a digest is no longer.
const LINK_BYTES_MAX: u64 = 256;

/// Folders of repositories are this deep at most: as many segments as a name can have.
const DEPTH_MAX: usize = 128;

/// The storage folder of a docker-registry (distribution), whose images are those of `registry`.
pub(super) fn registry(root: &Path, registry: &RegistryName) -> Result<Vec<File>, BundleError> {
    let below = root.join("docker/registry/v2");
    let base = if below.is_dir() { below } else { root.to_owned() };
    let mut blobs = BTreeMap::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for shard in files::entries(&base.join("blobs").join(algorithm.as_str()))? {
            for found in files::entries(&shard.path)? {
                let Ok(digest) = Digest::from_hex(algorithm, &found.name) else { continue };
                let data = found.path.join("data");
                if let Some(size_bytes) = files::size_of(&data)? {
                    blobs.insert(digest, (data, size_bytes));
                }
            }
        }
    }
    let (mut tagged, mut others) = (Names::new(), Names::new());
    let mut pending = vec![(base.join("repositories"), String::new(), 0)];
    while let Some((folder, name, depth)) = pending.pop() {
        for found in files::entries(&folder)?.into_iter().filter(|found| found.is_folder) {
            if found.name == "_manifests" {
                let Ok(repository) = name.parse() else { continue };
                let repository = Repository { registry: registry.clone(), name: repository };
                note_repository(&found.path, &repository, &mut tagged, &mut others)?;
            } else if !found.name.starts_with('_') && depth < DEPTH_MAX {
                let separator = if name.is_empty() { "" } else { "/" };
                pending.push((found.path, format!("{name}{separator}{}", found.name), depth + 1));
            }
        }
    }
    as_bundle(root, blobs, &tagged, &others)
}

fn note_repository(
    manifests: &Path,
    repository: &Repository,
    tagged: &mut Names,
    others: &mut Names,
) -> Result<(), BundleError> {
    let note = |reference, digest, names: &mut Names| {
        let image = ImageName { repository: repository.clone(), reference };
        names.insert(image.to_string(), (image, digest));
    };
    for tag in files::entries(&manifests.join("tags"))? {
        let link = tag.path.join("current/link");
        if let (Ok(reference), Some(digest)) = (tag.name.parse(), read_link(&link)?) {
            note(Reference::Tag(reference), digest, tagged);
        }
    }
    // Signatures and the like have no tags, and neither have the images that a tag has left.
    for algorithm in files::entries(&manifests.join("revisions"))? {
        for revision in files::entries(&algorithm.path)? {
            if let Some(digest) = read_link(&revision.path.join("link"))? {
                note(Reference::Digest(digest), digest, others);
            }
        }
    }
    Ok(())
}

fn read_link(link: &Path) -> Result<Option<Digest>, BundleError> {
    match files::size_of(link)? {
        Some(bytes) if bytes <= LINK_BYTES_MAX => {
            let text = files::read(link, LINK_BYTES_MAX)?;
            Ok(std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()))
        }
        _ => Ok(None),
    }
}

/// containerd's root folder (`/var/lib/containerd`): its images in all namespaces. It may run meanwhile.
pub(super) fn containerd(root: &Path) -> Result<Vec<File>, BundleError> {
    let mut blobs = BTreeMap::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for Found { name, path, .. } in files::entries(&root.join(CONTENT).join(algorithm.as_str()))? {
            if let (Ok(digest), Some(size_bytes)) = (Digest::from_hex(algorithm, &name), files::size_of(&path)?) {
                blobs.insert(digest, (path, size_bytes));
            }
        }
    }
    let metadata = root.join(METADATA);
    let database = files::read(&metadata, METADATA_BYTES_MAX)?;
    let unreadable = || problem(&metadata.display().to_string(), "it is no database that can be read".to_owned());
    let mut names = Names::new();
    let top = Bucket::top(&database).and_then(|top| top.bucket("v1")).ok_or_else(unreadable)?;
    for (_, namespace) in top.items().ok_or_else(unreadable)? {
        let Item::Bucket(namespace) = namespace else { continue };
        let Some(images) = namespace.bucket("images") else { continue };
        for (name, image) in images.items().ok_or_else(unreadable)? {
            if let Some(found) = image_of(name, image) {
                names.insert(found.0.to_string(), found);
            }
        }
    }
    as_bundle(root, blobs, &names, &Names::new())
}

/// The name and manifest of an image of containerd's. Kubernetes has a name for each by the digest of its configuration too,
/// which no registry knows.
fn image_of(name: &[u8], image: Item<'_>) -> Option<(ImageName, Digest)> {
    let Item::Bucket(image) = image else { return None };
    let name = std::str::from_utf8(name).ok().filter(|name| name.contains('/'))?;
    let digest = std::str::from_utf8(image.bucket("target")?.value("digest")?).ok()?;
    Some((name.parse().ok()?, digest.parse().ok()?))
}

/// The files of a bundle of all that.
fn as_bundle(
    root: &Path,
    blobs: BTreeMap<Digest, (PathBuf, u64)>,
    tagged: &Names,
    others: &Names,
) -> Result<Vec<File>, BundleError> {
    if blobs.is_empty() {
        return Err(at(root)(std::io::Error::other("there are no blobs in it; name the program's storage folder")));
    }
    if tagged.len() + others.len() > IMAGES_MAX {
        return Err(BundleError::TooMany { what: "images", limit: IMAGES_MAX });
    }
    let list = |names: &Names| {
        let listed = names.values().map(|(image, digest)| Listed {
            name: Name::Full(image.clone()),
            digest: *digest,
            media_type: String::new(),
            size_bytes: blobs.get(digest).map_or(0, |(_, size_bytes)| *size_bytes),
            public: None,
        });
        let content = layout::index(&listed.collect::<Vec<_>>(), &std::collections::HashSet::new());
        Lies::Here(Bytes::from(content))
    };
    let document = |path: &str, content| File { path: path.to_owned(), content };
    let mut bundle = vec![
        document(layout::LAYOUT, Lies::Here(Bytes::from(layout::layout()))),
        document(layout::INDEX, list(tagged)),
        document(layout::REFERRERS, list(others)),
    ];
    let file = |(digest, (path, size_bytes)): (Digest, _)| File {
        path: blob_path(&digest),
        content: Lies::At(path, size_bytes),
    };
    bundle.extend(blobs.into_iter().map(file));
    Ok(bundle)
}
