//! Blobs asked of an upstream: their size, or their bytes as a stream, unverified.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::{HeaderMap, StatusCode, header};
use reqwest::{Method, Response};
use tokio::time::timeout;

use super::error::{Failure, Phase, UpstreamError, UpstreamErrorKind};
use super::lanes::{Lane, Permit, Use};
use super::manifests::{as_it_is, no_page, number, whole};
use super::pace::Pace;
use super::request::{Answer, Ask};
use super::{Access, Upstream};
use crate::metrics::Counter;
use crate::oci::{Digest, Repository};

/// The part of a blob that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobRange {
    /// The first byte.
    pub first: u64,
    /// The last byte, itself included; `None` for the rest of the blob.
    pub last: Option<u64>,
}

/// What an upstream says about a blob without sending it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobHead {
    /// How many bytes it has, if upstream says.
    pub size_bytes: Option<u64>,
}

/// A blob on its way. Its end is only a good one when the stream ends without an error; whether its bytes are right is
/// for the reader to find out.
pub struct BlobStream {
    /// Where in the blob the body begins. 0 when upstream ignored the range: the reader skips what it doesn't want.
    pub offset: u64,
    /// The size of the whole blob, if upstream says.
    pub total_bytes: Option<u64>,
    /// The size of this body, if upstream says. It may be less than what was asked for.
    pub length: Option<u64>,
    /// Host and port of the endpoint that was asked.
    pub endpoint: String,
    /// The bytes. After an error there is nothing more. One of the upstream's connections is taken until it is dropped.
    pub body: BoxStream<'static, Result<Bytes, UpstreamError>>,
}

/// `Content-Range`, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentRange {
    Part { first: u64, last: u64, total: Option<u64> },
    Unsatisfied { total: u64 },
}

/// What reads a body, until it ends or fails.
struct BodyReader {
    response: Response,
    upstream: String,
    endpoint: String,
    idle_timeout: Duration,
    /// What must still come, where that is known.
    missing: Option<u64>,
    received: Counter,
    paces: Vec<Pace>,
    /// Held while the connection is in use.
    _permit: Permit,
}

// === impl Upstream ===

impl Upstream {
    /// Asks for a blob's size. Where HEAD is refused, its first byte is fetched instead: public.ecr.aws answers 401 to
    /// HEAD, and presigned addresses are good for one method only.
    pub async fn head_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        access: Access,
    ) -> Result<BlobHead, UpstreamError> {
        let ask = Ask { method: Method::HEAD, access, ..Ask::get("blob", repository, format!("blobs/{digest}")) };
        match self.ask(ask.clone()).await {
            Ok(answer) => {
                self.checked(whole(&answer), &answer)?;
                self.checked(as_it_is(answer.response.headers()), &answer)?;
                self.checked(no_page(answer.response.headers()), &answer)?;
                Ok(BlobHead { size_bytes: number(answer.response.headers(), header::CONTENT_LENGTH) })
            }
            Err(error) => match error.kind {
                UpstreamErrorKind::Refused { .. } | UpstreamErrorKind::Status(401 | 403 | 405) => {
                    let range = Some(BlobRange { first: 0, last: Some(0) });
                    self.head_by_get(Ask { method: Method::GET, range, ..ask }).await
                }
                _ => Err(error),
            },
        }
    }

    async fn head_by_get(&self, ask: Ask<'_>) -> Result<BlobHead, UpstreamError> {
        let answer = self.ask(ask.clone()).await?;
        let headers = answer.response.headers();
        self.checked(no_page(headers), &answer)?;
        let size_bytes = match (answer.response.status(), content_range(headers)) {
            (StatusCode::OK, _) => number(headers, header::CONTENT_LENGTH),
            (StatusCode::PARTIAL_CONTENT, Some(ContentRange::Part { first: 0, total, .. })) => total,
            // A blob without bytes has no first one.
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange::Unsatisfied { total })) => Some(total),
            _ => return self.checked(Err(Failure::protocol("a range that was not asked for")), &answer),
        };
        Ok(BlobHead { size_bytes })
    }

    /// Fetches a blob or a part of it.
    ///
    /// An answer to a range is checked against what was asked for: its first byte is that one, and its last byte does not
    /// lie beyond. An upstream that sends everything instead is no error: the stream's `offset` then is 0.
    ///
    /// A range may be asked for right where the registry's redirect led to a moment ago. `lane` says who waits.
    pub async fn get_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Option<BlobRange>,
        lane: Lane,
    ) -> Result<BlobStream, UpstreamError> {
        let lane = if self.background { Lane::Background } else { lane };
        let ask = Ask {
            range,
            wanted: Use::Body(lane),
            blob: Some(digest),
            ..Ask::get("blob", repository, format!("blobs/{digest}"))
        };
        let answer = self.ask(ask.clone()).await?;
        self.checked(as_it_is(answer.response.headers()), &answer)?;
        self.checked(no_page(answer.response.headers()), &answer)?;
        let extent = self.checked(extent(answer.response.status(), answer.response.headers(), range), &answer)?;
        let (offset, total_bytes, length) = extent;
        let Answer { response, endpoint, permit } = answer;
        let reader = BodyReader {
            response,
            upstream: self.inner.name.clone(),
            endpoint: endpoint.clone(),
            idle_timeout: self.inner.client.settings.read_idle_timeout,
            missing: length,
            received: self.inner.client.byte_counter(),
            paces: self.inner.client.settings.paces.clone(),
            _permit: permit,
        };
        Ok(BlobStream { offset, total_bytes, length, endpoint, body: reader.into_stream() })
    }
}

/// Where a body lies in its blob: offset, size of the blob, size of the body.
fn extent(
    status: StatusCode,
    headers: &HeaderMap,
    range: Option<BlobRange>,
) -> Result<(u64, Option<u64>, Option<u64>), Failure> {
    let length = number(headers, header::CONTENT_LENGTH);
    let Some(range) = range else {
        return if status == StatusCode::OK {
            Ok((0, length, length))
        } else {
            Err(Failure::protocol(format!("status {status} to a request without a range")))
        };
    };
    match status {
        StatusCode::OK => Ok((0, length, length)),
        StatusCode::PARTIAL_CONTENT => {
            let Some(ContentRange::Part { first, last, total }) = content_range(headers) else {
                return Err(Failure::protocol("a part without saying which"));
            };
            if first != range.first || range.last.is_some_and(|asked| last > asked) {
                return Err(Failure::protocol(format!("bytes {first}-{last} instead of {range}")));
            }
            let part = last - first + 1;
            if length.is_some_and(|length| length != part) {
                return Err(Failure::protocol("a part whose length contradicts its range"));
            }
            Ok((first, total, Some(part)))
        }
        _ => Err(Failure::protocol(format!("status {status} to a request for {range}"))),
    }
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.trim();
    let (unit, rest) = text.split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (part, total) = rest.trim().split_once('/')?;
    if part == "*" {
        return Some(ContentRange::Unsatisfied { total: total.parse().ok()? });
    }
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let (first, last) = part.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    // Also keeps `last + 1` from overflowing.
    let possible = first <= last && last < total.unwrap_or(u64::MAX);
    possible.then_some(ContentRange::Part { first, last, total })
}

// === impl BlobRange ===

impl fmt::Display for BlobRange {
    /// As in a `Range` header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last {
            Some(last) => write!(f, "bytes={}-{last}", self.first),
            None => write!(f, "bytes={}-", self.first),
        }
    }
}

// === impl BlobStream ===

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream")
            .field("offset", &self.offset)
            .field("total_bytes", &self.total_bytes)
            .field("length", &self.length)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

// === impl BodyReader ===

impl BodyReader {
    fn into_stream(self) -> BoxStream<'static, Result<Bytes, UpstreamError>> {
        stream::try_unfold(self, |mut reader| async {
            let piece = reader.next_piece().await;
            let piece = piece.map_err(|failure| failure.at(&reader.upstream, &reader.endpoint))?;
            Ok(piece.map(|piece| (piece, reader)))
        })
        .boxed()
    }

    async fn next_piece(&mut self) -> Result<Option<Bytes>, Failure> {
        let piece = match timeout(self.idle_timeout, self.response.chunk()).await {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => return Err(Failure::of_exchange(&error)),
            Err(_) => return Err(Failure::timeout(Phase::Body)),
        };
        let received = piece.as_ref().map_or(0, Bytes::len) as u64;
        self.received.inc_by(received);
        for pace in &self.paces {
            pace.keep(received).await;
        }
        if let Some(missing) = &mut self.missing {
            *missing = missing
                .checked_sub(received)
                .ok_or_else(|| Failure::protocol("a body that is longer than its head says"))?;
            if piece.is_none() && *missing > 0 {
                return Err(UpstreamErrorKind::Broken.into());
            }
        }
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "compared with options")]
    fn part(first: u64, last: u64, total: Option<u64>) -> Option<ContentRange> {
        Some(ContentRange::Part { first, last, total })
    }

    #[test]
    fn content_ranges() {
        for (text, expected) in [
            ("bytes 0-9/10", part(0, 9, Some(10))),
            ("Bytes 5-5/10", part(5, 5, Some(10))),
            ("bytes 0-9/*", part(0, 9, None)),
            ("bytes */0", Some(ContentRange::Unsatisfied { total: 0 })),
            ("bytes 0-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes 0-/10", None),
            ("bytes -5/10", None),
            ("bytes */*", None),
            ("items 0-9/10", None),
            ("0-9/10", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_RANGE, text.parse().unwrap())]);
            assert_eq!(content_range(&headers), expected, "{text}");
        }
    }

    #[test]
    fn answers_to_ranges() {
        let range = Some(BlobRange { first: 5, last: Some(9) });
        let rest = Some(BlobRange { first: 5, last: None });
        for (range, status, content_range, length, expected) in [
            (None, 200, None, Some(20), Some((0, Some(20), Some(20)))),
            (None, 200, None, None, Some((0, None, None))),
            (None, 206, Some("bytes 0-19/20"), Some(20), None),
            (range, 206, Some("bytes 5-9/20"), Some(5), Some((5, Some(20), Some(5)))),
            (range, 206, Some("bytes 5-9/20"), None, Some((5, Some(20), Some(5)))),
            (range, 206, Some("bytes 5-7/20"), Some(3), Some((5, Some(20), Some(3)))),
            (rest, 206, Some("bytes 5-19/*"), Some(15), Some((5, None, Some(15)))),
            (range, 200, None, Some(20), Some((0, Some(20), Some(20)))),
            (range, 206, Some("bytes 5-9/20"), Some(4), None),
            (range, 206, Some("bytes 0-4/20"), Some(5), None),
            (range, 206, Some("bytes 5-10/20"), Some(6), None),
            (range, 206, None, Some(5), None),
            (range, 416, Some("bytes */3"), Some(0), None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(content_range) = content_range {
                headers.insert(header::CONTENT_RANGE, content_range.parse().unwrap());
            }
            if let Some(length) = length {
                headers.insert(header::CONTENT_LENGTH, length.into());
            }
            let found = extent(StatusCode::from_u16(status).unwrap(), &headers, range).ok();
            assert_eq!(found, expected, "{status} {content_range:?} {length:?} to {range:?}");
        }
    }
}
