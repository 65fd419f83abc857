//! `/seeds`, `/warm` and `/have`: images fetched ahead of time, and whether they are there to the last byte.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use crate::audit;
use crate::config::PlatformName;
use crate::jobs::seed::{Begun, Request};

use super::page::{self, Page, Query};
use super::{Api, ApiError, Operator};

/// The longest list of images that is taken, in bytes: as many as a run may have, with long names.
pub(super) const BODY_BYTES_MAX: usize = 16 << 20;

pub(super) async fn list(State(api): State<Api>) -> Result<Response, ApiError> {
    page::ok(&json!({ "numbers": api.0.jobs.seeds.numbers() }))
}

pub(super) async fn show(State(api): State<Api>, Path(number): Path<String>) -> Result<Response, ApiError> {
    let found = number.parse().ok().and_then(|number| api.0.jobs.seeds.progress(number));
    page::ok(&found.ok_or_else(|| ApiError::not_found(format!("there is no run {number}; a restart forgets them")))?)
}

pub(super) async fn begin(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let mut request: Request = serde_json::from_slice(&body).map_err(|error| {
        ApiError::bad_request(format!("the body is {{\"images\": [{{\"image\": \"nginx:1.27\"}}, …]}}: {error}"))
    })?;
    if request.images.is_empty() {
        return Err(ApiError::bad_request("name at least one image"));
    }
    let parts = api.parts()?;
    if parts.offline {
        let why = "this server is offline and fetches nothing: import a bundle, or set offline = false";
        return Err(ApiError::new(StatusCode::CONFLICT, "offline", why));
    }
    request.name_canonically(parts.mirror.names()).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let (count, pin) = (request.images.len(), request.pin.clone());
    let number = api.0.jobs.seeds.begin(parts.mirror, parts.store, request);
    let number = number.map_err(|error| ApiError::new(StatusCode::CONFLICT, "running", error.to_string()))?;
    let pinned = pin.map_or_else(String::new, |name| format!(", pinned by {name}"));
    audit::changed("seeding begun", &operator.actor, "images", &"-", &format!("{count} images{pinned}"));
    page::ok(&Begun { number })
}

pub(super) async fn warm(State(api): State<Api>) -> Result<Response, ApiError> {
    page::ok(&Page::whole(api.0.jobs.warming.states()))
}

pub(super) async fn have(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["image", "platforms", "referrers"])?;
    let parts = api.parts()?;
    let image = query.image(parts.mirror.names())?;
    let platforms = query.get("platforms").unwrap_or_default().split(',').filter(|platform| !platform.is_empty());
    let platforms: Result<Vec<_>, _> =
        platforms.map(|platform| platform.parse::<PlatformName>().map(|platform| platform.to_string())).collect();
    let platforms = platforms.map_err(ApiError::bad_request)?;
    let referrers = query.get("referrers") != Some("false");
    let holding = parts.store.holding(&image, &platforms, referrers).await;
    page::ok(&holding.map_err(|error| ApiError::internal(error.to_string()))?)
}
