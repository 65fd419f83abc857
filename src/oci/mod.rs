//! The protocol's nouns, pure: no I/O, no clock, no async runtime.

pub mod digest;
pub mod error;
pub mod manifest;
pub mod media;
pub mod name;
pub mod range;
pub mod route;
pub mod verify;

pub use digest::{Algorithm, Digest};
pub use name::{Reference, RegistryName, Repository, RepositoryName, Tag};
pub use verify::{Mismatch, Verified, Verifier};
