//! Small deterministic images: configurations, layers, manifests, indexes and artifacts that refer to them.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Bytes and the digest they have, computed here and not by the code under test.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) bytes: Bytes,
}

/// A manifest or an index.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) bytes: Bytes,
}

/// A manifest with all that it lists.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Manifest,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

/// An index over images for several platforms.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub(crate) manifest: Manifest,
    pub(crate) images: Vec<Image>,
}

/// The SHA-256 digest of `bytes`, in the form that registries write it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The SHA-512 digest of `bytes`, in the form that registries write it.
pub(crate) fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}

/// `len` bytes that look random and are the same for the same `seed` (splitmix64).
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

// === impl Blob ===

impl Blob {
    pub(crate) fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: sha256(&bytes), bytes }
    }

    /// A blob of `len` bytes of [`noise`].
    pub(crate) fn noise(seed: u64, len: usize) -> Self {
        Self::new(noise(seed, len))
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.len() })
    }
}

// === impl Manifest ===

impl Manifest {
    /// Serialises `content` with line breaks in unusual places, so that a mirror that re-serialises is found out.
    pub(crate) fn new(media_type: &str, content: &Value) -> Self {
        let bytes = Bytes::from(format!("{}\n\n", serde_json::to_string_pretty(content).unwrap()));
        Self { media_type: media_type.to_owned(), digest: sha256(&bytes), bytes }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }

    /// The fallback tag of the referrers of this manifest.
    pub(crate) fn fallback_tag(&self) -> String {
        self.digest.replace(':', "-")
    }
}

// === impl Image ===

impl Image {
    /// An image in OCI form with layers of these sizes.
    pub(crate) fn new(seed: u64, layer_sizes: &[usize]) -> Self {
        Self::build(seed, layer_sizes, OCI_MANIFEST, "amd64")
    }

    /// The same in Docker's schema 2 form.
    pub(crate) fn docker(seed: u64, layer_sizes: &[usize]) -> Self {
        Self::build(seed, layer_sizes, DOCKER_MANIFEST, "amd64")
    }

    /// An image in OCI form with these layers.
    pub(crate) fn of(seed: u64, layers: Vec<Blob>) -> Self {
        Self::assemble(seed, layers, OCI_MANIFEST, "amd64")
    }

    fn build(seed: u64, layer_sizes: &[usize], media_type: &str, architecture: &str) -> Self {
        let layers = (1u64..).zip(layer_sizes).map(|(n, size)| Blob::noise(seed.wrapping_mul(1000) + n, *size));
        Self::assemble(seed, layers.collect(), media_type, architecture)
    }

    fn assemble(seed: u64, layers: Vec<Blob>, media_type: &str, architecture: &str) -> Self {
        let (config_type, layer_type) = if media_type == DOCKER_MANIFEST {
            ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
        } else {
            (OCI_CONFIG, OCI_LAYER)
        };
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest.clone()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "author": format!("seed {seed}"),
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Blob::new(config.to_string());
        let content = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(config_type),
            "layers": layers.iter().map(|layer| layer.descriptor(layer_type)).collect::<Vec<_>>(),
        });
        Self { manifest: Manifest::new(media_type, &content), config, layers }
    }

    /// An artifact without layers that says something about `subject` (a signature, an attestation, an SBOM).
    pub(crate) fn artifact(seed: u64, artifact_type: &str, subject: &Manifest) -> Self {
        let config = Blob::new("{}");
        let layer = Blob::noise(seed, 60);
        let content = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": artifact_type,
            "config": config.descriptor(EMPTY), "layers": [layer.descriptor("application/octet-stream")],
            "subject": subject.descriptor(), "annotations": { "org.example.seed": seed.to_string() },
        });
        Self { manifest: Manifest::new(OCI_MANIFEST, &content), config, layers: vec![layer] }
    }

    /// The configuration and the layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

// === impl Index ===

impl Index {
    /// An index over one image each for amd64 and arm64.
    pub(crate) fn new(seed: u64, layer_sizes: &[usize]) -> Self {
        let images: Vec<_> = (0u64..)
            .zip(["amd64", "arm64"])
            .map(|(n, architecture)| Image::build(seed + n, layer_sizes, OCI_MANIFEST, architecture))
            .collect();
        let manifests: Vec<_> = images
            .iter()
            .zip(["amd64", "arm64"])
            .map(|(image, architecture)| {
                let mut descriptor = image.manifest.descriptor();
                descriptor["platform"] = json!({ "architecture": architecture, "os": "linux" });
                descriptor
            })
            .collect();
        let content = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        Self { manifest: Manifest::new(OCI_INDEX, &content), images }
    }
}
