//! Rot: held blobs are hashed again, at a bounded pace and without pushing what is in use out of the page cache.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::error::StoreError;
use super::publish::{MODE_RECORD, publish_bytes};
use super::record_files::encode;
use super::{Shared, Store};
use crate::clock::Timestamp;
use crate::oci::{Digest, Verifier};

/// What a look at a blob found.
#[derive(Clone, Debug)]
pub enum Checked {
    /// It is what its digest says.
    Right,
    /// It isn't held any longer.
    Gone,
    /// It is something else. The text says what.
    Wrong(String),
    /// It could not be read.
    Unreadable(StoreError),
}

/// How far a scrub has come, as kept on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubState {
    /// When the current or last pass began.
    pub begun: Option<Timestamp>,
    /// Where it goes on; `None` once it has ended.
    pub next: Option<Digest>,
}

/// So much is read in one go.
const CHUNK_BYTES: u64 = 1 << 20;

/// Larger files are no state.
const STATE_BYTES_MAX: u64 = 4096;

// === impl Store ===

impl Store {
    /// Everything that is held with its size, in the order of digests.
    pub fn held(&self) -> Vec<(Digest, u64)> {
        let mut held = self.shared.ledger.read().sizes();
        held.sort_unstable();
        held
    }

    /// Hashes a held blob as it is on disk, at most `bytes_per_second` where that is given. Changes nothing, and doesn't
    /// count as a read.
    pub async fn check_blob(&self, digest: &Digest, bytes_per_second: Option<u64>) -> Checked {
        let Some((serial, size_bytes)) = self.shared.ledger.read().entry(digest) else { return Checked::Gone };
        let checked = self.shared.hash_again(*digest, size_bytes, bytes_per_second).await;
        // What was evicted meanwhile proves nothing.
        if self.shared.ledger.read().is_current(digest, serial) { checked } else { Checked::Gone }
    }

    /// The same, and what is wrong goes to quarantine, so that the next pull fetches it again.
    pub async fn check_and_heal_blob(&self, digest: &Digest, bytes_per_second: Option<u64>) -> Checked {
        let Some((serial, _)) = self.shared.ledger.read().entry(digest) else { return Checked::Gone };
        let checked = self.check_blob(digest, bytes_per_second).await;
        if let Checked::Wrong(what) = &checked {
            self.shared.memory.invalidate(digest).await;
            self.shared.heal(*digest, serial, what.clone(), true).await;
        }
        checked
    }

    /// How far the scrub had come.
    pub async fn scrub_state(&self) -> ScrubState {
        let shared = self.shared.clone();
        let read = move || shared.io.disk.read(&shared.layout.scrub(), STATE_BYTES_MAX);
        let bytes = self.shared.io.reading.run(read).await.ok().flatten().unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Notes how far the scrub has come.
    pub async fn set_scrub_state(&self, state: ScrubState) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let content = Bytes::from(encode(&state).unwrap_or_default());
        let put = move || {
            let staged = shared.staging_path();
            publish_bytes(&shared.io.disk, content, &staged, &shared.layout.scrub(), MODE_RECORD, None)
        };
        self.shared.io.run_counted(put).await
    }
}

// === impl Shared ===

impl Shared {
    async fn hash_again(self: &Arc<Self>, digest: Digest, size_bytes: u64, bytes_per_second: Option<u64>) -> Checked {
        let path = self.layout.blob(&digest);
        let opening = {
            let (shared, path) = (self.clone(), path.clone());
            move || {
                let Some(file) = shared.io.disk.open_for_one_look(&path)? else { return Ok(None) };
                let found = shared.io.disk.size(&file, &path)?;
                Ok(Some((file, found)))
            }
        };
        let (file, found) = match self.io.reading.run(opening).await {
            Ok(Some(opened)) => opened,
            Ok(None) => return Checked::Wrong(format!("{} is gone", path.display())),
            Err(error) => return Checked::Unreadable(error),
        };
        if found != size_bytes {
            return Checked::Wrong(format!("{} is {found} bytes long instead of {size_bytes}", path.display()));
        }
        let (mut verifier, mut file) = (Verifier::new(digest, Some(size_bytes)), Some(file));
        let mut offset = 0;
        while offset < size_bytes {
            let begun = Instant::now();
            let len = CHUNK_BYTES.min(size_bytes - offset);
            let (shared, path, handle) = (self.clone(), path.clone(), file.take());
            let hashing = move || {
                let Some(handle) = handle else { return (None, verifier, Ok(())) };
                let mut buffer = vec![0; usize::try_from(len).unwrap_or_default()];
                let read = shared.io.disk.read_for_one_look(&handle, &path, offset, &mut buffer);
                verifier.update(&buffer);
                (Some(handle), verifier, read)
            };
            let read;
            (file, verifier, read) = self.io.reading.run(hashing).await;
            if let Err(error) = read {
                return Checked::Unreadable(error);
            }
            offset += len;
            if let Some(rate) = bytes_per_second {
                let pause = Duration::from_micros(len.saturating_mul(1_000_000) / rate.max(1));
                tokio::time::sleep_until(begun + pause).await;
            }
        }
        match verifier.finish() {
            Ok(_) => Checked::Right,
            Err(mismatch) => Checked::Wrong(mismatch.to_string()),
        }
    }
}
