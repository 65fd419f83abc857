//! What is on its way to the disk: manifests, tags and lists that can be read already, while nobody waits for the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{Semaphore, watch};

use super::backlog::{Added, Backlog, ComingTag, Content, Entry, Key, Next};
use super::error::{NoRoom, StoreError};
use super::lists::{ListName, ListRecord};
use super::records::{ManifestRecord, TagRecord, listed_in};
use super::{Shared, Store};
use crate::metrics::Metrics;
use crate::oci::{Digest, ImageName, Reference, Repository, Tag, Verified};
use crate::tasks;

/// The backlog, and who works it off: for each repository that is in it, one task, which writes in the order of arrival.
#[derive(Debug)]
pub(super) struct Behind {
    backlog: RwLock<Backlog>,
    /// How many entries there are, so that nobody needs the lock while there are none.
    entries: AtomicUsize,
    metrics: Arc<Metrics>,
    /// Told whenever a queue has ended.
    ended: watch::Sender<()>,
    /// So many repositories are written to at once: the disk is there for others as well.
    writers: Semaphore,
}

/// The task of one repository. Whatever becomes of it, the queue goes with it.
struct Writer {
    shared: Arc<Shared>,
    repository: Repository,
    /// It has worked off its queue. A queue that is there now is another's.
    done: bool,
}

const WRITERS: usize = 4;

// === impl Store ===

impl Store {
    /// Keeps a manifest, and what is known of it in a repository, without anybody's waiting for the disk: it can be read
    /// from now on. What the disk doesn't take in the end is gone again, counted, and said in the log.
    pub fn keep_manifest(&self, repository: &Repository, verified: Verified, bytes: Bytes, record: ManifestRecord) {
        let digest = verified.digest();
        debug_assert!(Verified::check(&digest, &bytes).is_ok(), "a proof was used for other bytes: {digest}");
        self.keep_record(repository, digest, Some(Content { verified: Some(verified), bytes }), record);
    }

    /// Keeps upstream's word that a digest is in a repository, with the manifest that lists it; for nothing if none does.
    pub async fn confirm(&self, repository: &Repository, digest: &Digest) -> Result<(), StoreError> {
        match self.listing(repository, digest).await? {
            Some((manifest, record)) if !record.confirmed.contains(digest) => {
                let mut record = (*record).clone();
                record.confirmed.push(*digest);
                self.keep_record(repository, manifest, None, record);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Keeps what a tag points to, as [`Self::keep_manifest`] does.
    pub fn keep_tag(&self, repository: &Repository, tag: &Tag, record: TagRecord) {
        self.shared.keep(repository, Key::Tag(tag.clone()), Entry::Tag(ComingTag::Recorded(record)));
    }

    /// Forgets what a tag points to, unless it is pinned, without anybody's waiting for the disk.
    pub fn forget_tag(&self, repository: &Repository, tag: &Tag) {
        let image = ImageName { repository: repository.clone(), reference: Reference::Tag(tag.clone()) };
        if !self.shared.is_pinned_by_name(&image) {
            self.shared.keep(repository, Key::Tag(tag.clone()), Entry::Tag(ComingTag::Forgotten));
        }
    }

    /// Keeps a list, as [`Self::keep_manifest`] does.
    pub fn keep_list(&self, repository: &Repository, name: &ListName, record: Arc<ListRecord>) {
        self.shared.keep(repository, Key::List(name.clone()), Entry::List(record));
    }

    fn keep_record(
        &self,
        repository: &Repository,
        digest: Digest,
        content: Option<Content>,
        mut record: ManifestRecord,
    ) {
        if let Some((known, _)) = self.shared.records.manifests.get(&(repository.clone(), digest)) {
            record.keep_rights_of(&known);
        }
        let record = Arc::new(record);
        self.shared.keep(repository, Key::Manifest(digest), Entry::Manifest { content, record });
    }
}

// === impl Shared ===

impl Shared {
    /// Queues an entry, and sees to it that a task writes it.
    fn keep(self: &Arc<Self>, repository: &Repository, key: Key, entry: Entry) {
        match self.behind.change(|backlog| backlog.add(repository, key, entry)) {
            Added::First => {
                let deferred = self.io.defer();
                let mut writer = Writer { shared: self.clone(), repository: repository.clone(), done: false };
                tasks::spawn("write_behind", async move {
                    let _deferred = deferred;
                    writer.write_all().await;
                });
            }
            Added::Joined => {}
            Added::Refused => {
                self.not_kept("so much waits for the disk that nothing more is kept; is the disk too slow?".to_owned());
            }
        }
    }

    /// Waits until all is written that is queued of a repository.
    pub(super) async fn written(&self, repository: &Repository) {
        let queued = || self.behind.backlog.read().has(repository);
        // The sender lives as long as `self`, so this can't fail.
        let _ = self.behind.ended.subscribe().wait_for(|()| !queued()).await;
    }

    /// Counts something that the disk did not take although it was served, and has it said.
    fn not_kept(&self, why: String) {
        self.metrics.store_unkept.inc();
        self.io.disk.health().note(why);
    }
}

// === impl Writer ===

impl Writer {
    async fn write_all(&mut self) {
        let Self { shared, repository, .. } = &*self;
        while let Some(Next { key, turn, entry }) = shared.behind.change(|backlog| backlog.next(repository)) {
            // The semaphore is never closed.
            let _permit = shared.behind.writers.acquire().await;
            match self.write(&key, entry).await {
                Ok(true) => {}
                // A store that has no room for it is no disk in trouble.
                Ok(false) | Err(StoreError::NoRoom(NoRoom::NotNow { .. } | NoRoom::Never { .. })) => {
                    shared.metrics.store_unkept.inc();
                }
                Err(error) => shared.not_kept(format!("what {repository} served could not be kept: {error}")),
            }
            shared.behind.change(|backlog| backlog.finish(repository, &key, turn));
        }
        self.done = true;
    }

    /// Says whether it was kept.
    async fn write(&self, key: &Key, entry: Entry) -> Result<bool, StoreError> {
        let (store, repository) = (Store { shared: self.shared.clone() }, &self.repository);
        match (key, entry) {
            (Key::Manifest(digest), Entry::Manifest { content, record }) => {
                if let Some(Content { verified: Some(verified), bytes }) = content {
                    store.put_blob(verified, bytes).await?;
                }
                store.put_manifest(repository, *digest, (*record).clone()).await
            }
            (Key::Tag(tag), Entry::Tag(ComingTag::Recorded(record))) => store.put_tag(repository, tag, record).await,
            (Key::Tag(tag), Entry::Tag(ComingTag::Forgotten)) => store.remove_tag(repository, tag).await.map(|()| true),
            (Key::List(name), Entry::List(record)) => store.put_list(repository, name, (*record).clone()).await,
            // Keys and entries are only ever made together.
            _ => Ok(true),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.done {
            self.shared.behind.change(|backlog| backlog.abandon(&self.repository));
        }
        self.shared.behind.ended.send_replace(());
    }
}

// === impl Behind ===

impl Behind {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            backlog: RwLock::default(),
            entries: AtomicUsize::new(0),
            metrics,
            ended: watch::Sender::new(()),
            writers: Semaphore::new(WRITERS),
        }
    }

    /// The bytes of a manifest that waits for the disk.
    pub(super) fn content(&self, digest: &Digest) -> Option<Bytes> {
        self.look(|backlog| backlog.content(digest))
    }

    /// The record of a manifest that waits for the disk.
    pub(super) fn manifest(&self, repository: &Repository, digest: &Digest) -> Option<Arc<ManifestRecord>> {
        self.look(|backlog| match backlog.entry(repository, &Key::Manifest(*digest))? {
            Entry::Manifest { record, .. } => Some(record.clone()),
            _ => None,
        })
    }

    /// What waits for the disk of a tag.
    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<ComingTag> {
        self.look(|backlog| match backlog.entry(repository, &Key::Tag(tag.clone()))? {
            Entry::Tag(coming) => Some(coming.clone()),
            _ => None,
        })
    }

    /// A list that waits for the disk.
    pub(super) fn list(&self, repository: &Repository, name: &ListName) -> Option<Arc<ListRecord>> {
        self.look(|backlog| match backlog.entry(repository, &Key::List(name.clone()))? {
            Entry::List(record) => Some(record.clone()),
            _ => None,
        })
    }

    /// The manifest that came last of those that wait for the disk and list a digest.
    pub(super) fn listing(&self, repository: &Repository, digest: &Digest) -> Option<(Digest, Arc<ManifestRecord>)> {
        self.look(|backlog| backlog.newest(repository, |record| listed_in(record, digest).is_some()))
    }

    /// Whether any of a repository's manifests that wait for the disk was had without credentials; `None` if none waits.
    pub(super) fn is_public(&self, repository: &Repository) -> Option<bool> {
        self.look(|backlog| {
            backlog.newest(repository, |_| true)?;
            Some(backlog.newest(repository, |record| record.public).is_some())
        })
    }

    /// Brings the tags that the disk knows up to what waits for it.
    pub(super) fn amend_tags(&self, repository: &Repository, held: Vec<Tag>) -> Vec<Tag> {
        if self.is_empty() { held } else { self.backlog.read().amend_tags(repository, held) }
    }

    fn is_empty(&self) -> bool {
        self.entries.load(Ordering::Acquire) == 0
    }

    fn look<T>(&self, look: impl FnOnce(&Backlog) -> Option<T>) -> Option<T> {
        if self.is_empty() { None } else { look(&self.backlog.read()) }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Backlog) -> T) -> T {
        let mut backlog = self.backlog.write();
        let result = change(&mut backlog);
        self.entries.store(backlog.len(), Ordering::Release);
        self.metrics.store_backlog.set(i64::try_from(backlog.len()).unwrap_or(i64::MAX));
        result
    }
}
