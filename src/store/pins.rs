//! Pins: named promises that images stay, with everything that belongs to them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::count::record_charge;
use super::error::StoreError;
use super::fs::{Disk, Kind};
use super::layout::{self, Layout};
use super::ledger::Charge;
use super::publish::{MODE_RECORD, publish_bytes};
use super::reach::Scope;
use super::record_files::encode;
use super::{Shared, Store};
use crate::clock::Timestamp;
use crate::oci::{Digest, ImageName, Tag};

/// The name of a pin; it is spelled as tags are.
pub type PinName = Tag;

/// A promise not to evict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The images that stay. What is not held yet stays once it is; where a tag moves, the promise moves along.
    pub roots: Vec<ImageName>,
    /// Of an image for several platforms only these stay, such as `linux/amd64`; empty is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// What refers to the images (signatures, SBOMs) stays too.
    #[serde(default)]
    pub referrers: bool,
    /// When it was made.
    pub created: Timestamp,
}

/// A pin with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPin {
    /// Its name.
    pub name: PinName,
    /// What it keeps.
    #[serde(flatten)]
    pub pin: Pin,
}

/// All pins, with the room that their files take.
pub(super) type Pins = BTreeMap<PinName, (Pin, Charge)>;

/// Larger files are no pins.
const PIN_BYTES_MAX: u64 = 16 << 20;

/// Pins that take more than the capacity without this part of it leave no room to work with.
const SPARE_SHARE: u64 = 50;

/// The pins on disk. One that can't be read is left for a person to look at, and said aloud: it was a promise.
fn find(disk: &Disk, layout: &Layout) -> Result<Vec<(PinName, Pin, u64)>, StoreError> {
    let mut pins = Vec::new();
    for found in disk.list(&layout.pins())?.into_iter().filter(|found| found.kind == Kind::File) {
        let path = layout.pins().join(&found.name);
        let read = disk.read(&path, PIN_BYTES_MAX)?.unwrap_or_default();
        match (layout::tag_at(&found.name), serde_json::from_slice(&read)) {
            (Some(name), Ok(pin)) => pins.push((name, pin, record_charge(read.len() as u64))),
            (None, _) => {
                tracing::error!(path = %path.display(), "this is not a pin's name, and nothing is kept for it");
            }
            (_, Err(error)) => {
                disk.parse_failed();
                tracing::error!(path = %path.display(), %error, "a pin can't be read, and nothing is kept for it");
            }
        }
    }
    Ok(pins)
}

// === impl Store ===

impl Store {
    /// All pins, by name.
    pub fn pins(&self) -> Vec<(PinName, Pin)> {
        self.shared.pins.read().iter().map(|(name, (pin, _))| (name.clone(), pin.clone())).collect()
    }

    /// The pin of a name.
    pub fn pin_called(&self, name: &PinName) -> Option<Pin> {
        self.shared.pins.read().get(name).map(|(pin, _)| pin.clone())
    }

    /// Makes a promise beside what an earlier one of that name keeps: no platform, image or referrer of that is given up.
    pub async fn widen_pin(&self, name: &PinName, mut pin: Pin) -> Result<(), StoreError> {
        // Between looking and making nobody else may.
        let _turn = self.shared.widening.lock().await;
        if let Some(earlier) = self.pin_called(name) {
            let known: HashSet<ImageName> = earlier.roots.iter().cloned().collect();
            let fresh = std::mem::take(&mut pin.roots).into_iter().filter(|root| !known.contains(root));
            pin.roots = earlier.roots.into_iter().chain(fresh).collect();
            // None named is all.
            if earlier.platforms.is_empty() {
                pin.platforms.clear();
            } else if !pin.platforms.is_empty() {
                let more = earlier.platforms.into_iter().filter(|platform| !pin.platforms.contains(platform));
                let more: Vec<_> = more.collect();
                pin.platforms.extend(more);
            }
            pin.referrers |= earlier.referrers;
        }
        self.pin(name, pin).await
    }

    /// Makes a promise, in place of an earlier one of that name. It holds, and survives a crash, once this returns.
    pub async fn pin(&self, name: &PinName, pin: Pin) -> Result<(), StoreError> {
        let content = encode(&pin).unwrap_or_default();
        let room = self.shared.reserve_charged(record_charge(content.len() as u64)).await?;
        let (shared, name) = (self.shared.clone(), name.clone());
        let put = move || {
            let (staged, target) = (shared.staging_path(), shared.layout.pin(&name));
            let _turn = shared.pin_turn.lock();
            publish_bytes(&shared.io.disk, Bytes::from(content), &staged, &target, MODE_RECORD, None)?;
            shared.pins.write().insert(name, (pin, room.into_charge()));
            Ok::<_, StoreError>(())
        };
        self.shared.io.run_counted(put).await?;
        self.shared.look_at_pins().await;
        Ok(())
    }

    /// Takes a promise back. `false`: there was none of that name.
    pub async fn unpin(&self, name: &PinName) -> Result<bool, StoreError> {
        let (shared, name) = (self.shared.clone(), name.clone());
        let remove = move || {
            let _turn = shared.pin_turn.lock();
            shared.io.disk.remove(&shared.layout.pin(&name))?;
            shared.io.disk.sync_folder(&shared.layout.pins())?;
            Ok(shared.pins.write().remove(&name).is_some())
        };
        self.shared.io.run_counted(remove).await
    }

    /// The pins that keep an image: those that name it or something that leads to it.
    pub fn pins_of(&self, image: &ImageName) -> Vec<PinName> {
        let pins = self.shared.pins.read();
        let digest = self.shared.catalog.read().resolve(image);
        let keeps = |pin: &Pin| {
            pin.roots.contains(image) || digest.is_some_and(|digest| self.shared.reach_of(pin).contains(&digest))
        };
        pins.iter().filter(|(_, (pin, _))| keeps(pin)).map(|(name, _)| name.clone()).collect()
    }
}

// === impl Shared ===

impl Shared {
    /// Takes in the pins on disk.
    pub(super) async fn load_pins(self: &Arc<Self>) -> Result<(), StoreError> {
        let (disk, paths) = (self.io.disk.clone(), self.layout.clone());
        for (name, pin, bytes) in self.io.reading.run(move || find(&disk, &paths)).await? {
            let charge = self.ledger.found_record(bytes);
            self.pins.write().insert(name, (pin, charge));
        }
        Ok(())
    }

    /// Everything that one pin keeps, held or not.
    fn reach_of(&self, pin: &Pin) -> HashSet<Digest> {
        let scope = Scope { platforms: &pin.platforms, referrers: pin.referrers };
        self.catalog.read().reach(&pin.roots, scope)
    }

    /// Everything that must stay, held or not. Counts what of it is held.
    pub(super) fn pinned(&self) -> HashSet<Digest> {
        let pinned: HashSet<Digest> = self.pins.read().values().flat_map(|(pin, _)| self.reach_of(pin)).collect();
        let held = self.ledger.read().charges(&pinned);
        self.pinned_bytes.store(held, Ordering::Relaxed);
        self.metrics.store_pinned_bytes.set(i64::try_from(held).unwrap_or(i64::MAX));
        pinned
    }

    /// Sees what the pins keep, and says it when that has come to leave hardly any room.
    pub(super) async fn look_at_pins(self: &Arc<Self>) {
        if self.pins.read().is_empty() {
            return;
        }
        let shared = self.clone();
        self.io.reading.run(move || shared.pinned()).await;
        let exceed = self.pins_exceed();
        let said = self.pins_said.swap(exceed.is_some(), Ordering::Relaxed);
        if let (Some(what), false) = (exceed, said) {
            tracing::warn!("{what}");
        }
    }

    /// What is wrong with the pins: they leave hardly any room.
    pub(super) fn pins_exceed(&self) -> Option<String> {
        let (pinned, capacity) = (self.pinned_bytes.load(Ordering::Relaxed), self.ledger.read().capacity());
        let room = capacity - capacity / SPARE_SHARE;
        (pinned > room).then(|| {
            format!(
                "pins keep {} of {} MiB, so that what is not pinned is passed through; unpin something, or raise storage.capacity",
                pinned >> 20,
                capacity >> 20
            )
        })
    }

    /// Whether a pin names this very image.
    pub(super) fn is_pinned_by_name(&self, image: &ImageName) -> bool {
        self.pins.read().values().any(|(pin, _)| pin.roots.contains(image))
    }
}
