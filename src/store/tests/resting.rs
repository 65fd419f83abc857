//! Partials at rest: taken up again, also after a restart, and the first to go when room is needed.

use std::time::SystemTime;

use super::*;
use crate::oci::{RegistryName, Verified};

const SIZE: u64 = 4 * MIB;

fn registry() -> RegistryName {
    "docker.io".parse().unwrap()
}

/// A checkpoint of a blob of which the first `hashed` bytes are known, and so many more at `start`.
fn checkpoint(bytes: &Bytes, hashed: usize, start: u64, len: u64) -> Checkpoint {
    let prefix = Prefix { bytes: hashed as u64, digest: Digest::sha256(&bytes[..hashed]) };
    Checkpoint {
        size_bytes: bytes.len() as u64,
        prefixes: (hashed > 0).then_some(prefix).into_iter().collect(),
        pieces: vec![CheckedPiece { start, len, crc32c: 7 }],
        origins: vec!["docker.io/library/app".to_owned()],
    }
}

/// Leaves a download of `bytes` at rest, of which two pieces are there.
async fn leave(store: &Store, digest: Digest, bytes: &Bytes) -> Checkpoint {
    let partial = store.create_partial(&registry(), digest, Extent::Sparse(bytes.len() as u64)).await.unwrap();
    partial.write_at(0, vec![bytes.slice(..100_000)]).await.unwrap();
    partial.write_at(MIB, vec![bytes.slice((1 << 20)..(1 << 20) + 50_000)]).await.unwrap();
    let written = checkpoint(bytes, 100_000, MIB, 50_000);
    partial.checkpoint(&written).await.unwrap();
    partial.rest().await;
    written
}

#[tokio::test]
async fn a_download_left_off_is_taken_up_again_at_once_and_after_a_restart() {
    let rig = Rig::new(64 * MIB);
    let mut store = rig.open().await;
    let (digest, bytes) = content("layer", SIZE);
    let written = leave(&store, digest, &bytes).await;
    assert!(!store.has_resting(&"quay.io".parse().unwrap(), &digest));
    for restart in [false, true, true] {
        if restart {
            store.close().await;
            store = rig.open().await;
        }
        assert!(store.has_resting(&registry(), &digest));
        let snapshot = store.snapshot();
        assert_eq!((snapshot.resting, snapshot.partials, snapshot.reserved_bytes), (1, 0, 0), "{snapshot:?}");
        let (partial, found) = store.reopen_partial(&registry(), &digest).await.unwrap();
        assert_eq!(found, written);
        assert!(!store.has_resting(&registry(), &digest), "it has one owner");
        let file = partial.file();
        assert_eq!(file.read_at(MIB, 50_000).await.unwrap(), bytes.slice((1 << 20)..(1 << 20) + 50_000));
        partial.rest().await;
    }
    let (partial, _) = store.reopen_partial(&registry(), &digest).await.unwrap();
    partial.found(0, 100_000);
    partial.write_at(100_000, vec![bytes.slice(100_000..)]).await.unwrap();
    partial.commit(Verified::check(&digest, &bytes).unwrap()).await.unwrap();
    assert_eq!(store.open_blob(&digest).await.unwrap().unwrap().file.read_at(0, bytes.len()).await.unwrap(), bytes);
    assert!(rig.files("v1/partial").is_empty());
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn parts_of_a_blob_count_what_they_take_and_no_more() {
    let rig = Rig::new(64 * MIB);
    let store = rig.open().await;
    let digests: Vec<Digest> = (0..8).map(|n| content(&format!("layer {n}"), 100).0).collect();
    let mut partials = Vec::new();
    for digest in &digests {
        // Far larger, all of them together, than the store.
        let partial = store.create_partial(&registry(), *digest, Extent::Sparse(50 * MIB)).await.unwrap();
        partial.write_at(17 * MIB, vec![Bytes::from(vec![1; 256 << 10])]).await.unwrap();
        let piece = CheckedPiece { start: 17 * MIB, len: 256 << 10, crc32c: 1 };
        let state = Checkpoint { size_bytes: 50 * MIB, prefixes: vec![], pieces: vec![piece], origins: vec![] };
        partial.checkpoint(&state).await.unwrap();
        partials.push(partial);
    }
    let (counted, used) = (store.snapshot().reserved_bytes, rig.disk_usage());
    assert!((8 * (256 << 10)..4 * MIB).contains(&counted) && used <= counted + (1 << 16), "{counted} {used}");
    let whole = partials.pop().unwrap();
    whole.reserve_whole().await.unwrap();
    assert!(store.snapshot().reserved_bytes >= 50 * MIB);
    assert!(partials[0].reserve_whole().await.is_err(), "two don't fit");
    drop(whole);
    for partial in partials {
        partial.rest().await;
    }
    store.settled().await;
    let snapshot = store.snapshot();
    assert_eq!((snapshot.reserved_bytes, snapshot.resting), (0, 7));
    assert!(snapshot.present_bytes >= 7 * (256 << 10) && snapshot.present_bytes < 4 * MIB, "{snapshot:?}");
    let present = snapshot.present_bytes;
    store.close().await;
    let found = rig.open().await.snapshot();
    assert_eq!(found.resting, 7);
    assert!(found.present_bytes.abs_diff(present) <= 7 * 16384, "{} {present}", found.present_bytes);
}

#[tokio::test]
async fn interrupted_downloads_make_room_before_any_blob_does() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let held = put(&store, "held", 3 * MIB).await;
    let (first, first_bytes) = content("first", 2 * MIB);
    let (second, second_bytes) = content("second", 2 * MIB);
    leave(&store, first, &first_bytes).await;
    let (partial, _) = store.reopen_partial(&registry(), &first).await.unwrap();
    partial.write_at(1_200_000, vec![first_bytes.slice(1_200_000..)]).await.unwrap();
    partial.rest().await;
    leave(&store, second, &second_bytes).await;
    let (partial, _) = store.reopen_partial(&registry(), &second).await.unwrap();
    let reader = partial.file();
    partial.rest().await;
    let room = store.reserve(4 * MIB).await.unwrap();
    assert_eq!(store.snapshot().resting, 1, "the older one went");
    assert!(store.has_resting(&registry(), &second) && store.size_of(&held).is_some());
    drop(room);
    drop(store.reserve(7 * MIB).await.unwrap());
    assert_eq!((store.snapshot().resting, store.size_of(&held)), (0, None));
    assert!(store.snapshot().reserved_bytes >= 150_000, "what is read counts until it is closed");
    drop(reader);
    assert!(rig.files("v1/partial").is_empty());
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn what_can_not_be_taken_up_again_is_removed_at_boot() {
    let rig = Rig::new(64 * MIB);
    let store = rig.open().await;
    let (digest, bytes) = content("layer", SIZE);
    leave(&store, digest, &bytes).await;
    store.close().await;
    let data = rig.files("v1/partial").into_iter().find(|path| path.ends_with("data")).unwrap();
    let state = data.with_file_name("state.json");
    let text = std::fs::read(&state).unwrap();
    let (week, old) = (Duration::from_hours(8 * 24), std::fs::read(&data).unwrap());
    for wrong in ["torn state", "no state", "short data", "no data", "old", "strange"] {
        std::fs::create_dir_all(data.parent().unwrap()).unwrap();
        std::fs::write(&state, &text).unwrap();
        std::fs::write(&data, &old).unwrap();
        match wrong {
            "torn state" => std::fs::write(&state, &text[..text.len() / 2]).unwrap(),
            "no state" => std::fs::remove_file(&state).unwrap(),
            "short data" => std::fs::write(&data, &old[..old.len() - 1]).unwrap(),
            "no data" => std::fs::remove_file(&data).unwrap(),
            "old" => {
                std::fs::File::open(&state).unwrap().set_modified(SystemTime::now() - week).unwrap();
            }
            _ => std::fs::rename(data.parent().unwrap(), rig.path("v1/partial/docker.io/mine")).unwrap(),
        }
        let store = rig.open().await;
        assert_eq!(store.snapshot().resting, 0, "{wrong}");
        assert_eq!(store.snapshot().present_bytes, 0, "{wrong}");
        assert!(rig.files("v1/partial").is_empty(), "{wrong}");
        assert_at_rest(&store).await;
    }
}

#[tokio::test]
async fn a_note_is_enough_after_the_end_of_the_process_and_no_harm_when_it_is_torn() {
    let (digest, bytes) = content("layer", SIZE);
    let (durable, note) = (checkpoint(&bytes, 100_000, MIB, 50_000), checkpoint(&bytes, 200_000, MIB, 60_000));
    for (with_durable, torn) in [(false, false), (true, false), (true, true), (false, true)] {
        let rig = Rig::new(64 * MIB);
        let store = rig.open().await;
        let partial = store.create_partial(&registry(), digest, Extent::Sparse(SIZE)).await.unwrap();
        partial.write_at(0, vec![bytes.slice(..200_000)]).await.unwrap();
        if with_durable {
            partial.checkpoint(&durable).await.unwrap();
        }
        partial.note(&note).await.unwrap();
        // What a process leaves that ends here.
        let left: Vec<_> =
            rig.files("v1/partial").into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
        drop(partial);
        store.close().await;
        for (mut content, path) in left {
            if torn && path.ends_with("recent.json") {
                content.truncate(content.len() / 2);
            }
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
        }
        let store = rig.open().await;
        let found = store.reopen_partial(&registry(), &digest).await.map(|(_, checkpoint)| checkpoint);
        let expected = match (with_durable, torn) {
            (_, false) => Some(note.clone()),
            (true, true) => Some(durable.clone()),
            (false, true) => None,
        };
        assert_eq!(found, expected, "{with_durable} {torn}");
        store.settled().await;
        assert!(rig.files("v1/partial").is_empty(), "{with_durable} {torn}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_checkpoint_may_fail_anywhere_and_the_one_before_it_stays_or_nothing_does() {
    let (digest, bytes) = content("layer", SIZE);
    for passes in 0.. {
        let script = Script::failing(passes, Errno::IO, false);
        let rig = Rig::in_memory(64 * MIB);
        let store = rig.open().await;
        let first = leave(&store, digest, &bytes).await;
        store.close().await;
        let rig = rig.with_faults(&script);
        let Ok(store) = rig.try_open().await else { continue };
        let reopened = store.reopen_partial(&registry(), &digest).await;
        let mut second = first.clone();
        second.origins.push("another".to_owned());
        let mut written = Ok(());
        if let Some((partial, _)) = reopened {
            written = partial.checkpoint(&second).await;
            partial.rest().await;
        }
        let done = !script.relent();
        store.close().await;
        let store = rig.open().await;
        if let Some((_, found)) = store.reopen_partial(&registry(), &digest).await {
            assert!(found == second || (found == first && (written.is_err() || passes > 0)), "{passes}");
        }
        if done {
            return;
        }
    }
}

#[tokio::test]
async fn a_sync_that_failed_is_never_forgotten() {
    for rests in [false, true] {
        let script = Script::failing_only(Op::Sync, Errno::IO);
        let rig = Rig::new(64 * MIB).with_faults(&script);
        let store = rig.open().await;
        let (digest, bytes) = content("layer", SIZE);
        let partial = store.create_partial(&registry(), digest, Extent::Whole(SIZE)).await.unwrap();
        partial.write_at(0, vec![bytes.clone()]).await.unwrap();
        assert!(partial.checkpoint(&checkpoint(&bytes, 100_000, MIB, 50_000)).await.is_err());
        // The next sync succeeds, and proves nothing.
        script.relent();
        assert!(partial.is_lost());
        if rests {
            let state = checkpoint(&bytes, 100_000, MIB, 50_000);
            assert!(partial.checkpoint(&state).await.is_err() && partial.note(&state).await.is_err());
            partial.rest().await;
        } else {
            let error = partial.commit(Verified::check(&digest, &bytes).unwrap()).await.unwrap_err();
            assert!(matches!(error, StoreError::Io { op: Op::Sync, .. }), "{error}");
        }
        store.settled().await;
        assert_eq!((store.size_of(&digest), store.snapshot().resting), (None, 0));
        assert!(rig.files("v1/partial").is_empty() && rig.files("v1/blobs").is_empty());
        assert_at_rest(&store).await;
    }
}

#[tokio::test]
async fn what_the_disk_does_not_let_go_of_goes_on_counting() {
    let script = Script::failing_only(Op::Remove, Errno::IO);
    script.passes.store(usize::MAX, Ordering::SeqCst);
    let rig = Rig::new(2 * MIB).with_faults(&script);
    let store = rig.open().await;
    let digests: Vec<Digest> = (0..3).map(|n| content(&format!("layer {n}"), 100).0).collect();
    for digest in &digests {
        leave(&store, *digest, &content("layer", SIZE).1).await;
    }
    let counted = store.snapshot();
    script.passes.store(0, Ordering::SeqCst);
    // All that there is would be needed, and none of it can be had.
    assert!(store.reserve(2 * MIB - 8192).await.is_err());
    let stuck = store.snapshot();
    assert_eq!((stuck.resting, stuck.record_bytes), (0, counted.record_bytes), "{stuck:?}");
    // A partial that is given up is no different.
    let partial = store.create_partial(&registry(), digests[0], Extent::Whole(MIB)).await.unwrap();
    partial.write_at(0, vec![Bytes::from(vec![1; 1 << 20])]).await.unwrap();
    drop(partial);
    store.settled().await;
    assert!(store.snapshot().record_bytes >= counted.record_bytes + MIB, "{:?}", store.snapshot());
    script.relent();
    store.sweep().await;
    store.settled().await;
    assert!(rig.files("v1/partial").is_empty());
    drop(store.reserve(2 * MIB - 8192).await.unwrap());
    assert_at_rest(&store).await;
}
