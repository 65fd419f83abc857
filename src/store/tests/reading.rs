//! Blobs that are read, shared, healed and quarantined.

use super::*;

/// Changes a byte in the middle of a file.
fn spoil(path: &Path) {
    let mut wrong = std::fs::read(path).unwrap();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, &wrong).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_readers_share_one_descriptor() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let digest = put(&store, "layer", MIB).await;
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.open_blob(&digest).await.unwrap().unwrap() })
        })
        .collect();
    let mut blobs = Vec::new();
    for task in tasks {
        blobs.push(task.await.unwrap());
    }
    assert!(blobs.iter().all(|blob| Arc::ptr_eq(&blob.file, &blobs[0].file)));
    let path = rig.blob_path(&digest);
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|target| target == path)).count()
    };
    assert_eq!(open(), 1);
    assert_eq!(store.snapshot().open_files, 1);
    drop(blobs);
    assert_eq!(open(), 0);
}

#[tokio::test]
async fn a_file_that_vanished_or_shrank_is_healed() {
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    for (name, damage) in [("gone", 0), ("short", 1)] {
        let digest = put(&store, name, 5000).await;
        store.put_tag(&repository("a"), &tag(name), tag_record(digest)).await.unwrap();
        let path = rig.blob_path(&digest);
        std::fs::remove_file(&path).unwrap();
        if damage == 1 {
            std::fs::write(&path, "x").unwrap();
        }
        assert!(store.open_blob(&digest).await.unwrap().is_none(), "{name}");
        assert_eq!(store.size_of(&digest), None);
        assert_eq!(store.tag(&repository("a"), &tag(name)).await.unwrap(), None);
        assert!(!path.exists());
        // It can be fetched again.
        assert_eq!(put(&store, name, 5000).await, digest);
        assert!(store.open_blob(&digest).await.unwrap().is_some());
    }
    assert!(rig.metrics.render().contains("cachalot_verify_failures_total{where=\"store\"} 2"));
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn what_is_read_into_memory_is_verified_and_wrong_content_goes_to_quarantine() {
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    let digest = put(&store, "manifest", 1000).await;
    let (_, bytes) = content("manifest", 1000);
    assert_eq!(store.read_blob(&digest).await.unwrap(), Some(bytes));
    store.close().await;
    spoil(&rig.blob_path(&digest));

    let store = rig.open().await;
    let held_bytes = store.snapshot().present_bytes;
    assert_eq!(store.read_blob(&digest).await.unwrap(), None);
    assert_eq!(store.size_of(&digest), None);
    assert_eq!(rig.files("v1/quarantine").len(), 1);
    assert_eq!(store.snapshot().present_bytes, held_bytes, "what lies in quarantine counts");
    assert!(rig.metrics.render().contains("cachalot_verify_failures_total{where=\"store\"} 1"));
    assert_at_rest(&store).await;
    store.close().await;
    assert_eq!(rig.open().await.snapshot().present_bytes, held_bytes);
}

#[tokio::test]
async fn content_that_goes_wrong_twice_is_kept_and_counted_once() {
    let rig = Rig::new(MIB);
    let mut counted = Vec::new();
    for _ in 0..2 {
        let store = rig.open().await;
        let digest = put(&store, "manifest", 1000).await;
        store.close().await;
        spoil(&rig.blob_path(&digest));
        let store = rig.open().await;
        assert_eq!(store.read_blob(&digest).await.unwrap(), None);
        store.settled().await;
        counted.push(store.snapshot().present_bytes);
        store.close().await;
    }
    counted.push(rig.open().await.snapshot().present_bytes);
    assert_eq!(counted, [counted[0]; 3], "as found by the next start");
}

#[tokio::test]
async fn a_blob_too_large_for_memory_is_not_read_into_it() {
    let rig = Rig::new(64 * MIB);
    let store = rig.open().await;
    let digest = put(&store, "layer", READ_BYTES_MAX + 1).await;
    assert!(matches!(store.read_blob(&digest).await, Err(StoreError::TooLarge { .. })));
    let piece = Piece::File { file: store.open_blob(&digest).await.unwrap().unwrap().file, offset: 5, len: 5 };
    assert_eq!((piece.len(), piece.read().await.unwrap()), (5, Bytes::from_static(b"layer")));
}

#[tokio::test]
async fn readers_follow_a_growing_file_and_go_on_after_the_commit() {
    let rig = Rig::new(64 * MIB);
    let store = rig.open().await;
    let (digest, bytes) = content("layer", 3 * MIB);
    let registry = "docker.io".parse().unwrap();
    // Of unknown size: nothing is reserved yet, and room is taken as it grows.
    let partial = store.create_partial(&registry, digest, Extent::Growing).await.unwrap();
    let file = partial.file();
    let half = bytes.len() / 2;
    partial.write_at(0, vec![bytes.slice(..half)]).await.unwrap();
    assert!(store.snapshot().reserved_bytes >= 16 * MIB);
    assert_eq!(file.read_at(0, half).await.unwrap(), bytes.slice(..half));
    assert!(file.read_at(0, half + 1).await.is_err(), "what isn't written isn't there");
    partial.write_at(half as u64, vec![bytes.slice(half..)]).await.unwrap();
    partial.commit(Verified::check(&digest, &bytes).unwrap()).await.unwrap();
    assert_eq!(file.read_at(0, bytes.len()).await.unwrap(), bytes);
    assert_eq!(store.snapshot().reserved_bytes, 0);
    let blob = store.open_blob(&digest).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&blob.file, &file), "whoever reads the partial reads the blob");
    drop((blob, file));
    assert!(rig.files("v1/partial").is_empty());
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn a_dropped_partial_counts_until_its_last_reader_is_gone_and_leaves_its_successor_alone() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let (digest, bytes) = content("layer", MIB);
    let registry = "docker.io".parse().unwrap();
    let mut first = None;
    for _ in 0..20 {
        let partial = store.create_partial(&registry, digest, Extent::Whole(MIB)).await.unwrap();
        partial.write_at(0, vec![bytes.clone()]).await.unwrap();
        first.get_or_insert_with(|| partial.file());
        drop(partial);
    }
    let partial = store.create_partial(&registry, digest, Extent::Whole(MIB)).await.unwrap();
    partial.write_at(0, vec![bytes.clone()]).await.unwrap();
    store.settled().await;
    assert_eq!(rig.files("v1/partial").len(), 1);
    partial.commit(Verified::check(&digest, &bytes).unwrap()).await.unwrap();
    assert_eq!(first.as_ref().unwrap().read_at(0, bytes.len()).await.unwrap(), bytes);
    assert!(store.snapshot().reserved_bytes >= MIB, "an unlinked file that is open takes room");
    drop(first);
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn nothing_is_committed_with_a_proof_for_something_else() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let (digest, bytes) = content("layer", 1000);
    let (other, other_bytes) = content("other", 1000);
    let registry = "docker.io".parse().unwrap();
    // The right proof with too few bytes written, and the proof of another blob of the same size.
    for (written, proof) in [(999, (digest, &bytes)), (1000, (other, &other_bytes))] {
        let partial = store.create_partial(&registry, digest, Extent::Whole(1000)).await.unwrap();
        partial.write_at(0, vec![bytes.slice(..written)]).await.unwrap();
        let verified = Verified::check(&proof.0, proof.1).unwrap();
        assert!(matches!(partial.commit(verified).await, Err(StoreError::WrongProof { .. })));
    }
    let verified = Verified::check(&digest, &bytes).unwrap();
    assert!(matches!(store.put_blob(verified, bytes.slice(1..)).await, Err(StoreError::WrongProof { .. })));
    let partial = store.create_partial(&registry, digest, Extent::Whole(1000)).await.unwrap();
    let error = partial.write_at(1, vec![bytes.clone()]).await.unwrap_err();
    assert!(error.to_string().contains("more bytes than the blob has"), "{error}");
    drop(partial);
    assert_eq!((store.size_of(&digest), store.size_of(&other)), (None, None));
    assert!(rig.files("v1/blobs").is_empty());
    assert_at_rest(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_blob_from_many_upstreams_at_once_is_stored_once() {
    let rig = Rig::new(64 * MIB);
    let store = rig.open().await;
    let (digest, bytes) = content("layer", MIB);
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let (store, bytes) = (store.clone(), bytes.clone());
            tokio::spawn(async move {
                let verified = Verified::check(&digest, &bytes).unwrap();
                if n % 4 == 0 {
                    return store.put_blob(verified, bytes).await.unwrap();
                }
                let registry = format!("r{n}.example").parse().unwrap();
                let partial = store.create_partial(&registry, digest, Extent::Whole(MIB)).await.unwrap();
                partial.write_at(0, vec![bytes]).await.unwrap();
                partial.commit(verified).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.snapshot().blobs, 1);
    assert_eq!(rig.files("v1/blobs").len(), 1);
    assert_eq!(store.read_blob(&digest).await.unwrap(), Some(bytes));
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn what_can_not_be_read_again_and_again_is_given_up_and_fetched_again() {
    let script = Script::failing_only(Op::Read, Errno::IO);
    let rig = Rig::new(MIB).with_faults(&script);
    let digest = {
        let store = rig.open().await;
        let digest = put(&store, "bad sector", 5000).await;
        store.close().await;
        digest
    };
    let store = rig.open().await;
    assert!(store.read_blob(&digest).await.is_err(), "it may have been a moment's trouble");
    assert_eq!(store.read_blob(&digest).await.unwrap(), None, "it was not");
    assert_eq!(store.size_of(&digest), None);
    put(&store, "bad sector", 5000).await;
    assert_eq!(store.read_blob(&digest).await.unwrap().unwrap().len(), 5000);
    store.settled().await;
    assert_at_rest(&store).await;
}
