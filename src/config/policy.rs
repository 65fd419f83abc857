//! What an upstream's content is allowed to be: globs over repositories, platforms, and how long deleted tags stay.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::globs::Globs;
use super::mistake::quoted;
use crate::oci::RepositoryName;

/// Globs over the names of repositories in one registry: `*` stays within a segment, `**` does not.
#[derive(Debug, Clone, PartialEq)]
pub struct NameGlobs(Globs);

/// What becomes of a tag that upstream has deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeletedTags {
    /// It is forgotten at once.
    Forget,
    /// It is served, with a warning, without end.
    Keep,
    /// It is served, with a warning, for so long, and then forgotten.
    For(Duration),
}

/// What images run on, as in `linux/arm64` or `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlatformName {
    /// The operating system.
    pub os: String,
    /// The architecture.
    pub architecture: String,
    /// Its variant; `None` for any.
    pub variant: Option<String>,
}

// === impl NameGlobs ===

impl NameGlobs {
    /// Globs that match nothing.
    pub fn none() -> Self {
        Self(Globs::none())
    }

    /// Reads globs. The error says which is none, and why.
    pub fn new(globs: Vec<String>) -> Result<Self, String> {
        Globs::new(globs).map(Self)
    }

    /// The first that matches, as written.
    pub fn matching(&self, repository: &RepositoryName) -> Option<&str> {
        self.0.matching(repository.as_str())
    }

    /// The globs as written.
    pub fn as_slice(&self) -> &[String] {
        self.0.as_slice()
    }
}

// === impl PlatformName ===

impl FromStr for PlatformName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture, ref variant @ ..] if variant.len() <= 1 && parts.iter().all(plain) => Ok(Self {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.first().map(|variant| (*variant).to_owned()),
            }),
            _ => Err(format!("{} is not a platform such as \"linux/amd64\" or \"linux/arm/v7\"", quoted(text))),
        }
    }
}

impl TryFrom<String> for PlatformName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PlatformName> for String {
    fn from(name: PlatformName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_over_repositories() {
        let globs = NameGlobs::new(vec!["library/*".to_owned(), "acme/**".to_owned()]).unwrap();
        for (name, matching) in [
            ("library/nginx", Some("library/*")),
            ("library/a/b", None),
            ("acme/a/b", Some("acme/**")),
            ("acmetoo/a", None),
        ] {
            assert_eq!(globs.matching(&name.parse().unwrap()), matching, "{name}");
        }
        assert_eq!(NameGlobs::none().matching(&"a".parse().unwrap()), None);
        assert!(NameGlobs::new(vec!["[".to_owned()]).is_err());
    }

    #[test]
    fn platforms() {
        for good in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(good.parse::<PlatformName>().unwrap().to_string(), good);
        }
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/arm 64"] {
            assert!(bad.parse::<PlatformName>().is_err(), "{bad}");
        }
    }
}
