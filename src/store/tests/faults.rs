//! Every file-system operation fails once: nothing wrong is committed and nothing is left behind.

use super::*;

/// Runs `work` on a store whose n-th operation fails, for every n, until it gets through without a failure; once with a
/// single failure, once with a disk that stays dead. Afterwards nothing may have leaked; and a store opened on what is left
/// must be whole.
async fn at_every_operation<W, F>(work: W, check: impl AsyncFn(&Store))
where
    W: Fn(Store) -> F,
    F: Future<Output = Result<(), StoreError>>,
{
    for (errno, for_ever) in [(Errno::NOSPC, false), (Errno::IO, false), (Errno::IO, true)] {
        let mut n = 0;
        loop {
            let script = Script::failing(usize::MAX, errno, for_ever);
            let rig = Rig::in_memory(8 * MIB).with_faults(&script);
            let store = rig.open().await;
            store.settled().await;
            script.passes.store(n, Ordering::SeqCst);
            let result = work(store.clone()).await;
            store.settled().await;
            let failed = script.relent();
            assert!(failed || result.is_ok());
            if let Err(StoreError::Io { source, .. }) = &result {
                assert_eq!(source.raw_os_error(), Some(errno.raw_os_error()));
            }

            let snapshot = store.snapshot();
            assert_eq!((snapshot.reserved_bytes, snapshot.evicting_bytes), (0, 0), "operation {n}: {snapshot:?}");
            check(&store).await;
            if !for_ever {
                assert_eq!(rig.files("v1/partial"), Vec::<PathBuf>::new(), "operation {n}: {result:?}");
                assert_eq!(store.audit().await.unwrap(), Vec::<String>::new(), "operation {n}");
            }
            drop(store);
            let reopened = reopen(&rig).await;
            check(&reopened).await;
            assert_at_rest(&reopened).await;
            if !failed {
                assert!(n > 5, "the work needs more operations than that");
                break;
            }
            n += 1;
        }
    }
}

/// Opens the data directory again, once the last job of the store before has let go of it.
async fn reopen(rig: &Rig) -> Store {
    let mut options = rig.options.clone();
    options.faults = None;
    options.lock_wait = Duration::from_secs(20);
    Store::open(options, rig.metrics.clone()).await.unwrap()
}

async fn held_means_right(store: &Store, digest: &Digest, bytes: &Bytes) {
    if let Some(blob) = store.open_blob(digest).await.unwrap() {
        let read = blob.file.read_at(0, usize::try_from(blob.size_bytes).unwrap()).await.unwrap();
        assert_eq!(read, *bytes);
    }
}

#[tokio::test]
async fn putting_a_blob_may_fail_anywhere_and_leaves_nothing_wrong() {
    let (digest, bytes) = content("small", 5000);
    let content = bytes.clone();
    at_every_operation(
        move |store| {
            let bytes = content.clone();
            async move { store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await }
        },
        async |store: &Store| held_means_right(store, &digest, &bytes).await,
    )
    .await;
}

#[tokio::test]
async fn a_partial_may_fail_anywhere_and_leaves_nothing_wrong() {
    let (digest, bytes) = content("layer", 300_000);
    for extent in [Extent::Whole(300_000), Extent::Sparse(300_000), Extent::Growing] {
        let content = bytes.clone();
        at_every_operation(
            move |store| {
                let bytes = content.clone();
                async move {
                    let registry = "docker.io".parse().unwrap();
                    let partial = store.create_partial(&registry, digest, extent).await?;
                    partial
                        .write_at(0, vec![bytes.slice(..100_000), Bytes::new(), bytes.slice(100_000..200_000)])
                        .await?;
                    partial.write_at(200_000, vec![bytes.slice(200_000..)]).await?;
                    partial.commit(Verified::check(&digest, &bytes).unwrap()).await
                }
            },
            async |store: &Store| held_means_right(store, &digest, &bytes).await,
        )
        .await;
    }
}

#[tokio::test]
async fn recording_may_fail_anywhere_and_never_hurts_a_reader() {
    let (digest, bytes) = content("manifest", 500);
    let content = bytes.clone();
    at_every_operation(
        move |store| {
            let bytes = content.clone();
            async move {
                store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await?;
                let repository = repository("library/a");
                store.put_manifest(&repository, digest, manifest_record(1, &[])).await?;
                store.put_tag(&repository, &tag("x"), tag_record(digest)).await?;
                store
                    .put_tag(&repository, &tag("x"), TagRecord { checked: Timestamp(3), ..tag_record(digest) })
                    .await?;
                Ok(())
            }
        },
        async |store: &Store| {
            let repository = repository("library/a");
            let found = store.tag(&repository, &tag("x")).await.unwrap();
            assert!(found.is_none_or(|found| found.digest == digest));
            let found = store.manifest(&repository, &digest).await.unwrap();
            assert!(found.is_none_or(|found| *found == manifest_record(1, &[])));
        },
    )
    .await;
}

#[tokio::test]
async fn publishing_syncs_the_file_before_the_rename_and_the_folder_after_it() {
    let script = Arc::new(Script { passes: AtomicUsize::new(usize::MAX), ..Script::default() });
    let rig = Rig::new(8 * MIB).with_faults(&script);
    let store = rig.open().await;
    put(&store, "first", 10).await;
    script.seen.lock().clear();
    put(&store, "second", 10).await;
    let seen = script.seen.lock().clone();
    let at = |op| seen.iter().position(|seen| *seen == op).unwrap();
    let last = seen.iter().rposition(|seen| *seen == Op::SyncFolder).unwrap();
    assert!(at(Op::Write) < at(Op::Sync) && at(Op::Sync) < at(Op::Rename) && at(Op::Rename) < last, "{seen:?}");
    assert_eq!(seen.iter().filter(|seen| **seen == Op::Sync).count(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_failed_fsync_drops_the_blob_and_is_not_tried_again() {
    let script = Script::failing_only(Op::Sync, Errno::IO);
    script.passes.store(usize::MAX, Ordering::SeqCst);
    let rig = Rig::new(8 * MIB).with_faults(&script);
    let store = rig.open().await;
    script.passes.store(0, Ordering::SeqCst);
    script.seen.lock().clear();
    let (digest, bytes) = content("a", 10);
    let error = store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await.unwrap_err();
    assert!(error.to_string().contains("could not fsync"), "{error}");
    assert_eq!(script.seen.lock().iter().filter(|op| **op == Op::Sync).count(), 1);
    assert_eq!(store.size_of(&digest), None);
    assert!(rig.metrics.render().contains("cachalot_store_errors_total{op=\"fsync\"} 1"));
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn a_blob_that_cannot_be_unlinked_stays_held() {
    let script = Script::failing_only(Op::Remove, Errno::IO);
    script.passes.store(usize::MAX, Ordering::SeqCst);
    let rig = Rig::new(MIB).with_faults(&script);
    let store = rig.open().await;
    let digest = put(&store, "a", 900_000).await;
    script.passes.store(0, Ordering::SeqCst);
    assert!(matches!(store.reserve(900_000).await, Err(NoRoom::NotNow { .. })));
    assert_eq!(store.size_of(&digest), Some(900_000));
    script.relent();
    drop(store.reserve(900_000).await.unwrap());
    assert_eq!(store.size_of(&digest), None);
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn too_many_open_files_is_no_reason_to_drop_anything() {
    let script = Script::failing_only(Op::Open, Errno::MFILE);
    script.passes.store(usize::MAX, Ordering::SeqCst);
    let rig = Rig::new(MIB).with_faults(&script);
    let store = rig.open().await;
    let digest = put(&store, "a", 100).await;
    assert!(store.put_tag(&repository("a"), &tag("x"), tag_record(digest)).await.unwrap());
    store.close().await;
    let store = rig.open().await;
    store.settled().await;
    script.passes.store(0, Ordering::SeqCst);
    assert!(store.open_blob(&digest).await.unwrap_err().to_string().contains("raise the limit on open files"));
    store.tag(&repository("a"), &tag("x")).await.unwrap_err();
    script.relent();
    assert!(store.open_blob(&digest).await.unwrap().is_some());
    assert_eq!(store.tag(&repository("a"), &tag("x")).await.unwrap(), Some(tag_record(digest)));
}
