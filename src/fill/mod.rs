//! One download per digest and upstream, followed by any number of readers.
