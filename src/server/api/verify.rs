//! `/verify`: all that is held, hashed again.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::audit;

use super::{Api, ApiError, Operator, page};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    repair: bool,
}

pub(super) async fn show(State(api): State<Api>) -> Result<Response, ApiError> {
    page::ok(&json!({ "progress": api.0.jobs.verification.progress() }))
}

pub(super) async fn begin(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let wanted = if body.is_empty() { Ok(Wanted::default()) } else { serde_json::from_slice(&body) };
    let Wanted { repair } = wanted.map_err(|_| ApiError::bad_request("the body is {\"repair\": true} or false"))?;
    if !api.0.jobs.verification.begin(api.parts()?.store, repair) {
        return Err(ApiError::new(StatusCode::CONFLICT, "running", "a verification goes on already: look at it first"));
    }
    audit::changed("verification begun", &operator.actor, "store", &"-", &if repair { "repair" } else { "look" });
    show(State(api)).await
}
