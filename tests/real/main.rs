//! Real programs pull real images through the built `cachalot` from a real registry.
//!
//! Not part of a plain `cargo test`: it needs root and Debian's packages, which `.ci/run` installs. Run it with
//! `cargo test --test real`. A program that is missing fails its test; nothing is skipped.
//!
//! Reading order: [`pulls`] says what every client must be able to do; [`skopeo`], [`containerd`] and [`podman`] are the
//! clients; [`access`] has the mirror ask who they are,
//! [`private`] puts a password and a certificate in front of upstream; [`outage`] kills the mirror;
//! [`full_disk`] leaves it no room; [`bundle`] carries images past the network, and [`air_gap`] goes the whole way with them;
//! [`artifacts`] are no images; [`replicas`] are two mirrors of which one dies; [`container`] is the mirror in its own image;
//! [`conformance`] runs the OCI program; [`hosts`] has the clients read what `cachalot hosts` writes, and [`cri`] what `cachalot node` does. Below them: [`mirror`] (the program under
//! test), [`upstream`] (Debian's docker-registry), [`fixture`] and [`image`] (what it holds), [`process`] and [`http`].
#![expect(clippy::expect_used, clippy::print_stderr, reason = "a test fails by panicking, and says why")]

mod access;
mod air_gap;
mod artifacts;
mod bundle;
mod conformance;
mod container;
mod containerd;
mod cri;
mod fixture;
mod full_disk;
mod hosts;
mod http;
mod image;
mod mirror;
mod outage;
mod podman;
mod private;
mod process;
mod pulls;
mod replicas;
mod skopeo;
mod upstream;
