//! The protocol's nouns, pure: no I/O, no clock, no async runtime.

pub mod digest;
pub mod error;
pub mod image_name;
pub mod manifest;
pub mod media;
pub mod name;
pub mod query;
pub mod range;
pub mod referrers;
pub mod route;
pub mod verify;

pub use digest::{Algorithm, Digest};
pub use error::{ErrorCode, error_body};
pub use image_name::{ImageName, InvalidImageName, InvalidRepository};
pub use manifest::{Descriptor, InvalidManifest, Manifest, Platform};
pub use name::{Reference, RegistryName, Repository, RepositoryName, Tag};
pub use range::{ByteRange, RangeRequest, RangeSpec};
pub use referrers::Referrers;
pub use route::{Endpoint, Route, RouteError};
pub use verify::{Mismatch, Verified, Verifier};
