//! The connections of one fill whose size is known: each claims what is needed next, brings it, and resumes what broke.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::SemaphorePermit;
use tokio::time::sleep;

use crate::oci::range::ByteRange;
use crate::store::Partial;

use super::delivery::{Delivery, Trouble, broken};
use super::demand::BLOCK_BYTES;
use super::effort::{Effort, Tally};
use super::error::FillError;
use super::fill::{Fill, OriginId};
use super::incoming::Incoming;
use super::origin::{Origin, OriginBody, OriginError, OriginErrorKind, Priority};
use super::patience::Patience;
use super::progress::Ahead;
use super::ranges::Ranges;
use super::segments::Claim;
use super::transfer::Tools;

/// A transfer over any number of connections.
#[derive(Debug)]
pub(super) struct Connections<'a> {
    tools: &'a Tools,
    fill: &'a Fill,
    partial: &'a Partial,
    delivery: Delivery<'a>,
    size_bytes: u64,
    origin: Mutex<(OriginId, Arc<dyn Origin>)>,
    ranges: &'a Ranges<'a>,
    /// Upstream has contradicted itself about the blob's size.
    size_disputed: AtomicBool,
    tally: Tally,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Every fill has one, which alone goes on where upstream knows no ranges.
    Main,
    /// It makes the fill faster.
    Extra,
    /// It brings just the parts that clients want.
    Parts,
}

/// What brings the body that a fill began with.
type First<'a> = BoxFuture<'a, Result<(), Trouble>>;

/// Trouble, and the origin that it was with.
type From = (OriginId, OriginError);

/// How often in a row a connection that clients depend on may fail before the fill does.
const FAILURES_MAX: u32 = 6;

/// The others only make it faster, and give up early.
const EXTRA_FAILURES_MAX: u32 = 1;

// === impl Connections ===

impl<'a> Connections<'a> {
    pub(super) fn new(
        tools: &'a Tools,
        fill: &'a Fill,
        size_bytes: u64,
        partial: &'a Partial,
        origin: (OriginId, Arc<dyn Origin>),
        ranges: &'a Ranges<'a>,
    ) -> Self {
        Self {
            tools,
            fill,
            partial,
            delivery: Delivery::new(fill, partial, size_bytes),
            size_bytes,
            origin: Mutex::new(origin),
            ranges,
            size_disputed: AtomicBool::new(false),
            tally: Tally::default(),
        }
    }

    /// Brings what is wanted until all of the blob is there, beginning with a body that may have been opened already.
    pub(super) async fn run(&self, first: Option<OriginBody>) -> Result<(), FillError> {
        let part =
            first.as_ref().is_some_and(|first| first.offset > 0 || first.end.is_some_and(|end| end < self.size_bytes));
        if let Some(first) = first.as_ref().filter(|_| part) {
            self.ranges.given_by(&first.host);
        }
        if first.is_some() && !part {
            // It brings all of the blob, wanted or not.
            self.fill.progress().fetch_ahead(Ahead::Fully);
        }
        let first = first.map(|body| self.tally.open(self.delivery.take_unclaimed(Incoming::new(body))).boxed());
        let lazy = part && self.fill.progress().ahead() < Ahead::Fully;
        let (main_first, mut part_first) = if lazy { (None, first) } else { (first, None) };
        let mut connections = FuturesUnordered::<BoxFuture<'_, Result<(), FillError>>>::new();
        connections.push(self.main_connection(main_first).boxed());
        for number in 0..self.tools.limits.connections_per_blob {
            connections.push(self.parts_connection(part_first.take()).boxed());
            if number > 0 {
                connections.push(self.extra_connection().boxed());
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
            () = self.until(|| self.is_complete()) => {}
        }
        Ok(())
    }

    /// What it took.
    pub(super) fn effort(&self) -> Effort {
        self.tally.effort(self.delivery.twice(), self.ranges.are_proven())
    }

    /// How many bytes were written.
    pub(super) fn arrived(&self) -> u64 {
        self.delivery.arrived()
    }

    /// Whether nobody can tell how large the blob is.
    pub(super) fn is_size_disputed(&self) -> bool {
        self.size_disputed.load(Ordering::Relaxed)
    }

    /// Who sent the bytes, last.
    pub(super) fn label(&self) -> String {
        self.origin.lock().1.label()
    }

    fn is_complete(&self) -> bool {
        self.fill.progress().frontier() >= self.size_bytes
    }

    /// Waits until something is so.
    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let change = self.fill.progress().change();
            if is_so() {
                return;
            }
            change.await;
        }
    }

    /// The connection that every fill has: it ends when the blob is there, or fails with it. It has nothing to do as long
    /// as only parts are wanted.
    async fn main_connection(&self, mut first: Option<First<'_>>) -> Result<(), FillError> {
        let progress = self.fill.progress();
        let mut patience = Patience::new(FAILURES_MAX);
        loop {
            self.until(|| progress.ahead() > Ahead::Nothing).await;
            if !self.reserve_whole().await? {
                continue;
            }
            let brought = match first.take() {
                Some(first) => first.await.map_err(|trouble| (self.origin.lock().0, trouble)),
                None => match self.next_claim().await {
                    Some(claim) => self.bring(claim, Role::Main).await,
                    None => return Ok(()),
                },
            };
            match brought {
                Ok(()) => {}
                Err((_, Trouble::Fatal(error))) => return Err(error),
                Err((origin, Trouble::Origin(error))) => self.recover(&mut patience, (origin, error)).await?,
            }
        }
    }

    /// Whether there is room for all of the blob. Where nobody waits for all of it, there need not be.
    async fn reserve_whole(&self) -> Result<bool, FillError> {
        let progress = self.fill.progress();
        match self.partial.reserve_whole().await {
            Ok(()) => Ok(true),
            Err(error) if progress.ahead() == Ahead::Fully => {
                Err(FillError::not_storable(self.fill.key().digest, &error))
            }
            Err(_) => {
                progress.give_up_ahead();
                Ok(false)
            }
        }
    }

    /// A further connection, once a client waits for all of a large blob. It has a place among all further connections, and
    /// ends when there is none to be had, when upstream has trouble, or when nothing is left to claim.
    async fn extra_connection(&self) -> Result<(), FillError> {
        if self.size_bytes < self.tools.limits.parallel_above_bytes {
            return Ok(());
        }
        self.until(|| self.ranges.are_proven() && self.fill.progress().ahead() == Ahead::Fully).await;
        if self.origin.lock().1.sends_best_in_one_piece() {
            return Ok(());
        }
        let Ok(_place) = self.tools.extra_connections.try_acquire() else { return Ok(()) };
        let mut patience = Patience::new(EXTRA_FAILURES_MAX);
        while !self.ranges.are_refused() {
            let Some(claim) = self.next_claim().await else { break };
            match self.bring(claim, Role::Extra).await {
                Ok(()) => {}
                Err((_, Trouble::Fatal(error))) => return Err(error),
                Err((_, Trouble::Origin(error))) => match patience.failed(self.delivery.arrived(), &error) {
                    Some(pause) => sleep(pause).await,
                    None => break,
                },
            }
        }
        Ok(())
    }

    /// A connection that brings just what clients want who want no more than parts. It fails with the fill as long as nobody
    /// fetches the rest; after that, the main connection is there for those who wait.
    async fn parts_connection(&self, mut first: Option<First<'_>>) -> Result<(), FillError> {
        let mut patience = Patience::new(FAILURES_MAX);
        loop {
            let brought = if let Some(first) = first.take() {
                first.await.map_err(|trouble| (self.origin.lock().0, trouble))
            } else {
                let (claim, _place) = self.next_wanted().await;
                let blocks = (claim.rest.end - claim.rest.start).div_ceil(BLOCK_BYTES);
                self.tools.metrics.fill_lazy_blocks.inc_by(blocks);
                self.bring(claim, Role::Parts).await
            };
            match brought {
                Ok(()) => {}
                Err((_, Trouble::Fatal(error))) => return Err(error),
                Err((origin, Trouble::Origin(error))) => {
                    if self.fill.progress().ahead() < Ahead::Fully {
                        self.recover(&mut patience, (origin, error)).await?;
                    } else if let Some(pause) = patience.failed(self.delivery.arrived(), &error) {
                        sleep(pause).await;
                    } else {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The next segment to bring; `None` when all is there.
    async fn next_claim(&self) -> Option<Claim> {
        let progress = self.fill.progress();
        loop {
            let change = progress.change();
            if self.is_complete() {
                return None;
            }
            if let Some(claim) = progress.claim() {
                return Some(claim);
            }
            change.await;
        }
    }

    /// The next part that a client wants, with a place among all that bring parts. Nothing stays claimed while there is none:
    /// the main connection may get to it first.
    async fn next_wanted(&self) -> (Claim, SemaphorePermit<'_>) {
        let (progress, places) = (self.fill.progress(), &self.tools.parts_connections);
        let mut place = None;
        loop {
            let change = progress.change();
            if self.ranges.are_refused() {
                drop(place);
                return pending().await;
            }
            let Some(claim) = progress.claim_wanted() else {
                place = None;
                change.await;
                continue;
            };
            if let Some(place) = place.take().or_else(|| places.try_acquire().ok()) {
                return (claim, place);
            }
            progress.release(&claim);
            place = places.acquire().await.ok();
        }
    }

    /// Waits before the next attempt, or fails. What one origin does not have, another may.
    async fn recover(&self, patience: &mut Patience, (failed, error): From) -> Result<(), FillError> {
        if let Some(pause) = patience.pause(self.delivery.arrived(), &error) {
            tracing::debug!(digest = %self.fill.key().digest, ?pause, "resuming after: {error}");
            self.tally.resumed();
            self.tools.metrics.fill_resumes.inc();
            sleep(pause).await;
            return Ok(());
        }
        let mut origin = self.origin.lock();
        // Another connection may have moved on from it already.
        if origin.0 == failed {
            self.fill.origin_failed(failed, &error);
            *origin = self.fill.next_origin().ok_or(FillError::Origin(error))?;
        }
        *patience = Patience::new(FAILURES_MAX);
        Ok(())
    }

    /// Asks for a claim's bytes and takes them. Where upstream answers with something else, only the main connection goes
    /// on with that: there is one stream then.
    async fn bring(&self, claim: Claim, role: Role) -> Result<(), (OriginId, Trouble)> {
        let held = self.delivery.hold(claim);
        let wanted = ByteRange { first: held.claim.rest.start, last: held.claim.rest.end - 1 };
        let (id, origin) = self.origin.lock().clone();
        let refused = self.ranges.are_refused();
        if refused && role != Role::Main {
            return Ok(());
        }
        let range = (!refused).then_some(wanted);
        if range.is_some() {
            self.tally.asked();
            self.tools.metrics.fill_segments.inc();
        }
        let bringing = async {
            let host = origin.host();
            let body = match origin.fetch(range, self.priority(role)).await {
                Err(error) if range.is_some() && error.kind == OriginErrorKind::Unusable => {
                    self.refuse_ranges(&host);
                    return Err(Trouble::Origin(error));
                }
                answer => answer.map_err(Trouble::Origin)?,
            };
            self.check(&body, &origin.label())?;
            if body.offset == wanted.first && body.end == Some(wanted.last + 1) {
                if self.ranges.given_by(&body.host) {
                    // Further connections wait for the first.
                    self.fill.progress().nudge();
                }
                return self.delivery.take(Incoming::new(body), Some(held)).await;
            }
            self.refuse_ranges(&body.host);
            drop(held);
            if role != Role::Main {
                return Ok(());
            }
            let whole = body.offset == 0 && body.end.is_none_or(|end| end == self.size_bytes);
            self.delivery.take_unclaimed(Incoming::new(body)).await?;
            // A part that was not asked for helps, but an upstream that sends nothing else must not be asked for ever.
            if whole { Ok(()) } else { Err(Trouble::Origin(broken(wanted.first, wanted.last + 1))) }
        };
        self.tally.open(bringing).await.map_err(|trouble| (id, trouble))
    }

    fn priority(&self, role: Role) -> Priority {
        match role {
            Role::Parts => Priority::Foreground,
            Role::Main if self.fill.progress().ahead() == Ahead::Fully => Priority::Foreground,
            Role::Main | Role::Extra => Priority::Background,
        }
    }

    /// A body must be of a blob of the same size.
    fn check(&self, body: &OriginBody, origin: &str) -> Result<(), Trouble> {
        let Some(total) = body.total_bytes.filter(|total| *total != self.size_bytes) else { return Ok(()) };
        self.refuse_ranges_here();
        self.size_disputed.store(true, Ordering::Relaxed);
        Err(Trouble::Origin(OriginError {
            kind: OriginErrorKind::Unusable,
            message: format!("{origin} now says that the blob has {total} bytes instead of {}", self.size_bytes).into(),
        }))
    }

    /// Ranges are no longer asked for in this fill: who wants parts gets them with the whole.
    fn refuse_ranges_here(&self) {
        self.ranges.refuse_here();
        self.fill.progress().fetch_ahead(Ahead::Fully);
    }

    fn refuse_ranges(&self, host: &str) {
        self.ranges.refused_by(host);
        self.refuse_ranges_here();
    }
}
