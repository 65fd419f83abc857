//! Work that several requests wait for and that belongs to none of them.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::tasks;

use super::bypass::Bypasses;
use super::error::MirrorError;

/// At most one piece of work per key at a time. Whoever asks meanwhile gets the same result.
///
/// The work is a task of its own: it goes on when everyone who waited has left (law 4).
pub(super) struct Flights<K, T> {
    table: Arc<Mutex<Table<K, T>>>,
    tower: Tower,
}

/// What all flights of a mirror obey: nothing may go on once the store is closed.
#[derive(Clone, Debug)]
pub(super) struct Tower {
    flying: TaskTracker,
    stop: CancellationToken,
    /// How many there may be.
    limit: Arc<AtomicUsize>,
    /// Blobs that go past the store meanwhile, which are misses as well.
    pub(super) bypasses: Bypasses,
}

type Table<K, T> = HashMap<K, Shared<BoxFuture<'static, Result<T, MirrorError>>>>;

// === impl Flights ===

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(super) fn new(tower: &Tower) -> Self {
        Self { table: Arc::new(Mutex::new(HashMap::new())), tower: tower.clone() }
    }

    /// Waits for the work under `key`, which `work` starts if nobody has. Says also whether somebody had.
    pub(super) async fn run(
        &self,
        name: &'static str,
        key: K,
        work: BoxFuture<'static, Result<T, MirrorError>>,
    ) -> (Result<T, MirrorError>, bool) {
        let (flight, joined) = {
            let mut table = self.table.lock();
            if let Some(flight) = table.get(&key) {
                (flight.clone(), true)
            } else if self.tower.is_full() {
                return (Err(MirrorError::overloaded()), false);
            } else {
                let entry = Entry { table: Arc::clone(&self.table), key: key.clone() };
                let stop = self.tower.stop.clone();
                let flying = self.tower.flying.token();
                let task = tasks::spawn(name, async move {
                    let (_flying, _entry) = (flying, entry);
                    tokio::select! {
                        result = work => result,
                        () = stop.cancelled() => Err(MirrorError::stopping()),
                    }
                });
                let flight =
                    async move { task.await.unwrap_or_else(|_| Err(MirrorError::died(name))) }.boxed().shared();
                table.insert(key, flight.clone());
                (flight, false)
            }
        };
        (flight.await, joined)
    }
}

impl<K, T> fmt::Debug for Flights<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("in_flight", &self.table.lock().len()).finish_non_exhaustive()
    }
}

// === impl Tower ===

impl Default for Tower {
    fn default() -> Self {
        let limit = Arc::new(AtomicUsize::new(usize::MAX));
        let bypasses = Bypasses::default();
        Self { flying: TaskTracker::new(), stop: CancellationToken::new(), limit, bypasses }
    }
}

impl Tower {
    /// Allows so many flights at a time from now on. Whoever would start another is told to come back.
    pub(super) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn is_full(&self) -> bool {
        self.flying.len() >= self.limit.load(Ordering::Relaxed)
    }

    /// Ends all flights, those that come later too, and waits until they have ended.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.flying.close();
        self.flying.wait().await;
    }
}

/// A flight's place in the table, given up on every path out of its task.
struct Entry<K: Eq + Hash, T> {
    table: Arc<Mutex<Table<K, T>>>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Entry<K, T> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_flight_survives_the_one_who_started_it_and_answers_those_who_joined() {
        let flights = Arc::new(Flights::<&str, u32>::new(&Tower::default()));
        let (open, gate) = oneshot::channel();
        let leader = {
            let flights = Arc::clone(&flights);
            tokio::spawn(async move {
                flights.run("test", "key", async { gate.await.map_err(|_| MirrorError::died("")) }.boxed()).await
            })
        };
        while flights.table.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        leader.abort();
        let _ = leader.await;
        let follower = flights.run("test", "key", async { Ok(0) }.boxed());
        let (result, ()) = tokio::join!(follower, async { open.send(7).unwrap() });
        assert!(matches!(result, (Ok(7), true)));
        assert!(flights.table.lock().is_empty());
        assert!(matches!(flights.run("test", "key", async { Ok(8) }.boxed()).await, (Ok(8), false)));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_for_those_who_wait_and_frees_the_key() {
        let flights = Flights::<&str, u32>::new(&Tower::default());
        let (result, _) = flights.run("test", "key", async { panic!("as planned") }.boxed()).await;
        assert!(result.is_err());
        assert!(flights.table.lock().is_empty());
    }

    #[tokio::test]
    async fn beyond_the_limit_nothing_starts_and_everyone_may_join() {
        let tower = Tower::default();
        tower.set_limit(1);
        let flights = Flights::<&str, u32>::new(&tower);
        let (open, gate) = oneshot::channel();
        let leader = flights.run("test", "one", async { gate.await.map_err(|_| MirrorError::died("")) }.boxed());
        let others = async {
            let (refused, joined) = flights.run("test", "other", async { Ok(0) }.boxed()).await;
            assert!(!joined);
            let follower = flights.run("test", "one", async { Ok(0) }.boxed());
            open.send(7).unwrap();
            (refused, follower.await)
        };
        let (led, (refused, followed)) = tokio::join!(leader, others);
        assert!(matches!((led, followed), ((Ok(7), false), (Ok(7), true))));
        assert_eq!(refused.unwrap_err().kind, super::super::MirrorErrorKind::Overloaded);
        tower.flying.close();
        tower.flying.wait().await;
        assert!(matches!(flights.run("test", "other", async { Ok(8) }.boxed()).await, (Ok(8), false)));
    }

    #[tokio::test]
    async fn stopping_ends_what_flies_and_what_would_start() {
        let tower = Tower::default();
        let flights = Flights::<&str, u32>::new(&tower);
        let endless = flights.run("test", "key", std::future::pending().boxed());
        let ((result, _), ()) = tokio::join!(endless, tower.stop());
        assert!(result.is_err());
        assert!(flights.run("test", "key", std::future::pending().boxed()).await.0.is_err());
        assert!(flights.table.lock().is_empty());
    }
}
