//! What a fill says of itself to those who watch: a copy of its facts at one moment.

use std::time::Duration;

use crate::oci::{Digest, RegistryName};

/// A fill at one moment.
#[derive(Clone, Debug)]
pub struct FillSnapshot {
    /// The upstream.
    pub registry: RegistryName,
    /// The blob.
    pub digest: Digest,
    /// The origin in use, or tried last: a repository of the upstream.
    pub origin: String,
    /// How far it is.
    pub progress: Stage,
    /// How large a manifest says that it is.
    pub expected_bytes: Option<u64>,
    /// Clients that read it now.
    pub readers: u64,
    /// Clients that have read of it, now or earlier.
    pub readers_served: u64,
    /// Since when it has been under way.
    pub elapsed: Duration,
}

/// How far a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No origin has answered yet.
    Starting,
    /// Bytes arrive.
    Running {
        /// The size, if it is known.
        size_bytes: Option<u64>,
        /// How many bytes have arrived.
        arrived_bytes: u64,
        /// Up to here, everything from the start has.
        frontier_bytes: u64,
    },
    /// Everything has arrived and is right; it is being committed.
    Verified {
        /// The size.
        size_bytes: u64,
    },
    /// It ended without the blob, and leaves the table in a moment.
    Failed,
}
