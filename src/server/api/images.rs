//! `/images` and `/layers`: what is held, as people think of it, and the removal of an image.

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use http::StatusCode;

use crate::audit;
use crate::oci::ImageName;
use crate::store::RemoveError;

use super::page::{self, Page, Query};
use super::{Api, ApiError, Operator};

pub(super) async fn list(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["limit", "after", "repository"])?;
    let (limit, after) = (query.limit()?, query.get("after"));
    let wanted = |name: &ImageName, text: &str| {
        after.is_none_or(|after| text > after)
            && query.get("repository").is_none_or(|repository| name.repository.to_string() == repository)
    };
    let items = api.parts()?.store.images_where(wanted, limit).await;
    let items = items.map_err(|error| ApiError::internal(error.to_string()))?;
    let next = (items.len() == limit).then(|| items.last().map(|image| image.image.to_string())).flatten();
    page::ok(&Page { items, next })
}

pub(super) async fn parts(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["image"])?;
    let held = api.parts()?;
    let parts = held.store.parts_of(&query.image(held.mirror.names())?).await;
    page::ok(&Page::whole(parts.map_err(|error| ApiError::internal(error.to_string()))?))
}

pub(super) async fn layers(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let limit = Query::read(query.as_deref(), &["limit"])?.limit()?;
    page::ok(&Page::whole(api.parts()?.store.largest_layers(limit).await))
}

pub(super) async fn remove(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["image"])?;
    let parts = api.parts()?;
    let image = query.image(parts.mirror.names())?;
    let removed = parts.store.remove_image(&image).await.map_err(|error| refusal(&error))?;
    let after = format!("{} blobs, {} bytes freed", removed.blobs, removed.freed_bytes);
    audit::changed("image removed", &operator.actor, &image.to_string(), &"held", &after);
    page::ok(&removed)
}

pub(super) async fn remove_unused(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
) -> Result<Response, ApiError> {
    let removed = api.parts()?.store.remove_unused().await;
    let after = format!("{} blobs, {} bytes freed", removed.blobs, removed.freed_bytes);
    audit::changed("unused blobs removed", &operator.actor, "store", &"held", &after);
    page::ok(&removed)
}

fn refusal(error: &RemoveError) -> ApiError {
    match error {
        RemoveError::Absent(_) => ApiError::not_found(error.to_string()),
        RemoveError::Pinned { .. } => ApiError::new(StatusCode::CONFLICT, "pinned", error.to_string()),
        RemoveError::Store(_) => ApiError::internal(error.to_string()),
    }
}
