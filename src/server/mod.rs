//! The HTTP edge: the only home of axum and hyper.

pub mod accept;
pub mod access_log;
pub mod admin;
pub mod body;
pub mod connection;
pub mod error;
pub mod listen;
pub mod stream;
