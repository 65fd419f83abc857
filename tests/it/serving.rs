//! Files on their way to clients: right or short, whatever becomes of them meanwhile, and never another client's trouble.

use std::sync::Arc;

use cachalot::store::Op;
use rustix::io::Errno;

use crate::support::client::{Connection, End, Request};
use crate::support::images::Blob;
use crate::support::mirror::{FailingDisk, Mirror, blob};
use crate::support::registry::{On, Registry};
use crate::support::{all, until};

const MIB: usize = 1024 * 1024;

/// A registry with a blob that fits into no socket, and a mirror that holds it.
async fn world() -> (Registry, Arc<FailingDisk>, Mirror, Blob) {
    let registry = Registry::start().await;
    let disk = Arc::new(FailingDisk::default());
    let mirror = Mirror::builder().upstream("docker.io", &registry).disk(&disk).start().await;
    let large = Blob::noise(1, 6 * MIB);
    registry.put_blob("library/app", &large);
    mirror.get(&blob("library/app", &large.digest)).await.assert_ok(&large.bytes);
    mirror.idle().await;
    (registry, disk, mirror, large)
}

/// So many clients that have begun to read a blob and have stopped.
async fn readers(mirror: &Mirror, count: usize, path: &str) -> Vec<Connection> {
    let mut readers = Vec::new();
    for _ in 0..count {
        let mut client = Connection::open_narrow(mirror.addr()).await;
        client.send(&Request::get(path)).await;
        assert_eq!(client.head().await.status, 200);
        readers.push(client);
    }
    readers
}

/// What each gets further, and how it ends.
async fn rest(readers: Vec<Connection>) -> Vec<(bytes::Bytes, End)> {
    all(readers.into_iter().map(|mut client| async move { client.rest().await })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_readers_of_a_file_that_is_cut_get_what_is_left_and_the_next_gets_all() {
    let (registry, _, mirror, large) = world().await;
    let other = Blob::noise(2, 300 * 1024);
    registry.put_blob("library/app", &other);
    let path = blob("library/app", &large.digest);
    let running = readers(&mirror, 100, &path).await;

    let left = 5 * MIB + 77;
    let file = std::fs::OpenOptions::new().write(true).open(mirror.site().blob_file(&large.digest)).unwrap();
    file.set_len(left as u64).unwrap();
    drop(file);
    for (body, end) in rest(running).await {
        assert_eq!(end, End::Short);
        assert!(body == large.bytes[..left], "{} bytes", body.len());
    }
    mirror.get(&blob("library/app", &other.digest)).await.assert_ok(&other.bytes);
    mirror.get(&path).await.assert_ok(&large.bytes);
    assert_eq!(registry.count(&On::blob(&large.digest)), 2, "fetched again");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_readers_of_a_file_that_is_removed_get_all_of_it() {
    let (_registry, _, mirror, large) = world().await;
    let path = blob("library/app", &large.digest);
    let running = readers(&mirror, 100, &path).await;
    std::fs::remove_file(mirror.site().blob_file(&large.digest)).unwrap();
    for (body, end) in rest(running).await {
        assert_eq!(end, End::Complete);
        assert!(body == large.bytes);
    }
    mirror.get(&path).await.assert_ok(&large.bytes);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_could_not_be_read_is_checked_before_it_is_served_again() {
    let (registry, disk, mirror, large) = world().await;
    let path = blob("library/app", &large.digest);
    let running = readers(&mirror, 100, &path).await;
    disk.fail(Op::Read, Errno::IO);
    for (body, end) in rest(running).await {
        assert_eq!(end, End::Short);
        assert!(large.bytes.starts_with(&body));
    }
    disk.recover();
    // The disk is well, and so is the file: nothing is fetched.
    mirror.get(&path).await.assert_ok(&large.bytes);
    assert_eq!(registry.count(&On::blob(&large.digest)), 1);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_that_could_not_be_read_is_found_out_and_fetched_again() {
    let (registry, disk, mirror, large) = world().await;
    let path = blob("library/app", &large.digest);
    let running = readers(&mirror, 3, &path).await;
    disk.fail(Op::Read, Errno::IO);
    assert!(rest(running).await.iter().all(|(_, end)| *end == End::Short));
    disk.recover();
    let damaged = mirror.site().blob_file(&large.digest);
    let mut bytes = large.bytes.to_vec();
    bytes[3 * MIB] ^= 1;
    let mut permissions = std::fs::metadata(&damaged).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(&damaged, permissions).unwrap();
    std::fs::write(&damaged, &bytes).unwrap();

    mirror.get(&path).await.assert_ok(&large.bytes);
    assert_eq!(registry.count(&On::blob(&large.digest)), 2, "fetched again");
    until("the damaged file is out of the way", || std::fs::read(&damaged).is_ok_and(|now| now == large.bytes)).await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_its_pages_in_memory_is_served_whole() {
    let (_registry, _, mirror, large) = world().await;
    let file = std::fs::File::open(mirror.site().blob_file(&large.digest)).unwrap();
    let path = blob("library/app", &large.digest);
    for range in [None, Some(0..1), Some(2 * MIB..4 * MIB + 3), Some(6 * MIB - 1..6 * MIB)] {
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let (request, expected) = match range {
            None => (Request::get(&*path), large.bytes.clone()),
            Some(range) => {
                let request = Request::get(&*path).range(format!("bytes={}-{}", range.start, range.end - 1));
                (request, large.bytes.slice(range))
            }
        };
        let answer = mirror.send(&request).await;
        assert_eq!(answer.end, End::Complete);
        assert!(answer.body == expected);
    }
    drop(file);
    mirror.finish().await;
}
