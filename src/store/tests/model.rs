//! The store against a naive model: whatever is done in whatever order, the budget holds and what is held is right.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::simulated_disk::{Loss, SimulatedDisk};
use super::*;

/// One thing to do. The numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Reserve(u64),
    GiveBack(usize),
    Put(u8),
    /// Begins a partial, of known or unknown size.
    Begin(u8, bool),
    Write(usize),
    Commit(usize),
    Abort(usize),
    Read(u8),
    /// Opens a blob and keeps it open.
    Hold(u8),
    LetGo(usize),
    Record(u8, u8),
    Pin(u8, u8),
    Unpin(u8),
    Remove(u8),
    Sweep,
    Scrub(u8),
    Reopen,
    Crash(u64),
}

const CAPACITY: u64 = 200_000;
const BLOBS: u8 = 12;

/// A partial under way.
struct Filling {
    partial: Partial,
    id: u8,
    written: u64,
}

/// What the model knows.
struct World {
    rig: Rig,
    disk: Arc<SimulatedDisk>,
    store: Option<Store>,
    room: Vec<Reservation>,
    filling: Vec<Filling>,
    open: Vec<(u8, Blob)>,
    /// Which blob's manifest record lists which other blob.
    lists: HashMap<u8, u8>,
    pins: BTreeMap<u8, u8>,
}

/// A blob of this number: its size is a matter of the number, from nothing to more than the store can hold.
fn blob(id: u8) -> (Digest, Bytes) {
    let size = [0, 1, 500, 4096, 9000, 20_000, 30_000, 40_000, 50_000, 60_000, 90_000, 250_000][usize::from(id)];
    content(&format!("blob {id}"), size)
}

fn steps() -> impl Strategy<Value = Step> {
    let (id, at) = (0..BLOBS, 0..8_usize);
    prop_oneof![
        2 => (0..120_000_u64).prop_map(Step::Reserve),
        2 => at.clone().prop_map(Step::GiveBack),
        6 => id.clone().prop_map(Step::Put),
        4 => (id.clone(), any::<bool>()).prop_map(|(id, known)| Step::Begin(id, known)),
        8 => at.clone().prop_map(Step::Write),
        4 => at.clone().prop_map(Step::Commit),
        1 => at.clone().prop_map(Step::Abort),
        6 => id.clone().prop_map(Step::Read),
        3 => id.clone().prop_map(Step::Hold),
        3 => at.prop_map(Step::LetGo),
        4 => (id.clone(), id.clone()).prop_map(|(id, child)| Step::Record(id, child)),
        1 => (0..2_u8, id.clone()).prop_map(|(name, id)| Step::Pin(name, id)),
        1 => (0..2_u8).prop_map(Step::Unpin),
        1 => id.clone().prop_map(Step::Remove),
        2 => Just(Step::Sweep),
        1 => id.prop_map(Step::Scrub),
        1 => Just(Step::Reopen),
        1 => any::<u64>().prop_map(Step::Crash),
    ]
}

fn tag_of(id: u8) -> Tag {
    tag(&format!("t{id}"))
}

// === impl World ===

impl World {
    async fn new() -> Self {
        let disk = Arc::new(SimulatedDisk::default());
        let mut rig = Rig::in_memory(CAPACITY);
        rig.options.faults = Some(disk.clone());
        rig.options.shrink_grace = Duration::ZERO;
        disk.mount(&rig.options.path);
        let store = Some(rig.open().await);
        let (room, filling, open) = (Vec::new(), Vec::new(), Vec::new());
        Self { rig, disk, store, room, filling, open, lists: HashMap::new(), pins: BTreeMap::new() }
    }

    fn store(&self) -> Store {
        self.store.clone().unwrap()
    }

    async fn step(&mut self, step: &Step) {
        let store = self.store();
        match *step {
            Step::Reserve(bytes) => match store.reserve(bytes).await {
                Ok(room) => self.room.push(room),
                Err(refusal) => assert!(matches!(refusal, NoRoom::NotNow { .. } | NoRoom::Never { .. }), "{refusal}"),
            },
            Step::GiveBack(at) => drop((at < self.room.len()).then(|| self.room.swap_remove(at))),
            Step::Put(id) => self.put(id).await,
            Step::Begin(id, known) => self.begin(id, known).await,
            Step::Write(at) => self.write(at).await,
            Step::Commit(at) if at < self.filling.len() => {
                let Filling { partial, id, written } = self.filling.swap_remove(at);
                let (digest, bytes) = blob(id);
                if written == bytes.len() as u64 {
                    partial.commit(Verified::check(&digest, &bytes).unwrap()).await.unwrap();
                    assert_eq!(store.size_of(&digest), Some(written));
                } else {
                    let refusal = partial.commit(Verified::check(&digest, &bytes).unwrap()).await.unwrap_err();
                    assert!(matches!(refusal, StoreError::WrongProof { .. }), "{refusal}");
                }
            }
            Step::Abort(at) => drop((at < self.filling.len()).then(|| self.filling.swap_remove(at))),
            Step::Read(id) => {
                let (digest, bytes) = blob(id);
                if let Some(read) = store.read_blob(&digest).await.unwrap() {
                    assert_eq!(read, bytes);
                }
            }
            Step::Hold(id) => {
                if let Some(blob) = store.open_blob(&blob(id).0).await.unwrap() {
                    self.open.push((id, blob));
                }
            }
            Step::LetGo(at) => drop((at < self.open.len()).then(|| self.open.swap_remove(at))),
            Step::Record(id, child) => {
                let digest = blob(id).0;
                let app = repository("t/app");
                let record = manifest_record(1, &[blob(child).0]);
                let kept = store.put_manifest(&app, digest, record).await.unwrap();
                if kept && store.put_tag(&app, &tag_of(id), tag_record(digest)).await.unwrap() {
                    self.lists.insert(id, child);
                }
            }
            Step::Pin(name, id) => {
                let root = format!("docker.io/t/app:{}", tag_of(id)).parse().unwrap();
                let (platforms, created) = (Vec::new(), Timestamp(1));
                let pin = Pin { roots: vec![root], platforms, referrers: false, created };
                match store.pin(&tag_of(name), pin).await {
                    Ok(()) => _ = self.pins.insert(name, id),
                    Err(refusal) => assert!(refusal.is_no_space(), "{refusal}"),
                }
            }
            Step::Unpin(name) => {
                assert_eq!(store.unpin(&tag_of(name)).await.unwrap(), self.pins.remove(&name).is_some());
            }
            Step::Remove(id) => {
                let image = format!("docker.io/t/app:{}", tag_of(id)).parse().unwrap();
                match store.remove_image(&image).await {
                    Ok(_) => assert!(!self.pins.values().any(|pinned| *pinned == id)),
                    Err(RemoveError::Pinned { .. } | RemoveError::Absent(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Sweep => store.sweep().await,
            Step::Scrub(id) => {
                assert!(matches!(store.check_blob(&blob(id).0, None).await, Checked::Right | Checked::Gone));
            }
            Step::Reopen => self.restart(None).await,
            Step::Crash(seed) => self.restart(Some(seed)).await,
            Step::Commit(_) => {}
        }
    }

    async fn put(&self, id: u8) {
        let (digest, bytes) = blob(id);
        match self.store().put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await {
            Ok(()) => assert!(self.store().size_of(&digest).is_some()),
            Err(refusal) => assert!(refusal.is_no_space(), "{refusal}"),
        }
    }

    async fn begin(&mut self, id: u8, known: bool) {
        let (digest, bytes) = blob(id);
        let size_bytes = known.then_some(bytes.len() as u64);
        let registry = "docker.io".parse().unwrap();
        match self.store().create_partial(&registry, digest, size_bytes.map_or(Extent::Growing, Extent::Whole)).await {
            Ok(partial) => self.filling.push(Filling { partial, id, written: 0 }),
            Err(refusal) => assert!(refusal.is_no_space(), "{refusal}"),
        }
    }

    async fn write(&mut self, at: usize) {
        let Some(filling) = self.filling.get_mut(at) else { return };
        let bytes = blob(filling.id).1;
        let from = usize::try_from(filling.written).unwrap();
        let to = bytes.len().min(from + 17_000);
        match filling.partial.write_at(filling.written, vec![bytes.slice(from..to)]).await {
            Ok(()) => filling.written = to as u64,
            Err(refusal) => assert!(refusal.is_no_space(), "{refusal}"),
        }
    }

    /// Stops the store, in order or by a power cut, and opens what is left.
    async fn restart(&mut self, crash: Option<u64>) {
        let store = self.store.take().unwrap();
        if crash.is_some() {
            self.disk.cut();
        }
        (self.room, self.filling, self.open) = (Vec::new(), Vec::new(), Vec::new());
        store.close().await;
        if let Some(seed) = crash {
            self.disk.restore(&self.rig.options.path, Loss::Some(seed));
        }
        let store = self.rig.open().await;
        store.settled().await;
        // Pins are promises: they survive whatever happens once they were made.
        let pins: Vec<_> = store.pins().into_iter().map(|(name, _)| name).collect();
        assert_eq!(pins, self.pins.keys().map(|name| tag_of(*name)).collect::<Vec<_>>());
        self.store = Some(store);
    }

    /// What must hold after each step.
    async fn check(&self) {
        let store = self.store();
        store.settled().await;
        let snapshot = store.snapshot();
        let counted = snapshot.present_bytes + snapshot.reserved_bytes;
        assert!(counted <= snapshot.capacity_bytes, "over budget: {snapshot:?}");
        assert!(store.shared.ledger.read().sums_are_right(), "{snapshot:?}");
        let used = self.rig.disk_usage();
        assert!(used <= CAPACITY + CAPACITY / 100 + 8192, "du says {used}: {snapshot:?}");
        for (id, open) in &self.open {
            let bytes = open.file.read_at(0, usize::try_from(open.size_bytes).unwrap()).await.unwrap();
            assert_eq!(bytes, blob(*id).1, "a reader's blob changed under it");
        }
        for (digest, _) in store.held() {
            let checked = store.check_blob(&digest, None).await;
            assert!(matches!(checked, Checked::Right | Checked::Gone), "{digest}: {checked:?}");
        }
        for (id, _) in &self.open {
            assert!(store.size_of(&blob(*id).0).is_some(), "a blob with a reader went");
        }
    }

    /// What must hold when all is let go.
    async fn end(mut self) {
        (self.room, self.filling, self.open) = (Vec::new(), Vec::new(), Vec::new());
        assert_at_rest(&self.store()).await;
    }
}

/// Runs `cases` series of `length` steps each.
fn run(cases: u32, length: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let series = prop::collection::vec(steps(), length);
    let result = runner.run(&series, |series| {
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in &series {
                world.step(step).await;
                world.check().await;
            }
            world.end().await;
        });
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn whatever_is_done_in_whatever_order_the_store_is_as_the_model_says() {
    run(12, 60);
}

/// 100 000 steps and more: `cargo test --release --lib store::tests::model -- --ignored`.
#[test]
#[ignore = "takes minutes: part of .ci/long"]
fn whatever_is_done_in_whatever_order_at_length() {
    run(1_010, 100);
}
