//! What is served: an image as a tree of files, laid out as its URLs are, so that a web server serves it as it is.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use cachalot::oci::Digest;
use sha2::{Digest as _, Sha256};

/// The repository of everything here.
pub(crate) const REPOSITORY: &str = "library/bench";

/// Where the tree lies, and what is in it.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) root: PathBuf,
}

/// An image of one layer, and a configuration like real ones.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) tag: String,
    pub(crate) manifest: Digest,
    pub(crate) layer: Digest,
    pub(crate) size_bytes: u64,
}

// === impl Content ===

impl Content {
    pub(crate) fn new(root: &Path) -> io::Result<Self> {
        for kind in ["manifests", "blobs"] {
            fs::create_dir_all(root.join("v2").join(REPOSITORY).join(kind))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Makes an image whose layer has this size. Layers of equal size differ if their seeds do.
    pub(crate) fn image(&self, tag: &str, size_bytes: u64, seed: u64) -> io::Result<Image> {
        let config =
            self.blob(format!("{{\"architecture\":\"amd64\",\"os\":\"linux\",\"seed\":{seed}}}").as_bytes())?;
        let layer = self.noise(size_bytes, seed)?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1 },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": size_bytes }],
            // As long as that of an image of ten layers.
            "annotations": { "org.opencontainers.image.description": "x".repeat(1500) },
        });
        let manifest = manifest.to_string();
        let digest = Digest::sha256(manifest.as_bytes());
        for reference in [tag.to_owned(), digest.to_string()] {
            fs::write(self.path(&format!("manifests/{reference}")), &manifest)?;
        }
        Ok(Image { tag: tag.to_owned(), manifest: digest, layer: layer.parse().map_err(io::Error::other)?, size_bytes })
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.root.join("v2").join(REPOSITORY).join(rest)
    }

    fn blob(&self, bytes: &[u8]) -> io::Result<(String, usize)> {
        let digest = Digest::sha256(bytes).to_string();
        fs::write(self.path(&format!("blobs/{digest}")), bytes)?;
        Ok((digest, bytes.len()))
    }

    /// A blob of bytes that don't compress.
    fn noise(&self, size_bytes: u64, seed: u64) -> io::Result<String> {
        let staged = self.path("staged");
        let mut file = fs::File::create(&staged)?;
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut chunk = vec![0; 1 << 20];
        let mut hash = Sha256::new();
        let mut left = size_bytes;
        while left > 0 {
            for word in chunk.as_chunks_mut::<8>().0 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *word = state.to_le_bytes();
            }
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            file.write_all(&chunk[..len])?;
            hash.update(&chunk[..len]);
            left -= len as u64;
        }
        file.sync_all()?;
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        fs::rename(staged, self.path(&format!("blobs/{digest}")))?;
        Ok(digest)
    }
}

// === impl Image ===

impl Image {
    pub(crate) fn blob_path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", self.layer)
    }

    pub(crate) fn tag_path(&self) -> String {
        format!("/v2/{REPOSITORY}/manifests/{}", self.tag)
    }

    pub(crate) fn manifest_path(&self) -> String {
        format!("/v2/{REPOSITORY}/manifests/{}", self.manifest)
    }
}
