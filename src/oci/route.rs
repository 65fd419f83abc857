//! The whole URL grammar: which endpoint of which repository a path and its query ask for.
//!
//! ```text
//! path     = [ "/" prefix ] "/v2" [ "/" ]                                    ping
//!          | [ "/" prefix ] "/v2/" name "/manifests/" ( tag | digest )
//!          | [ "/" prefix ] "/v2/" name "/blobs/" digest
//!          | [ "/" prefix ] "/v2/" name "/tags/list"                         ? n, last
//!          | [ "/" prefix ] "/v2/" name "/referrers/" digest                 ? artifactType, repeatable
//!          | [ "/" prefix ] "/v2/" name "/blobs/uploads" [ "/" anything ]    writing, refused by the server
//!          | [ "/" prefix ] "/v2/" [ name "/" ] "_catalog"                   refused by the server
//! ```
//!
//! and `ns` in any query. The four ways in which clients name an upstream all fit: `?ns=`, a `prefix`, leading segments of
//! `name`, or none at all; which one counts is decided later, when the upstreams are known. Rules:
//!
//! - The *first* segment `v2` ends the prefix, so a repository may have a segment `v2` and a prefix may not.
//! - What follows it is read from the right, so a repository may have segments `blobs`, `manifests`, `tags` and so on.
//! - Each segment is percent-decoded by itself, once: `sha256%3A…` is a digest, and `%2F` never makes a new segment.
//! - `name` is the text between `v2` and the endpoint, of legal characters and length. It becomes a `RepositoryName` once
//!   the upstream's part has been taken from it.
//! - Unknown query parameters are ignored. `+` is itself, for no value here holds a blank and media types hold a plus.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::digest::{Digest, InvalidDigest};
use super::error::ErrorCode;
use super::name::{InvalidReference, Reference};
use super::query::{self, BadParameter, Parameter, decode};

/// The longest path that is read, in bytes.
pub const PATH_BYTES_MAX: usize = 4 * 1024;
/// The longest query that is read, in bytes.
pub const QUERY_BYTES_MAX: usize = 16 * 1024;
/// The longest prefix, in bytes.
pub const PREFIX_BYTES_MAX: usize = 255;
/// The longest raw name, in bytes: a repository name and the name of its registry before it.
pub const NAME_BYTES_MAX: usize = 512;

/// How much of a refused text is repeated in a message.
const QUOTED_CHARS_MAX: usize = 80;

/// What a URL asks for. Its `Display` is a URL that parses to the same route, as paging links need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The path before `/v2`, without slashes at its ends: the name or alias of an upstream.
    pub prefix: Option<String>,
    /// All that stands between `/v2/` and the endpoint: a repository, perhaps with an upstream's name or alias before it.
    /// Empty for a ping.
    pub name: String,
    /// What is asked of that repository.
    pub endpoint: Endpoint,
    /// `ns`, decoded: the registry that the client believes to be talking to. A look-up key, never an address.
    pub namespace: Option<String>,
}

/// The endpoints of the distribution specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v2/`: is this a registry?
    Ping,
    /// A manifest, by tag or digest.
    Manifest(Reference),
    /// A blob.
    Blob(Digest),
    /// The list of tags.
    Tags {
        /// `n`: at most so many. Zero means none, absent means all.
        limit: Option<u64>,
        /// `last`: only those after this one.
        last: Option<String>,
    },
    /// The manifests that refer to a digest.
    Referrers {
        /// What they refer to.
        subject: Digest,
        /// `artifactType`: only those of one of these types; empty means all. Each only once, in the order asked.
        artifact_types: Vec<String>,
    },
    /// Anything below `/blobs/uploads`: writing.
    Upload,
    /// The list of repositories.
    Catalog,
}

/// What is wrong with a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No segment of the path is `v2`.
    #[error("this is an image registry: its paths start with /v2/, or with a mirror prefix and /v2/")]
    NotRegistry,
    /// The path before `/v2` can't be an upstream's name or alias.
    #[error("no upstream is called {0:?}: the path before /v2/ must be the name or alias of a configured upstream")]
    UnknownPrefix(String),
    /// The end of the path is no endpoint.
    #[error(
        "no such endpoint: a path ends in /manifests/<tag or digest>, /blobs/<digest>, /tags/list or /referrers/<digest>"
    )]
    UnknownEndpoint,
    /// What stands for the repository isn't one.
    #[error(
        "{0:?} is not a repository name: lower-case letters, digits and separators (. _ -) in segments divided by '/', at most {NAME_BYTES_MAX} bytes"
    )]
    InvalidName(String),
    /// What stands for the reference is no legal tag, so nothing can be known by it.
    #[error("no such manifest: {0}")]
    InvalidReference(InvalidReference),
    /// What stands for the digest isn't one.
    #[error("not a digest: {0}")]
    InvalidDigest(#[from] InvalidDigest),
    /// The path holds a `%` that starts no escape, or escapes that are not UTF-8.
    #[error("the path is badly percent-encoded")]
    BadEncoding,
    /// The value of a query parameter makes no sense.
    #[error(transparent)]
    BadQuery(#[from] BadParameter),
    /// The path or the query is longer than any that means something.
    #[error(
        "the URL is too long: at most {PATH_BYTES_MAX} bytes of path and {QUERY_BYTES_MAX} bytes of query are read"
    )]
    TooLong,
}

/// The status that a [`RouteError`] is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteStatus {
    /// 404
    NotFound,
    /// 400
    BadRequest,
}

/// Reads the path and the query of a request, both as they came (percent-encoded, without `?`).
pub fn parse(path: &str, query: Option<&str>) -> Result<Route, RouteError> {
    let query = query.unwrap_or_default();
    if path.len() > PATH_BYTES_MAX || query.len() > QUERY_BYTES_MAX {
        return Err(RouteError::TooLong);
    }
    let path = path.strip_prefix('/').ok_or(RouteError::NotRegistry)?;
    let segments = path.split('/').map(decode).collect::<Option<Vec<_>>>().ok_or(RouteError::BadEncoding)?;
    let root = segments.iter().position(|segment| segment == "v2").ok_or(RouteError::NotRegistry)?;
    let (before, after) = (&segments[..root], &segments[root + 1..]);
    let prefix = prefix(before)?;
    let namespace = query::namespace(query)?;
    let (name, endpoint) = if after.is_empty() || after == [""] {
        (String::new(), Endpoint::Ping)
    } else {
        let (name, tail) = split(after)?;
        let name = match (name, tail) {
            ([], Tail::Catalog) => String::new(),
            (segments, _) => join_name(segments)?,
        };
        (name, endpoint(tail, query)?)
    };
    Ok(Route { prefix, name, endpoint, namespace })
}

/// The end of a path, not yet read.
#[derive(Clone, Copy)]
enum Tail<'a> {
    Manifest(&'a str),
    Blob(&'a str),
    Referrers(&'a str),
    Tags,
    Upload,
    Catalog,
}

/// Divides what follows `/v2/` into the name's segments and the endpoint. The rightmost reading wins.
fn split<'a>(segments: &'a [Cow<'a, str>]) -> Result<(&'a [Cow<'a, str>], Tail<'a>), RouteError> {
    if let [name @ .., kind, last] = segments {
        let tail = match (kind.as_ref(), last.as_ref()) {
            ("manifests", reference) => Some(Tail::Manifest(reference)),
            ("blobs", "uploads") => Some(Tail::Upload),
            ("blobs", digest) => Some(Tail::Blob(digest)),
            ("referrers", digest) => Some(Tail::Referrers(digest)),
            ("tags", "list") => Some(Tail::Tags),
            _ => None,
        };
        if let Some(tail) = tail {
            return Ok((name, tail));
        }
    }
    if let Some(at) = segments.windows(2).rposition(|pair| pair[0] == "blobs" && pair[1] == "uploads") {
        return Ok((&segments[..at], Tail::Upload));
    }
    match segments {
        [name @ .., last] if last == "_catalog" => Ok((name, Tail::Catalog)),
        _ => Err(RouteError::UnknownEndpoint),
    }
}

fn endpoint(tail: Tail<'_>, query: &str) -> Result<Endpoint, RouteError> {
    Ok(match tail {
        Tail::Manifest(reference) => Endpoint::Manifest(reference.parse().map_err(|error| match error {
            InvalidReference::Digest(error) => RouteError::InvalidDigest(error),
            InvalidReference::Tag(_) => RouteError::InvalidReference(error),
        })?),
        Tail::Blob(digest) => Endpoint::Blob(digest.parse()?),
        Tail::Referrers(digest) => {
            Endpoint::Referrers { subject: digest.parse()?, artifact_types: query::artifact_types(query)? }
        }
        Tail::Tags => Endpoint::Tags { limit: query::limit(query)?, last: query::last(query)? },
        Tail::Upload => Endpoint::Upload,
        Tail::Catalog => Endpoint::Catalog,
    })
}

/// Joins the segments before `v2`. Empty ones at the ends come from mirror addresses written with a slash too many.
fn prefix(segments: &[Cow<'_, str>]) -> Result<Option<String>, RouteError> {
    let joined = segments.join("/");
    let prefix = joined.trim_matches('/');
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._:~-".contains(&b);
    let segment_is_legal = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(legal);
    if prefix.is_empty() {
        Ok(None)
    } else if prefix.len() <= PREFIX_BYTES_MAX && prefix.split('/').all(segment_is_legal) {
        Ok(Some(prefix.to_owned()))
    } else {
        Err(RouteError::UnknownPrefix(quoted(prefix)))
    }
}

/// Joins the segments of a name, if all are what a repository or a registry (hence the colon) may be made of.
fn join_name(segments: &[Cow<'_, str>]) -> Result<String, RouteError> {
    let outer = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let segment_is_legal = |segment: &[u8]| {
        let inner = |b: &u8| outer(Some(b)) || b"._:-".contains(b);
        outer(segment.first()) && outer(segment.last()) && segment.iter().all(inner)
    };
    let name = segments.join("/");
    if name.len() <= NAME_BYTES_MAX
        && segments.iter().all(|segment| segment_is_legal(segment.as_bytes()))
        && !name.is_empty()
    {
        Ok(name)
    } else {
        Err(RouteError::InvalidName(quoted(&name)))
    }
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_CHARS_MAX).collect()
}

// === impl Route ===

/// What needs no encoding in a query value, so that a link stays readable.
const ENCODED_IN_VALUES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-').remove(b'~').remove(b'/');

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(prefix) = &self.prefix {
            write!(f, "/{prefix}")?;
        }
        f.write_str("/v2/")?;
        f.write_str(&self.name)?;
        if !self.name.is_empty() {
            f.write_str("/")?;
        }
        let mut parameters: Vec<(Parameter, String)> = Vec::new();
        match &self.endpoint {
            Endpoint::Ping => {}
            Endpoint::Manifest(reference) => write!(f, "manifests/{reference}")?,
            Endpoint::Blob(digest) => write!(f, "blobs/{digest}")?,
            Endpoint::Tags { limit, last } => {
                f.write_str("tags/list")?;
                parameters.extend(limit.map(|limit| (Parameter::Limit, limit.to_string())));
                parameters.extend(last.clone().map(|last| (Parameter::Last, last)));
            }
            Endpoint::Referrers { subject, artifact_types } => {
                write!(f, "referrers/{subject}")?;
                parameters.extend(artifact_types.iter().map(|value| (Parameter::ArtifactType, value.clone())));
            }
            Endpoint::Upload => f.write_str("blobs/uploads/")?,
            Endpoint::Catalog => f.write_str("_catalog")?,
        }
        parameters.extend(self.namespace.clone().map(|namespace| (Parameter::Namespace, namespace)));
        for (index, (parameter, value)) in parameters.iter().enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            write!(f, "{separator}{parameter}={}", utf8_percent_encode(value, ENCODED_IN_VALUES))?;
        }
        Ok(())
    }
}

// === impl RouteError ===

impl RouteError {
    /// The code in the answer's body.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotRegistry | Self::UnknownEndpoint | Self::TooLong => ErrorCode::Unsupported,
            Self::UnknownPrefix(_) => ErrorCode::NameUnknown,
            Self::InvalidName(_) | Self::BadEncoding => ErrorCode::NameInvalid,
            Self::InvalidReference(_) => ErrorCode::ManifestUnknown,
            Self::InvalidDigest(_) => ErrorCode::DigestInvalid,
            Self::BadQuery(BadParameter { parameter, .. }) => match parameter {
                Parameter::Namespace => ErrorCode::NameInvalid,
                Parameter::Limit => ErrorCode::PaginationNumberInvalid,
                Parameter::Last | Parameter::ArtifactType => ErrorCode::Unsupported,
            },
        }
    }

    /// The status of the answer.
    ///
    /// An illegal tag is 404 rather than 400, because clients take only that as "absent", and signature tools ask for tags
    /// that are too long to exist (`sha512-<128 hex digits>.sig`). What is malformed beyond that is 400.
    pub fn status(&self) -> RouteStatus {
        match self {
            Self::NotRegistry | Self::UnknownPrefix(_) | Self::UnknownEndpoint | Self::InvalidReference(_) => {
                RouteStatus::NotFound
            }
            Self::InvalidName(_) | Self::InvalidDigest(_) | Self::BadEncoding | Self::BadQuery(_) | Self::TooLong => {
                RouteStatus::BadRequest
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Tag;
    use crate::oci::query::{ARTIFACT_TYPES_MAX, NAMESPACE_BYTES_MAX};

    /// `D` and `E` in the tables stand for digests, here and in the URLs.
    fn expand(text: &str) -> String {
        text.replace("{D}", &format!("sha256:{}", "d".repeat(64)))
            .replace("{E}", &format!("sha512:{}", "e".repeat(128)))
    }

    /// What a URL is read as: `prefix | name | endpoint | namespace`, or `status code`.
    fn reading(url: &str) -> String {
        let (path, query) = url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
        let route = match parse(path, query) {
            Ok(route) => route,
            Err(error) => {
                let status = match error.status() {
                    RouteStatus::NotFound => 404,
                    RouteStatus::BadRequest => 400,
                };
                return format!("{status} {}", error.code());
            }
        };
        let endpoint = match &route.endpoint {
            Endpoint::Ping => "ping".to_owned(),
            Endpoint::Manifest(Reference::Tag(tag)) => format!("manifest tag {tag}"),
            Endpoint::Manifest(Reference::Digest(digest)) => format!("manifest {digest}"),
            Endpoint::Blob(digest) => format!("blob {digest}"),
            Endpoint::Tags { limit, last } => {
                let (limit, last) =
                    (limit.map(|limit| format!(" n={limit}")), last.as_ref().map(|last| format!(" last={last}")));
                format!("tags{}{}", limit.unwrap_or_default(), last.unwrap_or_default())
            }
            Endpoint::Referrers { subject, artifact_types } => {
                let types = artifact_types.iter().map(String::as_str);
                ["referrers", &subject.to_string()].into_iter().chain(types).collect::<Vec<_>>().join(" ")
            }
            Endpoint::Upload => "upload".to_owned(),
            Endpoint::Catalog => "catalog".to_owned(),
        };
        let or_dash = |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
        let (prefix, name) = (or_dash(route.prefix.as_deref()), or_dash(Some(&route.name)));
        format!("{prefix} | {name} | {endpoint} | {}", or_dash(route.namespace.as_deref()))
    }

    #[test]
    #[rustfmt::skip]
    #[expect(clippy::too_many_lines, reason = "one table, to be read as a whole")]
    fn the_whole_grammar_in_one_table() {
        let table = [
            // ping
            ("/v2",                                               "- | - | ping | -"),
            ("/v2/",                                              "- | - | ping | -"),
            ("/v2/?ns=docker.io",                                 "- | - | ping | docker.io"),
            ("/docker.io/v2/",                                    "docker.io | - | ping | -"),
            ("/a/b/v2",                                           "a/b | - | ping | -"),
            // U1: the upstream in ns
            ("/v2/library/nginx/manifests/1.27?ns=docker.io",     "- | library/nginx | manifest tag 1.27 | docker.io"),
            ("/v2/app/manifests/x?ns=registry.corp%3A5000",       "- | app | manifest tag x | registry.corp:5000"),
            ("/v2/app/manifests/x?ns=registry.corp:5000",         "- | app | manifest tag x | registry.corp:5000"),
            ("/v2/app/manifests/x?ns=%5B::1%5D:5000",             "- | app | manifest tag x | [::1]:5000"),
            ("/v2/app/manifests/x?ns=",                           "- | app | manifest tag x | -"),
            ("/v2/app/manifests/x?ns=a.io&ns=a.io",               "- | app | manifest tag x | a.io"),
            ("/v2/app/manifests/x?ns=a.io&ns=b.io",               "400 NAME_INVALID"),
            ("/v2/app/manifests/x?ns=http://a.io/",               "400 NAME_INVALID"),
            ("/v2/app/manifests/x?ns=a.io%0d%0aX:y",              "400 NAME_INVALID"),
            ("/v2/app/manifests/x?ns=%zz",                        "400 NAME_INVALID"),
            // U2: the upstream after /v2/
            ("/v2/docker.io/library/nginx/manifests/1.27",        "- | docker.io/library/nginx | manifest tag 1.27 | -"),
            ("/v2/docker.io/library/nginx/blobs/{D}?ns=docker.io", "- | docker.io/library/nginx | blob {D} | docker.io"),
            ("/v2/registry.corp:5000/app/manifests/x",            "- | registry.corp:5000/app | manifest tag x | -"),
            // U3: the upstream before /v2/
            ("/docker.io/v2/library/nginx/manifests/1.27?ns=docker.io", "docker.io | library/nginx | manifest tag 1.27 | docker.io"),
            ("/registry.corp:5000/v2/app/blobs/{D}",              "registry.corp:5000 | app | blob {D} | -"),
            ("/artifactory/api/docker/Hub_1/v2/app/tags/list",    "artifactory/api/docker/Hub_1 | app | tags | -"),
            ("//v2/app/manifests/x",                              "- | app | manifest tag x | -"),
            ("/docker.io//v2/app/manifests/x",                    "docker.io | app | manifest tag x | -"),
            ("/docker%2Eio/v2/app/manifests/x",                   "docker.io | app | manifest tag x | -"),
            ("/a//b/v2/app/manifests/x",                          "404 NAME_UNKNOWN"),
            ("/../v2/app/manifests/x",                            "404 NAME_UNKNOWN"),
            ("/a%2Fb/../v2/app/manifests/x",                      "404 NAME_UNKNOWN"),
            ("/a%20b/v2/app/manifests/x",                         "404 NAME_UNKNOWN"),
            // U4: none
            ("/v2/library/nginx/manifests/1.27",                  "- | library/nginx | manifest tag 1.27 | -"),
            // references
            ("/v2/app/manifests/{D}",                             "- | app | manifest {D} | -"),
            ("/v2/app/manifests/{E}",                             "- | app | manifest {E} | -"),
            ("/v2/app/blobs/{E}",                                 "- | app | blob {E} | -"),
            ("/v2/app/manifests/sha256%3Addddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd%64", "- | app | manifest {D} | -"),
            ("/v2/app/manifests/sha256%3addddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd%64", "- | app | manifest {D} | -"),
            ("/v2/app/manifests/sha256-dd.sig",                   "- | app | manifest tag sha256-dd.sig | -"),
            ("/v2/app/manifests/_catalog",                        "- | app | manifest tag _catalog | -"),
            ("/v2/app/manifests/list",                            "- | app | manifest tag list | -"),
            ("/v2/app/manifests/",                                "404 MANIFEST_UNKNOWN"),
            ("/v2/app/manifests/-x",                              "404 MANIFEST_UNKNOWN"),
            ("/v2/app/manifests/a%2Fb",                           "404 MANIFEST_UNKNOWN"),
            ("/v2/app/manifests/a%20b",                           "404 MANIFEST_UNKNOWN"),
            ("/v2/app/manifests/sha256:baddigeststring",          "400 DIGEST_INVALID"),
            ("/v2/app/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", "400 DIGEST_INVALID"),
            ("/v2/app/manifests/{D}0",                            "400 DIGEST_INVALID"),
            ("/v2/app/blobs/latest",                              "400 DIGEST_INVALID"),
            ("/v2/app/blobs/",                                    "400 DIGEST_INVALID"),
            ("/v2/app/blobs/sha256:DDDD",                         "400 DIGEST_INVALID"),
            // from the right: names that look like endpoints
            ("/v2/blobs/manifests/tags/manifests/latest",         "- | blobs/manifests/tags | manifest tag latest | -"),
            ("/v2/manifests/manifests/manifests",                 "- | manifests | manifest tag manifests | -"),
            ("/v2/a/blobs/uploads/manifests/x",                   "- | a/blobs/uploads | manifest tag x | -"),
            ("/v2/a/manifests/x/blobs/{D}",                       "- | a/manifests/x | blob {D} | -"),
            ("/v2/a/tags/list/tags/list",                         "- | a/tags/list | tags | -"),
            ("/v2/manifests/tags/list",                           "- | manifests | tags | -"),
            ("/v2/a/referrers/referrers/{D}",                     "- | a/referrers | referrers {D} | -"),
            ("/v2/v2/manifests/x",                                "- | v2 | manifest tag x | -"),
            ("/v2/a/v2/manifests/x",                              "- | a/v2 | manifest tag x | -"),
            ("/docker.io/v2/v2/v2/manifests/v2",                  "docker.io | v2/v2 | manifest tag v2 | -"),
            // names
            ("/v2/a.b/c_d/e__f/g--h/0/manifests/x",               "- | a.b/c_d/e__f/g--h/0 | manifest tag x | -"),
            ("/v2/a%2Db/manifests/x",                             "- | a-b | manifest tag x | -"),
            ("/v2/library%2Fnginx/manifests/x",                   "400 NAME_INVALID"),
            ("/v2/a%252Fb/manifests/x",                           "400 NAME_INVALID"),
            ("/v2/manifests/latest",                              "400 NAME_INVALID"),
            ("/v2/tags/list",                                     "400 NAME_INVALID"),
            ("/v2//manifests/latest",                             "400 NAME_INVALID"),
            ("/v2//app/manifests/latest",                         "400 NAME_INVALID"),
            ("/v2/a//b/manifests/latest",                         "400 NAME_INVALID"),
            ("/v2/App/manifests/latest",                          "400 NAME_INVALID"),
            ("/v2/../app/manifests/latest",                       "400 NAME_INVALID"),
            ("/v2/a/%2e%2e/b/manifests/latest",                   "400 NAME_INVALID"),
            ("/v2/-a/manifests/latest",                           "400 NAME_INVALID"),
            ("/v2/a_/manifests/latest",                           "400 NAME_INVALID"),
            ("/v2/%C3%A9/manifests/latest",                       "400 NAME_INVALID"),
            ("/v2/a%00/manifests/latest",                         "400 NAME_INVALID"),
            ("/v2/%FF/manifests/latest",                          "400 NAME_INVALID"),
            ("/v2/a%/manifests/latest",                           "400 NAME_INVALID"),
            ("/v2/a%4/manifests/latest",                          "400 NAME_INVALID"),
            // tags
            ("/v2/app/tags/list",                                 "- | app | tags | -"),
            ("/v2/app/tags/list?n=2&last=1.27&ns=docker.io",      "- | app | tags n=2 last=1.27 | docker.io"),
            ("/v2/app/tags/list?n=0",                             "- | app | tags n=0 | -"),
            ("/v2/app/tags/list?n=99999999999999999999999",       "- | app | tags n=18446744073709551615 | -"),
            ("/v2/app/tags/list?n=&last=&other=%zz&&flag",        "- | app | tags | -"),
            ("/v2/app/tags/list?last=sha256%3Aab",                "- | app | tags last=sha256:ab | -"),
            ("/v2/app/tags/list?n=-1",                            "400 PAGINATION_NUMBER_INVALID"),
            ("/v2/app/tags/list?n=+1",                            "400 PAGINATION_NUMBER_INVALID"),
            ("/v2/app/tags/list?n=ten",                           "400 PAGINATION_NUMBER_INVALID"),
            ("/v2/app/tags/list?n=1&n=2",                         "400 PAGINATION_NUMBER_INVALID"),
            ("/v2/app/tags/list?last=a%0Ab",                      "400 UNSUPPORTED"),
            ("/v2/app/tags/list/",                                "404 UNSUPPORTED"),
            ("/v2/app/tags",                                      "404 UNSUPPORTED"),
            ("/v2/app/manifests/x?n=ten",                         "- | app | manifest tag x | -"),
            // referrers
            ("/v2/app/referrers/{D}",                             "- | app | referrers {D} | -"),
            ("/v2/app/referrers/{D}?artifactType=a/b%2Bjson&artifactType=c/d&artifactType=c/d", "- | app | referrers {D} a/b+json c/d | -"),
            ("/v2/app/referrers/{D}?artifactType=a/b+json",       "- | app | referrers {D} a/b+json | -"),
            ("/v2/app/referrers/{D}?artifactType=",               "- | app | referrers {D} | -"),
            ("/v2/app/referrers/{D}?artifactType=%00",            "400 UNSUPPORTED"),
            ("/v2/app/referrers/latest",                          "400 DIGEST_INVALID"),
            // what the server refuses, by name
            ("/v2/app/blobs/uploads",                             "- | app | upload | -"),
            ("/v2/app/blobs/uploads/?mount={D}&from=b",           "- | app | upload | -"),
            ("/v2/app/blobs/uploads/0f3c-77",                     "- | app | upload | -"),
            ("/v2/app/blobs/uploads/x/y",                         "- | app | upload | -"),
            ("/v2/_catalog?n=5",                                  "- | - | catalog | -"),
            ("/v2/docker.io/_catalog",                            "- | docker.io | catalog | -"),
            // nothing of ours
            ("/",                                                 "404 UNSUPPORTED"),
            ("",                                                  "404 UNSUPPORTED"),
            ("*",                                                 "404 UNSUPPORTED"),
            ("/v1/search",                                        "404 UNSUPPORTED"),
            ("/v2x/app/manifests/x",                              "404 UNSUPPORTED"),
            ("/v2/app",                                           "404 UNSUPPORTED"),
            ("/v2/docker.io/",                                    "404 UNSUPPORTED"),
            ("/v2/_oci/ext/discover",                             "404 UNSUPPORTED"),
            ("/v2/app/manifests",                                 "404 UNSUPPORTED"),
            ("/v2/app/manifests/x/y",                             "404 UNSUPPORTED"),
        ];
        for (url, expected) in table {
            assert_eq!(reading(&expand(url)), expand(expected), "{url}");
        }
    }

    #[test]
    fn everything_has_a_longest_form() {
        let ok = |url: String| assert!(!reading(&url).starts_with('4'), "{url}");
        let refused = |url: String, expected: &str| assert_eq!(reading(&url), expected, "{url}");
        let types = |count: usize| {
            let types = (0..count).map(|i| format!("artifactType=a/{i}")).collect::<Vec<_>>().join("&");
            expand(&format!("/v2/a/referrers/{{D}}?{types}"))
        };
        ok(format!("/v2/{}/manifests/x", "a".repeat(NAME_BYTES_MAX)));
        refused(format!("/v2/{}/manifests/x", "a".repeat(NAME_BYTES_MAX + 1)), "400 NAME_INVALID");
        ok(format!("/{}/v2/", "a".repeat(PREFIX_BYTES_MAX)));
        refused(format!("/{}/v2/", "a".repeat(PREFIX_BYTES_MAX + 1)), "404 NAME_UNKNOWN");
        ok(format!("/v2/?ns={}", "a".repeat(NAMESPACE_BYTES_MAX)));
        refused(format!("/v2/?ns={}", "a".repeat(NAMESPACE_BYTES_MAX + 1)), "400 NAME_INVALID");
        ok(format!("/v2/a/manifests/{}", "t".repeat(128)));
        refused(format!("/v2/a/manifests/sha512-{}.sig", "d".repeat(128)), "404 MANIFEST_UNKNOWN");
        ok(format!("/v2/a/tags/list?last={}", "t".repeat(255)));
        refused(format!("/v2/a/tags/list?last={}", "t".repeat(256)), "400 UNSUPPORTED");
        ok(types(ARTIFACT_TYPES_MAX));
        refused(types(ARTIFACT_TYPES_MAX + 1), "400 UNSUPPORTED");
        ok(format!("/v2/?{}", "x".repeat(QUERY_BYTES_MAX)));
        refused(format!("/v2/?{}", "x".repeat(QUERY_BYTES_MAX + 1)), "400 UNSUPPORTED");
        refused(format!("/v2/{}", "x".repeat(PATH_BYTES_MAX)), "400 UNSUPPORTED");
    }

    #[test]
    fn messages_quote_little_of_what_was_sent() {
        let error = parse(&format!("/v2/{}/manifests/x", "A".repeat(3000)), None).unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
        let error = parse("/v2/a/tags/list", Some("n=ten")).unwrap_err();
        assert_eq!(error.to_string(), "query parameter n is not a number");
    }

    #[test]
    fn a_route_prints_as_the_link_that_leads_to_it() {
        let mut route = parse("/docker.io/v2/app/tags/list", Some("n=5&ns=registry.corp%3A5000")).unwrap();
        route.endpoint = Endpoint::Tags { limit: Some(5), last: Some("a+b&c".to_owned()) };
        assert_eq!(route.to_string(), "/docker.io/v2/app/tags/list?n=5&last=a%2Bb%26c&ns=registry.corp%3A5000");
    }

    fn names() -> impl Strategy<Value = String> {
        let segment = prop_oneof![
            "[a-z0-9]{1,4}([._:-][a-z0-9]{1,3}){0,2}",
            prop::sample::select(vec!["blobs", "manifests", "tags", "list", "v2", "uploads", "referrers", "docker.io"])
                .prop_map(str::to_owned),
        ];
        prop::collection::vec(segment, 1..6).prop_map(|segments| segments.join("/"))
    }

    fn digests() -> impl Strategy<Value = Digest> {
        prop_oneof![any::<[u8; 32]>().prop_map(Digest::Sha256), any::<[u8; 64]>().prop_map(Digest::Sha512)]
    }

    fn endpoints() -> impl Strategy<Value = Endpoint> {
        let tag = "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}".prop_map(|text| text.parse::<Tag>().unwrap());
        let types = prop::collection::btree_set("[a-z]{1,5}/[a-z.+ &=%é]{1,9}", 0..4);
        prop_oneof![
            tag.prop_map(|tag| Endpoint::Manifest(Reference::Tag(tag))),
            digests().prop_map(|digest| Endpoint::Manifest(Reference::Digest(digest))),
            digests().prop_map(Endpoint::Blob),
            (any::<Option<u64>>(), prop::option::of("[ -~é]{1,30}"))
                .prop_map(|(limit, last)| Endpoint::Tags { limit, last }),
            (digests(), types).prop_map(|(subject, types)| Endpoint::Referrers {
                subject,
                artifact_types: types.into_iter().collect()
            }),
            Just(Endpoint::Upload),
        ]
    }

    proptest! {
        #[test]
        fn a_route_survives_being_printed_and_read(
            prefix in prop::option::of("[a-z]{1,5}(/[A-Za-z0-9._:~-]{3,6}){0,2}"),
            name in names(),
            endpoint in endpoints(),
            namespace in prop::option::of("[a-z]{1,8}(\\.[a-z]{2,3}(:[0-9]{1,5})?)?"),
        ) {
            let route = Route { prefix, name, endpoint, namespace };
            let url = route.to_string();
            let (path, query) = url.split_once('?').map_or((url.as_str(), None), |(path, query)| (path, Some(query)));
            prop_assert_eq!(parse(path, query), Ok(route.clone()));
            // Escapes of characters that need none change nothing.
            let escaped: String =
                path.chars().map(|c| if c == '/' { "/".to_owned() } else { format!("%{:02x}", c as u32) }).collect();
            prop_assert_eq!(parse(&escaped, query), Ok(route));
        }

        #[test]
        fn nothing_makes_the_parser_panic(path in any::<String>(), query in any::<Option<String>>()) {
            let _ = parse(&path, query.as_deref());
        }

        #[test]
        fn what_is_accepted_is_clean(
            path in "/?([a-zA-Z%.:_2/]{0,4}/){0,2}v2/([a-z%.:_2F]{1,5}/){0,3}(manifests|blobs|tags|referrers)/(list|[a-z%:2F]{1,6})",
            query in "(ns|n|last|artifactType)=[a-z0-9%.:+]{0,6}&(ns|n|last)=[0-9%a]{0,3}",
        ) {
            if let Ok(route) = parse(&path, Some(&query)) {
                let texts = route.prefix.iter().chain(&route.namespace).chain([&route.name]);
                for text in texts {
                    prop_assert!(text.bytes().all(|b| b.is_ascii_graphic() && b != b'%'), "{:?}", text);
                }
                prop_assert!(!route.name.split('/').any(|segment| matches!(segment, "." | "..")));
                prop_assert!(!route.prefix.iter().any(|prefix| prefix.split('/').any(|segment| segment == "..")));
            }
        }
    }
}
