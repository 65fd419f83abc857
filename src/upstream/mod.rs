//! Talking to registries: the only home of reqwest.
