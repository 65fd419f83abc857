//! `/exports`: held images as a bundle, written while the store is in use.

use std::io;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures_util::{FutureExt as _, StreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{HeaderValue, StatusCode};
use tokio_util::io::ReaderStream;

use crate::audit;
use crate::bundle::{BundleError, Destination, Plan, Wanted};
use crate::tasks;

use super::page;
use super::{Api, ApiError, Operator, Parts};

/// So many bundles are written at once.
pub(super) const AT_ONCE: usize = 2;

/// The longest list of images that is taken, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 16 << 20;

/// So much of a bundle is written ahead of whoever takes it.
const AHEAD_BYTES: usize = 1 << 20;

/// What a bundle of these images would consist of.
pub(super) async fn plan(State(api): State<Api>, body: Bytes) -> Result<Response, ApiError> {
    page::ok(planned(&api.parts()?, &body).await?.exported())
}

/// The bundle itself, as a tar archive. One that can't be written to its end breaks off.
pub(super) async fn give(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let parts = api.parts()?;
    let Ok(turn) = api.0.exporting.clone().try_acquire_owned() else {
        let message = "other bundles are being exported: try again later";
        return Err(ApiError::new(StatusCode::CONFLICT, "running", message));
    };
    let plan = planned(&parts, &body).await?;
    let (archive_bytes, sums) = (plan.archive_bytes(), plan.exported().sums);
    let count = plan.exported().images.len();
    let (reader, writer) = tokio::io::duplex(AHEAD_BYTES);
    let writing = tasks::spawn("export", async move {
        let written = plan.write(&parts.store, Destination::Stream(Box::pin(writer)), &|_| {}).await;
        drop(turn);
        match written {
            Ok(()) => audit::changed("bundle exported", &operator.actor, "images", &"-", &format!("{count} images")),
            Err(error) => {
                tracing::warn!("an export broke off: {error}");
                return Err(io::Error::other(error));
            }
        }
        Ok(())
    });
    // Without this, an archive that breaks off between two files would look as if it had ended.
    let end = async { writing.await.unwrap_or_else(|_| Err(io::Error::other("the export ended unexpectedly"))) };
    let end = end.into_stream().filter_map(async |ended| ended.err().map(Err));
    let bytes = ReaderStream::with_capacity(reader, AHEAD_BYTES / 4).chain(end);
    let mut response = Response::new(Body::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(archive_bytes));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{sums}\"")) {
        headers.insert(ETAG, etag);
    }
    Ok(response)
}

async fn planned(parts: &Parts, body: &[u8]) -> Result<Plan, ApiError> {
    let wanted: Wanted = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is {{\"images\": [\"nginx:1.27\"], …}}: {error}")))?;
    let names = parts.mirror.names();
    let images = wanted.images.iter().map(|image| names.canonical_if_known(image));
    let images = images.collect::<Result<_, _>>().map_err(|error| ApiError::bad_request(error.to_string()))?;
    Plan::of(&parts.store, &Wanted { images, ..wanted }).await.map_err(|error| refused(&error))
}

/// What the trouble of an export is to whoever wants it.
fn refused(error: &BundleError) -> ApiError {
    let message = error.to_string();
    match error {
        BundleError::NotHeld(_) | BundleError::NoPin(_) => ApiError::not_found(message),
        BundleError::Incomplete(_) => ApiError::new(StatusCode::CONFLICT, "incomplete", message),
        BundleError::Nothing(_) | BundleError::TooMany { .. } => ApiError::bad_request(message),
        _ => ApiError::internal(message),
    }
}
