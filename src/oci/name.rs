//! Names: repositories, tags, and the references that manifests are asked by.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, InvalidDigest};

/// A repository name as the distribution specification defines it (`library/nginx`), at most 255 bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryName(Arc<str>);

/// A tag: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(Arc<str>);

/// The name of a registry: a lower-case host name, or an address, with an optional port (`docker.io`, `corp:5000`,
/// `[::1]:5000`). Safe as a folder name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryName(Arc<str>);

/// A repository of a registry (`docker.io/library/nginx`): what tags, manifests and rights belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The registry that holds it.
    pub registry: RegistryName,
    /// Its name there.
    pub name: RepositoryName,
}

/// What a manifest is asked by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A name that can move.
    Tag(Tag),
    /// The content itself, which can't.
    Digest(Digest),
}

/// A text that is not a repository name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a repository name: lower-case letters, digits and single separators (. _ __ -) in segments divided by '/', at most 255 bytes"
)]
pub struct InvalidName(String);

/// A text that is not the name of a registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a registry name: a lower-case host name or address with an optional port, like docker.io or registry.corp:5000"
)]
pub struct InvalidRegistry(String);

/// A text that is neither a tag nor a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// It holds a `:`, so a digest was meant, but it is none.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// It is no tag.
    #[error(
        "{0:?} is not a tag, or a name that is spelled as one: letters, digits, '_', '.', '-', at most 128, not starting with '.' or '-'"
    )]
    Tag(String),
}

/// How much of a refused text is repeated in a message.
const QUOTED_CHARS_MAX: usize = 80;

// === impl RepositoryName ===

impl RepositoryName {
    /// The longest name accepted, in bytes (a common limit of registries, and what a file system can hold).
    pub const LEN_MAX: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments between the slashes, of which there is at least one.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

/// One path component: alphanumerics, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes
        .split(|b| alphanumeric(*b))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= Self::LEN_MAX && text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName(text.chars().take(QUOTED_CHARS_MAX).collect()))
        }
    }
}

// === impl RegistryName ===

impl RegistryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegistryName {
    type Err = InvalidRegistry;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
        let host = |text: &str| {
            text.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
        };
        let legal = text.len() <= 253
            && if let Some(rest) = text.strip_prefix('[') {
                rest.split_once(']').is_some_and(|(address, tail)| {
                    address.parse::<std::net::Ipv6Addr>().is_ok()
                        && (tail.is_empty() || tail.strip_prefix(':').is_some_and(port))
                })
            } else {
                text.split_once(':').map_or_else(|| host(text), |(name, digits)| host(name) && port(digits))
            };
        if legal { Ok(Self(text.into())) } else { Err(InvalidRegistry(text.chars().take(QUOTED_CHARS_MAX).collect())) }
    }
}

// === impl Repository ===

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

// === impl Tag ===

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let legal = (1..=128).contains(&text.len())
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if legal {
            Ok(Self(text.into()))
        } else {
            Err(InvalidReference::Tag(text.chars().take(QUOTED_CHARS_MAX).collect()))
        }
    }
}

// === impl Reference ===

impl FromStr for Reference {
    type Err = InvalidReference;

    /// A text with a `:` is a digest or nothing, any other a tag or nothing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

macro_rules! text_type {
    ($name:ident, $error:ty) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
    };
}

text_type!(RepositoryName, InvalidName);
text_type!(RegistryName, InvalidRegistry);
text_type!(Tag, InvalidReference);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names() {
        for good in ["nginx", "library/nginx", "a/b/c/d", "a.b", "a_b", "a__b", "a---b", "0", "blobs/manifests/tags"] {
            assert_eq!(good.parse::<RepositoryName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", ".a", "a.", "-a", "a-", "a:b", "a b", "..",
            "a/../b", "é", &long,
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn registry_names() {
        for good in ["docker.io", "localhost", "registry.corp:5000", "127.0.0.1:1", "[::1]:5000", "[::1]"] {
            assert_eq!(good.parse::<RegistryName>().unwrap().as_str(), good);
        }
        for bad in [
            "", ".", "..", "a/b", "A.io", "a..b", "a:", "a:x", "_a", "-a", "[::1", "[::1]x", "http://a", "a:1:2",
            "user@a",
        ] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn references() {
        let long = "a".repeat(129);
        for good in ["latest", "V1.0-rc_2", "_x", "1"] {
            assert_eq!(good.parse::<Reference>().unwrap(), Reference::Tag(good.parse().unwrap()));
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "é", "sha256:12", &long] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
        let digest = Digest::sha256(b"x");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
    }
}
