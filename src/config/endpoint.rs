//! Where upstreams are: their endpoints, as written and as meant.

use std::path::PathBuf;

use url::Url;

use super::credential::{Credential, PARTS, WrittenCredential};
use super::mistake::{Located, Mistakes, quoted};
use super::reader::Entry;
use super::written::Setting;
use super::{schema, values};
use crate::oci::RepositoryName;

/// One place where an upstream is to be had.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// `http` or `https`, a host and maybe a port.
    pub url: Url,
    /// It is another Cachalot, which is told which upstream is meant and gets none of the upstream's credentials.
    pub mirror: bool,
    /// Where the upstream's repositories begin there.
    pub repository_prefix: Option<RepositoryName>,
    /// Who we are there. With one, it gets none of the upstream's credentials.
    pub credential: Option<Credential>,
}

/// An entry of `endpoints`.
#[derive(Debug)]
pub(super) struct WrittenEndpoint {
    url: Located<Url>,
    mirror: Setting<bool>,
    repository_prefix: Setting<RepositoryName>,
    credential: WrittenCredential,
}

/// A list of addresses and tables. One of which nothing is right counts as not written.
pub(super) fn read(entry: Entry<'_>) -> Setting<Vec<WrittenEndpoint>> {
    let list = entry.list()?;
    let written = list.value.len();
    let list = list.map(|list| list.into_iter().filter_map(WrittenEndpoint::read).collect::<Vec<_>>());
    (written == 0 || !list.value.is_empty()).then_some(list)
}

/// Endpoints of which each is listed once.
pub(super) fn mean(registry: &str, list: Located<Vec<WrittenEndpoint>>, mistakes: &Mistakes) -> Vec<Endpoint> {
    if list.value.is_empty() {
        mistakes.report(list.place, "an upstream needs at least one endpoint");
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for written in list.value {
        let WrittenEndpoint { url: Located { value: url, place }, mirror, repository_prefix, credential } = written;
        let mirror = mirror.is_some_and(|mirror| mirror.value);
        if let Some(prefix) = repository_prefix.as_ref().filter(|_| mirror) {
            mistakes
                .report(prefix.place.clone(), "another mirror has the upstream's own repositories, without a prefix");
        }
        let repository_prefix = repository_prefix.map(|prefix| prefix.value);
        let same = |other: &&Endpoint| other.url == url && other.repository_prefix == repository_prefix;
        if endpoints.iter().find(same).is_some() {
            mistakes.report(place, format!("{} is listed twice", quoted(url.as_str())));
            continue;
        }
        let credential = credential.is_written().then(|| credential.mean(registry, mistakes)).flatten();
        endpoints.push(Endpoint { url, mirror, repository_prefix, credential });
    }
    endpoints
}

// === impl Endpoint ===

impl Endpoint {
    /// A plain endpoint.
    pub fn at(url: Url) -> Self {
        Self { url, mirror: false, repository_prefix: None, credential: None }
    }
}

// === impl WrittenEndpoint ===

impl WrittenEndpoint {
    fn read(entry: Entry<'_>) -> Option<Self> {
        let place = entry.place.clone();
        if !entry.is_table() {
            let url = entry.parse(values::endpoint)?;
            let credential = WrittenCredential::unwritten(place);
            return Some(Self { url, mirror: None, repository_prefix: None, credential });
        }
        let mut section = entry.section(schema::ENDPOINT)?;
        let misspelt = section.has_unknown_keys();
        let url = section.take("url");
        if url.is_none() && !misspelt {
            section.report("this endpoint lacks its url");
        }
        let url = url.and_then(|entry| entry.parse(values::endpoint));
        let mirror = section.take("mirror").and_then(Entry::boolean);
        let repository_prefix = section.take("repository_prefix").and_then(|entry| entry.parse(prefix));
        let parts = PARTS.map(|part| section.take(part));
        section.finish();
        let credential = WrittenCredential::of_parts(place, None, parts, misspelt);
        Some(Self { url: url?, mirror, repository_prefix, credential })
    }
}

fn prefix(text: &str) -> Result<RepositoryName, String> {
    text.trim_matches('/')
        .parse()
        .map_err(|_| format!("{} is not the beginning of a repository's path, such as \"hub-proxy\"", quoted(text)))
}

/// The certificate files and others that an upstream names must be readable; what is in them is others' business.
pub(super) fn readable(written: Setting<PathBuf>, bytes_max: u64, mistakes: &Mistakes) -> Option<PathBuf> {
    let Located { value: path, place } = written?;
    if let Err(error) = crate::files::read(&path, bytes_max) {
        mistakes.report(place, error.to_string());
    }
    Some(path)
}
