//! Bytes in the data directory, and the only code that touches it.
