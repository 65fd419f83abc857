//! `/verify`: all that is held, hashed again.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use crate::audit;

use super::{Api, ApiError, Operator, page};

pub(super) async fn show(State(api): State<Api>) -> Result<Response, ApiError> {
    page::ok(&json!({ "progress": api.0.jobs.verification.progress() }))
}

pub(super) async fn begin(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
) -> Result<Response, ApiError> {
    if !api.0.jobs.verification.begin(api.parts()?.store) {
        return Err(ApiError::new(StatusCode::CONFLICT, "running", "a verification goes on already: look at it first"));
    }
    audit::changed("verification begun", &operator.actor, "store", &"-", &"-");
    show(State(api)).await
}
