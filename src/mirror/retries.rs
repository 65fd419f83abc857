//! What failed while nobody waited is tried again, after a pause, as long as that may help.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::error::{MirrorError, MirrorErrorKind};

/// Something that did not come, and why.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    pub(super) again: Again,
}

/// Whether another try may do better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    Soon,
    After(Duration),
}

/// How often something of a run may still be tried again: an upstream that is gone must not cost each image its patience.
#[derive(Debug)]
pub(super) struct Retries {
    left: AtomicUsize,
}

/// How long to wait before something is tried again that failed: both together longer than a failed check of a tag is remembered.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(6)];

/// So much longer than upstream asks is waited.
const MARGIN: Duration = Duration::from_secs(1);

/// Upstream may ask for so long a pause. One that wants more is not waited for.
const PAUSE_MAX: Duration = Duration::from_mins(2);

/// So often something is tried again in one run.
const RETRIES_MAX: usize = 100;

// === impl Retries ===

impl Default for Retries {
    fn default() -> Self {
        Self { left: AtomicUsize::new(RETRIES_MAX) }
    }
}

impl Retries {
    /// Waits until something is worth another try that has failed so often. `false`: it is not.
    pub(super) async fn waited(&self, failure: &Failure, failures: usize) -> bool {
        let Some(&pause) = PAUSES.get(failures) else { return false };
        let pause = match failure.again {
            Again::Never => return false,
            Again::Soon => pause,
            Again::After(asked) if asked > PAUSE_MAX => return false,
            Again::After(asked) => (asked + MARGIN).max(pause),
        };
        let left = |left: usize| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_err() {
            return false;
        }
        sleep(pause).await;
        true
    }
}

// === impl Failure ===

impl From<MirrorError> for Failure {
    fn from(error: MirrorError) -> Self {
        let again = match error.kind {
            MirrorErrorKind::RateLimited { retry_after: Some(pause) } => Again::After(pause),
            MirrorErrorKind::RateLimited { retry_after: None }
            | MirrorErrorKind::Unavailable
            | MirrorErrorKind::Timeout
            | MirrorErrorKind::Unusable
            | MirrorErrorKind::Overloaded => Again::Soon,
            MirrorErrorKind::UnknownName
            | MirrorErrorKind::InvalidName
            | MirrorErrorKind::UnknownManifest
            | MirrorErrorKind::UnknownBlob
            | MirrorErrorKind::Denied
            | MirrorErrorKind::Internal => Again::Never,
        };
        Self { why: error.to_string(), again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(again: Again) -> Failure {
        Failure { why: String::new(), again }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_help_is_tried_again_after_a_pause_and_not_for_ever() {
        let retries = Retries::default();
        let pause = async |again, failures| {
            let begun = tokio::time::Instant::now();
            retries.waited(&failure(again), failures).await.then(|| begun.elapsed().as_secs())
        };
        assert_eq!(pause(Again::Soon, 0).await, Some(2));
        assert_eq!(pause(Again::Soon, 1).await, Some(6));
        assert_eq!(pause(Again::Soon, 2).await, None);
        assert_eq!(pause(Again::Never, 0).await, None);
        assert_eq!(pause(Again::After(Duration::from_secs(30)), 0).await, Some(31));
        assert_eq!(pause(Again::After(Duration::from_secs(1)), 1).await, Some(6));
        assert_eq!(pause(Again::After(Duration::from_hours(6)), 0).await, None);
        for _ in 4..RETRIES_MAX {
            assert_eq!(pause(Again::Soon, 0).await, Some(2));
        }
        assert_eq!(pause(Again::Soon, 0).await, None);
    }
}
