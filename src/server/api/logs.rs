//! `/log`: which lines are logged, looked at and changed while the server runs.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use crate::{audit, config, telemetry};

use super::{Api, ApiError, Operator, page};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    level: String,
}

pub(super) async fn show(State(_): State<Api>) -> Result<Response, ApiError> {
    page::ok(&json!({ "level": telemetry::level() }))
}

pub(super) async fn change(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let Wanted { level } = serde_json::from_slice(&body)
        .map_err(|_| ApiError::bad_request("the body is {\"level\": \"…\"}, as log.level in the configuration"))?;
    let level = config::log_level(&level).map_err(ApiError::bad_request)?;
    let before = telemetry::level().unwrap_or_default();
    telemetry::set_level(&level).map_err(|error| ApiError::bad_request(error.to_string()))?;
    audit::changed("log level", &operator.actor, "log.level", &before, &level);
    show(State(api)).await
}
