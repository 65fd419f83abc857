//! Lists of referrers: read as OCI indexes, merged over pages and sources, filtered by artifact type, written as JSON.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::digest::Digest;
use super::manifest::{DESCRIPTORS_MAX, MANIFEST_BYTES_MAX};
use super::media;
use super::name::Tag;

/// The list of a digest that nothing refers to.
pub const EMPTY_INDEX: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// The value of `OCI-Filters-Applied` when [`Referrers::filter`] was used.
pub const FILTER_APPLIED: &str = "artifactType";

/// A list of referrers. Its descriptors and other fields are kept as they came, known or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Referrers {
    fields: Map<String, Value>,
    manifests: Vec<Value>,
}

/// Why bytes are no list of referrers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReferrers {
    /// There is too much of it.
    #[error("the list of referrers is too large: {found} bytes, at most {MANIFEST_BYTES_MAX} are read")]
    TooLarge {
        /// How many bytes it has.
        found: usize,
    },
    /// It is not JSON.
    #[error("the list of referrers is not JSON: {0}")]
    NotJson(String),
    /// It is JSON, but no OCI index.
    #[error("the list of referrers is not an OCI index: {0}")]
    NotIndex(&'static str),
    /// It lists too much, by itself or merged.
    #[error("the list of referrers is too long: more than {DESCRIPTORS_MAX} entries")]
    TooMany,
}

/// The tag under which clients keep the referrers of a digest where the registry has no API for them:
/// `<algorithm>-<hex>`, the algorithm cut to 32 characters and the hex to 64.
#[expect(clippy::expect_used, reason = "letters, digits and one dash, at most 97 characters, are always a tag")]
pub fn fallback_tag(subject: &Digest) -> Tag {
    let algorithm: String = subject.algorithm().as_str().chars().take(32).collect();
    let hex: String = subject.hex().chars().take(64).collect();
    format!("{algorithm}-{hex}").parse().expect("a legal tag")
}

/// What cosign and its relatives append to the fallback tag of what they sign, attest or describe.
const COSIGN_SUFFIXES: [&str; 3] = ["sig", "att", "sbom"];

/// The tags under which cosign and its relatives keep what they say of a digest.
pub fn cosign_tags(subject: &Digest) -> impl Iterator<Item = Tag> + use<> {
    let fallback = fallback_tag(subject);
    COSIGN_SUFFIXES.iter().filter_map(move |suffix| format!("{fallback}.{suffix}").parse().ok())
}

// === impl Referrers ===

impl Referrers {
    /// The list without entries.
    pub fn empty() -> Self {
        Self { fields: Map::new(), manifests: Vec::new() }
    }

    /// Reads a page of the referrers API, or the index that a fallback tag names.
    ///
    /// It must be an object with `schemaVersion` 2 and a list of `manifests` (null counts as empty), each an object with a
    /// digest; `mediaType` may be missing but not differ.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidReferrers> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(InvalidReferrers::TooLarge { found: bytes.len() });
        }
        let mut fields = match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Err(InvalidReferrers::NotIndex("it is no object")),
            Err(error) => return Err(InvalidReferrers::NotJson(error.to_string())),
        };
        if fields.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
            return Err(InvalidReferrers::NotIndex("schemaVersion is not 2"));
        }
        match fields.get("mediaType") {
            None => {}
            Some(Value::String(media_type)) if matches!(media_type.as_str(), "" | media::OCI_INDEX) => {}
            Some(_) => return Err(InvalidReferrers::NotIndex("mediaType is that of something else")),
        }
        let manifests = match fields.remove("manifests") {
            Some(Value::Array(manifests)) => manifests,
            Some(Value::Null) => Vec::new(),
            _ => return Err(InvalidReferrers::NotIndex("there is no list of manifests")),
        };
        if manifests.len() > DESCRIPTORS_MAX {
            return Err(InvalidReferrers::TooMany);
        }
        if !manifests.iter().all(|entry| entry.get("digest").is_some_and(Value::is_string)) {
            return Err(InvalidReferrers::NotIndex("an entry has no digest"));
        }
        Ok(Self { fields, manifests })
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.manifests.len()
    }

    /// Has it no entries?
    pub fn is_empty(&self) -> bool {
        self.manifests.is_empty()
    }

    /// The digests of its entries, as far as they can be read.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.manifests.iter().filter_map(digest).filter_map(|text| text.parse().ok())
    }

    /// Keeps only the entries of some digests.
    pub fn retain(&mut self, keep: impl Fn(&Digest) -> bool) {
        self.manifests
            .retain(|entry| digest(entry).and_then(|text| text.parse().ok()).is_some_and(|digest| keep(&digest)));
    }

    /// Adds an entry for a manifest, as the distribution specification says that a registry makes them: with the type of the
    /// artifact, or else that of its configuration, and its annotations. It must not be listed yet.
    pub fn add(&mut self, digest: &Digest, media_type: &str, bytes: &[u8]) -> Result<(), InvalidReferrers> {
        let manifest: Value =
            serde_json::from_slice(bytes).map_err(|error| InvalidReferrers::NotJson(error.to_string()))?;
        let own = manifest.get("artifactType").filter(|of| of.as_str().is_some_and(|of| !of.is_empty()));
        let mut entry = Map::new();
        entry.insert("mediaType".to_owned(), media_type.into());
        entry.insert("digest".to_owned(), digest.to_string().into());
        entry.insert("size".to_owned(), bytes.len().into());
        if let Some(of) = own.or_else(|| manifest.pointer("/config/mediaType")) {
            entry.insert("artifactType".to_owned(), of.clone());
        }
        if let Some(annotations) = manifest.get("annotations") {
            entry.insert("annotations".to_owned(), annotations.clone());
        }
        if self.len() >= DESCRIPTORS_MAX {
            return Err(InvalidReferrers::TooMany);
        }
        self.manifests.push(entry.into());
        Ok(())
    }

    /// Adds the entries of `next` (the next page, or the fallback tag's list) whose digests are not listed yet. Of the other
    /// fields, those already here stay.
    pub fn merge(&mut self, next: Self) -> Result<(), InvalidReferrers> {
        let listed: HashSet<&str> = self.manifests.iter().filter_map(digest).collect();
        let fresh: Vec<bool> =
            next.manifests.iter().map(|entry| digest(entry).is_some_and(|text| !listed.contains(text))).collect();
        let count = self.manifests.len() + fresh.iter().filter(|fresh| **fresh).count();
        if count > DESCRIPTORS_MAX {
            return Err(InvalidReferrers::TooMany);
        }
        let entries = next.manifests.into_iter().zip(fresh);
        self.manifests.extend(entries.filter_map(|(entry, fresh)| fresh.then_some(entry)));
        for (key, value) in next.fields {
            self.fields.entry(key).or_insert(value);
        }
        Ok(())
    }

    /// Keeps only entries of one of these artifact types, or all if none is given. An entry that names none is of none.
    pub fn filter(&mut self, artifact_types: &[String]) {
        if artifact_types.is_empty() {
            return;
        }
        self.manifests.retain(|entry| {
            let of = entry.get("artifactType").and_then(Value::as_str);
            of.is_some_and(|of| artifact_types.iter().any(|wanted| wanted == of))
        });
    }

    /// The list as the body of an answer: always with `schemaVersion` and `mediaType`, which clients check.
    pub fn into_json(self) -> String {
        let mut fields = self.fields;
        fields.insert("schemaVersion".to_owned(), 2.into());
        fields.insert("mediaType".to_owned(), media::OCI_INDEX.into());
        fields.insert("manifests".to_owned(), self.manifests.into());
        Value::Object(fields).to_string()
    }
}

fn digest(entry: &Value) -> Option<&str> {
    entry.get("digest").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn entry(seed: u8, artifact_type: &str) -> Value {
        json!({
            "mediaType": media::OCI_MANIFEST,
            "digest": Digest::sha256(&[seed]).to_string(),
            "size": 7,
            "artifactType": artifact_type,
            "annotations": { "org.example": "kept" },
            "x-unknown": [1, null],
        })
    }

    fn list(entries: &[Value]) -> Referrers {
        let document = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries });
        Referrers::parse(document.to_string().as_bytes()).unwrap()
    }

    fn value(referrers: Referrers) -> Value {
        serde_json::from_str(&referrers.into_json()).unwrap()
    }

    #[test]
    fn a_fallback_tag_is_the_digest_with_a_dash_cut_to_64_hex_digits() {
        let short = Digest::Sha256([0xab; 32]);
        assert_eq!(fallback_tag(&short).as_str(), format!("sha256-{}", "ab".repeat(32)));
        let long = Digest::Sha512([0xcd; 64]);
        assert_eq!(fallback_tag(&long).as_str(), format!("sha512-{}", "cd".repeat(32)));
    }

    #[test]
    fn the_empty_list_has_what_clients_check() {
        assert_eq!(value(Referrers::empty()), serde_json::from_str::<Value>(EMPTY_INDEX).unwrap());
        let read = Referrers::parse(EMPTY_INDEX.as_bytes()).unwrap();
        assert!(read.is_empty());
        assert_eq!(value(read), value(Referrers::empty()));
    }

    #[test]
    fn only_an_oci_index_is_read() {
        let with = |key: &str, field: Value| {
            let mut document = serde_json::from_str::<Value>(EMPTY_INDEX).unwrap();
            document[key] = field;
            Referrers::parse(document.to_string().as_bytes())
        };
        assert!(with("mediaType", json!("")).is_ok());
        assert!(with("manifests", json!(null)).is_ok());
        assert!(Referrers::parse(br#"{"schemaVersion":2,"manifests":[]}"#).is_ok());
        for (key, field) in [
            ("mediaType", json!(media::DOCKER_LIST)),
            ("mediaType", json!(media::OCI_MANIFEST)),
            ("mediaType", json!(null)),
            ("schemaVersion", json!(1)),
            ("schemaVersion", json!("2")),
            ("manifests", json!({})),
            ("manifests", json!([1])),
            ("manifests", json!([{ "digest": 1 }])),
            ("manifests", json!([{}])),
        ] {
            assert!(matches!(with(key, field.clone()), Err(InvalidReferrers::NotIndex(_))), "{key} {field}");
        }
        assert!(matches!(Referrers::parse(b"<html>Sign in</html>"), Err(InvalidReferrers::NotJson(_))));
        assert!(matches!(Referrers::parse(b"[]"), Err(InvalidReferrers::NotIndex(_))));
        assert!(matches!(Referrers::parse(b"{}"), Err(InvalidReferrers::NotIndex(_))));
        assert!(matches!(Referrers::parse(br#"{"errors":[]}"#), Err(InvalidReferrers::NotIndex(_))));
    }

    #[test]
    fn filtering_leaves_what_remains_as_it_came() {
        let mut untyped = entry(3, "");
        untyped.as_object_mut().unwrap().remove("artifactType");
        let full = list(&[entry(1, "a/b"), entry(2, "c/d"), untyped, entry(4, "e/f")]);
        let mut filtered = full.clone();
        filtered.filter(&["e/f".to_owned(), "a/b".to_owned()]);
        assert_eq!(value(filtered)["manifests"], json!([entry(1, "a/b"), entry(4, "e/f")]));
        let mut none = full;
        none.filter(&["x/y".to_owned()]);
        assert_eq!(value(none), value(Referrers::empty()));
    }

    #[test]
    fn pages_are_merged_without_doubles_and_the_first_pages_fields_stay() {
        let page = |mark: &str, entries: Vec<Value>| {
            let document =
                json!({ "schemaVersion": 2, "manifests": entries, "annotations": { "page": mark }, mark: 1 });
            Referrers::parse(document.to_string().as_bytes()).unwrap()
        };
        let mut merged = page("first", vec![entry(1, "a/b"), entry(2, "a/b")]);
        merged.merge(page("second", vec![entry(2, "c/d"), entry(3, "c/d")])).unwrap();
        assert_eq!(merged.len(), 3);
        let merged = value(merged);
        assert_eq!(merged["manifests"], json!([entry(1, "a/b"), entry(2, "a/b"), entry(3, "c/d")]));
        assert_eq!((&merged["annotations"]["page"], &merged["second"]), (&json!("first"), &json!(1)));
        assert_eq!(merged["mediaType"], media::OCI_INDEX);
    }

    #[test]
    fn a_list_has_a_longest_form_alone_and_merged() {
        let entries =
            |from: usize, to: usize| (from..to).map(|i| json!({ "digest": i.to_string() })).collect::<Vec<_>>();
        let mut full = list(&entries(0, DESCRIPTORS_MAX));
        assert_eq!(full.merge(list(&entries(0, DESCRIPTORS_MAX))), Ok(()));
        assert_eq!(full.merge(list(&entries(DESCRIPTORS_MAX, DESCRIPTORS_MAX + 1))), Err(InvalidReferrers::TooMany));
        assert_eq!(full.len(), DESCRIPTORS_MAX);
        let document = json!({ "schemaVersion": 2, "manifests": entries(0, DESCRIPTORS_MAX + 1) });
        assert_eq!(Referrers::parse(document.to_string().as_bytes()), Err(InvalidReferrers::TooMany));
        let found = MANIFEST_BYTES_MAX + 1;
        assert_eq!(Referrers::parse(&vec![b' '; found]), Err(InvalidReferrers::TooLarge { found }));
        assert!(matches!(Referrers::parse("[".repeat(1_000_000).as_bytes()), Err(InvalidReferrers::NotJson(_))));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Referrers::parse(&bytes);
        }

        #[test]
        fn a_filter_for_several_types_is_the_union_of_filters_for_each(types in prop::collection::vec(0..4_u8, 0..12)) {
            let name = |kind: &u8| format!("a/{kind}");
            let entries: Vec<_> = (0_u8..).zip(&types).map(|(seed, kind)| entry(seed, &name(kind))).collect();
            let count = |wanted: &[String]| {
                let mut filtered = list(&entries);
                filtered.filter(wanted);
                filtered.len()
            };
            prop_assert_eq!(count(&[name(&0), name(&1)]), count(&[name(&0)]) + count(&[name(&1)]));
            prop_assert_eq!(count(&[]), entries.len());
        }
    }
}
