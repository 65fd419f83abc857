//! Downloads that are interrupted and taken up again: nothing that was there is fetched twice, nothing wrong is believed.

use std::os::unix::fs::FileExt;

use super::segments::Server;
use super::*;

const LARGE: usize = 20 * MIB + 12_345;

fn start(rig: &Rig, digest: Digest, server: &Arc<Server>) -> Arc<Fill> {
    match rig.fills.open(key(digest), Some(LARGE as u64), Arc::clone(server) as Arc<dyn Origin>, &Demand::WHOLE) {
        Opened::Filling { fill, .. } => fill,
        other => panic!("{other:?}"),
    }
}

/// A rig whose download of `bytes` was interrupted by a stop when all but the segment that holds byte `at` was there.
async fn interrupted(bytes: &Bytes, digest: Digest, at: usize) -> (Rig, usize) {
    let rig = Rig::new(64 * MIB as u64).await;
    let server = Arc::new(Server { gated: Some(at), ..Server::of(bytes) });
    let fill = start(&rig, digest, &server);
    // Readers pull the segments beyond the window, also the very last one: they wait for the end, which is held back.
    let mut readers: Vec<_> = (0..LARGE / MIB)
        .map(|n| {
            let range = ByteRange { first: (n * MIB) as u64, last: (LARGE - 1) as u64 };
            fill.reader(Some(&[range]), false).pieces()
        })
        .collect();
    let gap = at / (256 * 1024) * 256 * 1024..(at / (256 * 1024) + 1) * 256 * 1024;
    let there = async {
        while fill.progress().present_bytes() < (LARGE - gap.len()) as u64 {
            for reader in &mut readers {
                let _ = reader.next().now_or_never();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(5), there).await.expect("all other segments arrive");
    drop(readers);
    let rig = rig.restart().await;
    assert_eq!((rig.store.snapshot().resting, rig.store.size_of(&digest)), (1, None));
    (rig, gap.len())
}

async fn finishes(rig: &Rig, digest: Digest, bytes: &Bytes) -> usize {
    let server = Arc::new(Server::of(bytes));
    let fill = start(rig, digest, &server);
    let (got, cut) = read(fill.reader(None, false).pieces()).await;
    assert!(cut.is_none() && got == *bytes, "{cut:?}");
    rig.assert_at_rest().await;
    assert_eq!(rig.store.size_of(&digest), Some(LARGE as u64));
    server.asked_bytes()
}

#[tokio::test]
async fn after_a_stop_only_what_was_missing_is_fetched() {
    let (bytes, digest, _) = content(LARGE, LARGE);
    for at in [300_000, 10 * MIB, LARGE - 1] {
        let (rig, missing) = interrupted(&bytes, digest, at).await;
        let asked = finishes(&rig, digest, &bytes).await;
        assert!(asked <= missing, "{at}: {asked} instead of {missing}");
    }
}

#[tokio::test]
async fn a_download_that_fails_is_taken_up_where_it_was() {
    let (bytes, digest, _) = content(LARGE, LARGE);
    let rig = Rig::new(64 * MIB as u64).await;
    let server = Arc::new(Server { gated: Some(10 * MIB), ..Server::of(&bytes) });
    let fill = start(&rig, digest, &server);
    fill.head(0).await.unwrap();
    while fill.progress().frontier() < 9 * MIB as u64 {
        fill.progress().change().await;
    }
    server.refuses.store(true, Ordering::SeqCst);
    server.gate.notify_waiters();
    server.breaks_gated.store(true, Ordering::SeqCst);
    server.gate.notify_one();
    fill.left().await;
    assert_eq!(rig.store.snapshot().resting, 1);
    let asked = finishes(&rig, digest, &bytes).await;
    assert!(asked <= LARGE - 9 * MIB, "{asked}");
}

#[tokio::test]
async fn what_is_not_as_it_was_noted_is_fetched_again() {
    let (bytes, digest, _) = content(LARGE, LARGE);
    // In the hashed part, beyond it, and all of it, as after a power cut before which nothing had reached the disk.
    for (wrong, len) in [(1000, 1), (15 * MIB, 1), (17 * MIB, MIB), (0, LARGE)] {
        let (rig, missing) = interrupted(&bytes, digest, 10 * MIB).await;
        let data = rig.partial_files("data").pop().unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(data).unwrap();
        file.write_all_at(&vec![0xFF; len], wrong as u64).unwrap();
        let asked = finishes(&rig, digest, &bytes).await;
        assert!(asked > missing && asked <= LARGE, "{wrong}: {asked}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_lies_all_through_costs_a_download_and_no_more() {
    let (bytes, digest, _) = content(LARGE, LARGE);
    let (other, _, _) = content(LARGE + 1, LARGE);
    let (rig, _) = interrupted(&bytes, digest, 10 * MIB).await;
    // Wrong content with right checksums: as if upstream had sent something else before.
    let data = rig.partial_files("data").pop().unwrap();
    let state = rig.partial_files("state.json").pop().unwrap();
    std::fs::write(&data, other.slice(1..)).unwrap();
    let crc32c = crc32c::crc32c(&other[1..][15 * MIB..15 * MIB + 4096]);
    let lie = format!(
        r#"{{"size_bytes":{LARGE},"prefixes":[{{"bytes":1000000,"digest":"{}"}}],"pieces":[{{"start":{},"len":4096,"crc32c":{crc32c}}}],"origins":[]}}"#,
        Digest::sha256(&other[1..][..1_000_000]),
        15 * MIB,
    );
    std::fs::write(&state, lie).unwrap();
    assert!(!state.with_file_name("recent.json").exists(), "what rests has no note");
    let server = Arc::new(Server::of(&bytes));
    let fill = start(&rig, digest, &server);
    let (got, cut) = read(fill.reader(None, false).pieces()).await;
    assert!(cut.is_some() && got.len() < LARGE, "never a complete response");
    fill.left().await;
    assert_eq!((rig.store.size_of(&digest), rig.store.snapshot().resting), (None, 0));
    // Upstream is not blamed before it had its chance in a single response.
    assert_eq!(finishes(&rig, digest, &bytes).await, LARGE);
}

#[tokio::test]
async fn a_stop_soon_after_a_start_loses_nothing() {
    let (bytes, digest, _) = content(LARGE, LARGE);
    let (mut rig, missing) = interrupted(&bytes, digest, 10 * MIB).await;
    for _ in 0..3 {
        let server = Arc::new(Server { gated: Some(10 * MIB), ..Server::of(&bytes) });
        let fill = start(&rig, digest, &server);
        tokio::task::yield_now().await;
        drop(fill);
        rig = rig.restart().await;
        assert_eq!(rig.store.snapshot().resting, 1);
    }
    let asked = finishes(&rig, digest, &bytes).await;
    assert!(asked <= missing, "{asked} instead of {missing}");
}

#[tokio::test]
async fn a_size_that_upstream_takes_back_is_not_remembered() {
    let (bytes, digest, _) = content(LARGE, LARGE);
    let rig = Rig::new(64 * MIB as u64).await;
    let server = Arc::new(Server { wrong_first_total: true, ..Server::of(&bytes) });
    let fill = start(&rig, digest, &server);
    let (got, cut) = read(fill.reader(None, false).pieces()).await;
    assert!(cut.is_some() && bytes.starts_with(&got));
    fill.left().await;
    assert_eq!(rig.store.snapshot().resting, 0);
    assert_eq!(finishes(&rig, digest, &bytes).await, LARGE);
}

#[tokio::test]
async fn a_note_that_fails_keeps_no_durable_checkpoint_from_being_taken() {
    let (bytes, digest, _) = content(LARGE, LARGE);
    let rig = Rig::new(64 * MIB as u64).await;
    let server = Arc::new(Server { gated: Some(10 * MIB), ..Server::of(&bytes) });
    let _fill = start(&rig, digest, &server);
    let until = async |name: &str, is_so: &dyn Fn(&std::path::Path) -> bool| {
        let polling = async {
            while !rig.partial_files(name).iter().any(|file| is_so(file)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_mins(5), polling).await.expect(name);
    };
    // A folder can't be removed as a file is, so no note can be written from now on.
    until("data", &|data| std::fs::create_dir(data.with_file_name("recent.tmp")).is_ok()).await;
    until("state.json", &|_| true).await;
}
