//! Docker archives without a layout (`podman save`, older `docker save`): a manifest is made over their very bytes. Pure.

use serde::Deserialize;
use serde_json::json;

use super::error::BundleError;
use super::intake::{Found, Packing};
use super::layout::{DOCKER, DockerImage, problem};
use crate::oci::{Digest, media};

/// An image's configuration, as far as it is compared with its layers.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// Where an image's configuration is.
pub(super) fn config_of(image: &DockerImage, found: &Found) -> Result<Digest, BundleError> {
    found.at(&image.config).ok_or_else(|| problem(DOCKER, format!("{:?} is not in the archive", image.config)))
}

/// The manifest of an image, always the same for the same image. Its layers stay as they are packed, mostly not at all.
pub(super) fn manifest(image: &DockerImage, config: &[u8], found: &Found) -> Result<Vec<u8>, BundleError> {
    let config_digest = config_of(image, found)?;
    let parsed: Config = serde_json::from_slice(config)
        .map_err(|error| problem(&image.config, error.to_string().chars().take(200).collect()))?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        let what = format!("it lists {} layers, and the configuration {}", image.layers.len(), diff_ids.len());
        return Err(problem(DOCKER, what));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in image.layers.iter().zip(diff_ids) {
        let digest = found.at(path).ok_or_else(|| problem(DOCKER, format!("{path:?} is not in the archive")))?;
        let packing = found.packings.get(&digest).copied().unwrap_or(Packing::None);
        if packing == Packing::None && digest != diff_id {
            return Err(problem(path, format!("it is damaged: it should be {diff_id}, but is {digest}")));
        }
        let media_type = match packing {
            Packing::None => media::OCI_LAYER,
            Packing::Gzip => media::OCI_LAYER_GZIP,
            Packing::Zstd => media::OCI_LAYER_ZSTD,
        };
        layers.push(json!({ "mediaType": media_type, "digest": digest, "size": found.blobs.get(&digest) }));
    }
    let config = json!({ "mediaType": media::OCI_CONFIG, "digest": config_digest, "size": config.len() });
    let manifest = json!({ "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": layers });
    Ok(manifest.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Manifest;

    fn archive(layers: &[(&str, Packing)]) -> (DockerImage, Vec<u8>, Found) {
        let mut found = Found::default();
        let mut put = |path: &str, content: &[u8], packing| {
            let digest = Digest::sha256(content);
            found.paths.insert(path.to_owned(), digest);
            found.blobs.insert(digest, content.len() as u64);
            found.packings.insert(digest, packing);
            digest
        };
        let digests: Vec<_> = layers.iter().map(|(path, packing)| put(path, path.as_bytes(), *packing)).collect();
        let config = json!({ "rootfs": { "type": "layers", "diff_ids": digests } }).to_string().into_bytes();
        put("config.json", &config, Packing::None);
        let layers = layers.iter().map(|(path, _)| (*path).to_owned()).collect();
        (DockerImage { config: "config.json".to_owned(), repo_tags: None, layers }, config, found)
    }

    #[test]
    fn a_manifest_is_made_over_the_bytes_that_are_there() {
        let (image, config, found) = archive(&[("a/layer.tar", Packing::None), ("b/layer.tar", Packing::Gzip)]);
        let bytes = manifest(&image, &config, &found).unwrap();
        assert_eq!(bytes, manifest(&image, &config, &found).unwrap());
        let manifest = Manifest::parse(&bytes, None).unwrap();
        assert_eq!(manifest.media_type, media::OCI_MANIFEST);
        let layers: Vec<_> = manifest.layers.iter().map(|layer| (layer.digest, layer.media_type.as_str())).collect();
        assert_eq!(
            layers,
            [
                (Digest::sha256(b"a/layer.tar"), media::OCI_LAYER),
                (Digest::sha256(b"b/layer.tar"), media::OCI_LAYER_GZIP)
            ]
        );
    }

    #[test]
    fn layers_that_the_configuration_does_not_know_are_refused() {
        let (image, config, mut found) = archive(&[("a/layer.tar", Packing::None)]);
        let other = Digest::sha256(b"other");
        found.paths.insert("a/layer.tar".to_owned(), other);
        assert!(manifest(&image, &config, &found).unwrap_err().to_string().contains("it is damaged"));
        found.paths.remove("a/layer.tar");
        assert!(manifest(&image, &config, &found).unwrap_err().to_string().contains("not in the archive"));
        let fewer = DockerImage { layers: Vec::new(), ..image };
        assert!(manifest(&fewer, &config, &found).unwrap_err().to_string().contains("0 layers"));
    }
}
