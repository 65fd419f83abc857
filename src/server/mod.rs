//! The HTTP edge: the only home of axum and hyper.

pub mod accept;
pub mod access_log;
pub mod admin;
pub mod body;
mod blobs;
pub mod connection;
pub mod error;
pub mod listen;
mod lists;
mod manifests;
mod range;
pub mod router;
pub mod stream;
