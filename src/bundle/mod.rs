//! Bundles: images on their way past the network, as OCI image layouts in a tar archive or a folder.
//!
//! [`export()`] writes what a store holds; [`import()`] takes in what it, or another tool, wrote. Both go over a [`Store`] and
//! whatever bytes come from or go to. Nothing of a bundle is believed before its digest says so.
//!
//! [`Store`]: crate::store::Store

mod bolt;
mod docker;
mod error;
mod export;
mod files;
mod hashing;
mod import;
mod intake;
mod layout;
mod migration;
mod plan;
mod reading;
mod receiving;
mod recording;
mod selection;
mod sending;
mod syncing;
mod tar;
mod tree;
mod writing;

pub use error::BundleError;
pub use export::export;
pub use import::{Canonical, Imported, ImportedImage, Options, Source, check_room, import, pin_name};
pub use plan::{Exported, ExportedImage, Plan};
pub use receiving::receive;
pub use selection::Wanted;
pub use sending::{Sending, send};
pub use tar::InvalidTar;
pub use writing::Destination;

/// How far an export or import has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How much was done.
    pub done_bytes: u64,
    /// How much there is to do, where that is known.
    pub total_bytes: Option<u64>,
}

/// Is told how far it has come.
pub type Seen<'a> = dyn Fn(&Progress) + Send + Sync + 'a;

#[cfg(test)]
mod tests;
