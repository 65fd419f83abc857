//! One download per digest and upstream, followed by any number of readers.
//!
//! A fill is started by the first client that asks and belongs to none (law 4). Its task takes bytes from an
//! [`Origin`], writes them to a partial file and hashes them at the same time; readers follow the growing file at
//! their own offsets. The last [`TAIL_BYTES`] wait until the digest is right (law 2).

mod checkpointing;
mod connections;
mod delivery;
mod demand;
mod effort;
mod error;
mod extents;
#[expect(clippy::module_inception, reason = "a fill is what this module is about; no other word is as right")]
mod fill;
mod hashing;
mod incoming;
mod opening;
mod origin;
mod parts_through;
mod passthrough;
mod patience;
mod phase;
mod progress;
mod ranges;
mod reader;
mod retry;
mod segments;
mod sized;
mod snapshot;
mod table;
mod transfer;
mod waiting;

#[cfg(test)]
mod tests;

pub use demand::Demand;
pub use error::{FillError, Unstorable};
pub use fill::{Fill, FillKey, OriginId, Want};
pub use origin::{Fetching, Origin, OriginBody, OriginError, OriginErrorKind, Priority};
pub use parts_through::{PartsThrough, parts_through};
pub use passthrough::{PassThrough, pass_through};
pub use phase::{Head, TAIL_BYTES};
pub use reader::{FillReader, Interrupted};
pub use snapshot::{FillSnapshot, Stage};
pub use table::{Fills, Opened, Passing};
pub use transfer::{Limits, SMALL_BYTES};
