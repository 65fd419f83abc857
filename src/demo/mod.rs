//! `cachalot demo`: an embedded sample upstream, the mirror in front of it, and pulls through it with their figures.

pub mod image;
pub mod options;
pub mod pace;
pub mod pull;
pub mod registry;
pub mod run;
pub mod table;

#[cfg(test)]
mod tests;

pub use image::{Image, ImageSpec, PlatformSpec};
pub use options::{Options, architecture};
pub use registry::{SampleRegistry, Stats};
pub use run::{DemoError, Mirror, run};
