//! What a client wants of a blob that is not held: so much that all of it is fetched, or a few bytes here and there. Pure.

use std::ops::Range;

use crate::oci::range::{ByteRange, RangeSpec};
use crate::store::PIECE_BYTES_MAX;

use super::phase::TAIL_BYTES;
use super::transfer::SMALL_BYTES;

/// What a client wants of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    /// All of it, or all from some place on, or its last bytes, which go out only once all of it is verified.
    Whole {
        /// The first byte that the client waits for, as far as that is known.
        first: u64,
    },
    /// These few bytes at definite places. Lazy pullers probe and read like that, and want no more.
    Parts(Vec<ByteRange>),
}

/// Parts of more bytes than this are no small matter: all of the blob is fetched.
const PARTS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What is fetched for parts begins and ends at multiples of this.
pub(super) const BLOCK_BYTES: u64 = PIECE_BYTES_MAX;

// === impl Demand ===

impl Demand {
    /// All of it.
    pub const WHOLE: Self = Self::Whole { first: 0 };

    /// What these ranges of a blob come to, of which a manifest may have said how large it is. No ranges are all of it.
    pub fn of(specs: &[RangeSpec], expected_bytes: Option<u64>) -> Self {
        let bounded = |spec: &RangeSpec| match *spec {
            RangeSpec::FromTo(first, last) => Some((first, last)),
            RangeSpec::From(_) | RangeSpec::Suffix(_) => None,
        };
        let first = match (specs.first(), expected_bytes) {
            (Some(spec), Some(size_bytes)) => spec.resolve(size_bytes).map_or(0, |range| range.first),
            (Some(RangeSpec::FromTo(first, _) | RangeSpec::From(first)), None) => *first,
            (Some(RangeSpec::Suffix(_)) | None, _) => 0,
        };
        let Some(bounds) = specs.iter().map(bounded).collect::<Option<Vec<_>>>().filter(|bounds| !bounds.is_empty())
        else {
            return Self::Whole { first };
        };
        // A range that goes backwards can't be satisfied; all that is needed for saying so is the blob's size.
        let forwards = bounds.into_iter().filter(|(first, last)| first <= last);
        let mut parts: Vec<_> = forwards.map(|(first, last)| ByteRange { first, last }).collect();
        if parts.is_empty() {
            parts.push(ByteRange { first: 0, last: 0 });
        }
        let bytes = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.len()));
        let small = expected_bytes.is_some_and(|size_bytes| size_bytes <= SMALL_BYTES);
        let demand = Self::Parts(parts);
        if bytes > PARTS_BYTES_MAX || small || expected_bytes.is_some_and(|size_bytes| demand.needs_tail(size_bytes)) {
            return Self::Whole { first };
        }
        demand
    }

    /// The first byte that the client waits for.
    pub fn first(&self) -> u64 {
        match self {
            Self::Whole { first } => *first,
            Self::Parts(parts) => parts.first().map_or(0, |part| part.first),
        }
    }

    /// Whether bytes are wanted that go out only once all of a blob of this size is verified.
    pub(super) fn needs_tail(&self, size_bytes: u64) -> bool {
        match self {
            Self::Whole { .. } => true,
            Self::Parts(parts) => needs_tail(parts, size_bytes),
        }
    }
}

/// Whether some of these bytes go out only once all of a blob of this size is verified.
pub(super) fn needs_tail(parts: &[ByteRange], size_bytes: u64) -> bool {
    let reaches = |part: &ByteRange| part.last.saturating_add(1).saturating_add(TAIL_BYTES) > size_bytes;
    parts.iter().any(|part| part.first < size_bytes && reaches(part))
}

/// A part as its bytes.
pub(super) fn bytes_of(part: ByteRange) -> Range<u64> {
    part.first..part.last.saturating_add(1)
}

/// The blocks that hold some bytes of a blob of `size_bytes`; empty beyond its end.
pub(super) fn blocks_of(part: ByteRange, size_bytes: u64) -> Range<u64> {
    let start = part.first / BLOCK_BYTES * BLOCK_BYTES;
    let end = (part.last / BLOCK_BYTES + 1).saturating_mul(BLOCK_BYTES).min(size_bytes);
    start.min(end)..end
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    fn parts(parts: &[(u64, u64)]) -> Demand {
        Demand::Parts(parts.iter().map(|&(first, last)| ByteRange { first, last }).collect())
    }

    #[test]
    fn few_bytes_at_definite_places_are_parts_and_all_else_is_the_whole() {
        use RangeSpec::{From, FromTo, Suffix};
        let large = Some(1024 * MIB);
        for (specs, size_bytes, demand) in [
            (vec![], None, Demand::WHOLE),
            (vec![FromTo(0, 1)], None, parts(&[(0, 1)])),
            (vec![FromTo(0, 1)], large, parts(&[(0, 1)])),
            (
                vec![FromTo(5 * MIB, 5 * MIB + 50_000), FromTo(9 * MIB, 9 * MIB)],
                large,
                parts(&[(5 * MIB, 5 * MIB + 50_000), (9 * MIB, 9 * MIB)]),
            ),
            (vec![FromTo(0, 4 * MIB - 1)], large, parts(&[(0, 4 * MIB - 1)])),
            (vec![FromTo(0, 4 * MIB)], large, Demand::WHOLE),
            (vec![FromTo(0, u64::MAX), FromTo(0, u64::MAX)], None, Demand::WHOLE),
            (vec![From(0)], None, Demand::WHOLE),
            (vec![From(77)], None, Demand::Whole { first: 77 }),
            (vec![FromTo(3, 4), From(77)], large, Demand::Whole { first: 3 }),
            // The tail waits for the digest of the whole.
            (vec![Suffix(51)], None, Demand::WHOLE),
            (vec![Suffix(51)], large, Demand::Whole { first: 1024 * MIB - 51 }),
            (vec![FromTo(1024 * MIB - 100, 1024 * MIB - 51)], large, Demand::Whole { first: 1024 * MIB - 100 }),
            (
                vec![FromTo(1024 * MIB - 64 * KIB - 1, 1024 * MIB - 64 * KIB - 1)],
                large,
                parts(&[(1024 * MIB - 64 * KIB - 1, 1024 * MIB - 64 * KIB - 1)]),
            ),
            // Small blobs are verified before their first byte goes out.
            (vec![FromTo(0, 1)], Some(MIB), Demand::WHOLE),
            // Not to be satisfied, which is for those to say who know the size.
            (vec![FromTo(500, 0)], None, parts(&[(0, 0)])),
            (vec![FromTo(2000 * MIB, 2001 * MIB)], large, parts(&[(2000 * MIB, 2001 * MIB)])),
        ] {
            assert_eq!(Demand::of(&specs, size_bytes), demand, "{specs:?} of {size_bytes:?}");
        }
    }

    #[test]
    fn blocks_hold_what_is_wanted() {
        let part = |first, last| ByteRange { first, last };
        assert_eq!(blocks_of(part(0, 1), 10 * MIB), 0..256 * KIB);
        assert_eq!(blocks_of(part(256 * KIB - 1, 256 * KIB), 10 * MIB), 0..512 * KIB);
        assert_eq!(blocks_of(part(9 * MIB + 1, 20 * MIB), 10 * MIB), 9 * MIB..10 * MIB);
        assert!(blocks_of(part(11 * MIB, 12 * MIB), 10 * MIB).is_empty());
        assert!(blocks_of(part(u64::MAX - 1, u64::MAX), 10 * MIB).is_empty());
    }
}
