//! `/fills`: the downloads in progress.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use crate::fill::{FillSnapshot, Stage};

use super::page::{self, Page};
use super::{Api, ApiError};

pub(super) async fn list(State(api): State<Api>) -> Result<Response, ApiError> {
    let fills = api.parts()?.fills.snapshot();
    page::ok(&Page::whole(fills.iter().map(show).collect()))
}

fn show(fill: &FillSnapshot) -> Value {
    let (state, size_bytes, arrived_bytes, frontier_bytes) = match fill.progress {
        Stage::Starting => ("starting", fill.expected_bytes, 0, 0),
        Stage::Running { size_bytes, arrived_bytes, frontier_bytes } => {
            ("running", size_bytes.or(fill.expected_bytes), arrived_bytes, frontier_bytes)
        }
        Stage::Verified { size_bytes } => ("verified", Some(size_bytes), size_bytes, size_bytes),
        Stage::Failed => ("failed", fill.expected_bytes, 0, 0),
    };
    let elapsed_ms = u64::try_from(fill.elapsed.as_millis()).unwrap_or(u64::MAX);
    json!({
        "registry": fill.registry.as_str(),
        "digest": fill.digest.to_string(),
        "origin": fill.origin,
        "state": state,
        "size_bytes": size_bytes,
        "arrived_bytes": arrived_bytes,
        "frontier_bytes": frontier_bytes,
        "readers": fill.readers,
        "readers_served": fill.readers_served,
        "elapsed_ms": elapsed_ms,
        "bytes_per_second": arrived_bytes.saturating_mul(1000).checked_div(elapsed_ms).unwrap_or_default(),
    })
}
