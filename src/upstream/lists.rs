//! Lists asked of an upstream: tags, and what refers to a manifest.

use http::StatusCode;
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::error::{Failure, UpstreamError, UpstreamErrorKind};
use super::lanes::Use;
use super::link;
use super::manifests::{as_it_is, whole};
use super::request::Ask;
use super::{Access, Upstream};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::referrers;
use crate::oci::{Digest, Repository, media};

/// One page of a tag list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPage {
    /// The tags in upstream's order, as sent: some registries list what is no tag.
    pub tags: Vec<String>,
    /// Where the next page begins; `None` after the last one. Whoever follows it must see to it that it leads onwards.
    pub next: Option<TagCursor>,
}

/// Where a page of a tag list begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagCursor {
    /// How many tags upstream would put on it.
    pub limit: Option<u64>,
    /// The tag before its first one.
    pub last: String,
}

/// An upstream's answer about what refers to a manifest.
#[derive(Clone, Debug, PartialEq)]
pub enum Referrers {
    /// All pages in one.
    List(referrers::Referrers),
    /// The registry has no such API; a tag may hold the list.
    Unsupported,
}

/// A page with 10 000 tags of 128 characters has 1.3 MB.
const TAGS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// For all pages of a referrers list together: what is read of one as an index.
const REFERRERS_BYTES_MAX: usize = MANIFEST_BYTES_MAX;
const REFERRERS_PAGES_MAX: usize = 100;

/// One page of a referrers list.
struct ReferrersPage {
    list: referrers::Referrers,
    bytes: usize,
    /// The query of the next page's address.
    next: Option<String>,
    endpoint: String,
}

fn page_query(limit: Option<u64>, last: Option<&str>) -> Option<String> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(limit) = limit {
        query.append_pair("n", &limit.to_string());
    }
    if let Some(last) = last {
        query.append_pair("last", last);
    }
    Some(query.finish()).filter(|query| !query.is_empty())
}

// === impl Upstream ===

impl Upstream {
    /// Fetches one page of a repository's tags: at most `limit`, those after `last`. Upstreams may ignore either.
    pub async fn list_tags(
        &self,
        repository: &Repository,
        limit: Option<u64>,
        last: Option<&str>,
        access: Access,
    ) -> Result<TagPage, UpstreamError> {
        let query = page_query(limit, last);
        let ask = Ask { query, access, wanted: Use::List, ..Ask::get("tags", repository, "tags/list".to_owned()) };
        let answer = self.ask(ask).await?;
        self.checked(whole(&answer), &answer)?;
        self.checked(as_it_is(answer.response.headers()), &answer)?;
        let (next, endpoint) = (link::next(answer.response.headers()), answer.endpoint.clone());
        let body = self.body(answer, TAGS_BYTES_MAX).await?;
        let tags = tags(&body).map_err(|failure| failure.at(&self.inner.name, &endpoint))?;
        let next = next.and_then(|target| cursor(&target, &tags));
        Ok(TagPage { tags, next })
    }

    /// Fetches what refers to a manifest, over all pages.
    ///
    /// Only an upstream that can't know is `Unsupported`; one that fails, or refuses us, is an error: an invented empty
    /// list would switch off what checks signatures.
    pub async fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Referrers, UpstreamError> {
        let Some(first) = self.referrers_page(repository, subject, None, REFERRERS_BYTES_MAX).await? else {
            return Ok(Referrers::Unsupported);
        };
        let ReferrersPage { mut list, mut next, mut bytes, endpoint } = first;
        let wrong = |what: String| Failure::protocol(what).at(&self.inner.name, &endpoint);
        for _ in 1..REFERRERS_PAGES_MAX {
            let Some(query) = next else { return Ok(Referrers::List(list)) };
            let page = self.referrers_page(repository, subject, Some(query), REFERRERS_BYTES_MAX - bytes).await?;
            let page = page.ok_or_else(|| wrong("a list of referrers that ends in the middle".to_owned()))?;
            list.merge(page.list).map_err(|error| wrong(error.to_string()))?;
            bytes += page.bytes;
            next = page.next;
        }
        match next {
            None => Ok(Referrers::List(list)),
            Some(_) => Err(wrong(format!("more than {REFERRERS_PAGES_MAX} pages of referrers"))),
        }
    }

    /// One page; `None` when the answer means that there is no such API.
    async fn referrers_page(
        &self,
        repository: &Repository,
        subject: &Digest,
        query: Option<String>,
        bytes_max: usize,
    ) -> Result<Option<ReferrersPage>, UpstreamError> {
        let ask = Ask {
            accept: Some(media::OCI_INDEX),
            may_leave: false,
            query,
            ..Ask::get("referrers", repository, format!("referrers/{subject}"))
        };
        let answer = match self.ask(ask).await {
            Ok(answer) if answer.response.status() == StatusCode::OK => answer,
            Err(error) if !means_unsupported(&error.kind) => return Err(error),
            Ok(_) | Err(_) => return Ok(None),
        };
        self.checked(as_it_is(answer.response.headers()), &answer)?;
        let next = link::next(answer.response.headers());
        let next = next.and_then(|target| next_query(answer.response.url(), &target));
        let endpoint = answer.endpoint.clone();
        let body = self.body(answer, bytes_max).await?;
        match referrers::Referrers::parse(&body) {
            Ok(list) => Ok(Some(ReferrersPage { list, bytes: body.len(), next, endpoint })),
            Err(_) if is_page(&body) => Ok(None),
            Err(error) => Err(Failure::protocol(error.to_string()).at(&self.inner.name, &endpoint)),
        }
    }
}

/// A page for people, such as the login page that some registries without the API show. Anything else that is no list may
/// be a damaged one, and "no list" would be a lie that switches off what checks signatures.
fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// What a registry without the API says: 404 (with or without an OCI body), an odd status, or the way to a login page.
fn means_unsupported(kind: &UpstreamErrorKind) -> bool {
    matches!(kind, UpstreamErrorKind::NotFound { .. } | UpstreamErrorKind::Status(400 | 405 | 406 | 300..=399))
}

/// The tags in a page's body.
fn tags(body: &[u8]) -> Result<Vec<String>, Failure> {
    let wrong = || Failure::protocol("a tag list that is not one");
    let page: Value = serde_json::from_slice(body).map_err(|_| wrong())?;
    match page.get("tags") {
        Some(Value::Array(tags)) => {
            tags.iter().map(|tag| tag.as_str().map(ToOwned::to_owned).ok_or_else(wrong)).collect()
        }
        Some(Value::Null) => Ok(Vec::new()),
        None if page.get("name").is_some() => Ok(Vec::new()),
        Some(_) | None => Err(wrong()),
    }
}

/// Reads a link to the next page. Of its address only `n` and `last` are used; where it has a cursor of its own instead
/// (quay.io), the page's last tag does as well.
fn cursor(target: &str, tags: &[String]) -> Option<TagCursor> {
    let query = target.split_once('#').map_or(target, |(address, _)| address).split_once('?').map_or("", |(_, q)| q);
    let value = |name: &str| {
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let last = value("last").filter(|last| !last.is_empty()).or_else(|| tags.last().cloned())?;
    Some(TagCursor { limit: value("n").and_then(|n| n.parse().ok()), last })
}

/// The query of the link to the next page: opaque, but it must be the same list that it continues.
fn next_query(current: &Url, target: &str) -> Option<String> {
    let next = current.join(target).ok()?;
    let same = next.host() == current.host() && next.path() == current.path() && next.query() != current.query();
    same.then(|| next.query().map(ToOwned::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_lists() {
        let owned = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
        for (body, expected) in [
            (r#"{"name":"a","tags":["1","2"]}"#, Some(owned(&["1", "2"]))),
            (r#"{"name":"a","tags":null}"#, Some(Vec::new())),
            (r#"{"name":"a"}"#, Some(Vec::new())),
            (r#"{"tags":[]}"#, Some(Vec::new())),
            (r#"{"name":"a","tags":[1]}"#, None),
            (r#"{"name":"a","tags":"x"}"#, None),
            ("{}", None),
            ("[]", None),
            ("<html>", None),
        ] {
            assert_eq!(tags(body.as_bytes()).ok(), expected, "{body}");
        }
    }

    #[test]
    fn cursors() {
        let page = ["a".to_owned(), "b".to_owned()];
        let at = |limit, last: &str| Some(TagCursor { limit, last: last.to_owned() });
        for (target, expected) in [
            ("/v2/x/tags/list?last=v1.0%2B1&n=100", at(Some(100), "v1.0+1")),
            ("https://elsewhere.example/v2/y/tags/list?n=2&last=z#f", at(Some(2), "z")),
            ("/v2/x/tags/list?n=50&next_page=gAAAA", at(Some(50), "b")),
            ("?last=", at(None, "b")),
            ("", at(None, "b")),
        ] {
            assert_eq!(cursor(target, &page), expected, "{target}");
        }
        assert_eq!(cursor("/v2/x/tags/list", &[]), None);
    }

    #[test]
    fn the_next_page_of_a_list_is_of_the_same_list() {
        let current: Url = "https://h/v2/a/referrers/sha256:1".parse().unwrap();
        for (target, expected) in [
            ("/v2/a/referrers/sha256:1?token=x%2Fy", Some("token=x%2Fy")),
            ("?page=2", Some("page=2")),
            ("https://h/v2/a/referrers/sha256:1?page=2", Some("page=2")),
            ("https://i/v2/a/referrers/sha256:1?page=2", None),
            ("/v2/b/referrers/sha256:1?page=2", None),
            ("/v2/a/referrers/sha256:1", None),
        ] {
            assert_eq!(next_query(&current, target).as_deref(), expected, "{target}");
        }
    }
}
