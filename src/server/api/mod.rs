//! The API of the admin listener below `/api/v1/`: its routes, and what their handlers share.

mod error;
mod exports;
mod fills;
mod guard;
mod history;
mod images;
mod imports;
mod logs;
mod page;
mod pins;
mod reload;
mod requests;
mod seeds;
mod status;
mod upstreams;
mod verify;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use http::header::CONTENT_TYPE;
use parking_lot::RwLock;
use tokio::sync::Semaphore;

use crate::fill::Fills;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::mirror::Mirror;
use crate::store::Store;

use super::activity::Activity;
use super::admin::Readiness;

pub use error::ApiError;
pub use guard::{Guard, Operator, Role};
pub use history::History;
pub use reload::{Reload, Reloaded};

/// What the API shows and changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    started: Instant,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    activity: Activity,
    history: History,
    jobs: Jobs,
    /// Turns to take in a bundle.
    importing: Arc<Semaphore>,
    /// Turns to write one.
    exporting: Arc<Semaphore>,
    guard: RwLock<Arc<Guard>>,
    parts: RwLock<Option<Parts>>,
    reload: RwLock<Option<Arc<dyn Reload>>>,
}

/// What there is once the store is open.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Decides what is answered.
    pub mirror: Mirror,
    /// What is held.
    pub store: Store,
    /// What is being downloaded.
    pub fills: Fills,
    /// Whether upstreams are asked at all.
    pub offline: bool,
}

/// The description of all this, for programs.
const OPENAPI: &str = include_str!("openapi.json");

// === impl Api ===

impl Api {
    /// An API that lets in whom `guard` knows. It says that the server is starting until it has its parts.
    pub fn new(
        guard: Guard,
        metrics: Arc<Metrics>,
        readiness: Readiness,
        activity: Activity,
        history: History,
        jobs: Jobs,
    ) -> Self {
        Self(Arc::new(Shared {
            started: Instant::now(),
            metrics,
            readiness,
            activity,
            history,
            jobs,
            importing: Arc::new(Semaphore::new(imports::AT_ONCE)),
            exporting: Arc::new(Semaphore::new(exports::AT_ONCE)),
            guard: RwLock::new(Arc::new(guard)),
            parts: RwLock::new(None),
            reload: RwLock::new(None),
        }))
    }

    /// Shows these parts from now on.
    pub fn set_parts(&self, parts: Parts) {
        *self.0.parts.write() = Some(parts);
    }

    /// Lets in whom this guard knows from now on.
    pub fn set_guard(&self, guard: Guard) {
        *self.0.guard.write() = Arc::new(guard);
    }

    /// Reloads by this from now on.
    pub fn set_reload(&self, reload: Arc<dyn Reload>) {
        *self.0.reload.write() = Some(reload);
    }

    fn parts(&self) -> Result<Parts, ApiError> {
        self.0.parts.read().clone().ok_or_else(ApiError::starting)
    }

    pub(super) fn guard(&self) -> Arc<Guard> {
        Arc::clone(&self.0.guard.read())
    }

    /// All routes. What is no route is a 404 in the API's own shape.
    pub fn router(&self) -> Router {
        let routes = Router::new()
            .route("/openapi.json", get(openapi))
            .route("/status", get(status::show))
            .route("/fills", get(fills::list))
            .route("/upstreams", get(upstreams::list))
            .route("/refused", get(upstreams::refused))
            .route("/requests", get(requests::list))
            .route("/history", get(history::show))
            .route("/images", get(images::list).delete(images::remove))
            .route("/images/parts", get(images::parts))
            .route("/layers", get(images::layers).delete(images::remove_unused))
            .route("/exports", post(exports::give).layer(DefaultBodyLimit::max(exports::BODY_BYTES_MAX)))
            .route("/exports/plan", post(exports::plan).layer(DefaultBodyLimit::max(exports::BODY_BYTES_MAX)))
            .route("/imports", post(imports::take))
            .route("/imports/room", post(imports::room).layer(DefaultBodyLimit::max(imports::ROOM_BYTES_MAX)))
            .route("/pins", get(pins::list))
            .route("/pins/{name}", put(pins::put).delete(pins::remove))
            .route("/verify", get(verify::show).post(verify::begin))
            .route("/seeds", get(seeds::list).post(seeds::begin).layer(DefaultBodyLimit::max(seeds::BODY_BYTES_MAX)))
            .route("/seeds/{number}", get(seeds::show))
            .route("/warm", get(seeds::warm))
            .route("/have", get(seeds::have))
            .route("/reload", post(reload::reload))
            .route("/log", get(logs::show).put(logs::change))
            .fallback(async || ApiError::not_found("there is nothing of this name in the API"))
            .method_not_allowed_fallback(async || ApiError::method_not_allowed())
            .layer(axum::middleware::from_fn_with_state(self.clone(), guard::require))
            .with_state(self.clone());
        Router::new().nest("/api/v1", routes)
    }
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
