//! (oci/route)
