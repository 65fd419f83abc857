//! The seam between the harness and the server under test: everything the harness calls there, and nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What the store says it holds and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) blobs: u64,
    /// As counted against the capacity.
    pub(crate) present_bytes: u64,
    pub(crate) reserved_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) partials: u64,
    /// Blobs that somebody has open.
    pub(crate) open: u64,
}

/// The running server.
///
/// NOT WIRED YET: wanted is `pub(crate) struct Server(cachalot::app::Running);` and the bodies said at each function.
#[derive(Debug)]
pub(crate) struct Server(PathBuf);

// === impl Server ===

impl Server {
    /// Reads the configuration file as `serve --config` does, and starts.
    ///
    /// Wanted: `let config = cachalot::config::load(..file..); Ok(Self(cachalot::app::App::start(config).await?))`,
    /// with the error's text as a person would see it.
    pub(crate) async fn start(config_file: &Path) -> Result<Self, String> {
        std::future::ready(()).await;
        Self(config_file.to_owned()).unwired()
    }

    /// Where clients connect. Wanted: `self.0.listen.clone()`.
    pub(crate) fn listen(&self) -> Vec<SocketAddr> {
        self.unwired()
    }

    /// Where operators connect. Wanted: `self.0.admin`.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.unwired()
    }

    /// Waits until no fill is in progress. Wanted: `self.0.fills.idle().await`.
    pub(crate) async fn idle(&self) {
        std::future::ready(()).await;
        self.unwired()
    }

    /// Fills in progress. Wanted: `self.0.fills.len()`.
    pub(crate) fn fills(&self) -> usize {
        self.unwired()
    }

    /// Wanted: from `self.0.store.snapshot()`.
    pub(crate) fn holdings(&self) -> Holdings {
        self.unwired()
    }

    /// The size of a blob that the index knows. Wanted: `self.0.store.size_of(&digest.parse().unwrap())`.
    pub(crate) fn size_of(&self, digest: &str) -> Option<u64> {
        let _ = digest;
        self.unwired()
    }

    /// Drains and stops, as on SIGTERM, and releases the data directory. Wanted: `self.0.stop().await`.
    pub(crate) async fn stop(self) {
        std::future::ready(()).await;
        self.unwired()
    }

    fn unwired(&self) -> ! {
        panic!("the server is not wired into the tests yet ({})", self.0.display())
    }
}
