//! Why a bundle can't be written, read or believed, in sentences that name what is wrong.

use std::io;
use std::path::PathBuf;

use super::tar::InvalidTar;
use crate::oci::{Digest, ImageName, InvalidManifest, Mismatch};
use crate::store::{NoRoom, PinName, StoreError};

/// Why an export or an import came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file or folder outside the store.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What is to be written is there already.
    #[error("{} is there already, and is no empty folder; name another, or remove it", .0.display())]
    Exists(PathBuf),
    /// The other end of a pipe.
    #[error("the stream broke: {0}")]
    Stream(io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bundle would not fit.
    #[error("the bundle needs more room than there is: {0}")]
    NoRoom(NoRoom),

    // What can't be exported.
    /// There is no such image.
    #[error("{0} is not held; `cachalot images` lists what is")]
    NotHeld(ImageName),
    /// There is no such pin.
    #[error("there is no pin {0}; `cachalot pin` lists those that there are")]
    NoPin(PinName),
    /// No images were named.
    #[error("there is nothing to export: {0}")]
    Nothing(String),
    /// Parts of images are missing.
    #[error(
        "not all that belongs to these images is held, so nothing was written:\n{}\npull what is missing through the mirror first, or export other platforms by --platform",
        .0.join("\n")
    )]
    Incomplete(Vec<String>),
    /// A held blob is not what it should be.
    #[error(
        "{digest} is damaged in the store: {mismatch}; `cachalot verify --repair` takes it out, so that it can be fetched again"
    )]
    Damaged {
        /// The blob.
        digest: Digest,
        /// What it is instead.
        mismatch: Mismatch,
    },
    /// It was there a moment ago.
    #[error("{0} was removed from the store meanwhile; try again")]
    Gone(Digest),

    // What can't be imported.
    /// The archive's structure.
    #[error("the bundle is damaged {place}: {source}")]
    Tar {
        /// Where that was noticed.
        place: String,
        /// What is wrong.
        source: InvalidTar,
    },
    /// It ends too early.
    #[error("the bundle ends in the middle of {0}: it is not complete")]
    Cut(String),
    /// Its compression.
    #[error("the bundle can't be unpacked, {place}: {source}")]
    Unpack {
        /// Where that was noticed.
        place: String,
        /// What is wrong.
        source: io::Error,
    },
    /// A file in it that is not what its name says.
    #[error("the bundle is damaged: {path}: {mismatch}")]
    Wrong {
        /// The file.
        path: String,
        /// What it is instead.
        mismatch: Mismatch,
    },
    /// A document in it that can't be read.
    #[error("the bundle can't be imported: {path}: {problem}")]
    Document {
        /// The document.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A manifest in it that can't be read.
    #[error("the bundle can't be imported: the manifest {digest}: {source}")]
    Manifest {
        /// The manifest.
        digest: Digest,
        /// What is wrong with it.
        source: InvalidManifest,
    },
    /// It says of content what isn't so, or leaves it out.
    #[error("the bundle is not complete: {what}:\n{}", missing.join("\n"))]
    Missing {
        /// The image.
        what: String,
        /// What of it isn't there.
        missing: Vec<String>,
    },
    /// There is too much of something.
    #[error("the bundle has more {what} than the {limit} that are read")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A file is in it twice.
    #[error("{0} is in the bundle twice")]
    Twice(String),
    /// It's no bundle.
    #[error(
        "this is no bundle of images: there is neither an index.json nor a manifest.json in it; give an OCI image layout or the output of `docker save`, as a tar archive (plain, gzip or zstd) or a folder"
    )]
    NoBundle,
    /// Images that say of themselves not what they are.
    #[error(
        "the bundle does not say which images these are: {}; say it by --as REGISTRY/REPOSITORY, such as --as docker.io/library/nginx",
        .0.join(", ")
    )]
    Nameless(Vec<String>),
    /// Two images would get the same name.
    #[error("two images of the bundle would both be {0}")]
    SameName(ImageName),
    /// Its layers have names that don't say what they are, and a stream can't be read twice.
    #[error(
        "{0} is named by an id and not by its digest, as older `docker save` did, and a stream can't be read twice; import it from a file"
    )]
    NeedsFile(String),
    /// A pin's name can't be made from that of the file.
    #[error("no pin can be named after {0:?}; name one by --pin NAME, or say --no-pin")]
    NoPinName(String),
    /// A record could not be written.
    #[error("there was no room to record {0}; run the import again once there is")]
    NotRecorded(String),
}

/// Names the file in a failure.
pub(super) fn at(path: &std::path::Path) -> impl FnOnce(io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::File { path, source }
}
