//! The connections of one fill whose size is known: each claims what is needed next, brings it, and resumes what broke.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, future};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::oci::range::ByteRange;
use crate::store::Partial;

use super::error::FillError;
use super::fill::{Fill, OriginId};
use super::incoming::{Batch, Incoming};
use super::origin::{Origin, OriginBody, OriginError, OriginErrorKind};
use super::retry::Retry;
use super::segments::Claim;
use super::transfer::Tools;

/// A transfer in segments.
#[derive(Debug)]
pub(super) struct Connections<'a> {
    tools: &'a Tools,
    fill: &'a Fill,
    size_bytes: u64,
    partial: tokio::sync::Mutex<Partial>,
    origin: Mutex<(OriginId, Arc<dyn Origin>)>,
    /// Upstream has answered a range with just that range.
    ranges_proven: AtomicBool,
    /// Upstream has answered a range with something else.
    ranges_refused: AtomicBool,
    resumes: AtomicU64,
    /// How many bytes all connections have brought.
    arrived: AtomicU64,
}

/// How much trouble one connection has had.
struct Patience {
    retry: Retry,
    /// What had arrived when it was last in trouble.
    arrived: u64,
    busy: u32,
}

/// Why a connection stopped bringing bytes.
enum Trouble {
    /// Upstream's doing: it may go on after a pause.
    Origin(OriginError),
    /// Nothing can go on.
    Fatal(FillError),
}

/// How often in a row the connection that every fill has may fail before the fill does.
const FAILURES_MAX: u32 = 6;

/// The others only make it faster, and give up early.
const EXTRA_FAILURES_MAX: u32 = 1;

/// How often, and how long each time, a fill waits for one of our own connections beyond upstream's header deadline.
const BUSY_ROUNDS_MAX: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(500);

// === impl Patience ===

impl Patience {
    /// How long to wait before the next attempt; `None` is to give up. What any connection brought meanwhile counts.
    fn failed(&mut self, connections: &Connections<'_>, error: &OriginError) -> Option<Duration> {
        let arrived = connections.arrived.load(Ordering::Relaxed);
        self.retry.arrived(arrived - self.arrived);
        self.arrived = arrived;
        self.retry.failed(rand::random(), wish(error))
    }
}

// === impl Connections ===

impl<'a> Connections<'a> {
    pub(super) fn new(
        tools: &'a Tools,
        fill: &'a Fill,
        size_bytes: u64,
        partial: Partial,
        origin: (OriginId, Arc<dyn Origin>),
    ) -> Self {
        Self {
            tools,
            fill,
            size_bytes,
            partial: tokio::sync::Mutex::new(partial),
            origin: Mutex::new(origin),
            ranges_proven: AtomicBool::new(false),
            ranges_refused: AtomicBool::new(false),
            resumes: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
        }
    }

    /// Brings the whole blob, beginning with a body that has been opened already. Returns how often a broken body was
    /// resumed.
    pub(super) async fn run(&self, first: OriginBody) -> Result<u64, FillError> {
        let part = first.end.is_some_and(|end| end < self.size_bytes);
        self.ranges_proven.store(part, Ordering::Relaxed);
        let mut connections = FuturesUnordered::new();
        connections.push(future::Either::Left(self.main_connection(first)));
        if part {
            for _ in 1..self.tools.limits.connections_per_blob {
                connections.push(future::Either::Right(self.extra_connection()));
            }
        }
        let all = async {
            while let Some(ended) = connections.next().await {
                ended?;
            }
            Ok::<_, FillError>(())
        };
        // Once all is there, nobody waits for a connection that pauses, or reads what is not needed. None of them writes
        // then: what is written is claimed, and what is claimed is not there yet.
        tokio::select! {
            biased;
            ended = all => ended?,
            () = self.complete() => {}
        }
        Ok(self.resumes.load(Ordering::Relaxed))
    }

    async fn complete(&self) {
        loop {
            let change = self.fill.progress().change();
            if self.fill.progress().frontier() >= self.size_bytes {
                return;
            }
            change.await;
        }
    }

    /// Who sent the bytes, last.
    pub(super) fn label(&self) -> String {
        self.origin.lock().1.label()
    }

    /// Whether the bytes came in more than one response.
    pub(super) fn in_pieces(&self) -> bool {
        self.ranges_proven.load(Ordering::Relaxed) || self.resumes.load(Ordering::Relaxed) > 0
    }

    /// What was written. Call it when all connections have ended.
    pub(super) fn into_partial(self) -> Partial {
        self.partial.into_inner()
    }

    /// The connection that every fill has: it ends when the blob is there, or fails with it.
    async fn main_connection(&self, first: OriginBody) -> Result<(), FillError> {
        let mut patience = Patience { retry: Retry::new(FAILURES_MAX), arrived: 0, busy: 0 };
        let mut brought = self.bring_from(Incoming::new(first), None).await;
        loop {
            match brought {
                Ok(()) => {}
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Origin(error)) => self.recover(&mut patience, error).await?,
            }
            let Some(claim) = self.next_claim().await else { return Ok(()) };
            brought = self.bring(claim, true).await;
        }
    }

    /// A further connection. It has a place among all further connections, and ends when there is none to be had, when
    /// upstream has trouble, or when nothing is left to claim.
    async fn extra_connection(&self) -> Result<(), FillError> {
        let Ok(_place) = self.tools.extra_connections.try_acquire() else { return Ok(()) };
        let mut patience = Patience { retry: Retry::new(EXTRA_FAILURES_MAX), arrived: 0, busy: 0 };
        while !self.ranges_refused.load(Ordering::Relaxed) {
            let Some(claim) = self.next_claim().await else { break };
            match self.bring(claim, false).await {
                Ok(()) => {}
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Origin(error)) => match patience.failed(self, &error) {
                    Some(pause) => sleep(pause).await,
                    None => break,
                },
            }
        }
        Ok(())
    }

    /// The next segment to bring; `None` when all is there.
    async fn next_claim(&self) -> Option<Claim> {
        let progress = self.fill.progress();
        loop {
            let change = progress.change();
            if progress.frontier() >= self.size_bytes {
                return None;
            }
            if let Some(claim) = progress.claim() {
                return Some(claim);
            }
            change.await;
        }
    }

    /// Waits before the next attempt, or fails. What one origin does not have, another may.
    async fn recover(&self, patience: &mut Patience, error: OriginError) -> Result<(), FillError> {
        let pause = match error.kind {
            OriginErrorKind::NotFound | OriginErrorKind::Refused { .. } => None,
            // All of our own connections to this upstream are in use. They will be free again.
            OriginErrorKind::Busy if patience.busy < BUSY_ROUNDS_MAX => {
                patience.busy += 1;
                Some(BUSY_PAUSE)
            }
            _ => patience.failed(self, &error),
        };
        if let Some(pause) = pause {
            tracing::debug!(digest = %self.fill.key().digest, ?pause, "resuming after: {error}");
            self.resumes.fetch_add(1, Ordering::Relaxed);
            sleep(pause).await;
            return Ok(());
        }
        let mut origin = self.origin.lock();
        self.fill.origin_failed(origin.0, &error);
        *origin = self.fill.next_origin().ok_or(FillError::Origin(error))?;
        patience.retry = Retry::new(FAILURES_MAX);
        Ok(())
    }

    /// Asks for a claim's bytes and takes them. Where upstream answers with something else, only the main connection goes
    /// on with that: there is one stream then.
    async fn bring(&self, claim: Claim, main: bool) -> Result<(), Trouble> {
        let held = Held { fill: self.fill, claim };
        let wanted = ByteRange { first: held.claim.rest.start, last: held.claim.rest.end - 1 };
        let origin = Arc::clone(&self.origin.lock().1);
        let range = (!self.ranges_refused.load(Ordering::Relaxed)).then_some(wanted);
        let body = match origin.fetch(range).await {
            Err(error) if range.is_some() && error.kind == OriginErrorKind::Unusable => {
                self.refuse_ranges();
                return Err(Trouble::Origin(error));
            }
            answer => answer.map_err(Trouble::Origin)?,
        };
        self.check(&body, &origin.label())?;
        if body.offset == wanted.first && body.end == Some(wanted.last + 1) {
            self.ranges_proven.store(true, Ordering::Relaxed);
            return self.bring_from(Incoming::new(body), Some(held)).await;
        }
        self.refuse_ranges();
        drop(held);
        if !main {
            return Ok(());
        }
        let whole = body.offset == 0 && body.end.is_none_or(|end| end == self.size_bytes);
        self.bring_from(Incoming::new(body), None).await?;
        // A part that was not asked for helps, but an upstream that sends nothing else must not be asked for ever.
        if whole { Ok(()) } else { Err(Trouble::Origin(broken(wanted.first, wanted.last + 1))) }
    }

    /// Takes a body's bytes: those of the claim, or without one all that are missing and nobody else's.
    async fn bring_from(&self, mut incoming: Incoming, mut held: Option<Held<'_>>) -> Result<(), Trouble> {
        let (mut at, end) = incoming.range(self.size_bytes);
        // The first segment's body was opened before there was anything to claim.
        if held.is_none() && end < self.size_bytes {
            held = self.claim_missing_in(at..end).filter(|held| held.claim.rest == (at..end));
        }
        let mut batch = incoming.batch(end - at, true).await.map_err(Trouble::Origin)?;
        loop {
            let (len, last) = (batch.len, batch.last);
            let write = self.keep(at, batch, held.as_mut());
            let gather = async {
                if last || at + len >= end { Ok(None) } else { incoming.batch(end - at - len, false).await.map(Some) }
            };
            let (kept, next) = future::join(write, gather).await;
            kept.map_err(Trouble::Fatal)?;
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
        while let Some(mut held) = self.claim_missing_in(at..at + batch.len) {
            let piece = Batch { chunks: batch.chunks.clone(), ..Batch::default() };
            let len = held.claim.rest.end - held.claim.rest.start;
            self.write(at, piece, &mut held, len).await?;
        }
        Ok(())
    }

    fn claim_missing_in(&self, bytes: Range<u64>) -> Option<Held<'a>> {
        let claim = self.fill.progress().claim_missing_in(bytes)?;
        Some(Held { fill: self.fill, claim })
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
        let written = self.partial.lock().await.write_at(wanted.start, chunks).await;
        written.map_err(|error| FillError::NotStorable {
            digest: self.fill.key().digest,
            reason: error.to_string().into(),
        })?;
        self.arrived.fetch_add(len, Ordering::Relaxed);
        self.fill.progress().received(&mut held.claim, len);
        Ok(())
    }

    /// A body must be of a blob of the same size.
    fn check(&self, body: &OriginBody, origin: &str) -> Result<(), Trouble> {
        let Some(total) = body.total_bytes.filter(|total| *total != self.size_bytes) else { return Ok(()) };
        self.ranges_refused.store(true, Ordering::Relaxed);
        Err(Trouble::Origin(OriginError {
            kind: OriginErrorKind::Unusable,
            message: format!("{origin} now says that the blob has {total} bytes instead of {}", self.size_bytes).into(),
        }))
    }

    fn refuse_ranges(&self) {
        if !self.ranges_refused.swap(true, Ordering::Relaxed) {
            self.tools.without_ranges.insert(self.fill.key().registry.clone(), ());
        }
    }
}

/// A claim that is given up when it's dropped, on whatever path.
struct Held<'a> {
    fill: &'a Fill,
    claim: Claim,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.fill.progress().release(&self.claim);
    }
}

fn broken(at: u64, end: u64) -> OriginError {
    OriginError {
        kind: OriginErrorKind::Broken,
        message: format!("the body ended at byte {at} instead of {end}").into(),
    }
}

fn wish(error: &OriginError) -> Option<Duration> {
    match error.kind {
        OriginErrorKind::RateLimited { retry_after } => retry_after,
        _ => None,
    }
}
