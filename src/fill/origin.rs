//! Where a fill gets its bytes: the trait that upstreams are adapted to, and how it fails.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::range::ByteRange;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

/// One way to get a blob's bytes: an upstream, a repository there, and the credential that opens it.
pub trait Origin: Send + Sync + fmt::Debug {
    /// Names it in logs and errors, such as `docker.io/library/nginx`. Never a secret. Origins of one name are the same.
    fn label(&self) -> String;

    /// The host that is asked next, with its port. What is learnt about ranges is remembered by it, for an origin may be several
    /// hosts that don't behave alike.
    fn host(&self) -> String;

    /// Whether all of a blob is best asked for at once, however large it is: from another mirror, which has it on one disk
    /// and one wire, or is just fetching it in order. Parts are asked for all the same.
    fn sends_best_in_one_piece(&self) -> bool {
        false
    }

    /// Asks for a range of the blob, or all of it. The answer may be another part: see [`OriginBody`].
    fn fetch(&self, range: Option<ByteRange>, priority: Priority) -> Fetching<'_>;
}

/// An answer to come.
pub type Fetching<'a> = BoxFuture<'a, Result<OriginBody, OriginError>>;

/// Who goes first where an origin takes only so many requests at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A client waits for just this.
    Foreground,
    /// It only makes things faster, or is fetched ahead.
    Background,
}

/// A body on its way.
pub struct OriginBody {
    /// The host that sends it, as [`Origin::host`] names it.
    pub host: String,
    /// The position in the blob of the first byte that [`body`](Self::body) yields.
    pub offset: u64,
    /// The position after the last byte that it should yield, where the origin says it.
    pub end: Option<u64>,
    /// The size of the whole blob, where the origin says it.
    pub total_bytes: Option<u64>,
    /// The bytes. An error ends the stream; the end of the stream without one is the end of the blob.
    pub body: BoxStream<'static, Result<Bytes, OriginError>>,
}

/// Why an origin did not give the bytes. The message is a sentence for users that names the upstream and the cause.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct OriginError {
    /// What kind of failure it was.
    pub kind: OriginErrorKind,
    /// The whole story.
    pub message: Arc<str>,
}

/// The kinds of failure that lead to different answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginErrorKind {
    /// It says that it has no such blob.
    NotFound,
    /// It may have it but won't give it.
    Refused {
        /// No credential of ours was involved, so a missing repository looks just the same.
        anonymous: bool,
    },
    /// It asks us to come back later.
    RateLimited {
        /// When, if it said so.
        retry_after: Option<Duration>,
    },
    /// All of our own connections to it are in use.
    Busy,
    /// It can't be reached or answers with a server error.
    Unavailable,
    /// It did not answer in time.
    Timeout,
    /// The body broke off.
    Broken,
    /// It answered with something that can't be this blob: HTML, an encoding, a wrong length.
    Unusable,
}

impl OriginErrorKind {
    /// How long the origin wants to be left alone.
    pub(super) fn wish(self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => retry_after,
            _ => None,
        }
    }

    /// Whether it is about the one repository that was asked, and says nothing about another repository that may have the
    /// same blob.
    pub fn is_about_repository(self) -> bool {
        matches!(self, Self::NotFound | Self::Refused { .. })
    }
}

impl fmt::Debug for OriginBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginBody")
            .field("host", &self.host)
            .field("offset", &self.offset)
            .field("end", &self.end)
            .field("total_bytes", &self.total_bytes)
            .finish_non_exhaustive()
    }
}
