//! Where blobs turned out to lie: addresses that a registry's redirect led to, to be asked again for more of the same blob.

use std::fmt;
use std::time::Duration;

use url::Url;

use crate::oci::{Digest, Repository};

/// The addresses that redirects led to a moment ago. They are presigned: whoever has one may read the blob, so they are
/// never shown, and kept for one repository each.
pub(super) struct Locations(moka::sync::Cache<(Repository, Digest), Location>);

/// Where a blob's bytes are to be had without asking the registry first.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) url: Url,
    /// The endpoint whose redirect led there.
    pub(super) endpoint: usize,
}

/// How long an address is used again. The shortest-lived ones known (ghcr.io's) are good for five minutes.
const KEPT_FOR: Duration = Duration::from_mins(1);
const LOCATIONS_MAX: u64 = 4096;

// === impl Locations ===

impl Locations {
    pub(super) fn new() -> Self {
        Self(moka::sync::Cache::builder().max_capacity(LOCATIONS_MAX).time_to_live(KEPT_FOR).build())
    }

    pub(super) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Location> {
        self.0.get(&(repository.clone(), *digest))
    }

    pub(super) fn remember(&self, repository: &Repository, digest: &Digest, location: Location) {
        self.0.insert((repository.clone(), *digest), location);
    }

    /// Drops this very address; one that has replaced it meanwhile stays.
    pub(super) fn forget(&self, repository: &Repository, digest: &Digest, refused: &Location) {
        let key = (repository.clone(), *digest);
        if self.0.get(&key).as_ref() == Some(refused) {
            self.0.invalidate(&key);
        }
    }
}

impl fmt::Debug for Locations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Locations").field(&self.0.entry_count()).finish()
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Location").field("place", &super::redirect::place(&self.url)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgetting_an_address_spares_its_successor_and_none_is_shown() {
        let repository = Repository { registry: "corp".parse().unwrap(), name: "app".parse().unwrap() };
        let digest = Digest::sha256(b"blob");
        let at = |query: &str| Location { url: format!("https://cdn.corp/x?{query}").parse().unwrap(), endpoint: 0 };
        let locations = Locations::new();
        locations.remember(&repository, &digest, at("sig=new"));
        locations.forget(&repository, &digest, &at("sig=old"));
        assert_eq!(locations.get(&repository, &digest), Some(at("sig=new")));
        locations.forget(&repository, &digest, &at("sig=new"));
        assert_eq!(locations.get(&repository, &digest), None);
        assert_eq!(format!("{:?}", at("sig=new")), "Location { place: \"cdn.corp\", .. }");
    }
}
