//! A blob of known size on its way: connections, hash frontier and checkpoints together, until it is whole, rests or fails.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future;
use tokio::sync::SetOnce;
use tokio::time::sleep;

use crate::oci::Verifier;
use crate::store::{Checkpoint, Partial, StoreError};
use crate::tasks::Pool;

use super::checkpointing::{Checkpointer, Leftovers, compare};
use super::connections::Connections;
use super::error::{FillError, Unstorable};
use super::fill::Fill;
use super::hashing::HashFrontier;
use super::origin::OriginBody;
use super::progress::Progress;
use super::ranges::Ranges;
use super::segments::Segments;
use super::transfer::{Ended, Limits, OpenOrigin, Tools, Transferred, not_storable, stopped};

/// A transfer of a blob whose size is known.
#[derive(Debug)]
pub(super) struct Sized<'a> {
    pub(super) tools: &'a Tools,
    pub(super) fill: &'a Fill,
    pub(super) origin: OpenOrigin,
    pub(super) partial: Partial,
    /// A body that was opened already.
    pub(super) first: Option<OriginBody>,
    /// What an earlier run left.
    pub(super) leftovers: Option<Checkpoint>,
}

/// Why the parts of a transfer stopped working.
enum Outcome {
    /// All bytes are there, and hashed.
    Hashed(Verifier),
    /// Nobody wants anything of it.
    Quiet,
    Failed(FillError),
}

/// So many blobs of which parts were wanted are kept open for further ones.
const LINGERING_MAX: usize = 256;

/// From so many bytes on, a blob of which only parts are wanted is fetched whole, whatever share of it they are.
const COMPLETE_FROM_BYTES: u64 = 64 * 1024 * 1024;

// === impl Sized ===

impl Sized<'_> {
    pub(super) async fn run(self) -> Result<Ended, FillError> {
        let Self { tools, fill, origin, partial, first, leftovers } = self;
        let progress = fill.progress();
        let told = first.as_ref().and_then(|body| body.total_bytes).unwrap_or_default();
        let size_bytes = leftovers.as_ref().map_or(told, |checkpoint| checkpoint.size_bytes);
        let mut origins = leftovers.as_ref().map_or_else(Vec::new, |checkpoint| checkpoint.origins.clone());
        origins.retain(|label| *label != origin.1.label());
        origins.push(origin.1.label());

        let mut segments = segments(tools, size_bytes);
        let leftovers = leftovers.map(|checkpoint| Leftovers::claim(checkpoint, &mut segments));
        progress.start_segments(partial.file(), segments, complete_from(tools, size_bytes));

        let ranges = Ranges::new(&tools.rangeless);
        let connections = Connections::new(tools, fill, size_bytes, &partial, origin, &ranges);
        let frontier = HashFrontier::new(progress, &tools.hashing, partial.file(), size_bytes);
        let mut checkpointer = Checkpointer::new(progress, &frontier, &partial, &tools.hashing, origins);
        let verifier = Verifier::new(fill.key().digest, Some(size_bytes));
        let had_leftovers = leftovers.is_some();
        let restored = SetOnce::new();
        let hash = async {
            let verifier = restore(leftovers, &frontier, verifier, progress, &partial, &tools.hashing).await;
            let verifier = verifier.map_err(|error| not_storable(fill, &error))?;
            // This runs once, so it was not set before.
            let _ = restored.set(());
            frontier.follow(verifier).await.map_err(|error| not_storable(fill, &error))
        };
        let checkpoints = async {
            restored.wait().await;
            checkpointer.keep_taking().await
        };
        let outcome = tokio::select! {
            biased;
            done = future::try_join(connections.run(first), hash) => match done {
                Ok(((), verifier)) => Outcome::Hashed(verifier),
                Err(error) => Outcome::Failed(error),
            },
            () = quiet(tools, progress) => Outcome::Quiet,
            () = tools.stop.cancelled() => Outcome::Failed(stopped(fill)),
            error = checkpoints => Outcome::Failed(not_storable(fill, &error)),
        };
        let (effort, label, arrived) = (connections.effort(), connections.label(), connections.arrived());
        tools.metrics.fill_twice_bytes.inc_by(effort.twice_bytes);
        let (snapshot, disputed) = (checkpointer.look(), connections.is_size_disputed());
        let ended = match outcome {
            Outcome::Hashed(verifier) => {
                let finished = tools.finish(fill, &label, partial, verifier, effort.in_pieces || had_leftovers).await;
                finished.inspect_err(|_| ranges.distrust_all())?;
                let restored_bytes = size_bytes.saturating_sub(arrived);
                return Ok(Ended::Filled(Transferred { size_bytes, restored_bytes, effort }));
            }
            Outcome::Quiet => Ok(Ended::Rests { present_bytes: progress.present_bytes() }),
            Outcome::Failed(error) => {
                // Readers need not wait for what is kept.
                progress.fail(error.clone());
                Err(error)
            }
        };
        // Until what was left is known again, the checkpoint before knows more of it.
        let known = restored.get().is_some();
        let nothing = snapshot.is_empty() && (known || !had_leftovers);
        if nothing || disputed || !ended.as_ref().err().is_none_or(leaves_something) {
            return ended;
        }
        if known && let Err(error) = checkpointer.take(snapshot).await {
            tracing::warn!(digest = %fill.key().digest, "could not take the last checkpoint: {error}");
        }
        partial.rest().await;
        ended
    }
}

/// Whether what was fetched before this failure is of use afterwards.
fn leaves_something(error: &FillError) -> bool {
    match error {
        FillError::Origin(_) | FillError::Stopped { .. } => true,
        FillError::NotStorable { why, .. } => *why == Unstorable::NoRoom,
        FillError::Mismatch { .. } => false,
    }
}

/// Finds out what of an earlier run's leftovers is as it was. The verifier has then taken in what it begins with.
async fn restore(
    leftovers: Option<Leftovers>,
    frontier: &HashFrontier<'_>,
    verifier: Verifier,
    progress: &Progress,
    partial: &Partial,
    pool: &Pool,
) -> Result<Verifier, StoreError> {
    let Some(Leftovers { checkpoint, prefix, runs }) = leftovers else { return Ok(verifier) };
    let start = async {
        let Some(mut claim) = prefix else { return Ok(verifier) };
        let verifier = frontier.restore(verifier, &checkpoint.prefixes, &mut claim).await;
        progress.release(&claim);
        let verifier = verifier?;
        partial.found(0, verifier.size_bytes());
        Ok(verifier)
    };
    let (verifier, ()) = future::try_join(start, compare(runs, progress, partial, pool)).await?;
    Ok(verifier)
}

/// Waits until nobody has wanted anything for a while, and closes the fill to new clients.
async fn quiet(tools: &Tools, progress: &Progress) {
    let mut hurried = tools.hurried.subscribe();
    loop {
        let change = progress.change();
        if !progress.is_quiet() {
            change.await;
            continue;
        }
        let lingering = Lingering::new(tools);
        tokio::select! {
            () = change => continue,
            () = sleep(lingering.patience()) => {}
            // The sender lives in the tools.
            _ = hurried.wait_for(|waiting| *waiting > 0) => {}
        }
        if progress.leave_if_quiet() {
            return;
        }
    }
}

fn segments(tools: &Tools, size_bytes: u64) -> Segments {
    let Limits { connections_per_blob, segment_bytes, .. } = tools.limits;
    Segments::new(size_bytes, segment_bytes, 2 * connections_per_blob as u64 * segment_bytes)
}

/// When all of a blob is fetched although only parts of it were wanted.
fn complete_from(tools: &Tools, size_bytes: u64) -> u64 {
    (size_bytes / 100).saturating_mul(tools.limits.complete_from_percent).min(COMPLETE_FROM_BYTES)
}

/// One of those that linger.
struct Lingering<'a>(&'a Tools);

impl<'a> Lingering<'a> {
    fn new(tools: &'a Tools) -> Self {
        tools.lingering.fetch_add(1, Ordering::Relaxed);
        Self(tools)
    }

    /// How long to linger. Each takes a descriptor, so where there are many, none does.
    fn patience(&self) -> Duration {
        let many = self.0.lingering.load(Ordering::Relaxed) > LINGERING_MAX;
        if many { Duration::ZERO } else { self.0.limits.linger }
    }
}

impl Drop for Lingering<'_> {
    fn drop(&mut self) {
        self.0.lingering.fetch_sub(1, Ordering::Relaxed);
    }
}
