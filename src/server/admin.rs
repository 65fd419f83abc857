//! The admin listener's routes: liveness, readiness, metrics, the API, the dashboard.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use parking_lot::Mutex;

use crate::metrics::Metrics;

use super::api::Api;
use super::dashboard;

/// Whether clients can be served, shared by those who know and those who ask. Starts as *starting*.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Standing>>);

#[derive(Debug, Default)]
struct Standing {
    stage: Stage,
    /// What is wrong, by the part that said so.
    degraded: BTreeMap<&'static str, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Starting,
    Ready,
    Draining,
}

/// What prometheus-client writes.
const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `/livez`, `/readyz` and `/metrics` for all, the API and the dashboard at `/` for those who are known; anything else is
/// 404. `mirror` is the address that clients pull from, or empty.
pub fn router(metrics: Arc<Metrics>, readiness: Readiness, api: &Api, mirror: &str) -> Router {
    Router::new()
        .merge(api.router())
        .merge(dashboard::router(api, mirror))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(render).with_state(metrics))
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    readiness.answer()
}

async fn render(State(metrics): State<Arc<Metrics>>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], metrics.render()).into_response()
}

// === impl Readiness ===

impl Readiness {
    /// Neither ready nor draining yet.
    pub fn starting() -> Self {
        Self::default()
    }

    /// The boot scan is done. Does nothing while draining.
    pub fn set_ready(&self) {
        let mut state = self.0.lock();
        if state.stage == Stage::Starting {
            state.stage = Stage::Ready;
        }
    }

    /// No further clients, please. There is no way back.
    pub fn set_draining(&self) {
        self.0.lock().stage = Stage::Draining;
    }

    /// Notes what is wrong with `part` (`None`: nothing any more), while clients can still be served.
    pub fn set_degraded(&self, part: &'static str, reason: Option<String>) {
        let mut state = self.0.lock();
        match reason {
            Some(reason) => _ = state.degraded.insert(part, reason),
            None => _ = state.degraded.remove(part),
        }
    }

    /// Whether clients can be served.
    pub fn is_ready(&self) -> bool {
        self.0.lock().stage == Stage::Ready
    }

    /// Whether clients can be served, and what is wrong, part by part.
    pub fn standing(&self) -> (bool, BTreeMap<&'static str, String>) {
        let state = self.0.lock();
        (state.stage == Stage::Ready, state.degraded.clone())
    }

    fn answer(&self) -> (StatusCode, String) {
        let state = self.0.lock();
        match state.stage {
            Stage::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned()),
            Stage::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
            Stage::Ready if state.degraded.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
            Stage::Ready => {
                let reasons: Vec<_> = state.degraded.values().map(String::as_str).collect();
                (StatusCode::OK, format!("degraded: {}\n", reasons.join("; ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::super::activity::Activity;
    use super::super::api::{Guard, History};
    use super::super::auth::{Checks, Known};
    use super::*;
    use std::time::Duration;

    use crate::config::Users;
    use crate::jobs::Jobs;
    use crate::shutdown::Shutdown;
    use crate::tasks::Pool;

    fn api() -> Api {
        let checks = Checks::new(Pool::new("test", 1).unwrap());
        let guard = Guard::new(Known::new(&Users::default()), Vec::new(), checks);
        let jobs = Jobs::new(&Shutdown::new(Duration::ZERO), &Arc::default());
        Api::new(guard, Arc::default(), Readiness::starting(), Activity::default(), History::default(), jobs)
    }

    async fn ask(router: &Router, path: &str) -> (u16, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let content_type = response.headers().get("content-type").map_or("", |value| value.to_str().unwrap());
        let (status, content_type) = (response.status().as_u16(), content_type.to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_follows_the_stages_and_degradation_stays_200() {
        let readiness = Readiness::starting();
        let router = router(Arc::new(Metrics::new()), readiness.clone(), &api(), "");
        let ready = async || {
            let (status, _, body) = ask(&router, "/readyz").await;
            (status, body)
        };
        assert_eq!(ready().await, (503, "starting\n".to_owned()));
        assert_eq!(ask(&router, "/livez").await.0, 200);
        readiness.set_ready();
        assert_eq!(ready().await, (200, "ok\n".to_owned()));
        readiness.set_degraded("store", Some("the disk is full".to_owned()));
        readiness.set_degraded("docker.io", Some("docker.io does not answer".to_owned()));
        assert_eq!(ready().await, (200, "degraded: docker.io does not answer; the disk is full\n".to_owned()));
        readiness.set_degraded("store", None);
        readiness.set_degraded("docker.io", None);
        assert_eq!(ready().await, (200, "ok\n".to_owned()));
        readiness.set_draining();
        readiness.set_ready();
        assert_eq!(ready().await, (503, "draining\n".to_owned()));
        assert_eq!(ask(&router, "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_text_and_other_paths_are_404() {
        let router = router(Arc::new(Metrics::new()), Readiness::starting(), &api(), "");
        let (status, content_type, body) = ask(&router, "/metrics").await;
        assert_eq!((status, content_type.as_str()), (200, METRICS_CONTENT_TYPE));
        assert!(body.contains("cachalot_connections 0\n") && body.ends_with("# EOF\n"), "{body}");
        for path in ["/v2/", "/api/v2/", "/metrics/x"] {
            assert_eq!(ask(&router, path).await.0, 404, "{path}");
        }
    }
}
