//! Checkpoints of a fill: taken now and then and before it rests, and compared with the file when it is taken up again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Fuse, FusedFuture};
use tokio::time::{Instant, sleep_until};

use crate::store::{CheckedPiece, Checkpoint, OpenFile, PIECE_BYTES_MAX, Partial, Prefix, StoreError};
use crate::tasks::Pool;

use super::hashing::HashFrontier;
use super::progress::Progress;
use super::segments::{Claim, Segments};

/// Takes the checkpoints of one fill.
#[derive(Debug)]
pub(super) struct Checkpointer<'a> {
    progress: &'a Progress,
    frontier: &'a HashFrontier<'a>,
    partial: &'a Partial,
    pool: &'a Pool,
    origins: Vec<String>,
    /// Pieces beyond the hash frontier whose checksum is known. Bytes that are there never change.
    checked: BTreeMap<u64, CheckedPiece>,
}

/// Which checkpoints were taken: how many bytes were there, and when.
#[derive(Debug)]
struct Taken {
    noted_bytes: u64,
    noted_at: Instant,
    synced_bytes: u64,
    synced_at: Instant,
}

/// What of a blob was there at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    prefixes: Vec<Prefix>,
    /// Where each piece beyond them begins, and how long it is.
    pieces: Vec<(u64, u64)>,
    size_bytes: u64,
}

/// What an earlier run left of a blob: claimed until it was compared with the file, so that nobody fetches it meanwhile.
#[derive(Debug)]
pub(super) struct Leftovers {
    pub(super) checkpoint: Checkpoint,
    /// The start of the blob, as far as it was hashed.
    pub(super) prefix: Option<Claim>,
    /// Contiguous pieces, each run with its claim.
    pub(super) runs: Vec<(Claim, Vec<CheckedPiece>)>,
}

/// What a crash of the program may lose: what arrived in so long, or so many bytes, whichever is less; but notes lie at least
/// so far apart.
const NOTE_EVERY: Duration = Duration::from_secs(1);
const NOTE_BYTES: u64 = 8 * 1024 * 1024;
const NOTE_PAUSE: Duration = Duration::from_millis(100);

/// What a power cut may lose, besides what arrives while the disk syncs.
const SYNC_EVERY: Duration = Duration::from_secs(2);
const SYNC_BYTES: u64 = 32 * 1024 * 1024;

// === impl Checkpointer ===

impl<'a> Checkpointer<'a> {
    pub(super) fn new(
        progress: &'a Progress,
        frontier: &'a HashFrontier<'a>,
        partial: &'a Partial,
        pool: &'a Pool,
        origins: Vec<String>,
    ) -> Self {
        Self { progress, frontier, partial, pool, origins, checked: BTreeMap::new() }
    }

    /// Takes checkpoints for as long as the disk keeps what is written. One that can't be noted costs no more than what a crash
    /// would cost; a failed sync ends it, for nobody can tell what the disk has then.
    pub(super) async fn keep_taking(&mut self) -> StoreError {
        let (partial, progress) = (self.partial, self.progress);
        let mut taken = Taken::new(progress.present_bytes());
        // The disk may take long to sync. Notes are taken meanwhile.
        let mut syncing = pin!(Fuse::terminated());
        loop {
            let is_syncing = !syncing.is_terminated();
            tokio::select! {
                biased;
                synced = &mut syncing => match synced {
                    Err(error) if partial.is_lost() => return error,
                    Err(error) => {
                        tracing::warn!(digest = %partial.digest(), "could not take a checkpoint: {error}");
                    }
                    Ok(()) => {}
                },
                () = taken.due(progress, is_syncing) => {
                    taken.noted(progress.present_bytes());
                    let sync = !is_syncing && taken.is_sync_due();
                    if sync {
                        taken.synced();
                    }
                    let checkpoint = match self.checkpoint(self.look()).await {
                        Ok(checkpoint) => checkpoint,
                        Err(error) => {
                            tracing::warn!(digest = %partial.digest(), "could not take a checkpoint: {error}");
                            continue;
                        }
                    };
                    if let Err(error) = partial.note(&checkpoint).await {
                        // The next one follows within a second: not worth a warning each.
                        tracing::debug!(digest = %partial.digest(), "could not note a checkpoint: {error}");
                    }
                    if sync {
                        syncing.set(async move { partial.checkpoint(&checkpoint).await }.fuse());
                    }
                }
            }
        }
    }

    /// What is there now.
    pub(super) fn look(&self) -> Snapshot {
        let prefixes = self.frontier.prefixes();
        let hashed = prefixes.last().map_or(0, |prefix| prefix.bytes);
        let pieces = self.progress.present_from(hashed).into_iter().flat_map(pieces_of).collect();
        Snapshot { prefixes, pieces, size_bytes: self.progress.size_bytes() }
    }

    /// Takes the last checkpoint, of what was there.
    pub(super) async fn take(&mut self, snapshot: Snapshot) -> Result<(), StoreError> {
        let checkpoint = self.checkpoint(snapshot).await?;
        self.partial.last_checkpoint(&checkpoint).await
    }

    async fn checkpoint(&mut self, snapshot: Snapshot) -> Result<Checkpoint, StoreError> {
        let Snapshot { prefixes, pieces, size_bytes } = snapshot;
        let hashed = prefixes.last().map_or(0, |prefix| prefix.bytes);
        self.checked.retain(|start, _| *start >= hashed);
        let known = |(start, len): &(u64, u64)| self.checked.get(start).is_some_and(|piece| piece.len == *len);
        let unknown: Vec<_> = pieces.iter().filter(|piece| !known(piece)).copied().collect();
        let file = self.partial.file();
        for (start, len) in unknown {
            let file = Arc::clone(&file);
            let crc32c = self.pool.run(move || checksum(&file, start, len)).await?;
            self.checked.insert(start, CheckedPiece { start, len, crc32c });
        }
        Ok(Checkpoint {
            size_bytes,
            prefixes,
            pieces: pieces.iter().filter_map(|(start, _)| self.checked.get(start).copied()).collect(),
            origins: self.origins.clone(),
        })
    }
}

// === impl Taken ===

impl Taken {
    fn new(present_bytes: u64) -> Self {
        let now = Instant::now();
        Self { noted_bytes: present_bytes, noted_at: now, synced_bytes: present_bytes, synced_at: now }
    }

    fn noted(&mut self, present_bytes: u64) {
        (self.noted_bytes, self.noted_at) = (present_bytes, Instant::now());
    }

    /// What was noted last is being made durable.
    fn synced(&mut self) {
        (self.synced_bytes, self.synced_at) = (self.noted_bytes, self.noted_at);
    }

    fn is_sync_due(&self) -> bool {
        self.noted_bytes >= self.synced_bytes + SYNC_BYTES || self.noted_at >= self.synced_at + SYNC_EVERY
    }

    /// Waits until it's time for the next one. While one is being made durable, no other is.
    async fn due(&self, progress: &Progress, is_syncing: bool) {
        loop {
            let change = progress.change();
            let present = progress.present_bytes();
            let note_at = (present > self.noted_bytes).then(|| {
                let much = present >= self.noted_bytes + NOTE_BYTES;
                self.noted_at + if much { NOTE_PAUSE } else { NOTE_EVERY }
            });
            let sync_at = (present > self.synced_bytes && !is_syncing).then(|| self.synced_at + SYNC_EVERY);
            match note_at.into_iter().chain(sync_at).min().map(|at| at.max(self.noted_at + NOTE_PAUSE)) {
                None => change.await,
                Some(at) if at <= Instant::now() => return,
                Some(at) => tokio::select! {
                    () = change => {}
                    () = sleep_until(at) => {}
                },
            }
        }
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Whether there was nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.pieces.is_empty()
    }
}

// === impl Leftovers ===

impl Leftovers {
    /// Claims what `checkpoint` speaks of.
    pub(super) fn claim(checkpoint: Checkpoint, segments: &mut Segments) -> Self {
        let prefix = segments.claim_missing_in(0..checkpoint.hashed_bytes());
        let mut runs: Vec<(Range<u64>, Vec<CheckedPiece>)> = Vec::new();
        for piece in &checkpoint.pieces {
            let end = piece.start + piece.len;
            match runs.last_mut().filter(|(run, _)| run.end == piece.start) {
                Some((run, pieces)) => {
                    run.end = end;
                    pieces.push(*piece);
                }
                None => runs.push((piece.start..end, vec![*piece])),
            }
        }
        let claimed = |(run, pieces)| Some((segments.claim_missing_in(run)?, pieces));
        let runs = runs.into_iter().filter_map(claimed).collect();
        Self { checkpoint, prefix, runs }
    }
}

/// Compares what lies beyond the hash frontier with the file, and lets go of what differs.
pub(super) async fn compare(
    runs: Vec<(Claim, Vec<CheckedPiece>)>,
    progress: &Progress,
    partial: &Partial,
    pool: &Pool,
) -> Result<(), StoreError> {
    let file = partial.file();
    for (mut claim, pieces) in runs {
        let mut given_up = false;
        for piece in pieces {
            let whole = piece.start..piece.start + piece.len;
            if given_up {
                // A piece before it was not as it was noted, so the claim on the run was given up. Connections may have been
                // faster than this.
                match progress.claim_missing_in(whole.clone()) {
                    Some(again) => claim = again,
                    None => continue,
                }
            }
            let read = Arc::clone(&file);
            let found = pool.run(move || checksum(&read, piece.start, piece.len)).await?;
            if found == piece.crc32c && claim.rest.start == whole.start && claim.rest.end >= whole.end {
                partial.found(piece.start, piece.len);
                progress.received(&mut claim, piece.len);
            } else {
                given_up = true;
            }
            if given_up {
                progress.release(&claim);
            }
        }
        progress.release(&claim);
    }
    Ok(())
}

/// The pieces of a run: cut at multiples of their largest length, so that most of them never change again.
fn pieces_of(run: Range<u64>) -> Vec<(u64, u64)> {
    let mut pieces = Vec::new();
    let mut at = run.start;
    while at < run.end {
        let end = ((at / PIECE_BYTES_MAX + 1) * PIECE_BYTES_MAX).min(run.end);
        pieces.push((at, end - at));
        at = end;
    }
    pieces
}

fn checksum(file: &OpenFile, start: u64, len: u64) -> Result<u32, StoreError> {
    let mut buffer = vec![0; usize::try_from(len).unwrap_or_default()];
    file.read_now(start, &mut buffer)?;
    Ok(crc32c::crc32c(&buffer))
}
