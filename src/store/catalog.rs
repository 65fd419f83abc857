//! What the records say, in memory: which manifests and tags each repository has, and what each manifest lists.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::ledger::Charge;
use super::order::Parent;
use super::reach::{Lines, Scope, reach, referrers};
use crate::clock::Timestamp;
use crate::oci::referrers::cosign_tags;
use crate::oci::{Digest, ImageName, Reference, Repository, Tag};

/// The records of a store, without their content. It is filled in the background after boot, repository by repository;
/// it may only be changed by who holds the repository's lock, together with the files.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    manifests: HashMap<Digest, Listed>,
    repositories: HashMap<Repository, Folder>,
    /// How many bytes the lists of all repositories take.
    list_bytes: u64,
}

/// A manifest that is recorded in at least one repository.
#[derive(Debug)]
struct Listed {
    lines: Lines,
    repositories: HashSet<Repository>,
}

/// The records of one repository.
#[derive(Debug, Default)]
struct Folder {
    /// Whether what was on disk at boot is in.
    loaded: bool,
    manifests: HashMap<Digest, Recorded>,
    tags: BTreeMap<Tag, (Digest, Charge)>,
    lists: HashMap<String, HeldList>,
}

/// What a repository has of one manifest.
#[derive(Debug, Default)]
struct Recorded {
    /// When it was fetched; `None` if there are only tags for it.
    record: Option<(Timestamp, Charge)>,
    tags: BTreeSet<Tag>,
}

/// The file of a held list.
#[derive(Debug)]
pub(super) struct HeldList {
    pub(super) bytes: u64,
    /// When it was written.
    pub(super) written: Timestamp,
    pub(super) charge: Charge,
}

/// The last fetched of some manifests, newest first.
fn newest(manifests: impl Iterator<Item = (Timestamp, Digest)>, limit: usize) -> Vec<Digest> {
    let mut found: Vec<_> = manifests.collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().take(limit).map(|(_, manifest)| manifest).collect()
}

// === impl Folder ===

impl Folder {
    /// What lies under the tags that cosign and its relatives make of the digests of these manifests.
    fn signatures(&self, manifests: &HashSet<Digest>) -> Vec<Digest> {
        let own = self.manifests.keys().filter(|manifest| manifests.contains(manifest));
        own.flat_map(cosign_tags).filter_map(|tag| self.tags.get(&tag).map(|(digest, _)| *digest)).collect()
    }
}

// === impl Catalog ===

impl Catalog {
    /// Whether a repository is complete.
    pub(super) fn is_loaded(&self, repository: &Repository) -> bool {
        self.repositories.get(repository).is_some_and(|folder| folder.loaded)
    }

    /// Notes that a repository is complete. One without any record isn't kept: anybody can ask for any name.
    pub(super) fn set_loaded(&mut self, repository: &Repository) {
        if let Some(folder) = self.repositories.get_mut(repository) {
            folder.loaded = true;
        }
    }

    pub(super) fn add_manifest(
        &mut self,
        repository: &Repository,
        digest: Digest,
        fetched: Timestamp,
        lines: Lines,
        charge: Charge,
    ) {
        let listed = self
            .manifests
            .entry(digest)
            .or_insert_with(|| Listed { lines: Lines::default(), repositories: HashSet::new() });
        listed.lines = lines;
        listed.repositories.insert(repository.clone());
        let folder = self.repositories.entry(repository.clone()).or_default();
        folder.manifests.entry(digest).or_default().record = Some((fetched, charge));
    }

    pub(super) fn add_tag(&mut self, repository: &Repository, tag: &Tag, digest: Digest, charge: Charge) {
        drop(self.remove_tag(repository, tag));
        let folder = self.repositories.entry(repository.clone()).or_default();
        folder.tags.insert(tag.clone(), (digest, charge));
        folder.manifests.entry(digest).or_default().tags.insert(tag.clone());
        let listed = self
            .manifests
            .entry(digest)
            .or_insert_with(|| Listed { lines: Lines::default(), repositories: HashSet::new() });
        listed.repositories.insert(repository.clone());
    }

    /// Takes a tag out; its charge is given back when the result is dropped.
    pub(super) fn remove_tag(&mut self, repository: &Repository, tag: &Tag) -> Option<Charge> {
        let folder = self.repositories.get_mut(repository)?;
        let (digest, charge) = folder.tags.remove(tag)?;
        if let Some(recorded) = folder.manifests.get_mut(&digest) {
            recorded.tags.remove(tag);
            if recorded.tags.is_empty() && recorded.record.is_none() {
                folder.manifests.remove(&digest);
                self.unlist(repository, &digest);
            }
        }
        self.prune(repository);
        Some(charge)
    }

    /// Takes a manifest's record out.
    pub(super) fn remove_record(&mut self, repository: &Repository, digest: &Digest) -> Option<Charge> {
        let folder = self.repositories.get_mut(repository)?;
        let recorded = folder.manifests.get_mut(digest)?;
        let (_, charge) = recorded.record.take()?;
        if recorded.tags.is_empty() {
            folder.manifests.remove(digest);
            self.unlist(repository, digest);
        }
        self.prune(repository);
        Some(charge)
    }

    /// Whether a tag is recorded.
    pub(super) fn has_tag(&self, repository: &Repository, tag: &Tag) -> bool {
        self.repositories.get(repository).is_some_and(|folder| folder.tags.contains_key(tag))
    }

    /// Whether a manifest is recorded.
    pub(super) fn has_record(&self, repository: &Repository, digest: &Digest) -> bool {
        let recorded = self.repositories.get(repository).and_then(|folder| folder.manifests.get(digest));
        recorded.is_some_and(|recorded| recorded.record.is_some())
    }

    /// Whether a list is held.
    pub(super) fn has_list(&self, repository: &Repository, file_name: &str) -> bool {
        self.repositories.get(repository).is_some_and(|folder| folder.lists.contains_key(file_name))
    }

    fn prune(&mut self, repository: &Repository) {
        let empty = |folder: &Folder| folder.manifests.is_empty() && folder.tags.is_empty() && folder.lists.is_empty();
        if self.repositories.get(repository).is_some_and(empty) {
            self.repositories.remove(repository);
        }
    }

    fn unlist(&mut self, repository: &Repository, digest: &Digest) {
        if let Some(listed) = self.manifests.get_mut(digest) {
            listed.repositories.remove(repository);
            if listed.repositories.is_empty() {
                self.manifests.remove(digest);
            }
        }
    }

    /// The repositories that have a record of a manifest or a tag that points to it.
    pub(super) fn repositories_of(&self, digest: &Digest) -> Vec<Repository> {
        self.manifests.get(digest).map(|listed| listed.repositories.iter().cloned().collect()).unwrap_or_default()
    }

    /// The tags of a repository that point to a manifest.
    pub(super) fn tags_of(&self, repository: &Repository, digest: &Digest) -> Vec<Tag> {
        let recorded = self.repositories.get(repository).and_then(|folder| folder.manifests.get(digest));
        recorded.map(|recorded| recorded.tags.iter().cloned().collect()).unwrap_or_default()
    }

    /// All tags of a repository, sorted.
    pub(super) fn tags(&self, repository: &Repository) -> Vec<Tag> {
        self.repositories.get(repository).map(|folder| folder.tags.keys().cloned().collect()).unwrap_or_default()
    }

    /// The manifests recorded in a repository that list a digest, newest first, at most `limit` of them.
    pub(super) fn listing(&self, repository: &Repository, digest: &Digest, limit: usize) -> Vec<Digest> {
        let Some(folder) = self.repositories.get(repository) else { return Vec::new() };
        let listing = folder.manifests.iter().filter_map(|(manifest, recorded)| {
            let (fetched, _) = recorded.record.as_ref()?;
            let lists = self.manifests.get(manifest)?.lines.children.contains(digest);
            lists.then_some((*fetched, *manifest))
        });
        newest(listing, limit)
    }

    /// Manifests that list a digest, in whichever repository they are recorded, at most `limit` of them.
    pub(super) fn listing_anywhere(&self, digest: &Digest, limit: usize) -> Vec<(Repository, Digest)> {
        let listing = self.manifests.iter().filter(|(_, listed)| listed.lines.children.contains(digest));
        let recorded = listing.flat_map(|(manifest, listed)| {
            listed.repositories.iter().map(|repository| (repository.clone(), *manifest))
        });
        recorded.take(limit).collect()
    }

    /// The manifests recorded in a repository that refer to another.
    pub(super) fn referring(&self, repository: &Repository, subject: &Digest) -> Vec<Digest> {
        let Some(folder) = self.repositories.get(repository) else { return Vec::new() };
        let refers = |manifest: &&Digest| {
            self.manifests.get(*manifest).is_some_and(|listed| listed.lines.subject.as_ref() == Some(subject))
        };
        folder.manifests.keys().filter(refers).copied().collect()
    }

    /// The manifests recorded in a repository, newest first, at most `limit` of them.
    pub(super) fn manifests(&self, repository: &Repository, limit: usize) -> Vec<Digest> {
        let Some(folder) = self.repositories.get(repository) else { return Vec::new() };
        let recorded = folder.manifests.iter();
        newest(recorded.filter_map(|(manifest, recorded)| Some((recorded.record.as_ref()?.0, *manifest))), limit)
    }

    /// Every manifest that lists something, for the order of eviction.
    pub(super) fn parents(&self) -> Vec<Parent> {
        let listing = self.manifests.iter().filter(|(_, listed)| !listed.lines.children.is_empty());
        listing.map(|(digest, listed)| (*digest, listed.lines.children.clone())).collect()
    }

    /// Everything that images lead to; with what refers to them comes what cosign and its relatives keep under tags of their
    /// own.
    pub(super) fn reach(&self, images: &[ImageName], scope: Scope<'_>) -> HashSet<Digest> {
        let lines = self.manifests.iter().map(|(digest, listed)| (digest, &listed.lines));
        let referrers = if scope.referrers { referrers(lines) } else { HashMap::new() };
        let lines = |digest: &Digest| self.manifests.get(digest).map(|listed| &listed.lines);
        let mut reached = reach(images.iter().filter_map(|image| self.resolve(image)), lines, &referrers, scope);
        if scope.referrers {
            let repositories: HashSet<&Repository> = images.iter().map(|image| &image.repository).collect();
            let folders = repositories.into_iter().filter_map(|repository| self.repositories.get(repository));
            let signatures: Vec<Digest> = folders.flat_map(|folder| folder.signatures(&reached)).collect();
            reached.extend(reach(signatures, lines, &referrers, scope));
        }
        reached
    }

    /// The manifest that an image's name stands for, as far as that is recorded.
    pub(super) fn resolve(&self, image: &ImageName) -> Option<Digest> {
        match &image.reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(tag) => self.repositories.get(&image.repository)?.tags.get(tag).map(|(digest, _)| *digest),
        }
    }

    /// All images: every tag, and every manifest that was recorded and has none.
    pub(super) fn images(&self) -> Vec<(ImageName, Digest)> {
        let image = |repository: &Repository, reference| ImageName { repository: repository.clone(), reference };
        let of_one = |(repository, folder): (&Repository, &Folder)| {
            let tags = folder.tags.iter().map(|(tag, (digest, _))| (Reference::Tag(tag.clone()), *digest));
            let untagged = folder.manifests.iter().filter(|(_, recorded)| recorded.tags.is_empty());
            let untagged = untagged.map(|(digest, _)| (Reference::Digest(*digest), *digest));
            tags.chain(untagged).map(|(reference, digest)| (image(repository, reference), digest)).collect::<Vec<_>>()
        };
        self.repositories.iter().flat_map(of_one).collect()
    }

    /// Every manifest and what it lists.
    pub(super) fn lines(&self) -> Vec<(Digest, Lines)> {
        self.manifests.iter().map(|(digest, listed)| (*digest, listed.lines.clone())).collect()
    }

    pub(super) fn add_list(&mut self, repository: &Repository, file_name: String, list: HeldList) {
        self.list_bytes += list.bytes;
        let folder = self.repositories.entry(repository.clone()).or_default();
        if let Some(replaced) = folder.lists.insert(file_name, list) {
            self.list_bytes -= replaced.bytes;
        }
    }

    pub(super) fn remove_list(&mut self, repository: &Repository, file_name: &str) -> Option<Charge> {
        let list = self.repositories.get_mut(repository)?.lists.remove(file_name)?;
        self.list_bytes -= list.bytes;
        self.prune(repository);
        Some(list.charge)
    }

    /// How many bytes all lists take.
    pub(super) fn list_bytes(&self) -> u64 {
        self.list_bytes
    }

    /// The list that was written longest ago.
    pub(super) fn oldest_list(&self) -> Option<(Repository, String)> {
        let lists = self.repositories.iter().flat_map(|(repository, folder)| {
            folder.lists.iter().map(move |(name, list)| (list.written, repository, name))
        });
        lists.min().map(|(_, repository, name)| (repository.clone(), name.clone()))
    }
}
