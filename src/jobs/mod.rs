//! Work that outlives a request and goes on by itself.

pub mod lists;
pub mod scrub;
pub mod seed;
pub mod verify;
pub mod warm;

use std::sync::Arc;

use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// What a server may be told to do beside serving. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    /// Everything hashed again.
    pub verification: verify::Verification,
    /// Images fetched ahead of time.
    pub seeds: seed::Seeds,
    /// Lists of images that are fetched again and again.
    pub warming: warm::Warming,
}

// === impl Jobs ===

impl Jobs {
    /// None goes on yet. They end with the drain.
    pub fn new(shutdown: &Shutdown, metrics: &Arc<Metrics>) -> Self {
        let seeds = seed::Seeds::new(shutdown.clone());
        let warming = warm::Warming::new(seeds.clone(), Arc::clone(metrics));
        Self { verification: verify::Verification::new(shutdown.clone()), seeds, warming }
    }
}
