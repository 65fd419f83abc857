//! One upstream body on its way into a partial's file: batch after batch, and only where nobody else writes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{FutureExt, TryFutureExt, future};

use crate::store::Partial;

use super::error::FillError;
use super::fill::Fill;
use super::incoming::{Batch, Incoming};
use super::origin::{OriginError, OriginErrorKind};
use super::segments::Claim;

/// Where the bodies of one fill go.
#[derive(Debug)]
pub(super) struct Delivery<'a> {
    fill: &'a Fill,
    partial: &'a Partial,
    size_bytes: u64,
    /// How many bytes all bodies have brought, and how many of them were there already or on their way.
    arrived: AtomicU64,
    twice: AtomicU64,
}

/// Why a body stopped bringing bytes.
pub(super) enum Trouble {
    /// Upstream's doing: it may go on after a pause.
    Origin(OriginError),
    /// Nothing can go on.
    Fatal(FillError),
}

/// A claim that is given up when it's dropped, on whatever path.
pub(super) struct Held<'a> {
    fill: &'a Fill,
    pub(super) claim: Claim,
}

// === impl Delivery ===

impl<'a> Delivery<'a> {
    pub(super) fn new(fill: &'a Fill, partial: &'a Partial, size_bytes: u64) -> Self {
        Self { fill, partial, size_bytes, arrived: AtomicU64::new(0), twice: AtomicU64::new(0) }
    }

    /// How many bytes were written.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// How many bytes came that were there already or on their way.
    pub(super) fn twice(&self) -> u64 {
        self.twice.load(Ordering::Relaxed)
    }

    /// Holds a claim.
    pub(super) fn hold(&self, claim: Claim) -> Held<'a> {
        Held { fill: self.fill, claim }
    }

    /// Takes the bytes of a body that nothing was claimed for. If it brings a part of the blob that is nobody else's yet, that
    /// is claimed at once, before this is first polled: who has to wait until then must not leave it to others. A body that
    /// brings all claims nothing, so that parts can come before it.
    pub(super) fn take_unclaimed(&self, incoming: Incoming) -> impl Future<Output = Result<(), Trouble>> {
        let (start, end) = incoming.range(self.size_bytes);
        let part = (start, end) != (0, self.size_bytes);
        let held = part.then(|| self.claim_missing_in(start..end)).flatten();
        self.take(incoming, held.filter(|held| held.claim.rest == (start..end)))
    }

    /// Takes a body's bytes: those of the claim, or without one all that are missing and nobody else's.
    pub(super) async fn take(&self, mut incoming: Incoming, mut held: Option<Held<'_>>) -> Result<(), Trouble> {
        let (mut at, end) = incoming.range(self.size_bytes);
        let mut batch = incoming.batch(end - at, true).await.map_err(Trouble::Origin)?;
        loop {
            let (len, last) = (batch.len, batch.last);
            let write = self.keep(at, batch, held.as_mut());
            let gather = async {
                if last || at + len >= end { Ok(None) } else { incoming.batch(end - at - len, false).await.map(Some) }
            };
            // A body that fails still leaves what came before; nobody waits for one when nothing more can be written.
            let ((), next) = future::try_join(write.map_err(Trouble::Fatal), gather.map(Ok)).await?;
            at += len;
            match next.map_err(Trouble::Origin)? {
                Some(next) => batch = next,
                None if at < end => return Err(Trouble::Origin(broken(at, end))),
                None => return self.expect_end(&mut incoming, end).await,
            }
        }
    }

    /// Nothing may follow the last byte of the blob: a body that is too long is not the blob's.
    async fn expect_end(&self, incoming: &mut Incoming, end: u64) -> Result<(), Trouble> {
        if end < self.size_bytes {
            return Ok(());
        }
        match incoming.next().await {
            Ok(Some(more)) if !more.is_empty() => Err(Trouble::Fatal(FillError::Origin(OriginError {
                kind: OriginErrorKind::Unusable,
                message: format!("upstream sent more than the {end} bytes that it announced").into(),
            }))),
            // All bytes are there; how the connection ended does not matter.
            _ => Ok(()),
        }
    }

    /// Writes a batch that begins at `at`. Only what is claimed is written, and what is claimed is not there yet: bytes that
    /// were hashed, or given to a reader, must never change.
    async fn keep(&self, at: u64, batch: Batch, held: Option<&mut Held<'_>>) -> Result<(), FillError> {
        // A claim is only ever followed by the body that was asked for it.
        if let Some(held) = held.filter(|held| held.claim.rest.start == at) {
            let len = batch.len.min(held.claim.rest.end - at);
            return self.write(at, batch, held, len).await;
        }
        let mut kept = 0;
        let arrived = batch.len;
        while let Some(mut held) = self.claim_missing_in(at..at + batch.len) {
            let piece = Batch { chunks: batch.chunks.clone(), ..Batch::default() };
            let len = held.claim.rest.end - held.claim.rest.start;
            self.write(at, piece, &mut held, len).await?;
            kept += len;
        }
        self.twice.fetch_add(arrived - kept, Ordering::Relaxed);
        Ok(())
    }

    fn claim_missing_in(&self, bytes: Range<u64>) -> Option<Held<'a>> {
        let claim = self.fill.progress().claim_missing_in(bytes)?;
        Some(self.hold(claim))
    }

    /// Writes the next `len` bytes of a claim, out of a batch that begins at `at`.
    async fn write(&self, at: u64, batch: Batch, held: &mut Held<'_>, len: u64) -> Result<(), FillError> {
        let wanted = held.claim.rest.start..held.claim.rest.start + len;
        let mut chunks = Vec::with_capacity(batch.chunks.len());
        let mut start = at;
        for chunk in batch.chunks {
            let end = start + chunk.len() as u64;
            let (from, to) = (wanted.start.clamp(start, end) - start, wanted.end.clamp(start, end) - start);
            // Both are at most the chunk's length.
            let (from, to) = (usize::try_from(from).unwrap_or(0), usize::try_from(to).unwrap_or(0));
            if from < to {
                chunks.push(chunk.slice(from..to));
            }
            start = end;
        }
        if chunks.is_empty() {
            return Ok(());
        }
        let written = self.partial.write_at(wanted.start, chunks).await;
        written.map_err(|error| FillError::not_storable(self.fill.key().digest, &error))?;
        self.arrived.fetch_add(len, Ordering::Relaxed);
        self.fill.progress().received(&mut held.claim, len);
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.fill.progress().release(&self.claim);
    }
}

/// A body that ended before it should have.
pub(super) fn broken(at: u64, end: u64) -> OriginError {
    OriginError {
        kind: OriginErrorKind::Broken,
        message: format!("the body ended at byte {at} instead of {end}").into(),
    }
}
