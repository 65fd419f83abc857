//! Media types: the names of what manifests are and list, and the questions asked about them.

/// An OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image manifest (of an image or of an artifact).
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// An OCI layer, not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// An OCI layer, gzip-compressed.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// An OCI layer, compressed with zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The two bytes `{}` that stand for "no configuration" or "no content".
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The artifact manifest of a release candidate of OCI 1.1. Withdrawn, but still found in registries.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// A Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// A Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// A Docker layer, not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// A Docker layer, gzip-compressed.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// A Docker image manifest, schema 1, without signatures. Never mirrored.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// A Docker image manifest, schema 1, signed. Never mirrored.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// What a blob is served as.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// The largest configuration that is looked into, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// What upstreams are told that we accept when we ask for a manifest: everything.
///
/// The client's own list is ignored, for a narrow one would poison what is held for the other clients: some registries
/// answer 404 when the type they hold isn't listed, others convert an index to one platform's manifest.
pub const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*";

const OCI_NONDISTRIBUTABLE_PREFIX: &str = "application/vnd.oci.image.layer.nondistributable.v1.";
const DOCKER_FOREIGN_PREFIX: &str = "application/vnd.docker.image.rootfs.foreign.";

/// Is this an image manifest, an index or a list (OCI or Docker schema 2)? Parameters and case don't matter.
pub fn is_manifest_type(media_type: &str) -> bool {
    is_image_type(media_type) || is_index_type(media_type)
}

/// Is this the manifest of one image or artifact?
pub fn is_image_type(media_type: &str) -> bool {
    is_one_of(media_type, &[OCI_MANIFEST, DOCKER_MANIFEST])
}

/// Is this an index or a list, whose children are manifests?
pub fn is_index_type(media_type: &str) -> bool {
    is_one_of(media_type, &[OCI_INDEX, DOCKER_LIST])
}

/// Is this a schema 1 manifest, which has no digests of its own to verify and which no current client takes?
pub fn is_schema1_type(media_type: &str) -> bool {
    is_one_of(media_type, &[DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED])
}

/// Is this a layer that registries need not hold (Windows base layers of old)?
pub fn is_nondistributable_type(media_type: &str) -> bool {
    let media_type = without_parameters(media_type);
    starts_with_ignoring_case(media_type, OCI_NONDISTRIBUTABLE_PREFIX)
        || starts_with_ignoring_case(media_type, DOCKER_FOREIGN_PREFIX)
}

/// Is this a layer that is a tar archive, plain or compressed with gzip, which any tool unpacks?
pub fn is_tar_or_gzip_layer(media_type: &str) -> bool {
    is_one_of(media_type, &[OCI_LAYER, OCI_LAYER_GZIP, DOCKER_LAYER, DOCKER_LAYER_GZIP])
}

/// May this text stand in a `Content-Type` header as the type of a manifest: `type/subtype` in visible ASCII, at most
/// 255 bytes?
pub fn is_well_formed(media_type: &str) -> bool {
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-%'*`|~".contains(&b))
    };
    media_type.len() <= 255 && media_type.split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype))
}

/// The media type alone: `text/html; charset=utf-8` is `text/html`.
pub fn without_parameters(media_type: &str) -> &str {
    media_type.split_once(';').map_or(media_type, |(before, _)| before).trim()
}

fn is_one_of(media_type: &str, known: &[&str]) -> bool {
    let media_type = without_parameters(media_type);
    known.iter().any(|known| known.eq_ignore_ascii_case(media_type))
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_change_a_type() {
        assert_eq!(without_parameters(" text/html ; charset=utf-8"), "text/html");
        assert_eq!(without_parameters(";"), "");
        assert!(is_index_type("application/vnd.oci.image.index.v1+json; charset=utf-8"));
        assert!(is_image_type("APPLICATION/vnd.oci.image.manifest.v1+JSON"));
        assert!(is_schema1_type("application/vnd.docker.distribution.manifest.v1+prettyjws"));
    }

    #[test]
    fn each_type_is_what_it_is_and_nothing_else() {
        for (media_type, image, index, schema1) in [
            (OCI_INDEX, false, true, false),
            (DOCKER_LIST, false, true, false),
            (OCI_MANIFEST, true, false, false),
            (DOCKER_MANIFEST, true, false, false),
            (DOCKER_SCHEMA1, false, false, true),
            (OCI_CONFIG, false, false, false),
            (OCI_ARTIFACT, false, false, false),
            (OCTET_STREAM, false, false, false),
            ("text/plain", false, false, false),
            ("", false, false, false),
        ] {
            assert_eq!(
                (is_image_type(media_type), is_index_type(media_type), is_schema1_type(media_type)),
                (image, index, schema1),
                "{media_type}"
            );
            assert_eq!(is_manifest_type(media_type), image || index, "{media_type}");
        }
    }

    #[test]
    fn layers_that_registries_need_not_hold_are_known() {
        assert!(is_nondistributable_type("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"));
        assert!(is_nondistributable_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"));
        assert!(!is_nondistributable_type(OCI_LAYER_GZIP));
        assert!(!is_nondistributable_type("é".repeat(40).as_str()));
    }

    #[test]
    fn only_what_a_header_can_carry_is_well_formed() {
        for good in [OCI_INDEX, "a/b", "application/vnd.cncf.helm.config.v1+json"] {
            assert!(is_well_formed(good), "{good}");
        }
        for bad in ["", "a", "a/", "/b", "a/b/c", "a/b; c", "a/b\r\nx: y", "é/b", &format!("a/{}", "b".repeat(255))] {
            assert!(!is_well_formed(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_superset_accept_is_one_line_that_ends_with_anything() {
        let types: Vec<_> = ACCEPT_MANIFESTS.split(", ").collect();
        assert_eq!(types, [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"]);
    }
}
