//! The power goes at every operation: what the next start finds is right, or isn't there.

use super::simulated_disk::{Loss, SimulatedDisk};
use super::*;

const LOSSES: [Loss; 5] = [Loss::Everything, Loss::Bytes, Loss::Some(1), Loss::Some(2), Loss::Some(3)];

/// What a pull does to the store, an eviction included: manifest, records, a layer of known and one of unknown length.
async fn pull(store: &Store, n: u64) -> Result<(), StoreError> {
    let repository = repository("library/app");
    let (manifest, bytes) = content(&format!("manifest {n}"), 700);
    let mut children = Vec::new();
    for (name, known) in [("known", true), ("unknown", false)] {
        let (digest, bytes) = content(&format!("{name} {n}"), 150_000);
        children.push(digest);
        let extent = if known { Extent::Sparse(150_000) } else { Extent::Growing };
        let registry = "docker.io".parse().unwrap();
        let mut partial = store.create_partial(&registry, digest, extent).await?;
        partial.write_at(0, vec![bytes.slice(..70_000)]).await?;
        if known {
            // It's interrupted, and taken up again.
            let prefixes = vec![Prefix { bytes: 70_000, digest: Digest::sha256(&bytes[..70_000]) }];
            let checkpoint = Checkpoint { size_bytes: 150_000, prefixes, pieces: vec![], origins: vec![] };
            partial.checkpoint(&checkpoint).await?;
            partial.write_at(70_000, vec![bytes.slice(70_000..100_000)]).await?;
            let mut note = checkpoint;
            note.prefixes.push(Prefix { bytes: 100_000, digest: Digest::sha256(&bytes[..100_000]) });
            partial.note(&note).await?;
            partial.rest().await;
            let Some((reopened, _)) = store.reopen_partial(&registry, &digest).await else { return Ok(()) };
            partial = reopened;
            partial.found(0, 70_000);
        }
        partial.write_at(70_000, vec![bytes.slice(70_000..)]).await?;
        partial.commit(Verified::check(&digest, &bytes).unwrap()).await?;
    }
    store.put_blob(Verified::check(&manifest, &bytes).unwrap(), bytes).await?;
    store.put_manifest(&repository, manifest, manifest_record(n, &children)).await?;
    store.put_tag(&repository, &tag("latest"), tag_record(manifest)).await?;
    Ok(())
}

/// Everything that is held is what its digest says, and everything that is recorded was once said.
async fn assert_right(store: &Store, at: &str) {
    let sizes = store.shared.ledger.read().sizes();
    for (digest, size_bytes) in sizes {
        let blob = store.open_blob(&digest).await.unwrap().unwrap();
        let bytes = blob.file.read_at(0, usize::try_from(size_bytes).unwrap()).await.unwrap();
        assert_eq!(Digest::sha256(&bytes), digest, "{at}");
    }
    // What a checkpoint speaks of was durable before it was. What a note adds to that need not be.
    for n in 0..3 {
        let (registry, digest) = ("docker.io".parse().unwrap(), content(&format!("known {n}"), 150_000).0);
        if let Some((partial, checkpoint)) = store.reopen_partial(&registry, &digest).await {
            let prefix = checkpoint.prefixes[0];
            let bytes = partial.file().read_at(0, usize::try_from(prefix.bytes).unwrap()).await.unwrap();
            assert_eq!(Digest::sha256(&bytes), prefix.digest, "{at}");
            partial.rest().await;
        }
    }
    if let Some(found) = store.tag(&repository("library/app"), &tag("latest")).await.unwrap() {
        let n = (0..3).find(|n| content(&format!("manifest {n}"), 700).0 == found.digest);
        assert_eq!(Some(found.digest), n.map(|n| content(&format!("manifest {n}"), 700).0), "{at}");
    }
}

#[tokio::test]
async fn whatever_the_moment_of_a_power_cut_nothing_wrong_is_found_afterwards() {
    let mut cuts = 0;
    for loss in LOSSES {
        for n in 0.. {
            let disk = Arc::new(SimulatedDisk::default());
            // Room for one image and a half, so that the second pull evicts.
            let mut rig = Rig::in_memory(500_000);
            rig.options.faults = Some(disk.clone());
            disk.mount(&rig.options.path);
            let store = rig.open().await;
            store.settled().await;
            pull(&store, 0).await.unwrap();
            store.settled().await;
            disk.cut_at(n);
            let pulled = pull(&store, 1).await;
            store.settled().await;
            let cut = disk.is_cut();
            assert!(cut || pulled.is_ok(), "{pulled:?}");
            disk.cut();
            store.close().await;

            let at = format!("{loss:?}, cut at operation {n}");
            disk.restore(&rig.options.path, loss);
            let store = rig.try_open().await.unwrap_or_else(|error| panic!("{at}: {error}"));
            store.settled().await;
            assert_right(&store, &at).await;
            assert_eq!(store.audit().await.unwrap(), Vec::<String>::new(), "{at}");
            let snapshot = store.snapshot();
            assert_eq!((snapshot.reserved_bytes, snapshot.partials), (0, 0), "{at}");
            pull(&store, 2).await.unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_right(&store, &at).await;
            store.close().await;
            if !cut {
                assert!(n > 40 && disk.operations() > n, "a pull takes more operations than {n}");
                break;
            }
            cuts += 1;
        }
    }
    assert!(cuts > 200, "{cuts}");
}

#[tokio::test]
async fn what_was_committed_before_a_power_cut_is_held_after_it() {
    for loss in LOSSES {
        let disk = Arc::new(SimulatedDisk::default());
        let mut rig = Rig::in_memory(MIB);
        rig.options.faults = Some(disk.clone());
        disk.mount(&rig.options.path);
        let store = rig.open().await;
        pull(&store, 0).await.unwrap();
        store.settled().await;
        disk.cut();
        store.close().await;
        disk.restore(&rig.options.path, loss);
        let store = rig.open().await;
        store.settled().await;
        assert_eq!(store.snapshot().blobs, 3, "{loss:?}");
        assert!(store.tag(&repository("library/app"), &tag("latest")).await.unwrap().is_some(), "{loss:?}");
        store.close().await;
    }
}

/// The disk itself: a test that can't fail would prove nothing of the store.
#[test]
fn the_simulated_disk_forgets_what_was_not_synced_and_nothing_else() {
    let folder = TempDir::new_in("/dev/shm").unwrap();
    let root = folder.path().join("data");
    let disk = SimulatedDisk::default();
    disk.mount(&root);
    let tell = |change: &Change<'_>| disk.changing(change);
    let path = |name: &str| root.join(name);
    let (a, b) = (path("a"), path("b"));
    let bytes = |text: &'static str| [Bytes::from_static(text.as_bytes())];
    tell(&Change::CreateFolder { path: &root });
    tell(&Change::SyncFolder { path: folder.path() });
    for file in [&a, &b] {
        tell(&Change::Create { path: file });
        tell(&Change::Write { path: file, offset: 0, chunks: &bytes("old") });
    }
    tell(&Change::Sync { path: &a });
    tell(&Change::SyncFolder { path: &root });
    tell(&Change::Write { path: &a, offset: 0, chunks: &bytes("new and longer") });
    tell(&Change::Rename { from: &b, to: &path("c") });
    disk.restore(&root, Loss::Everything);
    let read = |name: &str| std::fs::read_to_string(path(name)).ok();
    assert_eq!(read("a").as_deref(), Some("old"));
    assert_eq!(read("b").as_deref(), Some(""), "its name was synced, its bytes were not");
    assert_eq!(read("c"), None);

    tell(&Change::Write { path: &a, offset: 2, chunks: &bytes("xyz") });
    tell(&Change::Rename { from: &a, to: &path("c") });
    disk.restore(&root, Loss::Bytes);
    assert_eq!((read("a"), read("c").as_deref()), (None, Some("old\0\0")));
}
