//! The index against a naive model, and at its edges.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::order::order;
use super::*;

/// What can happen to an index. Small numbers stand for digests, so that things meet.
#[derive(Clone, Debug)]
enum Step {
    Reserve(u64),
    Commit { id: u8, size_bytes: u64 },
    Release,
    Hit(u8),
    Open(u8),
    Close(u8),
    Forget(u8),
    Quarantine(u8),
    Record(u64),
    EvictSlowly,
}

/// The naive least-recently-used cache: sums are computed, orders are recursive.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u8, ModelEntry>,
    reservations: Vec<u64>,
    records: u64,
}

struct ModelEntry {
    size_bytes: u64,
    stamp: u64,
    open: Option<Arc<()>>,
}

const CAPACITY: u64 = 64 * 1024;

/// An index of two images that share a layer, and an artifact.
const CHILDREN: [(u8, &[u8]); 4] = [(1, &[4, 5]), (0, &[1, 2]), (2, &[5, 6]), (3, &[7])];

fn digest(id: u8) -> Digest {
    Digest::sha256(&[id])
}

fn children(id: u8) -> &'static [u8] {
    CHILDREN.iter().find(|(parent, _)| *parent == id).map_or(&[], |(_, children)| children)
}

impl Model {
    fn total(&self) -> u64 {
        let present: u64 = self.entries.values().map(|entry| charge(entry.size_bytes)).sum();
        present + self.reservations.iter().sum::<u64>() + self.records
    }

    fn raised(&self, id: u8) -> u64 {
        let parents = self.entries.keys().filter(|parent| children(**parent).contains(&id));
        parents.map(|parent| self.raised(*parent)).chain([self.entries[&id].stamp]).max().unwrap()
    }

    fn effective(&self, id: u8) -> u64 {
        let held = children(id).iter().filter(|child| self.entries.contains_key(child));
        held.map(|child| self.effective(*child)).chain([self.raised(id)]).max().unwrap()
    }

    fn rank(&self, id: u8) -> usize {
        if children(id).is_empty() {
            return 0;
        }
        let held = children(id).iter().filter(|child| self.entries.contains_key(child));
        1 + held.map(|child| self.rank(*child)).max().unwrap_or(0)
    }

    fn victims(&self, least: u64, enough: u64) -> Vec<u8> {
        let mut ids: Vec<u8> = self.entries.keys().copied().collect();
        ids.sort_by_key(|id| (self.effective(*id), self.rank(*id), digest(*id)));
        let (mut freed, mut victims) = (0, Vec::new());
        for id in ids.into_iter().filter(|id| self.entries[id].open.is_none()) {
            if freed >= enough {
                break;
            }
            freed += charge(self.entries[&id].size_bytes);
            victims.push(id);
        }
        if freed < least { Vec::new() } else { victims }
    }

    fn keep_raises(&mut self) {
        let raised: Vec<(u8, u64)> = self.entries.keys().map(|id| (*id, self.raised(*id))).collect();
        for (id, stamp) in raised {
            self.entries.get_mut(&id).unwrap().stamp = stamp;
        }
    }
}

fn parents() -> Vec<super::super::order::Parent> {
    CHILDREN.iter().map(|(id, children)| (digest(*id), children.iter().map(|id| digest(*id)).collect())).collect()
}

/// Evicts in both, and compares who went.
fn evict(index: &mut Index<()>, model: &mut Model, least: u64, enough: u64) -> bool {
    let expected = model.victims(least, enough);
    let order = order(index.candidates(), &parents());
    index.raise(&order.raised);
    model.keep_raises();
    let victims = index.begin_evict(&order.candidates, least, enough);
    let chosen: Vec<Digest> = victims.iter().map(|victim| victim.digest).collect();
    assert_eq!(chosen, expected.iter().map(|id| digest(*id)).collect::<Vec<_>>());
    assert_eq!(index.total(), model.total(), "victims count until they are gone");
    for (victim, id) in victims.iter().zip(&expected) {
        assert!(index.is_evicting(&victim.digest, victim.serial) && index.size_of(&victim.digest).is_none());
        assert!(index.forget(&victim.digest, victim.serial));
        model.entries.remove(id);
    }
    !expected.is_empty()
}

fn apply(index: &mut Index<()>, model: &mut Model, step: &Step) {
    match *step {
        Step::Reserve(bytes) => loop {
            match index.reserve(bytes) {
                Grant::Granted => {
                    assert!(model.total() + bytes <= CAPACITY);
                    model.reservations.push(bytes);
                    break;
                }
                Grant::Never => {
                    assert!(bytes > CAPACITY);
                    break;
                }
                Grant::Short { by } => {
                    assert_eq!(by, model.total() + bytes - CAPACITY);
                    if !evict(index, model, by, by + CAPACITY / 50) {
                        break;
                    }
                }
            }
        },
        Step::Commit { id, size_bytes } => {
            let fits = |bytes: &u64| charge(size_bytes) <= *bytes;
            let Some(at) = model.reservations.iter().position(fits) else { return };
            if index.keep(&digest(id)) {
                assert!(model.entries.contains_key(&id));
                return;
            }
            let stamp = index.stamp(0);
            index.commit(digest(id), size_bytes, stamp, model.reservations.remove(at), Weak::new());
            model.entries.insert(id, ModelEntry { size_bytes, stamp, open: None });
        }
        Step::Release => {
            if let Some(bytes) = model.reservations.pop() {
                index.release(bytes);
            }
        }
        Step::Hit(id) => {
            let hit = index.hit(&digest(id));
            assert_eq!(hit.is_some(), model.entries.contains_key(&id));
            if let Some(entry) = model.entries.get_mut(&id) {
                entry.stamp = index.entries[&digest(id)].stamp.load(Ordering::Relaxed);
            }
        }
        Step::Open(id) => {
            let Some(entry) = model.entries.get_mut(&id) else { return };
            let hit = index.hit(&digest(id)).unwrap();
            entry.stamp = index.entries[&digest(id)].stamp.load(Ordering::Relaxed);
            let file = Arc::new(());
            match index.attach(&digest(id), hit.serial, &file) {
                Attach::Attached => assert!(entry.open.replace(file).is_none()),
                Attach::Taken(other) => assert!(Arc::ptr_eq(&other, entry.open.as_ref().unwrap())),
                Attach::Gone => panic!("a held blob can be opened"),
            }
        }
        Step::Close(id) => {
            if let Some(entry) = model.entries.get_mut(&id) {
                entry.open = None;
            }
        }
        Step::Forget(id) => {
            let serial = index.entries.get(&digest(id)).map_or(0, |entry| entry.serial);
            assert!(!index.forget(&digest(id), serial + 1_000_000), "a successor was forgotten");
            assert_eq!(index.forget(&digest(id), serial), model.entries.remove(&id).is_some());
        }
        Step::Quarantine(id) => {
            let serial = index.entries.get(&digest(id)).map_or(0, |entry| entry.serial);
            let bytes = index.quarantine(&digest(id), serial);
            assert_eq!(bytes, model.entries.remove(&id).map(|entry| charge(entry.size_bytes)));
            // A person looks at it and removes it: else the tests would fill up with it.
            index.release_records(bytes.unwrap_or(0));
        }
        Step::Record(bytes) => {
            if let Some(at) = model.reservations.iter().position(|reserved| bytes <= *reserved) {
                index.commit_records(bytes, model.reservations.remove(at));
                assert_eq!(index.totals().records, bytes);
                index.release_records(bytes);
            }
        }
        Step::EvictSlowly => {
            let order = order(index.candidates(), &parents());
            let victims = index.begin_evict(&order.candidates, 0, 1);
            for victim in victims {
                assert!(index.keep(&victim.digest), "a commit of the same content keeps it");
                assert!(!index.is_evicting(&victim.digest, victim.serial));
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..10_u8;
    let size = prop_oneof![0..200_u64, 4000..20_000_u64];
    prop_oneof![
        3 => size.clone().prop_map(|size| Step::Reserve(charge(size))),
        1 => (0..CAPACITY * 2).prop_map(Step::Reserve),
        5 => (id.clone(), size).prop_map(|(id, size_bytes)| Step::Commit { id, size_bytes }),
        2 => Just(Step::Release),
        3 => id.clone().prop_map(Step::Hit),
        1 => id.clone().prop_map(Step::Open),
        2 => id.clone().prop_map(Step::Close),
        1 => id.clone().prop_map(Step::Forget),
        1 => id.prop_map(Step::Quarantine),
        1 => (0..5000_u64).prop_map(Step::Record),
        1 => Just(Step::EvictSlowly),
    ]
}

proptest! {
    #[test]
    fn the_index_is_the_naive_cache(steps in prop::collection::vec(step(), 1..200)) {
        let (mut index, mut model) = (Index::<()>::new(CAPACITY), Model::default());
        for step in &steps {
            apply(&mut index, &mut model, step);
            prop_assert!(index.sums_are_right());
            prop_assert_eq!(index.total(), model.total());
            prop_assert!(index.total() <= CAPACITY);
            prop_assert_eq!(index.excess(), 0);
            prop_assert_eq!(index.blobs(), model.entries.len());
        }
    }
}

#[test]
fn a_blob_read_after_the_order_was_made_stays() {
    let mut index = Index::<()>::new(CAPACITY);
    index.found(digest(4), 100, 1);
    index.found(digest(5), 100, 2);
    let order = order(index.candidates(), &[]);
    index.hit(&digest(4)).unwrap();
    let victims = index.begin_evict(&order.candidates, 1, 1);
    assert_eq!(victims.iter().map(|victim| victim.digest).collect::<Vec<_>>(), [digest(5)]);
}

#[test]
fn more_than_the_capacity_may_be_found_but_not_added() {
    let mut index = Index::<()>::new(10_000);
    for id in 0..4 {
        index.found(digest(id), 4000, 7);
    }
    assert_eq!(index.excess(), 4 * charge(4000) - 10_000);
    assert!(matches!(index.reserve(1), Grant::Short { .. }));
    assert_eq!(index.reserve(10_001), Grant::Never);
    let order = order(index.candidates(), &[]);
    for victim in index.begin_evict(&order.candidates, 0, index.excess()) {
        index.forget(&victim.digest, victim.serial);
    }
    assert_eq!((index.excess(), index.blobs()), (0, 2));
}

#[test]
fn stamps_start_above_the_largest_found_and_never_fall() {
    let mut index = Index::<()>::new(CAPACITY);
    index.found(digest(1), 1, 5_000);
    index.advance(10);
    index.found(digest(2), 1, 400);
    index.hit(&digest(2)).unwrap();
    assert_eq!(index.unpersisted(), [(digest(2), 5_001)]);
    index.persisted(&digest(2), 5_001);
    assert!(index.unpersisted().is_empty());
    assert!(index.take_touched() && !index.take_touched());
}
