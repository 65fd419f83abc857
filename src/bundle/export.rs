//! Export: held images become a bundle, each byte verified once more on its way out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;
use tokio::io::AsyncWrite;

use super::error::BundleError;
use super::files::{self, CHUNK_BYTES, NewFile, NewFolder, Outgoing};
use super::hashing::Hashing;
use super::layout::{self, DockerImage, blob_path};
use super::selection::{Chosen, Selection, Wanted};
use super::writing::{Archive, Folder, Sink, Target};
use super::{Progress, Seen};
use crate::oci::{Algorithm, Digest, ImageName, Reference, media};
use crate::store::Store;
use crate::tasks::Pool;

/// So many chunks of a blob are read ahead.
const READ_AHEAD: usize = 3;

/// Where a bundle is written to.
pub enum Destination {
    /// A tar archive, which gets its name when it is whole.
    File(PathBuf),
    /// A folder, which gets its name when it is whole.
    Folder(PathBuf),
    /// A tar archive on the standard output.
    Stdout,
    /// A tar archive into whatever takes it.
    Stream(Pin<Box<dyn AsyncWrite + Send>>),
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
}

/// An image that was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// Writes a bundle. The same content always makes the same bytes.
///
/// Where the bundle has a name it gets that at the very end. A stream that broke off in the middle ends within a file, and
/// never behind a wrong byte's blob.
pub async fn export(
    store: &Store,
    wanted: &Wanted,
    destination: Destination,
    seen: &Seen<'_>,
) -> Result<Exported, BundleError> {
    let selection = Selection::of(store, wanted).await?;
    let pool = files::pool()?;
    match destination {
        Destination::File(path) if files::is_special(&path) => {
            let outgoing = Outgoing::special(&path, &pool)?;
            write(store, &selection, &pool, &mut Archive::new(Target::File(outgoing)), seen).await?;
        }
        Destination::File(path) => {
            let file = NewFile::beside(&path)?;
            let outgoing = file.outgoing(&pool)?;
            write(store, &selection, &pool, &mut Archive::new(Target::File(outgoing)), seen).await?;
            file.keep()?;
        }
        Destination::Folder(path) => {
            let folder = NewFolder::beside(&path)?;
            write(store, &selection, &pool, &mut Folder::new(folder.path().to_owned(), pool.clone()), seen).await?;
            folder.keep()?;
        }
        Destination::Stdout => {
            let outgoing = Outgoing::stdout(&pool)?;
            write(store, &selection, &pool, &mut Archive::new(Target::File(outgoing)), seen).await?;
        }
        Destination::Stream(stream) => {
            write(store, &selection, &pool, &mut Archive::new(Target::Stream(stream)), seen).await?;
        }
    }
    Ok(Exported::of(&selection))
}

async fn write(
    store: &Store,
    selection: &Selection,
    pool: &Pool,
    sink: &mut impl Sink,
    seen: &Seen<'_>,
) -> Result<(), BundleError> {
    let blobs = selection.blobs();
    for (path, content) in documents(selection, &blobs) {
        sink.begin(path, content.len() as u64).await?;
        sink.write(Bytes::from(content)).await?;
        sink.end().await?;
    }
    let mut progress = Progress { done_bytes: 0, total_bytes: Some(blobs.values().sum()) };
    seen(&progress);
    // As they lie in a folder: in the order of their names.
    let by_path: BTreeMap<String, Digest> = blobs.keys().map(|digest| (blob_path(digest), *digest)).collect();
    let mut folder = String::new();
    for (path, digest) in by_path {
        let parents = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        if parents != folder {
            for parent in ["blobs/", &format!("{parents}/")].into_iter().skip(usize::from(!folder.is_empty())) {
                sink.begin(parent, 0).await?;
                sink.end().await?;
            }
            parents.clone_into(&mut folder);
        }
        write_blob(store, &path, digest, pool, sink, &mut |bytes| {
            progress.done_bytes += bytes;
            seen(&progress);
        })
        .await?;
    }
    sink.finish().await
}

/// Writes a blob. Its last bytes follow when its digest is known to be right.
async fn write_blob(
    store: &Store,
    path: &str,
    digest: Digest,
    pool: &Pool,
    sink: &mut impl Sink,
    wrote: &mut (dyn FnMut(u64) + Send),
) -> Result<(), BundleError> {
    let blob = store.open_for_one_look(&digest).await?.ok_or(BundleError::Gone(digest))?;
    let size_bytes = blob.size_bytes();
    let mut hashing = Hashing::new(digest, size_bytes, pool);
    sink.begin(path, size_bytes).await?;
    let reads = (0..size_bytes).step_by(CHUNK_BYTES).map(|offset| {
        let left = usize::try_from(size_bytes - offset).unwrap_or(usize::MAX);
        blob.read_at(offset, left.min(CHUNK_BYTES))
    });
    let mut reads = stream::iter(reads).buffered(READ_AHEAD);
    let mut last = Bytes::new();
    while let Some(bytes) = reads.next().await {
        let bytes = bytes?;
        let whole = std::mem::replace(&mut last, bytes.clone());
        wrote(whole.len() as u64);
        let ((), written) = join(hashing.update(bytes), sink.write(whole)).await;
        written?;
    }
    hashing.finish().map_err(|mismatch| BundleError::Damaged { digest, mismatch })?;
    wrote(last.len() as u64);
    sink.write(last).await?;
    sink.end().await
}

/// The documents of a bundle, in order.
fn documents(selection: &Selection, blobs: &BTreeMap<Digest, u64>) -> Vec<(&'static str, Vec<u8>)> {
    let list = |chosen: &[Chosen]| {
        let own = layout::with_tags_of_their_own(chosen.iter().map(|chosen| &chosen.name));
        layout::index(&chosen.iter().map(|chosen| chosen.listed.clone()).collect::<Vec<_>>(), &own)
    };
    let mut documents = vec![(layout::LAYOUT, layout::layout()), (layout::INDEX, list(&selection.images))];
    if !selection.referrers.is_empty() {
        documents.push((layout::REFERRERS, list(&selection.referrers)));
    }
    if let Some(images) = docker_images(&selection.images) {
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
    fn of(selection: &Selection) -> Self {
        let blobs = selection.blobs();
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
            for_old_docker: docker_images(&selection.images).is_some(),
        }
    }
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Folder(path) => f.debug_tuple("Folder").field(path).finish(),
            Self::Stdout => f.write_str("Stdout"),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}
