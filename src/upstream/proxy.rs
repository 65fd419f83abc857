//! The way out through a proxy: which one an upstream is reached through, and which hosts are reached without.

use std::fmt;

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
            Self::Environment(Environment { no_proxy, .. }) if no_proxy.trim() == "*" => Ok(builder),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_s_password_is_not_shown() {
        let address = ProxyAddress::new(Secret::new("http://user:hunter2@proxy.corp:3128/"));
        assert_eq!(format!("{address} {address:?}"), "http://proxy.corp:3128 http://proxy.corp:3128");
    }
}
