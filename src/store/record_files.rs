//! Record files: reading, writing and removing them, with catalog and accounts kept in step.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedMutexGuard;

use super::Shared;
use super::count::record_charge;
use super::error::StoreError;
use super::layout::{LISTS, MANIFESTS, TAGS};
use super::ledger::Charge;
use super::publish::{MODE_RECORD, publish_bytes};
use crate::oci::{Digest, Repository, Tag};

/// What became of looking for a record.
#[derive(Debug)]
pub(super) enum Look<T> {
    /// The record, and how long it is.
    Found(T, usize),
    Absent,
    /// It can't be understood, or not be read: to be seen to with the lock in hand.
    Damaged,
}

/// Larger record files are not written, and not believed.
const RECORD_BYTES_MAX: u64 = 32 << 20;

/// A record as it is written; `None` if it is too large.
pub(super) fn encode(record: &impl Serialize) -> Option<Vec<u8>> {
    // Records are plain structures of strings and numbers; the only doubt is their size.
    let content = serde_json::to_vec(record).ok()?;
    (content.len() as u64 <= RECORD_BYTES_MAX).then_some(content)
}

// === impl Shared ===

impl Shared {
    /// Runs `job` on the I/O threads with a repository's records locked.
    pub(super) async fn with_records<T: Send + 'static>(
        self: &Arc<Self>,
        repository: &Repository,
        job: impl FnOnce(&Arc<Self>, &Repository) -> T + Send + 'static,
    ) -> T {
        let guard: OwnedMutexGuard<()> = self.record_locks.lock(repository).await;
        let (shared, repository) = (self.clone(), repository.clone());
        self.io
            .run_counted(move || {
                let _guard = guard;
                let _writing = shared.record_versions.write(&repository);
                job(&shared, &repository)
            })
            .await
    }

    /// Looks for a record, without waiting for whoever writes one: a disk that takes no writes for a while delays no
    /// reader. `note` is told what was read and how long it is, unless somebody began to write in the meantime.
    pub(super) async fn look<T: DeserializeOwned + Send + 'static>(
        self: &Arc<Self>,
        repository: &Repository,
        path: PathBuf,
        note: impl FnOnce(&T, usize),
    ) -> Result<Look<T>, StoreError> {
        let seen = self.record_versions.seen(repository);
        let disk = self.io.disk.clone();
        let read = self.io.reading.run(move || {
            let Some(bytes) = disk.read(&path, RECORD_BYTES_MAX)? else { return Ok::<_, StoreError>(Look::Absent) };
            let record = serde_json::from_slice(&bytes);
            Ok(record.map_or(Look::Damaged, |record| Look::Found(record, bytes.len())))
        });
        match read.await {
            Ok(Look::Found(record, len)) => {
                self.record_versions.if_unchanged(repository, seen, || note(&record, len));
                Ok(Look::Found(record, len))
            }
            Err(error) if !error.is_passing() => Ok(Look::Damaged),
            other => other,
        }
    }

    /// Reads a record, and how long it is. One that can't be understood is removed: it would never get better.
    pub(super) fn read_record<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<(T, usize)>, StoreError> {
        let problem = match self.io.disk.read(path, RECORD_BYTES_MAX) {
            Ok(None) => return Ok(None),
            Ok(Some(bytes)) => match serde_json::from_slice(&bytes) {
                Ok(record) => return Ok(Some((record, bytes.len()))),
                Err(error) => {
                    self.io.disk.parse_failed();
                    error.to_string()
                }
            },
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => error.to_string(),
        };
        tracing::warn!(path = %path.display(), problem, "a record can't be read and counts as absent");
        if let Err(error) = self.io.disk.remove(path) {
            tracing::warn!(%error, "could not remove a record that can't be read");
        }
        Ok(None)
    }

    /// Writes a record. `noted` is told the charge of what was written, or that no record is left; it says whether the
    /// record is kept. Without room nothing is written.
    pub(super) async fn put_record(
        self: &Arc<Self>,
        repository: &Repository,
        content: Vec<u8>,
        path: PathBuf,
        noted: impl FnOnce(&Arc<Self>, &Repository, Option<Charge>) -> bool + Send + 'static,
    ) -> Result<bool, StoreError> {
        let room = match self.reserve_charged(record_charge(content.len() as u64)).await {
            Ok(room) => room,
            Err(refusal) => {
                tracing::debug!(path = %path.display(), %refusal, "a record was not kept");
                return Ok(false);
            }
        };
        let put = move |shared: &Arc<Self>, repository: &Repository| {
            let disk = &shared.io.disk;
            let staged = shared.staging_path();
            let written = publish_bytes(disk, Bytes::from(content), &staged, &path, MODE_RECORD, None);
            match written {
                Ok(()) => Ok(noted(shared, repository, Some(room.into_charge()))),
                Err(error) => {
                    // The record before this one is still there unless the very last step failed.
                    if matches!(disk.facts(&path), Ok(None)) {
                        noted(shared, repository, None);
                    }
                    Err(error)
                }
            }
        };
        self.with_records(repository, put).await
    }

    /// Writes a record about a manifest, which is kept only while that is held: records go with their manifest.
    pub(super) async fn put_held(
        self: &Arc<Self>,
        repository: &Repository,
        digest: Digest,
        record: &impl Serialize,
        path: PathBuf,
        noted: impl FnOnce(&Arc<Self>, &Repository, Option<Charge>) + Send + 'static,
    ) -> Result<bool, StoreError> {
        let Some(content) = encode(record) else { return Ok(false) };
        if self.ledger.read().size_of(&digest).is_none() {
            return Ok(false);
        }
        let noted = move |shared: &Arc<Self>, repository: &Repository, written: Option<Charge>| {
            noted(shared, repository, written);
            // Eviction takes the blob out of the index first and looks for its records then, so one of both sees it.
            let held = shared.ledger.read().size_of(&digest).is_some();
            if !held {
                shared.remove_records_of(repository, &digest);
            }
            held
        };
        self.put_record(repository, content, path, noted).await
    }

    /// Removes every record that goes with an evicted manifest.
    pub(super) async fn drop_records(self: &Arc<Self>, digest: Digest) {
        let repositories = self.catalog.read().repositories_of(&digest);
        for repository in repositories {
            let remove = move |shared: &Arc<Self>, repository: &Repository| {
                // It may have been fetched once more in the meantime.
                if shared.ledger.read().size_of(&digest).is_none() {
                    shared.remove_records_of(repository, &digest);
                }
            };
            self.with_records(&repository, remove).await;
        }
    }

    /// Removes the records of a manifest in one repository, which is locked.
    fn remove_records_of(&self, repository: &Repository, digest: &Digest) {
        let tags = self.catalog.read().tags_of(repository, digest);
        let removed = |path: &Path| {
            self.io.disk.remove(path).inspect_err(|error| tracing::warn!(%error, "could not remove a record")).is_ok()
        };
        for tag in tags {
            if removed(&self.layout.tag(repository, &tag)) {
                self.drop_tag(repository, &tag);
            }
        }
        if removed(&self.layout.manifest(repository, digest)) {
            self.drop_record(repository, digest);
        }
        self.remove_empty_folders(repository);
    }

    pub(super) fn drop_tag(&self, repository: &Repository, tag: &Tag) {
        drop(self.catalog.write().remove_tag(repository, tag));
        self.records.tags.invalidate(&(repository.clone(), tag.clone()));
    }

    pub(super) fn drop_record(&self, repository: &Repository, digest: &Digest) {
        drop(self.catalog.write().remove_record(repository, digest));
        self.records.manifests.invalidate(&(repository.clone(), *digest));
    }

    /// Removes the folders of a repository, and those above it, as far as they are empty.
    pub(super) fn remove_empty_folders(&self, repository: &Repository) {
        let own = self.layout.repository(repository);
        for folder in [TAGS, MANIFESTS, LISTS] {
            // Whatever the reason: an empty folder does no harm.
            let _ = self.io.disk.remove_folder(&own.join(folder));
        }
        let top = self.layout.repositories();
        for folder in own.ancestors().take_while(|folder| *folder != top) {
            if !matches!(self.io.disk.remove_folder(folder), Ok(true)) {
                break;
            }
        }
    }
}
