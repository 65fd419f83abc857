//! A disk that takes no writes for a while delays nobody who reads, and nobody who gets what is to be kept.

use std::sync::mpsc;

use super::*;

/// Holds up every operation that changes something, while it is closed.
#[derive(Default)]
struct Stall {
    closed: Mutex<Option<mpsc::Receiver<()>>>,
    held_up: AtomicUsize,
}

impl Stall {
    /// Closes it, until the sender is dropped.
    fn close(&self) -> mpsc::Sender<()> {
        let (open, opened) = mpsc::channel();
        *self.closed.lock() = Some(opened);
        open
    }
}

impl Faults for Stall {
    fn before(&self, _: Op, _: &Path) -> std::io::Result<()> {
        Ok(())
    }

    fn changing(&self, _: &Change<'_>) {
        let mut closed = self.closed.lock();
        if let Some(opened) = &*closed {
            self.held_up.fetch_add(1, Ordering::SeqCst);
            // Ends when the sender is gone; the others queue up at the lock, and find nothing to wait for then.
            let _ = opened.recv();
            *closed = None;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_syncs_that_hang_delay_no_reader_of_blobs_and_records() {
    let stall = Arc::new(Stall::default());
    let mut rig = Rig::new(8 * MIB);
    rig.options.faults = Some(stall.clone());
    let store = rig.open().await;
    let (large, small) = (put(&store, "large", 100_000).await, put(&store, "small", 100).await);
    let app = repository("library/app");
    store.put_manifest(&app, small, manifest_record(1, &[large])).await.unwrap();
    store.put_tag(&app, &tag("v1"), tag_record(small)).await.unwrap();
    store.put_list(&app, &ListName::Tags, ListRecord { fetched: Timestamp(1), body: "v1".to_owned() }).await.unwrap();
    store.close().await;

    // Opened afresh, so that nothing is in memory.
    let store = rig.open().await;
    store.settled().await;
    let open = stall.close();
    // More writers than there are threads, those of the very same repository among them.
    let writers: Vec<_> = (0..40)
        .map(|n| {
            let (store, app) = (store.clone(), app.clone());
            tokio::spawn(async move {
                let digest = put(&store, &format!("new {n}"), 10_000).await;
                store.put_tag(&app, &tag("v1"), tag_record(digest)).await
            })
        })
        .collect();
    while stall.held_up.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let tagging = tokio::spawn({
        let (store, app) = (store.clone(), app.clone());
        async move { store.put_tag(&app, &tag("v2"), tag_record(small)).await }
    });
    let reading = async {
        assert_eq!(store.tag(&app, &tag("v1")).await.unwrap(), Some(tag_record(small)));
        assert_eq!(store.tag(&app, &tag("absent")).await.unwrap(), None);
        assert!(store.manifest(&app, &small).await.unwrap().is_some());
        assert!(store.listed(&app, &large).await.unwrap().is_some());
        assert!(store.list(&app, &ListName::Tags).await.unwrap().is_some());
        assert_eq!(store.held_tags(&app).await.unwrap(), [tag("v1")]);
        assert_eq!(store.read_blob(&small).await.unwrap().unwrap().len(), 100);
        let blob = store.open_blob(&large).await.unwrap().unwrap();
        assert_eq!(blob.file.read_at(0, 5).await.unwrap(), "large");
    };
    tokio::time::timeout(Duration::from_secs(40), reading).await.expect("a reader waits for a writer");
    assert!(writers.iter().all(|writer| !writer.is_finished()), "nothing was held up");
    drop(open);
    for writer in writers {
        assert!(writer.await.unwrap().unwrap());
    }
    assert!(tagging.await.unwrap().unwrap());
    let last = store.tag(&app, &tag("v1")).await.unwrap().unwrap();
    assert_ne!(last.digest, small, "what was written meanwhile is what counts");
    assert_at_rest(&store).await;
}

/// A manifest of `app` that lists one blob, its digest, and what is recorded of it.
fn manifest(name: &str, child: &Digest) -> (Verified, Bytes, Digest, ManifestRecord) {
    let (digest, bytes) = content(name, 300);
    (Verified::check(&digest, &bytes).unwrap(), bytes, digest, manifest_record(1, &[*child]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_disk_that_hangs_can_be_read_and_is_kept_in_the_end() {
    let stall = Arc::new(Stall::default());
    let mut rig = Rig::new(8 * MIB);
    rig.options.faults = Some(stall.clone());
    let store = rig.open().await;
    let (app, layer) = (repository("library/app"), Digest::sha256(b"layer"));
    let (verified, bytes, first, record) = manifest("first", &layer);
    store.keep_manifest(&app, verified, bytes, record);
    store.keep_tag(&app, &tag("gone"), tag_record(first));
    store.settled().await;

    let open = stall.close();
    let (verified, bytes, digest, record) = manifest("second", &layer);
    store.keep_manifest(&app, verified, bytes.clone(), ManifestRecord { fetched: Timestamp(2), ..record });
    while stall.held_up.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // Others come while the first write hangs; the last word on each counts.
    store.keep_tag(&app, &tag("v1"), tag_record(first));
    store.keep_tag(&app, &tag("v1"), tag_record(digest));
    store.forget_tag(&app, &tag("gone"));
    store.keep_list(&app, &ListName::Tags, Arc::new(ListRecord { fetched: Timestamp(1), body: "v1".to_owned() }));
    store.confirm(&app, &layer).await.unwrap();
    let look = async |store: &Store| {
        assert_eq!(store.tag(&app, &tag("v1")).await.unwrap(), Some(tag_record(digest)));
        assert_eq!(store.tag(&app, &tag("gone")).await.unwrap(), None);
        assert_eq!(store.held_tags(&app).await.unwrap(), [tag("v1")]);
        assert_eq!(store.read_blob(&digest).await.unwrap().unwrap(), bytes);
        assert_eq!(store.manifest(&app, &digest).await.unwrap().unwrap().confirmed, [layer]);
        assert_eq!(store.listed(&app, &layer).await.unwrap(), Some(Listed { size_bytes: 1, confirmed: true }));
        assert_eq!(store.is_public(&app).await.unwrap(), Some(true));
        assert_eq!(store.list(&app, &ListName::Tags).await.unwrap().unwrap().body, "v1");
    };
    tokio::time::timeout(Duration::from_secs(40), look(&store)).await.expect("a reader waits for a writer");
    assert_eq!(store.size_of(&digest), None, "nothing is on disk yet");

    drop(open);
    store.settled().await;
    look(&store).await;
    assert_at_rest(&store).await;
    // Closing waits for what is under way.
    let (verified, bytes_of_third, third, record) = manifest("third", &layer);
    store.keep_manifest(&app, verified, bytes_of_third.clone(), record);
    store.close().await;
    let store = rig.open().await;
    store.settled().await;
    look(&store).await;
    assert_eq!(store.read_blob(&third).await.unwrap().unwrap(), bytes_of_third);
    assert_eq!(rig.metrics.store_unkept.get(), 0);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_much_waits_for_a_disk_that_hangs() {
    let stall = Arc::new(Stall::default());
    let mut rig = Rig::new(512 * MIB);
    rig.options.faults = Some(stall.clone());
    let store = rig.open().await;
    let open = stall.close();
    let body = "x".repeat(4 << 20);
    let repositories: Vec<_> = (0..40).map(|n| repository(&format!("library/app{n}"))).collect();
    for app in &repositories {
        let list = ListRecord { fetched: Timestamp(1), body: body.clone() };
        store.keep_list(app, &ListName::Tags, Arc::new(list));
    }
    let mut waiting = 0;
    for app in &repositories {
        waiting += u64::from(store.list(app, &ListName::Tags).await.unwrap().is_some());
    }
    assert_eq!(waiting, 15, "of 4 MiB each, not quite as many as 64 MiB are");
    assert_eq!(rig.metrics.store_unkept.get(), 40 - waiting);
    assert!(store.trouble().unwrap().contains("too slow"), "{:?}", store.trouble());
    drop(open);
    store.settled().await;
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn what_the_disk_does_not_take_in_the_end_is_gone_and_counted() {
    let script = Script::failing_only(Op::Sync, Errno::IO);
    let rig = Rig::new(8 * MIB).with_faults(&script);
    let store = rig.open().await;
    let app = repository("library/app");
    let (verified, bytes, digest, record) = manifest("first", &Digest::sha256(b"layer"));
    store.keep_manifest(&app, verified, bytes.clone(), record);
    store.keep_tag(&app, &tag("v1"), tag_record(digest));
    assert_eq!(store.read_blob(&digest).await.unwrap().unwrap(), bytes);
    store.settled().await;
    assert_eq!(store.read_blob(&digest).await.unwrap(), None);
    assert_eq!(
        (store.tag(&app, &tag("v1")).await.unwrap(), store.manifest(&app, &digest).await.unwrap()),
        (None, None)
    );
    assert_eq!(rig.metrics.store_unkept.get(), 2);
    assert!(store.trouble().is_some());
    assert_at_rest(&store).await;
}
