//! The backlog: manifests, tags and lists that are still to be written, in the order in which they came. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::lists::{ListName, ListRecord};
use super::records::{ManifestRecord, TagRecord};
use crate::oci::{Digest, Repository, Tag, Verified};

/// What is still to be written, repository by repository. A bound on what it weighs bounds everything about it.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queues: HashMap<Repository, Queue>,
    /// The manifests in all queues, each with how many entries have it.
    contents: HashMap<Digest, (Bytes, usize)>,
    entries: usize,
    weight: usize,
    last_turn: u64,
}

/// What is to be written of one repository. It is there until [`Backlog::next`] has found it empty.
#[derive(Debug, Default)]
struct Queue {
    order: BTreeMap<u64, Key>,
    entries: HashMap<Key, Queued>,
}

#[derive(Debug)]
struct Queued {
    turn: u64,
    weight: usize,
    /// A writer has it. What comes for it meanwhile is to be written after that.
    being_written: bool,
    entry: Entry,
}

/// What an entry is about. There is at most one for each; a later one takes the place of an earlier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Manifest(Digest),
    Tag(Tag),
    List(ListName),
}

/// What something is to become.
#[derive(Debug)]
pub(super) enum Entry {
    Manifest { content: Option<Content>, record: Arc<ManifestRecord> },
    Tag(ComingTag),
    List(Arc<ListRecord>),
}

/// The bytes of a manifest. Who writes them takes the proof.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) verified: Option<Verified>,
    pub(super) bytes: Bytes,
}

/// What becomes of a tag.
#[derive(Clone, Debug)]
pub(super) enum ComingTag {
    Recorded(TagRecord),
    Forgotten,
}

/// What is to be written next.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) key: Key,
    pub(super) turn: u64,
    pub(super) entry: Entry,
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It waits, and the repository had no queue yet.
    First,
    /// It waits.
    Joined,
    /// Too much waits already.
    Refused,
}

/// As much may wait, as it weighs in memory.
const WEIGHT_MAX: usize = 64 << 20;

/// What an entry weighs beside its content.
const ENTRY_WEIGHT: usize = 1024;

/// What one descriptor weighs in a record.
const DESCRIPTOR_WEIGHT: usize = 256;

/// So many of a repository's entries are looked through for a manifest, from the last one on.
const LOOKED_THROUGH_MAX: usize = 256;

// === impl Backlog ===

impl Backlog {
    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.entries
    }

    /// Whether a repository has a queue.
    pub(super) fn has(&self, repository: &Repository) -> bool {
        self.queues.contains_key(repository)
    }

    /// The bytes of a manifest, of whichever repository.
    pub(super) fn content(&self, digest: &Digest) -> Option<Bytes> {
        self.contents.get(digest).map(|(bytes, _)| bytes.clone())
    }

    /// What a repository's entry of this key says.
    pub(super) fn entry(&self, repository: &Repository, key: &Key) -> Option<&Entry> {
        self.queues.get(repository)?.entries.get(key).map(|queued| &queued.entry)
    }

    /// The manifest that came last of those of a repository that fit.
    pub(super) fn newest(
        &self,
        repository: &Repository,
        fits: impl Fn(&ManifestRecord) -> bool,
    ) -> Option<(Digest, Arc<ManifestRecord>)> {
        let queue = self.queues.get(repository)?;
        queue.order.values().rev().take(LOOKED_THROUGH_MAX).find_map(|key| {
            match (key, &queue.entries.get(key)?.entry) {
                (Key::Manifest(digest), Entry::Manifest { record, .. }) if fits(record) => {
                    Some((*digest, record.clone()))
                }
                _ => None,
            }
        })
    }

    /// The tags of a repository that has these on disk, once all is written.
    pub(super) fn amend_tags(&self, repository: &Repository, held: Vec<Tag>) -> Vec<Tag> {
        let Some(queue) = self.queues.get(repository) else { return held };
        let mut tags: BTreeSet<Tag> = held.into_iter().collect();
        for (key, queued) in &queue.entries {
            match (key, &queued.entry) {
                (Key::Tag(tag), Entry::Tag(ComingTag::Recorded(_))) => drop(tags.insert(tag.clone())),
                (Key::Tag(tag), Entry::Tag(ComingTag::Forgotten)) => drop(tags.remove(tag)),
                _ => {}
            }
        }
        tags.into_iter().collect()
    }

    /// Queues an entry at the end.
    pub(super) fn add(&mut self, repository: &Repository, key: Key, entry: Entry) -> Added {
        if self.weight + entry.weight() > WEIGHT_MAX {
            return Added::Refused;
        }
        let first = !self.has(repository);
        let before = self.take(repository, &key);
        // What waits keeps its place: a tag is written after its manifest, whatever is learnt of that meanwhile. What is being
        // written has to be written once more.
        let place = before.as_ref().filter(|before| !before.being_written).map(|before| before.turn);
        let entry = entry.in_place_of(before.map(|before| before.entry));
        let weight = entry.weight();
        self.entries += 1;
        self.weight += weight;
        self.last_turn += 1;
        let turn = place.unwrap_or(self.last_turn);
        if let (Key::Manifest(digest), Entry::Manifest { content: Some(content), .. }) = (&key, &entry) {
            self.contents.entry(*digest).or_insert_with(|| (content.bytes.clone(), 0)).1 += 1;
        }
        let queue = self.queues.entry(repository.clone()).or_default();
        queue.order.insert(turn, key.clone());
        queue.entries.insert(key, Queued { turn, weight, being_written: false, entry });
        if first { Added::First } else { Added::Joined }
    }

    /// What is to be written next of a repository, which stays queued. Where there is nothing the queue is gone.
    pub(super) fn next(&mut self, repository: &Repository) -> Option<Next> {
        let queue = self.queues.get_mut(repository)?;
        let first = queue.order.first_key_value().map(|(turn, key)| (*turn, key.clone()));
        let Some((turn, key)) = first else {
            self.queues.remove(repository);
            return None;
        };
        let queued = queue.entries.get_mut(&key)?;
        queued.being_written = true;
        let entry = queued.entry.for_writing();
        Some(Next { key, turn, entry })
    }

    /// Takes out what was written, unless something has come in its place meanwhile.
    pub(super) fn finish(&mut self, repository: &Repository, key: &Key, turn: u64) {
        let current = self.queues.get(repository).and_then(|queue| queue.entries.get(key));
        if current.is_some_and(|queued| queued.turn == turn) {
            drop(self.take(repository, key));
        }
    }

    /// Drops a repository's queue, whatever is in it.
    pub(super) fn abandon(&mut self, repository: &Repository) {
        let queue = self.queues.get(repository);
        let keys: Vec<Key> = queue.map(|queue| queue.entries.keys().cloned().collect()).unwrap_or_default();
        for key in keys {
            drop(self.take(repository, &key));
        }
        self.queues.remove(repository);
    }

    fn take(&mut self, repository: &Repository, key: &Key) -> Option<Queued> {
        let queue = self.queues.get_mut(repository)?;
        let queued = queue.entries.remove(key)?;
        queue.order.remove(&queued.turn);
        self.entries -= 1;
        self.weight -= queued.weight;
        if let (Key::Manifest(digest), Entry::Manifest { content: Some(_), .. }) = (key, &queued.entry)
            && let Some((_, users)) = self.contents.get_mut(digest)
        {
            *users -= 1;
            if *users == 0 {
                self.contents.remove(digest);
            }
        }
        Some(queued)
    }
}

// === impl Entry ===

impl Entry {
    /// What it weighs in memory.
    fn weight(&self) -> usize {
        let own = match self {
            Self::Manifest { content, record } => {
                let bytes = content.as_ref().map_or(0, |content| content.bytes.len());
                bytes + record.descriptors.len() * DESCRIPTOR_WEIGHT
            }
            Self::Tag(_) => 0,
            Self::List(record) => record.body.len(),
        };
        ENTRY_WEIGHT + own
    }

    /// What who writes it needs. The proof goes along, so content is written once.
    fn for_writing(&mut self) -> Self {
        match self {
            Self::Manifest { content, record } => {
                let proven =
                    content.as_mut().and_then(|content| Some((content.verified.take()?, content.bytes.clone())));
                let content = proven.map(|(verified, bytes)| Content { verified: Some(verified), bytes });
                Self::Manifest { content, record: record.clone() }
            }
            Self::Tag(coming) => Self::Tag(coming.clone()),
            Self::List(record) => Self::List(record.clone()),
        }
    }

    /// Takes over what an entry for the same, which was not written yet, has beyond it.
    fn in_place_of(self, before: Option<Self>) -> Self {
        match (self, before) {
            (Self::Manifest { content, mut record }, Some(Self::Manifest { content: earlier, record: known })) => {
                Arc::make_mut(&mut record).keep_rights_of(&known);
                Self::Manifest { content: content.or(earlier), record }
            }
            (entry, _) => entry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn learnt(public: bool) -> Entry {
        let record = ManifestRecord {
            media_type: "m".to_owned(),
            size_bytes: 1,
            fetched: Timestamp(1),
            subject: None,
            artifact_type: None,
            descriptors: Vec::new(),
            public,
            confirmed: Vec::new(),
        };
        Entry::Manifest { content: None, record: Arc::new(record) }
    }

    #[test]
    fn a_manifest_is_written_before_its_tag_whatever_is_learnt_of_it_and_again_if_that_comes_late() {
        let repository = Repository { registry: "docker.io".parse().unwrap(), name: "a/b".parse().unwrap() };
        let (manifest, tag) = (Key::Manifest(Digest::sha256(b"m")), Key::Tag("v1".parse().unwrap()));
        let mut backlog = Backlog::default();
        assert_eq!(backlog.add(&repository, manifest.clone(), learnt(false)), Added::First);
        assert_eq!(backlog.add(&repository, tag.clone(), Entry::Tag(ComingTag::Forgotten)), Added::Joined);
        backlog.add(&repository, manifest.clone(), learnt(true));
        let first = backlog.next(&repository).unwrap();
        assert_eq!(first.key, manifest);
        assert!(matches!(first.entry, Entry::Manifest { record, .. } if record.public));
        // While it is being written.
        backlog.add(&repository, manifest.clone(), learnt(false));
        backlog.finish(&repository, &manifest, first.turn);
        for key in [tag, manifest] {
            let next = backlog.next(&repository).unwrap();
            assert_eq!(next.key, key);
            backlog.finish(&repository, &key, next.turn);
        }
        assert!(backlog.next(&repository).is_none());
        assert_eq!((backlog.len(), backlog.weight), (0, 0));
    }
}
