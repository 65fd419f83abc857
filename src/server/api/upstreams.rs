//! `/upstreams` and `/refused`: how upstreams are, and which names were asked for that are none.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use crate::mirror::{Breaker, UpstreamHealth};

use super::page::{self, Page};
use super::{Api, ApiError};

pub(super) async fn list(State(api): State<Api>) -> Result<Response, ApiError> {
    let health = api.parts()?.mirror.health();
    page::ok(&Page::whole(health.iter().map(show).collect()))
}

fn show(health: &UpstreamHealth) -> Value {
    json!({
        "name": &*health.name,
        "endpoints": health.endpoints,
        "last_success_ms": health.last_success.map(|seconds| seconds * 1000),
        "quota_left": health.quota_left,
        "failing_since_ms": health.failing_since,
        "last_error": health.last_error.as_deref(),
        "received_bytes": health.received_bytes,
        "paused_ms": health.pause.map(milliseconds),
        "breakers": health.breakers.iter().map(|(endpoint, breaker)| show_breaker(endpoint, *breaker)).collect::<Vec<_>>(),
    })
}

fn show_breaker(endpoint: &str, breaker: Breaker) -> Value {
    let (state, left) = match breaker {
        Breaker::Closed => ("closed", None),
        Breaker::Open(left) => ("open", Some(milliseconds(left))),
        Breaker::HalfOpen => ("half_open", None),
    };
    json!({ "endpoint": endpoint, "state": state, "left_alone_ms": left })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) async fn refused(State(api): State<Api>) -> Result<Response, ApiError> {
    let names = api.parts()?.mirror.refused_names();
    let item = |(name, count): (String, u64)| json!({ "name": name, "count": count, "add": format!("[upstreams.{}]", Value::from(name.as_str())) });
    page::ok(&Page::whole(names.into_iter().map(item).collect()))
}
