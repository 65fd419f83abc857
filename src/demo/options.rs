//! What the demo does: its images, clients and speeds.

use super::image::{ImageSpec, PlatformSpec};

/// What the demo does.
#[derive(Clone, Debug)]
pub struct Options {
    /// End after the figures instead of staying up.
    pub once: bool,
    /// How many clients pull the second image at once.
    pub clients: usize,
    /// How many warm pulls are made, one after another.
    pub warm_pulls: usize,
    /// How fast upstream serves one connection.
    pub bytes_per_second_per_connection: Option<u64>,
    /// The image that one client pulls. It needs a part for [`architecture`].
    pub single: ImageSpec,
    /// The image that all clients pull at once. It needs a part for [`architecture`].
    pub crowd: ImageSpec,
}

const MIB: usize = 1 << 20;

/// The architecture of this host as OCI names it. On hosts that are neither, `amd64` is pulled all the same: nothing runs it.
pub const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        let layers = |count| vec![16 * MIB; count];
        let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
        let image = |seed, count| ImageSpec {
            seed,
            platforms: vec![
                PlatformSpec { architecture: architecture(), file_bytes: layers(count) },
                // Small: it shows that a mirror fetches what is asked for and nothing else.
                PlatformSpec { architecture: other, file_bytes: vec![2 * MIB] },
            ],
        };
        Self {
            once: false,
            clients: 20,
            warm_pulls: 5,
            bytes_per_second_per_connection: Some(40_000_000),
            single: image(1, 6),
            crowd: image(2, 4),
        }
    }
}
