//! The audit: does the index say what is on disk? For tests and doctors.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::StoreError;
use super::fs::Kind;
use super::layout::{self, ALGORITHMS};
use super::{Shared, Store};
use crate::oci::Digest;

// === impl Store ===

impl Store {
    /// Compares the index with the disk, and says in sentences what differs: blobs without a file, files without a blob,
    /// wrong sizes, files left half-done, wrong sums. Meant for a store that is at rest.
    pub async fn audit(&self) -> Result<Vec<String>, StoreError> {
        self.settled().await;
        let shared = self.shared.clone();
        self.shared.io.reading.run(move || shared.audit()).await
    }
}

// === impl Shared ===

impl Shared {
    fn audit(self: &Arc<Self>) -> Result<Vec<String>, StoreError> {
        let disk = &self.io.disk;
        let mut differences = Vec::new();
        let mut expected: HashMap<Digest, u64> = self.ledger.read().sizes().into_iter().collect();
        for algorithm in ALGORITHMS {
            let top = self.layout.algorithm(algorithm);
            for shard in disk.list(&top)?.into_iter().filter(|shard| shard.kind == Kind::Folder) {
                let folder = top.join(&shard.name);
                for found in disk.list(&folder)? {
                    let path = folder.join(&found.name);
                    let Some(digest) = layout::blob_at(algorithm, &shard.name, &found.name) else { continue };
                    let on_disk = disk.facts(&path)?.map(|facts| facts.size_bytes);
                    let in_index = expected.remove(&digest);
                    if on_disk != in_index {
                        differences.push(format!("{digest}: {in_index:?} bytes in the index, {on_disk:?} on disk"));
                    }
                }
            }
        }
        differences.extend(expected.keys().map(|digest| format!("{digest}: in the index, not on disk")));
        for staged in disk.list(&self.layout.tmp())? {
            differences.push(format!("tmp/{} was left behind", staged.name.display()));
        }
        for registry in disk.list(&self.layout.partials())? {
            for partial in disk.list(&self.layout.partials().join(&registry.name))? {
                let name = partial.name.display();
                if self.partials.lock().is_empty() {
                    differences.push(format!("partial/{}/{name} was left behind", registry.name.display()));
                }
            }
        }
        if !self.ledger.read().sums_are_right() {
            differences.push(format!("the sums are not those of the entries: {:?}", self.ledger));
        }
        Ok(differences)
    }
}
