//! (oci/manifest)
