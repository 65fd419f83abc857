//! Full names of images: registry, repository, and a tag or a digest, as people write them and as records keep them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::{InvalidName, InvalidReference, InvalidRegistry, Reference, Repository};

/// An image: `docker.io/library/nginx:1.27`, `quay.io/a/b@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName {
    /// Where it is from.
    pub repository: Repository,
    /// Which one.
    pub reference: Reference,
}

/// A text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImageName {
    /// The part before the first slash.
    #[error(transparent)]
    Registry(#[from] InvalidRegistry),
    /// The part between registry and tag.
    #[error(transparent)]
    Repository(#[from] InvalidName),
    /// The part behind it.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
}

/// A text that names no repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRepository {
    /// Not even with a tag behind it would it be an image.
    #[error(transparent)]
    Name(#[from] InvalidImageName),
    /// It names an image.
    #[error("{0:?} names an image; name a repository, without a tag or digest")]
    Image(String),
}

// === impl ImageName ===

impl FromStr for ImageName {
    type Err = InvalidImageName;

    /// Reads it as container tools do: without a registry it is Docker Hub's, without a tag it is `latest`, and a digest
    /// goes before a tag.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
        let (registry, path) = match name.split_once('/') {
            Some(("docker.io", rest)) if !rest.contains('/') => ("docker.io", format!("library/{rest}")),
            Some((first, rest)) if is_host(first) => (first, rest.to_owned()),
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let repository = Repository { registry: registry.parse()?, name: path.parse()? };
        Ok(Self { repository, reference: digest.or(tag).unwrap_or("latest").parse()? })
    }
}

impl FromStr for Repository {
    type Err = InvalidRepository;

    /// Reads it as names of images are read, without a tag.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name: ImageName = text.parse()?;
        let last = text.rsplit('/').next().unwrap_or(text);
        if text.contains('@') || last.contains(':') {
            return Err(InvalidRepository::Image(text.to_owned()));
        }
        Ok(name.repository)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if matches!(self.reference, Reference::Tag(_)) { ':' } else { '@' };
        write!(f, "{}{separator}{}", self.repository, self.reference)
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidImageName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_no_tags() {
        assert_eq!("nginx".parse::<Repository>().unwrap().to_string(), "docker.io/library/nginx");
        assert_eq!("localhost:5000/a/b".parse::<Repository>().unwrap().to_string(), "localhost:5000/a/b");
        for bad in ["nginx:1", "quay.io/a/b:v1", "quay.io/a@sha256:ab", "", "A"] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_read_as_container_tools_read_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("quay.io/a/b:v1", "quay.io/a/b:v1"),
            ("localhost/a", "localhost/a:latest"),
            ("registry.corp:5000/a", "registry.corp:5000/a:latest"),
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), full);
        }
        let both = format!("quay.io/a:v1@{digest}");
        assert_eq!(both.parse::<ImageName>().unwrap().to_string(), format!("quay.io/a@{digest}"));
        for bad in ["", "A", "a:", "a@sha256:1", "quay.io/", "/a", "a b", "quay.io/../x"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
        let name: ImageName = "quay.io/a/b:v1".parse().unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"quay.io/a/b:v1\"");
    }
}
