//! The HTTP edge: the only home of axum and hyper.

pub mod accept;
pub mod access_log;
pub mod activity;
pub mod admin;
pub mod api;
pub mod auth;
mod blobs;
pub mod body;
pub mod connection;
pub mod dashboard;
mod door;
pub mod error;
pub mod listen;
mod lists;
mod manifests;
mod multipart;
mod outbox;
mod proxies;
mod range;
pub mod router;
pub mod stream;
pub mod tls;
pub mod wire;

/// What answers the requests of one listener.
pub use axum::Router;
