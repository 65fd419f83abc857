//! Blobs of which only parts are wanted: no more than that is fetched, it is kept, and becomes the whole in the end.

use super::segments::Server;
use super::*;
use crate::oci::range::RangeSpec;

const LARGE: usize = 20 * MIB + 12_345;
const BLOCK: usize = 256 * 1024;

fn parts(ranges: &[(usize, usize)]) -> Demand {
    let spec = |&(first, last): &(usize, usize)| RangeSpec::FromTo(first as u64, last as u64);
    let demand = Demand::of(&ranges.iter().map(spec).collect::<Vec<_>>(), None);
    assert!(matches!(demand, Demand::Parts(_)));
    demand
}

fn want(rig: &Rig, digest: Digest, server: &Arc<Server>, demand: &Demand) -> (Arc<Fill>, Want) {
    match rig.fills.open(key(digest), None, Arc::clone(server) as Arc<dyn Origin>, demand) {
        Opened::Filling { fill, want, .. } => (fill, want),
        other => panic!("{other:?}"),
    }
}

/// Reads parts as a client does, and compares them.
async fn get(rig: &Rig, digest: Digest, server: &Arc<Server>, bytes: &Bytes, ranges: &[(usize, usize)]) -> Arc<Fill> {
    let demand = parts(ranges);
    let (fill, want) = want(rig, digest, server, &demand);
    let head = fill.head(demand.first()).await.unwrap();
    assert_eq!(head.size_bytes, Some(bytes.len() as u64));
    let part = |&(first, last): &(usize, usize)| ByteRange { first: first as u64, last: last as u64 };
    let wanted: Vec<_> = ranges.iter().map(part).collect();
    let (got, cut) = read(want.into_reader(Some(&wanted), false).pieces()).await;
    let expected: Vec<u8> = ranges.iter().flat_map(|(first, last)| bytes[*first..=*last].to_vec()).collect();
    assert!(cut.is_none() && got == expected, "{ranges:?}: {cut:?}");
    fill
}

#[tokio::test]
async fn a_probe_costs_a_block_and_what_it_brought_is_kept() {
    let mut rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server::of(&bytes));
    get(&rig, digest, &server, &bytes, &[(0, 1)]).await;
    get(&rig, digest, &server, &bytes, &[(0, 1)]).await;
    get(&rig, digest, &server, &bytes, &[(100_000, 200_000)]).await;
    assert_eq!(*server.asked.lock(), [Some(0..BLOCK)]);
    assert!(rig.store.snapshot().reserved_bytes < 2 * BLOCK as u64, "{:?}", rig.store.snapshot());
    // Across the border of two blocks, one of which is there; then far away, in two places at once.
    get(&rig, digest, &server, &bytes, &[(BLOCK - 1, BLOCK)]).await;
    get(&rig, digest, &server, &bytes, &[(5 * MIB + 7, 5 * MIB + 8), (11 * MIB - 1, 11 * MIB)]).await;
    let asked = || server.asked.lock().iter().map(|range| range.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(asked()[1], BLOCK..2 * BLOCK);
    assert_eq!(asked()[2..].iter().map(Range::len).sum::<usize>(), 3 * BLOCK, "{:?}", asked());
    let before = asked();
    // It rests, and is taken up again, also after a restart.
    for restart in [false, true] {
        rig.fills.idle().await;
        assert_eq!((rig.store.snapshot().resting, rig.store.snapshot().partials), (1, 0));
        if restart {
            rig = rig.restart().await;
        }
        assert!(rig.fills.knows(&key(digest)));
        get(&rig, digest, &server, &bytes, &[(0, 99), (BLOCK, BLOCK + 1), (5 * MIB, 5 * MIB + 99)]).await;
        assert_eq!(asked(), before);
    }
    // A client that wants all gets all, and nothing is fetched twice.
    let (fill, want) = want(&rig, digest, &server, &Demand::WHOLE);
    fill.head(0).await.unwrap();
    let (got, cut) = read(want.into_reader(None, false).pieces()).await;
    assert!(cut.is_none() && got == bytes, "{cut:?}");
    assert_eq!(server.asked_bytes(), LARGE);
    rig.assert_at_rest().await;
    assert_eq!(rig.store.size_of(&digest), Some(LARGE as u64));
}

/// Between the moment that the first part is asked for and the moment that its bytes are taken, a client may come who wants
/// all.
#[tokio::test]
async fn the_part_that_a_fill_began_with_is_not_fetched_again_for_who_wants_all_meanwhile() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server::of(&bytes));
    let part = parts(&[(9 * MIB + 7, 11 * MIB)]);
    let (_fill, _part) = want(&rig, digest, &server, &part);
    while server.asked.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    // Its file is being made now.
    let (fill, whole) = want(&rig, digest, &server, &Demand::WHOLE);
    fill.head(0).await.unwrap();
    let (got, cut) = read(whole.into_reader(None, false).pieces()).await;
    assert!(cut.is_none() && got == bytes, "{cut:?}");
    assert_eq!(server.asked_bytes(), LARGE);
}

#[tokio::test]
async fn once_enough_was_wanted_the_rest_comes_by_itself() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server::of(&bytes));
    for at in 0..5 {
        let fill = get(&rig, digest, &server, &bytes, &[(at * 3 * MIB, at * 3 * MIB + MIB - 1)]).await;
        assert!(fill.progress().ahead() == Ahead::Nothing, "{at}");
    }
    get(&rig, digest, &server, &bytes, &[(15 * MIB, 15 * MIB + BLOCK)]).await;
    rig.fills.idle().await;
    assert_eq!(rig.store.size_of(&digest), Some(LARGE as u64));
    assert_eq!(server.asked_bytes(), LARGE);
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn the_tail_is_only_given_out_when_all_is_verified() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server { gated: Some(7 * MIB), ..Server::of(&bytes) });
    // The size is not known when it is asked for.
    let demand = parts(&[(LARGE - 60, LARGE - 10)]);
    let (fill, want) = want(&rig, digest, &server, &demand);
    fill.head(demand.first()).await.unwrap();
    let range = [ByteRange { first: (LARGE - 60) as u64, last: (LARGE - 10) as u64 }];
    let mut pieces = want.into_reader(Some(&range), false).pieces();
    assert!(pieces.next().now_or_never().is_none(), "a segment is still missing");
    server.gate.notify_one();
    let (got, cut) = read(pieces).await;
    assert!(cut.is_none() && got == bytes[LARGE - 60..=LARGE - 10], "{cut:?}");
    rig.fills.idle().await;
    assert_eq!(rig.store.size_of(&digest), Some(LARGE as u64));
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn upstreams_without_ranges_and_small_blobs_are_fetched_whole() {
    for (len, ignores_ranges) in [(LARGE, true), (MIB, false), (BLOCK, false), (5, false), (5, true), (MIB, true)] {
        let rig = Rig::new(64 * MIB as u64).await;
        let (bytes, digest, _) = content(len, len);
        let server = Arc::new(Server { ignores_ranges: ignores_ranges.then_some(0), ..Server::of(&bytes) });
        get(&rig, digest, &server, &bytes, &[(1, 2), (3, 4)]).await;
        rig.fills.idle().await;
        assert_eq!(rig.store.size_of(&digest), Some(len as u64), "{len} {ignores_ranges}");
        rig.assert_at_rest().await;
    }
}

#[tokio::test]
async fn an_upstream_that_loses_its_ranges_in_between_is_read_whole() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server { ignores_ranges: Some(1), ..Server::of(&bytes) });
    get(&rig, digest, &server, &bytes, &[(0, 1)]).await;
    get(&rig, digest, &server, &bytes, &[(9 * MIB, 9 * MIB + 1)]).await;
    rig.fills.idle().await;
    assert_eq!(rig.store.size_of(&digest), Some(LARGE as u64));
    rig.assert_at_rest().await;
}

#[tokio::test]
async fn what_lies_beyond_the_end_is_told_by_the_first_block() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server::of(&bytes));
    let demand = parts(&[(LARGE + BLOCK, LARGE + BLOCK)]);
    let (fill, wanted) = want(&rig, digest, &server, &demand);
    assert_eq!(fill.head(demand.first()).await.unwrap().size_bytes, Some(LARGE as u64));
    drop(wanted);
    rig.fills.idle().await;
    assert_eq!(server.asked_bytes(), BLOCK);
}

#[tokio::test]
async fn parts_that_break_off_are_resumed_and_a_dead_upstream_is_an_error() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server { cut: Some((2, 100_000)), ..Server::of(&bytes) });
    for at in [0, 3 * MIB, 9 * MIB] {
        get(&rig, digest, &server, &bytes, &[(at, at + 2 * BLOCK)]).await;
    }
    server.refuses.store(true, Ordering::SeqCst);
    let demand = parts(&[(12 * MIB, 12 * MIB + 1)]);
    let (fill, wanted) = want(&rig, digest, &server, &demand);
    assert!(matches!(fill.head(demand.first()).await, Err(FillError::Origin(_))));
    drop(wanted);
    fill.left().await;
    assert_eq!(rig.store.snapshot().resting, 1, "what was there stays");
    get(&rig, digest, &server, &bytes, &[(3 * MIB, 3 * MIB + 2 * BLOCK)]).await;
    rig.fills.idle().await;
}

#[tokio::test]
async fn a_hundred_readers_of_random_parts_get_right_bytes_and_nothing_is_fetched_twice() {
    let rig = Rig::new(64 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server::of(&bytes));
    let readers = (0..100_usize).map(|n| {
        let at = n * 7_919_191 % (LARGE - 3 * BLOCK);
        get_later(&rig, digest, &server, &bytes, at, at + n * 1000)
    });
    futures_util::future::join_all(readers).await;
    rig.fills.idle().await;
    assert!(server.asked_bytes() <= LARGE, "{} of {LARGE}", server.asked_bytes());
}

async fn get_later(rig: &Rig, digest: Digest, server: &Arc<Server>, bytes: &Bytes, first: usize, last: usize) {
    if rig.store.size_of(&digest).is_none() {
        get(rig, digest, server, bytes, &[(first, last)]).await;
    }
}

#[tokio::test]
async fn parts_find_no_room_without_pushing_anything_out() {
    let rig = Rig::new(2 * MIB as u64).await;
    let (held, held_digest, chunks) = content(MIB, MIB);
    let origin = Scripted::new("origin", Act::Send(chunks, Some(MIB as u64)));
    let (fill, ..) = rig.open(held_digest, &origin);
    assert_eq!(read(fill.reader(None, false).pieces()).await.0, held);
    rig.fills.idle().await;
    // None of them would fit.
    for n in 0..20 {
        let (bytes, digest, _) = content(3 * MIB + n, LARGE);
        let server = Arc::new(Server::of(&bytes));
        get(&rig, digest, &server, &bytes, &[(0, 1)]).await;
        rig.fills.idle().await;
    }
    assert_eq!(rig.store.size_of(&held_digest), Some(MIB as u64), "what is held stays");
    let snapshot = rig.store.snapshot();
    assert!((1..20).contains(&snapshot.resting), "{snapshot:?}");
}

#[tokio::test]
async fn without_room_for_the_whole_parts_go_on_being_served() {
    let rig = Rig::new(12 * MIB as u64).await;
    let (bytes, digest, _) = content(LARGE, LARGE);
    let server = Arc::new(Server::of(&bytes));
    for at in 2..9 {
        get(&rig, digest, &server, &bytes, &[(at * MIB, at * MIB + MIB - 1)]).await;
    }
    // So much was wanted that the rest would follow, if it could.
    let fill = get(&rig, digest, &server, &bytes, &[(0, 1)]).await;
    get(&rig, digest, &server, &bytes, &[(MIB, MIB + 1), (12 * MIB, 12 * MIB + 1)]).await;
    assert!(fill.progress().ahead() == Ahead::Nothing);
    // Who wants all of it can't have it from the store; what is there stays.
    let (fill, want) = want(&rig, digest, &server, &Demand::WHOLE);
    let (_, cut) = read(want.into_reader(None, false).pieces()).await;
    assert!(cut.is_some());
    fill.left().await;
    assert_eq!((rig.store.size_of(&digest), rig.store.snapshot().resting), (None, 1));
    get(&rig, digest, &server, &bytes, &[(2 * MIB, 2 * MIB + 1)]).await;
    rig.fills.idle().await;
}
