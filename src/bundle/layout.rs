//! The documents of a bundle, read and written: OCI's `index.json`, Docker's `manifest.json`, and checksums. Pure.
//!
//! ```text
//! oci-layout       {"imageLayoutVersion":"1.0.0"}
//! index.json       the images, under their names
//! referrers.json   the same for what refers to them (signatures, SBOMs). Apart, since skopeo and podman take an archive
//!                  without being told what of it only where index.json lists one image
//! manifest.json    Docker's list of the same images, if each of them is for one platform: for tools that know no layouts
//! SHA256SUMS       of all the others, as `sha256sum -c` takes it
//! blobs/<alg>/<hex>
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::error::BundleError;
use crate::oci::{Algorithm, Descriptor, Digest, ImageName, Reference, Repository, media};

/// Says that this is a layout.
pub(super) const LAYOUT: &str = "oci-layout";
/// The images.
pub(super) const INDEX: &str = "index.json";
/// What refers to them.
pub(super) const REFERRERS: &str = "referrers.json";
/// The images as Docker lists them.
pub(super) const DOCKER: &str = "manifest.json";
/// Checksums of all other files.
pub(super) const SUMS: &str = "SHA256SUMS";
/// The documents, in the order in which they are written.
pub(super) const DOCUMENTS: [&str; 5] = [LAYOUT, INDEX, REFERRERS, DOCKER, SUMS];

/// No document is larger.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 32 << 20;

/// So many images are in a bundle at most.
pub(super) const IMAGES_MAX: usize = 50_000;

/// The full name of an image, as containerd, docker and podman read it.
const NAME: &str = "io.containerd.image.name";
/// Its name in the layout, as skopeo reads it: the tag, or the full name where several images have that tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Whether it was had without credentials. Clients without an account get nothing else from an offline mirror.
const PUBLIC: &str = "dev.cachalot.public";

/// An image, or what refers to one, in `index.json` or `referrers.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: Name,
    pub(super) digest: Digest,
    /// What the list calls it; empty if it doesn't.
    pub(super) media_type: String,
    pub(super) size_bytes: u64,
    /// Whether it was had without credentials; `None` if the bundle doesn't say.
    pub(super) public: Option<bool>,
}

/// What a bundle calls an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Full(ImageName),
    /// A tag of nobody knows which repository.
    Tag(String),
    /// Nothing.
    None,
}

/// An image as `manifest.json` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) layers: Vec<String>,
}

/// An index file, as far as it is read.
#[derive(Deserialize)]
struct IndexFile {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// What an `oci-layout` says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// Where a blob lies.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Which blob lies there; `None` if none does.
pub(super) fn blob_at(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    let algorithm = [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|known| known.as_str() == algorithm)?;
    Digest::from_hex(algorithm, hex).ok()
}

/// Which content a file of a Docker archive has, where its name says that: `<hex>.json`, `<hex>.tar`, and, as crane and what
/// is built on it write, `sha256:<hex>` and `<hex>.tar.gz`.
pub(super) fn docker_blob_at(path: &str) -> Option<Digest> {
    if let Ok(digest) = path.parse() {
        return Some(digest);
    }
    let hex = [".json", ".tar", ".tar.gz"].iter().find_map(|end| path.strip_suffix(end))?;
    Digest::from_hex(Algorithm::Sha256, hex).ok()
}

/// The content of `oci-layout`.
pub(super) fn layout() -> Vec<u8> {
    br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()
}

/// The content of `index.json` or `referrers.json`: always the same for the same list.
pub(super) fn index(listed: &[Listed], named_by_tag: &HashSet<ImageName>) -> Vec<u8> {
    let manifests: Vec<_> = listed.iter().map(|listed| descriptor(listed, named_by_tag)).collect();
    json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": manifests }).to_string().into_bytes()
}

fn descriptor(listed: &Listed, named_by_tag: &HashSet<ImageName>) -> serde_json::Value {
    let mut annotations = BTreeMap::new();
    if let Name::Full(name) = &listed.name {
        annotations.insert(NAME, name.to_string());
        let short = match &name.reference {
            Reference::Tag(tag) if named_by_tag.contains(name) => tag.to_string(),
            _ => name.to_string(),
        };
        annotations.insert(REF_NAME, short);
    }
    if let Some(public) = listed.public {
        annotations.insert(PUBLIC, public.to_string());
    }
    let Listed { digest, media_type, size_bytes, .. } = listed;
    json!({ "mediaType": media_type, "digest": digest, "size": size_bytes, "annotations": annotations })
}

/// Those of the images whose tag no other one of them has.
pub(super) fn with_tags_of_their_own<'a>(names: impl Iterator<Item = &'a ImageName>) -> HashSet<ImageName> {
    let mut by_tag: BTreeMap<String, Vec<&ImageName>> = BTreeMap::new();
    for name in names {
        by_tag.entry(name.reference.to_string()).or_default().push(name);
    }
    by_tag.into_values().filter(|names| names.len() == 1).flatten().cloned().collect()
}

/// Reads `index.json` or `referrers.json`.
pub(super) fn read_index(path: &str, bytes: &[u8]) -> Result<Vec<Listed>, BundleError> {
    let file: IndexFile = read_object(path, bytes)?;
    if file.manifests.len() > IMAGES_MAX {
        return Err(BundleError::TooMany { what: "images", limit: IMAGES_MAX });
    }
    let listed = |descriptor: Descriptor| Listed {
        name: name_of(&descriptor.annotations),
        digest: descriptor.digest,
        media_type: descriptor.media_type,
        size_bytes: descriptor.size_bytes,
        public: descriptor.annotations.get(PUBLIC).map(|public| public == "true"),
    };
    Ok(file.manifests.into_iter().map(listed).collect())
}

/// The image's name in its annotations. A name in the layout that has neither a slash nor a colon is a tag.
fn name_of(annotations: &BTreeMap<String, String>) -> Name {
    let full = |key: &str| annotations.get(key).and_then(|text| text.parse::<ImageName>().ok());
    if let Some(name) = full(NAME) {
        return Name::Full(name);
    }
    match annotations.get(REF_NAME) {
        Some(text) if text.contains(['/', ':']) => full(REF_NAME).map_or(Name::None, Name::Full),
        Some(text) => Name::Tag(text.clone()),
        None => Name::None,
    }
}

/// Sees that an `oci-layout` is one that we know.
pub(super) fn check_layout(bytes: &[u8]) -> Result<(), BundleError> {
    let file: LayoutFile = read_object(LAYOUT, bytes)?;
    match file.image_layout_version.split('.').next() {
        Some("1") => Ok(()),
        _ => Err(problem(LAYOUT, format!("layouts of version {:?} are not known here", file.image_layout_version))),
    }
}

/// Docker's `manifest.json`.
pub(super) fn docker_index(images: &[DockerImage]) -> Vec<u8> {
    json!(images).to_string().into_bytes()
}

/// Reads Docker's `manifest.json`.
pub(super) fn read_docker_index(bytes: &[u8]) -> Result<Vec<DockerImage>, BundleError> {
    let images: Vec<DockerImage> = read(DOCKER, bytes)?;
    if images.len() > IMAGES_MAX {
        return Err(BundleError::TooMany { what: "images", limit: IMAGES_MAX });
    }
    Ok(images)
}

/// The content of `SHA256SUMS`.
pub(super) fn sums<'a>(files: impl Iterator<Item = (&'a str, String)>) -> Vec<u8> {
    files.flat_map(|(path, hex)| format!("{hex}  {path}\n").into_bytes()).collect()
}

/// Compares the documents with their checksums.
pub(super) fn check_sums<'a>(sums: &[u8], document: impl Fn(&str) -> Option<&'a [u8]>) -> Result<(), BundleError> {
    let text = std::str::from_utf8(sums).map_err(|error| problem(SUMS, error.to_string()))?;
    let mut summed = BTreeSet::new();
    for line in text.lines() {
        let line_is_wrong = || problem(SUMS, format!("{:?} is no checksum", line.chars().take(80).collect::<String>()));
        let (hex, path) = line.split_once("  ").ok_or_else(line_is_wrong)?;
        let digest = Digest::from_hex(Algorithm::Sha256, hex).map_err(|_| line_is_wrong())?;
        if let Some(blob) = blob_at(path) {
            if blob != digest {
                return Err(line_is_wrong());
            }
            continue;
        }
        if !DOCUMENTS.contains(&path) || !summed.insert(path) {
            return Err(line_is_wrong());
        }
        let content = document(path).ok_or_else(|| problem(path, "it is not there, but has a checksum".to_owned()))?;
        crate::oci::Verified::check(&digest, content)
            .map_err(|mismatch| BundleError::Wrong { path: path.to_owned(), mismatch })?;
    }
    let unsummed = |path: &&&str| **path != SUMS && document(path).is_some() && !summed.contains(**path);
    match DOCUMENTS.iter().find(unsummed) {
        Some(path) => Err(problem(SUMS, format!("there is no checksum of {path}"))),
        None => Ok(()),
    }
}

/// The name of an image under a repository that was asked for; `None` if its tag is none.
pub(super) fn renamed(listed: &Listed, repository: &Repository) -> Option<ImageName> {
    let reference = match &listed.name {
        Name::Full(name) => match &name.reference {
            Reference::Tag(tag) => Reference::Tag(tag.clone()),
            Reference::Digest(_) => Reference::Digest(listed.digest),
        },
        Name::Tag(tag) => Reference::Tag(tag.parse().ok()?),
        Name::None => Reference::Digest(listed.digest),
    };
    Some(ImageName { repository: repository.clone(), reference })
}

/// Reads a JSON object. The derived reader would take an array as the fields in their order.
fn read_object<'de, T: Deserialize<'de>>(path: &str, bytes: &'de [u8]) -> Result<T, BundleError> {
    match bytes.trim_ascii_start().first() {
        Some(b'{') => read(path, bytes),
        _ => Err(problem(path, "it does not start as a JSON object".to_owned())),
    }
}

fn read<'de, T: Deserialize<'de>>(path: &str, bytes: &'de [u8]) -> Result<T, BundleError> {
    serde_json::from_slice(bytes).map_err(|error| problem(path, error.to_string().chars().take(200).collect()))
}

pub(super) fn problem(path: &str, problem: String) -> BundleError {
    BundleError::Document { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> ImageName {
        name.parse().unwrap()
    }

    fn listed(name: Name) -> Listed {
        let digest = Digest::sha256(b"manifest");
        Listed { name, digest, media_type: media::OCI_MANIFEST.to_owned(), size_bytes: 8, public: Some(true) }
    }

    #[test]
    fn what_is_listed_is_read_again() {
        let by_digest = format!("quay.io/a@{}", Digest::sha256(b"manifest"));
        let list =
            ["nginx:1", "quay.io/a/nginx:1", "quay.io/a:2", &by_digest].map(|name| listed(Name::Full(image(name))));
        let names = list.iter().map(|listed| match &listed.name {
            Name::Full(name) => name,
            _ => unreachable!(),
        });
        let own = with_tags_of_their_own(names);
        assert_eq!(own, [image("quay.io/a:2"), image(&by_digest)].into());
        let written = index(&list, &own);
        assert_eq!(read_index(INDEX, &written).unwrap(), list);
        let json: serde_json::Value = serde_json::from_slice(&written).unwrap();
        let names: Vec<_> = json["manifests"].as_array().unwrap().iter().map(|m| &m["annotations"][REF_NAME]).collect();
        assert_eq!(names, ["docker.io/library/nginx:1", "quay.io/a/nginx:1", "2", &by_digest]);
    }

    #[test]
    fn names_are_found_where_tools_put_them() {
        let name = |pairs: &[(&str, &str)]| {
            name_of(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        assert_eq!(name(&[(NAME, "docker.io/library/x:1"), (REF_NAME, "1")]), Name::Full(image("x:1")));
        assert_eq!(name(&[(REF_NAME, "quay.io/a/b:1")]), Name::Full(image("quay.io/a/b:1")));
        assert_eq!(name(&[(REF_NAME, "busybox:1")]), Name::Full(image("busybox:1")));
        assert_eq!(name(&[(REF_NAME, "1.27")]), Name::Tag("1.27".to_owned()));
        assert_eq!(name(&[(REF_NAME, "A/B")]), Name::None);
        assert_eq!(name(&[]), Name::None);
        let repository = image("quay.io/x/y").repository;
        for (found, wanted) in
            [(Name::Tag("v1".to_owned()), "quay.io/x/y:v1"), (Name::Full(image("a:2")), "quay.io/x/y:2")]
        {
            assert_eq!(renamed(&listed(found), &repository), Some(image(wanted)));
        }
        assert_eq!(renamed(&listed(Name::Tag("!".to_owned())), &repository), None);
        let digest = Digest::sha256(b"manifest");
        assert_eq!(renamed(&listed(Name::None), &repository), Some(image(&format!("quay.io/x/y@{digest}"))));
    }

    #[test]
    fn blobs_lie_where_their_digests_say() {
        for digest in [Digest::sha256(b""), Digest::of(Algorithm::Sha512, b"")] {
            assert_eq!(blob_at(&blob_path(&digest)), Some(digest));
        }
        for path in ["blobs", "blobs/sha256", "blobs/sha256/ab", "blobs/md5/ab", "x/sha256/ab", "index.json"] {
            assert_eq!(blob_at(path), None, "{path}");
        }
        let digest = Digest::sha256(b"x");
        for name in [format!("{}.tar", digest.hex()), format!("{}.tar.gz", digest.hex()), digest.to_string()] {
            assert_eq!(docker_blob_at(&name), Some(digest), "{name}");
        }
        assert_eq!(docker_blob_at("a/layer.tar"), None);
    }

    #[test]
    fn every_changed_byte_of_a_document_or_its_checksums_is_noticed() {
        let index = b"{\"manifests\":[]}".to_vec();
        let digest = Digest::sha256(&index);
        let blob = Digest::sha256(b"blob");
        let right = sums([(INDEX, digest.hex()), (&blob_path(&blob), blob.hex())].into_iter());
        let check = |sums: &[u8], index: &[u8]| check_sums(sums, |path| (path == INDEX).then_some(index));
        check(&right, &index).unwrap();
        for at in 0..index.len() {
            let mut wrong = index.clone();
            wrong[at] ^= 1;
            assert!(check(&right, &wrong).is_err(), "{at}");
        }
        for at in 0..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            assert!(check(&wrong, &index).is_err(), "{at}");
        }
        assert!(check_sums(b"", |path| (path == INDEX).then_some(&index)).is_err());
    }

    #[test]
    fn documents_that_make_no_sense_are_refused() {
        check_layout(&layout()).unwrap();
        for bad in ["", "{}", "[]", "{\"imageLayoutVersion\":\"2.0\"}"] {
            assert!(check_layout(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in ["", "[]", "{\"manifests\":[{}]}", "{\"manifests\":[],\"manifests\":[]}", "{\"manifests\":7}"] {
            assert!(read_index(INDEX, bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(read_docker_index(b"{}").is_err());
        assert!(read_docker_index(br#"[{"Config":"a.json","RepoTags":null,"Layers":["b.tar"]}]"#).is_ok());
    }
}
