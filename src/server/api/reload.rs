//! `/reload`: reads the configuration again.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use futures_util::future::BoxFuture;
use http::StatusCode;
use serde_json::json;

use crate::audit::Actor;

use super::{Api, ApiError, Operator, page};

/// Whoever can read the configuration again and put it into force.
pub trait Reload: Send + Sync + std::fmt::Debug {
    /// Does so for someone. Says what has changed, what would need a restart, or why nothing was done.
    fn reload(&self, by: Actor) -> BoxFuture<'_, Result<Reloaded, String>>;
}

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings that are in force now.
    pub changed: Vec<String>,
    /// Settings that are different in the file and need a restart.
    pub needs_restart: Vec<String>,
}

pub(super) async fn reload(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
) -> Result<Response, ApiError> {
    let reload = api.0.reload.read().clone().ok_or_else(ApiError::starting)?;
    match reload.reload(operator.actor).await {
        Ok(Reloaded { changed, needs_restart }) => {
            page::ok(&json!({ "changed": changed, "needs_restart": needs_restart }))
        }
        Err(reason) => Err(ApiError::new(StatusCode::CONFLICT, "not_reloaded", reason)),
    }
}
