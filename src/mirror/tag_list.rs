//! Tag lists: the whole list fetched once, kept for a while, and paged from there.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use crate::clock::Timestamp;
use crate::oci::Repository;
use crate::store::{ListName, ListRecord};
use crate::upstream::Access;

use super::error::{MirrorError, MirrorErrorKind};
use super::outcome::Outcome;
use super::rights::Probe;
use super::upstreams::Target;
use super::{ListKey, Mirror, PATIENCE};

/// One page of a repository's tags.
#[derive(Debug)]
pub struct TagsAnswer {
    /// The tags, in byte order.
    pub tags: Vec<String>,
    /// There are more after the last one.
    pub more: bool,
    /// How the list came about.
    pub outcome: Outcome,
    /// What a client should be warned of.
    pub warning: Option<String>,
}

/// A list, and how it came about.
pub(super) struct ListAnswer {
    pub(super) list: Arc<ListRecord>,
    pub(super) outcome: Outcome,
    pub(super) warning: Option<String>,
}

/// How many pages of a tag list are fetched at most.
const PAGES_MAX: usize = 500;

/// How many bytes of memory the tags of a list may take.
const TAGS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many tags are asked for at a time. ECR refuses more.
const PAGE_TAGS: u64 = 1000;

// === impl Mirror ===

impl Mirror {
    /// The tags of a repository after `last`, at most `limit`.
    pub async fn tags(
        &self,
        target: &Target,
        limit: Option<u64>,
        last: Option<&str>,
    ) -> Result<TagsAnswer, MirrorError> {
        let found = async {
            self.check_readable(target, Probe::Tags).await?;
            self.tag_list(target).await
        };
        let ListAnswer { list, outcome, warning } = found.await.map_err(|error: MirrorError| {
            let kind = match error.kind {
                MirrorErrorKind::UnknownManifest => MirrorErrorKind::UnknownName,
                kind => kind,
            };
            MirrorError { kind, ..error }.about(&target.repository, "")
        })?;
        let (tags, more) = page(&list.body, limit, last);
        Ok(TagsAnswer { tags, more, outcome, warning })
    }

    async fn tag_list(&self, target: &Target) -> Result<ListAnswer, MirrorError> {
        if self.0.settings.offline {
            return self.held_tags(&target.repository).await;
        }
        let work = {
            let (mirror, target) = (self.clone(), target.clone());
            async move { mirror.fetch_tags(&target).await }.boxed()
        };
        self.list(target, ListName::Tags, true, work).await
    }

    /// Offline, what is held is all there is.
    async fn held_tags(&self, repository: &Repository) -> Result<ListAnswer, MirrorError> {
        let internal = |error: String| MirrorError::new(MirrorErrorKind::Internal, error);
        let held = self.0.store.held_tags(repository).await.map_err(|error| internal(error.to_string()))?;
        if held.is_empty() {
            let kind = MirrorErrorKind::UnknownName;
            return Err(MirrorError { kind, ..MirrorError::offline(&repository.to_string()) });
        }
        let mut tags: Vec<&str> = held.iter().map(crate::oci::Tag::as_str).collect();
        tags.sort_unstable();
        let body = serde_json::to_string(&tags).map_err(|error| internal(error.to_string()))?;
        let list = Arc::new(ListRecord { fetched: Timestamp::now(), body });
        Ok(ListAnswer { list, outcome: Outcome::Hit, warning: None })
    }

    /// The whole list, page by page, in byte order.
    async fn fetch_tags(&self, target: &Target) -> Result<ListRecord, MirrorError> {
        let mut tags: Vec<String> = Vec::new();
        let mut last: Option<String> = None;
        let mut size = 0;
        for _ in 0..PAGES_MAX {
            let page = target
                .upstream
                .client
                .list_tags(&target.repository, Some(PAGE_TAGS), last.as_deref(), Access::Configured)
                .await?;
            // Some list what is no tag: Artifactory, digests.
            let listed = page.tags.into_iter().filter(|tag| tag.parse::<crate::oci::Tag>().is_ok());
            let listed: Vec<String> = listed.collect();
            size += listed.iter().map(|tag| tag.len() + size_of::<String>()).sum::<usize>();
            tags.extend(listed);
            match page.next.map(|next| next.last) {
                // A page that leads to itself would lead round for ever.
                Some(next) if size <= TAGS_BYTES_MAX && last.as_ref() != Some(&next) => last = Some(next),
                Some(_) => break,
                None => {
                    tags.sort_unstable();
                    tags.dedup();
                    let body = serde_json::to_string(&tags)
                        .map_err(|error| MirrorError::new(MirrorErrorKind::Internal, error.to_string()))?;
                    return Ok(ListRecord { fetched: Timestamp::now(), body });
                }
            }
        }
        Err(MirrorError::new(
            MirrorErrorKind::Unusable,
            format!(
                "the tag list of {} has no end within {PAGES_MAX} pages or {TAGS_BYTES_MAX} bytes",
                target.repository
            ),
        ))
    }

    /// A list that is fresh, or fetched by `work` once however many ask, or stale because that failed. Lists that are
    /// to be `kept` survive a restart.
    pub(super) async fn list(
        &self,
        target: &Target,
        name: ListName,
        kept: bool,
        work: BoxFuture<'static, Result<ListRecord, MirrorError>>,
    ) -> Result<ListAnswer, MirrorError> {
        let key = ListKey { repository: target.repository.clone(), list: name };
        let held = match self.0.lists.get(&key) {
            Some(list) => Some(list),
            None => self.0.store.list(&key.repository, &key.list).await.unwrap_or_default(),
        };
        if let Some(list) = &held
            && list.fetched.age().is_some_and(|age| age < self.0.settings.list_ttl)
        {
            return Ok(ListAnswer { list: Arc::clone(list), outcome: Outcome::Hit, warning: None });
        }
        let pause = target.upstream.client.pause().map(|pause| MirrorError::paused(&target.repository, pause));
        if let Some(list) = &held
            && let Some(failure) = self.0.failed_lists.get(&key).or(pause)
        {
            return Ok(self.stale_list(Arc::clone(list), &failure));
        }
        let fetch = {
            let (mirror, target, key) = (self.clone(), target.clone(), key.clone());
            let judged = held.as_ref().map(|list| list.fetched);
            async move {
                // Another fetch may have ended between this one's being found necessary and its beginning.
                let is_newer = |list: &Arc<ListRecord>| judged.is_none_or(|judged| list.fetched > judged);
                if let Some(list) = mirror.0.lists.get(&key).filter(is_newer) {
                    return Ok(list);
                }
                let list = Arc::new(mirror.heard(&target, work.await)?);
                mirror.0.failed_lists.invalidate(&key);
                mirror.0.lists.insert(key.clone(), Arc::clone(&list));
                if kept {
                    mirror.0.store.keep_list(&key.repository, &key.list, Arc::clone(&list));
                }
                Ok(list)
            }
            .boxed()
        };
        let fetched = self.0.list_flights.run("list fetch", (key.clone(), target.via.clone()), fetch);
        let (fetched, joined) = match &held {
            // It goes on, whoever waits for it.
            Some(_) => timeout(PATIENCE, fetched)
                .await
                .unwrap_or_else(|_elapsed| (Err(MirrorError::silent(&target.repository)), false)),
            None => fetched.await,
        };
        match (fetched, held) {
            (Ok(list), _) => {
                let outcome = if joined { Outcome::Collapsed } else { Outcome::Miss };
                Ok(ListAnswer { list, outcome, warning: None })
            }
            // "Not found" is an answer, not a failure.
            (Err(error), Some(list)) if !error.is_not_found() => {
                self.0.failed_lists.insert(key, error.clone());
                Ok(self.stale_list(list, &error))
            }
            (Err(error), _) => Err(error),
        }
    }

    fn stale_list(&self, list: Arc<ListRecord>, failure: &MirrorError) -> ListAnswer {
        let expired_for = list.fetched.age().unwrap_or_default().saturating_sub(self.0.settings.list_ttl);
        let warning = Some(format!("served stale: {failure}"));
        ListAnswer { list, outcome: Outcome::Stale { expired_for }, warning }
    }
}

/// The part of a list after `last`, and whether there is more. A limit of 0 is an empty last page.
///
/// The list is JSON as [`Mirror::fetch_tags`] writes it: sorted, without spaces, and no tag holds a comma or a quote. Bots
/// page through lists of 20 000 tags, so a page costs what it holds and not what the list holds.
fn page(list: &str, limit: Option<u64>, last: Option<&str>) -> (Vec<String>, bool) {
    let list = list.trim_start_matches('[').trim_end_matches(']');
    let rest = last.map_or(list, |last| after(list, last));
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut tags = rest.split(',').map(|tag| tag.trim_matches('"')).filter(|tag| !tag.is_empty());
    let page: Vec<String> = tags.by_ref().take(limit).map(str::to_owned).collect();
    let more = !page.is_empty() && tags.next().is_some();
    (page, more)
}

/// What follows the tags up to `last` in a sorted list, found by halving it.
fn after<'a>(list: &'a str, last: &str) -> &'a str {
    // By bytes: a damaged list may hold anything, and the middle may lie within a character. Commas don't.
    let bytes = list.as_bytes();
    let is_comma = |byte: &u8| *byte == b',';
    let (mut low, mut high) = (0, bytes.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let start = bytes[low..middle].iter().rposition(is_comma).map_or(low, |comma| low + comma + 1);
        let end = bytes[start..high].iter().position(is_comma).map_or(high, |comma| start + comma);
        if list[start..end].trim_matches('"') <= last {
            low = (end + 1).min(high);
        } else {
            high = start;
        }
    }
    &list[low..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_a_list() {
        let all = r#"["a","b","c","d"]"#;
        for (limit, last, expected, more) in [
            (None, None, "a b c d", false),
            (Some(2), None, "a b", true),
            (Some(2), Some("b"), "c d", false),
            (Some(1), Some("b"), "c", true),
            (Some(0), None, "", false),
            (Some(9), Some("aa"), "b c d", false),
            (None, Some("d"), "", false),
            (None, Some("z"), "", false),
        ] {
            let (tags, is_more) = page(all, limit, last);
            assert_eq!((tags.join(" ").as_str(), is_more), (expected, more), "{limit:?} {last:?}");
        }
        assert_eq!(page("[]", None, Some("a")), (Vec::new(), false));
        for damaged in ["", "[", "]", "ééé,éé", "[\"é\",\"ü\",\"ß\"]", ",,,", "null"] {
            for last in ["", "a", "ü", "~"] {
                page(damaged, Some(2), Some(last));
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn a_page_is_what_a_naive_search_finds(
            tags in proptest::collection::btree_set("[A-Za-z0-9_][A-Za-z0-9._-]{0,3}", 0..20),
            last in proptest::option::of("[ -~]{0,4}"),
            limit in proptest::option::of(0..25_u16),
        ) {
            let list = serde_json::to_string(&tags).unwrap();
            let rest: Vec<_> = tags.into_iter().filter(|tag| last.as_ref().is_none_or(|last| tag > last)).collect();
            let count = limit.map_or(rest.len(), |limit| rest.len().min(limit.into()));
            proptest::prop_assert_eq!(
                page(&list, limit.map(u64::from), last.as_deref()),
                (rest[..count].to_vec(), count > 0 && count < rest.len())
            );
        }
    }
}
