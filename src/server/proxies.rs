//! Proxies that are believed when they say for whom they ask.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// The header in which proxies say it, each adding the address that it saw.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How many hops are followed.
const HOPS_MAX: usize = 16;

/// The client behind `peer`: the last address that a trusted proxy names and that is none itself. What clients claim
/// further left proves nothing.
pub(super) fn client(trusted: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut client = peer.to_canonical();
    if trusted.is_empty() || !is_trusted(client) {
        return client;
    }
    let values: Vec<_> = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let hops = values.iter().rev().flat_map(|value| value.rsplit(','));
    for hop in hops.take(HOPS_MAX) {
        let Ok(address) = hop.trim().parse::<IpAddr>() else { return client };
        client = address.to_canonical();
        if !is_trusted(client) {
            return client;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_that_is_no_proxy_is_the_client() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let told = |peer: &str, values: &[&str]| {
            let headers = values.iter().map(|value| (FORWARDED_FOR, value.parse().unwrap())).collect();
            client(&trusted, peer.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(told("192.0.2.1", &["198.51.100.1"]), "192.0.2.1", "a stranger is not believed");
        assert_eq!(told("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(told("::ffff:10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(told("10.0.0.1", &["203.0.113.9, 198.51.100.1, 10.0.0.2"]), "198.51.100.1");
        assert_eq!(told("fd00::1", &["203.0.113.9", "2001:db8::7"]), "2001:db8::7");
        assert_eq!(told("10.0.0.1", &["198.51.100.1, nonsense"]), "10.0.0.1");
        assert_eq!(told("10.0.0.1", &["nonsense, 10.0.0.3"]), "10.0.0.3");
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_claimed_is_no_reason_to_panic(value in "[ -~]{0,100}") {
            let headers = HeaderMap::from_iter([(FORWARDED_FOR, value.parse().unwrap())]);
            client(&["0.0.0.0/0".parse().unwrap()], "10.0.0.1".parse().unwrap(), &headers);
        }
    }
}
