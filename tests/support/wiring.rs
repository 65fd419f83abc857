//! The seam between the harness and the server under test: everything the harness calls there, and nothing else.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use cachalot::app::{self, ConfigSource, Running};
use cachalot::config::{self, Env, Flags};
use cachalot::store::Faults;

/// What the store says it holds and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) blobs: usize,
    /// As counted against the capacity.
    pub(crate) present_bytes: u64,
    /// What records take of that. How much depends on when they were written, down to the width of a time.
    pub(crate) record_bytes: u64,
    pub(crate) reserved_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) partials: usize,
    /// Interrupted downloads that are kept.
    pub(crate) resting: usize,
    /// Files that are open for readers: blobs and partials.
    pub(crate) open: usize,
}

/// The running server.
#[derive(Debug)]
pub(crate) struct Server(Running);

/// No variable is set, whatever surrounds the tests.
struct Nothing;

impl Env for Nothing {
    fn get(&self, _: &str) -> Option<String> {
        None
    }
}

// === impl Holdings ===

impl Holdings {
    /// What blobs take, records aside.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.present_bytes - self.record_bytes
    }
}

// === impl Server ===

impl Server {
    /// Reads the configuration file as `serve --config` does, and starts.
    pub(crate) async fn start(
        config_file: &Path,
        faults: Option<Arc<dyn Faults>>,
        watch: bool,
    ) -> Result<Self, String> {
        let config = config::load(Some(config_file), &Nothing, &Flags::default()).map_err(|error| error.to_string())?;
        let file = config_file.to_owned();
        let load = Arc::new({
            let file = file.clone();
            move || config::load(Some(&file), &Nothing, &Flags::default())
        });
        let source = ConfigSource { load, file: Some(file), watch };
        app::start_with(&config, Some(source), faults).await.map(Self).map_err(|error| error.to_string())
    }

    /// Where clients connect.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.0.listen[0]
    }

    /// All addresses where clients connect.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.listen.clone()
    }

    /// Where operators connect.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.0.admin[0]
    }

    /// Waits until no fill is in progress.
    pub(crate) async fn idle(&self) {
        self.0.fills.idle().await;
    }

    /// Fills in progress.
    pub(crate) fn fills(&self) -> usize {
        self.0.fills.len()
    }

    pub(crate) fn holdings(&self) -> Holdings {
        let snapshot = self.0.store.snapshot();
        Holdings {
            blobs: snapshot.blobs,
            present_bytes: snapshot.present_bytes,
            record_bytes: snapshot.record_bytes,
            reserved_bytes: snapshot.reserved_bytes,
            capacity_bytes: snapshot.capacity_bytes,
            partials: snapshot.partials,
            resting: snapshot.resting,
            open: snapshot.open_files,
        }
    }

    /// The size of a blob that the index knows.
    pub(crate) fn size_of(&self, digest: &str) -> Option<u64> {
        self.0.store.size_of(&digest.parse().expect("a digest"))
    }

    /// One pass of the store's sweep.
    pub(crate) async fn sweep(&self) {
        self.0.store.sweep().await;
    }

    /// Drains and stops, as on SIGTERM, and releases the data directory.
    pub(crate) async fn stop(self) {
        self.0.stop().await;
    }
}
