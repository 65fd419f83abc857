//! An upstream's repository as a fill sees it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use crate::fill::{Origin, OriginBody, OriginError, OriginErrorKind, Priority};
use crate::oci::range::ByteRange;
use crate::oci::{Digest, Repository};
use crate::upstream::{BlobRange, Lane, Phase, Upstream, UpstreamError, UpstreamErrorKind};

/// A blob in an upstream's repository, opened with the credential that is configured for it.
#[derive(Clone, Debug)]
pub(super) struct UpstreamOrigin {
    pub(super) client: Arc<Upstream>,
    pub(super) repository: Repository,
    pub(super) digest: Digest,
}

impl Origin for UpstreamOrigin {
    fn label(&self) -> String {
        self.repository.to_string()
    }

    fn host(&self) -> String {
        self.client.next_endpoint()
    }

    fn sends_best_in_one_piece(&self) -> bool {
        self.client.is_behind_a_mirror()
    }

    fn fetch(&self, range: Option<ByteRange>, priority: Priority) -> BoxFuture<'_, Result<OriginBody, OriginError>> {
        let lane = match priority {
            Priority::Foreground => Lane::Foreground,
            Priority::Background => Lane::Background,
        };
        async move {
            let range = range.map(|range| BlobRange { first: range.first, last: Some(range.last) });
            let stream = self.client.get_blob(&self.repository, &self.digest, range, lane).await?;
            Ok(OriginBody {
                host: stream.endpoint,
                offset: stream.offset,
                end: stream.length.map(|length| stream.offset + length),
                total_bytes: stream.total_bytes,
                body: stream.body.map(|chunk| chunk.map_err(OriginError::from)).boxed(),
            })
        }
        .boxed()
    }
}

impl From<UpstreamError> for OriginError {
    fn from(error: UpstreamError) -> Self {
        let kind = match &error.kind {
            UpstreamErrorKind::NotFound { .. } => OriginErrorKind::NotFound,
            UpstreamErrorKind::Refused { anonymous, .. } => OriginErrorKind::Refused { anonymous: *anonymous },
            UpstreamErrorKind::RateLimited { retry_after } => {
                OriginErrorKind::RateLimited { retry_after: *retry_after }
            }
            UpstreamErrorKind::Status(_)
            | UpstreamErrorKind::Connect
            | UpstreamErrorKind::Name
            | UpstreamErrorKind::Certificate
            | UpstreamErrorKind::Tls => OriginErrorKind::Unavailable,
            UpstreamErrorKind::Timeout(Phase::Queue) => OriginErrorKind::Busy,
            UpstreamErrorKind::Timeout(_) => OriginErrorKind::Timeout,
            UpstreamErrorKind::Broken => OriginErrorKind::Broken,
            UpstreamErrorKind::Protocol(_) | UpstreamErrorKind::RedirectRefused => OriginErrorKind::Unusable,
        };
        Self { kind, message: error.to_string().into() }
    }
}
