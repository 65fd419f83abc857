//! Where an upstream may send us: redirects and token realms, checked before anything is dialled. Pure.

use std::net::IpAddr;

use url::{Host, Url};

/// What decides whether a target chosen by an upstream is followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// The endpoint that was asked.
    pub(super) endpoint: &'a Url,
    /// The upstream itself lives on a private address, so it may point at such addresses.
    pub(super) private: bool,
    /// Hosts that are allowed in any case: names or addresses, with a port for that one alone, or `*.suffix`; in lower case.
    pub(super) allowed: &'a [String],
    /// Whether an address is a public one.
    pub(super) is_public: fn(IpAddr) -> bool,
}

/// A target that may be followed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) url: Url,
    /// A name that must be found to have a public address before it is dialled.
    pub(super) guard: Option<String>,
}

/// Redirects beyond these are a loop.
pub(super) const HOPS_MAX: usize = 10;

/// Addresses longer than this are refused; presigned ones take about 2 kB.
const LOCATION_BYTES_MAX: usize = 16 * 1024;

/// Whether two addresses have the same host and port, so that a credential for one may go to the other.
pub(super) fn same_place(a: &Url, b: &Url) -> bool {
    a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Host and port of an address, as messages show it: no user, no path, no query.
pub(super) fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

// === impl Rules ===

impl Rules<'_> {
    /// The target of a redirect that `current` answered with, or why it is not followed.
    pub(super) fn redirect(&self, current: &Url, location: &[u8]) -> Result<Target, String> {
        let text = std::str::from_utf8(location).ok().filter(|text| text.len() <= LOCATION_BYTES_MAX);
        let text = text.ok_or("the location of its redirect can't be read")?;
        let url = current.join(text).map_err(|error| format!("the location of its redirect can't be read: {error}"))?;
        if url.scheme() != "https" && self.endpoint.scheme() != "http" {
            return Err(format!("a redirect from https to {}://{}", url.scheme(), place(&url)));
        }
        self.check(url, "redirect")
    }

    /// The address of a token server, or why nothing is asked there. With `secret`, a credential is to be sent.
    pub(super) fn realm(&self, realm: &str, secret: bool) -> Result<Target, String> {
        let url = Some(realm).filter(|text| text.len() <= LOCATION_BYTES_MAX).and_then(|text| Url::parse(text).ok());
        let url = url.ok_or("the realm of its challenge is not an address")?;
        let same_host = url.host() == self.endpoint.host();
        let plain = url.scheme() != "https";
        if plain && self.endpoint.scheme() != "http" && (secret || !same_host) {
            return Err(format!("a token realm without https: {}://{}", url.scheme(), place(&url)));
        }
        self.check(url, "token realm")
    }

    fn check(&self, url: Url, what: &str) -> Result<Target, String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("a {what} with the scheme {}", url.scheme()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("a {what} with a user name in it, to {}", place(&url)));
        }
        let private = || format!("a {what} to the private address {}", place(&url));
        let Some(host) = url.host() else { return Err(format!("a {what} without a host")) };
        if self.private || Some(&host) == self.endpoint.host().as_ref() || self.is_allowed(&url) {
            return Ok(Target { url, guard: None });
        }
        let guard = match host {
            Host::Ipv4(address) if (self.is_public)(address.into()) => None,
            Host::Ipv6(address) if (self.is_public)(address.into()) => None,
            Host::Ipv4(_) | Host::Ipv6(_) => return Err(private()),
            // Behind a proxy names are not looked up here, so the best known one is refused by name.
            Host::Domain(name) if is_localhost(name) => return Err(private()),
            Host::Domain(name) => Some(name.to_owned()),
        };
        Ok(Target { url, guard })
    }

    fn is_allowed(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().map(|port| format!("{host}:{port}"));
        self.allowed.iter().any(|allowed| match allowed.strip_prefix('*') {
            Some(suffix) => suffix.starts_with('.') && host.len() > suffix.len() && host.ends_with(suffix),
            None => allowed == host || allowed == host.trim_matches(['[', ']']) || Some(allowed) == port.as_ref(),
        })
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn rules<'a>(endpoint: &'a Url, private: bool, allowed: &'a [String]) -> Rules<'a> {
        Rules { endpoint, private, allowed, is_public: super::super::resolver::is_public }
    }

    #[test]
    fn redirects_of_a_public_https_upstream() {
        let endpoint = url("https://registry.example");
        let current = url("https://registry.example/v2/a/blobs/x");
        let allowed =
            ["minio.corp", "10.0.0.9", "fd00::9", "*.cdn.corp", "10.0.0.8:9000", "[fd00::8]:9000", "tls.corp:443"]
                .map(str::to_owned);
        let rules = rules(&endpoint, false, &allowed);
        for (location, guard) in [
            ("/elsewhere", None),
            ("https://registry.example:8443/x", None),
            ("https://cdn.example/x?signature=1", Some("cdn.example")),
            ("//cdn.example/x", Some("cdn.example")),
            ("https://1.1.1.1/x", None),
            ("https://minio.corp/x", None),
            ("https://10.0.0.9:9000/x", None),
            ("https://[fd00::9]/x", None),
            ("https://10.0.0.8:9000/x", None),
            ("https://[fd00::8]:9000/x", None),
            ("https://tls.corp/x", None),
            ("https://tls.corp:8443/x", Some("tls.corp")),
            ("https://a.cdn.corp/x", None),
            ("https://cdn.corp/x", Some("cdn.corp")),
        ] {
            let target = rules.redirect(&current, location.as_bytes()).unwrap();
            assert_eq!(target.guard.as_deref(), guard, "{location}");
        }
        for location in [
            "http://registry.example/x",
            "http://cdn.example/x",
            "https://127.0.0.1/x",
            "https://[::1]/x",
            "https://0x7f.1/x",
            "https://2130706433/x",
            "https://[::ffff:10.0.0.1]/x",
            "https://10.0.0.8/x",
            "https://169.254.169.254/latest",
            "https://localhost/x",
            "https://a.localhost./x",
            "ftp://cdn.example/x",
            "https://u:p@cdn.example/x",
            "file:///etc/passwd",
            "https://",
            "\u{0}https://[",
        ] {
            assert!(rules.redirect(&current, location.as_bytes()).is_err(), "{location}");
        }
        assert!(rules.redirect(&current, b"\xff\xfe").is_err());
        let message = rules.redirect(&current, b"http://cdn.example/x?signature=abc").unwrap_err();
        assert!(!message.contains("abc"), "{message}");
    }

    #[test]
    fn a_private_or_plain_upstream_may_point_at_its_own_kind() {
        let private = url("https://10.0.0.1:5000");
        let inner = rules(&private, true, &[]);
        assert!(inner.redirect(&private, b"https://10.0.0.2/x").is_ok());
        assert!(inner.redirect(&private, b"http://10.0.0.2/x").is_err());
        let plain = url("http://registry.example");
        let outer = rules(&plain, false, &[]);
        assert!(outer.redirect(&plain, b"http://cdn.example/x").is_ok());
        assert!(outer.redirect(&plain, b"http://10.0.0.2/x").is_err());
    }

    #[test]
    fn token_realms() {
        let endpoint = url("https://registry.example");
        let rules = rules(&endpoint, false, &[]);
        for (realm, secret, ok) in [
            ("https://auth.example/token", true, true),
            ("https://registry.example/token?a=b", true, true),
            ("http://registry.example/token", false, true),
            ("http://registry.example/token", true, false),
            ("http://auth.example/token", false, false),
            ("https://127.0.0.1/token", false, false),
            ("https://u@auth.example/token", false, false),
            ("/token", false, false),
            ("registry", false, false),
            ("", false, false),
        ] {
            assert_eq!(rules.realm(realm, secret).is_ok(), ok, "{realm}");
        }
    }

    #[test]
    fn places_hold_no_secrets() {
        assert_eq!(place(&url("https://u:p@h:5/x?y=z")), "h:5");
        assert!(same_place(&url("https://h/x"), &url("https://h:443/y")));
        assert!(!same_place(&url("https://h/x"), &url("http://h/x")));
        assert!(!same_place(&url("https://h/x"), &url("https://h:444/x")));
        assert!(!same_place(&url("https://h/x"), &url("https://i/x")));
    }
}
