//! Places for connections: how many are open in all and from each address, under limits that can change meanwhile.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// The places of the listeners that share a limit. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<Taken>>);

/// How many places there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceLimits {
    /// In all.
    pub connections_max: usize,
    /// For each address; `None` is no limit, for whole clusters sit behind one.
    pub per_address_max: Option<usize>,
}

#[derive(Debug)]
struct Taken {
    limits: PlaceLimits,
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place, given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: IpAddr,
}

// === impl Places ===

impl Places {
    /// No place is taken yet.
    pub fn new(limits: PlaceLimits) -> Self {
        Self(Arc::new(Mutex::new(Taken { limits, all: 0, by_address: HashMap::new() })))
    }

    /// Changes the limits. Who has a place keeps it.
    pub fn set(&self, limits: PlaceLimits) {
        self.0.lock().limits = limits;
    }

    /// A place for a client, if there is one.
    pub(super) fn take(&self, client: IpAddr) -> Option<Place> {
        let client = client.to_canonical();
        let mut taken = self.0.lock();
        let PlaceLimits { connections_max, per_address_max } = taken.limits;
        let of_client = taken.by_address.get(&client).copied().unwrap_or_default();
        if taken.all >= connections_max || per_address_max.is_some_and(|max| of_client >= max) {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(client, of_client + 1);
        drop(taken);
        Some(Place { places: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_address.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_in_all_and_by_address_and_come_back() {
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let places = Places::new(PlaceLimits { connections_max: 3, per_address_max: Some(2) });
        let first = places.take(one).unwrap();
        let _second = places.take("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert!(places.take(one).is_none());
        let _third = places.take(other).unwrap();
        assert!(places.take(other).is_none(), "none is left");
        drop(first);
        let again = places.take(one).unwrap();
        places.set(PlaceLimits { connections_max: 4, per_address_max: None });
        let _fourth = places.take(one).unwrap();
        assert!(places.take(one).is_none());
        places.set(PlaceLimits { connections_max: 1, per_address_max: None });
        drop(again);
        assert!(places.take(other).is_none(), "three are still there");
        assert_eq!(places.0.lock().by_address.len(), 2);
    }
}
