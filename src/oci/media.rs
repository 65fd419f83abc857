//! (oci/media)
