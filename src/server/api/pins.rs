//! `/pins`: promises that images stay.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use crate::audit;
use crate::clock::Timestamp;
use crate::oci::ImageName;
use crate::store::{NamedPin, Pin, PinName};

use super::page::{self, Page};
use super::{Api, ApiError, Operator};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    roots: Vec<ImageName>,
    #[serde(default)]
    platforms: Vec<String>,
    #[serde(default)]
    referrers: bool,
}

pub(super) async fn list(State(api): State<Api>) -> Result<Response, ApiError> {
    let pins = api.parts()?.store.pins();
    page::ok(&Page::whole(pins.into_iter().map(|(name, pin)| NamedPin { name, pin }).collect()))
}

pub(super) async fn put(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let name = read_name(&name)?;
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("the body is {{\"roots\": [\"nginx:1.27\", …]}}: {error}")))?;
    let Wanted { roots, platforms, referrers } = wanted;
    if roots.is_empty() {
        return Err(ApiError::bad_request("a pin without images keeps nothing: delete it instead"));
    }
    let parts = api.parts()?;
    let canonical = roots.iter().map(|root| parts.mirror.names().canonical(root)).collect::<Result<Vec<_>, _>>();
    let roots = canonical.map_err(|error| ApiError::bad_request(error.to_string()))?;
    let after: Vec<_> = roots.iter().map(ToString::to_string).collect();
    let pin = Pin { roots, platforms, referrers, created: Timestamp::now() };
    parts.store.pin(&name, pin.clone()).await.map_err(|error| ApiError::internal(error.to_string()))?;
    audit::changed("pin", &operator.actor, name.as_str(), &"-", &after.join(" "));
    page::ok(&NamedPin { name, pin })
}

pub(super) async fn remove(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name = read_name(&name)?;
    match api.parts()?.store.unpin(&name).await {
        Ok(true) => {
            audit::changed("unpin", &operator.actor, name.as_str(), &"pinned", &"-");
            page::ok(&json!({ "removed": name }))
        }
        Ok(false) => Err(ApiError::not_found(format!("there is no pin {name}"))),
        Err(error) => Err(ApiError::internal(error.to_string())),
    }
}

fn read_name(text: &str) -> Result<PinName, ApiError> {
    text.parse().map_err(|error| ApiError::bad_request(format!("{text} is no name of a pin: {error}")))
}
