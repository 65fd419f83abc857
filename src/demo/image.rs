//! Images made on the spot: real tar layers of pseudo-random bytes, a configuration and manifest a platform, an index.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::oci::Digest;
use crate::oci::media::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};

/// What an image should hold. The same specification makes the same bytes, and so the same digests, everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// What the pseudo-random bytes start from. Images of different seeds share no layer.
    pub seed: u64,
    /// One entry a platform, at least one.
    pub platforms: Vec<PlatformSpec>,
}

/// The part of an image that one platform pulls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformSpec {
    /// The architecture as OCI names it: `amd64`, `arm64`. The operating system is always `linux`.
    pub architecture: &'static str,
    /// The size of the one file in each layer. The layer is about 2 KiB larger.
    pub file_bytes: Vec<usize>,
}

/// A blob or a manifest: bytes, what they are and what they hash to. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// The media type that a descriptor gives for it.
    pub media_type: &'static str,
    /// The bytes.
    pub bytes: Bytes,
}

/// An image as it lies in a registry.
#[derive(Clone, Debug)]
pub struct Image {
    /// The index over all platforms: what a tag points at.
    pub index: Content,
    /// The platforms, in the order of the specification.
    pub platforms: Vec<PlatformImage>,
}

/// One platform of an image.
#[derive(Clone, Debug)]
pub struct PlatformImage {
    /// The architecture as OCI names it.
    pub architecture: &'static str,
    /// The platform's manifest.
    pub manifest: Content,
    /// The platform's configuration.
    pub config: Content,
    /// The layers, lowest first.
    pub layers: Vec<Content>,
}

/// Not compressed, since random bytes don't compress; so a layer's digest is its `diff_id` as well.
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

// === impl Image ===

impl Image {
    /// Makes the image. This computes for about a second per GiB and never waits.
    pub fn generate(spec: &ImageSpec) -> Self {
        let mut seeds = Random(spec.seed);
        let platforms: Vec<_> = spec.platforms.iter().map(|part| PlatformImage::generate(part, &mut seeds)).collect();
        let manifests: Vec<Value> = platforms
            .iter()
            .map(|part| {
                let mut descriptor = part.manifest.descriptor();
                descriptor["platform"] = json!({ "architecture": part.architecture, "os": "linux" });
                descriptor
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        Self { index: Content::json(OCI_INDEX, &index), platforms }
    }

    /// The part for an architecture, if the image has one.
    pub fn platform(&self, architecture: &str) -> Option<&PlatformImage> {
        self.platforms.iter().find(|part| part.architecture == architecture)
    }

    /// Body bytes of one pull for an architecture: the index, its manifest and its blobs, each once. 0 without such a part.
    pub fn pull_bytes(&self, architecture: &str) -> u64 {
        self.platform(architecture).map_or(0, |part| {
            let blobs: usize = part.blobs().map(|blob| blob.bytes.len()).sum();
            (self.index.bytes.len() + part.manifest.bytes.len() + blobs) as u64
        })
    }
}

// === impl PlatformImage ===

impl PlatformImage {
    fn generate(spec: &PlatformSpec, seeds: &mut Random) -> Self {
        let layers: Vec<Content> = spec
            .file_bytes
            .iter()
            .enumerate()
            .map(|(n, bytes)| Content::new(OCI_LAYER, layer(&format!("layer-{n}.bin"), *bytes, seeds.next())))
            .collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
        let config = json!({
            "architecture": spec.architecture,
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Content::json(OCI_CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
        });
        Self { architecture: spec.architecture, manifest: Content::json(OCI_MANIFEST, &manifest), config, layers }
    }

    /// The configuration and the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Content> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

// === impl Content ===

impl Content {
    /// Hashes `bytes`.
    pub fn new(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::sha256(&bytes), media_type, bytes }
    }

    fn json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, value.to_string())
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.bytes.len() })
    }
}

/// A tar archive with one file of pseudo-random bytes, so that a container runtime can unpack it.
fn layer(name: &str, file_bytes: usize, seed: u64) -> Vec<u8> {
    const BLOCK: usize = 512;
    let padded = file_bytes.next_multiple_of(BLOCK);
    // A header, the file, and two empty blocks as the end of the archive.
    let mut tar = vec![0; BLOCK + padded + 2 * BLOCK];
    let (header, rest) = tar.split_at_mut(BLOCK);
    for (at, field) in [
        (0, name.as_bytes()),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, format!("{file_bytes:011o}\0").as_bytes()),
        (136, b"00000000000\0"),
        // The checksum is computed with spaces in its own place.
        (148, b"        "),
        (156, b"0"),
        (257, b"ustar\x0000"),
    ] {
        header[at..at + field.len()].copy_from_slice(field);
    }
    let checksum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{checksum:06o}\0 ").as_bytes());
    Random(seed).fill(&mut rest[..file_bytes]);
    tar
}

/// `SplitMix64`: the same bytes for the same seed, now and with any version of any library, at gigabytes a second.
struct Random(u64);

// === impl Random ===

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(seed: u64) -> ImageSpec {
        ImageSpec {
            seed,
            platforms: vec![
                PlatformSpec { architecture: "amd64", file_bytes: vec![1000, 512, 0] },
                PlatformSpec { architecture: "arm64", file_bytes: vec![7] },
            ],
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_image_and_another_seed_shares_no_layer() {
        let (one, two, other) = (Image::generate(&spec(1)), Image::generate(&spec(1)), Image::generate(&spec(2)));
        assert_eq!(one.index, two.index);
        assert_ne!(one.index.digest, other.index.digest);
        assert_ne!(one.platforms[0].layers[1].digest, other.platforms[0].layers[1].digest);
        let mut first = [0; 20];
        Random(0).fill(&mut first);
        assert_eq!(hex::encode(first), "afcd1d7b39a820e2f465b9a16a9e786e4f450980", "SplitMix64 is what others compute");
    }

    #[test]
    fn digests_sizes_and_platforms_of_all_parts_fit_together() {
        let image = Image::generate(&spec(1));
        let index: Value = serde_json::from_slice(&image.index.bytes).unwrap();
        let mut bytes = image.index.bytes.len();
        for (n, part) in image.platforms.iter().enumerate() {
            assert_eq!(index["manifests"][n]["digest"], part.manifest.digest.to_string());
            assert_eq!(index["manifests"][n]["platform"]["architecture"], part.architecture);
            let manifest: Value = serde_json::from_slice(&part.manifest.bytes).unwrap();
            let config: Value = serde_json::from_slice(&part.config.bytes).unwrap();
            assert_eq!(manifest["config"]["digest"], Digest::sha256(&part.config.bytes).to_string());
            for (n, layer) in part.layers.iter().enumerate() {
                assert_eq!(layer.digest, Digest::sha256(&layer.bytes));
                assert_eq!(manifest["layers"][n]["digest"], layer.digest.to_string());
                assert_eq!(manifest["layers"][n]["size"], layer.bytes.len());
                assert_eq!(config["rootfs"]["diff_ids"][n], layer.digest.to_string());
            }
            if n == 0 {
                bytes += part.manifest.bytes.len() + part.blobs().map(|blob| blob.bytes.len()).sum::<usize>();
            }
        }
        assert_eq!(image.pull_bytes("amd64"), bytes as u64);
        assert_eq!(image.pull_bytes("s390x"), 0);
    }

    #[test]
    fn a_layer_is_a_tar_archive() {
        let tar = layer("layer-0.bin", 1000, 5);
        assert_eq!(tar.len(), 512 + 1024 + 1024);
        assert_eq!(&tar[124..136], b"00000001750\0");
        let stored = u32::from_str_radix(std::str::from_utf8(&tar[148..154]).unwrap(), 8).unwrap();
        let mut header = tar[..512].to_vec();
        header[148..156].fill(b' ');
        assert_eq!(stored, header.iter().map(|byte| u32::from(*byte)).sum::<u32>());
        assert!(tar[512 + 1000..].iter().all(|byte| *byte == 0));
    }
}
