//! Manifests and indexes as they are read: what they are, and which blobs and manifests they list. Never written back.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::media;

/// The largest manifest that is read, in bytes. Clients take 4 MiB, and the specification asks for no more.
pub const MANIFEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most descriptors that a manifest may list.
pub const DESCRIPTORS_MAX: usize = 10_000;
/// The largest size in a descriptor, in bytes: that of the clients' signed integers, so that sums don't overflow ours.
pub const SIZE_BYTES_MAX: u64 = i64::MAX as u64;

/// How much of the JSON parser's complaint is repeated: it quotes the text that it complains about.
const QUOTED_CHARS_MAX: usize = 200;

/// A manifest, an index or a list, of OCI or Docker schema 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it is and is to be served as: without parameters, fit for a header.
    pub media_type: String,
    /// The type of an artifact, where it says one.
    pub artifact_type: Option<String>,
    /// The manifest that it refers to (as a signature does).
    pub subject: Option<Descriptor>,
    /// Its configuration. Indexes have none.
    pub config: Option<Descriptor>,
    /// Its layers; the blobs of a withdrawn artifact manifest too. Indexes have none.
    pub layers: Vec<Descriptor>,
    /// The children of an index.
    pub manifests: Vec<Descriptor>,
}

/// What a manifest says of something that it lists. Reads the JSON of manifests, and reads and writes that of our records
/// (which know of `urls` only whether there are any).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is; empty if the manifest doesn't say.
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// How large it is, in bytes, at most [`SIZE_BYTES_MAX`].
    #[serde(rename = "size", deserialize_with = "size_bytes")]
    pub size_bytes: u64,
    /// It may be had from elsewhere, and so the registry need not hold it.
    #[serde(default, deserialize_with = "any_urls", skip_serializing_if = "std::ops::Not::not")]
    pub urls: bool,
    /// What the image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The type of the artifact that it describes.
    #[serde(default, deserialize_with = "non_empty", skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// The processor: `amd64`, `arm64`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub architecture: String,
    /// The operating system: `linux`, `windows`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub os: String,
    /// The version of the operating system. Only Windows images say it.
    #[serde(rename = "os.version", default, deserialize_with = "non_empty", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// The variant of the processor: `v7`, `v8`.
    #[serde(default, deserialize_with = "non_empty", skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Why bytes are no manifest that can be mirrored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// There is too much of it.
    #[error("the manifest is too large: {found} bytes, at most {MANIFEST_BYTES_MAX} are read")]
    TooLarge {
        /// How many bytes it has.
        found: usize,
    },
    /// It is not the JSON of a manifest.
    #[error("the manifest cannot be read: {0}")]
    Malformed(String),
    /// It is of the format that preceded today's.
    #[error(
        "the manifest is of Docker schema 1, which clients no longer take and which cannot be verified; the image must be pushed again by a current tool"
    )]
    Schema1,
    /// It is JSON, but lists nothing that manifests list, and names no type of its own.
    #[error("this is not a manifest: it has no config, layers or manifests")]
    NotManifest,
    /// It can be read as an image and as an index, or calls itself one and is the other; clients would not agree on it.
    #[error("the manifest is ambiguous: it says {media_type:?}, but {problem}")]
    Ambiguous {
        /// What it says it is; empty if it doesn't.
        media_type: String,
        /// What speaks against that.
        problem: &'static str,
    },
    /// It lists too much.
    #[error("the manifest lists {found} descriptors, at most {DESCRIPTORS_MAX} are read")]
    TooManyDescriptors {
        /// How many it lists.
        found: usize,
    },
}

/// The fields that are read. The outer option tells a field that is there, even as null, from one that is not.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: Option<i64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default, deserialize_with = "non_empty")]
    artifact_type: Option<String>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "present")]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "present")]
    blobs: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "present")]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

/// What a document looks like, whatever it says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Image,
    Index,
    Neither,
}

// === impl Manifest ===

impl Manifest {
    /// Reads a manifest. `content_type` is what upstream called it.
    ///
    /// The type that the JSON names wins, since it is under the digest and a header is not. Else it is `content_type`, if
    /// that is a manifest's and fits; else (none, `text/plain` and the like) what the shape suggests. A manifest of a type
    /// of its own keeps it. Of a field given twice, neither is believed: the manifest is refused.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, InvalidManifest> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(InvalidManifest::TooLarge { found: bytes.len() });
        }
        let content_type = content_type.map(media::without_parameters).unwrap_or_default();
        if media::is_schema1_type(content_type) {
            return Err(InvalidManifest::Schema1);
        }
        // The derived reader would take a JSON array as the fields in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(InvalidManifest::Malformed("it does not start as a JSON object".to_owned()));
        }
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| InvalidManifest::Malformed(error.to_string().chars().take(QUOTED_CHARS_MAX).collect()))?;
        let media_type = document.resolve_media_type(content_type)?;
        let mut layers = document.layers.unwrap_or_default();
        layers.extend(document.blobs.unwrap_or_default());
        let manifest = Self {
            media_type,
            artifact_type: document.artifact_type,
            subject: document.subject,
            config: document.config,
            layers,
            manifests: document.manifests.unwrap_or_default(),
        };
        match manifest.descriptors().count() {
            found if found > DESCRIPTORS_MAX => Err(InvalidManifest::TooManyDescriptors { found }),
            _ => Ok(manifest),
        }
    }

    /// Everything that it lists: its configuration, its layers, its children; not its subject.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers).chain(&self.manifests)
    }

    /// Is it an index or a list?
    pub fn is_index(&self) -> bool {
        media::is_index_type(&self.media_type)
    }
}

/// What a registry must hold of what a manifest lists: manifests, and everything else.
pub fn manifests_and_blobs<'a>(
    listed: impl Iterator<Item = &'a Descriptor>,
) -> (Vec<&'a Descriptor>, Vec<&'a Descriptor>) {
    listed.filter(|listed| !listed.is_foreign()).partition(|listed| media::is_manifest_type(&listed.media_type))
}

// === impl Descriptor ===

impl Descriptor {
    /// Need the registry not hold it? Then that a manifest lists it proves nothing about who may read it.
    pub fn is_foreign(&self) -> bool {
        self.urls || media::is_nondistributable_type(&self.media_type)
    }
}

// === impl Document ===

impl Document {
    fn shape(&self) -> Result<Shape, &'static str> {
        let image = self.config.is_some() || self.layers.is_some();
        let holds_image = self.config.is_some() || self.layers.as_ref().is_some_and(|layers| !layers.is_empty());
        let holds_index = self.manifests.as_ref().is_some_and(|manifests| !manifests.is_empty());
        match (image, self.manifests.is_some()) {
            (true, true) if holds_image && holds_index => Err("lists both layers and manifests"),
            (true, true) if holds_index => Ok(Shape::Index),
            (true, _) => Ok(Shape::Image),
            (false, true) => Ok(Shape::Index),
            (false, false) => Ok(Shape::Neither),
        }
    }

    fn resolve_media_type(&self, content_type: &str) -> Result<String, InvalidManifest> {
        let own = self.media_type.as_deref().map(media::without_parameters).unwrap_or_default();
        if self.schema_version == Some(1) || self.fs_layers.is_some() || media::is_schema1_type(own) {
            return Err(InvalidManifest::Schema1);
        }
        let ambiguous =
            |problem| InvalidManifest::Ambiguous { media_type: own.chars().take(QUOTED_CHARS_MAX).collect(), problem };
        let shape = self.shape().map_err(ambiguous)?;
        let fits = |media_type: &str| match shape {
            Shape::Image => media::is_image_type(media_type),
            Shape::Index => media::is_index_type(media_type),
            Shape::Neither => false,
        };
        if fits(own) {
            return Ok(own.to_ascii_lowercase());
        }
        if media::is_manifest_type(own) {
            return Err(match shape {
                Shape::Image => ambiguous("lists config or layers"),
                Shape::Index => ambiguous("lists manifests"),
                Shape::Neither => InvalidManifest::NotManifest,
            });
        }
        if media::is_well_formed(own) {
            return Ok(own.to_owned());
        }
        if fits(content_type) {
            return Ok(content_type.to_ascii_lowercase());
        }
        match shape {
            Shape::Index => Ok(media::OCI_INDEX.to_owned()),
            // Docker's manifests always name their type, so one that doesn't is OCI's, unless its configuration is Docker's.
            Shape::Image if self.config.as_ref().is_some_and(|config| config.media_type == media::DOCKER_CONFIG) => {
                Ok(media::DOCKER_MANIFEST.to_owned())
            }
            Shape::Image => Ok(media::OCI_MANIFEST.to_owned()),
            Shape::Neither => Err(InvalidManifest::NotManifest),
        }
    }
}

// Tolerance for what encoders write: null for an empty list or text.

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<Option<T>, D::Error> {
    null_as_default(input).map(Some)
}

fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

fn non_empty<'de, D: Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(input)?.filter(|text| !text.is_empty()))
}

fn size_bytes<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(input)?;
    if size <= SIZE_BYTES_MAX { Ok(size) } else { Err(serde::de::Error::custom("a size beyond 63 bits")) }
}

/// `urls` of a manifest (a list) or of a record of ours (a flag): are there any?
fn any_urls<'de, D: Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    struct Urls;

    impl<'de> Visitor<'de> for Urls {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of URLs")
        }

        fn visit_bool<E>(self, any: bool) -> Result<bool, E> {
            Ok(any)
        }

        fn visit_unit<E>(self) -> Result<bool, E> {
            Ok(false)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut urls: A) -> Result<bool, A::Error> {
            let mut any = false;
            while urls.next_element::<IgnoredAny>()?.is_some() {
                any = true;
            }
            Ok(any)
        }
    }

    input.deserialize_any(Urls)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn digest(seed: u8) -> Digest {
        Digest::sha256(&[seed])
    }

    fn descriptor(media_type: &str, seed: u8) -> Value {
        json!({ "mediaType": media_type, "digest": digest(seed).to_string(), "size": seed })
    }

    fn parse(document: &Value, content_type: Option<&str>) -> Result<Manifest, InvalidManifest> {
        Manifest::parse(document.to_string().as_bytes(), content_type)
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2,
            "config": descriptor(media::OCI_CONFIG, 1),
            "layers": [descriptor(media::OCI_LAYER_GZIP, 2), descriptor(media::OCI_LAYER_GZIP, 3)],
        })
    }

    fn index() -> Value {
        let mut child = descriptor(media::OCI_MANIFEST, 1);
        child["platform"] = json!({ "architecture": "arm", "os": "linux", "variant": "v7", "features": ["x"] });
        json!({ "schemaVersion": 2, "manifests": [child] })
    }

    fn with(mut document: Value, key: &str, value: Value) -> Value {
        document[key] = value;
        document
    }

    #[test]
    fn an_image_lists_its_config_and_layers() {
        let manifest = parse(&with(image(), "mediaType", media::OCI_MANIFEST.into()), None).unwrap();
        assert_eq!(manifest.media_type, media::OCI_MANIFEST);
        assert!(!manifest.is_index());
        let listed: Vec<_> = manifest.descriptors().map(|d| (d.digest, d.size_bytes)).collect();
        assert_eq!(listed, [(digest(1), 1), (digest(2), 2), (digest(3), 3)]);
    }

    #[test]
    fn an_index_lists_its_children_and_their_platforms() {
        let manifest = parse(&index(), Some("application/vnd.docker.distribution.manifest.list.v2+json")).unwrap();
        assert_eq!(manifest.media_type, media::DOCKER_LIST);
        assert!(manifest.is_index());
        let platform = manifest.manifests[0].platform.as_ref().unwrap();
        assert_eq!((platform.os.as_str(), platform.variant.as_deref()), ("linux", Some("v7")));
        assert_eq!(manifest.descriptors().count(), 1);
    }

    #[test]
    fn an_artifact_names_its_type_and_its_subject() {
        let document = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "artifactType": "application/spdx+json",
            "config": descriptor(media::OCI_EMPTY, 1),
            "layers": [],
            "subject": descriptor(media::OCI_INDEX, 9),
            "annotations": { "a": "b" },
        });
        let manifest = parse(&document, None).unwrap();
        assert_eq!(manifest.artifact_type.as_deref(), Some("application/spdx+json"));
        assert_eq!(manifest.subject.as_ref().unwrap().digest, digest(9));
        assert!(manifest.descriptors().all(|d| d.digest != digest(9)));
    }

    #[test]
    fn the_type_is_what_the_json_says_then_what_upstream_says_then_what_it_looks_like() {
        let docker_image = with(image(), "config", descriptor(media::DOCKER_CONFIG, 1));
        let named = |media_type: &str, document: Value| with(document, "mediaType", media_type.into());
        let custom = "application/vnd.example.thing.v1+json";
        for (document, content_type, expected) in [
            (named(media::OCI_MANIFEST, image()), Some(media::DOCKER_MANIFEST), media::OCI_MANIFEST),
            (named(media::DOCKER_LIST, index()), Some(media::OCI_INDEX), media::DOCKER_LIST),
            (image(), Some("application/vnd.docker.distribution.manifest.v2+json; x=y"), media::DOCKER_MANIFEST),
            (named("", image()), Some(media::DOCKER_MANIFEST), media::DOCKER_MANIFEST),
            (image(), Some(media::OCI_INDEX), media::OCI_MANIFEST),
            (index(), Some(media::OCI_MANIFEST), media::OCI_INDEX),
            (image(), Some("text/plain; charset=utf-8"), media::OCI_MANIFEST),
            (image(), Some("application/octet-stream"), media::OCI_MANIFEST),
            (image(), Some(""), media::OCI_MANIFEST),
            (image(), None, media::OCI_MANIFEST),
            (docker_image, None, media::DOCKER_MANIFEST),
            (index(), Some("application/json"), media::OCI_INDEX),
            (json!({ "manifests": null }), None, media::OCI_INDEX),
            (json!({ "layers": null, "manifests": index()["manifests"] }), None, media::OCI_INDEX),
            (json!({ "layers": [], "manifests": null }), None, media::OCI_MANIFEST),
            (named(custom, image()), Some(custom), custom),
            (named(custom, json!({})), None, custom),
            (named("not a type\r\nX: y", image()), None, media::OCI_MANIFEST),
        ] {
            assert_eq!(parse(&document, content_type).unwrap().media_type, expected, "{document} {content_type:?}");
        }
    }

    #[test]
    fn a_withdrawn_artifact_manifest_keeps_its_type_and_lists_its_blobs() {
        let document =
            json!({ "mediaType": media::OCI_ARTIFACT, "artifactType": "a/b", "blobs": [descriptor("a/b", 4)] });
        let manifest = parse(&document, None).unwrap();
        assert_eq!((manifest.media_type.as_str(), manifest.layers.len()), (media::OCI_ARTIFACT, 1));
    }

    #[test]
    fn schema_1_is_refused_by_name_however_it_shows() {
        for (document, content_type) in [
            (json!({ "schemaVersion": 1, "fsLayers": [], "history": [] }), None),
            (json!({ "schemaVersion": 2, "fsLayers": [{ "blobSum": "x" }] }), None),
            (json!({ "mediaType": media::DOCKER_SCHEMA1_SIGNED }), None),
            (image(), Some("application/vnd.docker.distribution.manifest.v1+prettyjws; charset=utf-8")),
        ] {
            assert_eq!(parse(&document, content_type), Err(InvalidManifest::Schema1), "{document}");
        }
    }

    #[test]
    fn what_clients_would_read_differently_is_refused() {
        let both = with(image(), "manifests", index()["manifests"].clone());
        for document in [
            both.clone(),
            with(both, "mediaType", media::OCI_MANIFEST.into()),
            with(image(), "mediaType", media::OCI_INDEX.into()),
            with(index(), "mediaType", media::DOCKER_MANIFEST.into()),
        ] {
            let error = parse(&document, None).unwrap_err();
            assert!(matches!(error, InvalidManifest::Ambiguous { .. }), "{document} {error}");
        }
        let twice = format!(r#"{{"layers":[],"layers":[{}]}}"#, descriptor("a/b", 1));
        assert!(matches!(Manifest::parse(twice.as_bytes(), None), Err(InvalidManifest::Malformed(_))));
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for (bytes, content_type) in [
            (r#"{"errors":[{"code":"UNKNOWN"}]}"#, Some(media::OCI_MANIFEST)),
            (r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#, None),
            ("{}", None),
        ] {
            assert_eq!(Manifest::parse(bytes.as_bytes(), content_type), Err(InvalidManifest::NotManifest), "{bytes}");
        }
        for bytes in ["", "<html></html>", "[]", "null", "1", r#"{"layers":{}}"#, r#"{"layers":[1]}"#, "\u{feff}{}"] {
            let error = Manifest::parse(bytes.as_bytes(), None).unwrap_err();
            assert!(matches!(error, InvalidManifest::Malformed(_)), "{bytes} {error}");
        }
    }

    #[test]
    fn descriptors_are_read_strictly_where_it_counts() {
        let good = descriptor("a/b", 1);
        for (key, value) in [
            ("digest", json!("sha256:12")),
            ("digest", json!("md5:d41d8cd98f00b204e9800998ecf8427e")),
            ("digest", json!(null)),
            ("size", json!(-1)),
            ("size", json!(1.5)),
            ("size", json!("1")),
            ("size", json!(null)),
            ("size", json!(u64::MAX)),
            ("urls", json!("https://a")),
        ] {
            let bad = with(good.clone(), key, value);
            let error = parse(&json!({ "layers": [bad] }), None).unwrap_err();
            assert!(matches!(error, InvalidManifest::Malformed(_)), "{bad} {error}");
        }
        for (key, value) in [
            ("urls", json!(null)),
            ("urls", json!([])),
            ("annotations", json!(null)),
            ("artifactType", json!("")),
            ("platform", json!(null)),
            ("size", json!(SIZE_BYTES_MAX)),
            ("data", json!("e30=")),
            ("unknown", json!({ "a": [1, null] })),
        ] {
            let fine = with(good.clone(), key, value);
            let manifest = parse(&json!({ "layers": [fine] }), None).unwrap();
            assert!(!manifest.layers[0].urls && manifest.layers[0].artifact_type.is_none(), "{fine}");
        }
    }

    #[test]
    fn foreign_layers_are_flagged() {
        let elsewhere = with(descriptor(media::OCI_LAYER_GZIP, 1), "urls", json!(["https://example.com/layer"]));
        let foreign = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", 2);
        let plain = descriptor(media::OCI_LAYER_GZIP, 3);
        let manifest = parse(&json!({ "layers": [elsewhere, foreign, plain] }), None).unwrap();
        assert_eq!(manifest.layers.iter().map(Descriptor::is_foreign).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn a_descriptor_survives_a_record() {
        let mut full = descriptor(media::OCI_MANIFEST, 1);
        full["urls"] = json!(["https://example.com"]);
        full["artifactType"] = json!("a/b");
        full["annotations"] = json!({ "k": "v" });
        full["platform"] = json!({ "architecture": "amd64", "os": "windows", "os.version": "10.0.1" });
        for document in [full, descriptor("a/b", 2)] {
            let read: Descriptor = serde_json::from_value(document).unwrap();
            let record = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<Descriptor>(&record).unwrap(), read);
        }
    }

    #[test]
    fn size_count_and_depth_are_bounded() {
        let spaces = vec![b' '; MANIFEST_BYTES_MAX + 1];
        assert_eq!(Manifest::parse(&spaces, None), Err(InvalidManifest::TooLarge { found: MANIFEST_BYTES_MAX + 1 }));
        let layers = |count: usize| json!({ "layers": vec![descriptor("", 1); count] });
        assert!(parse(&layers(DESCRIPTORS_MAX), None).is_ok());
        assert_eq!(
            parse(&layers(DESCRIPTORS_MAX + 1), None),
            Err(InvalidManifest::TooManyDescriptors { found: DESCRIPTORS_MAX + 1 })
        );
        for deep in [r#"{"x":"#.repeat(100_000), format!(r#"{{"x":{}"#, "[".repeat(1_000_000))] {
            assert!(matches!(Manifest::parse(deep.as_bytes(), None), Err(InvalidManifest::Malformed(_))));
        }
        let long = format!(r#"{{"layers":"{}"}}"#, "x".repeat(1_000_000));
        assert!(Manifest::parse(long.as_bytes(), None).unwrap_err().to_string().len() < 300);
    }

    /// JSON made of the words that manifests are made of.
    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            prop::sample::select(vec![media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_SCHEMA1, "", "sha256:12"])
                .prop_map(Value::from),
            any::<u8>().prop_map(|seed| descriptor(media::OCI_LAYER_GZIP, seed)),
        ];
        let keys = prop::sample::select(vec![
            "schemaVersion",
            "mediaType",
            "artifactType",
            "subject",
            "config",
            "layers",
            "blobs",
            "manifests",
            "urls",
            "fsLayers",
            "digest",
            "size",
            "platform",
            "annotations",
        ])
        .prop_map(str::to_owned);
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(keys.clone(), inner, 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), content_type in any::<String>()) {
            let _ = Manifest::parse(&bytes, Some(&content_type));
        }

        #[test]
        fn what_is_read_has_a_type_that_fits_a_header(document in documents(), content_type in "[ -~]{0,40}") {
            if let Ok(manifest) = parse(&document, Some(&content_type)) {
                prop_assert!(media::is_well_formed(&manifest.media_type));
                prop_assert!(!media::is_schema1_type(&manifest.media_type));
            }
        }

        #[test]
        fn a_damaged_manifest_never_makes_the_reader_panic(at in 0..400_usize, byte in any::<u8>(), cut in 0..400_usize) {
            let mut bytes = image().to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Manifest::parse(&bytes, None);
            bytes.truncate(cut);
            let _ = Manifest::parse(&bytes, None);
        }
    }
}
