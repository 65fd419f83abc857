//! Fills against scripted origins and a real store: who gets what, and what is left behind.

mod lazy;
mod resume;
mod segments;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::progress::Ahead;
use super::*;
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::oci::range::ByteRange;
use crate::store::{self, Cut, Pieces, Store};
use crate::tasks::Pool;

/// What an origin does when it's asked.
enum Act {
    /// Sends these chunks, says that there are so many bytes in all, and ends well.
    Send(Vec<Bytes>, Option<u64>),
    /// The same, but waits for the gate before the chunk with this number.
    Gated(Vec<Bytes>, Option<u64>, usize),
    /// Sends these chunks and breaks off.
    Break(Vec<Bytes>, Option<u64>),
    /// Refuses.
    Refuse(OriginErrorKind),
    Panic,
}

struct Scripted {
    name: &'static str,
    acts: Mutex<VecDeque<Act>>,
    asked: AtomicUsize,
    gate: Arc<Notify>,
}

struct Rig {
    folder: TempDir,
    store: Store,
    fills: Fills,
}

const MIB: usize = 1024 * 1024;

/// The bytes of these ranges one after the other.
fn part(bytes: &[u8], ranges: &[ByteRange]) -> Vec<u8> {
    let bytes = |range: &ByteRange| {
        bytes[usize::try_from(range.first).unwrap()..=usize::try_from(range.last).unwrap()].to_vec()
    };
    ranges.iter().flat_map(bytes).collect()
}

/// Small enough for tests: 3 MiB are a large blob.
const LIMITS: Limits = Limits {
    connections_per_blob: 4,
    parallel_above_bytes: 3 * MIB as u64,
    segment_bytes: 256 * 1024,
    extra_connections_max: 16,
    complete_from_percent: 25,
    linger: Duration::from_hours(1),
};

// === impl Scripted ===

impl Scripted {
    fn new(name: &'static str, act: Act) -> Arc<Self> {
        Arc::new(Self { name, acts: Mutex::new([act].into()), asked: AtomicUsize::new(0), gate: Arc::default() })
    }
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

fn failure(kind: OriginErrorKind) -> OriginError {
    OriginError { kind, message: format!("{kind:?}").into() }
}

impl Origin for Scripted {
    fn host(&self) -> String {
        "scripted.example".to_owned()
    }

    fn label(&self) -> String {
        self.name.to_owned()
    }

    fn fetch(&self, _: Option<ByteRange>, _: Priority) -> BoxFuture<'_, Result<OriginBody, OriginError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // What broke off can't be resumed from an origin that has nothing more to say.
        let act = self.acts.lock().pop_front().unwrap_or(Act::Refuse(OriginErrorKind::NotFound));
        let gate = Arc::clone(&self.gate);
        async move {
            let body = |chunks: Vec<Bytes>, end: Option<OriginErrorKind>, gated: Option<usize>| {
                let sent = stream::iter(chunks.into_iter().enumerate()).then(move |(number, chunk)| {
                    let gate = Arc::clone(&gate);
                    async move {
                        if gated == Some(number) {
                            gate.notified().await;
                        }
                        Ok(chunk)
                    }
                });
                sent.chain(stream::iter(end.map(|kind| Err(failure(kind))))).boxed()
            };
            match act {
                Act::Send(chunks, total_bytes) => Ok(OriginBody {
                    host: "scripted.example".to_owned(),
                    offset: 0,
                    end: total_bytes,
                    total_bytes,
                    body: body(chunks, None, None),
                }),
                Act::Gated(chunks, total_bytes, at) => Ok(OriginBody {
                    host: "scripted.example".to_owned(),
                    offset: 0,
                    end: total_bytes,
                    total_bytes,
                    body: body(chunks, None, Some(at)),
                }),
                Act::Break(chunks, total_bytes) => {
                    let body = body(chunks, Some(OriginErrorKind::Broken), None);
                    Ok(OriginBody {
                        host: "scripted.example".to_owned(),
                        offset: 0,
                        end: total_bytes,
                        total_bytes,
                        body,
                    })
                }
                Act::Refuse(kind) => Err(failure(kind)),
                Act::Panic => panic!("as planned"),
            }
        }
        .boxed()
    }
}

// === impl Rig ===

impl Rig {
    async fn new(capacity_bytes: u64) -> Self {
        Self::on(TempDir::new().unwrap(), capacity_bytes).await
    }

    async fn on(folder: TempDir, capacity_bytes: u64) -> Self {
        let options = store::Options {
            path: folder.path().to_owned(),
            budget: Arc::new(move |_| store::Budget { capacity_bytes, min_free_bytes: 0, min_free_inodes: 0 }),
            lock_wait: Duration::ZERO,
            io_threads: 2,
            shrink_grace: Duration::ZERO,
            offline: false,
            faults: None,
        };
        let metrics = Arc::new(Metrics::new());
        let store = Store::open(options, Arc::clone(&metrics)).await.unwrap();
        let fills = Fills::new(store.clone(), Pool::new("hash", 1).unwrap(), metrics, LIMITS);
        Self { folder, store, fills }
    }

    /// As after a restart: what was in progress has rested.
    async fn restart(self) -> Self {
        let capacity_bytes = self.store.snapshot().capacity_bytes;
        self.fills.stop().await;
        self.store.close().await;
        Self::on(self.folder, capacity_bytes).await
    }

    /// The files of partials, with what they are called there.
    fn partial_files(&self, name: &str) -> Vec<std::path::PathBuf> {
        let list = |path: std::path::PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
        let folders = list(self.folder.path().join("v1/partial")).flat_map(list);
        folders.map(|folder| folder.join(name)).filter(|file| file.exists()).collect()
    }

    fn open(&self, digest: Digest, origin: &Arc<Scripted>) -> (Arc<Fill>, Option<OriginId>, bool) {
        match self.fills.open(key(digest), None, Arc::clone(origin) as Arc<dyn Origin>, &Demand::WHOLE) {
            Opened::Filling { fill, origin, joined, .. } => (fill, origin, joined),
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is in progress, reserved, half-written or open.
    async fn assert_at_rest(&self) {
        self.fills.idle().await;
        // A burst of hashing that was under way when its fill failed lets go of the file a moment later.
        let let_go = async {
            while self.store.snapshot().partials > 0 || self.store.snapshot().reserved_bytes > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), let_go).await.expect("all room is given back in the end");
        self.store.settled().await;
        let snapshot = self.store.snapshot();
        assert_eq!((snapshot.partials, snapshot.reserved_bytes), (0, 0), "{snapshot:?}");
        assert_eq!(self.store.audit().await.unwrap(), Vec::<String>::new());
        assert!(self.fills.is_empty());
    }
}

fn key(digest: Digest) -> FillKey {
    FillKey { registry: "docker.io".parse().unwrap(), digest }
}

/// Bytes that differ from place to place, their digest, and the chunks they come in.
fn content(len: usize, chunk: usize) -> (Bytes, Digest, Vec<Bytes>) {
    let bytes: Bytes = (0..len).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect::<Vec<_>>().into();
    let chunks = (0..len).step_by(chunk).map(|at| bytes.slice(at..len.min(at + chunk))).collect();
    let digest = Digest::sha256(&bytes);
    (bytes, digest, chunks)
}

async fn read(mut pieces: Pieces) -> (Vec<u8>, Option<Cut>) {
    let mut all = Vec::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => all.extend(piece.read().await.unwrap()),
            Err(cut) => return (all, Some(cut)),
        }
    }
    (all, None)
}

#[tokio::test]
async fn small_and_large_blobs_of_known_and_unknown_length_arrive_whole_and_are_kept() {
    let rig = Rig::new(64 * MIB as u64).await;
    for (len, known) in
        [(0, true), (1, true), (1000, false), (MIB, true), (MIB + 1, true), (3 * MIB, true), (3 * MIB, false)]
    {
        let (bytes, digest, chunks) = content(len + usize::from(known), 60_000);
        let total = known.then_some(bytes.len() as u64);
        let origin = Scripted::new("origin", Act::Send(chunks, total));
        let (fill, _, joined) = rig.open(digest, &origin);
        assert!(!joined);
        let (got, cut) = read(fill.reader(None, false).pieces()).await;
        assert!(cut.is_none() && got == bytes, "{len} {known}: {cut:?}");
        assert_eq!(fill.size().await.unwrap(), bytes.len() as u64);
        rig.fills.idle().await;
        assert_eq!(rig.store.size_of(&digest), Some(bytes.len() as u64));
        assert!(matches!(rig.fills.open(key(digest), None, origin, &Demand::WHOLE), Opened::Held));
    }
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn readers_are_given_what_has_arrived_but_the_tail_only_when_all_is_verified() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, chunks) = content(2 * MIB, 64 * 1024);
    let last = chunks.len() - 1;
    let origin = Scripted::new("origin", Act::Gated(chunks, Some(bytes.len() as u64), last));
    let (fill, ..) = rig.open(digest, &origin);
    let held_back = bytes.len() as u64 - TAIL_BYTES;

    let before_tail = ByteRange { first: 100, last: held_back - 1 };
    let (got, cut) = read(fill.reader(Some(&[before_tail]), false).pieces()).await;
    assert!(cut.is_none() && got == bytes[100..usize::try_from(held_back).unwrap()]);

    let tail = read(fill.reader(Some(&[ByteRange { first: held_back, last: held_back }]), false).pieces());
    let waits = read(fill.reader(Some(&[before_tail]), true).pieces());
    let (mut tail, mut waits) = (Box::pin(tail), Box::pin(waits));
    assert!((&mut tail).now_or_never().is_none(), "the tail waits for the digest");
    assert!((&mut waits).now_or_never().is_none(), "so does a whole range, where that is wanted");
    origin.gate.notify_one();
    assert_eq!(tail.await.0, bytes[usize::try_from(held_back).unwrap()..][..1]);
    assert_eq!(waits.await.0.len() as u64, before_tail.len());
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn what_is_wrong_is_never_complete_and_never_kept() {
    let (bytes, digest, mut chunks) = content(2 * MIB, 64 * 1024);
    let total = Some(bytes.len() as u64);
    let short = chunks[..chunks.len() - 1].to_vec();
    let long = [chunks.clone(), vec![Bytes::from_static(b"x")]].concat();
    let mut corrupt = bytes.to_vec();
    corrupt[5] ^= 1;
    chunks[0] = Bytes::from(corrupt[..64 * 1024].to_vec());
    for (what, act) in [
        ("broken", Act::Break(short.clone(), total)),
        ("short", Act::Send(short.clone(), total)),
        ("short, length unknown", Act::Send(short, None)),
        ("long", Act::Send(long.clone(), total)),
        ("long, length unknown", Act::Send(long, None)),
        ("corrupt", Act::Send(chunks, total)),
    ] {
        let rig = Rig::new(64 * MIB as u64).await;
        let (fill, ..) = rig.open(digest, &Scripted::new("liar", act));
        let (got, cut) = read(fill.reader(None, false).pieces()).await;
        assert!(cut.is_some(), "{what}");
        // One byte more than the blob has is sent at most.
        assert!(got.len() as u64 <= bytes.len() as u64 + 1 - TAIL_BYTES, "{what}: {}", got.len());
        rig.assert_at_rest().await;
        assert_eq!(rig.store.size_of(&digest), None, "{what}");
    }
}

#[tokio::test]
async fn a_mismatch_is_remembered_and_a_break_is_not() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, chunks) = content(1000, 1000);
    let (fill, ..) = rig.open(digest, &Scripted::new("flaky", Act::Break(vec![], Some(1000))));
    assert!(matches!(fill.head(0).await, Err(FillError::Origin(_))));
    rig.fills.idle().await;
    let lies = Scripted::new("liar", Act::Send(vec![Bytes::from(vec![0; 1000])], Some(1000)));
    let (fill, ..) = rig.open(digest, &lies);
    let error = fill.head(0).await.unwrap_err();
    assert!(matches!(&error, FillError::Mismatch { origin, .. } if origin == "liar"), "{error}");
    rig.fills.idle().await;
    let honest = Scripted::new("honest", Act::Send(chunks, Some(bytes.len() as u64)));
    let again = rig.fills.open(key(digest), None, Arc::clone(&honest) as Arc<dyn Origin>, &Demand::WHOLE);
    assert!(matches!(again, Opened::Mismatched(_)), "a resume gets an error before headers");
    // Another upstream has told no lie.
    let elsewhere = FillKey { registry: "quay.io".parse().unwrap(), digest };
    let Opened::Filling { fill, .. } = rig.fills.open(elsewhere, None, honest, &Demand::WHOLE) else { panic!() };
    assert_eq!(fill.size().await.unwrap(), 1000);
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn origins_are_tried_in_turn_and_each_one_knows_what_it_answered() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, chunks) = content(1000, 100);
    let refuses = Scripted::new("refuses", Act::Refuse(OriginErrorKind::NotFound));
    let gives = Scripted::new("gives", Act::Send(chunks, Some(1000)));
    // The task starts only when this one waits, so both are there in time.
    let (fill, first, _) = rig.open(digest, &refuses);
    let (same, second, joined) = rig.open(digest, &gives);
    assert!(joined && Arc::ptr_eq(&fill, &same));
    let (got, cut) = read(fill.reader(None, false).pieces()).await;
    assert!(cut.is_none() && got == bytes);
    assert_eq!(fill.failure_of(first.unwrap()).unwrap().kind, OriginErrorKind::NotFound);
    assert!(fill.failure_of(second.unwrap()).is_none());
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn a_task_that_dies_leaves_no_one_waiting_and_nothing_behind() {
    let rig = Rig::new(64 * MIB as u64).await;
    let digest = content(1000, 100).1;
    let (fill, ..) = rig.open(digest, &Scripted::new("dies", Act::Panic));
    assert!(matches!(fill.head(0).await, Err(FillError::Stopped { .. })));
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn a_fill_outlives_its_readers_and_stops_when_told() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, chunks) = content(2 * MIB, 64 * 1024);
    let origin = Scripted::new("origin", Act::Gated(chunks.clone(), Some(bytes.len() as u64), 3));
    let (fill, ..) = rig.open(digest, &origin);
    let mut pieces = fill.reader(None, false).pieces();
    assert!(pieces.next().await.unwrap().is_ok());
    drop((pieces, fill));
    origin.gate.notify_one();
    rig.fills.idle().await;
    assert!(rig.store.size_of(&digest).is_some(), "it went on without readers");

    let (_, other, _) = content(3 * MIB, 64 * 1024);
    let origin = Scripted::new("origin", Act::Gated(chunks, None, 30));
    let (fill, ..) = rig.open(other, &origin);
    let reader = read(fill.reader(None, false).pieces());
    let ((_, cut), ()) = tokio::join!(reader, rig.fills.stop());
    assert!(cut.is_some());
    drop(fill);
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn what_can_never_be_kept_is_not_storable_but_passes_through() {
    let rig = Rig::new(MIB as u64).await;
    let (bytes, digest, chunks) = content(2 * MIB, 50_000);
    let total = Some(bytes.len() as u64);
    let (fill, ..) = rig.open(digest, &Scripted::new("origin", Act::Send(chunks.clone(), total)));
    assert!(matches!(fill.head(0).await, Err(FillError::NotStorable { .. })));
    rig.assert_at_rest().await;

    let metrics = Arc::new(Metrics::new());
    let ranges: [Option<&[ByteRange]>; 4] = [
        None,
        Some(&[ByteRange { first: 70_001, last: 1_500_000 }]),
        Some(&[ByteRange { first: 2_000_000, last: 2_097_151 }]),
        Some(&[
            ByteRange { first: 3, last: 3 },
            ByteRange { first: 4, last: 9 },
            ByteRange { first: 49_990, last: 150_003 },
            ByteRange { first: 2_097_150, last: 2_097_151 },
        ]),
    ];
    for ranges in ranges {
        let origin = Scripted::new("origin", Act::Send(chunks.clone(), total));
        let body = pass_through(&*origin, digest, Arc::clone(&metrics)).await.unwrap();
        assert_eq!(body.size_bytes(), total);
        let (got, cut) = read(body.pieces(ranges, false)).await;
        let expected = ranges.map_or_else(|| bytes.to_vec(), |ranges| part(&bytes, ranges));
        assert!(cut.is_none() && got == expected, "{ranges:?}");
    }
    let mut corrupt = bytes.to_vec();
    corrupt[9] ^= 1;
    let liar = Scripted::new("liar", Act::Send(vec![corrupt.into()], total));
    let (got, cut) = read(pass_through(&*liar, digest, metrics).await.unwrap().pieces(None, false)).await;
    assert!(cut.is_some() && (got.len() as u64) < bytes.len() as u64);
}
