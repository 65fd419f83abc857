//! Whether content here may have been had with a credential: noted once, so that taking the credential away opens nothing.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Store;
use super::error::StoreError;
use super::io::Io;
use super::layout::Layout;
use super::publish::{MODE_RECORD, publish_bytes};

/// What the note says to whoever finds it.
const NOTE: &str = "Some of what lies here may have been had with a credential. While this file exists, what a manifest \
                    lists is given out only where upstream confirmed it.\n";

/// Whether the note is there. One that can't be read is.
pub(super) async fn noted(io: &Io, layout: &Layout) -> bool {
    let (disk, path) = (io.disk.clone(), layout.credentials());
    let read = move || disk.read(&path, 2 * NOTE.len() as u64);
    io.reading.run(read).await.map_or(true, |found| found.is_some())
}

// === impl Store ===

impl Store {
    /// Whether a credential was configured while this store was in use, now or ever.
    pub fn had_credentials(&self) -> bool {
        self.shared.had_credentials.load(Ordering::Relaxed)
    }

    /// Notes for good that there are credentials.
    pub async fn note_credentials(&self) -> Result<(), StoreError> {
        if self.shared.had_credentials.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let shared = self.shared.clone();
        let put = move || {
            let staged = shared.staging_path();
            let path = shared.layout.credentials();
            publish_bytes(&shared.io.disk, Bytes::from_static(NOTE.as_bytes()), &staged, &path, MODE_RECORD, None)
        };
        let noted = self.shared.io.run_counted(put).await;
        if noted.is_err() {
            // So that another attempt is one.
            self.shared.had_credentials.store(false, Ordering::Relaxed);
        }
        noted
    }
}
