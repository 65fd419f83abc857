//! (oci/error)
