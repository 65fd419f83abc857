//! The HTTP edge: the only home of axum and hyper.

pub mod accept;
pub mod access_log;
pub mod admin;
mod blobs;
pub mod body;
pub mod connection;
pub mod error;
pub mod listen;
mod lists;
mod manifests;
mod multipart;
mod range;
pub mod router;
pub mod stream;
pub mod tls;

/// What answers the requests of one listener.
pub use axum::Router;
