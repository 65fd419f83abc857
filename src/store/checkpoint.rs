//! Checkpoints: what is known to be in a partial's file, so that a download can be taken up again. Pure.

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// What of a partial's file may be believed after a restart, once it was compared with what is there.
///
/// Nothing in it is believed as it stands: after a power cut, blocks that had not reached the disk read as zeros. What lies
/// before the hash frontier is compared with digests of prefixes, what lies beyond it with checksums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The size of the whole blob.
    pub size_bytes: u64,
    /// Digests of ever longer prefixes of the blob, as far as it was hashed.
    pub prefixes: Vec<Prefix>,
    /// What is present beyond the longest prefix, in order.
    pub pieces: Vec<CheckedPiece>,
    /// Who the bytes came from, for those who ask when they turn out to be wrong.
    pub origins: Vec<String>,
}

/// The first bytes of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// How many.
    pub bytes: u64,
    /// Their digest, in the blob's own algorithm.
    pub digest: Digest,
}

/// Some bytes of a blob, with a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedPiece {
    /// Where they begin.
    pub start: u64,
    /// How many: at most [`PIECE_BYTES_MAX`].
    pub len: u64,
    /// Their CRC-32C.
    pub crc32c: u32,
}

/// The most that one checksum stands for.
pub const PIECE_BYTES_MAX: u64 = 256 * 1024;

// === impl Checkpoint ===

impl Checkpoint {
    /// How far the blob was hashed.
    pub fn hashed_bytes(&self) -> u64 {
        self.prefixes.last().map_or(0, |prefix| prefix.bytes)
    }

    /// How many bytes it speaks of.
    pub fn present_bytes(&self) -> u64 {
        self.hashed_bytes() + self.pieces.iter().map(|piece| piece.len).sum::<u64>()
    }

    /// Whether it contradicts itself nowhere: everything in order, within the blob, and nothing twice.
    pub fn is_sound(&self) -> bool {
        let mut end = 0;
        let prefixes_grow = self.prefixes.iter().all(|prefix| prefix.bytes > std::mem::replace(&mut end, prefix.bytes));
        let pieces_follow = self.pieces.iter().all(|piece| {
            let start = std::mem::replace(&mut end, piece.start.saturating_add(piece.len));
            piece.start >= start && (1..=PIECE_BYTES_MAX).contains(&piece.len)
        });
        prefixes_grow && pieces_follow && end <= self.size_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(prefixes: &[u64], pieces: &[(u64, u64)]) -> Checkpoint {
        let digest = Digest::sha256(b"x");
        Checkpoint {
            size_bytes: 1000,
            prefixes: prefixes.iter().map(|bytes| Prefix { bytes: *bytes, digest }).collect(),
            pieces: pieces.iter().map(|(start, len)| CheckedPiece { start: *start, len: *len, crc32c: 7 }).collect(),
            origins: vec!["docker.io/library/app".to_owned()],
        }
    }

    #[test]
    fn only_what_is_in_order_and_within_the_blob_is_sound() {
        for (prefixes, pieces, sound) in [
            (&[][..], &[][..], true),
            (&[10, 20], &[(20, 5), (25, 5), (990, 10)], true),
            (&[20, 10], &[], false),
            (&[0], &[], false),
            (&[20, 20], &[], false),
            (&[20], &[(19, 5)], false),
            (&[], &[(30, 5), (10, 5)], false),
            (&[], &[(30, 0)], false),
            (&[], &[(995, 6)], false),
            (&[1001], &[], false),
            (&[], &[(u64::MAX, 2)], false),
        ] {
            assert_eq!(checkpoint(prefixes, pieces).is_sound(), sound, "{prefixes:?} {pieces:?}");
        }
        let whole = Checkpoint { size_bytes: u64::MAX, ..checkpoint(&[], &[(0, PIECE_BYTES_MAX + 1)]) };
        assert!(!whole.is_sound(), "one checksum stands for a bounded number of bytes");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let written = checkpoint(&[10, 20], &[(30, 5)]);
        let text = serde_json::to_vec(&written).unwrap();
        assert_eq!(serde_json::from_slice::<Checkpoint>(&text).unwrap(), written);
        assert_eq!((written.hashed_bytes(), written.present_bytes()), (20, 25));
    }
}
