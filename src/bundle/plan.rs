//! The plan of an export: the files that a bundle is going to consist of, in order, and what there is to tell of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::BundleError;
use super::layout::{self, DockerImage, blob_path};
use super::selection::{Chosen, Selection, Wanted};
use super::tar::{end, header, padding};
use crate::oci::{Algorithm, Digest, ImageName, Reference, media};
use crate::store::Store;

/// An export that is about to be written: all that belongs to it is held, or was a moment ago.
#[derive(Debug)]
pub struct Plan {
    pub(super) files: Vec<PlannedFile>,
    pub(super) exported: Exported,
}

/// A file of a bundle that is to be written.
#[derive(Debug)]
pub(super) struct PlannedFile {
    /// Where it lies in the bundle; that of a folder ends with a slash.
    pub(super) path: String,
    pub(super) size_bytes: u64,
    pub(super) content: PlannedContent,
}

/// What a file of a bundle is to hold.
#[derive(Debug)]
pub(super) enum PlannedContent {
    Document(Vec<u8>),
    Folder,
    Blob(Digest),
}

/// What is, or was, exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The images, by name.
    pub images: Vec<ExportedImage>,
    /// What refers to them and travels along.
    pub referrers: Vec<ImageName>,
    /// What refers to them and stays behind, since it isn't all held.
    pub left_behind: Vec<ImageName>,
    /// How many blobs travel, manifests included.
    pub blobs: usize,
    /// How long they are together.
    pub bytes: u64,
    /// Whether tools that know no layouts (`docker load` without the containerd image store) can load it too.
    pub for_old_docker: bool,
    /// The digest of the bundle's `SHA256SUMS`: bundles that have the same are the same.
    pub sums: Digest,
}

/// An image that is, or was, exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedImage {
    /// Its name.
    pub image: ImageName,
    /// Its manifest or index.
    pub digest: Digest,
    /// Of an index, the platforms that travel.
    pub platforms: Vec<String>,
    /// Of an index, the platforms that are not held and stay behind.
    pub left_out: Vec<String>,
}

// === impl Plan ===

impl Plan {
    /// Finds all that is wanted, and sees that it is held.
    pub async fn of(store: &Store, wanted: &Wanted) -> Result<Self, BundleError> {
        let selection = Selection::of(store, wanted).await?;
        let blobs = selection.blobs();
        let docker = docker_images(&selection.images);
        let (for_old_docker, documents) = (docker.is_some(), documents(&selection, docker, &blobs));
        let sums = documents.last().map_or_else(|| Digest::sha256(b""), |(_, sums)| Digest::sha256(sums));
        let document = |(path, content): (&str, Vec<u8>)| {
            PlannedFile::new(path, content.len() as u64, PlannedContent::Document(content))
        };
        let mut files: Vec<_> = documents.into_iter().map(document).collect();
        add_blobs(&mut files, &blobs);
        Ok(Self { files, exported: Exported::of(&selection, &blobs, for_old_docker, sums) })
    }

    /// What there is to tell of it.
    pub fn exported(&self) -> &Exported {
        &self.exported
    }

    /// How long it is as a tar archive.
    pub fn archive_bytes(&self) -> u64 {
        let file = |file: &PlannedFile| {
            header(&file.path, file.size_bytes).len() as u64 + file.size_bytes + padding(file.size_bytes) as u64
        };
        self.files.iter().map(file).sum::<u64>() + end().len() as u64
    }
}

// === impl PlannedFile ===

impl PlannedFile {
    fn new(path: impl Into<String>, size_bytes: u64, content: PlannedContent) -> Self {
        Self { path: path.into(), size_bytes, content }
    }
}

/// The blobs as they lie in a folder, in the order of their names, each folder before what is in it.
fn add_blobs(files: &mut Vec<PlannedFile>, blobs: &BTreeMap<Digest, u64>) {
    let by_path: BTreeMap<String, (&Digest, &u64)> =
        blobs.iter().map(|(digest, size_bytes)| (blob_path(digest), (digest, size_bytes))).collect();
    let mut folder = String::new();
    for (path, (digest, size_bytes)) in by_path {
        let parents = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        if parents != folder {
            for parent in ["blobs/", &format!("{parents}/")].into_iter().skip(usize::from(!folder.is_empty())) {
                files.push(PlannedFile::new(parent, 0, PlannedContent::Folder));
            }
            parents.clone_into(&mut folder);
        }
        files.push(PlannedFile::new(path, *size_bytes, PlannedContent::Blob(*digest)));
    }
}

/// The documents of a bundle, in order; the checksums of all others come last.
fn documents(
    selection: &Selection,
    docker: Option<Vec<DockerImage>>,
    blobs: &BTreeMap<Digest, u64>,
) -> Vec<(&'static str, Vec<u8>)> {
    let list = |chosen: &[Chosen]| {
        let own = layout::with_tags_of_their_own(chosen.iter().map(|chosen| &chosen.name));
        layout::index(&chosen.iter().map(|chosen| chosen.listed.clone()).collect::<Vec<_>>(), &own)
    };
    let mut documents = vec![(layout::LAYOUT, layout::layout()), (layout::INDEX, list(&selection.images))];
    if !selection.referrers.is_empty() {
        documents.push((layout::REFERRERS, list(&selection.referrers)));
    }
    if let Some(images) = docker {
        documents.push((layout::DOCKER, layout::docker_index(&images)));
    }
    let of_documents = documents.iter().map(|(path, content)| ((*path).to_owned(), Digest::sha256(content).hex()));
    let of_blobs = blobs.keys().filter(|digest| digest.algorithm() == Algorithm::Sha256);
    let sums: Vec<_> = of_documents.chain(of_blobs.map(|digest| (blob_path(digest), digest.hex()))).collect();
    let sums = layout::sums(sums.iter().map(|(path, hex)| (path.as_str(), hex.clone())));
    documents.push((layout::SUMS, sums));
    documents
}

/// Docker's list of the images; `None` if it could not name one of them, for half a list would be half a load.
fn docker_images(images: &[Chosen]) -> Option<Vec<DockerImage>> {
    images.iter().map(docker_image).collect()
}

fn docker_image(image: &Chosen) -> Option<DockerImage> {
    let mut images = image.tree.images();
    let (Some(one), None) = (images.next(), images.next()) else { return None };
    let config = one.manifest.config.as_ref()?;
    let is_image = [media::OCI_CONFIG, media::DOCKER_CONFIG].contains(&config.media_type.as_str());
    let layers = &one.manifest.layers;
    let can_unpack = layers.iter().all(|layer| media::is_tar_or_gzip_layer(&layer.media_type) && !layer.is_foreign());
    let repo_tags = match &image.name.reference {
        Reference::Tag(_) => Some(vec![image.name.to_string()]),
        Reference::Digest(_) => None,
    };
    let layers = layers.iter().map(|layer| blob_path(&layer.digest)).collect();
    (is_image && can_unpack).then(|| DockerImage { config: blob_path(&config.digest), repo_tags, layers })
}

// === impl Exported ===

impl Exported {
    fn of(selection: &Selection, blobs: &BTreeMap<Digest, u64>, for_old_docker: bool, sums: Digest) -> Self {
        let image = |chosen: &Chosen| ExportedImage {
            image: chosen.name.clone(),
            digest: chosen.listed.digest,
            platforms: chosen.tree.platforms.clone(),
            left_out: chosen.tree.left_out.clone(),
        };
        Self {
            images: selection.images.iter().map(image).collect(),
            referrers: selection.referrers.iter().map(|chosen| chosen.name.clone()).collect(),
            left_behind: selection.left_behind.clone(),
            blobs: blobs.len(),
            bytes: blobs.values().sum(),
            for_old_docker,
            sums,
        }
    }
}
