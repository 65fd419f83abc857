//! Another budget while the store is in use.

use std::sync::Arc;

use tokio::time::Instant;

use super::recover::facts;
use super::{Budget, FileSystemFacts, Store, StoreError};

// === impl Store ===

impl Store {
    /// Decides the budget anew. If more is held than it allows, nothing is evicted for as long as after a start: time to
    /// notice a mistake.
    pub async fn set_budget(
        &self,
        budget: Arc<dyn Fn(&FileSystemFacts) -> Budget + Send + Sync>,
    ) -> Result<(), StoreError> {
        let shared = &self.shared;
        let held_bytes = shared.ledger.read().totals().present;
        let (disk, root) = (shared.io.disk.clone(), shared.layout.root().to_owned());
        let facts = shared.io.reading.run(move || facts(&disk, &root, held_bytes)).await?;
        let budget = budget(&facts);
        *shared.budget.write() = budget;
        let excess = shared.ledger.change(|index| {
            index.set_capacity(budget.capacity_bytes);
            index.excess()
        });
        *shared.grace_until.lock() = (excess > 0).then(|| Instant::now() + shared.shrink_grace);
        Ok(())
    }
}
