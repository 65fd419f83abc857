//! Work that outlives a request and goes on by itself.

pub mod scrub;
pub mod seed;
pub mod verify;

use crate::shutdown::Shutdown;

/// What a server may be told to do beside serving. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    /// Everything hashed again.
    pub verification: verify::Verification,
    /// Images fetched ahead of time.
    pub seeds: seed::Seeds,
}

// === impl Jobs ===

impl Jobs {
    /// None goes on yet. They end with the drain.
    pub fn new(shutdown: &Shutdown) -> Self {
        Self { verification: verify::Verification::new(shutdown.clone()), seeds: seed::Seeds::new(shutdown.clone()) }
    }
}
