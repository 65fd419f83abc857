//! What became of a request: one vocabulary for the response header, the access log and the metrics.

use std::fmt;
use std::time::Duration;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Held, and served without asking anyone.
    Hit,
    /// Held, past its lifetime, and confirmed by upstream just now.
    Revalidated,
    /// Held, past its lifetime, and not confirmed because upstream failed.
    Stale {
        /// How long ago its lifetime ended.
        expired_for: Duration,
    },
    /// Fetched from upstream for this request, and kept.
    Miss,
    /// Asked of upstream for this request: how long it is and no more, so there was nothing to keep.
    Asked,
    /// Given from a fetch that another request had started.
    Collapsed,
    /// A range of a blob whose digest could not be told before the range ended (law 2's one exception).
    Unverified {
        /// Another request had started the fetch.
        collapsed: bool,
    },
    /// Fetched from upstream and not kept.
    Bypass {
        /// It is a range as in [`Self::Unverified`].
        unverified: bool,
    },
    /// Answered without content: `/v2/`, a method that a mirror does not take.
    Local,
    /// Upstream says that there is no such thing.
    NotFound,
    /// Not allowed, or not asked for in a way that a registry can answer.
    Refused,
    /// Upstream, or the disk, failed and nothing good is held.
    Failed,
}

// === impl Outcome ===

impl Outcome {
    /// All labels, those of requests whose clients left included.
    pub const LABELS: [&str; 12] = [
        "hit",
        "revalidated",
        "stale",
        "miss",
        "collapsed",
        "unverified",
        "bypass",
        "local",
        "not_found",
        "refused",
        "failed",
        "client-left",
    ];

    /// The metric label and log field.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Stale { .. } => "stale",
            Self::Miss | Self::Asked => "miss",
            Self::Collapsed => "collapsed",
            Self::Unverified { .. } => "unverified",
            Self::Bypass { .. } => "bypass",
            Self::Local => "local",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The value of the `Cache-Status` header (RFC 9211).
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hit => f.write_str("cachalot; hit"),
            Self::Revalidated => f.write_str("cachalot; hit; detail=revalidated"),
            Self::Stale { expired_for } => {
                // Less than a second ago is not "-0".
                let seconds = expired_for.as_secs().max(1);
                write!(f, "cachalot; hit; ttl=-{seconds}; detail=upstream-unavailable")
            }
            Self::Miss => f.write_str("cachalot; fwd=miss; stored"),
            Self::Asked => f.write_str("cachalot; fwd=miss"),
            Self::Collapsed => f.write_str("cachalot; fwd=miss; collapsed"),
            Self::Unverified { collapsed: false } => f.write_str("cachalot; fwd=miss; stored; detail=unverified"),
            Self::Unverified { collapsed: true } => f.write_str("cachalot; fwd=miss; collapsed; detail=unverified"),
            Self::Bypass { unverified: false } => f.write_str("cachalot; fwd=bypass"),
            Self::Bypass { unverified: true } => f.write_str("cachalot; fwd=bypass; detail=unverified"),
            Self::Local => f.write_str("cachalot; detail=local"),
            Self::NotFound => f.write_str("cachalot; fwd=miss; detail=not-found"),
            Self::Refused => f.write_str("cachalot; detail=refused"),
            Self::Failed => f.write_str("cachalot; fwd=miss; detail=failed"),
        }
    }
}
