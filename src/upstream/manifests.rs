//! Manifests asked of an upstream: their head or their bytes, unverified.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use reqwest::Method;

use super::error::{Failure, UpstreamError};
use super::request::{Answer, Ask};
use super::{Access, Upstream};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Digest, Reference, Repository, media};

/// What an upstream says about a manifest without sending it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// The digest; some registries leave it out.
    pub digest: Option<Digest>,
    /// The `Content-Type`, as sent.
    pub media_type: Option<String>,
    /// How many bytes it has.
    pub size_bytes: Option<u64>,
}

/// A manifest's bytes as received. Nobody has compared them with a digest yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestBody {
    /// The bytes.
    pub bytes: Bytes,
    /// The `Content-Type`, as sent.
    pub media_type: Option<String>,
    /// The digest that upstream claims.
    pub digest: Option<Digest>,
}

// === impl Upstream ===

impl Upstream {
    /// Asks what a reference stands for. Free of charge on Docker Hub. A 404 here says nothing about who said it: its
    /// `oci_body` is always `false`.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        access: Access,
    ) -> Result<ManifestHead, UpstreamError> {
        let answer = self.ask_manifest(Method::HEAD, repository, reference, access).await?;
        let headers = answer.response.headers();
        let size_bytes = number(headers, header::CONTENT_LENGTH);
        Ok(ManifestHead { digest: digest(headers), media_type: media_type(headers), size_bytes })
    }

    /// Fetches a manifest of at most 8 MiB.
    pub async fn get_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        access: Access,
    ) -> Result<ManifestBody, UpstreamError> {
        let answer = self.ask_manifest(Method::GET, repository, reference, access).await?;
        let (digest, media_type) = (digest(answer.response.headers()), media_type(answer.response.headers()));
        let bytes = self.body(answer, MANIFEST_BYTES_MAX).await?;
        Ok(ManifestBody { bytes, media_type, digest })
    }

    async fn ask_manifest(
        &self,
        method: Method,
        repository: &Repository,
        reference: &Reference,
        access: Access,
    ) -> Result<Answer, UpstreamError> {
        let ask = Ask {
            method,
            access,
            accept: Some(media::ACCEPT_MANIFESTS),
            ..Ask::get("manifest", repository, format!("manifests/{reference}"))
        };
        let answer = self.ask(ask).await?;
        self.checked(whole(&answer), &answer)?;
        self.checked(as_it_is(answer.response.headers()), &answer)?;
        self.checked(no_page(answer.response.headers()), &answer)?;
        Ok(answer)
    }

    /// Reads a whole body.
    pub(super) async fn body(&self, answer: Answer, bytes_max: usize) -> Result<Bytes, UpstreamError> {
        let Answer { response, endpoint, permit } = answer;
        let body = self.inner.client.collect(response, bytes_max).await;
        drop(permit);
        body.map_err(|failure| failure.at(&self.inner.name, &endpoint))
    }

    /// Says where a check failed.
    pub(super) fn checked<T>(&self, result: Result<T, Failure>, answer: &Answer) -> Result<T, UpstreamError> {
        result.map_err(|failure| failure.at(&self.inner.name, &answer.endpoint))
    }
}

/// Refuses an answer to a question without a range that is only a part.
pub(super) fn whole(answer: &Answer) -> Result<(), Failure> {
    match answer.response.status() {
        StatusCode::OK => Ok(()),
        status => Err(Failure::protocol(format!("status {status} to a request without a range"))),
    }
}

/// Refuses a body that was compressed or otherwise changed on its way.
pub(super) fn as_it_is(headers: &HeaderMap) -> Result<(), Failure> {
    for encoding in headers.get_all(header::CONTENT_ENCODING) {
        if !encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity") {
            return Err(Failure::protocol("a compressed body, though it was asked for as it is"));
        }
    }
    Ok(())
}

/// Refuses what some server in front of a registry shows to people: login pages, captive portals, error pages.
pub(super) fn no_page(headers: &HeaderMap) -> Result<(), Failure> {
    let page = media_type(headers).is_some_and(|media_type| {
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        media_type.eq_ignore_ascii_case("text/html") || media_type.eq_ignore_ascii_case("application/xhtml+xml")
    });
    if page { Err(Failure::protocol("a web page instead of content")) } else { Ok(()) }
}

pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok().map(ToOwned::to_owned)
}

pub(super) fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}
