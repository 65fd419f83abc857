//! A disk that takes no writes for a while delays nobody who reads.

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
