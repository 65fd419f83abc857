//! Boot: everything the store knows is found again on disk, and what was left half-done is removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::blob::OpenFile;
use super::catalog::HeldList;
use super::count::{charge, record_charge};
use super::error::StoreError;
use super::fs::{Disk, Found, Kind, Space};
use super::index::Index;
use super::layout::{self, ALGORITHMS, LISTS, Layout, MANIFESTS, TAGS};
use super::publish::{MODE_RECORD, publish_bytes};
use super::reach::Lines;
use super::records::{ManifestRecord, TagRecord};
use super::resting::{self, FoundPartial};
use super::{Budget, FileSystemFacts, Shared};
use crate::clock::Timestamp;
use crate::oci::{Algorithm, Digest, RegistryName, Repository, RepositoryName};

/// A blob found on disk.
#[derive(Debug)]
struct FoundBlob {
    digest: Digest,
    size_bytes: u64,
    modified: u64,
}

/// What boot found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) index: Index<OpenFile>,
    pub(super) budget: Budget,
    /// Downloads that can be taken up again.
    pub(super) partials: Vec<FoundPartial>,
}

/// Names strange files in the log, but not a million of them.
#[derive(Debug, Default)]
struct Strange(AtomicUsize);

/// So many strange files are named.
const STRANGE_NAMED_MAX: usize = 20;

/// A repository name has at most 128 segments, and folders of records are below them.
const REPOSITORY_DEPTH_MAX: usize = 130;

const CACHEDIR_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# This folder is a cache: Cachalot fetches again whatever is missing.\n";

/// Makes the data directory ready before it is locked: refuses a layout that is newer than this program.
pub(super) fn prepare(disk: &Disk, layout: &Layout) -> Result<(), StoreError> {
    let is_newer = |found: &&Found| {
        let number = found.name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok());
        found.kind == Kind::Folder && number.is_some_and(|number| number > 1)
    };
    disk.ensure_folder(layout.root())?;
    let found = disk.list(layout.root())?;
    let known = found.iter().any(|found| found.name == "v1");
    if let Some(newer) = found.iter().find(is_newer).filter(|_| !known) {
        let found = newer.name.to_string_lossy().into_owned();
        return Err(StoreError::NewerLayout { path: layout.root().to_owned(), found });
    }
    if let Some(kind) = disk.doubtful_kind(layout.root())? {
        let path = layout.root().display();
        tracing::warn!(%path, kind, "the data directory is on a file system that may not keep what it was told to keep");
    }
    Ok(())
}

/// Removes what was left half-done and can't be taken up again, finds every blob, and has the budget decided. The data directory is locked. Scans with
/// all threads of the pool that it is run on.
pub(super) fn recover(
    disk: &Disk,
    layout: &Layout,
    budget: &dyn Fn(&FileSystemFacts) -> Budget,
) -> Result<Recovered, StoreError> {
    if let Err(error) = disk.empty(&layout.tmp(), 0) {
        tracing::warn!(%error, "could not remove what was left half-done; what is held is served all the same");
    }
    for folder in [layout.partials(), layout.tmp(), layout.repositories(), layout.quarantine(), layout.pins()] {
        disk.ensure_folder(&folder)?;
    }
    if disk.facts(&layout.cachedir_tag())?.is_none() {
        let (staged, target) = (layout.tmp().join("tag"), layout.cachedir_tag());
        let published = publish_bytes(disk, Bytes::from_static(CACHEDIR_TAG), &staged, &target, MODE_RECORD, None);
        if let Err(error) = published {
            tracing::warn!(%error, "could not mark the data directory as a cache for backup tools");
        }
    }
    let strange = Strange::default();
    warn_of_mounts(disk, layout);
    let mut blobs = Vec::new();
    for algorithm in ALGORITHMS {
        blobs.extend(scan(disk, layout, algorithm, &strange)?);
    }
    let partials = resting::find(disk, layout)?;
    let held_bytes = blobs.iter().map(|found| found.size_bytes).sum();
    let budget = budget(&facts(disk, layout.root(), held_bytes)?);
    let mut index = Index::new(budget.capacity_bytes);
    for found in blobs {
        index.found(found.digest, found.size_bytes, found.modified);
    }
    for found in disk.list(&layout.quarantine())? {
        if let Some(facts) = disk.facts(&layout.quarantine().join(found.name))? {
            index.found_records(charge(facts.size_bytes));
        }
    }
    Ok(Recovered { index, budget, partials })
}

/// Says so where files can't be moved to where they belong: then nothing new is kept.
fn warn_of_mounts(disk: &Disk, layout: &Layout) {
    let device = |path: &Path| disk.device(path).ok().flatten();
    let here = device(&layout.tmp());
    let others = [layout.partials(), layout.repositories(), layout.quarantine(), layout.pins()];
    for path in others.into_iter().chain(ALGORITHMS.map(|algorithm| layout.algorithm(algorithm))) {
        let there = device(&path);
        if there.is_some() && there != here {
            tracing::error!(
                path = %path.display(),
                "this is on another file system than the rest of the data directory, so nothing can be moved there and kept"
            );
        }
    }
}

/// All blobs of one algorithm, folder by folder in parallel.
fn scan(disk: &Disk, layout: &Layout, algorithm: Algorithm, strange: &Strange) -> Result<Vec<FoundBlob>, StoreError> {
    let top = layout.algorithm(algorithm);
    disk.ensure_folder(&top)?;
    let shards = disk.list(&top)?.into_par_iter().map(|shard| {
        let folder = top.join(&shard.name);
        if shard.kind != Kind::Folder {
            strange.report(&folder);
            return Ok(Vec::new());
        }
        let mut blobs = Vec::new();
        for found in disk.list(&folder)? {
            let path = folder.join(&found.name);
            let digest = layout::blob_at(algorithm, &shard.name, &found.name);
            match digest.map(|digest| disk.facts(&path).map(|facts| (digest, facts))).transpose()? {
                Some((digest, Some(facts))) => {
                    blobs.push(FoundBlob { digest, size_bytes: facts.size_bytes, modified: facts.modified });
                }
                _ => strange.report(&path),
            }
        }
        Ok(blobs)
    });
    Ok(shards.collect::<Result<Vec<_>, StoreError>>()?.into_iter().flatten().collect())
}

/// What is known of the file system that a data directory is on.
pub(super) fn facts(disk: &Disk, root: &Path, held_bytes: u64) -> Result<FileSystemFacts, StoreError> {
    // What is above a symbolic link says nothing about where it leads.
    let real = disk.real_path(root)?;
    let above = real.parent().map(|parent| disk.device(parent)).transpose()?.flatten();
    let own_mount = above.is_none() || above != disk.device(&real)?;
    let Space { total_bytes, free_bytes, total_inodes, .. } = disk.space(&real)?;
    Ok(FileSystemFacts { total_bytes, total_inodes, free_bytes, held_bytes, own_mount })
}

// === impl Strange ===

impl Strange {
    fn report(&self, path: &Path) {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if before < STRANGE_NAMED_MAX {
            tracing::warn!(path = %path.display(), "this is not a blob; it is left alone and doesn't count");
        } else if before == STRANGE_NAMED_MAX {
            tracing::warn!("there are more such files");
        }
    }
}

// === impl Shared: the catalog ===

impl Shared {
    /// Fills the catalog from the records on disk, in the background after boot. Eviction waits for it.
    pub(super) async fn load_catalog(self: Arc<Self>) {
        let shared = self.clone();
        let repositories = self.io.reading.run(move || shared.find_repositories()).await;
        let count = repositories.len();
        for repository in repositories {
            if let Err(error) = self.ensure_loaded(&repository).await {
                tracing::warn!(%error, %repository, "could not read the records of a repository");
            }
        }
        tracing::debug!(repositories = count, "all records are read");
    }

    /// Makes sure that the catalog is right about one repository.
    pub(super) async fn ensure_loaded(self: &Arc<Self>, repository: &Repository) -> Result<(), StoreError> {
        if *self.loaded.borrow() || self.catalog.read().is_loaded(repository) {
            return Ok(());
        }
        self.with_records(repository, |shared, repository| {
            if !shared.catalog.read().is_loaded(repository) {
                shared.load_manifests(repository)?;
                shared.load_tags(repository)?;
                shared.load_lists(repository)?;
                shared.catalog.write().set_loaded(repository);
                shared.remove_empty_folders(repository);
            }
            Ok(())
        })
        .await
    }

    /// Every folder that holds records, as the repository that it belongs to.
    fn find_repositories(&self) -> Vec<Repository> {
        let top = self.layout.repositories();
        let list = |path: &Path| {
            let report = |error: &StoreError| tracing::warn!(%error, "could not look for records");
            self.io.disk.list(path).inspect_err(report).unwrap_or_default()
        };
        let mut repositories = Vec::new();
        for registry in list(&top) {
            let Some(name) = registry.name.to_str().and_then(|name| name.parse::<RegistryName>().ok()) else {
                continue;
            };
            let mut pending: Vec<(PathBuf, String)> = vec![(top.join(&registry.name), String::new())];
            while let Some((path, repository)) = pending.pop() {
                let folders = list(&path).into_iter().filter(|found| found.kind == Kind::Folder);
                let names: Vec<String> = folders.filter_map(|found| found.name.into_string().ok()).collect();
                if names.iter().any(|name| name.starts_with('_'))
                    && let Ok(repository) = repository.parse::<RepositoryName>()
                {
                    repositories.push(Repository { registry: name.clone(), name: repository });
                }
                for segment in names.into_iter().filter(|name| !name.starts_with('_')) {
                    let inner = if repository.is_empty() { segment.clone() } else { format!("{repository}/{segment}") };
                    if inner.split('/').count() < REPOSITORY_DEPTH_MAX {
                        pending.push((path.join(segment), inner));
                    }
                }
            }
        }
        repositories
    }

    fn load_manifests(self: &Arc<Self>, repository: &Repository) -> Result<(), StoreError> {
        let folder = self.layout.repository(repository).join(MANIFESTS);
        for found in self.io.disk.list(&folder)? {
            let Some(digest) = layout::manifest_at(&found.name) else { continue };
            let path = folder.join(&found.name);
            if self.ledger.read().size_of(&digest).is_none() {
                self.remove_stray(&path);
                continue;
            }
            if let Some((record, len)) = self.read_record::<ManifestRecord>(&path)? {
                let charge = self.ledger.found_record(record_charge(len as u64));
                self.catalog.write().add_manifest(repository, digest, record.fetched, Lines::of(&record), charge);
            }
        }
        Ok(())
    }

    fn load_tags(self: &Arc<Self>, repository: &Repository) -> Result<(), StoreError> {
        let folder = self.layout.repository(repository).join(TAGS);
        for found in self.io.disk.list(&folder)? {
            let Some(tag) = layout::tag_at(&found.name) else { continue };
            let path = folder.join(&found.name);
            let Some((record, len)) = self.read_record::<TagRecord>(&path)? else { continue };
            if self.ledger.read().size_of(&record.digest).is_some() {
                let charge = self.ledger.found_record(record_charge(len as u64));
                self.catalog.write().add_tag(repository, &tag, record.digest, charge);
            } else {
                self.remove_stray(&path);
            }
        }
        Ok(())
    }

    /// Removes a record whose manifest is gone. It does no harm if that fails.
    fn remove_stray(&self, path: &Path) {
        if let Err(error) = self.io.disk.remove(path) {
            tracing::warn!(%error, "could not remove the record of what is gone");
        }
    }

    fn load_lists(self: &Arc<Self>, repository: &Repository) -> Result<(), StoreError> {
        let folder = self.layout.repository(repository).join(LISTS);
        for found in self.io.disk.list(&folder)? {
            let (Some(facts), Some(file_name)) =
                (self.io.disk.facts(&folder.join(&found.name))?, found.name.to_str().map(str::to_owned))
            else {
                continue;
            };
            let bytes = record_charge(facts.size_bytes);
            let charge = self.ledger.found_record(bytes);
            let list = HeldList { bytes, written: Timestamp(facts.modified / 1000), charge };
            self.catalog.write().add_list(repository, file_name, list);
        }
        Ok(())
    }
}
