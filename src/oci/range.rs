//! (oci/range)
