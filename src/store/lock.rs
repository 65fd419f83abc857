//! One process per data directory: the lock file, and who holds it.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Store;
use super::error::StoreError;
use super::fs::Disk;
use super::io::Io;
use super::layout::Layout;
use crate::clock::Timestamp;

/// The lock on a data directory, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock(File);

/// What the holder writes into the file, for whoever finds it locked.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
    started: Timestamp,
    /// Where its API is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    contact: Option<String>,
}

/// How often a waiting process looks again. `flock` can't be waited for with a deadline.
const POLL: Duration = Duration::from_millis(200);

/// No holder writes more than this.
const HOLDER_BYTES_MAX: u64 = 4096;

// === impl Lock ===

impl Lock {
    /// Takes the lock, waiting up to `wait` for another process to let go of it (a rolling update overlaps).
    pub(super) async fn acquire(io: &Io, layout: &Layout, wait: Duration) -> Result<Self, StoreError> {
        let deadline = Instant::now() + wait;
        let mut announced = false;
        loop {
            let (disk, path) = (io.disk.clone(), layout.lock());
            let taken = io.writing.run(move || {
                let file = disk.open_lock(&path)?;
                if !disk.try_lock(&file, &path)? {
                    return Ok(Err(disk.read(&path, HOLDER_BYTES_MAX)?.unwrap_or_default()));
                }
                // The lock holds without a name in it; a full disk must not keep what is held from being served.
                if let Err(error) = sign(&disk, &file, &path, None) {
                    tracing::warn!(%error, "could not write down who holds the data directory");
                }
                Ok::<_, StoreError>(Ok(file))
            });
            let holder = match taken.await? {
                Ok(file) => return Ok(Self(file)),
                Err(holder) => Holder::read(&holder),
            };
            if Instant::now() >= deadline {
                let (holder, contact) = describe(holder);
                return Err(StoreError::Locked { path: layout.root().to_owned(), holder, contact });
            }
            if !announced {
                announced = true;
                announce(layout.root(), &describe(holder).0, wait);
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + POLL)).await;
        }
    }
}

/// Writes who this is into the lock file.
fn sign(disk: &Disk, file: &File, path: &Path, contact: Option<String>) -> Result<(), StoreError> {
    let holder = serde_json::to_vec(&Holder { contact, ..Holder::this_process() }).unwrap_or_default();
    disk.resize(file, path, 0)?;
    disk.write_at(file, path, 0, &[Bytes::from(holder)])
}

fn announce(root: &Path, holder: &str, wait: Duration) {
    let wait_seconds = wait.as_secs();
    tracing::warn!(path = %root.display(), holder, wait_seconds, "the data directory is in use, waiting for its holder to stop");
}

// === impl Store ===

impl Store {
    /// Lets commands that find the data directory in use know where its server's API is.
    pub async fn sign(&self, contact: &str) {
        let (shared, contact) = (self.shared.clone(), contact.to_owned());
        let write = move || {
            let lock = shared.lock.lock();
            let Some(Lock(file)) = &*lock else { return Ok(()) };
            sign(&shared.io.disk, file, &shared.layout.lock(), Some(contact))
        };
        if let Err(error) = self.shared.io.run_counted(write).await {
            tracing::warn!(%error, "could not write down where the API is");
        }
    }
}

// === impl Holder ===

impl Holder {
    fn this_process() -> Self {
        let system = rustix::system::uname();
        Self {
            host: system.nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            started: Timestamp::now(),
            contact: None,
        }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Who holds the lock, in words, and where its API is.
fn describe(holder: Option<Holder>) -> (String, Option<String>) {
    let Some(Holder { host, pid, started, contact }) = holder else {
        return ("a process that left no name".to_owned(), None);
    };
    let since = started.age().map_or(String::new(), |age| format!(", which took it {} s ago", age.as_secs()));
    (format!("process {pid} on {host}{since}"), contact)
}
