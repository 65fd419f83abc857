//! Cachalot: a pull-through caching OCI registry mirror.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod files;
pub mod fill;
pub mod metrics;
pub mod mirror;
pub mod oci;
pub mod server;
pub mod shutdown;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod upstream;
