//! The phases of a fill: what is there of the blob, and how much of that may be given out.

use std::sync::Arc;

use bytes::Bytes;

use crate::store::OpenFile;

use super::error::FillError;
use super::segments::Segments;
use super::snapshot::Stage;
use super::waiting::Goal;

/// The last bytes of a blob, which go out only once the whole of it is verified (law 2).
pub const TAIL_BYTES: u64 = 64 * 1024;

/// What is known about a fill at one moment.
///
/// The phases follow each other as `Starting → Running → Verified`, or end in `Failed` from any of the first two.
#[derive(Debug)]
pub(super) enum Phase {
    /// No origin has answered yet.
    Starting,
    /// Bytes are arriving in a file.
    Running { file: Arc<OpenFile>, arrived: Arrived },
    /// All bytes are there and right.
    Verified { content: Content, size_bytes: u64 },
    /// It ended without the blob.
    Failed(FillError),
}

/// What of a blob has arrived.
#[derive(Debug)]
pub(super) enum Arrived {
    /// The first so many bytes of a blob whose size nobody has said.
    Stream(u64),
    /// Any bytes of a blob whose size is known.
    Segments(Segments),
}

/// Where verified bytes lie.
#[derive(Debug)]
pub(super) enum Content {
    File(Arc<OpenFile>),
    Memory(Bytes),
}

/// What a fill says of itself before any byte of it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The blob's size, unless the origin has not said and the end has not come yet.
    pub size_bytes: Option<u64>,
    /// Every byte is verified.
    pub verified: bool,
}

// === impl Phase ===

impl Phase {
    pub(super) fn segments(&mut self) -> Option<&mut Segments> {
        match self {
            Self::Running { arrived: Arrived::Segments(segments), .. } => Some(segments),
            _ => None,
        }
    }

    /// Up to where the bytes from `offset` on may be given out: what is there, but not the tail until all is verified.
    pub(super) fn given_out(&self, offset: u64) -> u64 {
        match self {
            Self::Starting | Self::Failed(_) => 0,
            Self::Running { arrived: Arrived::Stream(frontier), .. } => frontier.saturating_sub(TAIL_BYTES),
            Self::Running { arrived: Arrived::Segments(segments), .. } => {
                segments.end_of(offset).min(segments.size_bytes().saturating_sub(TAIL_BYTES))
            }
            Self::Verified { size_bytes, .. } => *size_bytes,
        }
    }

    pub(super) fn reached(&self, goal: Goal) -> bool {
        match (self, goal) {
            (Self::Verified { .. }, _) => true,
            (_, Goal::Byte(offset)) => offset < self.given_out(offset),
            (Self::Running { arrived: Arrived::Segments(segments), .. }, Goal::Present(offset)) => {
                offset >= segments.size_bytes() || offset < segments.end_of(offset)
            }
            (_, Goal::Present(_)) => self.given_out(0) > 0,
            (_, Goal::Verified) => false,
        }
    }

    /// How far it is, for those who watch.
    pub(super) fn stage(&self) -> Stage {
        match self {
            Self::Starting => Stage::Starting,
            Self::Running { arrived: Arrived::Stream(bytes), .. } => {
                Stage::Running { size_bytes: None, arrived_bytes: *bytes, frontier_bytes: *bytes }
            }
            Self::Running { arrived: Arrived::Segments(segments), .. } => Stage::Running {
                size_bytes: Some(segments.size_bytes()),
                arrived_bytes: segments.present_bytes(),
                frontier_bytes: segments.frontier(),
            },
            Self::Verified { size_bytes, .. } => Stage::Verified { size_bytes: *size_bytes },
            Self::Failed(_) => Stage::Failed,
        }
    }

    pub(super) fn head(&self) -> Result<Head, FillError> {
        match self {
            Self::Starting | Self::Running { arrived: Arrived::Stream(_), .. } => {
                Ok(Head { size_bytes: None, verified: false })
            }
            Self::Running { arrived: Arrived::Segments(segments), .. } => {
                Ok(Head { size_bytes: Some(segments.size_bytes()), verified: false })
            }
            Self::Verified { size_bytes, .. } => Ok(Head { size_bytes: Some(*size_bytes), verified: true }),
            Self::Failed(error) => Err(error.clone()),
        }
    }
}
