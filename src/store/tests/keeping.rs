//! What people ask of the store: pins, the list of images, their removal, and the scrub.

use super::*;
use crate::oci::{ImageName, Platform};

const THIRD: u64 = 300_000;

fn image(name: &str) -> ImageName {
    name.parse().unwrap()
}

fn pin(roots: &[&str]) -> Pin {
    Pin {
        roots: roots.iter().map(|root| image(root)).collect(),
        platforms: Vec::new(),
        referrers: false,
        created: Timestamp(1),
    }
}

/// An image with these layers, under a tag of `docker.io/<name>`.
async fn put_image(store: &Store, name: &str, layers: &[Digest]) -> Digest {
    let manifest = put(store, &format!("manifest of {name}"), 500).await;
    let (name, tag) = name.split_once(':').unwrap();
    let repository = repository(name);
    assert!(store.put_manifest(&repository, manifest, manifest_record(1, layers)).await.unwrap());
    assert!(store.put_tag(&repository, &tag.parse().unwrap(), tag_record(manifest)).await.unwrap());
    manifest
}

#[tokio::test]
async fn pinned_images_stay_with_all_that_belongs_to_them_also_after_a_restart() {
    let rig = Rig::new(1_100_000);
    let store = rig.open().await;
    let layer = put(&store, "layer", THIRD).await;
    // Before anything of it is held: a promise for the future.
    let name: PinName = "release".parse().unwrap();
    store.pin(&name, pin(&["docker.io/a/b:v1"])).await.unwrap();
    let manifest = put_image(&store, "a/b:v1", &[layer]).await;
    store.close().await;

    let store = rig.open().await;
    assert_eq!(store.pins(), [(name.clone(), pin(&["docker.io/a/b:v1"]))]);
    for n in 0..8 {
        put(&store, &format!("other {n}"), THIRD).await;
    }
    assert_eq!((store.size_of(&layer), store.size_of(&manifest)), (Some(THIRD), Some(500)));
    assert!(store.tag(&repository("a/b"), &tag("v1")).await.unwrap().is_some());
    store.remove_tag(&repository("a/b"), &tag("v1")).await.unwrap();
    assert!(store.tag(&repository("a/b"), &tag("v1")).await.unwrap().is_some(), "a pinned tag is not forgotten");
    let refusal = store.remove_image(&image("docker.io/a/b:v1")).await.unwrap_err().to_string();
    assert!(refusal.contains("kept by the pin release"), "{refusal}");
    assert_at_rest(&store).await;

    assert!(store.unpin(&name).await.unwrap());
    assert!(!store.unpin(&name).await.unwrap());
    for n in 0..8 {
        put(&store, &format!("more {n}"), THIRD).await;
    }
    assert_eq!(store.size_of(&layer), None);
    store.close().await;
    assert!(rig.open().await.pins().is_empty());
}

#[tokio::test]
async fn an_image_is_shown_part_by_part() {
    let rig = Rig::new(1_100_000);
    let store = rig.open().await;
    let (layer, absent) = (put(&store, "layer", THIRD).await, Digest::sha256(b"absent"));
    let manifest = put_image(&store, "a/b:v1", &[layer, absent]).await;
    put_image(&store, "a/c:v1", &[layer]).await;
    let parts = store.parts_of(&image("docker.io/a/b:v1")).await.unwrap();
    let parts: Vec<_> = parts.iter().map(|part| (part.digest, part.held, part.images)).collect();
    assert_eq!(parts, [(manifest, true, 1), (layer, true, 2), (absent, false, 1)]);
    assert_eq!(store.parts_of(&image("docker.io/a/b:v2")).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_add_to_one_pin_at_once_is_all_in_it() {
    let rig = Rig::new(1_100_000);
    let store = rig.open().await;
    let names: Vec<String> = (0..20).map(|n| format!("docker.io/a/b:v{n}")).collect();
    let added = names.iter().map(|name| {
        let (store, pin) = (store.clone(), pin(&[name]));
        tokio::spawn(async move { store.widen_pin(&tag("site"), pin).await.unwrap() })
    });
    for added in added.collect::<Vec<_>>() {
        added.await.unwrap();
    }
    let roots: Vec<String> = store.pin_called(&tag("site")).unwrap().roots.iter().map(ToString::to_string).collect();
    assert_eq!(roots.len(), names.len());
    assert!(names.iter().all(|name| roots.contains(name)), "{roots:?}");
}

#[tokio::test]
async fn where_a_pinned_tag_moves_the_promise_moves_along() {
    let rig = Rig::new(1_000_000);
    let store = rig.open().await;
    let (old, new) = (put(&store, "old", THIRD).await, put(&store, "new", THIRD).await);
    store.pin(&tag("p"), pin(&["docker.io/t/a:v1"])).await.unwrap();
    put_image(&store, "t/a:v1", &[old]).await;
    let moved = put(&store, "another manifest", 500).await;
    store.put_manifest(&repository("t/a"), moved, manifest_record(2, &[new])).await.unwrap();
    store.put_tag(&repository("t/a"), &tag("v1"), tag_record(moved)).await.unwrap();
    for n in 0..4 {
        put(&store, &format!("other {n}"), THIRD).await;
    }
    assert_eq!((store.size_of(&old), store.size_of(&new)), (None, Some(THIRD)));
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn pins_that_leave_no_room_are_said_aloud_and_the_rest_is_passed_through() {
    let rig = Rig::new(1_000_000);
    let store = rig.open().await;
    let layers = [put(&store, "a", THIRD).await, put(&store, "b", THIRD).await, put(&store, "c", 370_000).await];
    put_image(&store, "t/a:v1", &layers).await;
    assert_eq!(store.trouble(), None);
    store.pin(&tag("p"), pin(&["docker.io/t/a:v1"])).await.unwrap();
    store.sweep().await;
    let trouble = store.trouble().unwrap();
    assert!(trouble.starts_with("pins keep 0 of 0 MiB"), "{trouble}");
    let refusal = store.reserve(THIRD).await.unwrap_err();
    assert!(matches!(refusal, NoRoom::NotNow { .. }) && refusal.to_string().contains("pinned"), "{refusal}");
    assert!(!rig.metrics.render().contains("cachalot_store_pinned_bytes 0"));
    store.unpin(&tag("p")).await.unwrap();
    store.sweep().await;
    drop(store.reserve(THIRD).await.unwrap());
}

#[tokio::test]
async fn of_an_index_only_the_pinned_platforms_stay() {
    let rig = Rig::new(1_000_000);
    let store = rig.open().await;
    let (amd, arm) = (put(&store, "amd", THIRD).await, put(&store, "arm", THIRD).await);
    let mut record = manifest_record(1, &[amd, arm]);
    for (descriptor, architecture) in record.descriptors.iter_mut().zip(["amd64", "arm64"]) {
        let (os, architecture) = ("linux".to_owned(), architecture.to_owned());
        descriptor.platform = Some(Platform { architecture, os, ..Platform::default() });
    }
    let index = put(&store, "index", 500).await;
    store.put_manifest(&repository("t/a"), index, record).await.unwrap();
    store.put_tag(&repository("t/a"), &tag("v1"), tag_record(index)).await.unwrap();
    let platforms = vec!["linux/arm64".to_owned()];
    store.pin(&tag("p"), Pin { platforms, ..pin(&["docker.io/t/a:v1"]) }).await.unwrap();
    let images = store.images().await.unwrap();
    assert_eq!(images[0].platforms, ["linux/amd64", "linux/arm64"]);
    for n in 0..3 {
        put(&store, &format!("other {n}"), THIRD).await;
    }
    assert_eq!((store.size_of(&amd), store.size_of(&arm)), (None, Some(THIRD)));
    assert!(!store.images().await.unwrap()[0].complete);
}

#[tokio::test]
async fn removing_an_image_frees_what_only_it_used() {
    let rig = Rig::new(4 * MIB);
    let store = rig.open().await;
    let (base, own, other) =
        (put(&store, "base", THIRD).await, put(&store, "own", THIRD).await, put(&store, "other", THIRD).await);
    let manifest = put_image(&store, "t/a:v1", &[base, own]).await;
    let second = put_image(&store, "t/b:v1", &[base, other]).await;
    store.put_tag(&repository("t/a"), &tag("again"), tag_record(manifest)).await.unwrap();

    let images = store.images().await.unwrap();
    let names: Vec<_> = images.iter().map(|image| image.image.to_string()).collect();
    assert_eq!(names, ["docker.io/t/a:again", "docker.io/t/a:v1", "docker.io/t/b:v1"]);
    assert_eq!((images[1].size_bytes, images[1].shared_bytes), (2 * THIRD + 500, THIRD));
    assert!(images.iter().all(|image| image.complete && image.last_used.0 > 0));
    let layers = store.largest_layers(1).await;
    assert_eq!(layers[0].size_bytes, THIRD);

    let removed = store.remove_image(&image("docker.io/t/a:again")).await.unwrap();
    assert_eq!((removed.freed_bytes, removed.blobs), (0, 0), "another tag uses all of it");
    let reading = store.open_blob(&own).await.unwrap().unwrap();
    let removed = store.remove_image(&image("docker.io/t/a:v1")).await.unwrap();
    assert_eq!((removed.blobs, removed.in_use), (1, 1), "what is being read stays for now");
    drop(reading);
    let held = [base, own, other, manifest, second].map(|digest| store.size_of(&digest).is_some());
    assert_eq!(held, [true, true, true, false, true]);
    assert!(matches!(store.remove_image(&image("docker.io/t/a:v1")).await, Err(RemoveError::Absent(_))));
    assert!(!rig.path("v1/repositories/docker.io/t/a").exists());
    assert_eq!(store.images().await.unwrap().len(), 1);
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn one_flipped_bit_anywhere_is_found_by_the_scrub_and_healed() {
    let rig = Rig::new(32 * MIB);
    let store = rig.open().await;
    let mut held = Vec::new();
    for n in 0..12_u64 {
        held.push(put(&store, &format!("blob {n}"), 1 + n * n * 10_007).await);
    }
    for (n, digest) in held.iter().enumerate() {
        let path = rig.blob_path(digest);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = n * 7919 % bytes.len();
        bytes[at] ^= 1 << (n % 8);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        for digest in &held {
            let checked = store.check_blob(digest, None).await;
            let should_be_wrong = digest == &held[n];
            assert_eq!(matches!(checked, Checked::Wrong(_)), should_be_wrong, "{checked:?}");
        }
        assert!(store.size_of(digest).is_some(), "a mere look changes nothing");
        assert!(matches!(store.check_and_heal_blob(digest, None).await, Checked::Wrong(_)));
        assert_eq!(store.size_of(digest), None);
        assert_eq!(store.read_blob(digest).await.unwrap(), None, "not from memory either");
        assert!(rig.path("v1/quarantine").join(layout::dashed(digest)).exists());
        // The next pull.
        let (again, bytes) = content(&format!("blob {n}"), 1 + (n * n) as u64 * 10_007);
        store.put_blob(Verified::check(&again, &bytes).unwrap(), bytes).await.unwrap();
        assert!(matches!(store.check_blob(digest, None).await, Checked::Right));
    }
    assert_eq!(store.audit().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn the_scrub_knows_where_it_was_after_a_restart() {
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    assert_eq!(store.scrub_state().await, ScrubState::default());
    let state = ScrubState { begun: Some(Timestamp(7)), next: Some(content("x", 1).0) };
    store.set_scrub_state(state).await.unwrap();
    store.close().await;
    assert_eq!(rig.open().await.scrub_state().await, state);
}

#[tokio::test]
async fn a_disk_in_trouble_is_said_and_found_well_again() {
    let script = Script::failing_only(Op::Sync, Errno::IO);
    script.passes.store(usize::MAX, Ordering::SeqCst);
    let rig = Rig::new(MIB).with_faults(&script);
    let store = rig.open().await;
    store.probe().await;
    assert_eq!(store.trouble(), None);
    script.passes.store(0, Ordering::SeqCst);
    let (digest, bytes) = content("a", 10);
    store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await.unwrap_err();
    assert!(store.trouble().unwrap().contains("could not fsync"), "{:?}", store.trouble());
    assert!(rig.metrics.render().contains("cachalot_store_degraded 1"));
    store.probe().await;
    assert!(store.trouble().is_some(), "it still fails");
    script.relent();
    store.probe().await;
    assert_eq!(store.trouble(), None);
    assert!(rig.metrics.render().contains("cachalot_store_degraded 0"));
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn a_data_directory_that_somebody_removed_is_made_anew() {
    let rig = Rig::new(MIB);
    let store = rig.open().await;
    let held = put(&store, "a", 1000).await;
    std::fs::remove_dir_all(rig.path("v1")).unwrap();
    assert!(store.open_blob(&held).await.unwrap().is_none());
    let (digest, bytes) = content("b", 10);
    store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes.clone()).await.unwrap_err();
    assert!(store.trouble().is_some());
    store.probe().await;
    assert_eq!(store.trouble(), None);
    store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await.unwrap();
    assert_at_rest(&store).await;
}
