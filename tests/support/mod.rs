//! What the integration tests stand on: a registry that does as it is told, small images, a raw client, a mirror.

use std::future::Future;
use std::time::Duration;

// What the simulated disk, which the store's own tests use too, knows of the store.
use cachalot::store::{Change, Faults, Op};

pub(crate) mod client;
pub(crate) mod images;
pub(crate) mod mirror;
pub(crate) mod multipart;
pub(crate) mod program;
pub(crate) mod registry;
pub(crate) mod secrets;
pub(crate) mod simulated_disk;
pub(crate) mod wiring;

/// How long anything may take before a test gives up. Nothing waits for this on the good path.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Waits for `future`, and fails the test with `what` when that takes longer than [`PATIENCE`].
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    let output = tokio::time::timeout(PATIENCE, future).await;
    output.unwrap_or_else(|_| panic!("still waiting after {PATIENCE:?}: {what}"))
}

/// Waits until `true_now` holds, looking again every few milliseconds: for states that nobody announces.
pub(crate) async fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(3));
    within(what, async {
        while !true_now() {
            ticks.tick().await;
        }
    })
    .await;
}

/// Runs the futures at once, each on its own task, and returns their outputs in order.
pub(crate) async fn all<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = futures.into_iter().map(|future| cachalot::tasks::spawn("test", future)).collect();
    let mut outputs = Vec::new();
    for task in tasks {
        outputs.push(within("one of several tasks", task).await.expect("a task of this test failed"));
    }
    outputs
}
