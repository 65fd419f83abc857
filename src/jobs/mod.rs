//! Work that outlives a request and goes on by itself.

pub mod scrub;
pub mod verify;
