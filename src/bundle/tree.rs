//! What belongs to an image, as far as it is there: its manifests, its blobs, and which platforms are whole, missing or broken.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::Future;

use bytes::Bytes;

use super::error::BundleError;
use crate::oci::{Descriptor, Digest, Manifest, media};

/// Where content is looked for: the store, or a bundle.
pub(super) trait Content {
    /// How long something is, if it's there.
    fn size_of(&self, digest: &Digest) -> Option<u64>;

    /// The bytes of a manifest, if it's there.
    fn manifest(&self, digest: &Digest) -> impl Future<Output = Result<Option<Bytes>, BundleError>> + Send;
}

/// An image, or what refers to one, with everything that belongs to it and is there.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// The root, and of an index the manifests that are there with all that they list.
    pub(super) manifests: Vec<Part>,
    /// Configurations and layers, with their sizes.
    pub(super) blobs: BTreeMap<Digest, u64>,
    /// The platforms of an index that are whole.
    pub(super) platforms: Vec<String>,
    /// The platforms of an index of which nothing is there.
    pub(super) left_out: Vec<String>,
    /// What should be there and isn't, in sentences.
    pub(super) missing: Vec<String>,
}

/// A manifest.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) manifest: Manifest,
    /// It says something about another part (an attestation of a builder), and is not an image.
    pub(super) is_attestation: bool,
}

/// A manifest that is still to be looked at.
struct Pending {
    digest: Digest,
    media_type: String,
    size_bytes: Option<u64>,
    /// What it runs on; empty if nobody says.
    platform: String,
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Root,
    /// One of an index, which may be missing as a whole.
    Child,
    /// One of an index that was asked for by its platform.
    Wanted,
    /// One of an index that says something about another one, and may be missing.
    Attestation,
}

/// So many manifests belong to an image at most.
const MANIFESTS_MAX: usize = 10_000;

/// The digest of the image that an attestation is about.
const ATTESTED: &str = "vnd.docker.reference.digest";

/// Whether a platform is one of those that were asked for: `linux/arm64` is `linux/arm64/v8` too, and the other way round.
fn fits(platform: &str, wanted: &[String]) -> bool {
    wanted.iter().any(|wanted| {
        let wanted = if wanted.ends_with("/arm64/v8") { wanted.trim_end_matches("/v8") } else { wanted };
        platform.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

// === impl Tree ===

impl Tree {
    /// Looks at all that a root leads to. Of an index only the platforms that are `wanted`, or all if none are named.
    pub(super) async fn grow(
        content: &impl Content,
        root: Digest,
        media_type: &str,
        wanted: &[String],
    ) -> Result<Self, BundleError> {
        let mut tree = Self::default();
        let mut seen = HashSet::new();
        let media_type = media_type.to_owned();
        let mut pending =
            vec![Pending { digest: root, media_type, size_bytes: None, platform: String::new(), role: Role::Root }];
        while let Some(next) = pending.pop() {
            if !seen.insert(next.digest) {
                continue;
            }
            if seen.len() > MANIFESTS_MAX {
                return Err(BundleError::TooMany { what: "manifests in an image", limit: MANIFESTS_MAX });
            }
            let Some(bytes) = content.manifest(&next.digest).await? else {
                tree.lacks_manifest(&next);
                continue;
            };
            let media_type = Some(next.media_type.as_str()).filter(|media_type| !media_type.is_empty());
            let manifest = Manifest::parse(&bytes, media_type)
                .map_err(|source| BundleError::Manifest { digest: next.digest, source })?;
            let size_bytes = bytes.len() as u64;
            if let Some(listed_bytes) = next.size_bytes.filter(|listed_bytes| *listed_bytes != size_bytes) {
                tree.missing.push(wrong_size(&next.digest, listed_bytes, size_bytes));
                continue;
            }
            if manifest.is_index() {
                pending.extend(tree.children(content, &manifest, wanted));
            } else if !tree.take_blobs(content, &manifest, &next) {
                continue;
            }
            let (digest, is_attestation) = (next.digest, next.role == Role::Attestation);
            tree.manifests.push(Part { digest, size_bytes, manifest, is_attestation });
        }
        tree.expect_something();
        Ok(tree)
    }

    /// Everything that it consists of, with sizes.
    pub(super) fn contents(&self) -> impl Iterator<Item = (Digest, u64)> {
        let manifests = self.manifests.iter().map(|part| (part.digest, part.size_bytes));
        manifests.chain(self.blobs.iter().map(|(digest, size_bytes)| (*digest, *size_bytes)))
    }

    /// The manifests of images among its own.
    pub(super) fn images(&self) -> impl Iterator<Item = &Part> {
        self.manifests.iter().filter(|part| !part.manifest.is_index() && !part.is_attestation)
    }

    fn lacks_manifest(&mut self, lacking: &Pending) {
        match lacking.role {
            Role::Root => self.missing.push(format!("its manifest {} is not there", lacking.digest)),
            Role::Wanted => self.missing.push(format!("{} is not there", lacking.name())),
            Role::Child => self.left_out.push(lacking.name()),
            Role::Attestation => {}
        }
    }

    /// Notes what an image manifest lists. `false`: it doesn't count as there.
    fn take_blobs(&mut self, content: &impl Content, manifest: &Manifest, of: &Pending) -> bool {
        let (mut found, mut missing, mut wrong) = (BTreeMap::new(), Vec::new(), Vec::new());
        for descriptor in manifest.descriptors() {
            match content.size_of(&descriptor.digest) {
                Some(size_bytes) if size_bytes == descriptor.size_bytes => {
                    found.insert(descriptor.digest, size_bytes);
                }
                Some(size_bytes) => wrong.push(wrong_size(&descriptor.digest, descriptor.size_bytes, size_bytes)),
                None if descriptor.is_foreign() => {}
                None => missing.push(descriptor),
            }
        }
        if missing.is_empty() && wrong.is_empty() {
            self.blobs.append(&mut found);
            if of.role != Role::Attestation && !of.platform.is_empty() {
                self.platforms.push(of.platform.clone());
            }
            return true;
        }
        match of.role {
            Role::Attestation if wrong.is_empty() => {}
            // Only its manifest was ever looked at.
            Role::Child if wrong.is_empty() && found.is_empty() => self.left_out.push(of.name()),
            _ => {
                let prefix = if of.platform.is_empty() { String::new() } else { format!("{}: ", of.platform) };
                let lacking = |descriptor: &&Descriptor| {
                    format!("{prefix}{} ({} bytes) is not there", descriptor.digest, descriptor.size_bytes)
                };
                self.missing.extend(missing.iter().map(lacking));
                self.missing.extend(wrong.into_iter().map(|what| format!("{prefix}{what}")));
            }
        }
        false
    }

    /// The children of an index that are to be looked at, the last first.
    fn children(&mut self, content: &impl Content, index: &Manifest, wanted: &[String]) -> Vec<Pending> {
        let platform = |child: &Descriptor| child.platform.as_ref().map(ToString::to_string).unwrap_or_default();
        let is_attestation = |child: &&Descriptor| child.annotations.contains_key(ATTESTED);
        let kept: Vec<_> = index
            .manifests
            .iter()
            .filter(|child| !is_attestation(child))
            .filter(|child| wanted.is_empty() || child.platform.is_none() || fits(&platform(child), wanted))
            .collect();
        let digests: BTreeSet<String> = kept.iter().map(|child| child.digest.to_string()).collect();
        let attestations = index.manifests.iter().filter(is_attestation).filter(|child| {
            child.annotations.get(ATTESTED).is_some_and(|digest| wanted.is_empty() || digests.contains(digest))
        });
        if kept.is_empty() && !wanted.is_empty() && !index.manifests.is_empty() {
            let all: Vec<_> = index.manifests.iter().filter(|child| !is_attestation(child)).map(platform).collect();
            self.missing.push(format!("it is not for {}, but for {}", wanted.join(", "), all.join(", ")));
        }
        let pending = |child: &Descriptor, role| Pending {
            digest: child.digest,
            media_type: child.media_type.clone(),
            size_bytes: Some(child.size_bytes),
            platform: platform(child),
            role,
        };
        let role = |child: &Descriptor| match child.platform {
            Some(_) if !wanted.is_empty() => Role::Wanted,
            _ => Role::Child,
        };
        let mut children = Vec::new();
        for (child, role) in kept
            .into_iter()
            .map(|child| (child, role(child)))
            .chain(attestations.map(|child| (child, Role::Attestation)))
        {
            // Some indexes list blobs, which nobody could tell from manifests by their bytes.
            if child.media_type.is_empty() || media::is_manifest_type(&child.media_type) {
                children.push(pending(child, role));
            } else if let Some(size_bytes) = content.size_of(&child.digest) {
                self.blobs.insert(child.digest, size_bytes);
            } else {
                self.left_out.push(pending(child, role).name());
            }
        }
        children.reverse();
        children
    }

    /// An index of which no platform is there is nothing to take along.
    fn expect_something(&mut self) {
        let lists = self.manifests.iter().any(|part| !part.manifest.manifests.is_empty());
        if lists && self.images().next().is_none() && self.blobs.is_empty() && self.missing.is_empty() {
            self.missing.push(format!("none of what it lists is there: {}", self.left_out.join(", ")));
        }
    }
}

// === impl Pending ===

impl Pending {
    fn name(&self) -> String {
        if self.platform.is_empty() { self.digest.to_string() } else { self.platform.clone() }
    }
}

fn wrong_size(digest: &Digest, listed_bytes: u64, found_bytes: u64) -> String {
    format!("{digest} is listed with {listed_bytes} bytes and has {found_bytes}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::*;

    /// Content in memory.
    #[derive(Default)]
    struct World(HashMap<Digest, Bytes>);

    impl Content for World {
        fn size_of(&self, digest: &Digest) -> Option<u64> {
            self.0.get(digest).map(|bytes| bytes.len() as u64)
        }

        async fn manifest(&self, digest: &Digest) -> Result<Option<Bytes>, BundleError> {
            Ok(self.0.get(digest).cloned())
        }
    }

    impl World {
        fn put(&mut self, bytes: impl Into<Bytes>) -> Value {
            let bytes = bytes.into();
            let digest = Digest::sha256(&bytes);
            let descriptor = json!({ "digest": digest, "size": bytes.len() });
            self.0.insert(digest, bytes);
            descriptor
        }

        fn put_manifest(&mut self, content: &Value) -> Value {
            let mut descriptor = self.put(content.to_string());
            descriptor["mediaType"] = content["mediaType"].clone();
            descriptor
        }

        fn image(&mut self, name: &str) -> Value {
            let (config, layer) = (self.put(format!("config of {name}")), self.put(format!("layer of {name}")));
            self.put_manifest(&json!({ "mediaType": media::OCI_MANIFEST, "config": config, "layers": [layer] }))
        }

        /// An index over two platforms and an attestation of the first.
        fn index(&mut self) -> Digest {
            let mut children = ["amd64", "arm64"].map(|architecture| {
                let mut child = self.image(architecture);
                child["platform"] = json!({ "os": "linux", "architecture": architecture });
                child
            });
            let mut attestation = self.image("attestation");
            attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
            attestation["annotations"] = json!({ ATTESTED: children[0]["digest"] });
            let index =
                self.put_manifest(&json!({ "mediaType": media::OCI_INDEX, "manifests": [children[0].take(), children[1].take(), attestation] }));
            digest(&index)
        }

        fn remove(&mut self, content: &str) {
            self.0.remove(&Digest::sha256(content.as_bytes())).unwrap();
        }

        async fn grow(&self, root: Digest, wanted: &[&str]) -> Tree {
            let wanted: Vec<_> = wanted.iter().map(|wanted| (*wanted).to_owned()).collect();
            Tree::grow(self, root, "", &wanted).await.unwrap()
        }
    }

    fn digest(descriptor: &Value) -> Digest {
        descriptor["digest"].as_str().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn an_index_that_is_all_there_is_taken_as_a_whole() {
        let mut world = World::default();
        let index = world.index();
        let tree = world.grow(index, &[]).await;
        assert_eq!(tree.platforms, ["linux/amd64", "linux/arm64"]);
        assert_eq!((tree.manifests.len(), tree.blobs.len(), tree.images().count()), (4, 6, 2));
        assert_eq!((tree.left_out.len(), tree.missing.len()), (0, 0));
        assert_eq!(tree.manifests[0].digest, index);
    }

    #[tokio::test]
    async fn platforms_that_are_asked_for_come_with_their_attestations() {
        let mut world = World::default();
        let index = world.index();
        assert_eq!(world.grow(index, &["linux/amd64"]).await.manifests.len(), 3);
        assert_eq!(world.grow(index, &["linux/arm64"]).await.manifests.len(), 2);
        let tree = world.grow(index, &["linux/s390x"]).await;
        assert_eq!(tree.missing, ["it is not for linux/s390x, but for linux/amd64, linux/arm64"]);
    }

    #[tokio::test]
    async fn platforms_of_which_nothing_is_there_are_left_out_unless_asked_for() {
        let mut world = World::default();
        let index = world.index();
        for name in ["arm64", "attestation"] {
            world.remove(&format!("config of {name}"));
            world.remove(&format!("layer of {name}"));
        }
        let tree = world.grow(index, &[]).await;
        assert_eq!(
            (tree.platforms, tree.left_out, tree.missing),
            (vec!["linux/amd64".to_owned()], vec!["linux/arm64".to_owned()], vec![])
        );
        assert_eq!(tree.manifests.len(), 2);
        assert_eq!(world.grow(index, &["linux/arm64"]).await.missing.len(), 2);
        for part in ["config", "layer"] {
            world.remove(&format!("{part} of amd64"));
        }
        assert!(world.grow(index, &[]).await.missing[0].starts_with("none of what it lists is there"));
    }

    #[tokio::test]
    async fn platforms_that_are_there_in_part_are_broken() {
        let mut world = World::default();
        let index = world.index();
        world.remove("layer of arm64");
        let missing = world.grow(index, &[]).await.missing;
        assert!(missing.len() == 1 && missing[0].starts_with("linux/arm64: sha256:"), "{missing:?}");
        assert!(world.grow(index, &["linux/amd64"]).await.missing.is_empty());
        let absent = world.grow(Digest::sha256(b"absent"), &[]).await;
        assert_eq!(absent.missing.len(), 1);
    }

    #[tokio::test]
    async fn sizes_that_are_not_so_are_told() {
        let mut world = World::default();
        let mut layer = world.put("layer");
        layer["size"] = 6.into();
        let config = world.put("config");
        let image =
            world.put_manifest(&json!({ "mediaType": media::OCI_MANIFEST, "config": config, "layers": [layer] }));
        let missing = world.grow(digest(&image), &[]).await.missing;
        assert!(missing[0].ends_with("is listed with 6 bytes and has 5"), "{missing:?}");
    }
}
