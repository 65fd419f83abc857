//! The integration tests: the mirror as its clients and its operator see it, between a scripted registry and a raw
//! client.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]
#![expect(clippy::format_push_string, reason = "nothing here is in a hurry")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod api;
mod auth;
mod bundle;
mod churn;
mod closed_world;
mod commands;
mod concurrency;
mod crowds;
mod disk;
mod eviction;
mod faults;
mod freshness;
mod kill;
mod layering;
mod lazy;
mod live;
mod metrics;
mod multipart;
mod node;
mod overload;
mod power;
mod profiles;
mod protocol;
mod ranges;
mod reference;
mod registry;
mod reload;
mod restart;
mod resume;
mod seed;
mod segments;
mod serving;
mod soak;
mod tls;
mod upstreams;
