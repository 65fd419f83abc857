//! Records: what was learned about tags and manifests, one small JSON file each.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Store;
use super::backlog::ComingTag;
use super::error::StoreError;
use super::lists::ListRecord;
use super::reach::Lines;
use super::record_files::Look;
use crate::clock::Timestamp;
use crate::oci::manifest::{Descriptor, Manifest};
use crate::oci::{Digest, ImageName, Reference, Repository, Tag};

/// What a tag pointed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// The manifest's media type, as upstream sent it.
    pub media_type: String,
    /// When the tag was first seen to point there.
    pub fetched: Timestamp,
    /// When upstream last confirmed it.
    pub checked: Timestamp,
    /// When upstream first said that it has deleted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Timestamp>,
}

/// What is known of a manifest in a repository. Its bytes are a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRecord {
    /// The media type that it is served with.
    pub media_type: String,
    /// How long it is.
    pub size_bytes: u64,
    /// When it was fetched.
    pub fetched: Timestamp,
    /// The manifest that it refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// The type of artifact that it says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What it lists: config, layers, manifests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<Descriptor>,
    /// Whether it was had without credentials at least once.
    #[serde(default)]
    pub public: bool,
    /// Those of its descriptors' digests that upstream confirmed to be in this repository: a manifest may name blobs that
    /// its registry does not hold, or holds for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confirmed: Vec<Digest>,
}

/// What a repository's manifests say of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// How long the content is.
    pub size_bytes: u64,
    /// Upstream confirmed that it's in this repository.
    pub confirmed: bool,
}

/// Records kept in memory, bounded in bytes.
#[derive(Debug)]
pub(super) struct RecordCaches {
    pub(super) tags: moka::sync::Cache<(Repository, Tag), TagRecord>,
    pub(super) manifests: moka::sync::Cache<(Repository, Digest), Weighed<ManifestRecord>>,
    pub(super) lists: moka::sync::Cache<(Repository, String), Weighed<ListRecord>>,
    /// Which manifest of a repository was found to list a digest.
    links: moka::sync::Cache<(Repository, Digest), Digest>,
}

type Weighed<T> = (Arc<T>, usize);

/// What a record takes in memory beyond its text.
const OVERHEAD_BYTES: usize = 400;
/// Of so many manifests that list a digest, one has a descriptor that will do, or none is looked for.
const LINKS_TRIED_MAX: usize = 32;
/// Of so many manifests of a repository, the newest, one was had without credentials if the repository is public.
const MANIFESTS_TRIED_MAX: usize = 32;

pub(super) fn listed_in(record: &ManifestRecord, digest: &Digest) -> Option<Listed> {
    let found =
        record.descriptors.iter().find(|descriptor| descriptor.digest == *digest && !descriptor.is_foreign())?;
    Some(Listed { size_bytes: found.size_bytes, confirmed: record.confirmed.contains(digest) })
}

// === impl ManifestRecord ===

impl ManifestRecord {
    /// What is to be recorded of a manifest that was read just now. `confirmed` is what upstream says belongs where it is.
    pub fn of(manifest: &Manifest, size_bytes: u64, public: bool, confirmed: Vec<Digest>) -> Self {
        Self {
            media_type: manifest.media_type.clone(),
            size_bytes,
            fetched: Timestamp::now(),
            subject: manifest.subject.as_ref().map(|subject| subject.digest),
            artifact_type: manifest.artifact_type.clone(),
            descriptors: manifest.descriptors().cloned().collect(),
            public,
            confirmed,
        }
    }

    /// Takes over what upstream once said about who may read it and what it lists.
    pub(super) fn keep_rights_of(&mut self, earlier: &Self) {
        self.public |= earlier.public;
        let missing: Vec<Digest> =
            earlier.confirmed.iter().filter(|digest| !self.confirmed.contains(digest)).copied().collect();
        self.confirmed.extend(missing);
    }
}

// === impl RecordCaches ===

impl RecordCaches {
    pub(super) fn new() -> Self {
        fn weight(bytes: usize) -> u32 {
            u32::try_from(bytes + OVERHEAD_BYTES).unwrap_or(u32::MAX)
        }
        fn cache<K, V>(bytes: u64, weigh: impl Fn(&V) -> usize + Send + Sync + 'static) -> moka::sync::Cache<K, V>
        where
            K: std::hash::Hash + Eq + Send + Sync + 'static,
            V: Clone + Send + Sync + 'static,
        {
            moka::sync::Cache::builder().max_capacity(bytes).weigher(move |_, value| weight(weigh(value))).build()
        }
        Self {
            tags: cache(8 << 20, |tag: &TagRecord| tag.media_type.len()),
            manifests: cache(32 << 20, |manifest: &Weighed<_>| manifest.1),
            lists: cache(16 << 20, |list: &Weighed<_>| list.1),
            links: moka::sync::Cache::new(65_536),
        }
    }
}

// === impl Store: tags ===

impl Store {
    /// What is recorded of a tag. A record that can't be read counts as absent.
    pub async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        match self.shared.behind.tag(repository, tag) {
            Some(ComingTag::Recorded(record)) => return Ok(Some(record)),
            Some(ComingTag::Forgotten) => return Ok(None),
            None => {}
        }
        let key = (repository.clone(), tag.clone());
        let tags = &self.shared.records.tags;
        if let Some(record) = tags.get(&key) {
            return Ok(Some(record));
        }
        let path = self.shared.layout.tag(repository, tag);
        match self
            .shared
            .look(repository, path, |record: &TagRecord, _| tags.insert(key.clone(), record.clone()))
            .await?
        {
            Look::Found(record, _) => return Ok(Some(record)),
            Look::Absent if !self.shared.catalog.read().has_tag(repository, tag) => return Ok(None),
            Look::Absent | Look::Damaged => {}
        }
        self.shared
            .with_records(repository, move |shared, _| {
                let (repository, tag) = &key;
                let Some((record, _)) = shared.read_record::<TagRecord>(&shared.layout.tag(repository, tag))? else {
                    drop(shared.catalog.write().remove_tag(repository, tag));
                    return Ok(None);
                };
                shared.records.tags.insert(key, record.clone());
                Ok(Some(record))
            })
            .await
    }

    /// Records what a tag points to. `false`: it was not kept, because its manifest isn't held or there is no room.
    pub async fn put_tag(&self, repository: &Repository, tag: &Tag, record: TagRecord) -> Result<bool, StoreError> {
        let (path, digest) = (self.shared.layout.tag(repository, tag), record.digest);
        let tag = tag.clone();
        self.shared
            .put_held(repository, digest, &record.clone(), path, move |shared, repository, written| match written {
                Some(charge) => {
                    shared.catalog.write().add_tag(repository, &tag, digest, charge);
                    shared.records.tags.insert((repository.clone(), tag), record);
                }
                None => shared.drop_tag(repository, &tag),
            })
            .await
    }

    /// Removes the record of a tag, unless that is pinned.
    pub(super) async fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), StoreError> {
        let image = ImageName { repository: repository.clone(), reference: Reference::Tag(tag.clone()) };
        if self.shared.is_pinned_by_name(&image) {
            return Ok(());
        }
        let tag = tag.clone();
        self.shared
            .with_records(repository, move |shared, repository| {
                shared.io.disk.remove(&shared.layout.tag(repository, &tag))?;
                shared.drop_tag(repository, &tag);
                shared.remove_empty_folders(repository);
                Ok(())
            })
            .await
    }

    /// The tags that are recorded of a repository, sorted.
    pub async fn held_tags(&self, repository: &Repository) -> Result<Vec<Tag>, StoreError> {
        self.shared.ensure_loaded(repository).await?;
        let held = self.shared.catalog.read().tags(repository);
        Ok(self.shared.behind.amend_tags(repository, held))
    }
}

// === impl Store: manifests ===

impl Store {
    /// What is recorded of a manifest in a repository. A record that can't be read counts as absent.
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Arc<ManifestRecord>>, StoreError> {
        match self.shared.behind.manifest(repository, digest) {
            Some(coming) => Ok(Some(coming)),
            None => self.written_manifest(repository, digest).await,
        }
    }

    /// What is on disk of a manifest's record.
    async fn written_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Arc<ManifestRecord>>, StoreError> {
        let key = (repository.clone(), *digest);
        let manifests = &self.shared.records.manifests;
        if let Some((record, _)) = manifests.get(&key) {
            return Ok(Some(record));
        }
        let path = self.shared.layout.manifest(repository, digest);
        let note = |record: &Arc<ManifestRecord>, len| manifests.insert(key.clone(), (record.clone(), len));
        match self.shared.look(repository, path, note).await? {
            Look::Found(record, _) => return Ok(Some(record)),
            Look::Absent if !self.shared.catalog.read().has_record(repository, digest) => return Ok(None),
            Look::Absent | Look::Damaged => {}
        }
        self.shared
            .with_records(repository, move |shared, _| {
                let (repository, digest) = &key;
                let path = shared.layout.manifest(repository, digest);
                let Some((record, len)) = shared.read_record::<ManifestRecord>(&path)? else {
                    drop(shared.catalog.write().remove_record(repository, digest));
                    return Ok(None);
                };
                let record = Arc::new(record);
                shared.records.manifests.insert(key, (record.clone(), len));
                Ok(Some(record))
            })
            .await
    }

    /// Records a manifest in a repository. What was confirmed there, or had without credentials, stays so. `false`: it was
    /// not kept, because the manifest isn't held or there is no room.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        digest: Digest,
        mut record: ManifestRecord,
    ) -> Result<bool, StoreError> {
        let turn = self.shared.manifest_turns.lock(&(repository, digest)).await;
        if let Ok(Some(earlier)) = self.written_manifest(repository, &digest).await {
            record.keep_rights_of(&earlier);
        }
        let path = self.shared.layout.manifest(repository, &digest);
        let record = Arc::new(record);
        let content = record.clone();
        self.shared
            .put_held(repository, digest, &*content, path, move |shared, repository, written| {
                // It ends with the writing, also when the caller has gone away.
                let _turn = turn;
                let Some(charge) = written else { return shared.drop_record(repository, &digest) };
                let weight = usize::try_from(charge.bytes()).unwrap_or(usize::MAX);
                shared.catalog.write().add_manifest(repository, digest, record.fetched, Lines::of(&record), charge);
                shared.records.manifests.insert((repository.clone(), digest), (record, weight));
            })
            .await
    }

    /// What the newest manifest recorded in a repository that lists a digest says of it. Descriptors of content that the
    /// registry need not hold don't count.
    pub async fn listed(&self, repository: &Repository, digest: &Digest) -> Result<Option<Listed>, StoreError> {
        let found = self.listing(repository, digest).await?;
        Ok(found.and_then(|(_, record)| listed_in(&record, digest)))
    }

    /// The manifests recorded in a repository that refer to another, as signatures do.
    pub async fn referring(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Digest>, StoreError> {
        self.shared.ensure_loaded(repository).await?;
        let mut referring = self.shared.catalog.read().referring(repository, subject);
        referring.sort_unstable();
        Ok(referring)
    }

    /// Whether any manifest of a repository was had without credentials; `None` if none is recorded.
    pub async fn is_public(&self, repository: &Repository) -> Result<Option<bool>, StoreError> {
        let mut found = self.shared.behind.is_public(repository);
        if found == Some(true) {
            return Ok(found);
        }
        self.shared.ensure_loaded(repository).await?;
        let manifests = self.shared.catalog.read().manifests(repository, MANIFESTS_TRIED_MAX);
        for manifest in manifests {
            if let Some(record) = self.manifest(repository, &manifest).await? {
                if record.public {
                    return Ok(Some(true));
                }
                found = Some(false);
            }
        }
        Ok(found)
    }

    /// Whether upstream gave a digest from any repository that was read without credentials. What is recorded of
    /// repositories that were not looked at since the start may be missed.
    pub async fn was_public(&self, digest: &Digest) -> Result<bool, StoreError> {
        let listing = self.shared.catalog.read().listing_anywhere(digest, LINKS_TRIED_MAX);
        for (repository, manifest) in listing {
            let record = self.manifest(&repository, &manifest).await?;
            if record.is_some_and(|record| record.public && record.confirmed.contains(digest)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The newest manifest of a repository that lists a digest.
    pub(super) async fn listing(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<(Digest, Arc<ManifestRecord>)>, StoreError> {
        if let Some(coming) = self.shared.behind.listing(repository, digest) {
            return Ok(Some(coming));
        }
        let key = (repository.clone(), *digest);
        if let Some(manifest) = self.shared.records.links.get(&key)
            && let Some(record) = self.manifest(repository, &manifest).await?
            && listed_in(&record, digest).is_some()
        {
            return Ok(Some((manifest, record)));
        }
        self.shared.ensure_loaded(repository).await?;
        let listing = self.shared.catalog.read().listing(repository, digest, LINKS_TRIED_MAX);
        for manifest in listing {
            if let Some(record) = self.manifest(repository, &manifest).await?
                && listed_in(&record, digest).is_some()
            {
                self.shared.records.links.insert(key, manifest);
                return Ok(Some((manifest, record)));
            }
        }
        Ok(None)
    }
}
