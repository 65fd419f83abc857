//! Verification: all that is held is hashed again when somebody asks for it, and what was found is reported.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::oci::Digest;
use crate::shutdown::Shutdown;
use crate::store::{Checked, Store};
use crate::tasks;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many blobs are what their digests say.
    pub right: u64,
    /// How long these are together.
    pub bytes: u64,
    /// Those that are something else.
    pub wrong: Vec<Finding>,
    /// Those that can't be read.
    pub unreadable: Vec<Finding>,
    /// What does not fit together: files without a blob, blobs without a file. Looked for only where no server runs.
    pub differences: Vec<String>,
    /// Whether what is wrong was put into quarantine.
    pub repaired: bool,
}

/// A blob that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which one.
    pub digest: Digest,
    /// What it is instead, in a sentence.
    pub what: String,
}

/// How far a verification has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Whether it goes on.
    pub running: bool,
    /// How much there is to hash.
    pub total_bytes: u64,
    /// How much was.
    pub checked_bytes: u64,
    /// What was found so far.
    pub report: Report,
}

/// The verification of a server that runs: one at a time, and the report of the last one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verification {
    shutdown: Shutdown,
    progress: Arc<Mutex<Option<Progress>>>,
}

/// So many findings of each kind are told. Further ones are in the log.
const FINDINGS_MAX: usize = 10_000;

/// Hashes all that is held, so many blobs at once. `seen` is told after each how far it has come.
pub async fn verify(store: &Store, repair: bool, at_once: usize, seen: impl Fn(&Progress)) -> Report {
    let held = store.held();
    let mut progress = Progress {
        running: true,
        total_bytes: held.iter().map(|(_, size_bytes)| size_bytes).sum(),
        report: Report { repaired: repair, ..Report::default() },
        ..Progress::default()
    };
    seen(&progress);
    let checks = held.into_iter().map(|(digest, size_bytes)| async move {
        let checked =
            if repair { store.check_and_heal_blob(&digest, None).await } else { store.check_blob(&digest, None).await };
        (digest, size_bytes, checked)
    });
    let mut checks = stream::iter(checks).buffer_unordered(at_once);
    while let Some((digest, size_bytes, checked)) = checks.next().await {
        progress.checked_bytes += size_bytes;
        progress.report.note(digest, size_bytes, checked);
        seen(&progress);
    }
    progress.report
}

// === impl Verification ===

impl Verification {
    /// None yet. What is begun ends with the drain.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, progress: Arc::default() }
    }

    /// Begins one, unless one goes on. What is wrong goes to quarantine: nothing that is known to be wrong is served.
    pub fn begin(&self, store: Store) -> bool {
        {
            let mut progress = self.progress.lock();
            if progress.as_ref().is_some_and(|progress| progress.running) {
                return false;
            }
            *progress = Some(Progress { running: true, ..Progress::default() });
        }
        let this = self.clone();
        tasks::spawn("verify", async move {
            let running = Running(this.clone());
            // One blob at a time, so that most of the disk is left to clients.
            let verified = verify(&store, true, 1, |progress| *this.progress.lock() = Some(progress.clone()));
            tokio::select! {
                report = verified => tracing::info!(
                    right = report.right,
                    wrong = report.wrong.len(),
                    unreadable = report.unreadable.len(),
                    "all that is held was hashed again"
                ),
                () = this.shutdown.draining() => {}
            }
            drop(running);
        });
        true
    }

    /// How far the last one has come; `None` if there was none since the start.
    pub fn progress(&self) -> Option<Progress> {
        self.progress.lock().clone()
    }
}

/// A verification that goes on, until this is dropped on whatever path.
struct Running(Verification);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(progress) = &mut *self.0.progress.lock() {
            progress.running = false;
        }
    }
}

// === impl Report ===

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.unreadable.is_empty() && self.differences.is_empty()
    }

    fn note(&mut self, digest: Digest, size_bytes: u64, checked: Checked) {
        let (list, what) = match checked {
            Checked::Right => {
                (self.right, self.bytes) = (self.right + 1, self.bytes + size_bytes);
                return;
            }
            Checked::Gone => return,
            Checked::Wrong(what) => (&mut self.wrong, what),
            Checked::Unreadable(error) => (&mut self.unreadable, error.to_string()),
        };
        if list.len() < FINDINGS_MAX {
            list.push(Finding { digest, what });
        } else {
            tracing::warn!(%digest, what, "a held blob is not as it should be");
        }
    }
}
