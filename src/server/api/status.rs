//! `/status`: the server at a glance.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use crate::clock::Timestamp;

use super::{Api, ApiError, Operator, page};

pub(super) async fn show(
    State(api): State<Api>,
    Extension(operator): Extension<Operator>,
) -> Result<Response, ApiError> {
    let shared = &api.0;
    let (ready, degraded) = shared.readiness.standing();
    let parts = shared.parts.read().clone();
    let store = parts.as_ref().map(|parts| {
        let held = parts.store.snapshot();
        json!({
            "capacity_bytes": held.capacity_bytes,
            "present_bytes": held.present_bytes,
            "record_bytes": held.record_bytes,
            "reserved_bytes": held.reserved_bytes,
            "evicting_bytes": held.evicting_bytes,
            "blobs": held.blobs,
            "partials": held.partials,
            "open_files": held.open_files,
            "over_capacity": held.over_capacity,
        })
    });
    page::ok(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "now_ms": Timestamp::now(),
        "uptime_seconds": shared.started.elapsed().as_secs(),
        "ready": ready,
        "degraded": degraded,
        "offline": parts.as_ref().map(|parts| parts.offline),
        "you": { "name": operator.actor.name, "role": operator.role },
        "store": store,
        "fills": parts.as_ref().map(|parts| parts.fills.len()),
        "connections": shared.metrics.connections.get(),
        "totals": shared.activity.totals(),
        "upstream_bytes": shared.metrics.upstream_bytes_in_all(),
        "last_client_ms": shared.metrics.client_last_request_timestamp_seconds.get().max(0) * 1000,
    }))
}
