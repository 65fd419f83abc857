//! From the first signal to the last byte: who is told to stop, and when.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::tasks;

/// The one order to stop, shared by everything that has to obey it.
///
/// It has two steps: *draining* (take nothing new, finish what was begun) and *expired* (stop now). Draining lasts for
/// the grace period at most.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    grace: Duration,
    draining: CancellationToken,
    at_once: CancellationToken,
    deadline: OnceLock<Instant>,
}

// === impl Shutdown ===

impl Shutdown {
    /// Nothing stops yet. Once it does, what was begun has `grace` to finish.
    pub fn new(grace: Duration) -> Self {
        Self(Arc::new(Inner {
            grace,
            draining: CancellationToken::new(),
            at_once: CancellationToken::new(),
            deadline: OnceLock::new(),
        }))
    }

    /// How long draining may take.
    pub fn grace(&self) -> Duration {
        self.0.grace
    }

    /// Starts draining; the grace period runs from the first call.
    pub fn begin(&self) {
        self.0.deadline.get_or_init(|| Instant::now() + self.0.grace);
        self.0.draining.cancel();
    }

    /// Ends the grace period, whether it had begun or not.
    pub fn at_once(&self) {
        self.begin();
        self.0.at_once.cancel();
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Waits until draining begins.
    pub async fn draining(&self) {
        self.0.draining.cancelled().await;
    }

    /// The token that is cancelled when draining begins, for what cannot wait on [`Self::draining`].
    pub fn draining_token(&self) -> CancellationToken {
        self.0.draining.clone()
    }

    /// Waits until the grace period is over, or cut short by [`Self::at_once`].
    pub async fn expired(&self) {
        self.draining().await;
        let deadline = *self.0.deadline.get_or_init(|| Instant::now() + self.0.grace);
        tokio::select! {
            () = self.0.at_once.cancelled() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }

    /// Obeys SIGINT and SIGTERM from now on: the first begins draining, the second ends it at once.
    ///
    /// Fails when the handlers cannot be installed. Must be called inside the runtime.
    pub fn obey_signals(&self) -> io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = self.clone();
        tasks::spawn("signals", async move {
            loop {
                let name = tokio::select! {
                    Some(()) = interrupt.recv() => "SIGINT",
                    Some(()) = terminate.recv() => "SIGTERM",
                    else => return,
                };
                if shutdown.is_draining() {
                    tracing::warn!(signal = name, "stopping at once");
                    shutdown.at_once();
                } else {
                    let grace_ms = u64::try_from(shutdown.0.grace.as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(signal = name, grace_ms, "finishing open requests; a second signal stops at once");
                    shutdown.begin();
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_grace_period_runs_from_the_first_order() {
        let shutdown = Shutdown::new(Duration::from_millis(20));
        assert!(!shutdown.is_draining());
        shutdown.begin();
        let deadline = shutdown.0.deadline.get().copied();
        shutdown.begin();
        assert_eq!(shutdown.0.deadline.get().copied(), deadline);
        shutdown.draining().await;
        shutdown.expired().await;
        assert!(Some(Instant::now()) >= deadline);
    }

    #[tokio::test]
    async fn stopping_at_once_needs_no_grace_and_reaches_every_clone() {
        let shutdown = Shutdown::new(Duration::from_hours(1));
        let clone = shutdown.clone();
        shutdown.at_once();
        clone.draining().await;
        clone.expired().await;
    }

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_ends_it() {
        let shutdown = Shutdown::new(Duration::from_hours(1));
        shutdown.obey_signals().unwrap();
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
        shutdown.draining().await;
        rustix::process::kill_process(own, rustix::process::Signal::INT).unwrap();
        shutdown.expired().await;
    }
}
