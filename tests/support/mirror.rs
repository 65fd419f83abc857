//! The mirror under test.
