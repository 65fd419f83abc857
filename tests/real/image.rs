//! What upstream holds under a name, down to the digests of its blobs: what a client must end up with.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::http;

/// The media types of everything that the images of this suite consist of.
const ACCEPT: &str = "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json\r\n";

/// An image as upstream serves it.
pub(crate) struct Image {
    pub(crate) repository: &'static str,
    pub(crate) tag: &'static str,
    /// Of what the tag names: a manifest, or an index of several.
    pub(crate) digest: String,
    /// The bytes that the tag names.
    pub(crate) raw: Vec<u8>,
    /// One for a plain image, several for an index; the one for linux/amd64 comes first.
    pub(crate) platforms: Vec<Platform>,
}

/// The image of one platform.
pub(crate) struct Platform {
    pub(crate) digest: String,
    /// Configuration first, then the layers: digest and size in bytes.
    pub(crate) blobs: Vec<(String, u64)>,
}

/// How an image is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    Tag,
    Digest,
}

// === impl Image ===

impl Image {
    /// Reads the image from the registry on `port`, and checks that each manifest has the digest it is known by.
    pub(crate) fn read(port: u16, repository: &'static str, tag: &'static str) -> Image {
        let raw = manifest(port, repository, tag);
        let digest = sha256(&raw);
        let json: Value = serde_json::from_slice(&raw).expect("a manifest is JSON");
        let platforms = match json["manifests"].as_array() {
            None => vec![Platform::new(digest.clone(), &json)],
            Some(children) => {
                let of_child = |child: &Value| {
                    let digest = text(&child["digest"]);
                    let raw = manifest(port, repository, &digest);
                    assert_eq!(sha256(&raw), digest);
                    Platform::new(digest, &serde_json::from_slice(&raw).expect("a manifest is JSON"))
                };
                let (here, elsewhere): (Vec<_>, Vec<_>) =
                    children.iter().partition(|child| child["platform"]["architecture"] == "amd64");
                assert_eq!(here.len(), 1, "one of the platforms is that of this machine");
                here.into_iter().chain(elsewhere).map(of_child).collect()
            }
        };
        Image { repository, tag, digest, raw, platforms }
    }

    /// `library/x:1` or `library/x@sha256:…`.
    pub(crate) fn name(&self, by: By) -> String {
        match by {
            By::Tag => format!("{}:{}", self.repository, self.tag),
            By::Digest => format!("{}@{}", self.repository, self.digest),
        }
    }

    /// The digests of everything that a client on linux/amd64 needs.
    pub(crate) fn digests(&self) -> BTreeSet<String> {
        let platform = &self.platforms[0];
        let blobs = platform.blobs.iter().map(|(digest, _)| digest.clone());
        blobs.chain([self.digest.clone(), platform.digest.clone()]).collect()
    }

    /// The size of the blobs among them, in bytes.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.platforms[0].blobs.iter().map(|(_, bytes)| bytes).sum()
    }
}

// === impl Platform ===

impl Platform {
    fn new(digest: String, manifest: &Value) -> Platform {
        let layers = manifest["layers"].as_array().expect("an image manifest lists its layers");
        let blob = |descriptor: &Value| (text(&descriptor["digest"]), descriptor["size"].as_u64().expect("a size"));
        let blobs = [&manifest["config"]].into_iter().chain(layers).map(blob).collect();
        Platform { digest, blobs }
    }
}

/// `sha256:` and the digest of `bytes` in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The same of a file.
pub(crate) fn sha256_of_file(path: &Path) -> String {
    sha256(&fs::read(path).expect("the client holds a file under this name"))
}

/// A JSON string without its quotes.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("a JSON string").into()
}

fn manifest(port: u16, repository: &str, reference: &str) -> Vec<u8> {
    let target = format!("/v2/{repository}/manifests/{reference}");
    let answer = http::request("GET", port, &target, ACCEPT, b"").expect("upstream answers");
    assert_eq!(answer.status, 200, "{target}");
    answer.body
}
