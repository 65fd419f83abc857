//! The dashboard: one page, with nothing to fetch but the API.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};

use super::api::Api;

/// The whole page, with a place for the address that clients pull from.
const PAGE: &str = include_str!("index.html");

/// Where that address goes.
const MIRROR: &str = "{{MIRROR}}";

/// The page needs nothing from elsewhere, and nobody may frame it or feed it scripts.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

/// `/`, for those who may use the API. `mirror` is the address that clients pull from, or empty if it depends on where one
/// stands.
pub fn router(api: &Api, mirror: &str) -> Router {
    let page = PAGE.replace(MIRROR, mirror);
    let show = move |State(api): State<Api>, request: Request| {
        let page = page.clone();
        async move {
            let (parts, _body) = request.into_parts();
            match api.guard().admit(&parts).await {
                Ok(_) => answer(page),
                Err(error) => error.into_response(),
            }
        }
    };
    Router::new().route("/", get(show)).with_state(api.clone())
}

fn answer(page: String) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, page).into_response()
}
