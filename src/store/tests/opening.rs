//! Boot: the lock, the scan, strange files, and what a crash left.

use super::*;

#[tokio::test]
async fn a_second_process_is_told_who_holds_the_data_directory() {
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    let refusal = rig.try_open().await.unwrap_err().to_string();
    assert!(refusal.contains(&format!("in use by process {} on ", std::process::id())), "{refusal}");
    assert!(refusal.contains("storage.path"), "{refusal}");
    store.close().await;
    rig.open().await;
}

#[tokio::test]
async fn a_second_process_waits_for_the_first_to_stop() {
    let mut rig = Rig::new(MIB);
    let store = rig.open().await;
    rig.options.lock_wait = Duration::from_mins(1);
    let opening = rig.open();
    tokio::pin!(opening);
    assert!(futures_util::poll!(&mut opening).is_pending());
    store.close().await;
    opening.await;
}

#[tokio::test]
async fn a_data_directory_that_is_a_file_is_called_that() {
    let mut rig = Rig::new(MIB);
    let file = tempfile::NamedTempFile::new().unwrap();
    rig.options.path = file.path().to_owned();
    let refusal = rig.try_open().await.unwrap_err().to_string();
    assert!(refusal.contains(file.path().to_str().unwrap()), "{refusal}");
    assert!(refusal.contains("storage.path, or what is above it, is not a directory"), "{refusal}");
}

/// Stops whoever syncs a file until it is opened.
struct Gate {
    reached: tokio::sync::Notify,
    closed: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl Faults for Gate {
    fn before(&self, op: Op, _: &Path) -> std::io::Result<()> {
        if op == Op::Sync
            && let Some(opened) = self.closed.lock().take()
        {
            self.reached.notify_one();
            let _ = opened.recv();
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_write_whose_caller_went_away_ends_before_the_store_is_settled() {
    let (open, opened) = std::sync::mpsc::channel();
    let gate = Arc::new(Gate { reached: tokio::sync::Notify::new(), closed: Mutex::new(None) });
    let mut rig = Rig::new(MIB);
    rig.options.faults = Some(gate.clone());
    let store = rig.open().await;
    store.settled().await;
    *gate.closed.lock() = Some(opened);
    tokio::select! {
        _ = put(&store, "a", 100) => panic!("it was put before it was synced"),
        () = gate.reached.notified() => {}
    }
    let mut settled = Box::pin(store.settled());
    assert!(futures_util::poll!(&mut settled).is_pending(), "the lock would go to another process now");
    open.send(()).unwrap();
    settled.await;
    assert_at_rest(&store).await;
    assert_eq!(store.snapshot().blobs, 1);
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_keeps_nobody_from_serving_what_it_holds() {
    let script = Script::failing_only(Op::Write, Errno::NOSPC);
    script.passes.store(usize::MAX, Ordering::SeqCst);
    let rig = Rig::new(MIB).with_faults(&script);
    let store = rig.open().await;
    let digest = put(&store, "a", 100).await;
    store.close().await;
    script.passes.store(0, Ordering::SeqCst);
    std::fs::remove_file(rig.path("CACHEDIR.TAG")).unwrap();
    let store = rig.open().await;
    assert!(store.open_blob(&digest).await.unwrap().is_some());
    let refusal = rig.try_open().await.unwrap_err().to_string();
    assert!(refusal.contains("in use by a process that left no name"), "{refusal}");
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn a_newer_layout_is_refused_in_words() {
    let rig = Rig::new(MIB);
    std::fs::create_dir_all(rig.path("v2")).unwrap();
    let refusal = rig.try_open().await.unwrap_err().to_string();
    assert!(refusal.contains("holds layout v2, and this version reads v1"), "{refusal}");
    assert!(!rig.path("v1").exists());
    std::fs::create_dir_all(rig.path("v1")).unwrap();
    rig.open().await;
}

#[tokio::test]
async fn strange_files_are_left_alone_and_leftovers_are_removed() {
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    let digest = put(&store, "a", 100).await;
    store.close().await;
    let strange = [rig.blob_path(&digest).with_file_name("README"), rig.path("v1/blobs/sha256/note"), rig.path("mine")];
    for path in &strange {
        std::fs::write(path, "x").unwrap();
    }
    for (folder, file) in [("v1/partial/docker.io/sha256-00", "data"), ("v1/tmp", "7")] {
        std::fs::create_dir_all(rig.path(folder)).unwrap();
        std::fs::write(rig.path(folder).join(file), "x").unwrap();
    }
    let store = rig.open().await;
    assert_eq!(store.snapshot().blobs, 1);
    assert!(strange.iter().all(|path| path.exists()));
    assert!(rig.files("v1/partial").is_empty() && rig.files("v1/tmp").is_empty());
    assert!(
        std::fs::read(rig.path("CACHEDIR.TAG")).unwrap().starts_with(b"Signature: 8a477f597d28d172789f06886806bc55")
    );
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn committed_blobs_cannot_be_written_and_carry_their_time() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    let path = rig.blob_path(&put(&store, "a", 100).await);
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o444);
    let seconds = i64::try_from(Timestamp::now().0 / 1000).unwrap();
    assert!((seconds - found.mtime()).abs() < 60);
}

#[tokio::test]
async fn the_budget_is_decided_by_what_is_there() {
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    put(&store, "a", 12_345).await;
    store.close().await;
    let told = Arc::new(Mutex::new(None));
    let (noted, budget) = (told.clone(), rig.budget);
    let decide = move |facts: &FileSystemFacts| {
        *noted.lock() = Some(*facts);
        Budget { capacity_bytes: 7 * MIB, ..budget }
    };
    let options = Options { budget: Arc::new(decide), ..rig.options.clone() };
    let store = Store::open(options, rig.metrics.clone()).await.unwrap();
    let facts = told.lock().unwrap();
    assert!(facts.total_bytes >= facts.free_bytes && facts.held_bytes == 12_345 && !facts.own_mount, "{facts:?}");
    assert_eq!(store.snapshot().capacity_bytes, 7 * MIB);
}

#[test]
fn a_link_to_a_folder_of_another_file_system_is_no_mount() {
    let disk = Disk::new(None, Arc::default());
    let own_mount = |path: &Path| recover::facts(&disk, path, 0).unwrap().own_mount;
    assert!(own_mount(Path::new("/")));
    // Elsewhere, if this system has two.
    let elsewhere = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let here = TempDir::new().unwrap();
    let link = here.path().join("data");
    std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
    assert!(!own_mount(&link));
}

#[tokio::test]
async fn gauges_follow_what_is_held() {
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    put(&store, "a", 100).await;
    let _room = store.reserve(1).await.unwrap();
    let text = rig.metrics.render();
    for line in ["store_bytes 4608", "store_reserved_bytes 4608", "store_capacity_bytes 1048576", "store_blobs 1"] {
        assert!(text.contains(&format!("\ncachalot_{line}\n")), "{line} in {text}");
    }
}
