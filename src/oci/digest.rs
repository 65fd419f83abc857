//! Content digests: the strict text form `algorithm:hex`, and hashing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// The digest algorithms of the OCI image specification that Cachalot understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-512, 128 hex digits.
    Sha512,
}

/// A content digest. Its text form is `sha256:` and 64, or `sha512:` and 128, lower-case hex digits; nothing else parses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// There is no `:` between algorithm and hex.
    #[error("a digest looks like sha256:<64 hex digits>; there is no ':' in it")]
    NoColon,
    /// The algorithm is not one that Cachalot can verify.
    #[error("digest algorithm is not supported: only sha256 and sha512 are")]
    UnknownAlgorithm,
    /// The hex part has the wrong length for its algorithm.
    #[error("a {algorithm} digest has {expected} hex digits, this one has {found}")]
    Length {
        /// The algorithm named in the text.
        algorithm: Algorithm,
        /// How many hex digits it needs.
        expected: usize,
        /// How many bytes follow the colon.
        found: usize,
    },
    /// The hex part holds something other than `0-9a-f`.
    #[error("a digest holds only lower-case hex digits after the ':'")]
    NotHex,
}

/// How long the text form of the longest digest is.
const TEXT_BYTES_MAX: usize = "sha512:".len() + 128;

/// Computes a digest over bytes that arrive in pieces.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

// === impl Algorithm ===

impl Algorithm {
    /// The name used in the text form and in folder names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hex digits a digest of this algorithm has.
    pub const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(InvalidDigest::UnknownAlgorithm),
        }
    }
}

// === impl Digest ===

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// The algorithm that made this digest.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The lower-case hex digits, without the algorithm.
    pub fn hex(&self) -> String {
        let text = self.to_string();
        text[self.algorithm().as_str().len() + 1..].to_owned()
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// Builds a digest from its algorithm and hex digits, as strictly as parsing the text form.
    pub fn from_hex(algorithm: Algorithm, digits: &str) -> Result<Self, InvalidDigest> {
        let wrong_length = InvalidDigest::Length { algorithm, expected: algorithm.hex_len(), found: digits.len() };
        if digits.len() != algorithm.hex_len() {
            return Err(wrong_length);
        }
        if !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidDigest::NotHex);
        }
        match algorithm {
            Algorithm::Sha256 => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| InvalidDigest::NotHex)?;
                Ok(Self::Sha256(bytes))
            }
            Algorithm::Sha512 => {
                let mut bytes = [0; 64];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| InvalidDigest::NotHex)?;
                Ok(Self::Sha512(bytes))
            }
        }
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, digits) = text.split_once(':').ok_or(InvalidDigest::NoColon)?;
        Self::from_hex(algorithm.parse()?, digits)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Written in one piece and without allocating: each hit writes its digest several times.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = self.algorithm();
        let (name, mut text) = (algorithm.as_str(), [b':'; TEXT_BYTES_MAX]);
        let text = &mut text[..name.len() + 1 + algorithm.hex_len()];
        text[..name.len()].copy_from_slice(name.as_bytes());
        hex::encode_to_slice(self.bytes(), &mut text[name.len() + 1..]).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Hasher ===

impl Hasher {
    /// A hasher that has seen no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::new(sha2::Sha512::new())),
        })
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::Sha256(state.finalize().into()),
            State::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        let empty = Digest::sha256(b"");
        assert_eq!(empty.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(empty.to_string().parse(), Ok(empty));
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert!(long.hex().starts_with("ddaf35a193617aba"));
        assert_eq!(long.to_string().parse(), Ok(long));
    }

    #[test]
    fn strict_text_form() {
        let good = "a".repeat(64);
        for (text, error) in [
            (format!("sha256-{good}"), InvalidDigest::NoColon),
            (format!("md5:{good}"), InvalidDigest::UnknownAlgorithm),
            (format!("SHA256:{good}"), InvalidDigest::UnknownAlgorithm),
            (format!("sha256:{}", "A".repeat(64)), InvalidDigest::NotHex),
            (format!("sha256:{}", "g".repeat(64)), InvalidDigest::NotHex),
            (
                "sha256:baddigeststring".to_owned(),
                InvalidDigest::Length { algorithm: Algorithm::Sha256, expected: 64, found: 15 },
            ),
            (
                format!("sha512:{good}"),
                InvalidDigest::Length { algorithm: Algorithm::Sha512, expected: 128, found: 64 },
            ),
            (
                format!("sha256:{good}\n"),
                InvalidDigest::Length { algorithm: Algorithm::Sha256, expected: 64, found: 65 },
            ),
            (String::new(), InvalidDigest::NoColon),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text:?}");
        }
    }
}
