//! The integration tests: the mirror as its clients and its operator see it, between a scripted registry and a raw
//! client.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod registry;
