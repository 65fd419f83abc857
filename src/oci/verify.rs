//! The only door to `Verified`: bytes are hashed and counted here, and nowhere else is the token made.

use super::digest::{Digest, Hasher};

/// Proof that bytes with this digest and size went through a [`Verifier`]. The store commits nothing without it (law 1).
///
/// It can't be built, cloned or changed outside this file.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    digest: Digest,
    size_bytes: u64,
}

/// Hashes and counts a body as it arrives, and says at its end whether it is what was asked for.
///
/// A clone may go another way from where it was made; each makes a token for the bytes that it took in itself.
#[derive(Clone, Debug)]
pub struct Verifier {
    expected: Digest,
    expected_size: Option<u64>,
    hasher: Hasher,
    size_bytes: u64,
}

/// Why a body is not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The bytes hash to something else.
    #[error("content mismatch: expected {expected}, but {size_bytes} bytes arrived that hash to {actual}")]
    Digest {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what arrived.
        actual: Digest,
        /// How many bytes arrived.
        size_bytes: u64,
    },
    /// The number of bytes differs from the size that was announced.
    #[error("size mismatch for {digest}: expected {expected_bytes} bytes, got {actual_bytes}")]
    Size {
        /// The digest that was asked for.
        digest: Digest,
        /// The announced size.
        expected_bytes: u64,
        /// How many bytes arrived.
        actual_bytes: u64,
    },
}

// === impl Verifier ===

impl Verifier {
    /// Starts on a body that should hash to `expected` and, where the size is known, be just that long.
    pub fn new(expected: Digest, expected_size: Option<u64>) -> Self {
        Self { expected, expected_size, hasher: Hasher::new(expected.algorithm()), size_bytes: 0 }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// How many bytes were taken in.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of what was taken in so far. It proves nothing: it is for recognising the same bytes again.
    pub fn prefix_digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Ends the body: the proof, or what is wrong with it.
    pub fn finish(self) -> Result<Verified, Mismatch> {
        if let Some(expected_bytes) = self.expected_size
            && expected_bytes != self.size_bytes
        {
            return Err(Mismatch::Size { digest: self.expected, expected_bytes, actual_bytes: self.size_bytes });
        }
        let actual = self.hasher.finish();
        if actual != self.expected {
            return Err(Mismatch::Digest { expected: self.expected, actual, size_bytes: self.size_bytes });
        }
        Ok(Verified { digest: self.expected, size_bytes: self.size_bytes })
    }
}

// === impl Verified ===

impl Verified {
    /// Verifies bytes that are all in memory.
    pub fn check(expected: &Digest, bytes: &[u8]) -> Result<Self, Mismatch> {
        let mut verifier = Verifier::new(*expected, None);
        verifier.update(bytes);
        verifier.finish()
    }

    /// The digest that the bytes were proven to have.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many bytes there are.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_bytes_in_any_pieces_are_verified() {
        let body = b"some layer";
        let digest = Digest::sha256(body);
        for cut in 0..=body.len() {
            let mut verifier = Verifier::new(digest, Some(body.len() as u64));
            verifier.update(&body[..cut]);
            verifier.update(&body[cut..]);
            let verified = verifier.finish().unwrap();
            assert_eq!((verified.digest(), verified.size_bytes()), (digest, 10));
        }
    }

    #[test]
    fn every_single_corrupt_or_missing_byte_is_a_mismatch() {
        let body = b"some layer".to_vec();
        let digest = Digest::sha256(&body);
        for at in 0..body.len() {
            let mut corrupt = body.clone();
            corrupt[at] ^= 1;
            assert!(matches!(Verified::check(&digest, &corrupt), Err(Mismatch::Digest { .. })));
            assert!(Verified::check(&digest, &body[..at]).is_err());
        }
    }

    #[test]
    fn a_wrong_size_is_told_apart_from_wrong_bytes() {
        let mut verifier = Verifier::new(Digest::sha256(b"ab"), Some(3));
        verifier.update(b"ab");
        assert_eq!(
            verifier.finish(),
            Err(Mismatch::Size { digest: Digest::sha256(b"ab"), expected_bytes: 3, actual_bytes: 2 })
        );
    }
}
