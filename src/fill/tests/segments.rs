//! Large blobs in segments: several connections, resumed bodies, and upstreams that know no ranges or lie about them.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::*;

/// A registry that has one blob and answers ranges of it, unless it's told otherwise.
pub(super) struct Server {
    pub(super) host: &'static str,
    pub(super) bytes: Bytes,
    /// Every so manieth body breaks off after so many bytes.
    pub(super) cut: Option<(usize, usize)>,
    /// From this request on, ranges are answered with the whole blob.
    pub(super) ignores_ranges: Option<usize>,
    /// This byte is wrong in every answer to a range.
    pub(super) corrupt_at: Option<usize>,
    /// Answers to ranges, after the first, say that the blob is larger.
    pub(super) wrong_total: bool,
    /// The very first answer says so.
    pub(super) wrong_first_total: bool,
    /// Bodies that hold this byte wait for the gate before they send anything.
    pub(super) gated: Option<usize>,
    pub(super) gate: Notify,
    /// Bodies that waited for the gate break off before they send anything.
    pub(super) breaks_gated: AtomicBool,
    pub(super) refuses: AtomicBool,
    pub(super) asked: Mutex<Vec<Option<Range<usize>>>>,
    /// How many bytes of bodies there were.
    pub(super) sent: AtomicUsize,
}

// === impl Server ===

impl Server {
    pub(super) fn of(bytes: &Bytes) -> Self {
        Self {
            host: "registry.example",
            bytes: bytes.clone(),
            cut: None,
            ignores_ranges: None,
            corrupt_at: None,
            wrong_total: false,
            wrong_first_total: false,
            gated: None,
            gate: Notify::new(),
            breaks_gated: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            asked: Mutex::default(),
            sent: AtomicUsize::new(0),
        }
    }

    fn answer(&self, range: Option<ByteRange>) -> Result<OriginBody, OriginError> {
        let to_usize = |at| usize::try_from(at).unwrap();
        let range = range.map(|range| to_usize(range.first)..to_usize(range.last + 1).min(self.bytes.len()));
        let number = self.asked.lock().len();
        self.asked.lock().push(range.clone());
        if self.refuses.load(Ordering::SeqCst) {
            return Err(failure(OriginErrorKind::NotFound));
        }
        if range.as_ref().is_some_and(|range| range.start >= self.bytes.len()) {
            return Err(failure(OriginErrorKind::Unusable));
        }
        let ranged = range.is_some() && self.ignores_ranges.is_none_or(|from| number < from);
        let part = if ranged { range.unwrap_or_default() } else { 0..self.bytes.len() };
        let mut body = self.bytes[part.clone()].to_vec();
        if let Some(at) = self.corrupt_at.filter(|at| ranged && part.contains(at)) {
            body[at - part.start] ^= 1;
        }
        let cut_after =
            self.cut.filter(|(every, _)| number.is_multiple_of(*every)).map_or(usize::MAX, |(_, after)| after);
        let cut = cut_after < body.len();
        body.truncate(cut_after);
        self.sent.fetch_add(body.len(), Ordering::SeqCst);
        let chunks: Vec<_> = body.chunks(30_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let broken = cut.then(|| Err(failure(OriginErrorKind::Broken)));
        Ok(OriginBody {
            host: self.host(),
            offset: part.start as u64,
            end: Some(part.end as u64),
            total_bytes: Some(
                self.bytes.len() as u64
                    + u64::from(ranged && if number > 0 { self.wrong_total } else { self.wrong_first_total }),
            ),
            body: stream::iter(chunks.into_iter().chain(broken)).boxed(),
        })
    }

    /// How many bytes of the blob were asked for.
    pub(super) fn asked_bytes(&self) -> usize {
        self.asked.lock().iter().map(|range| range.as_ref().map_or(self.bytes.len(), ExactSizeIterator::len)).sum()
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Origin for Server {
    fn host(&self) -> String {
        self.host.to_owned()
    }

    fn label(&self) -> String {
        "server".to_owned()
    }

    fn fetch(&self, range: Option<ByteRange>, _: Priority) -> BoxFuture<'_, Result<OriginBody, OriginError>> {
        async move {
            let answer = self.answer(range)?;
            let held_back =
                self.gated.is_some_and(|at| (answer.offset..answer.end.unwrap_or(0)).contains(&(at as u64)));
            if held_back {
                self.gate.notified().await;
                if self.breaks_gated.load(Ordering::SeqCst) {
                    return Err(failure(OriginErrorKind::NotFound));
                }
            }
            Ok(answer)
        }
        .boxed()
    }
}

fn start(rig: &Rig, digest: Digest, size: usize, server: &Arc<Server>) -> Arc<Fill> {
    match rig.fills.open(key(digest), Some(size as u64), Arc::clone(server) as Arc<dyn Origin>, &Demand::WHOLE) {
        Opened::Filling { fill, .. } => fill,
        other => panic!("{other:?}"),
    }
}

async fn read_all(fill: &Arc<Fill>) -> (Vec<u8>, Option<Cut>) {
    read(fill.reader(None, false).pieces()).await
}

/// Not a multiple of anything.
const LARGE: usize = 5 * MIB + 12_345;

#[tokio::test]
async fn a_large_blob_comes_in_segments_each_asked_for_once() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server::of(&bytes));
    let fill = start(&rig, digest, LARGE, &server);
    let (got, cut) = read_all(&fill).await;
    assert!(cut.is_none() && got == bytes, "{cut:?}");
    let segment = usize::try_from(LIMITS.segment_bytes).unwrap();
    assert_eq!(server.asked.lock()[0], Some(0..segment), "the first request proves ranges");
    assert_eq!((server.asked_bytes(), server.asked.lock().len()), (LARGE, LARGE.div_ceil(segment)));
    drop(fill);
    rig.assert_at_rest().await;
    assert!(rig.store.size_of(&digest).is_some());
}

#[tokio::test]
async fn a_blob_that_is_not_known_to_be_large_is_asked_for_whole() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server::of(&bytes));
    let fill = start(&rig, digest, 2 * MIB, &server);
    assert!(read_all(&fill).await.0 == bytes);
    assert_eq!(*server.asked.lock(), [None]);
    drop(fill);
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn an_upstream_that_breaks_off_again_and_again_gives_the_blob_all_the_same_and_nothing_twice() {
    for expected in [LARGE, 0] {
        let rig = Rig::new(64 * MIB as u64).await;
        let (bytes, digest, _) = content(LARGE, LARGE);
        // Enough comes between two failures for each to be forgiven.
        let cut = if expected == 0 { (1, 3 * MIB / 2) } else { (6, 200_000) };
        let server = Arc::new(Server { cut: Some(cut), ..Server::of(&bytes) });
        let fill = start(&rig, digest, expected, &server);
        let (got, cut) = read_all(&fill).await;
        assert!(cut.is_none() && got == bytes, "{cut:?} after {}", got.len());
        let brought: usize = server.sent.load(Ordering::SeqCst);
        assert_eq!(brought, LARGE, "nothing is fetched twice");
        drop(fill);
        rig.assert_at_rest().await;
        assert!(rig.store.size_of(&digest).is_some());
    }
}

#[tokio::test]
async fn an_upstream_that_knows_no_ranges_is_read_as_one_stream_and_not_asked_for_ranges_again() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server { ignores_ranges: Some(0), ..Server::of(&bytes) });
    let fill = start(&rig, digest, LARGE, &server);
    assert!(read_all(&fill).await.0 == bytes);
    assert_eq!(server.asked.lock().len(), 1, "what it sent was the blob");
    drop(fill);
    rig.assert_at_rest().await;

    let (other, digest, _) = content(LARGE + 1, LARGE);
    let server = Arc::new(Server { ignores_ranges: Some(0), cut: Some((1, 4 * MIB)), ..Server::of(&other) });
    let fill = start(&rig, digest, LARGE, &server);
    let (got, cut) = read_all(&fill).await;
    // It breaks off at the same byte each time, so it never ends; what came before is right.
    assert!(cut.is_some() && other.starts_with(&got));
    drop(fill);
    rig.assert_at_rest().await;
    assert_eq!(rig.store.size_of(&digest), None);
}

#[tokio::test]
async fn another_host_of_the_registry_is_asked_for_ranges_all_the_same() {
    for corrupt_at in [None, Some(MIB + 7)] {
        let rig = Rig::new(64 * MIB as u64).await;
        let (bytes, digest, _) = content(LARGE, LARGE);
        let ignores_ranges = corrupt_at.is_none().then_some(1);
        let bad = Arc::new(Server { ignores_ranges, corrupt_at, ..Server::of(&bytes) });
        read_all(&start(&rig, digest, LARGE, &bad)).await;
        rig.assert_at_rest().await;
        for (host, len, in_one) in [("registry.example", LARGE + 1, true), ("other.example", LARGE + 2, false)] {
            let (bytes, digest, _) = content(len, len);
            let server = Arc::new(Server { host, ..Server::of(&bytes) });
            assert!(read_all(&start(&rig, digest, len, &server)).await.0 == bytes);
            rig.assert_at_rest().await;
            assert_eq!(server.asked.lock().iter().all(Option::is_none), in_one, "{host} {corrupt_at:?}");
        }
    }
}

#[tokio::test]
async fn a_whole_blob_in_answer_to_a_range_is_skipped_through() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, chunks) = content(2 * MIB, 100_000);
    let total = Some(bytes.len() as u64);
    let origin = Scripted::new("origin", Act::Break(chunks[..7].to_vec(), total));
    origin.acts.lock().push_back(Act::Send(chunks, total));
    let (fill, ..) = rig.open(digest, &origin);
    let (got, cut) = read(fill.reader(None, false).pieces()).await;
    assert!(cut.is_none() && got == bytes, "{cut:?}");
    assert_eq!(origin.asked.load(Ordering::SeqCst), 2);
    drop(fill);
    rig.assert_at_rest().await;
    assert!(rig.store.size_of(&digest).is_some());
}

#[tokio::test]
async fn a_segment_with_a_wrong_byte_is_never_committed() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server { corrupt_at: Some(MIB + 7), ..Server::of(&bytes) });
    let fill = start(&rig, digest, LARGE, &server);
    let (got, cut) = read_all(&fill).await;
    assert!(cut.is_some() && got.len() < LARGE);
    drop(fill);
    rig.assert_at_rest().await;
    assert_eq!(rig.store.size_of(&digest), None);
    // Pieces may have been of different content: one download in a single response comes before the blame.
    let fill = start(&rig, digest, LARGE, &server);
    assert_eq!(read_all(&fill).await.0, bytes);
    assert_eq!(server.asked.lock().last(), Some(&None));
    drop(fill);
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn an_upstream_whose_ranges_turn_bad_is_read_as_one_stream_from_then_on() {
    for bad in [1, 2, 5] {
        let (bytes, digest, _) = content(LARGE, LARGE);
        let wrong_total = Server { wrong_total: true, ..Server::of(&bytes) };
        let ignores = Server { ignores_ranges: Some(bad), ..Server::of(&bytes) };
        for server in [Arc::new(wrong_total), Arc::new(ignores)] {
            let rig = Rig::new(64 * MIB as u64).await;
            let fill = start(&rig, digest, LARGE, &server);
            let (got, cut) = read_all(&fill).await;
            assert!(cut.is_none() && got == bytes, "{cut:?}");
            drop(fill);
            rig.assert_at_rest().await;
            assert!(rig.store.size_of(&digest).is_some());
        }
    }
}

#[tokio::test]
async fn what_a_reader_waits_for_comes_before_what_lies_ahead() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    // Nothing behind the first segments arrives before the far range is there.
    let server = Arc::new(Server { gated: Some(300_000), ..Server::of(&bytes) });
    let fill = start(&rig, digest, LARGE, &server);
    let far = ByteRange { first: 4 * MIB as u64, last: 4 * MIB as u64 + 99 };
    let (got, cut) = read(fill.reader(Some(&[far]), false).pieces()).await;
    assert!(cut.is_none() && got == bytes[4 * MIB..4 * MIB + 100], "{cut:?} {}", got.len());
    server.gate.notify_one();
    assert!(read_all(&fill).await.0 == bytes);
    assert_eq!(server.asked_bytes(), LARGE);
    drop(fill);
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn another_origin_takes_over_where_the_first_one_lost_the_blob() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, chunks) = content(2 * MIB, 100_000);
    let total = Some(bytes.len() as u64);
    let first = Scripted::new("first", Act::Break(chunks[..7].to_vec(), total));
    first.acts.lock().push_back(Act::Refuse(OriginErrorKind::NotFound));
    let (fill, ..) = rig.open(digest, &first);
    let second = Arc::new(Server::of(&bytes));
    assert!(Arc::ptr_eq(&start(&rig, digest, 0, &second), &fill));
    let (got, cut) = read_all(&fill).await;
    assert!(cut.is_none() && got == bytes, "{cut:?}");
    assert_eq!(second.asked.lock().len(), 6, "only what was missing");
    drop(fill);
    rig.assert_at_rest().await;
}
