//! Name look-ups with a guard: names that a public upstream chose for us must not lead into our own network.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Looks names up for one upstream, and remembers what that says about it.
#[derive(Clone)]
pub(super) struct Resolver(Arc<Shared>);

struct Shared {
    network: Network,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The hosts of the upstream's endpoints that are names, and whether one was found to have a private address.
    endpoints: HashMap<String, bool>,
    /// Names that may only lead to public addresses. Never shrinks: a connection may still be in the making after the
    /// request that wanted it has gone.
    guarded: HashSet<String>,
}

/// How names become addresses and which addresses are public. Tests bring their own.
#[derive(Clone, Debug)]
pub(super) struct Network {
    /// Names with fixed addresses; all others are asked of the system.
    pub(super) fixed: HashMap<String, Vec<IpAddr>>,
    /// Whether anyone on the internet may be behind an address.
    pub(super) is_public: fn(IpAddr) -> bool,
}

/// A guarded name has no public address.
#[derive(Debug)]
pub(super) struct NoPublicAddress(String);

/// A name could not be looked up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoAddress(std::io::Error);

/// More names than any registry with its content networks needs.
const GUARDED_NAMES_MAX: usize = 1024;

// === impl Resolver ===

impl Resolver {
    /// A resolver for an upstream whose endpoints have these host names. With `public_only`, they are guarded too.
    pub(super) fn new(network: Network, endpoint_names: impl Iterator<Item = String>, public_only: bool) -> Self {
        let endpoints: HashMap<String, bool> = endpoint_names.map(|name| (name, false)).collect();
        let guarded = if public_only { endpoints.keys().cloned().collect() } else { HashSet::new() };
        Self(Arc::new(Shared { network, state: Mutex::new(State { endpoints, guarded }) }))
    }

    /// Whether an endpoint's name was found to lead to a private address. Names behind a proxy are never looked up and
    /// count as public.
    pub(super) fn has_private_endpoint(&self) -> bool {
        self.0.state.lock().endpoints.values().any(|private| *private)
    }

    /// A name's addresses, for people to read.
    pub(super) async fn look_up(&self, name: &str) -> std::io::Result<Vec<String>> {
        let mut found: Vec<String> =
            self.0.addresses(name).await?.into_iter().map(|address| address.ip().to_string()).collect();
        found.dedup();
        Ok(found)
    }

    pub(super) fn is_public(&self) -> fn(IpAddr) -> bool {
        self.0.network.is_public
    }

    /// From now on `name` only leads to public addresses. `false` when too many names are guarded already.
    pub(super) fn guard(&self, name: &str) -> bool {
        let mut state = self.0.state.lock();
        if state.guarded.contains(name) {
            return true;
        }
        if state.guarded.len() >= GUARDED_NAMES_MAX {
            return false;
        }
        state.guarded.insert(name.to_owned())
    }
}

impl Shared {
    async fn addresses(&self, name: &str) -> std::io::Result<Vec<SocketAddr>> {
        if let Some(fixed) = self.network.fixed.get(name) {
            return Ok(fixed.iter().map(|address| SocketAddr::new(*address, 0)).collect());
        }
        Ok(tokio::net::lookup_host((name, 0)).await?.collect())
    }

    /// Applies the guard, and notes what the addresses say about an endpoint.
    fn admit(&self, name: &str, mut addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, NoPublicAddress> {
        let is_public = |address: &SocketAddr| (self.network.is_public)(address.ip());
        let mut state = self.state.lock();
        if state.guarded.contains(name) {
            addresses.retain(is_public);
            return if addresses.is_empty() { Err(NoPublicAddress(name.to_owned())) } else { Ok(addresses) };
        }
        if let Some(private) = state.endpoints.get_mut(name) {
            *private = !addresses.iter().all(is_public);
        }
        Ok(addresses)
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let name = name.as_str().to_ascii_lowercase();
            let found = shared.addresses(&name).await.map_err(NoAddress)?;
            let admitted = shared.admit(&name, found)?;
            Ok(Box::new(admitted.into_iter()) as Addrs)
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

// === impl Network ===

impl Default for Network {
    fn default() -> Self {
        Self { fixed: HashMap::new(), is_public }
    }
}

// === impl NoPublicAddress ===

impl fmt::Display for NoPublicAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has no public address", self.0)
    }
}

impl std::error::Error for NoPublicAddress {}

/// Whether an address is one of the internet at large: not this host, not a private, link-local, shared or documentation
/// network, and no such IPv4 address dressed up as IPv6.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let assignments = (a, b, c) == (192, 0, 0);
    let benchmarks = a == 198 && (b == 18 || b == 19);
    !(a == 0
        || a >= 240
        || shared
        || assignments
        || benchmarks
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let segments = address.segments();
    let tail = Ipv4Addr::from_bits((u32::from(segments[6]) << 16) | u32::from(segments[7]));
    match segments {
        // NAT64 leads to the IPv4 address in its tail, 6to4 to the one in its middle.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => is_public_v4(tail),
        [0x2002, high, low, ..] => is_public_v4(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))),
        // Only 2000::/3 is handed out; 2001:db8::/32 is documentation.
        [0x2001, 0xdb8, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_and_others() {
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn a_guarded_name_keeps_only_its_public_addresses() {
        let resolver = Resolver::new(Network::default(), ["registry.example".to_owned()].into_iter(), false);
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
        };
        assert!(resolver.guard("cdn.example"));
        let admitted = resolver.0.admit("cdn.example", addresses(&["10.0.0.1", "1.1.1.1"])).unwrap();
        assert_eq!(admitted, addresses(&["1.1.1.1"]));
        assert!(resolver.0.admit("cdn.example", addresses(&["::1"])).is_err());
        assert_eq!(resolver.0.admit("other.example", addresses(&["::1"])).unwrap(), addresses(&["::1"]));
        assert!(!resolver.has_private_endpoint());
        resolver.0.admit("registry.example", addresses(&["10.0.0.1"])).unwrap();
        assert!(resolver.has_private_endpoint());
    }

    #[test]
    fn the_number_of_guarded_names_is_bounded() {
        let resolver = Resolver::new(Network::default(), std::iter::empty(), false);
        for n in 0..GUARDED_NAMES_MAX {
            assert!(resolver.guard(&n.to_string()));
        }
        assert!(resolver.guard("7"));
        assert!(!resolver.guard("one.more"));
    }
}
