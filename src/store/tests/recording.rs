//! Records of tags, manifests and lists.

use super::*;

#[tokio::test]
async fn records_survive_a_restart() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let repository = repository("library/nginx");
    let (layer, manifest) = (put(&store, "layer", 10).await, put(&store, "manifest", 10).await);
    let record = manifest_record(5, &[layer]);
    assert!(store.put_manifest(&repository, manifest, record.clone()).await.unwrap());
    assert!(store.put_tag(&repository, &tag("latest"), tag_record(manifest)).await.unwrap());
    let referrers = ListName::Referrers(manifest);
    let list = ListRecord { fetched: Timestamp(1), body: "{}".to_owned() };
    for name in [&referrers, &ListName::Tags] {
        assert!(store.put_list(&repository, name, list.clone()).await.unwrap());
    }
    store.close().await;

    let store = rig.open().await;
    let listed = Listed { size_bytes: 5, confirmed: false };
    assert_eq!(store.listed(&repository, &layer).await.unwrap(), Some(listed));
    assert_eq!(store.held_tags(&repository).await.unwrap(), [tag("latest")]);
    assert_eq!(store.tag(&repository, &tag("latest")).await.unwrap(), Some(tag_record(manifest)));
    assert_eq!(store.manifest(&repository, &manifest).await.unwrap().as_deref(), Some(&record));
    for name in [&referrers, &ListName::Tags] {
        assert_eq!(store.list(&repository, name).await.unwrap().as_deref(), Some(&list));
    }
    assert_eq!(store.list(&repository, &ListName::Referrers(layer)).await.unwrap(), None);
    store.remove_tag(&repository, &tag("latest")).await.unwrap();
    assert_eq!(store.tag(&repository, &tag("latest")).await.unwrap(), None);
    assert!(store.held_tags(&repository).await.unwrap().is_empty());
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_counts_as_absent_and_is_removed() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let repository = repository("a");
    let digest = put(&store, "manifest", 10).await;
    store.put_manifest(&repository, digest, manifest_record(1, &[])).await.unwrap();
    store.put_tag(&repository, &tag("x"), tag_record(digest)).await.unwrap();
    store.put_tag(&repository, &tag("y"), tag_record(digest)).await.unwrap();
    store.close().await;
    for path in rig.files("v1/repositories").iter().filter(|path| !path.ends_with("y.json")) {
        std::fs::write(path, "{\"digest\":").unwrap();
    }
    let store = rig.open().await;
    assert_eq!(store.tag(&repository, &tag("x")).await.unwrap(), None);
    assert_eq!(store.manifest(&repository, &digest).await.unwrap(), None);
    store.settled().await;
    assert_eq!(store.held_tags(&repository).await.unwrap(), [tag("y")]);
    assert_eq!(rig.files("v1/repositories").len(), 1);
    assert!(rig.metrics.render().contains("cachalot_store_errors_total{op=\"parse\"} 2"));
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn nothing_is_recorded_of_what_is_not_held() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let digest = content("absent", 10).0;
    assert!(!store.put_tag(&repository("a"), &tag("x"), tag_record(digest)).await.unwrap());
    assert!(!store.put_manifest(&repository("a"), digest, manifest_record(1, &[])).await.unwrap());
    assert_eq!(store.tag(&repository("a"), &tag("x")).await.unwrap(), None);
    assert!(rig.files("v1/repositories").is_empty());
    assert_eq!(store.snapshot().present_bytes, 0);
}

#[tokio::test]
async fn records_of_what_is_gone_are_removed_at_boot() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let digest = put(&store, "manifest", 10).await;
    store.put_manifest(&repository("a/b"), digest, manifest_record(1, &[])).await.unwrap();
    store.put_tag(&repository("a/b"), &tag("x"), tag_record(digest)).await.unwrap();
    store.close().await;
    std::fs::remove_file(rig.blob_path(&digest)).unwrap();
    let store = rig.open().await;
    store.settled().await;
    assert!(rig.files("v1/repositories").is_empty());
    assert!(!rig.path("v1/repositories/docker.io").exists());
    assert_eq!(store.snapshot().present_bytes, 0);
}

#[tokio::test]
async fn the_newest_manifest_that_lists_a_digest_answers_for_it() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let repository = repository("a");
    let layer = content("layer", 10).0;
    for (name, fetched) in [("old", 3), ("newest", 9), ("new", 7)] {
        let manifest = put(&store, name, 10).await;
        store.put_manifest(&repository, manifest, manifest_record(fetched, &[layer])).await.unwrap();
    }
    let found = store.listed(&repository, &layer).await.unwrap().unwrap();
    assert_eq!(found.size_bytes, 9);
    assert_eq!(store.listed(&self::repository("b"), &layer).await.unwrap(), None);

    let foreign = content("foreign", 10).0;
    let manifest = put(&store, "windows", 10).await;
    let mut record = manifest_record(9, &[foreign]);
    record.descriptors[0].urls = true;
    store.put_manifest(&repository, manifest, record).await.unwrap();
    assert_eq!(store.listed(&repository, &foreign).await.unwrap(), None, "its registry need not hold it");
}

#[tokio::test]
async fn what_upstream_confirmed_and_what_was_public_survives_a_restart() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let repository = repository("a");
    let (layer, other) = (content("layer", 10).0, content("other", 10).0);
    let manifest = put(&store, "manifest", 10).await;
    let mut record = manifest_record(5, &[layer, other]);
    record.public = false;
    store.put_manifest(&repository, manifest, record).await.unwrap();
    store.confirm(&repository, &layer).await.unwrap();
    store.confirm(&repository, &content("stranger", 1).0).await.unwrap();
    store.close().await;

    let store = rig.open().await;
    let listed = |confirmed| Some(Listed { size_bytes: 5, confirmed });
    assert_eq!(store.listed(&repository, &layer).await.unwrap(), listed(true));
    assert_eq!(store.listed(&repository, &other).await.unwrap(), listed(false));
    assert_eq!(store.is_public(&repository).await.unwrap(), Some(false));
    let manifest = put(&store, "another", 10).await;
    store.put_manifest(&repository, manifest, manifest_record(1, &[])).await.unwrap();
    assert_eq!(store.is_public(&repository).await.unwrap(), Some(true));
    assert_at_rest(&store).await;
}

#[tokio::test]
async fn what_was_confirmed_at_once_or_before_a_refetch_is_not_forgotten() {
    let rig = Rig::new(8 * MIB);
    let store = rig.open().await;
    let repository = repository("a");
    let layers: Vec<Digest> = (0..8).map(|n| content(&n.to_string(), 10).0).collect();
    let manifest = put(&store, "manifest", 10).await;
    store.put_manifest(&repository, manifest, manifest_record(5, &layers)).await.unwrap();
    let confirming = layers.iter().map(|layer| store.confirm(&repository, layer));
    futures_util::future::try_join_all(confirming).await.unwrap();
    let refetched = ManifestRecord { public: false, ..manifest_record(6, &layers) };
    store.put_manifest(&repository, manifest, refetched).await.unwrap();
    store.close().await;

    let store = rig.open().await;
    for layer in &layers {
        assert!(store.listed(&repository, layer).await.unwrap().unwrap().confirmed, "{layer}");
    }
    assert_eq!(store.is_public(&repository).await.unwrap(), Some(true), "it was had without credentials once");
}

#[tokio::test]
async fn held_lists_have_a_bound_and_the_oldest_goes() {
    let rig = Rig::new(2 * MIB);
    let store = rig.open().await;
    let list = |len| ListRecord { fetched: Timestamp(1), body: "x".repeat(len) };
    assert!(!store.put_list(&repository("a"), &ListName::Referrers(content("a", 1).0), list(40_000)).await.unwrap());
    for n in 0..30 {
        let name = ListName::Referrers(content(&n.to_string(), 5).0);
        assert!(store.put_list(&repository(&format!("r{n}")), &name, list(5000)).await.unwrap());
        assert_eq!(store.list(&repository(&format!("r{n}")), &name).await.unwrap().unwrap().body.len(), 5000);
    }
    assert_eq!(rig.files("v1/repositories").len(), 3);
    let snapshot = store.snapshot();
    assert!(snapshot.record_bytes <= 2 * MIB / 64, "{snapshot:?}");
    assert_at_rest(&store).await;
}
