//! What goes to make room, what stays, and what the disk then holds.

use super::*;

/// Three blobs of 300 kB fit, and a little beside them.
const THREE: u64 = 1_000_000;
const THIRD: u64 = 300_000;

#[tokio::test]
async fn what_was_read_longest_ago_goes_first_also_after_a_restart() {
    let rig = Rig::new(THREE);
    let store = rig.open().await;
    let (a, b, c) = (put(&store, "a", THIRD).await, put(&store, "b", THIRD).await, put(&store, "c", THIRD).await);
    store.open_blob(&a).await.unwrap().unwrap();
    store.close().await;

    let store = rig.open().await;
    let d = put(&store, "d", THIRD).await;
    let held = |store: &Store| [a, b, c, d].map(|digest| store.size_of(&digest).is_some());
    assert_eq!(held(&store), [true, false, true, true]);
    put(&store, "e", THIRD).await;
    assert_eq!(held(&store), [true, false, false, true]);
    assert!(!rig.blob_path(&b).exists());
    assert_eq!(store.read_blob(&b).await.unwrap(), None);
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn a_blob_that_is_being_read_is_never_evicted() {
    let rig = Rig::new(THREE);
    let store = rig.open().await;
    let a = put(&store, "a", THIRD).await;
    let reading = store.open_blob(&a).await.unwrap().unwrap();
    for name in ["b", "c", "d", "e"] {
        put(&store, name, THIRD).await;
    }
    assert_eq!(store.size_of(&a), Some(THIRD));
    let refusal = store.reserve(900_000).await.unwrap_err();
    assert!(matches!(refusal, NoRoom::NotNow { .. }), "{refusal}");
    assert_eq!(store.snapshot().blobs, 3, "nothing is evicted in vain");
    assert_eq!(reading.file.read_at(0, 3).await.unwrap(), "aaa");
    drop(reading);
    drop(store.reserve(900_000).await.unwrap());
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn what_can_never_fit_is_told_from_what_does_not_fit_now() {
    let rig = Rig::new(THREE);
    let store = rig.open().await;
    assert!(matches!(store.reserve(THREE).await, Err(NoRoom::Never { capacity_bytes: THREE, .. })));
    let _all = store.reserve(900_000).await.unwrap();
    assert!(matches!(store.reserve(THIRD).await, Err(NoRoom::NotNow { .. })));
    let (digest, bytes) = content("a", THIRD);
    let refusal = store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await.unwrap_err();
    assert!(refusal.is_no_space());
}

#[tokio::test]
async fn the_free_space_floor_holds_whatever_the_capacity() {
    let mut rig = Rig::new(THREE);
    rig.budget.min_free_bytes = 1 << 60;
    let store = rig.open().await;
    let refusal = store.reserve(1).await.unwrap_err();
    assert!(matches!(refusal, NoRoom::Disk { what: "bytes", .. }), "{refusal}");
    let trouble = store.trouble().unwrap();
    assert!(trouble.contains("must stay free (storage.min_free)"), "{trouble}");
    store.probe().await;
    assert!(store.trouble().is_some(), "it is so still");
    assert_at_rest(&store).await;
    store.close().await;
    (rig.budget.min_free_bytes, rig.budget.min_free_inodes) = (0, 1 << 60);
    let store = rig.open().await;
    let refusal = store.reserve(1).await.unwrap_err();
    assert!(matches!(refusal, NoRoom::Disk { what: "inodes", .. }), "{refusal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_reservers_neither_block_each_other_nor_go_over_budget() {
    let rig = Rig::new(4 * THREE);
    let store = rig.open().await;
    for n in 0..13 {
        put(&store, &format!("{n:02}"), THIRD).await;
    }
    let tasks: Vec<_> = (0..60)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let (digest, bytes) = content(&format!("new {n:02}"), THIRD);
                let put = store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await;
                let snapshot = store.snapshot();
                assert!(snapshot.present_bytes + snapshot.reserved_bytes <= snapshot.capacity_bytes);
                put
            })
        })
        .collect();
    let mut stored = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => stored += 1,
            Err(refusal) => assert!(refusal.is_no_space(), "{refusal}"),
        }
    }
    assert!(stored > 12, "{stored}");
    assert!(store.snapshot().blobs >= 12, "more was evicted than was needed: {:?}", store.snapshot());
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn a_reserver_that_goes_away_during_eviction_leaves_nothing_half_done() {
    let rig = Rig::new(THREE);
    let store = rig.open().await;
    for name in ["a", "b", "c"] {
        put(&store, name, THIRD).await;
    }
    // Polled once: eviction has begun in a task of its own.
    let mut reserving = Box::pin(store.reserve(900_000));
    while futures_util::poll!(&mut reserving).is_pending() && store.snapshot().blobs == 3 {
        tokio::task::yield_now().await;
    }
    drop(reserving);
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn records_and_tags_go_with_their_manifest() {
    let rig = Rig::new(THREE);
    let store = rig.open().await;
    let manifest = put(&store, "manifest", THIRD).await;
    let (one, two) = (repository("library/one"), repository("two"));
    for repository in [&one, &two] {
        assert!(store.put_manifest(repository, manifest, manifest_record(1, &[])).await.unwrap());
        assert!(store.put_tag(repository, &tag("latest"), tag_record(manifest)).await.unwrap());
        assert!(store.put_tag(repository, &tag("v1"), tag_record(manifest)).await.unwrap());
    }
    assert_eq!(rig.files("v1/repositories").len(), 6);
    let other = put(&store, "other", 10).await;
    assert!(store.put_tag(&two, &tag("v1"), tag_record(other)).await.unwrap());
    store.open_blob(&other).await.unwrap().unwrap();

    drop(store.reserve(900_000).await.unwrap());
    assert_eq!((store.size_of(&manifest), store.size_of(&other)), (None, Some(10)));
    assert_eq!(store.tag(&one, &tag("latest")).await.unwrap(), None);
    assert_eq!(store.manifest(&two, &manifest).await.unwrap(), None);
    assert_eq!(store.tag(&two, &tag("v1")).await.unwrap(), Some(tag_record(other)), "a tag that moved on stays");
    assert_eq!(rig.files("v1/repositories").len(), 1);
    assert!(!rig.path("v1/repositories/docker.io/library").exists());
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn base_layers_stay_with_the_newest_image_that_needs_them() {
    let rig = Rig::new(THREE);
    let store = rig.open().await;
    let base = put(&store, "base", THIRD).await;
    let old = put(&store, "old", THIRD).await;
    let manifest = put(&store, "manifest", 1000).await;
    store.put_manifest(&repository("a"), manifest, manifest_record(1, &[base])).await.unwrap();
    put(&store, "new", THIRD).await;
    assert_eq!((store.size_of(&base), store.size_of(&old)), (Some(THIRD), Some(THIRD)));
    store.read_blob(&manifest).await.unwrap().unwrap();
    // The raise is on disk too.
    store.sweep().await;
    store.close().await;
    let store = rig.open().await;
    put(&store, "newer", THIRD).await;
    assert_eq!((store.size_of(&base), store.size_of(&old)), (Some(THIRD), None));
}

#[tokio::test]
async fn a_lowered_capacity_evicts_nothing_during_the_grace_and_all_it_must_afterwards() {
    let mut rig = Rig::new(THREE);
    let store = rig.open().await;
    for name in ["a", "b", "c"] {
        put(&store, name, THIRD).await;
    }
    store.close().await;
    rig.budget.capacity_bytes = THREE / 2;
    let store = rig.open().await;
    assert!(store.snapshot().over_capacity);
    assert!(matches!(store.reserve(1).await, Err(NoRoom::NotNow { .. })));
    store.sweep().await;
    assert_eq!(store.snapshot().blobs, 3);
    store.close().await;

    rig.options.shrink_grace = Duration::ZERO;
    let store = rig.open().await;
    store.sweep().await;
    assert_eq!(store.snapshot().blobs, 1);
    assert!(!store.snapshot().over_capacity);
    assert!(store.open_blob(&content("c", THIRD).0).await.unwrap().is_some());
}

#[tokio::test]
async fn offline_nothing_is_evicted_even_beyond_a_lowered_capacity() {
    let mut rig = Rig::new(THREE);
    let store = rig.open().await;
    for name in ["a", "b", "c"] {
        put(&store, name, THIRD).await;
    }
    store.close().await;
    (rig.options.offline, rig.options.shrink_grace) = (true, Duration::ZERO);
    let store = rig.open().await;
    assert!(matches!(store.reserve(THIRD).await, Err(NoRoom::NotNow { .. })));
    store.close().await;
    rig.budget.capacity_bytes = THREE / 2;
    let store = rig.open().await;
    store.sweep().await;
    assert_eq!(store.snapshot().blobs, 3);
    assert!(store.snapshot().over_capacity);
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn the_disk_never_holds_more_than_the_budget_and_one_percent() {
    let rig = Rig::new(2 * MIB);
    let store = rig.open().await;
    let mut used_max = 0;
    for n in 0..400_u64 {
        let digest = put(&store, &format!("blob {n}"), 1 + n * 97 % 20_000).await;
        let repository = repository(&format!("r/{}", n % 7));
        store.put_manifest(&repository, digest, manifest_record(n, &[])).await.unwrap();
        store.put_tag(&repository, &tag(&format!("v{n}")), tag_record(digest)).await.unwrap();
        used_max = used_max.max(rig.disk_usage());
    }
    assert!(used_max <= 2 * MIB + 2 * MIB / 100, "{used_max}");
    assert!(used_max > MIB, "{used_max}");
    let before = store.snapshot();
    assert_at_rest(&store).await;
    store.close().await;
    let store = rig.open().await;
    store.settled().await;
    assert_eq!(store.snapshot(), before, "a restart counts the same");
}

/// Pulls `count` tags once each, as bots do, and says how long the next start takes.
async fn pull_once(count: u64, capacity_bytes: u64) -> Duration {
    let rig = Rig::in_memory(capacity_bytes);
    let store = rig.open().await;
    let app = repository("library/app");
    for n in 0..count {
        let digest = put(&store, &format!("manifest {n}"), 2000).await;
        assert!(store.put_manifest(&app, digest, manifest_record(n, &[])).await.unwrap());
        assert!(store.put_tag(&app, &tag(&format!("v{n}")), tag_record(digest)).await.unwrap());
    }
    store.settled().await;
    let (files, tags) = (rig.files("").len() as u64, store.held_tags(&app).await.unwrap().len() as u64);
    assert!(tags > 0 && tags < count, "{tags} tags are left");
    // Each file counts a block at least, whatever is in it; beside them are the lock and the tag for backup tools.
    assert!(files <= capacity_bytes / 4096 + 2, "{files} files");
    store.close().await;
    let begun = Instant::now();
    let store = rig.open().await;
    store.settled().await;
    let elapsed = begun.elapsed();
    assert_at_rest(&store).await;
    store.close().await;
    elapsed
}

#[tokio::test]
async fn tags_that_a_bot_pulls_once_leave_nothing_behind_for_ever() {
    pull_once(1500, 4 * MIB).await;
}

/// `cargo test --release --lib store::tests::eviction -- --ignored`, a part of `.ci/long`.
#[tokio::test]
#[ignore = "takes minutes: part of .ci/long"]
async fn two_hundred_thousand_tags_that_a_bot_pulls_once_leave_nothing_behind_for_ever() {
    use std::io::Write as _;
    let elapsed = pull_once(200_000, 256 * MIB).await;
    let mut figures = std::io::stderr();
    writeln!(figures, "200 000 tags pulled once into 256 MiB: the next start took {elapsed:?}, records and all")
        .unwrap();
}
