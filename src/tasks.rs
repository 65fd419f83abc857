//! Where work runs: named tasks for what waits, bounded pools of threads for what blocks or computes.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::Instrument;

/// A fixed number of threads for blocking or computing jobs, so that tokio's own pool is left to name look-ups.
///
/// Jobs run in the order they came. A job must never wait for another job or for a client: 513 waiting jobs would
/// stop everything else.
#[derive(Clone)]
pub struct Pool(Arc<rayon::ThreadPool>);

/// The threads of a pool could not be started.
#[derive(Debug, thiserror::Error)]
#[error("could not start the {name} threads: {source}")]
pub struct PoolError {
    name: &'static str,
    source: rayon::ThreadPoolBuildError,
}

/// Starts a task that is named in traces. It belongs to nobody: dropping the handle lets it run on.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(tracing::debug_span!("task", name)))
}

/// Starts a thread of its own for work that blocks as long as the program runs.
pub fn thread(name: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

// === impl Pool ===

impl Pool {
    /// Starts `threads` threads called `name`.
    pub fn new(name: &'static str, threads: usize) -> Result<Self, PoolError> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |n| format!("{name}-{n}"))
            .build()
            .map(|pool| Self(Arc::new(pool)))
            .map_err(|source| PoolError { name, source })
    }

    /// Runs `job` on the pool and waits for its result. A job once handed over runs to its end even when nobody waits
    /// any longer. A panic in the job goes on in the caller.
    pub async fn run<T, F>(&self, job: F) -> T
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        self.0.spawn_fifo(move || {
            let _ = sender.send(catch_unwind(AssertUnwindSafe(job)));
        });
        match receiver.await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => resume_unwind(panic),
            // The sender is moved into a job that always sends, and a pool runs what it was given before it ends.
            Err(_) => unreachable!("a pool dropped a job without running it"),
        }
    }

    /// Hands `job` over without waiting for it: for clean-up from destructors.
    pub fn run_detached(&self, job: impl FnOnce() + Send + 'static) {
        self.0.spawn_fifo(move || {
            // The panic hook has reported it; there is nobody to pass it on to.
            let _ = catch_unwind(AssertUnwindSafe(job));
        });
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.0.current_num_threads()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_job_reaches_its_caller_and_the_pool_lives_on() {
        let pool = Pool::new("test", 1).unwrap();
        let other = pool.clone();
        let failed = tokio::spawn(async move { other.run(|| panic!("as planned")).await }).await;
        assert!(failed.is_err_and(|error| error.is_panic()));
        assert_eq!(pool.run(|| 7).await, 7);
    }
}
