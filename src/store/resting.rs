//! Resting partials: downloads that nobody is working on, kept to be taken up again, and the first to go when room is needed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::blob::OpenFile;
use super::checkpoint::Checkpoint;
use super::count::sparse_charge;
use super::error::StoreError;
use super::fs::{Disk, Kind};
use super::layout::{self, Layout};
use super::ledger::{Charge, now};
use super::partial::{DATA, Inner, Partial};
use super::record::{self, RECENT, STATE};
use super::{Shared, Store};
use crate::oci::{Digest, RegistryName};

/// The partials at rest, at most one for each download.
#[derive(Debug, Default)]
pub(super) struct Resting(Mutex<HashMap<Key, Entry>>);

/// The upstream, and the blob.
pub(super) type Key = (RegistryName, Digest);

/// A partial at rest.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) folder: PathBuf,
    /// What its file takes on disk, and what that counts.
    pub(super) on_disk_bytes: u64,
    pub(super) charge: Charge,
    /// Its file, as long as somebody reads it.
    file: Weak<OpenFile>,
    /// When it was last worked on, in microseconds since 1970.
    touched: u64,
}

/// A partial that was found at boot.
#[derive(Debug)]
pub(super) struct FoundPartial {
    registry: RegistryName,
    digest: Digest,
    folder: PathBuf,
    on_disk_bytes: u64,
    touched: u64,
}

/// A download that nobody asked for in a week is begun anew.
const AGE_MAX_MICROS: u64 = 7 * 24 * 3600 * 1_000_000;

/// Partials lie two folders deep.
const PARTIAL_DEPTH: usize = 3;

// === impl Store ===

impl Store {
    /// Whether an interrupted download of a blob is kept.
    pub fn has_resting(&self, registry: &RegistryName, digest: &Digest) -> bool {
        self.shared.resting.0.lock().contains_key(&(registry.clone(), *digest))
    }

    /// Takes an interrupted download up again: the partial, and what its last checkpoint says of it, which is to be compared
    /// with the file before any of it is believed. `None` if there is none, or none that is of use.
    pub async fn reopen_partial(&self, registry: &RegistryName, digest: &Digest) -> Option<(Partial, Checkpoint)> {
        let key = (registry.clone(), *digest);
        let entry = self.shared.resting.0.lock().remove(&key)?;
        let shared = self.shared.clone();
        let reopen = move || match shared.reopen(&entry) {
            Ok((file, checkpoint)) => {
                Some((Partial::reopened(shared, key, entry, file, checkpoint.size_bytes), checkpoint))
            }
            Err(reason) => {
                tracing::warn!(digest = %key.1, "an interrupted download is begun anew: {reason}");
                shared.discard(entry);
                None
            }
        };
        self.shared.io.run_counted(reopen).await
    }
}

// === impl Partial ===

impl Partial {
    /// Leaves off: what its last checkpoint says is kept, and the partial can be reopened. Waits for writes and checkpoints
    /// that are under way, since whoever reopens it writes to the same files. One that can't rest is removed.
    pub async fn rest(mut self) {
        drop(self.inner().writing.lock().await);
        drop(self.inner().record.turn().await);
        if !self.can_rest() {
            return;
        }
        let Some(inner) = self.take() else { return };
        let Inner { shared, registry, digest, folder, file, room, .. } = inner;
        let (on_disk_bytes, reservation) = room.into_inner().into_parts();
        let charge = reservation.into_charge_of(sparse_charge(on_disk_bytes));
        let entry = Entry { folder, on_disk_bytes, charge, file: Arc::downgrade(&file), touched: now() };
        drop(file);
        let older = shared.resting.0.lock().insert((registry, digest), entry);
        if let Some(older) = older {
            let io = shared.io.clone();
            io.run_deferred(move || _ = shared.discard(older));
        }
    }
}

// === impl Shared ===

impl Shared {
    fn reopen(&self, entry: &Entry) -> Result<(Arc<OpenFile>, Checkpoint), String> {
        let (disk, data) = (&self.io.disk, entry.folder.join(DATA));
        let checkpoint = record::read(disk, &entry.folder).map_err(|error| error.to_string())?;
        let checkpoint = checkpoint.ok_or("its checkpoint can't be read")?;
        // Somebody may still read it: then it's the same open file, which counts until all have let go of it.
        let file = if let Some(file) = entry.file.upgrade() {
            file
        } else {
            let file = disk.open_for_writing(&data).map_err(|error| error.to_string())?;
            OpenFile::new(file, data.clone(), self.io.clone())
        };
        let open = file.file().map_err(|error| error.to_string())?;
        let size_bytes = disk.size(open, &data).map_err(|error| error.to_string())?;
        if size_bytes != checkpoint.size_bytes {
            return Err(format!("its file has {size_bytes} bytes instead of {}", checkpoint.size_bytes));
        }
        Ok((file, checkpoint))
    }

    /// Removes a resting partial that was taken out of the table. Returns how many bytes count no longer: those that are being
    /// read, or that the disk does not let go of, do.
    fn discard(&self, entry: Entry) -> u64 {
        let bytes = entry.charge.bytes();
        let removed = self.remove_partial(&entry.folder);
        match (entry.file.upgrade(), removed) {
            (Some(file), _) => file.keep_until_closed(entry.charge.into_reservation()),
            (None, false) => self.count_unremoved(&entry.folder, entry.charge),
            (None, true) => return bytes,
        }
        0
    }

    /// Drops resting partials, those first that were left longest ago, until `enough` bytes are free. Returns how many are:
    /// interrupted downloads make room for verified blobs.
    pub(super) async fn drop_resting(self: &Arc<Self>, enough: u64) -> u64 {
        let mut oldest: Vec<(u64, Key)> =
            self.resting.0.lock().iter().map(|(key, entry)| (entry.touched, key.clone())).collect();
        oldest.sort_unstable_by_key(|(touched, _)| *touched);
        let mut freed = 0;
        for (_, key) in oldest {
            if freed >= enough {
                break;
            }
            let Some(entry) = self.resting.0.lock().remove(&key) else { continue };
            let shared = self.clone();
            freed += self.io.writing.run(move || shared.discard(entry)).await;
        }
        freed
    }

    /// Drops what nobody asked for in a long time.
    pub(super) async fn drop_old_resting(self: &Arc<Self>) {
        let now = now();
        let old: Vec<Entry> = {
            let mut resting = self.resting.0.lock();
            resting.extract_if(|_, entry| now.saturating_sub(entry.touched) > AGE_MAX_MICROS).map(|old| old.1).collect()
        };
        for entry in old {
            let shared = self.clone();
            self.io.writing.run(move || shared.discard(entry)).await;
        }
    }

    /// Enters what was found at boot. Of two downloads of the same blob the later one is kept.
    pub(super) fn enter_resting(self: &Arc<Self>, found: Vec<FoundPartial>) {
        for FoundPartial { registry, digest, folder, on_disk_bytes, touched } in found {
            self.partials.lock().insert(folder.clone());
            let charge = self.ledger.found_record(sparse_charge(on_disk_bytes));
            let entry = Entry { folder, on_disk_bytes, charge, file: Weak::new(), touched };
            let mut resting = self.resting.0.lock();
            let key = (registry, digest);
            let is_older = resting.get(&key).is_some_and(|known| known.touched > touched);
            let loser = if is_older { Some(entry) } else { resting.insert(key, entry) };
            drop(resting);
            if let Some(loser) = loser {
                self.discard(loser);
            }
        }
    }
}

// === impl Resting ===

impl Resting {
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// The partials in the data directory that can be taken up again. What can't is removed, or left alone where that fails: no
/// boot depends on it.
pub(super) fn find(disk: &Disk, layout: &Layout) -> Result<Vec<FoundPartial>, StoreError> {
    let mut partials = Vec::new();
    for registry in disk.list(&layout.partials())? {
        let path = layout.partials().join(&registry.name);
        let name = registry.name.to_str().and_then(|name| name.parse::<RegistryName>().ok());
        let Some(name) = name.filter(|_| registry.kind == Kind::Folder) else {
            remove(disk, &path, registry.kind);
            continue;
        };
        for folder in disk.list(&path)? {
            let place = path.join(&folder.name);
            let found = layout::partial_at(&folder.name).and_then(|digest| {
                let facts = facts(disk, &place, &name, digest);
                facts.inspect_err(|error| tracing::warn!(%error, "an interrupted download can't be read")).ok()?
            });
            match found {
                Some(found) => partials.push(found),
                None => remove(disk, &place, folder.kind),
            }
        }
    }
    Ok(partials)
}

fn facts(
    disk: &Disk,
    folder: &Path,
    registry: &RegistryName,
    digest: Digest,
) -> Result<Option<FoundPartial>, StoreError> {
    let Some(checkpoint) = record::read(disk, folder)? else { return Ok(None) };
    let data = disk.facts(&folder.join(DATA))?.filter(|data| data.size_bytes == checkpoint.size_bytes);
    let Some(data) = data else { return Ok(None) };
    let (state, recent) = (disk.facts(&folder.join(STATE))?, disk.facts(&folder.join(RECENT))?);
    let touched = state.into_iter().chain(recent).map(|record| record.modified).max();
    let found = FoundPartial {
        registry: registry.clone(),
        digest,
        folder: folder.to_owned(),
        on_disk_bytes: data.on_disk_bytes,
        touched: touched.unwrap_or_default(),
    };
    Ok((now().saturating_sub(found.touched) <= AGE_MAX_MICROS).then_some(found))
}

fn remove(disk: &Disk, path: &Path, kind: Kind) {
    let removed = match kind {
        Kind::Folder => disk.empty(path, PARTIAL_DEPTH).and_then(|()| disk.remove_folder(path).map(drop)),
        Kind::File | Kind::Other => disk.remove(path).map(drop),
    };
    if let Err(error) = removed {
        tracing::warn!(%error, "could not remove what is left of a download");
    }
}
