//! Bundles as a whole: out of one store and into another, damaged, cut short, strange and hostile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

use super::tar::{end, header, padding};
use super::*;
use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::oci::{Digest, ImageName, Manifest, Reference, Verified, media};
use crate::store::{self, Budget, ManifestRecord, Store, TagRecord};

const MIB: u64 = 1 << 20;

/// A store in a folder of its own, in memory where the system has a place for that: syncing a disk takes its time.
struct Rig {
    store: Store,
    folder: TempDir,
}

impl Rig {
    async fn new(capacity_bytes: u64) -> Self {
        let folder = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let store = Self::open(folder.path(), capacity_bytes).await;
        Self { store, folder }
    }

    async fn open(folder: &Path, capacity_bytes: u64) -> Store {
        let options = store::Options {
            path: folder.join("data"),
            budget: Arc::new(move |_| Budget { capacity_bytes, min_free_bytes: 0, min_free_inodes: 0 }),
            lock_wait: Duration::ZERO,
            shrink_grace: Duration::ZERO,
            offline: false,
            io_threads: 2,
            faults: None,
        };
        Store::open(options, Arc::new(Metrics::new())).await.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn put(&self, bytes: impl Into<Bytes>) -> Value {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let descriptor = json!({ "digest": digest, "size": bytes.len() });
        self.store.put_blob(Verified::check(&digest, &bytes).unwrap(), bytes).await.unwrap();
        descriptor
    }

    /// Holds a manifest as a mirror does that fetched it.
    async fn manifest(&self, image: &str, public: bool, content: Value) -> Value {
        let bytes = Bytes::from(format!("{content}\n"));
        let manifest = Manifest::parse(&bytes, None).unwrap();
        let mut descriptor = self.put(bytes.clone()).await;
        descriptor["mediaType"] = manifest.media_type.clone().into();
        let (name, digest) = (name(image), digest(&descriptor));
        let record = ManifestRecord {
            media_type: manifest.media_type.clone(),
            size_bytes: bytes.len() as u64,
            fetched: Timestamp(1),
            subject: manifest.subject.as_ref().map(|subject| subject.digest),
            artifact_type: manifest.artifact_type.clone(),
            descriptors: manifest.descriptors().cloned().collect(),
            public,
            confirmed: Vec::new(),
        };
        assert!(self.store.put_manifest(&name.repository, digest, record).await.unwrap());
        descriptor
    }

    async fn tag(&self, image: &str, descriptor: &Value) {
        let name = name(image);
        let Reference::Tag(tag) = &name.reference else { return };
        let (digest, media_type) = (digest(descriptor), descriptor["mediaType"].as_str().unwrap().to_owned());
        let record = TagRecord { digest, media_type, fetched: Timestamp(1), checked: Timestamp(1), gone: None };
        assert!(self.store.put_tag(&name.repository, tag, record).await.unwrap());
    }

    async fn image(&self, image: &str, architecture: &str, layer: impl Into<Bytes>) -> Value {
        let layer = layer.into();
        let config =
            json!({ "os": "linux", "architecture": architecture, "rootfs": { "diff_ids": [Digest::sha256(&layer)] } });
        let mut config = self.put(config.to_string()).await;
        config["mediaType"] = media::OCI_CONFIG.into();
        let mut layer = self.put(layer).await;
        layer["mediaType"] = media::OCI_LAYER.into();
        let content =
            json!({ "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [layer] });
        self.manifest(image, true, content).await
    }

    /// An index for two platforms with a signature, and an image.
    async fn fill(&self) -> &Self {
        let mut children = Vec::new();
        for architecture in ["amd64", "arm64"] {
            let mut child = self.image("quay.io/a/multi:1", architecture, format!("layer for {architecture}")).await;
            child["platform"] = json!({ "os": "linux", "architecture": architecture });
            children.push(child);
        }
        let content = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": children });
        let index = self.manifest("quay.io/a/multi:1", true, content).await;
        self.tag("quay.io/a/multi:1", &index).await;
        self.sign("quay.io/a/multi:1", &index).await;
        let image = self.image("nginx:1.27", "amd64", "nginx").await;
        self.tag("nginx:1.27", &image).await;
        self
    }

    async fn sign(&self, image: &str, subject: &Value) {
        let config = self.put("{}").await;
        let layer = self.put("signed").await;
        let signature = json!({
            "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": "application/x.signature",
            "config": config, "layers": [layer], "subject": subject, "annotations": { "who": "me" },
        });
        self.manifest(image, true, signature).await;
    }

    async fn export(&self, images: &[&str]) -> Result<Vec<u8>, BundleError> {
        let (mut reader, writer) = tokio::io::duplex(64 << 10);
        let wanted = wanted(images);
        let read = async {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        let export = export(&self.store, &wanted, Destination::Stream(Box::pin(writer)), &|_| {});
        let (bytes, exported) = tokio::join!(read, export);
        exported.map(|_| bytes)
    }

    async fn import(&self, bundle: &[u8], options: &Options) -> Result<Imported, BundleError> {
        let bundle = std::io::Cursor::new(bundle.to_vec());
        import(&self.store, Source::Stream(Box::pin(bundle)), options, &|_| {}).await
    }

    async fn import_plainly(&self, bundle: &[u8]) -> Result<Imported, BundleError> {
        self.import(bundle, &Options::default()).await
    }

    /// Everything that can be seen from outside.
    async fn holds(&self) -> (Vec<(Digest, u64)>, Vec<String>) {
        self.store.settled().await;
        let images = self.store.images().await.unwrap();
        let images =
            images.iter().map(|image| format!("{} {} {}", image.image, image.digest, image.complete)).collect();
        (self.store.held(), images)
    }

    async fn assert_empty(&self, why: &str) {
        assert_eq!(self.holds().await, (vec![], vec![]), "{why}");
        assert_eq!(self.store.audit().await.unwrap(), Vec::<String>::new(), "{why}");
    }
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn digest(descriptor: &Value) -> Digest {
    descriptor["digest"].as_str().unwrap().parse().unwrap()
}

fn wanted(images: &[&str]) -> Wanted {
    Wanted { images: images.iter().map(|image| name(image)).collect(), referrers: true, ..Wanted::default() }
}

/// A tar archive of these files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, content) in files {
        bytes.extend(header(path, content.len() as u64));
        bytes.extend(*content);
        bytes.resize(bytes.len() + padding(content.len() as u64), 0);
    }
    bytes.extend(end());
    bytes
}

const ALL: [&str; 2] = ["quay.io/a/multi:1", "docker.io/library/nginx:1.27"];

#[tokio::test]
async fn what_is_exported_is_imported_with_all_that_belongs_to_it_and_exported_alike() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(64 * MIB).await);
    from.fill().await;
    let bundle = from.export(&ALL).await.unwrap();
    assert_eq!(bundle, from.export(&[ALL[1], ALL[0], ALL[0]]).await.unwrap());
    let pin = Some("site".parse().unwrap());
    let imported = to.import(&bundle, &Options { pin, ..Options::default() }).await.unwrap();
    assert_eq!(to.holds().await, from.holds().await);
    let names: Vec<_> = imported.images.iter().map(|image| image.image.to_string()).collect();
    assert_eq!(names, ["docker.io/library/nginx:1.27", "quay.io/a/multi:1"]);
    assert_eq!((imported.referrers.len(), imported.brought_blobs, imported.unused_blobs), (1, 13, 0));
    assert_eq!(to.export(&ALL).await.unwrap(), bundle, "the bundle of a bundle is the same");
    let by_pin = Wanted { pin: Some("site".parse().unwrap()), referrers: true, ..Wanted::default() };
    let path = to.path("again.tar");
    export(&to.store, &by_pin, Destination::File(path.clone()), &|_| {}).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bundle);

    let multi = name(ALL[0]);
    let subject = to.store.tag(&multi.repository, &"1".parse().unwrap()).await.unwrap().unwrap().digest;
    assert_eq!(to.store.referring(&multi.repository, &subject).await.unwrap().len(), 1);
    let record = to.store.manifest(&multi.repository, &subject).await.unwrap().unwrap();
    assert!(record.public && record.confirmed.len() == 2 && !to.store.had_credentials());

    let again = to.import_plainly(&bundle).await.unwrap();
    assert_eq!((again.brought_blobs, again.held_blobs), (0, 13));
    assert_eq!(to.holds().await, from.holds().await);
}

/// Servers will do it too, on tasks.
#[tokio::test]
async fn exports_and_imports_may_run_as_tasks() {
    fn on_a_task<T: Send>(work: T) -> T {
        work
    }
    let rig = Rig::new(MIB).await;
    let options = Options::default();
    let wanted = Wanted::default();
    assert!(on_a_task(export(&rig.store, &wanted, Destination::Stdout, &|_| {})).await.is_err());
    let nothing = Source::Stream(Box::pin(std::io::Cursor::new(Vec::new())));
    assert!(on_a_task(import(&rig.store, nothing, &options, &|_| {})).await.is_err());
}

#[tokio::test]
async fn folders_and_packed_archives_are_the_same_bundle() {
    let from = Rig::new(64 * MIB).await;
    from.fill().await;
    let bundle = from.export(&ALL).await.unwrap();
    let folder = from.path("folder");
    export(&from.store, &wanted(&ALL), Destination::Folder(folder.clone()), &|_| {}).await.unwrap();
    let (mut gzip, mut zstd) = (Vec::new(), Vec::new());
    GzipEncoder::new(&bundle[..]).read_to_end(&mut gzip).await.unwrap();
    ZstdEncoder::new(&bundle[..]).read_to_end(&mut zstd).await.unwrap();
    for (file, content) in [("b.tar", &bundle), ("b.tar.gz", &gzip), ("b.tar.zst", &zstd)] {
        std::fs::write(from.path(file), content).unwrap();
    }
    for path in ["folder", "b.tar", "b.tar.gz", "b.tar.zst"] {
        let to = Rig::new(64 * MIB).await;
        import(&to.store, Source::Path(from.path(path)), &Options::default(), &|_| {}).await.unwrap();
        assert_eq!(to.holds().await, from.holds().await, "{path}");
    }
    let to = Rig::new(64 * MIB).await;
    for cut in [gzip.len() - 1, gzip.len() / 2, 5] {
        assert!(to.import_plainly(&gzip[..cut]).await.is_err());
        to.assert_empty("a packed archive was cut").await;
    }
}

#[tokio::test]
async fn every_flipped_byte_is_found_or_harmless_and_nothing_half_stays() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(64 * MIB).await);
    let image = from.image("nginx:1", "amd64", "layer").await;
    from.tag("nginx:1", &image).await;
    from.sign("nginx:1", &image).await;
    let (bundle, right) = (from.export(&["nginx:1"]).await.unwrap(), from.holds().await);
    let (mut harmless, mut refused) = (0, 0);
    for at in 0..bundle.len() {
        let mut wrong = bundle.clone();
        wrong[at] ^= 0x21;
        if to.import_plainly(&wrong).await.is_err() {
            refused += 1;
        } else {
            harmless += 1;
            assert_eq!(to.holds().await, right, "{at}");
            for image in to.store.images().await.unwrap() {
                to.store.remove_image(&image.image).await.unwrap();
            }
        }
        if at % 64 == 0 {
            to.assert_empty(&format!("a byte was flipped at {at}")).await;
        }
    }
    // What is harmless fills up blocks.
    assert!(refused > bundle.len() / 2 && harmless > 0, "{refused} {harmless}");
    to.assert_empty("after all").await;
    to.import_plainly(&bundle).await.unwrap();
    assert_eq!(to.holds().await, right);
}

#[tokio::test]
async fn what_is_damaged_is_named() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(64 * MIB).await);
    from.fill().await;
    let bundle = from.export(&ALL).await.unwrap();
    let layer = Digest::sha256(b"layer for arm64");
    let at = bundle.windows(15).position(|window| window == b"layer for arm64").unwrap();
    let mut wrong = bundle.clone();
    wrong[at] ^= 1;
    let message = to.import_plainly(&wrong).await.unwrap_err().to_string();
    assert!(message.contains(&layer.hex()) && message.contains("damaged"), "{message}");
    let at = bundle.windows(5).position(|window| window == b"multi").unwrap();
    let mut wrong = bundle.clone();
    wrong[at] ^= 1;
    let message = to.import_plainly(&wrong).await.unwrap_err().to_string();
    assert!(message.contains("index.json"), "{message}");
    to.assert_empty("damaged").await;
}

#[tokio::test]
async fn a_bundle_cut_anywhere_is_refused_and_nothing_of_it_stays() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(64 * MIB).await);
    from.fill().await;
    let bundle = from.export(&ALL).await.unwrap();
    // One of the two blocks at the end is enough to know that it is the end.
    for cut in (0..bundle.len() - 512).step_by(512).chain([1, 100, 700, bundle.len() - 1025]) {
        assert!(to.import_plainly(&bundle[..cut]).await.is_err(), "{cut}");
        let path = to.path("cut.tar");
        std::fs::write(&path, &bundle[..cut]).unwrap();
        assert!(import(&to.store, Source::Path(path), &Options::default(), &|_| {}).await.is_err(), "{cut}");
    }
    to.assert_empty("cut").await;
    to.import_plainly(&bundle[..bundle.len() - 512]).await.unwrap();
    assert_eq!(to.holds().await, from.holds().await);
}

#[tokio::test]
async fn an_index_travels_with_its_digest_and_the_platforms_that_are_held() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(64 * MIB).await);
    from.fill().await;
    let narrow = Wanted { platforms: vec!["linux/arm64".to_owned()], ..wanted(&ALL[..1]) };
    let path = from.path("narrow.tar");
    let exported = export(&from.store, &narrow, Destination::File(path.clone()), &|_| {}).await.unwrap();
    assert_eq!(exported.images[0].platforms, ["linux/arm64"]);
    let imported = import(&to.store, Source::Path(path), &Options::default(), &|_| {}).await.unwrap();
    assert_eq!(imported.images[0].digest, exported.images[0].digest);
    assert_eq!(
        (&imported.images[0].platforms[..], &imported.images[0].left_out[..]),
        (&["linux/arm64".to_owned()][..], &["linux/amd64".to_owned()][..])
    );
    assert_eq!(to.store.images().await.unwrap()[0].platforms, ["linux/arm64"]);
    // From there on, it is what is held that travels.
    let bundle = to.export(&ALL[..1]).await.unwrap();
    assert!(bundle.windows(12).any(|window| window == b"manifest.jso"), "one platform: docker's list is there");
    let other = Wanted { platforms: vec!["linux/amd64".to_owned()], ..narrow };
    let refused = export(&to.store, &other, Destination::File(to.path("x.tar")), &|_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("linux/amd64 is not there"), "{refused}");
    assert!(!to.path("x.tar").exists());
}

#[tokio::test]
async fn what_refers_to_an_image_travels_however_it_says_so() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(64 * MIB).await);
    let image = from.image("nginx:1", "amd64", "layer").await;
    from.tag("nginx:1", &image).await;
    from.sign("nginx:1", &image).await;
    let hex = digest(&image).hex();
    // By cosign's tag, and by the fallback tag of registries without a list, which leads to an SBOM with a signature of its own.
    let cosign = from.image("nginx:1", "amd64", "cosign").await;
    from.tag(&format!("nginx:sha256-{hex}.sig"), &cosign).await;
    let config = from.put("{}").await;
    let bill = json!({ "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [], "subject": image });
    let bill = from.manifest("nginx:1", true, bill).await;
    let list = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [bill] });
    let list = from.manifest("nginx:1", true, list).await;
    from.tag(&format!("nginx:sha256-{hex}"), &list).await;
    from.sign("nginx:1", &bill).await;
    // One that isn't all there stays behind, and so does what refers to something else.
    let broken = json!({ "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [{ "digest": Digest::sha256(b"absent"), "size": 6 }], "subject": image });
    let broken = from.manifest("nginx:1", true, broken).await;
    let other = from.image("nginx:2", "amd64", "other").await;
    from.tag("nginx:2", &other).await;
    from.sign("nginx:2", &other).await;

    let path = from.path("b.tar");
    let exported = export(&from.store, &wanted(&["nginx:1"]), Destination::File(path.clone()), &|_| {}).await.unwrap();
    assert_eq!(exported.left_behind, [name(&format!("nginx@{}", digest(&broken)))]);
    assert_eq!(exported.referrers.len(), 5, "{:?}", exported.referrers);
    let imported = import(&to.store, Source::Path(path.clone()), &Options::default(), &|_| {}).await.unwrap();
    assert_eq!((imported.images.len(), imported.referrers.len()), (1, 5));
    let repository = name("nginx").repository;
    for tag in [format!("sha256-{hex}"), format!("sha256-{hex}.sig")] {
        assert!(to.store.tag(&repository, &tag.parse().unwrap()).await.unwrap().is_some(), "{tag}");
    }
    for (subject, count) in [(&image, 2), (&bill, 1)] {
        assert_eq!(to.store.referring(&repository, &digest(subject)).await.unwrap().len(), count);
    }
    assert!(to.store.tag(&repository, &"2".parse().unwrap()).await.unwrap().is_none());

    let alone = Wanted { referrers: false, ..wanted(&["nginx:1"]) };
    let exported = export(&from.store, &alone, Destination::File(path), &|_| {}).await.unwrap();
    assert_eq!((exported.blobs, exported.referrers.len()), (3, 0));
}

#[tokio::test]
async fn what_is_held_in_part_or_damaged_is_not_exported() {
    let rig = Rig::new(64 * MIB).await;
    rig.fill().await;
    assert!(matches!(rig.export(&["quay.io/x:1"]).await, Err(BundleError::NotHeld(_))));
    assert!(matches!(rig.export(&[]).await, Err(BundleError::Nothing(_))));
    let layer = Digest::sha256(b"layer for arm64");
    let file = rig.path("data/v1/blobs/sha256").join(&layer.hex()[..2]).join(layer.hex());
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "layer for ARM64").unwrap();
    let path = rig.path("x.tar");
    let damaged = export(&rig.store, &wanted(&ALL), Destination::File(path.clone()), &|_| {}).await.unwrap_err();
    assert!(damaged.to_string().contains(&layer.to_string()), "{damaged}");
    rig.store.check_and_heal_blob(&layer, None).await;
    let missing = export(&rig.store, &wanted(&ALL), Destination::File(path.clone()), &|_| {}).await.unwrap_err();
    let message = missing.to_string();
    assert!(message.contains(&format!("quay.io/a/multi:1: linux/arm64: {layer} (15 bytes) is not there")), "{message}");
    let left: Vec<_> = std::fs::read_dir(rig.folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["data"]);
}

#[tokio::test]
async fn an_import_that_was_interrupted_is_run_again() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(64 * MIB).await);
    let large = Bytes::from(vec![7; 5 << 20]);
    let image = from.image("nginx:1", "amd64", large).await;
    from.tag("nginx:1", &image).await;
    let bundle = from.export(&["nginx:1"]).await.unwrap();
    for part in [1000, bundle.len() / 2, bundle.len() - 2000] {
        // The rest never comes, and whoever waits for it goes away.
        let (writer, mut sender) = tokio::io::duplex(64 << 10);
        let start = &bundle[..part];
        let options = Options::default();
        let importing = import(&to.store, Source::Stream(Box::pin(writer)), &options, &|_| {});
        let sending = async { tokio::io::AsyncWriteExt::write_all(&mut sender, start).await.unwrap() };
        tokio::select! {
            biased;
            _ = importing => panic!("it can't end"),
            () = sending => {}
        }
        assert!(to.holds().await.1.is_empty());
    }
    to.import_plainly(&bundle).await.unwrap();
    assert_eq!(to.holds().await, from.holds().await);
    assert_eq!(to.store.audit().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_anything_is_written() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(4 * MIB).await);
    let image = from.image("nginx:1", "amd64", Bytes::from(vec![7; 5 << 20])).await;
    from.tag("nginx:1", &image).await;
    let path = from.path("large.tar");
    export(&from.store, &wanted(&["nginx:1"]), Destination::File(path.clone()), &|_| {}).await.unwrap();
    let refused = import(&to.store, Source::Path(path), &Options::default(), &|_| {}).await.unwrap_err();
    let message = refused.to_string();
    assert!(matches!(refused, BundleError::NoRoom(_)) && message.contains(&(4 * MIB).to_string()), "{message}");
    to.assert_empty("no room").await;
    let bundle = from.export(&["nginx:1"]).await.unwrap();
    assert!(matches!(to.import_plainly(&bundle).await, Err(BundleError::Store(_))));
    to.assert_empty("no room, and nobody could know").await;
}

#[tokio::test]
async fn what_is_pinned_makes_no_room_and_what_is_not_does() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(12 * MIB).await);
    let image = from.image("nginx:1", "amd64", Bytes::from(vec![7; 8 << 20])).await;
    from.tag("nginx:1", &image).await;
    let path = from.path("large.tar");
    export(&from.store, &wanted(&["nginx:1"]), Destination::File(path.clone()), &|_| {}).await.unwrap();
    let held = to.image("held:1", "amd64", Bytes::from(vec![8; 6 << 20])).await;
    to.tag("held:1", &held).await;
    let (pin, before) = ("site".parse().unwrap(), to.holds().await);
    let roots = store::Pin { roots: vec![name("held:1")], platforms: vec![], referrers: false, created: Timestamp(1) };
    to.store.pin(&pin, roots).await.unwrap();
    let refused = import(&to.store, Source::Path(path.clone()), &Options::default(), &|_| {}).await.unwrap_err();
    assert!(matches!(&refused, BundleError::NoRoom(store::NoRoom::Kept { .. })), "{refused}");
    assert!(refused.to_string().contains("unpin and remove something"), "{refused}");
    assert_eq!(to.holds().await, before);
    to.store.unpin(&pin).await.unwrap();
    let options = Options { pin: Some(pin), ..Options::default() };
    import(&to.store, Source::Path(path), &options, &|_| {}).await.unwrap();
    let images: Vec<_> = to.store.images().await.unwrap().into_iter().filter(|image| image.complete).collect();
    assert!(images.len() == 1 && images[0].image == name("nginx:1") && images[0].pins.len() == 1, "{images:?}");
}

#[tokio::test]
async fn archives_of_docker_without_a_layout_get_a_manifest() {
    let to = Rig::new(64 * MIB).await;
    let layers = [Bytes::from("first"), Bytes::from(vec![9; 3 << 20])];
    let ids: Vec<_> = layers.iter().map(|layer| Digest::sha256(layer)).collect();
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": ids } }).to_string();
    let config_name = format!("{}.json", Digest::sha256(config.as_bytes()).hex());
    let list = |layers: [&str; 2]| {
        json!([{ "Config": config_name, "RepoTags": ["app:1", "quay.io/app:2"], "Layers": layers }]).to_string()
    };
    let named: Vec<_> = ids.iter().map(|id| format!("{}.tar", id.hex())).collect();
    let podman = list([&named[0], &named[1]]);
    let podman = archive(&[
        (&named[0], &layers[0]),
        (&named[1], &layers[1]),
        (&config_name, config.as_bytes()),
        ("manifest.json", podman.as_bytes()),
        ("repositories", b"{}"),
    ]);
    let imported = to.import_plainly(&podman).await.unwrap();
    assert!(imported.images.len() == 2 && imported.images.iter().all(|image| image.is_made_here && image.public));
    let first = to.holds().await;
    assert!(first.1.iter().all(|image| image.ends_with("true")), "{:?}", first.1);

    let named: Vec<_> = ids.iter().map(|id| format!("{}.tar.gz", id.hex())).collect();
    let id = Digest::sha256(config.as_bytes()).to_string();
    for config_name in [id.as_str(), "config.json"] {
        let list = json!([{ "Config": config_name, "RepoTags": ["app:1"], "Layers": named }]).to_string();
        let crane = [
            (config_name, config.as_bytes()),
            (&named[0], &layers[0]),
            (&named[1], &layers[1]),
            ("manifest.json", list.as_bytes()),
        ];
        to.import_plainly(&archive(&crane)).await.unwrap();
        assert_eq!(to.holds().await, first, "{config_name}");
    }

    let old = list(["1/layer.tar", "2/layer.tar"]);
    let old = |first: &[u8]| {
        archive(&[
            ("1/layer.tar", first),
            ("2/layer.tar", &layers[1]),
            (&config_name, config.as_bytes()),
            ("manifest.json", old.as_bytes()),
        ])
    };
    let path = to.path("old.tar");
    std::fs::write(&path, old(&layers[0])).unwrap();
    import(&to.store, Source::Path(path.clone()), &Options::default(), &|_| {}).await.unwrap();
    assert_eq!(to.holds().await, first, "the same image has the same manifest");
    assert!(matches!(to.import_plainly(&old(&layers[0])).await, Err(BundleError::NeedsFile(_))));
    std::fs::write(&path, old(b"FIRST")).unwrap();
    let damaged = import(&to.store, Source::Path(path), &Options::default(), &|_| {}).await.unwrap_err();
    assert!(damaged.to_string().contains("1/layer.tar: it is damaged"), "{damaged}");
    assert_eq!(to.holds().await, first);
}

type Files = Vec<(String, Vec<u8>)>;

/// The files of a layout with one image that is called like this.
fn layout_with(annotations: &Value) -> Files {
    let (config, layer) = (b"{}".to_vec(), b"layer".to_vec());
    let listed = |bytes: &[u8]| json!({ "digest": Digest::sha256(bytes), "size": bytes.len() });
    let manifest = json!({ "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": listed(&config), "layers": [listed(&layer)] });
    let manifest = manifest.to_string().into_bytes();
    let mut descriptor = listed(&manifest);
    descriptor["mediaType"] = media::OCI_MANIFEST.into();
    descriptor["annotations"] = annotations.clone();
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string().into_bytes();
    let mut files = vec![];
    for blob in [config, layer, manifest] {
        files.push((layout::blob_path(&Digest::sha256(&blob)), blob));
    }
    files.push(("index.json".to_owned(), index));
    files.push(("oci-layout".to_owned(), layout::layout()));
    files
}

fn packed(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    archive(&files.iter().map(|(path, content)| (path.as_str(), &content[..])).collect::<Vec<_>>())
}

#[tokio::test]
async fn images_without_a_name_need_one() {
    let to = Rig::new(64 * MIB).await;
    for annotations in [json!({}), json!({ "org.opencontainers.image.ref.name": "v1" })] {
        let bundle = packed(&layout_with(&annotations));
        let refused = to.import_plainly(&bundle).await.unwrap_err().to_string();
        assert!(refused.contains("--as REGISTRY/REPOSITORY"), "{refused}");
        to.assert_empty("no name").await;
    }
    let bundle = packed(&layout_with(&json!({ "org.opencontainers.image.ref.name": "v1" })));
    let under = Options { under: Some(name("quay.io/a/b").repository), public: Some(false), ..Options::default() };
    let imported = to.import(&bundle, &under).await.unwrap();
    assert_eq!(imported.images[0].image, name("quay.io/a/b:v1"));
    assert!(!imported.images[0].public && to.store.had_credentials());
    assert_eq!(to.store.is_public(&name("quay.io/a/b").repository).await.unwrap(), Some(false));
    let imported = to.import(&packed(&layout_with(&json!({}))), &under).await.unwrap();
    assert!(matches!(imported.images[0].image.reference, Reference::Digest(_)));
}

#[tokio::test]
async fn hostile_archives_are_refused_and_leave_nothing() {
    let to = Rig::new(64 * MIB).await;
    let right = layout_with(&json!({ "io.containerd.image.name": "quay.io/a:1" }));
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = right.clone();
        change(&mut files);
        packed(&files)
    };
    let raw = |bytes: Vec<u8>| [bytes, packed(&right)].concat();
    let typed = |kind: u8| {
        let mut made = header("x", 0);
        let before = u64::from(made[156]);
        made[156] = kind;
        let sum: u64 = made.iter().map(|byte| u64::from(*byte)).sum::<u64>()
            - made[148..156].iter().map(|byte| u64::from(*byte)).sum::<u64>()
            + 256;
        made[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_ne!(before, u64::from(kind));
        made
    };
    let mut cases = vec![
        ("nothing", Vec::new()),
        ("an empty archive", archive(&[])),
        ("no tar at all", vec![b'x'; 4096]),
        ("a name that leads up", with(&|files| files.push(("../x".to_owned(), vec![])))),
        ("an absolute name", with(&|files| files.push(("/x".to_owned(), vec![])))),
        ("the same name twice", with(&|files| files.push(files[0].clone()))),
        ("the same name in two spellings", with(&|files| files.push(("./index.json".to_owned(), vec![])))),
        ("a digest that is none", with(&|files| files.push(("blobs/sha256/abc".to_owned(), vec![])))),
        ("an algorithm that is none", with(&|files| files.push((format!("blobs/md5/{}", "a".repeat(32)), vec![])))),
        ("content of another digest", with(&|files| files[1].1.push(1))),
        ("a missing layer", with(&|files| drop(files.remove(1)))),
        ("a missing manifest", with(&|files| drop(files.remove(2)))),
        ("no oci-layout", with(&|files| drop(files.pop()))),
        ("an index that is none", with(&|files| files[3].1 = b"[]".to_vec())),
        ("an index of nothing", with(&|files| files[3].1 = b"{\"manifests\":[]}".to_vec())),
        ("a huge index", with(&|files| files[3].1.resize(33 << 20, b' '))),
        ("a size of exbibytes", raw(header(&format!("blobs/sha256/{}", "a".repeat(64)), i64::MAX as u64))),
        ("a layer larger than the store", raw(header(&format!("blobs/sha256/{}", "a".repeat(64)), 1 << 40))),
    ];
    for kind in [b'1', b'3', b'4', b'6', b'S'] {
        cases.push(("a strange kind", raw(typed(kind))));
    }
    for (what, bundle) in cases {
        let stream = to.import_plainly(&bundle).await;
        assert!(stream.is_err(), "{what}");
        std::fs::write(to.path("x.tar"), &bundle).unwrap();
        let file = import(&to.store, Source::Path(to.path("x.tar")), &Options::default(), &|_| {}).await;
        assert!(file.is_err(), "{what}");
        to.assert_empty(what).await;
    }
    to.import_plainly(&packed(&right)).await.unwrap();
}

#[tokio::test]
async fn what_a_bundle_only_names_is_not_opened_by_it() {
    let to = Rig::new(64 * MIB).await;
    // Somebody else's, and private.
    to.put("layer").await;
    let mut files = layout_with(&json!({ "io.containerd.image.name": "quay.io/a:1" }));
    files.remove(1);
    let refused = to.import_plainly(&packed(&files)).await.unwrap_err().to_string();
    assert!(refused.contains("is not there"), "{refused}");
    assert_eq!(to.holds().await.0.len(), 1);
}

#[tokio::test]
async fn of_a_registry_s_storage_comes_in_what_is_complete() {
    let (from, to) = (Rig::new(64 * MIB).await, Rig::new(64 * MIB).await);
    from.fill().await;
    // As docker-registry lays it out.
    let root = from.path("registry");
    let base = root.join("docker/registry/v2");
    let write = |path: PathBuf, content: &[u8]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    let data = |digest: &Digest| {
        let hex = digest.hex();
        base.join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    };
    for (digest, _) in from.store.held() {
        let bytes = from.store.read_blob(&digest).await.unwrap().unwrap();
        write(data(&digest), &bytes);
    }
    for image in from.store.images().await.unwrap() {
        let manifests = base.join("repositories").join(image.image.repository.name.as_str()).join("_manifests");
        let link = image.digest.to_string();
        if let Reference::Tag(tag) = &image.image.reference {
            write(manifests.join("tags").join(tag.as_str()).join("current/link"), link.as_bytes());
        }
        write(manifests.join("revisions/sha256").join(image.digest.hex()).join("link"), link.as_bytes());
    }
    write(
        base.join("repositories/broken/_manifests/tags/1/current/link"),
        Digest::sha256(b"gone").to_string().as_bytes(),
    );
    let nginx = Digest::sha256(b"nginx");
    write(data(&nginx), b"NGINX");
    let source = || Source::Registry(root.clone(), "quay.io".parse().unwrap());
    let imported = import(&to.store, source(), &Options::default(), &|_| {}).await.unwrap();
    let names: Vec<_> = imported.images.iter().map(|image| image.image.to_string()).collect();
    assert_eq!(names, ["quay.io/a/multi:1"]);
    assert_eq!(imported.images[0].platforms, ["linux/amd64", "linux/arm64"]);
    let all = imported.left_out.join("\n");
    assert!(
        all.contains(&nginx.hex()) && all.contains("quay.io/broken:1") && all.contains("quay.io/library/nginx:1.27"),
        "{all}"
    );
    write(data(&nginx), b"nginx");
    let imported = import(&to.store, source(), &Options::default(), &|_| {}).await.unwrap();
    assert_eq!((imported.images.len(), imported.left_out.len()), (2, 1), "{:?}", imported.left_out);
    let names: Vec<_> = to.store.images().await.unwrap().iter().map(|image| image.image.to_string()).collect();
    assert!(names.iter().any(|name| name == "quay.io/library/nginx:1.27"), "{names:?}");
    assert_eq!(to.store.held(), from.store.held());
}
