//! Wrong attempts, counted by address and name, so that guessing is slow without locking everyone out.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Who was wrong lately, and how often.
#[derive(Debug)]
pub(super) struct Attempts {
    by_name: moka::sync::Cache<(IpAddr, Box<str>), Arc<AtomicU32>>,
    by_address: moka::sync::Cache<IpAddr, Arc<AtomicU32>>,
}

/// How long a wrong attempt counts, from the first of a row.
const REMEMBERED: Duration = Duration::from_mins(1);

/// How many are remembered. Beyond it the oldest are forgotten.
const REMEMBERED_MAX: u64 = 50_000;

/// How often one address may be wrong about one name in that time.
const PER_NAME_MAX: u32 = 10;

/// How often one address may be wrong at all: clusters sit behind one, so it is generous.
const PER_ADDRESS_MAX: u32 = 100;

/// What counts as one address: whoever has one IPv6 address has 2^64 of them.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

// === impl Attempts ===

impl Attempts {
    pub(super) fn new() -> Self {
        fn remember<K: std::hash::Hash + Eq + Send + Sync + 'static>() -> moka::sync::Cache<K, Arc<AtomicU32>> {
            moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED).build()
        }
        Self { by_name: remember(), by_address: remember() }
    }

    /// Whether an attempt should not even be looked at.
    pub(super) fn too_often(&self, client: IpAddr, name: &str) -> bool {
        let client = network(client);
        let count = |counter: Option<Arc<AtomicU32>>| counter.map_or(0, |counter| counter.load(Ordering::Relaxed));
        count(self.by_name.get(&(client, name.into()))) >= PER_NAME_MAX
            || count(self.by_address.get(&client)) >= PER_ADDRESS_MAX
    }

    /// Counts a wrong attempt. Whether it is the one after which no further is looked at.
    pub(super) fn failed(&self, client: IpAddr, name: &str) -> bool {
        let client = network(client);
        let by_name = self.by_name.get_with((client, name.into()), Arc::default);
        let by_address = self.by_address.get_with(client, Arc::default);
        let names = by_name.fetch_add(1, Ordering::Relaxed) + 1;
        let all = by_address.fetch_add(1, Ordering::Relaxed) + 1;
        names == PER_NAME_MAX || all == PER_ADDRESS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_stopped_and_others_go_on() {
        let attempts = Attempts::new();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for n in 1..=PER_NAME_MAX {
            assert!(!attempts.too_often(one, "ann"));
            assert_eq!(attempts.failed(one, "ann"), n == PER_NAME_MAX);
        }
        assert!(attempts.too_often(one, "ann"));
        assert!(attempts.too_often("::ffff:10.0.0.1".parse().unwrap(), "ann"));
        assert!(!attempts.too_often(one, "bob"));
        assert!(!attempts.too_often(other, "ann"));
        for n in 0..PER_ADDRESS_MAX {
            attempts.failed(one, &format!("user{n}"));
        }
        assert!(attempts.too_often(one, "bob"));
    }

    #[test]
    fn a_network_of_one_counts_as_one_address() {
        let attempts = Attempts::new();
        for n in 0..PER_NAME_MAX {
            attempts.failed(format!("2001:db8::{n:x}").parse().unwrap(), "ann");
        }
        assert!(attempts.too_often("2001:db8::ffff".parse().unwrap(), "ann"));
        assert!(!attempts.too_often("2001:db8:0:1::1".parse().unwrap(), "ann"));
    }
}
