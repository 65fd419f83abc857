//! `/imports`: bundles taken into the store while it is in use.

use std::io;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::response::Response;
use futures_util::{Stream, StreamExt as _, stream};
use http::StatusCode;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::io::StreamReader;

use crate::audit;
use crate::bundle::{self, BundleError, Canonical, Imported, Options, Source};
use crate::oci::{Digest, Repository};
use crate::store::PinName;
use crate::tasks;

use super::page::{self, Query};
use super::{Api, ApiError, Operator, Parts};

/// So many bundles are taken in at once.
pub(super) const AT_ONCE: usize = 2;

/// So many chunks of a bundle wait to be taken in.
const CHUNKS_AHEAD: usize = 4;

/// For so long is read what a client still sends of a bundle that is refused.
const REST_MAX: Duration = Duration::from_secs(30);

/// The longest list of blobs that is asked about, in bytes.
pub(super) const ROOM_BYTES_MAX: usize = 64 << 20;

/// Whether there is room for what a bundle would bring.
pub(super) async fn room(State(api): State<Api>, body: Bytes) -> Result<Response, ApiError> {
    let blobs: Vec<(Digest, u64)> = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("the body is [[\"sha256:…\", 4711], …]: {error}")))?;
    bundle::check_room(&api.parts()?.store, blobs).await.map_err(|error| refused(&error))?;
    page::ok(&json!({}))
}

/// Takes in the bundle that the body is.
pub(super) async fn take(
    Extension(operator): Extension<Operator>,
    State(api): State<Api>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response, ApiError> {
    let parts = api.parts()?;
    let options = options(query.as_deref(), &parts)?;
    let Ok(turn) = api.0.importing.clone().try_acquire_owned() else {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "running",
            "other bundles are being imported: try again later",
        ));
    };
    let pinned = options.pin.as_ref().map_or_else(String::new, |name| format!(", pinned by {name}"));
    let (chunks, arriving) = mpsc::channel(CHUNKS_AHEAD);
    // Whoever sends it may leave, and what it left has to be tidied up.
    let import = tasks::spawn("import", async move {
        let source = Source::Stream(Box::pin(StreamReader::new(Box::pin(arrive(arriving)))));
        let imported = bundle::import(&parts.store, source, &options, &|_| {}).await;
        drop(turn);
        imported
    });
    forward(body, chunks).await;
    let imported = import.await.map_err(|_| ApiError::internal("the import ended unexpectedly; the log says why"))?;
    let imported: Imported = imported.map_err(|error| refused(&error))?;
    let count = imported.images.len();
    audit::changed("bundle imported", &operator.actor, "images", &"-", &format!("{count} images{pinned}"));
    page::ok(&imported)
}

/// Hands a body on. Where nobody wants it any more, the rest is thrown away: few clients hear of an answer while they send.
async fn forward(body: Body, chunks: mpsc::Sender<io::Result<Bytes>>) {
    let mut body = body.into_data_stream();
    loop {
        let chunk = match body.next().await {
            Some(Ok(chunk)) if chunk.is_empty() => continue,
            Some(chunk) => chunk.map_err(io::Error::other),
            // Which is the end.
            None => Ok(Bytes::new()),
        };
        let is_last = chunk.as_ref().map_or(true, Bytes::is_empty);
        if chunks.send(chunk).await.is_err() {
            break;
        }
        if is_last {
            return;
        }
    }
    // Out of time, the client gets its answer all the same, if it listens.
    let _ = timeout(REST_MAX, body.for_each(async |_| {})).await;
}

/// What was handed on. Without its end, it has broken off.
fn arrive(chunks: mpsc::Receiver<io::Result<Bytes>>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(Some(chunks), async |chunks| {
        let mut chunks = chunks?;
        match chunks.recv().await {
            Some(Ok(chunk)) if chunk.is_empty() => None,
            Some(Ok(chunk)) => Some((Ok(chunk), Some(chunks))),
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
        }
    })
}

fn options(query: Option<&str>, parts: &Parts) -> Result<Options, ApiError> {
    let query = Query::read(query, &["pin", "under", "public", "partly"])?;
    let truth = |name: &str| match query.get(name) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(ApiError::bad_request(format!("{name} is true or false"))),
    };
    let wrong = |name: &str, error: &dyn std::fmt::Display| ApiError::bad_request(format!("{name}: {error}"));
    let pin = query.get("pin").map(str::parse::<PinName>).transpose().map_err(|error| wrong("pin", &error))?;
    let under = query.get("under").map(str::parse::<Repository>).transpose().map_err(|error| wrong("under", &error))?;
    let mirror = parts.mirror.clone();
    Ok(Options {
        under,
        pin,
        public: truth("public")?,
        partly: truth("partly")?.unwrap_or_default(),
        canonical: Canonical::new(move |image| {
            mirror.names().canonical_if_known(image).map_err(|error| error.to_string())
        }),
    })
}

/// What a bundle's trouble is to whoever sent it.
fn refused(error: &BundleError) -> ApiError {
    let message = error.to_string();
    match error {
        BundleError::NoRoom(_) | BundleError::NotRecorded(_) => {
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "no_room", message)
        }
        BundleError::Store(_) => ApiError::internal(message),
        _ => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "bundle", message),
    }
}
