//! Lists that upstream answered with, tags and referrers, held so that they can be served stale.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalog::HeldList;
use super::count::record_charge;
use super::error::StoreError;
use super::layout;
use super::record_files::{Look, encode};
use super::{Shared, Store};
use crate::clock::Timestamp;
use crate::oci::{Digest, Repository};

/// A list that upstream answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRecord {
    /// When it was fetched.
    pub fetched: Timestamp,
    /// The list, as whoever stored it reads it.
    pub body: String,
}

/// Which list of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListName {
    /// Its tags.
    Tags,
    /// The manifests that refer to one.
    Referrers(Digest),
}

/// Held lists take at most this part of the capacity.
const LISTS_SHARE: u64 = 64;

// === impl ListName ===

impl ListName {
    fn file_name(&self) -> String {
        match self {
            Self::Tags => "tags.json".to_owned(),
            Self::Referrers(digest) => format!("referrers-{}.json", layout::dashed(digest)),
        }
    }
}

// === impl Store ===

impl Store {
    /// A held list.
    pub async fn list(&self, repository: &Repository, name: &ListName) -> Result<Option<Arc<ListRecord>>, StoreError> {
        if let Some(coming) = self.shared.behind.list(repository, name) {
            return Ok(Some(coming));
        }
        let key = (repository.clone(), name.file_name());
        let lists = &self.shared.records.lists;
        if let Some((record, _)) = lists.get(&key) {
            return Ok(Some(record));
        }
        let path = self.shared.layout.list(repository, &key.1);
        let note = |record: &Arc<ListRecord>, len| lists.insert(key.clone(), (record.clone(), len));
        match self.shared.look(repository, path, note).await? {
            Look::Found(record, _) => return Ok(Some(record)),
            Look::Absent if !self.shared.catalog.read().has_list(repository, &key.1) => return Ok(None),
            Look::Absent | Look::Damaged => {}
        }
        self.shared
            .with_records(repository, move |shared, _| {
                let (repository, file_name) = &key;
                let path = shared.layout.list(repository, file_name);
                let Some((record, len)) = shared.read_record::<ListRecord>(&path)? else {
                    drop(shared.catalog.write().remove_list(repository, file_name));
                    return Ok(None);
                };
                let record = Arc::new(record);
                shared.records.lists.insert(key, (record.clone(), len));
                Ok(Some(record))
            })
            .await
    }

    /// Holds a list. All lists together take at most a 64th of the capacity; the oldest ones go first. `false`: there was
    /// no room.
    pub async fn put_list(
        &self,
        repository: &Repository,
        name: &ListName,
        record: ListRecord,
    ) -> Result<bool, StoreError> {
        let file_name = name.file_name();
        let Some(content) = encode(&record) else { return Ok(false) };
        let bytes = record_charge(content.len() as u64);
        if !self.shared.make_room_for_list(bytes).await? {
            return Ok(false);
        }
        let path = self.shared.layout.list(repository, &file_name);
        let weight = content.len();
        self.shared
            .put_record(repository, content, path, move |shared, repository, written| {
                let key = (repository.clone(), file_name);
                if let Some(charge) = written {
                    let list = HeldList { bytes, written: Timestamp::now(), charge };
                    shared.catalog.write().add_list(repository, key.1.clone(), list);
                    shared.records.lists.insert(key, (Arc::new(record), weight));
                } else {
                    shared.drop_list(repository, key.1);
                }
                true
            })
            .await
    }
}

// === impl Shared ===

impl Shared {
    pub(super) fn drop_list(&self, repository: &Repository, file_name: String) {
        drop(self.catalog.write().remove_list(repository, &file_name));
        self.records.lists.invalidate(&(repository.clone(), file_name));
    }

    /// Removes the oldest lists until one of `bytes` has its place. `false`: it never has.
    pub(super) async fn make_room_for_list(self: &Arc<Self>, bytes: u64) -> Result<bool, StoreError> {
        let limit = self.ledger.read().capacity() / LISTS_SHARE;
        if bytes > limit {
            return Ok(false);
        }
        loop {
            let oldest = {
                let catalog = self.catalog.read();
                if catalog.list_bytes() + bytes <= limit { None } else { catalog.oldest_list() }
            };
            let Some((repository, file_name)) = oldest else { return Ok(true) };
            let remove = move |shared: &Arc<Self>, repository: &Repository| {
                shared.io.disk.remove(&shared.layout.list(repository, &file_name))?;
                shared.drop_list(repository, file_name);
                shared.remove_empty_folders(repository);
                Ok::<_, StoreError>(())
            };
            self.with_records(&repository, remove).await?;
        }
    }
}
