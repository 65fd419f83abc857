//! The way out through a proxy: which one an upstream is reached through, and which hosts are reached without.

use std::fmt;

use hyper_util::client::proxy::matcher::Matcher;
use url::Url;

use super::error::{Failure, UpstreamErrorKind};
use super::redirect::place;
use crate::secret::Secret;

/// How an upstream, and where it points, is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxy {
    /// Without a proxy.
    #[default]
    Direct,
    /// Everything through one.
    Through(ProxyAddress),
    /// As the environment says.
    Environment(Environment),
}

/// A proxy's address, which may carry a user name and password and therefore is not shown whole.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyAddress(Secret);

/// What `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, each by either case of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// For `http` addresses.
    pub http: Option<ProxyAddress>,
    /// For `https` addresses.
    pub https: Option<ProxyAddress>,
    /// Hosts that are reached directly: names with all that is below them, addresses, networks as `10.0.0.0/8`, `*`.
    pub no_proxy: String,
}

// === impl ProxyAddress ===

impl ProxyAddress {
    /// An address by `http` or `https`, maybe with a user name and password.
    pub fn new(address: Secret) -> Self {
        Self(address)
    }

    fn proxy(&self, make: fn(String) -> reqwest::Result<reqwest::Proxy>) -> Result<reqwest::Proxy, Failure> {
        let unusable = |error: reqwest::Error| Failure {
            cause: Some(format!("the proxy {self} can't be used: {}", error.without_url())),
            ..UpstreamErrorKind::Connect.into()
        };
        make(self.0.expose().to_owned()).map_err(unusable)
    }
}

impl fmt::Display for ProxyAddress {
    /// Host and port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Url::parse(self.0.expose()) {
            Ok(url) => write!(f, "{}://{}", url.scheme(), place(&url)),
            Err(_) => f.write_str("?"),
        }
    }
}

impl fmt::Debug for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

// === impl Proxy ===

impl Proxy {
    /// What the HTTP client is told. It looks up no name of a host that is reached through a proxy: the proxy does.
    pub(super) fn lay_on(&self, builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, Failure> {
        // The library would read the environment by itself.
        let builder = builder.no_proxy();
        match self {
            Self::Direct => Ok(builder),
            // The library applies that to names only.
            Self::Environment(environment) if environment.excepts_all() => Ok(builder),
            Self::Through(address) => Ok(builder.proxy(address.proxy(reqwest::Proxy::all)?)),
            Self::Environment(Environment { http, https, no_proxy }) => {
                let except = || reqwest::NoProxy::from_string(no_proxy);
                let mut builder = builder;
                if let Some(address) = http {
                    builder = builder.proxy(address.proxy(reqwest::Proxy::http)?.no_proxy(except()));
                }
                if let Some(address) = https {
                    builder = builder.proxy(address.proxy(reqwest::Proxy::https)?.no_proxy(except()));
                }
                Ok(builder)
            }
        }
    }

    /// The proxy that an address is reached through, which then looks its name up.
    pub(super) fn on_the_way_to(&self, url: &Url) -> Option<&ProxyAddress> {
        match self {
            Self::Direct => None,
            Self::Through(address) => Some(address),
            Self::Environment(environment) => environment.proxy_for(url),
        }
    }
}

// === impl Environment ===

impl Environment {
    /// The library applies `*` to names only.
    fn excepts_all(&self) -> bool {
        self.no_proxy.trim() == "*"
    }

    fn proxy_for(&self, url: &Url) -> Option<&ProxyAddress> {
        let address = if url.scheme() == "https" { &self.https } else { &self.http };
        let address = address.as_ref().filter(|_| !self.excepts_all())?;
        // What reads the exceptions is what the HTTP client reads them with; the proxy's own address doesn't matter to it.
        let exceptions = Matcher::builder().all("http://proxy.invalid").no(self.no_proxy.as_str()).build();
        let target = url.as_str().parse().ok()?;
        exceptions.intercept(&target).map(|_| address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_what_is_reached_through_a_proxy() {
        let address = ProxyAddress::new(Secret::new("http://proxy.corp:3128/"));
        let environment = |no_proxy: &str| {
            Proxy::Environment(Environment { http: None, https: Some(address.clone()), no_proxy: no_proxy.to_owned() })
        };
        for (no_proxy, url, through) in [
            ("", "https://registry.example/", true),
            ("", "http://registry.example/", false),
            (".corp,10.0.0.0/8", "https://registry.example/", true),
            (".corp,10.0.0.0/8", "https://registry.corp/", false),
            (".corp,10.0.0.0/8", "https://10.1.2.3/", false),
            (".corp,10.0.0.0/8", "https://11.1.2.3/", true),
            ("*", "https://11.1.2.3/", false),
        ] {
            let proxy = environment(no_proxy);
            let found = proxy.on_the_way_to(&url.parse().unwrap());
            assert_eq!(found.is_some(), through, "{url} with {no_proxy}");
        }
        let url = "https://registry.example/".parse().unwrap();
        assert_eq!(Proxy::Direct.on_the_way_to(&url), None);
        assert_eq!(Proxy::Through(address.clone()).on_the_way_to(&url), Some(&address));
    }

    #[test]
    fn a_proxy_s_password_is_not_shown() {
        let address = ProxyAddress::new(Secret::new("http://user:hunter2@proxy.corp:3128/"));
        assert_eq!(format!("{address} {address:?}"), "http://proxy.corp:3128 http://proxy.corp:3128");
    }
}
