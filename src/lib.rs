//! Cachalot: a pull-through caching OCI registry mirror.
//!
//! A request's journey, from top to bottom: [`server`] accepts a connection and parses the request into a
//! [`Route`](oci::route::Route); [`mirror`] finds the upstream that it means and decides: what the [`store`] holds is a
//! hit, else a [`fill`] downloads it once for all who ask, from an [`upstream`]. Store and fill yield
//! [`Piece`](store::Piece)s; the server turns them into frames. Bytes become a blob only with a
//! [`Verified`](oci::Verified) token.
//!
//! The modules below are in reading order. `ARCHITECTURE.md` has the laws, the code map, and walkthroughs.

pub mod cli;

pub mod app;

pub mod config;

pub mod oci;

pub mod server;

pub mod mirror;

pub mod fill;

pub mod upstream;

pub mod store;

pub mod bundle;

pub mod jobs;

pub mod api_client;

pub mod demo;

pub mod audit;
pub mod clock;
pub mod files;
pub mod metrics;
pub mod nodes;
pub mod secret;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod workloads;

/// What this is: version, commit, platform and profile of the build.
pub const VERSION: &str = env!("CACHALOT_VERSION");
